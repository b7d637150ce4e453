//! Takes snapshots of a run for those who watch it. It reads what the recorder reads, and like it never reaches
//! back into the world.

use super::Progress;
use super::checkpoint::Boundary;
use super::decode::{Answer, StepDone};
use super::migrate::ExpertsMoved;
use super::plan::{Plan, fault_figures};
use super::reallocate::WidthsBrought;
use super::record::Recorder;
use super::rounds::{AskNodes, NodesNow, Round};
use super::serve::{Refusal, ServeError, StageEnds, Watch};
use super::timeline::{self, Took};
use crate::dispatch::{NodeStats, Served};
use crate::measure::Clock;
use crate::results::{
    LayerSnapshot, NodeSnapshot, NodeState, PaceState, SCHEMA_VERSION, SNAPSHOT_NODES_MAX, Snapshot,
};
use crate::scenario::file::Engine;
use crate::source::KeptExperts;
use agents::ids::{NodeId, RequestId, StepId};
use agents::round::Arena;
use std::ops::Range;

/// Between two snapshots of a run that goes, ns.
const EVERY_NS: u64 = 100_000_000;

/// Takes the snapshots. Where nobody wants any it does nothing.
pub(super) struct Observer<'a> {
    progress: &'a dyn Progress,
    /// The run's clock.
    pub(super) clock: Clock,
    /// Snapshots are rare in this one's time, which virtual time is not.
    machine: Clock,
    is_watched: bool,
    wants_times: bool,
    /// When the next one is due, of the machine's clock.
    due_ns: u64,
    /// Of the run's clock; none before.
    pub(super) serving_from_ns: Option<u64>,
    kept: Option<&'a KeptExperts>,
    experts: usize,
    width: usize,
    /// Of a quota: capacity over fair share.
    capacity_factor: Option<f64>,
    is_in_process: bool,
    /// Of parts of the run before this one.
    earlier: &'a Served,
    snapshot: Snapshot,
}

impl<'a> Observer<'a> {
    pub(super) fn new(
        plan: &'a Plan<'_>,
        progress: &'a dyn Progress,
        (clock, earlier): (Clock, &'a Served),
    ) -> Self {
        let scenario = plan.scenario;
        let is_watched = progress.wants_snapshots();
        let shape = plan.source().shape();
        let layer = |layer| LayerSnapshot { layer, ..LayerSnapshot::default() };
        let snapshot = Snapshot {
            schema_version: SCHEMA_VERSION,
            scenario: scenario.name.clone(),
            seed: scenario.seed,
            router: scenario.game.router.clone(),
            phase: "serving".to_owned(),
            steps: if is_watched { plan.demand.steps() as u64 } else { 0 },
            requests: plan.demand.intended_ns.len() as u64,
            layers: (0..).map(layer).take(shape.layers).collect(),
            ..Snapshot::default()
        };
        Self {
            progress,
            clock,
            machine: Clock::start(),
            is_watched,
            wants_times: progress.wants_times(),
            due_ns: 0,
            serving_from_ns: None,
            kept: plan.experts.kept(),
            experts: plan.experts.experts,
            width: shape.width,
            capacity_factor: (scenario.game.cost == "quota")
                .then_some(scenario.game.capacity_factor),
            is_in_process: scenario.nodes.engine == Engine::InProcess,
            earlier,
            snapshot,
        }
    }

    /// The last snapshot: serving has ended, and the nodes have said what they did.
    pub(super) fn ended(&mut self, recorder: &Recorder, served: &Served) {
        if !self.is_watched {
            return;
        }
        let was = |stats: &NodeStats| {
            let before = self.snapshot.nodes.iter().find(|node| node.node == stats.node.0);
            (before.is_none_or(|node| node.state == NodeState::Up), 0.0)
        };
        let load = served.nodes.iter().map(was).collect();
        self.nodes(&NodesNow { served: served.clone(), load }, &[], &[]);
        self.tell(recorder, recorder.requests.span_ns());
    }

    fn round(&mut self, round: &Round<'_>, stages: &StageEnds, recorder: &Recorder) {
        let play = &round.decision.play;
        let certificate = &play.certificate;
        let finite = |value: f64| value.is_finite().then_some(value);
        let kept = self.kept.map(|kept| kept[round.layer.index()].as_slice());
        let all = self.experts;
        let loads = |of: &[u32]| match kept {
            None => of.to_vec(),
            Some(kept) => {
                let mut loads = vec![0; all];
                kept.iter().zip(of).for_each(|(expert, load)| loads[expert.index()] = *load);
                loads
            }
        };
        let pairs: f64 = play.loads_top_k.iter().map(|load| f64::from(*load)).sum();
        let fair_share = pairs / play.loads_top_k.len() as f64;
        let largest = play.loads_top_k.iter().copied().max().unwrap_or(0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
        let capacity = self.capacity_factor.map(|factor| (factor * fair_share).ceil() as u64);
        self.snapshot.layers[round.layer.index()] = LayerSnapshot {
            layer: round.layer.0,
            step: u64::from(round.step.0),
            tokens: (round.output.len() / self.width) as u64,
            loads: loads(&play.loads),
            loads_top_k: loads(&play.loads_top_k),
            fair_share,
            capacity,
            max_over_mean: certificate.max_over_mean,
            max_over_mean_top_k: f64::from(largest) / fair_share,
            epsilon_nash: finite(certificate.epsilon_nash),
            relative_gap: finite(certificate.relative_gap),
            potential: finite(certificate.potential),
            dual_bound: finite(certificate.dual_bound),
            score_loss: certificate.score_loss,
            route_ns: stages.route_ns(),
            dispatch_ns: round.dispatch_ns,
        };
        let is_stepping =
            self.progress.pace().is_some_and(|pace| pace.state() == PaceState::Paused);
        let now_ns = self.machine.now_ns();
        if now_ns >= self.due_ns || is_stepping {
            self.due_ns = now_ns + EVERY_NS;
            let pairs = &round.decision.node_loads.loads;
            self.nodes(&round.nodes.now(), pairs, round.legs);
            self.tell(recorder, self.elapsed_ns());
        }
    }

    fn waits(&mut self, nodes: &NodesNow, recorder: &Recorder) {
        let before = self.snapshot.nodes.iter();
        let pairs: Vec<u64> = before.clone().map(|node| node.round_pairs).collect();
        let legs: Vec<(NodeId, u64)> =
            before.filter_map(|node| Some((NodeId(node.node), node.answer_ns?))).collect();
        self.nodes(nodes, &pairs, &legs);
        self.tell(recorder, self.elapsed_ns());
    }

    fn elapsed_ns(&self) -> u64 {
        self.clock.now_ns().saturating_sub(self.serving_from_ns.unwrap_or(u64::MAX))
    }

    /// Takes down the nodes; `round_pairs` by node and `legs` are of the latest round.
    fn nodes(&mut self, now: &NodesNow, round_pairs: &[u64], legs: &[(NodeId, u64)]) {
        let served = now.served.clone().after(self.earlier);
        let gone = (false, 0.0);
        let seen = |stats: &NodeStats| {
            let at = now.served.nodes.iter().position(|node| node.node == stats.node);
            let (gets_work, pending_pairs) = at.map_or(gone, |at| now.load[at]);
            let leg = legs.iter().find(|(node, _)| *node == stats.node);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it saturates"
            )]
            let pending_pairs = pending_pairs as u64;
            NodeSnapshot {
                node: stats.node.0,
                state: match (gets_work, stats.lost) {
                    (_, true) => NodeState::Lost,
                    (true, false) => NodeState::Up,
                    (false, false) => NodeState::Aside,
                },
                experts: stats.shards as u64,
                shard_bytes: stats.shard_bytes as u64,
                round_pairs: round_pairs.get(stats.node.index()).copied().unwrap_or(0),
                pending_pairs,
                orders: stats.requests,
                token_experts: stats.token_experts,
                compute_ns: stats.compute_ns,
                answer_ns: leg.map(|(_, took_ns)| *took_ns),
                sent_bytes: stats.sent_bytes,
                received_bytes: stats.received_bytes,
            }
        };
        self.snapshot.nodes = served.nodes.iter().take(SNAPSHOT_NODES_MAX).map(seen).collect();
        let all = &now.served.nodes;
        let up = all.iter().zip(&now.load).filter(|(stats, (up, _))| *up && !stats.lost);
        self.snapshot.nodes_total = all.len() as u64;
        self.snapshot.nodes_up = up.count() as u64;
        self.snapshot.sent_bytes = served.nodes.iter().map(|node| node.sent_bytes).sum();
        self.snapshot.received_bytes = served.nodes.iter().map(|node| node.received_bytes).sum();
        self.snapshot.faults = (!self.is_in_process).then(|| fault_figures(&served.faults));
    }

    fn tell(&mut self, recorder: &Recorder, elapsed_ns: u64) {
        let snapshot = &mut self.snapshot;
        recorder.fill(snapshot);
        snapshot.elapsed_ns = elapsed_ns;
        let rate = snapshot.tokens_answered as f64 * 1e9 / elapsed_ns as f64;
        snapshot.tokens_per_s = (elapsed_ns > 0).then_some(rate);
        let largest = |figure: fn(&LayerSnapshot) -> Option<f64>| {
            snapshot.layers.iter().filter_map(figure).max_by(f64::total_cmp)
        };
        let (epsilon, gap) = (largest(|layer| layer.epsilon_nash), largest(|l| l.relative_gap));
        (snapshot.epsilon_nash, snapshot.relative_gap) = (epsilon, gap);
        self.progress.snapshot(snapshot);
    }
}

/// A recorder that is observed.
pub(super) struct Observed<'a, 'b> {
    pub(super) recorder: &'a mut Recorder,
    pub(super) observer: &'a mut Observer<'b>,
}

impl Watch for Observed<'_, '_> {
    fn serving_from(&mut self, now_ns: u64) {
        self.observer.serving_from_ns = Some(now_ns);
        self.recorder.serving_from(now_ns);
    }

    fn round(&mut self, round: &Round<'_>, arena: &Arena, stages: &StageEnds, payload: (u64, u64)) {
        self.recorder.round(round, arena, stages, payload);
        if self.observer.is_watched {
            self.observer.round(round, stages, self.recorder);
        }
        if self.observer.wants_times {
            timeline::round(round, stages, &mut |took| self.observer.progress.took(&took));
        }
    }

    fn waits(&mut self, nodes: AskNodes<'_>) {
        if self.observer.is_watched {
            self.observer.waits(&nodes.now(), self.recorder);
        }
    }

    fn released(&mut self, lag_ns: u64) {
        self.recorder.released(lag_ns);
    }

    fn refused(&mut self, requests: &[RequestId], why: Refusal, intended_ns: &[u64], now_ns: u64) {
        self.recorder.refused(requests, why, intended_ns, now_ns);
    }

    fn batch(
        &mut self,
        batch: (StepId, Vec<RequestId>),
        intended_ns: &[u64],
        times_ns: Range<u64>,
        losses: Option<&[f64]>,
    ) {
        if self.observer.wants_times {
            let from_ns = self.observer.serving_from_ns.unwrap_or(0);
            let asked = |request: &RequestId| {
                (request.index() as u64, from_ns + intended_ns[request.index()])
            };
            let (step, times_ns) = (u64::from(batch.0.0), (times_ns.start, times_ns.end));
            let tell = &mut |took| self.observer.progress.took(&took);
            timeline::batch(step, times_ns, batch.1.iter().map(asked), tell);
        }
        self.recorder.batch(batch, intended_ns, times_ns, losses);
    }

    fn step(&mut self, step: StepDone) {
        if self.observer.wants_times {
            self.observer.progress.took(&Took::from(&step));
        }
        self.recorder.step(step);
    }

    fn answered(&mut self, answer: Answer) {
        if self.observer.wants_times {
            self.observer.progress.took(&Took::from(&answer));
        }
        self.recorder.answered(answer);
    }

    fn widths_brought(&mut self, brought: &WidthsBrought<'_>) {
        self.recorder.widths_brought(brought);
    }

    fn experts_moved(&mut self, moved: &ExpertsMoved<'_>) {
        self.recorder.experts_moved(moved);
    }

    fn goes_on(&mut self, at: &Boundary<'_>) -> Result<bool, ServeError> {
        self.observer.snapshot.steps_done = at.steps_done as u64;
        self.recorder.goes_on(at)
    }
}

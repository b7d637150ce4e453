//! Records a run as it goes: rows to Parquet, sums for the summary. It reads rounds and replies and
//! never reaches back into the world.

use super::checkpoint::{AllSums, Boundary, Checkpoints};
use super::decode::{Answer, StepDone};
use super::demand::Demand;
use super::goals::goals;
use super::migrate::{ExpertsMoved, MigrationRecord};
use super::reallocate::WidthsBrought;
use super::requests::Requests;
use super::rounds::Round;
use super::samples::Sampler;
use super::serve::{Refusal, ServeError, StageEnds, Watch};
use super::state_hash::StateHash;
use super::sums::{FlockSums, NodeLoadSums, PlaySums};
use super::timeline::{self, Took};
use super::trace::Trace;
use super::width_control::WidthChange;
use crate::dispatch::Served;
use crate::results::checkpoint::{Latest, LoggedRow, RowLog};
use crate::results::{
    BatchTimes, HottestExpert, LayerFigures, Layers, MotionFigures, Outcomes, Pairs,
    ReallocationFigures, ResultsError, ResumeFigures, RoundRow, RunDir, ServedNodeLoads, Snapshot,
    StepTheory, Summary, TOKENS_PLACED, TableWriter, TailTheory, Throughput, Timeline,
};
use crate::scenario::Scenario;
use crate::scenario::file::Engine;
use crate::source::{KeptExperts, SourceShape};
use agents::flock::motion::LayerMotion;
use agents::flock::plane::Plane;
use agents::ids::{ExpertId, RequestId, StepId};
use agents::queueing::ForkJoin;
use agents::round::Arena;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::time::SystemTime;

/// Rows and sums of a run.
pub(super) struct Recorder {
    scenario: Scenario,
    shape: SourceShape,
    rounds: TableWriter<RoundRow>,
    pub(super) requests: Requests,
    sums: Sums,
    node_loads: NodeLoadSums,
    checkpoints: Option<Checkpoints>,
    /// Of each layer, in which its experts are drawn.
    planes: Vec<Option<Plane>>,
    /// Where one was asked for.
    trace: Option<Trace>,
    /// Likewise.
    sampler: Option<Sampler>,
    /// Which experts the loads are of, where some are pruned.
    kept: Option<KeptExperts>,
    /// Experts that move between nodes; none where they stay.
    migration: Option<MigrationRecord>,
    pairs: Pairs,
    motion: Option<MotionFigures>,
    /// Of a request, mean.
    tokens_offered: f64,
    /// How long nodes took, and for a pair on average; none before they have ended.
    nodes_took: (Option<ForkJoin>, Option<f64>),
    paused_ns: Option<u64>,
    /// The first error of the rounds' writer; the run goes on to a partial summary.
    failure: Option<ResultsError>,
}

/// Bits of every expert of the model, pruned ones too; which are kept, where some are pruned; and what there is
/// to say of widths that follow the loads.
pub(super) type RecordedExperts = (Vec<Vec<u32>>, Option<KeptExperts>, Option<ReallocationFigures>);

/// What is summed over rounds, and over the cuts of the run.
#[derive(Serialize, Deserialize)]
pub(super) struct Sums {
    state: StateHash,
    play: PlaySums,
    flock: FlockSums,
    nodes_changed: bool,
    /// With fields that are left out where they are empty, which only a format with names can do.
    #[serde(with = "as_json")]
    layers: Vec<LayerFigures>,
    payload_bytes: u64,
    timeline: Timeline,
    /// Tokens of all batches or steps.
    tokens_played: u64,
    resumed: ResumeFigures,
    /// What following the loads changed; none where widths stay.
    #[serde(with = "as_json")]
    reallocation: Option<ReallocationFigures>,
    width_changes: Vec<WidthChange>,
}

impl Recorder {
    /// Opens the tables of a run directory.
    ///
    /// # Errors
    /// When they cannot be made.
    pub(super) fn open(
        dir: &RunDir,
        scenario: &Scenario,
        shape: SourceShape,
        (bits, kept, reallocation): RecordedExperts,
        demand: &Demand,
        node_loads: NodeLoadSums,
    ) -> Result<Self, ResultsError> {
        let layer = |(layer, bits): (u32, Vec<u32>)| LayerFigures {
            layer,
            loads_top_k: vec![0; bits.len()],
            loads: vec![0; bits.len()],
            bits,
            bits_end: Vec::new(),
            places: Vec::new(),
            steps: Vec::new(),
        };
        Ok(Self {
            shape,
            scenario: scenario.clone(),
            rounds: dir.table()?,
            requests: Requests::open(dir, scenario, shape.tokens_per_request, demand)?,
            sums: Sums {
                state: StateHash::default(),
                play: PlaySums::default(),
                flock: FlockSums::over(demand.steps()),
                nodes_changed: false,
                layers: (0..).zip(bits).map(layer).collect(),
                payload_bytes: 0,
                timeline: Timeline::default(),
                tokens_played: 0,
                resumed: ResumeFigures::default(),
                reallocation,
                width_changes: Vec::new(),
            },
            node_loads,
            checkpoints: None,
            planes: vec![None; shape.layers],
            trace: None,
            sampler: None,
            kept,
            migration: None,
            pairs: Pairs::default(),
            motion: None,
            nodes_took: (None, None),
            tokens_offered: demand.tokens_mean(shape.tokens_per_request as u64),
            paused_ns: None,
            failure: None,
        })
    }

    /// Records experts that move between nodes.
    pub(super) fn watch_migration(&mut self, record: Option<MigrationRecord>) {
        self.migration = record;
    }

    /// Writes checkpoints from now on.
    pub(super) fn keep(&mut self, checkpoints: Option<Checkpoints>) {
        self.requests.log = checkpoints.is_some().then(RowLog::default);
        self.checkpoints = checkpoints;
    }

    /// Draws experts and tokens in the plane of each layer's router rows, `[E, width]`.
    pub(super) fn place(&mut self, rows: impl Iterator<Item = Vec<f32>>) {
        let width = self.shape.width;
        for ((rows, plane), layer) in rows.zip(&mut self.planes).zip(&mut self.sums.layers) {
            *plane = Plane::of(&rows, width);
            if let Some(plane) = plane {
                layer.places = rows.chunks_exact(width).map(|row| plane.place(row)).collect();
            }
        }
    }

    /// Writes a trace from now on.
    pub(super) fn draw(&mut self, trace: Option<Trace>) {
        self.trace = trace;
    }

    /// Notes what orders asked and how long they took from now on.
    pub(super) fn sample(&mut self, sampler: Option<Sampler>) {
        self.sampler = sampler;
    }

    /// Takes back what was recorded up to a checkpoint.
    ///
    /// # Errors
    /// Its rows cannot be read, or the tables not be written.
    pub(super) fn restore(
        &mut self,
        latest: &Latest,
        (sums, node_loads, requests): AllSums,
    ) -> Result<(), ResultsError> {
        latest.rows(|row| match row {
            LoggedRow::Round(row) => self.rounds.push(row),
            LoggedRow::Request(row) => self.requests.restore(row),
        })?;
        (self.sums, self.node_loads.totals) = (sums, node_loads);
        self.requests.recall(requests);
        Ok(())
    }

    /// Notes that serving goes on at `now_ns` of the run's clock, which stood still for `gap_ns`.
    pub(super) fn goes_on_after(&mut self, gap_ns: u64, intended_ns: &[u64], now_ns: u64) {
        let resumed = &mut self.sums.resumed;
        resumed.gap_ns = resumed.gap_ns.saturating_add(gap_ns);
        resumed.requests_across += self.requests.waiting(intended_ns, now_ns);
    }

    /// Cuts that the run went on after, but for their number.
    pub(super) fn resumed(&self) -> ResumeFigures {
        self.sums.resumed
    }

    /// Notes that experts were not always hosted as they were placed: nothing is said of how well they
    /// were.
    pub(super) fn nodes_changed(&mut self) {
        self.sums.nodes_changed = true;
    }

    /// Notes what the nodes say that they did.
    pub(super) fn nodes_ended(&mut self, served: &Served) {
        let compute_ns: f64 = served.nodes.iter().map(|node| node.compute_ns as f64).sum();
        let pairs: u64 = served.nodes.iter().map(|node| node.token_experts).sum();
        let pair_ns = (pairs > 0).then(|| compute_ns / pairs as f64);
        self.nodes_took = (served.fork_join.clone(), pair_ns);
    }

    /// Notes the pairs that were ordered and combined over the run, the last round's too where it
    /// failed.
    pub(super) fn pairs(&mut self, (dispatched, combined): (u64, u64)) {
        self.pairs = Pairs { dispatched, combined, missing: dispatched - combined, shed: 0 };
    }

    /// Notes how far router rows have moved, where they do.
    pub(super) fn motion(&mut self, layers: Option<&[LayerMotion]>) {
        let rule = self.scenario.flock.motion_rule().map(str::to_owned);
        let Some((layers, rule)) = layers.zip(rule) else { return };
        let turned: Vec<f64> = layers.iter().flat_map(LayerMotion::turned).collect();
        let sum = |count: fn((u64, u64)) -> u64| layers.iter().map(|l| count(l.counts())).sum();
        self.motion = Some(MotionFigures {
            rule,
            moves: sum(|(moves, _)| moves),
            undone: sum(|(_, undone)| undone),
            turned_mean_rad: turned.iter().sum::<f64>() / turned.len() as f64,
            turned_max_rad: turned.iter().copied().fold(0.0, f64::max),
        });
    }

    /// Notes how long the run's clock stood still.
    pub(super) fn paused(&mut self, stood_ns: u64) {
        self.paused_ns = (stood_ns > 0).then_some(stood_ns);
    }

    /// Fills what was recorded so far into a snapshot.
    pub(super) fn fill(&self, snapshot: &mut Snapshot) {
        let play = &self.sums.play;
        let worst = play.convergence(&self.scenario.game.router, None);
        snapshot.rounds = worst.rounds;
        snapshot.epsilon_nash_worst = worst.epsilon_nash;
        snapshot.relative_gap_worst = worst.relative_gap;
        snapshot.tokens_played = self.sums.tokens_played;
        self.requests.fill(snapshot);
    }

    /// How the widths changed while batches were answered.
    pub(super) fn width_changes(&self) -> &[WidthChange] {
        &self.sums.width_changes
    }

    /// Notes the bits of every expert of the model at the end.
    pub(super) fn widths_ended(&mut self, bits: Vec<Vec<u32>>) {
        if let Some(figures) = &mut self.sums.reallocation {
            figures.ended(&bits);
            self.sums.layers.iter_mut().zip(bits).for_each(|(layer, bits)| layer.bits_end = bits);
        }
    }

    /// Closes the tables, writes histogram and layers, and fills what was recorded into `summary`.
    ///
    /// # Errors
    /// When a file cannot be written; those already written stay.
    pub(super) fn finish(
        mut self,
        dir: &RunDir,
        summary: &mut Summary,
        started_at: SystemTime,
    ) -> Result<(), ResultsError> {
        let cut = self.checkpoints.take().map_or(Ok(()), Checkpoints::finish);
        let drawn = self.trace.take().map_or(Ok(()), Trace::finish);
        let observed = self.sampler.take().map_or(Ok(()), Sampler::finish);
        let elapsed_ns = self.requests.span_ns();
        summary.state_hash = self.sums.state.finalize().to_hex().to_string();
        let gap_max = self.scenario.goals.relative_gap_max;
        summary.convergence = self.sums.play.convergence(&self.scenario.game.router, gap_max);
        if self.scenario.game.social_optimum {
            summary.convergence.social = Some(self.sums.play.social());
        }
        summary.flock = self.sums.flock.comparison();
        summary.motion.clone_from(&self.motion);
        if let Some(placement) = summary.placement.as_mut().filter(|_| !self.sums.nodes_changed) {
            placement.served = self.node_loads.served();
        }
        summary.throughput = self.throughput(elapsed_ns);
        let batches = self.requests.batches().cloned();
        self.requests.sum_up(summary);
        summary.theory = self.theory(batches.as_ref(), summary);
        summary.pairs = Some(self.pairs);
        summary.reallocation.clone_from(&self.sums.reallocation);
        summary.migration = self.migration.as_ref().map(MigrationRecord::figures);
        summary.paused_ns = self.paused_ns;
        summary.goals = goals(&self.scenario.goals, summary);
        self.null_reasons(summary);
        self.rounds.finish()?;
        self.requests.finish(dir, started_at)?;
        dir.write_timeline(&self.sums.timeline)?;
        dir.write_layers(&Layers::new(self.sums.layers))?;
        cut.and(drawn).and(observed)
    }

    /// What the nodes did in a round, from when serving started.
    fn in_time(&mut self, round: &Round<'_>) {
        let from_ns = self.requests.sums().serving_from_ns();
        let since = |at_ns: u64| at_ns.saturating_sub(from_ns);
        let sent_ns = round.times.sent_ns;
        // In one process nobody is asked and nobody fails.
        if self.scenario.nodes.engine != Engine::InProcess {
            for order in &round.decision.orders.nodes {
                let has_answered = round.legs.iter().any(|(node, _)| *node == order.node);
                self.sums.timeline.asked(order.node.0, since(sent_ns), has_answered);
            }
        }
        for (node, compute_ns) in round.computed {
            let leg = round.legs.iter().find(|(of, _)| of == node);
            let ended_ns = leg.map_or(round.times.replied_ns, |(_, took_ns)| sent_ns + took_ns);
            let times_ns = (since(ended_ns.saturating_sub(*compute_ns)), since(ended_ns));
            self.sums.timeline.computed(node.0, times_ns);
        }
    }

    /// Why a certificate is absent, where the play itself is the reason.
    fn null_reasons(&self, summary: &mut Summary) {
        if self.sums.nodes_changed {
            let reason = "workers came or went, so experts were not always hosted as placed";
            for key in ServedNodeLoads::KEYS {
                summary.null_reasons.insert(format!("placement.served.{key}"), reason.to_owned());
            }
        }
        const OVER_QUOTA: &str = "the play exceeds a quota, so its potential is minus infinity";
        if let Some(social) = &summary.convergence.social {
            let reason = match social.optimum {
                None => "a play had not k experts a token, or the cost has no convex total",
                Some(_) if social.cost.is_none() => OVER_QUOTA,
                Some(_)
                    if summary.convergence.epsilon_nash.is_none_or(|epsilon| epsilon > 1e-9) =>
                {
                    "a play is no equilibrium: see epsilon_nash"
                }
                Some(_) => "the bound does not prove the optimum to within 1e-6",
            };
            let figures = [
                ("cost", social.cost),
                ("optimum", social.optimum),
                ("optimum_bound", social.optimum_bound),
                ("price_of_anarchy", social.price_of_anarchy),
            ];
            for (key, _) in figures.iter().filter(|(_, figure)| figure.is_none()) {
                let path = format!("convergence.social.{key}");
                summary.null_reasons.insert(path, reason.to_owned());
            }
        }
        let router = (&summary.convergence.relative_gap, "convergence.relative_gap");
        // A run that ended before the flock's last quarter did not measure it.
        let flock = summary.flock.as_ref().filter(|flock| flock.max_over_mean_last.is_some());
        let flock = flock.map(|flock| (&flock.relative_gap, "flock.relative_gap"));
        let absent = [Some(router), flock].into_iter().flatten().filter(|(gap, _)| gap.is_none());
        let keys: Vec<&str> = absent.map(|(_, key)| key).collect();
        if self.sums.play.rounds() > 0 {
            for key in keys {
                summary.null_reasons.insert(key.to_owned(), OVER_QUOTA.to_owned());
                let epsilon = key.replace("relative_gap", "epsilon_nash");
                summary.null_reasons.insert(epsilon, OVER_QUOTA.to_owned());
            }
        }
    }

    /// Measured tails beside their bounds; none where nothing was served.
    fn theory(&self, batches: Option<&BatchTimes>, summary: &Summary) -> Option<TailTheory> {
        (self.sums.tokens_played > 0).then_some(())?;
        let Outcomes { timeout, shed, error, .. } = summary.outcomes;
        let (fork_join, pair_ns) = &self.nodes_took;
        Some(TailTheory {
            queue: batches.map(|batches| batches.theory(timeout + shed + error == 0)),
            steps: fork_join.as_ref().filter(|found| found.steps() > 0).map(StepTheory::of),
            hottest_expert: Some(self.hottest_expert(*pair_ns, summary)),
        })
    }

    fn hottest_expert(&self, pair_ns: Option<f64>, summary: &Summary) -> HottestExpert {
        let nodes = &self.scenario.nodes;
        let has_copies = nodes.replicas > 1 || nodes.replica_slots > 0 || self.sums.nodes_changed;
        let tokens = self.sums.tokens_played as f64;
        let largest = |layer: &LayerFigures| layer.loads.iter().copied().max().unwrap_or(0) as f64;
        let mean = |layer: &LayerFigures| {
            layer.loads.iter().sum::<u64>() as f64 / layer.loads.len().max(1) as f64
        };
        let shares = self.sums.layers.iter().map(|layer| largest(layer) / tokens).sum();
        let shares_even = self.sums.layers.iter().map(|layer| mean(layer) / tokens).sum();
        HottestExpert::new(
            (shares, shares_even),
            pair_ns,
            summary.throughput.tokens_per_s,
            has_copies,
        )
    }

    fn throughput(&self, elapsed_ns: u64) -> Throughput {
        let rate = |count: u64| (elapsed_ns > 0).then(|| count as f64 * 1e9 / elapsed_ns as f64);
        let (answered, in_time) = self.requests.tokens();
        let offered = self.scenario.load.rate_per_s * self.tokens_offered;
        Throughput {
            tokens_per_s: rate(answered),
            goodput_tokens_per_s: rate(in_time),
            offered_tokens_per_s: Some(offered),
            token_experts_per_s: rate(self.pairs.combined),
            bytes_per_s: rate(self.sums.payload_bytes),
            elapsed_ns,
        }
    }
}

impl Watch for Recorder {
    fn serving_from(&mut self, now_ns: u64) {
        self.requests.serving_from(now_ns);
    }

    fn round(
        &mut self,
        round: &Round<'_>,
        arena: &Arena,
        stages: &StageEnds,
        (bytes_sent, bytes_received): (u64, u64),
    ) {
        if let Some(trace) = &mut self.trace {
            timeline::round(round, stages, &mut |took| trace.took(&took));
        }
        if let Some(sampler) = &mut self.sampler {
            sampler.round(round);
        }
        self.in_time(round);
        let route_ns = stages.route_ns();
        let state = &mut self.sums.state;
        arena.fingerprint(|bytes| {
            state.update(bytes);
        });
        self.sums.state.update(bytemuck::cast_slice(round.output));

        let (play, flock) = (&round.decision.play, &round.decision.flock);
        let certificate = &play.certificate;
        // Of the control's own loads: a router may drop pairs.
        let max_over_mean_top_k = largest(&play.loads_top_k) / mean(&play.loads_top_k);
        let tokens = (round.output.len() / self.shape.width) as u64;
        self.sums.play.add(play, tokens, max_over_mean_top_k, route_ns);
        self.node_loads.add(round.layer, &play.loads, &round.decision.node_loads);
        if let Some(migration) = &mut self.migration {
            migration.round(round, arena);
        }
        self.sums.tokens_played += if round.layer.index() == 0 { tokens } else { 0 };
        let figures = &mut self.sums.layers[round.layer.index()];
        let kept = self.kept.as_ref().map(|kept| kept[round.layer.index()].as_slice());
        add_loads(&mut figures.loads, &play.loads, kept);
        add_loads(&mut figures.loads_top_k, &play.loads_top_k, kept);
        let plane = self.planes[round.layer.index()].as_ref();
        figures.keep_step(&play.loads_top_k, &play.loads, || {
            let hidden = round.input.hidden.chunks_exact(self.shape.width).take(TOKENS_PLACED);
            plane.map(|plane| hidden.map(|row| plane.turn(row)).collect()).unwrap_or_default()
        });
        self.sums.payload_bytes += bytes_sent + bytes_received;
        if let Some(flock) = flock {
            self.sums.flock.add(round.step.index(), tokens, flock);
        }

        let finite = |value: f64| value.is_finite().then_some(value);
        let row = RoundRow {
            step: u64::from(round.step.0),
            layer: round.layer.0,
            tokens,
            router: self.scenario.game.router.clone(),
            iterations: u64::from(play.iterations),
            passes: u64::from(play.passes),
            epsilon_nash: certificate.epsilon_nash,
            relative_gap: finite(certificate.relative_gap),
            potential: certificate.potential,
            dual_bound: finite(certificate.dual_bound),
            max_over_mean: certificate.max_over_mean,
            max_over_mean_top_k: Some(max_over_mean_top_k),
            score_loss: Some(certificate.score_loss),
            flock_max_over_mean: flock.as_ref().map(|flock| flock.max_over_mean),
            flock_epsilon_nash: flock.as_ref().and_then(|f| finite(f.certificate.epsilon_nash)),
            flock_relative_gap: flock.as_ref().and_then(|f| finite(f.certificate.relative_gap)),
            route_ns,
            dispatch_ns: round.dispatch_ns,
            bytes_sent,
            bytes_received,
        };
        if let Some(checkpoints) = &mut self.checkpoints {
            checkpoints.round();
        }
        if let Some(log) = &mut self.requests.log {
            log.round(&row);
        }
        if let Err(error) = self.rounds.push(row) {
            self.failure.get_or_insert(error);
        }
    }

    fn released(&mut self, lag_ns: u64) {
        self.requests.released(lag_ns);
    }

    fn refused(&mut self, requests: &[RequestId], why: Refusal, intended_ns: &[u64], now_ns: u64) {
        self.requests.refused(requests, why, intended_ns, now_ns);
    }

    fn batch(
        &mut self,
        batch: (StepId, Vec<RequestId>),
        intended_ns: &[u64],
        times_ns: Range<u64>,
        losses: Option<&[f64]>,
    ) {
        if let Some(trace) = &mut self.trace {
            let from_ns = self.requests.sums().serving_from_ns();
            let asked = |request: &RequestId| {
                (request.index() as u64, from_ns + intended_ns[request.index()])
            };
            let (step, times_ns) = (u64::from(batch.0.0), (times_ns.start, times_ns.end));
            let tell = &mut |took| trace.took(&took);
            timeline::batch(step, times_ns, batch.1.iter().map(asked), tell);
        }
        if let Some(sampler) = &mut self.sampler {
            sampler.step_ended(&times_ns);
        }
        self.requests.batch(batch, intended_ns, times_ns, losses);
    }

    fn step(&mut self, step: StepDone) {
        if let Some(trace) = &mut self.trace {
            trace.took(&Took::from(&step));
        }
        if let Some(sampler) = &mut self.sampler {
            sampler.step_ended(&step.times_ns);
        }
        self.requests.step(&step);
    }

    fn answered(&mut self, answer: Answer) {
        if let Some(trace) = &mut self.trace {
            trace.took(&Took::from(&answer));
        }
        self.requests.answer(answer);
    }

    fn widths_brought(&mut self, brought: &WidthsBrought<'_>) {
        if let Some(figures) = &mut self.sums.reallocation {
            figures.add(brought);
            let answered = self.requests.answered().len();
            self.sums.width_changes.push((answered, brought.decision.moves.clone()));
        }
    }

    fn experts_moved(&mut self, moved: &ExpertsMoved<'_>) {
        if let Some(migration) = &mut self.migration {
            migration.moved(moved);
        }
    }

    fn goes_on(&mut self, at: &Boundary<'_>) -> Result<bool, ServeError> {
        if let Some(error) = self.failure.take().or_else(|| self.requests.failure()) {
            return Err(error.into());
        }
        let log = self.requests.log.as_mut();
        if let Some((checkpoints, log)) = self.checkpoints.as_mut().zip(log)
            && checkpoints.is_due(at, log.bytes())
        {
            let rows = log.take();
            let sums = (&self.sums, &self.node_loads.totals, self.requests.sums());
            checkpoints.cut(at, rows, sums)?;
        }
        Ok(true)
    }
}

/// Adds the loads of a layer's experts in play, which are all or those that are kept.
fn add_loads(sums: &mut [u64], loads: &[u32], kept: Option<&[ExpertId]>) {
    for (place, load) in loads.iter().enumerate() {
        sums[kept.map_or(place, |kept| kept[place].index())] += u64::from(*load);
    }
}

fn mean(loads: &[u32]) -> f64 {
    loads.iter().map(|load| f64::from(*load)).sum::<f64>() / loads.len() as f64
}

fn largest(loads: &[u32]) -> f64 {
    f64::from(loads.iter().copied().max().unwrap_or(0))
}

/// Figures as JSON text within another format.
mod as_json {
    use serde::de::{DeserializeOwned, Error as _};
    use serde::ser::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T, S>(of: &T, to: S) -> Result<S::Ok, S::Error>
    where
        T: Serialize,
        S: Serializer,
    {
        serde_json::to_string(of).map_err(S::Error::custom)?.serialize(to)
    }

    pub(super) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: DeserializeOwned,
        D: Deserializer<'de>,
    {
        serde_json::from_str(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

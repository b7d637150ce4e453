//! Records a run as it goes: rows to Parquet, sums for the summary. It reads rounds and replies and
//! never reaches back into the world. Here is what it holds and how it is set up, in `watch` what it
//! hears while the run goes, in `figures` what comes of it.

mod as_json;
mod figures;
mod requests;
mod samples;
mod state_hash;
mod sums;
mod trace;
mod watch;

pub(super) use requests::{RequestSums, Requests};
pub(super) use samples::Sampler;
pub(super) use sums::{NodeLoadSums, NodeLoadTotals};
pub(super) use trace::Trace;

use super::checkpoint::{AllSums, Checkpoints};
use super::demand::Demand;
use super::migrate::MigrationRecord;
use super::width_control::WidthChange;
use crate::dispatch::Served;
use crate::results::checkpoint::{Latest, LoggedRow, RowLog};
use crate::results::{
    LayerFigures, MotionFigures, Pairs, ReallocationFigures, ResultsError, ResumeFigures, RoundRow,
    RunDir, Snapshot, TableWriter, Timeline,
};
use crate::scenario::Scenario;
use crate::source::{KeptExperts, SourceShape};
use agents::flock::motion::LayerMotion;
use agents::flock::plane::Plane;
use agents::queueing::ForkJoin;
use serde::{Deserialize, Serialize};
use state_hash::StateHash;
use sums::{FlockSums, PlaySums};

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
}

//! A run: load, fit, serve, record, report.

mod blocks;
mod calibrate;
mod capacity;
mod checkpoint;
mod controls;
mod decode;
mod decoding;
mod demand;
mod feed;
mod files;
mod fit;
mod goals;
mod interrupt;
mod materials;
mod memory;
mod migrate;
mod observe;
mod on_nodes;
mod pace;
mod placement;
mod plan;
mod prune;
mod read_when_used;
mod reallocate;
mod record;
mod resume;
mod rounds;
mod rules;
mod serve;
mod shared;
pub mod timeline;
mod uplinks;
mod virtual_nodes;
mod width_control;
mod widths;

pub use capacity::{
    ATTEMPTS_MAX, Capacity, CapacityGoal, Probe, Verdict, capacity, requests_needed,
};
pub use feed::{Feed, Listeners};
pub use files::exit_code;
pub use fit::FitError;
pub use interrupt::{Interrupted, Interrupts};
pub use materials::MaterialsError;
pub use memory::MemoryExceeded;
pub use pace::Pace;
pub use resume::{CutRun, ResumeError};
pub use rounds::RoundError;
pub use serve::ServeError;
pub use shared::Shared;

use crate::dispatch::Served;
use crate::dispatch::placement::PlacementError;
use crate::measure::Clock;
use crate::measure::clock::unix_ns;
use crate::results::checkpoint::Latest;
use crate::results::{
    Hashing, NodeMemory, Quality, ResultsError, RunDir, Snapshot, Summary, VirtualTime,
};
use crate::scenario::Scenario;
use crate::scenario::file::Engine;
use crate::source::trace::TraceError;
use crate::transport::RunToken;
use agents::cluster::TooSmall;
use agents::game::Registries;
use agents::ids::LayerId;
use agents::round::Arena;
use checkpoint::{Checkpoints, State};
use controls::Controls;
use demand::{Arrivals, Demand};
use files::RunFiles;
use fit::FittedExperts;
use materials::Materials;
use placement::Placed;
use plan::Plan;
use record::{NodeLoadSums, Recorder, Sampler, Trace};
use resume::Parts;
use serve::GoingOn;
use shared::Sharing;
use std::path::{Path, PathBuf};

/// What a run needs beside its scenario.
pub struct RunSettings<'a> {
    /// The command line, for the manifest.
    pub command: Vec<String>,
    /// The nashflock executable, to start workers of.
    pub program: &'a Path,
    /// Where results go; by default under `runs/`.
    pub out: Option<PathBuf>,
    /// Routers and costs that the scenario may name; its checks must have known them.
    pub registries: &'a Registries,
    /// Told what the run is doing.
    pub progress: &'a dyn Progress,
    /// What workers that join must show; empty for none.
    pub run_token: RunToken,
    /// Whether this process starts a worker of its own beside those that join.
    pub hosts_worker: bool,
    /// Whether batches and steps start as soon as the one before has ended, without waiting for their time:
    /// the game is the same, and latencies mean nothing.
    pub at_once: bool,
    /// Whether `trace.json` is written.
    pub trace: bool,
    /// Whether `observed.parquet` is written, where widths stay.
    pub observe: bool,
    /// Whether the directory is thrown away once its figures are taken: there is no report, and files need not be
    /// on the disk when the run ends.
    pub is_scratch: bool,
    /// What it shares with other runs of this process, if it shall.
    pub shared: Option<&'a Shared>,
}

/// Hears what a run is doing; draws it, or not.
pub trait Progress: Sync {
    /// A phase begins, such as "calibrating".
    fn phase(&self, name: &str);
    /// `answered` of `requests` are done.
    fn answered(&self, answered: u64, requests: u64);

    /// Whether [`Self::snapshot`] is to be called.
    fn wants_snapshots(&self) -> bool {
        false
    }

    /// What the run is doing: told between rounds, about ten times a second at most, and once more when serving
    /// has ended. The run waits for it to return.
    fn snapshot(&self, _snapshot: &Snapshot) {}

    /// Whether [`Self::took`] is to be called.
    fn wants_times(&self) -> bool {
        false
    }

    /// Something in serving took time: told between rounds, in the order in which it ended, but for what the
    /// variants of [`timeline::What`] say. The run waits for it to return.
    fn took(&self, _took: &timeline::Took) {}

    /// Who sets the pace of the run; then its clock has to be [`Clock::pausable`].
    fn pace(&self) -> Option<&Pace> {
        None
    }
}

/// How a run ended.
pub struct RunEnd {
    /// Where its results are.
    pub dir: RunDir,
    /// What was measured; `status` tells whether it is whole.
    pub summary: Summary,
    /// What ended it early, if anything did.
    pub failure: Option<ServeError>,
}

/// What is wrong before anything starts.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Checkpoint or text.
    #[error(transparent)]
    Materials(#[from] MaterialsError),
    /// The arrivals' trace.
    #[error("load.trace: {0}")]
    Trace(#[from] TraceError),
    /// Budget or calibration.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// Nodes and replicas.
    #[error("nodes: {0}")]
    Placement(#[from] PlacementError),
    /// Virtual nodes.
    #[error("virtual.blocks: {0}")]
    Copies(#[from] TooSmall),
    /// Their memory.
    #[error("virtual.memory_bytes: {0}")]
    Memory(#[from] MemoryExceeded),
    /// Orders are not observed.
    #[error(
        "--observe: experts of which widths are reallocated and requests of [virtual.blocks] are not observed; leave \
         out [precision.reallocate] or [virtual.blocks]"
    )]
    Observe,
    /// The run directory.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The system does not let the run hear signals.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

impl PlanError {
    /// Whether the input is at fault, and not the machine.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Results(error) => error.is_bad_input(),
            Self::Signals(_) => false,
            Self::Materials(_)
            | Self::Trace(_)
            | Self::Fit(_)
            | Self::Placement(_)
            | Self::Copies(_)
            | Self::Memory(_)
            | Self::Observe => true,
        }
    }
}

/// Runs a scenario. Call it on a rayon pool of the scenario's `compute.threads`: all computation of
/// the coordinator happens on the current pool.
///
/// # Errors
/// What is wrong with the input: nothing was started then. Later failures are in the [`RunEnd`].
pub async fn run(
    scenario: &Scenario,
    settings: RunSettings<'_>,
    clock: &Clock,
) -> Result<RunEnd, PlanError> {
    let can_observe =
        scenario.precision.reallocate.is_off() && scenario.virtual_nodes.blocks.is_off();
    if settings.observe && !can_observe {
        return Err(PlanError::Observe);
    }
    if !scenario.virtual_nodes.blocks.is_off() {
        return blocks::run(scenario, &settings, clock);
    }
    let interrupts = Interrupts::listen().map_err(PlanError::Signals)?;
    let interrupts = interrupts.or_by(settings.progress.pace());
    let inputs = Inputs::load(scenario, &settings).await?;
    let path = settings
        .out
        .clone()
        .unwrap_or_else(|| RunDir::default_path(&scenario.name, scenario.seed, clock.started_at()));
    let dir = RunDir::create(&path)?;
    let dir = if settings.is_scratch { dir.as_scratch() } else { dir };
    let record = RunFiles::open(dir, scenario, &settings, clock)?;
    play(scenario, (settings, clock), inputs, record, (None, interrupts)).await
}

/// Goes on with a run that was cut, to its end: likewise, and with the scenario that it was started with.
/// What was played after its newest checkpoint is played again.
///
/// # Errors
/// What is wrong with the input: then the directory is left as it was.
pub async fn resume(
    scenario: &Scenario,
    cut: CutRun,
    settings: RunSettings<'_>,
    clock: &Clock,
) -> Result<RunEnd, PlanError> {
    if !scenario.virtual_nodes.blocks.is_off() {
        return blocks::resume(scenario, cut, &settings, clock);
    }
    let interrupts = Interrupts::listen().map_err(PlanError::Signals)?;
    let interrupts = interrupts.or_by(settings.progress.pace());
    let inputs = Inputs::load(scenario, &settings).await?;
    let state = cut.state()?;
    let resumption = cut.resumption(state.as_ref(), settings.command.clone(), clock);
    let (record, latest) = RunFiles::reopen(cut, scenario, resumption, clock);
    let from = state.zip(latest);
    play(scenario, (settings, clock), inputs, record, (from, interrupts)).await
}

/// What a scenario names, loaded.
struct Inputs {
    materials: Materials,
    demand: Demand,
    hashing: Hashing,
}

impl Inputs {
    async fn load(scenario: &Scenario, settings: &RunSettings<'_>) -> Result<Self, PlanError> {
        settings.progress.phase("loading");
        let sharing = Sharing::of(scenario, settings.shared);
        let materials = Materials::load(sharing, &settings.registries.costs).await?;
        let context = materials.context(&scenario.load.generation);
        let demand = Arrivals::of(scenario, context)?.of_scenario(scenario);
        let hashing = Hashing::start(materials::files_of(scenario));
        Ok(Self { materials, demand, hashing })
    }
}

/// Prepares, serves from the start or from a checkpoint, plays the controls and writes the record.
async fn play(
    scenario: &Scenario,
    (settings, clock): (RunSettings<'_>, &Clock),
    Inputs { materials, demand, hashing }: Inputs,
    mut record: RunFiles,
    (from, mut interrupts): (Option<(State, Latest)>, Interrupts<'_>),
) -> Result<RunEnd, PlanError> {
    record.hashing = Some(hashing);
    let prepared = interrupts.or(prepare(&materials, scenario, &settings, clock));
    let prepared = match prepared.await {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(error)) => {
            record.discard();
            return Err(error);
        }
        Err(interrupted) => return Ok(record.end(None, Some(interrupted.into()), clock)),
    };
    let plan = Plan::new(scenario, settings.registries, &materials, demand, prepared);
    let shape = plan.source().shape();
    let node_loads = NodeLoadSums::over(plan.placed.slots(), plan.placed.round_robin);
    let experts = (plan.bits(), plan.experts.kept().cloned(), plan.reallocation());
    let mut recorder =
        Recorder::open(&record.dir, scenario, shape, experts, &plan.demand, node_loads)?;
    let source = plan.source();
    recorder.place((0..shape.layers).map(|l| source.router_rows(LayerId::from_index(l))));
    if settings.trace {
        recorder.draw(Some(Trace::start(&record.dir, scenario.nodes.seats())?));
    }
    if settings.observe {
        let experts = &plan.experts.served;
        recorder.sample(Some(Sampler::start(&record.dir, experts, shape.width)?));
    }
    recorder.watch_migration(plan.migration_record());
    let summary = &mut record.summary;
    (summary.memory, summary.precision) = (plan.memory(), plan.precision());
    summary.pruning = plan.pruning();
    summary.placement = Some(plan.placed.figures());
    summary.generation = plan.generation();

    let (arena, going_on, earlier) = recall(&plan, &mut recorder, &mut record, from, clock)?;
    let on = (arena, going_on, &earlier);
    let (result, served) = plan.serve(&settings, clock, &mut interrupts, &mut recorder, on).await;
    let mut failure = result.err();
    let summary = &mut record.summary;
    let churned = |counts: &_| plan.has_churned(counts);
    if [&served, &earlier].iter().any(|part| part.membership.as_ref().is_some_and(churned)) {
        recorder.nodes_changed();
    }
    let served = served.after(&earlier);
    summary.nodes = plan.node_figures(&served.nodes, recorder.requests.span_ns(), failure.as_ref());
    recorder.nodes_ended(&served);
    if scenario.nodes.engine == Engine::Virtual {
        let nodes = u64::from(scenario.nodes.count);
        let span_ns = recorder.requests.span_ns();
        let network = virtual_nodes::network(&scenario.virtual_nodes);
        let uplinks =
            uplinks::figures(&network, scenario.nodes.count, &served.links, span_ns, (&[], 0));
        let memory = node_memory(scenario, &plan.experts, &plan.placed).ok();
        summary.virtual_time = Some(VirtualTime { nodes, span_ns, blocks: None, memory, uplinks });
    }
    if scenario.nodes.engine != Engine::InProcess {
        summary.faults = Some(plan::fault_figures(&served.faults));
    }
    summary.membership = served.membership.as_ref().map(plan::membership_figures);
    if let Some((loss, tokens)) = recorder.requests.loss() {
        let loss_uniform = materials.vocabulary().map(|symbols| (symbols as f64).ln());
        summary.quality =
            Some(Quality { loss: Some(loss), loss_uniform, tokens, ..Quality::default() });
        if failure.is_none() {
            settings.progress.phase("playing the controls");
            let answered = recorder.requests.answered();
            let width_changes = recorder.width_changes();
            let sharing = Sharing::of(scenario, settings.shared);
            let controls = Controls { plan: &plan, answered, width_changes, clock, sharing };
            failure = match interrupts.or(controls.play(summary)).await {
                Ok(played) => played.err(),
                Err(interrupted) => Some(interrupted.into()),
            };
        }
    }
    Ok(record.end(Some(recorder), failure, clock))
}

/// An arena and a record as a checkpoint left them, or new ones; where serving goes on; and what nodes did
/// before. From here on checkpoints are written, and the manifest says what was read and that the run goes on.
fn recall(
    plan: &Plan<'_>,
    recorder: &mut Recorder,
    record: &mut RunFiles,
    from: Option<(State, Latest)>,
    clock: &Clock,
) -> Result<(Arena, Option<GoingOn>, Served), ResultsError> {
    let mut arena = plan.arena(plan.source().as_ref());
    if let Some(follow) = plan.follow() {
        arena.follow_loads(follow);
    }
    if let Some(migrating) = plan.migrating() {
        arena.follow_with_copies(migrating);
    }
    // The time that a virtual run stands at is in no checkpoint: it is soon played from its start. Nor are copies
    // in flight, and which nodes hold them by then.
    let nodes = &plan.scenario.nodes;
    let is_whole = nodes.engine != Engine::Virtual && nodes.migration.is_off();
    let every_rounds = if is_whole { plan.scenario.run.checkpoint_every_rounds } else { 0 };
    let identity = record.manifest.identity();
    let Some((state, latest)) = from else {
        let started = (unix_ns(clock.started_at()), Served::default());
        let files = (&record.dir, identity);
        recorder.keep(Checkpoints::start(every_rounds, files, None, started)?);
        record.begins()?;
        return Ok((arena, None, Served::default()));
    };
    let (going_on, Parts { arena: memory, served, sums }) = resume::going_on(state, &latest);
    record.started_at = going_on.position.started_at();
    arena.recall(memory).map_err(|foreign| ResultsError::Malformed {
        file: record.dir.path().join("checkpoint"),
        reason: foreign.to_string(),
    })?;
    recorder.restore(&latest, sums)?;
    let started = (unix_ns(record.started_at), served.clone());
    let files = (&record.dir, identity);
    recorder.keep(Checkpoints::start(every_rounds, files, Some(&latest), started)?);
    record.begins()?;
    Ok((arena, Some(going_on), served))
}

/// Fits the experts into their budget and places them on the nodes.
async fn prepare(
    materials: &Materials,
    scenario: &Scenario,
    settings: &RunSettings<'_>,
    clock: &Clock,
) -> Result<(FittedExperts, Placed), PlanError> {
    let registries = settings.registries;
    settings.progress.phase("calibrating and quantizing");
    let sharing = Sharing::of(scenario, settings.shared);
    let experts = fit::fit(materials, sharing, registries, clock).await?;
    settings.progress.phase("placing experts");
    let placed = placement::place(materials, scenario, registries, &experts, clock).await?;
    if scenario.nodes.engine == Engine::Virtual {
        node_memory(scenario, &experts, &placed)?;
    }
    Ok((experts, placed))
}

/// What virtual nodes hold when serving starts.
fn node_memory(
    scenario: &Scenario,
    experts: &FittedExperts,
    placed: &Placed,
) -> Result<NodeMemory, MemoryExceeded> {
    let resident = memory::resident(experts, placed, scenario.nodes.count);
    memory::of_nodes(&scenario.virtual_nodes, &resident)
}

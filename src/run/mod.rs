//! A run: load, fit, serve, record, report.

mod calibrate;
mod capacity;
mod controls;
mod decode;
mod decoding;
mod demand;
mod fit;
mod interrupt;
mod materials;
mod on_nodes;
mod placement;
mod plan;
mod prune;
mod read_when_used;
mod reallocate;
mod record;
mod requests;
mod rounds;
mod rules;
mod serve;
mod sums;
mod width_control;

pub use capacity::{
    ATTEMPTS_MAX, Capacity, CapacityGoal, Probe, Verdict, capacity, requests_needed,
};
pub use fit::FitError;
pub use interrupt::Interrupted;
pub use materials::MaterialsError;
pub use rounds::RoundError;
pub use serve::ServeError;

use crate::dispatch::placement::PlacementError;
use crate::measure::Clock;
use crate::results::{Manifest, Memory, Quality, ResultsError, RunDir, RunStart, Status, Summary};
use crate::scenario::file::Engine;
use crate::scenario::{self, Scenario};
use crate::source::trace::TraceError;
use crate::transport::RunToken;
use agents::game::Registries;
use controls::Controls;
use demand::Arrivals;
use fit::FittedExperts;
use interrupt::Interrupts;
use materials::Materials;
use placement::Placed;
use plan::Plan;
use record::Recorder;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use sums::NodeLoadSums;

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
}

/// Hears what a run is doing; draws it, or not.
pub trait Progress: Sync {
    /// A phase begins, such as "calibrating".
    fn phase(&self, name: &str);
    /// `answered` of `requests` are done.
    fn answered(&self, answered: u64, requests: u64);
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
            Self::Materials(_) | Self::Trace(_) | Self::Fit(_) | Self::Placement(_) => true,
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
    let mut interrupts = Interrupts::listen().map_err(PlanError::Signals)?;
    settings.progress.phase("loading");
    let materials = Materials::load(scenario, &settings.registries.costs)?;
    let demand =
        Arrivals::of(scenario, materials.context(&scenario.load.generation))?.of_scenario(scenario);
    let path = settings
        .out
        .clone()
        .unwrap_or_else(|| RunDir::default_path(&scenario.name, scenario.seed, clock.started_at()));
    let dir = RunDir::create(&path)?;
    let mut record = RunFiles::open(dir, scenario, &settings, clock)?;

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
    let summary = &mut record.summary;
    (summary.memory, summary.precision) = (plan.memory(), plan.precision());
    summary.pruning = plan.pruning();
    summary.placement = Some(plan.placed.figures());
    summary.generation = plan.generation();

    let (result, served) = plan.serve(&settings, clock, &mut interrupts, &mut recorder).await;
    let mut failure = result.err();
    summary.nodes = plan.node_figures(&served.nodes, recorder.requests.span_ns(), failure.as_ref());
    recorder.nodes_ended(&served);
    if scenario.nodes.engine != Engine::InProcess {
        summary.faults = Some(plan::fault_figures(&served.faults));
    }
    if let Some(counts) = &served.membership {
        summary.membership = Some(plan::membership_figures(counts));
        if plan.has_churned(counts) {
            recorder.nodes_changed();
        }
    }
    if let Some((loss, tokens)) = recorder.requests.loss() {
        let loss_uniform = materials.vocabulary().map(|symbols| (symbols as f64).ln());
        summary.quality =
            Some(Quality { loss: Some(loss), loss_uniform, tokens, ..Quality::default() });
        if failure.is_none() {
            settings.progress.phase("playing the controls");
            let answered = recorder.requests.answered();
            let width_changes = recorder.width_changes();
            let controls = Controls { plan: &plan, answered, width_changes, clock };
            failure = match interrupts.or(controls.play(summary)).await {
                Ok(played) => played.err(),
                Err(interrupted) => Some(interrupted.into()),
            };
        }
    }
    Ok(record.end(Some(recorder), failure, clock))
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
    let experts = fit::fit(materials, scenario, registries, clock).await?;
    settings.progress.phase("placing experts");
    let placed = placement::place(materials, scenario, registries, &experts, clock).await?;
    Ok((experts, placed))
}

/// The files of a run that are written at its start and again at its end.
struct RunFiles {
    dir: RunDir,
    manifest: Manifest,
    summary: Summary,
}

impl RunFiles {
    fn open(
        dir: RunDir,
        scenario: &Scenario,
        settings: &RunSettings<'_>,
        clock: &Clock,
    ) -> Result<Self, ResultsError> {
        let resolved = scenario::resolved(scenario);
        let start = RunStart {
            command: settings.command.clone(),
            scenario: &scenario.name,
            scenario_toml: &resolved,
            seed: scenario.seed,
            threads: scenario.compute.threads,
            nodes: plan::manifest_nodes(scenario),
        };
        let manifest = Manifest::start(start, clock);
        dir.write("scenario.toml", resolved.as_bytes())?;
        dir.write_manifest(&manifest)?;
        let nothing_yet = Memory::new(0, 0, BTreeMap::new());
        let summary = Summary::new(&scenario.name, scenario.seed, nothing_yet);
        Ok(Self { dir, manifest, summary })
    }

    /// Takes the run directory away again: the input was bad and nothing was started.
    fn discard(self) {
        self.dir.discard(&["scenario.toml", "manifest.json"]);
    }

    /// Writes everything that is known, whatever ended the run.
    fn end(
        mut self,
        recorder: Option<Recorder>,
        mut failure: Option<ServeError>,
        clock: &Clock,
    ) -> RunEnd {
        let Self { dir, manifest, summary } = &mut self;
        let recorded =
            recorder.map_or(Ok(()), |recorder| recorder.finish(dir, summary, clock.started_at()));
        if let Err(error) = recorded {
            failure.get_or_insert(error.into());
        }
        (summary.status, summary.status_detail) = status(failure.as_ref());
        manifest.end(clock, exit_code(summary, failure.as_ref()));
        let written = dir
            .write_summary(summary)
            .and_then(|()| dir.write_manifest(manifest))
            .and_then(|()| dir.write_report());
        if let Err(error) = written {
            failure.get_or_insert(error.into());
        }
        RunEnd { dir: self.dir, summary: self.summary, failure }
    }
}

/// The exit code of a run that had started.
#[must_use]
pub fn exit_code(summary: &Summary, failure: Option<&ServeError>) -> u8 {
    match failure {
        // 128 + SIGINT, as shells report an interrupted program.
        Some(ServeError::Interrupted(_)) => 130,
        Some(_) => 4,
        None if summary.goals_met() => 0,
        None => 3,
    }
}

fn status(failure: Option<&ServeError>) -> (Status, Option<String>) {
    match failure {
        None => (Status::Complete, None),
        Some(ServeError::Interrupted(Interrupted(signal))) => {
            (Status::Interrupted, Some((*signal).to_owned()))
        }
        Some(error) => (Status::Failed, Some(error.to_string())),
    }
}

//! A run: load, fit, serve, record, report.

mod controls;
mod fit;
mod materials;
mod plan;
mod record;
mod rounds;
pub mod rules;
mod serve;

pub use fit::FitError;
pub use materials::MaterialsError;
pub use rounds::RoundError;
pub use serve::ServeError;

use crate::dispatch::placement::PlacementError;
use crate::measure::Clock;
use crate::results::{Manifest, Quality, ResultsError, RunDir, RunStart, Status, Summary};
use crate::scenario::{self, Scenario};
use materials::Materials;
use plan::Plan;
use record::Recorder;
use serve::interruptible;
use std::path::{Path, PathBuf};

/// What a run needs beside its scenario.
pub struct RunSettings<'a> {
    /// The command line, for the manifest.
    pub command: Vec<String>,
    /// The nashflock executable, to start workers of.
    pub program: &'a Path,
    /// Where results go; by default under `runs/`.
    pub out: Option<PathBuf>,
    /// Told what the run is doing.
    pub progress: &'a dyn Progress,
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

/// What is wrong before anything starts: exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Checkpoint or text.
    #[error(transparent)]
    Materials(#[from] MaterialsError),
    /// Budget or calibration.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// Nodes and replicas.
    #[error("nodes: {0}")]
    Placement(#[from] PlacementError),
    /// The run directory.
    #[error(transparent)]
    Results(#[from] ResultsError),
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
    let resolved = scenario::resolved(scenario);
    let path = settings
        .out
        .clone()
        .unwrap_or_else(|| RunDir::default_path(&scenario.name, scenario.seed, clock.started_at()));
    settings.progress.phase("loading");
    let materials = Materials::load(scenario)?;
    RunDir::check_vacant(&path)?;
    settings.progress.phase("calibrating and quantizing");
    let experts = fit::fit(&materials, scenario, clock).await?;
    let plan = Plan::new(scenario, &materials, experts)?;
    // Only now, so that a refused budget or placement leaves nothing behind.
    let dir = RunDir::create(&path)?;

    let mut manifest = Manifest::start(
        RunStart {
            command: settings.command.clone(),
            scenario: &scenario.name,
            scenario_toml: &resolved,
            seed: scenario.seed,
            threads: scenario.compute.threads,
            nodes: plan.manifest_nodes(),
        },
        clock,
    );
    dir.write("scenario.toml", resolved.as_bytes())?;
    dir.write_manifest(&manifest)?;
    let mut summary = Summary::new(&scenario.name, scenario.seed, plan.memory());
    summary.precision = plan.precision();
    let mut recorder = Recorder::open(&dir, scenario, materials.source().shape(), plan.bits())?;

    let (served, nodes) = plan.serve(&settings, clock, &mut recorder).await;
    let mut failure = served.err();
    summary.nodes = plan.node_figures(&nodes, recorder.span_ns(), failure.as_ref());
    if let Some((loss, tokens)) = recorder.loss() {
        let loss_uniform = materials.vocabulary().map(|symbols| (symbols as f64).ln());
        summary.quality =
            Some(Quality { loss: Some(loss), loss_uniform, tokens, ..Quality::default() });
    }
    if failure.is_none() && summary.quality.is_some() {
        settings.progress.phase("playing the controls");
        failure = interruptible(plan.controls(&mut summary, clock)).await.err();
    }
    (summary.status, summary.status_detail) = status(failure.as_ref());
    let recorded = recorder.finish(&dir, &mut summary, clock.started_at());
    manifest.end(clock, exit_code(&summary, failure.as_ref()));
    let written = recorded
        .and_then(|()| dir.write_summary(&summary))
        .and_then(|()| dir.write_manifest(&manifest))
        .and_then(|()| dir.write_report());
    if let Err(error) = written {
        failure.get_or_insert(ServeError::Results(error));
    }
    Ok(RunEnd { dir, summary, failure })
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
        Some(error @ ServeError::Interrupted(_)) => (Status::Interrupted, Some(error.to_string())),
        Some(error) => (Status::Failed, Some(error.to_string())),
    }
}

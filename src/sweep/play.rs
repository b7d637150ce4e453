//! Plays single runs in this process: one player a job, its threads and runtime kept from run to run.

use std::any::Any;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use agents::game::Registries;
use rayon::ThreadPool;
use tokio::runtime::Runtime;

use super::error::{SweepError, unwritable};
use super::row::Row;
use crate::measure::Clock;
use crate::results::RoundRow;
use crate::run::{self, PlanError, Progress, RunEnd, RunSettings, Shared};
use crate::scenario::Scenario;
use crate::scenario::sweep::{PlannedRun, Sweep};
use crate::transport::RunToken;

/// What runs need beside their scenarios.
pub struct PlaySettings<'a> {
    /// The command line, for the files of a run.
    pub command: Vec<String>,
    /// The nashflock executable, to start workers of.
    pub program: &'a Path,
    /// Routers and costs that the scenario may name.
    pub registries: &'a Registries,
    /// What workers that join must show; empty for none.
    pub run_token: RunToken,
    /// Keeps what the runs have in common; none: each reads and makes all of it.
    pub shared: Option<Shared>,
}

/// How a run ended for the sweep.
pub(super) enum Played {
    Row(Box<Row>),
    /// The user or the system asked to stop: it is as if it had not begun.
    Interrupted,
}

/// Plays one run after the other.
pub(super) struct Player<'a> {
    settings: &'a PlaySettings<'a>,
    sweep: &'a Sweep,
    /// A folder of its own, for the files of the run under way.
    scratch: PathBuf,
    runtime: Option<Runtime>,
    pool: Option<(u32, ThreadPool)>,
}

/// Nobody looks at a single run of many.
struct Silent;

impl Progress for Silent {
    fn phase(&self, _name: &str) {}
    fn answered(&self, _answered: u64, _requests: u64) {}
}

impl<'a> Player<'a> {
    pub(super) fn new(settings: &'a PlaySettings<'a>, sweep: &'a Sweep, scratch: PathBuf) -> Self {
        Self { settings, sweep, scratch, runtime: None, pool: None }
    }

    /// Plays a run, again where it fails and the sweep says so.
    pub(super) fn play(&mut self, planned: &PlannedRun) -> Result<Played, SweepError> {
        let clock = Clock::start();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let played = self.attempt(planned)?;
            let Played::Row(mut row) = played else { return Ok(Played::Interrupted) };
            if row.is_complete() || attempt == self.sweep.on_failure.attempts() {
                row.measured.insert("attempts".to_owned(), f64::from(attempt));
                row.measured.insert("wall_ns".to_owned(), clock.now_ns() as f64);
                return Ok(Played::Row(row));
            }
        }
    }

    fn attempt(&mut self, planned: &PlannedRun) -> Result<Played, SweepError> {
        let out = self.scratch.join("run");
        // Left by a run that panicked.
        let _ = fs::remove_dir_all(&out);
        fs::create_dir_all(&self.scratch).map_err(unwritable(&self.scratch))?;
        let mut scenario = planned.scenario.clone();
        // Files that nobody goes on from: a sweep starts a cut run anew.
        scenario.run.checkpoint_every_rounds = 0;
        self.prepare(&scenario)?;
        let ended = catch_unwind(AssertUnwindSafe(|| self.run(&scenario, out.clone())));
        let row = |exit_code, message| Box::new(Row::of(planned, exit_code, message));
        let row = match ended {
            Ok(Ok(end)) => {
                let exit_code = run::exit_code(&end.summary, end.failure.as_ref());
                if exit_code == 130 {
                    return Ok(Played::Interrupted);
                }
                let message = end.failure.as_ref().map(ToString::to_string);
                let mut row = row(exit_code, message);
                if row.is_complete() {
                    self.take(&mut row, &end)?;
                }
                row
            }
            Ok(Err(error)) => {
                row(if error.is_bad_input() { 2 } else { 4 }, Some(error.to_string()))
            }
            Err(panic) => {
                // What they hold may be half done.
                (self.runtime, self.pool) = (None, None);
                row(1, Some(format!("a bug: {}", said(panic.as_ref()))))
            }
        };
        let _ = fs::remove_dir_all(&out);
        Ok(Played::Row(row))
    }

    fn take(&self, row: &mut Row, end: &RunEnd) -> Result<(), SweepError> {
        row.take_summary(&end.summary);
        if let Some(target) = &self.sweep.target {
            row.take_targets(target, &end.dir.read_table::<RoundRow>()?);
        }
        let inputs = end.dir.read_manifest()?.inputs;
        if !inputs.is_empty() {
            let mut hasher = blake3::Hasher::new();
            inputs.iter().for_each(|input| {
                hasher.update(input.blake3.as_bytes());
            });
            row.inputs = Some(hasher.finalize().to_hex()[..32].to_owned());
        }
        Ok(())
    }

    fn prepare(&mut self, scenario: &Scenario) -> Result<(), SweepError> {
        let threads = scenario.compute.threads;
        if self.pool.as_ref().is_none_or(|(of, _)| *of != threads) {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads as usize).build();
            let pool = pool.map_err(|error| SweepError::System(std::io::Error::other(error)))?;
            self.pool = Some((threads, pool));
        }
        if self.runtime.is_none() {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).enable_all().build();
            self.runtime = Some(runtime.map_err(SweepError::System)?);
        }
        Ok(())
    }

    fn run(&self, scenario: &Scenario, out: PathBuf) -> Result<RunEnd, PlanError> {
        let (_, pool) = self.pool.as_ref().expect("it was prepared");
        let runtime = self.runtime.as_ref().expect("it was prepared");
        let settings = RunSettings {
            command: self.settings.command.clone(),
            program: self.settings.program,
            out: Some(out),
            registries: self.settings.registries,
            progress: &Silent,
            run_token: self.settings.run_token.clone(),
            hosts_worker: false,
            at_once: self.sweep.at_once,
            trace: false,
            observe: false,
            is_scratch: true,
            shared: self.settings.shared.as_ref(),
        };
        pool.install(|| {
            runtime.block_on(async {
                let clock = Clock::start();
                run::run(scenario, settings, &clock).await
            })
        })
    }
}

/// The message of a panic.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic")
}

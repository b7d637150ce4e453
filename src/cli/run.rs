//! `nashflock run`: runs a scenario.

use super::exports::{ExportArgs, Exports};
use super::progress::Bar;
use super::task::Task;
use super::watch::{WatchArgs, Watching};
use super::{Failure, Outcome, check, fitted, kubernetes, print, print_json, slurm, worker};
use crate::dispatch::NodeSpec;
use crate::measure::Clock;
use crate::results::{RunDir, summary_table};
use crate::run::{self, Listeners, PlanError, Progress, RunEnd, RunSettings, ServeError};
use crate::scenario::file::Engine;
use crate::scenario::{Scenario, sets_of_nodes};
use agents::game::Registries;
use clap::Args;
use serde_json::Value;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Args)]
pub(super) struct RunArgs {
    /// Scenario file
    scenario: PathBuf,
    /// Override a key, as `game.top_k=4`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Nodes: `in-process`, `virtual:N` in virtual time, `local:N`, `peers:HOST:PORT,…`, `join:IP:PORT:N` for
    /// workers that join, or `slurm` or `kubernetes` for the tasks of such a job
    #[arg(long, value_name = "SPEC")]
    nodes: Option<NodeSpec>,
    /// Directory for the results, new or empty [default: under runs/]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of every random stream
    #[arg(long)]
    seed: Option<u64>,
    /// Write `trace.json` into the results: stages, orders and requests in time, for Perfetto or Chrome
    #[arg(long)]
    trace: bool,
    /// Write `observed.parquet` into the results: what orders asked and how long they took, for `nashflock fit`
    #[arg(long)]
    observe: bool,
    /// Take keys of `[virtual]` from a file that `nashflock fit` wrote
    #[arg(long = "virtual", value_name = "FILE")]
    fitted: Option<PathBuf>,
    #[command(flatten)]
    exports: ExportArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: RunArgs, registries: &Registries) -> Outcome {
    let variable = |name: &str| std::env::var(name).ok();
    let listens = args.sets.iter().any(|set| set.trim_start().starts_with("nodes.listen"));
    let task = match args.nodes {
        Some(NodeSpec::Slurm) => Some(slurm::task(variable, listens)?),
        Some(NodeSpec::Kubernetes) => Some(kubernetes::task(variable)?),
        _ => None,
    };
    let mut sets = args.fitted.as_deref().map_or_else(|| Ok(Vec::new()), fitted::sets)?;
    sets.extend(args.sets);
    let seed = args.seed.or_else(|| task.as_ref()?.seed);
    sets.extend(seed.map(|seed| format!("seed={seed}")));
    sets.extend(args.nodes.iter().flat_map(sets_of_nodes));
    sets.extend(task.iter().flat_map(Task::sets));
    let mut scenario = check::load(&args.scenario, &sets, registries, args.json)?;
    if scenario.sweep.take().is_some() {
        let note = "note: [sweep] is left out of a single run; `nashflock sweep` plays it";
        // Standard error may be closed.
        let _ = writeln!(io::stderr(), "{note}");
    }
    if let Some(task) = task.as_ref().filter(|task| task.rank > 0) {
        return task.work(&scenario, args.exports.metrics);
    }
    let exports = Exports::start(&args.exports, &scenario)?;
    let watching = Watching::start(args.watch, &scenario)?;
    let wants = (args.trace, args.observe);
    let audience = Audience { exports, watching };
    let end = play(&scenario, registries, args.out, task.as_ref(), wants, audience)?;
    ended(&end, args.json)
}

/// Prints the summary of a run, and tells how it ended.
pub(super) fn ended(end: &RunEnd, json: bool) -> Outcome {
    let RunEnd { dir, summary, failure } = end;
    if json {
        let value: Value =
            serde_json::from_str(&summary.to_json()).expect("a summary is written as valid JSON");
        print_json(&value)?;
    } else {
        print(&format!("{}\nresults in {}", summary_table(summary), dir.path().display()))?;
    }
    match failure {
        None if summary.goals_met() => Ok(()),
        None => {
            let missed: Vec<&str> =
                summary.goals.iter().filter(|goal| !goal.met).map(|g| g.name.as_str()).collect();
            Err(Failure::MissedGoal(format!("missed goals: {}", missed.join(", "))))
        }
        Some(error @ ServeError::Interrupted(_)) => Err(Failure::Interrupted(error.to_string())),
        Some(error) => Err(Failure::dependency(error)),
    }
}

/// Plays a scenario again, for its state alone: in this process, into `out`, and without waiting for
/// arrivals.
pub(super) fn play_again(
    scenario: &Scenario,
    registries: &Registries,
    out: PathBuf,
) -> Result<RunDir, Failure> {
    let mut scenario = scenario.clone();
    scenario.nodes.count = u32::try_from(scenario.nodes.seats()).unwrap_or(u32::MAX);
    // Of blocks no expert is computed, so only virtual nodes can play them.
    if scenario.virtual_nodes.blocks.is_off() {
        scenario.nodes.engine = Engine::InProcess;
    }
    scenario.nodes.peers.clear();
    scenario.run.checkpoint_every_rounds = 0;
    let nobody = Audience::default();
    let end =
        on_runtime(&scenario, registries, Some(out), None, &nobody, async |settings, clock| {
            run::run(&scenario, RunSettings { at_once: true, ..settings }, clock).await
        })?;
    match end.failure {
        None => Ok(end.dir),
        Some(error @ ServeError::Interrupted(_)) => Err(Failure::Interrupted(error.to_string())),
        Some(error) => Err(Failure::dependency(error)),
    }
}

pub(super) fn play(
    scenario: &Scenario,
    registries: &Registries,
    out: Option<PathBuf>,
    task: Option<&Task>,
    (trace, observe): (bool, bool),
    audience: Audience,
) -> Result<RunEnd, Failure> {
    let end = on_runtime(scenario, registries, out, task, &audience, async |settings, clock| {
        run::run(scenario, RunSettings { trace, observe, ..settings }, clock).await
    });
    audience.end(end.as_ref().ok());
    end
}

/// Who hears of a run while it goes.
#[derive(Default)]
pub(super) struct Audience {
    pub(super) exports: Exports,
    pub(super) watching: Option<Watching>,
}

impl Audience {
    /// The run has ended like this, or came to nothing.
    pub(super) fn end(self, end: Option<&RunEnd>) {
        if let Some(watching) = self.watching {
            watching.end(end);
        }
        self.exports.end(end);
    }
}

/// Does `work` as the scenario's own task: on a pool of its threads, with its progress drawn.
pub(super) fn on_runtime<T: Send>(
    scenario: &Scenario,
    registries: &Registries,
    out: Option<PathBuf>,
    task: Option<&Task>,
    audience: &Audience,
    work: impl AsyncFnOnce(RunSettings<'_>, &Clock) -> Result<T, PlanError> + Send,
) -> Result<T, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::Dependency(format!("cannot find this program: {error}")))?;
    // Connections have threads of their own, so that computing never delays a reply's arrival.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::Dependency(format!("cannot start the runtime: {error}")))?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(scenario.compute.threads as usize)
        .build()
        .map_err(|error| Failure::Dependency(format!("cannot start threads: {error}")))?;
    let watching = audience.watching.as_ref();
    let bar = watching.is_none_or(|watching| !watching.is_shown()).then(Bar::new);
    let mut listeners: Vec<&dyn Progress> = Vec::new();
    listeners.extend(watching.map(|watching| &*watching.feed as &dyn Progress));
    listeners.extend(bar.as_ref().map(|bar| bar as &dyn Progress));
    listeners.extend(audience.exports.listeners());
    let listeners = Listeners(listeners);
    // A path need not be UTF-8; the manifest's text has to be.
    let command = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let settings = RunSettings {
        command,
        program: &program,
        out,
        registries,
        progress: &listeners,
        run_token: task.map_or_else(worker::run_token, Task::token).into(),
        hosts_worker: task.is_some(),
        at_once: false,
        trace: false,
        observe: false,
        is_scratch: false,
        shared: None,
    };
    // The whole run is a task of the pool: what it computes in parallel stays on the pool.
    let end = pool.install(|| {
        runtime.block_on(async {
            let clock = match scenario.nodes.engine {
                Engine::Virtual => Clock::simulated(),
                _ if settings.progress.pace().is_some() => Clock::start().pausable(),
                _ => Clock::start(),
            };
            audience.exports.begins(&clock);
            work(settings, &clock).await
        })
    });
    bar.iter().for_each(Bar::clear);
    runtime.shutdown_timeout(Duration::from_millis(500));
    end.map_err(|error| {
        if error.is_bad_input() { Failure::bad_input(error) } else { Failure::dependency(error) }
    })
}

//! The command line. Every command prints its result to standard output, as text or with `--json`
//! as one JSON object; logs, progress and errors go to standard error.

mod calibrate;
mod capacity;
mod check;
mod diff;
mod eval;
mod exports;
mod fitted;
mod kubernetes;
mod launch;
mod progress;
mod quantize;
mod reference;
mod replay;
mod report;
mod resume;
mod route;
mod run;
mod slurm;
mod sweep;
mod sweep_files;
mod task;
mod verify;
mod watch;
mod worker;

use crate::results::ResultsError;
use crate::watching::HeldLog;
use agents::game::Registries;
use clap::{Parser, Subcommand};
use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use tracing::level_filters::LevelFilter;

/// Mixture-of-Experts routing played as a game, on quantized experts served by gRPC nodes.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a scenario
    Run(run::RunArgs),
    /// Count the runs of a sweep, and estimate what they take from a few of them
    Plan(sweep::PlanArgs),
    /// Run a scenario at every point of its sweep
    Sweep(sweep::SweepArgs),
    /// Tell how far a sweep is
    Status(sweep::StatusArgs),
    /// Go on with a run or a sweep that was cut
    Resume(resume::ResumeArgs),
    /// Bring the shards of a sweep together
    Merge(sweep_files::MergeArgs),
    /// Play the scenario of a run directory once more, into a new one
    Replay(replay::ReplayArgs),
    /// Play a run, or some runs of a sweep, again in this process and compare every figure that no clock enters
    Verify(verify::VerifyArgs),
    /// List what two runs, or two sweeps, were told otherwise and what that moved
    Diff(diff::DiffArgs),
    /// Find the parameters of virtual nodes by runs that were observed
    Fit(fitted::FitArgs),
    /// Play runs again in virtual time, and hold what is predicted against what was measured
    Calibrate(calibrate::CalibrateArgs),
    /// Find the highest rate that holds a latency goal
    Capacity(capacity::CapacityArgs),
    /// Serve experts as one node
    Worker(worker::WorkerArgs),
    /// Check a scenario and report every problem at once
    Check(check::CheckArgs),
    /// Print the JSON Schema of scenario files
    Schema,
    /// Print the reference of scenario keys, commands or results as Markdown
    Reference(reference::ReferenceArgs),
    /// Print completions of the command line for a shell
    Completions(reference::CompletionsArgs),
    /// Write manual pages into a folder
    Man(reference::ManArgs),
    /// Play one game on a score matrix and print its certificate
    Route(route::RouteArgs),
    /// Score a text with a checkpoint
    Eval(eval::EvalArgs),
    /// Write a checkpoint with quantized weights
    Quantize(quantize::QuantizeArgs),
    /// Hand a scenario to an engine that runs jobs
    Launch(launch::LaunchArgs),
    /// Rebuild the report of a run or a sweep
    Report(report::ReportArgs),
}

/// How a command failed, as its exit code tells.
enum Failure {
    /// Nothing was started: exit code 2.
    BadInput(String),
    /// The command ended but missed a stated goal: exit code 3.
    MissedGoal(String),
    /// A node or dependency failed for good: exit code 4.
    Dependency(String),
    /// The user asked to stop: exit code 130.
    Interrupted(String),
}

impl Failure {
    fn bad_input(error: impl Display) -> Self {
        Self::BadInput(error.to_string())
    }

    fn dependency(error: impl Display) -> Self {
        Self::Dependency(error.to_string())
    }
}

type Outcome = Result<(), Failure>;

/// Parses the command line and runs it, with the routers and congestion costs of this project.
#[must_use]
pub fn main() -> ExitCode {
    main_with(&Registries::standard())
}

/// The same with other routers and costs: scenarios and `route` know them by name. This is all that
/// the `main` of a crate with a router or cost of its own has to call.
#[must_use]
pub fn main_with(registries: &Registries) -> ExitCode {
    let command = Cli::parse().command;
    log_to_stderr(matches!(command, Command::Worker(_)));
    let outcome = match command {
        Command::Run(args) => run::run(args, registries),
        Command::Plan(args) => sweep::plan(args, registries),
        Command::Sweep(args) => sweep::sweep(args, registries),
        Command::Status(args) => sweep::status(&args),
        Command::Resume(args) => resume::resume(&args, registries),
        Command::Merge(args) => sweep_files::merge(&args, registries),
        Command::Replay(args) => replay::replay(args, registries),
        Command::Verify(args) => verify::verify(&args, registries),
        Command::Diff(args) => diff::diff(&args),
        Command::Fit(args) => fitted::fit(&args),
        Command::Calibrate(args) => calibrate::calibrate(&args, registries),
        Command::Capacity(args) => capacity::capacity(args, registries),
        Command::Worker(args) => worker::worker(&args),
        Command::Check(args) => check::check(&args, registries),
        Command::Reference(args) => reference::reference(&args),
        Command::Completions(args) => reference::completions(&args),
        Command::Man(args) => reference::man(&args),
        Command::Schema => check::schema(),
        Command::Route(args) => route::route(&args, registries),
        Command::Eval(args) => eval::eval(&args),
        Command::Quantize(args) => quantize::quantize(&args, registries),
        Command::Launch(args) => launch::launch(&args, registries),
        Command::Report(args) => report::report(&args),
    };
    let (code, text) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::BadInput(text)) => (2, text),
        Err(Failure::MissedGoal(text)) => (3, text),
        Err(Failure::Dependency(text)) => (4, text),
        Err(Failure::Interrupted(text)) => (130, text),
    };
    // Standard error may be closed; the exit code still tells.
    let _ = writeln!(io::stderr(), "{text}");
    ExitCode::from(code)
}

fn results_failure(error: ResultsError) -> Failure {
    if error.is_bad_input() { Failure::bad_input(error) } else { Failure::dependency(error) }
}

/// Writes to standard output. A reader that has gone, such as `head`, is no error.
fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    let ended = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{ended}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Dependency(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

fn print_json(value: &serde_json::Value) -> Outcome {
    print(&format!("{value:#}"))
}

/// Workers log what they do; the other commands only what goes wrong. `RUST_LOG` overrides both.
fn log_to_stderr(is_worker: bool) {
    let level = if is_worker { LevelFilter::INFO } else { LevelFilter::WARN };
    tracing_subscriber::fmt()
        .with_writer(|| HeldLog)
        .with_ansi(io::stderr().is_terminal())
        // A worker outlives the reader of its log by a moment; that must not panic.
        .log_internal_errors(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(level.into())
                .from_env_lossy(),
        )
        .init();
}

//! `nashflock plan`, `sweep` and `status`: the same scenario at many points.

use super::progress::SweepBar;
use super::{Failure, Outcome, check, print, print_json, worker};
use crate::measure::Clock;
use crate::measure::memory::peak_resident_bytes;
use crate::results::RunDir;
use crate::run::Shared;
use crate::scenario::Scenario;
use crate::scenario::sweep::Experiment;
use crate::sweep::{self, Estimate, Order, PlaySettings, Shard, ShardEnd, SweepDir, SweepError};
use agents::game::Registries;
use clap::Args;
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct SweepArgs {
    /// Scenario file with a section `[sweep]`
    scenario: PathBuf,
    /// Override a key, as `sweep.seeds=4`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Directory for the results: new, empty, or that of other shards [default: under runs/]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Runs at a time [default: processors by `compute.threads`]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Play only part I of N, such as 1/4: the parts may share a directory, or be merged
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    shard: Shard,
    /// Print one JSON object: `dir`, `complete`, `runs`, `done`, `failed`, `missed_goals`, `peak_bytes`
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct PlanArgs {
    /// Scenario file with a section `[sweep]`
    scenario: PathBuf,
    /// Override a key; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Runs that are played to estimate time and memory; 0: none
    #[arg(long, value_name = "N", default_value_t = 3)]
    trials: u64,
    /// Runs at a time, for the estimate [default: as of `sweep`]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Print one JSON object: `points`, `seeds`, `runs`, `repeated_points`, `jobs`, `estimate`
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct StatusArgs {
    /// Directory of a sweep
    sweep: PathBuf,
    /// Print one JSON object: `runs`, `done`, `failed`, `missed_goals`, `complete`, `shards`, `messages`
    #[arg(long)]
    json: bool,
}

pub(super) fn sweep(args: SweepArgs, registries: &Registries) -> Outcome {
    let scenario = load(&args.scenario, &args.sets, registries, args.json)?;
    let path = args.out.unwrap_or_else(|| {
        let name = format!("{}-sweep", scenario.name);
        RunDir::default_path(&name, scenario.seed, Clock::start().started_at())
    });
    let dir = SweepDir::create(&path, &scenario).map_err(failure)?;
    let experiment = Experiment::new(&scenario);
    let jobs = jobs(args.jobs, &scenario);
    let order = Order { shard: args.shard, jobs, failed_again: false };
    let end = with_settings(registries, |settings| {
        let bar = SweepBar::new();
        let end = sweep::start(&dir, &experiment, order, settings, &bar);
        bar.clear();
        end
    })?;
    ended(&dir, &[end], args.json)
}

/// Goes on with the shards of a sweep that were cut, or with one.
pub(super) fn resume(
    path: &Path,
    (shard, jobs_asked): (Option<Shard>, Option<NonZeroUsize>),
    failed_again: bool,
    registries: &Registries,
    json: bool,
) -> Outcome {
    let dir = SweepDir::open(path).map_err(failure)?;
    let scenario = load(&dir.scenario(), &[], registries, json)?;
    let experiment = Experiment::new(&scenario);
    let jobs = jobs(jobs_asked, &scenario);
    let mut shards = match shard {
        Some(shard) => vec![shard],
        None => dir.unfinished().map_err(failure)?,
    };
    if shards.is_empty() || (failed_again && shard.is_none()) {
        // Complete: the first says so, or has its failed runs played again.
        shards = dir.started().map_err(failure)?;
    }
    let started = dir.started().map_err(failure)?;
    let mut ends = Vec::new();
    let mut complete = None;
    for shard in shards {
        let order = Order { shard, jobs, failed_again };
        let end = with_settings(registries, |settings| {
            let bar = SweepBar::new();
            let end = if started.contains(&shard) {
                sweep::resume(&dir, &experiment, order, settings, &bar)
            } else {
                sweep::start(&dir, &experiment, order, settings, &bar)
            };
            bar.clear();
            Ok(end)
        })?;
        match end {
            Err(error @ SweepError::Complete { .. }) => complete = Some(error),
            Err(error) => return Err(failure(error)),
            Ok(end) => {
                let interrupted = end.interrupted;
                ends.push(end);
                if interrupted {
                    break;
                }
            }
        }
    }
    match complete.filter(|_| ends.is_empty()) {
        Some(error) => Err(failure(error)),
        None => ended(&dir, &ends, json),
    }
}

pub(super) fn plan(args: PlanArgs, registries: &Registries) -> Outcome {
    let scenario = load(&args.scenario, &args.sets, registries, args.json)?;
    let experiment = Experiment::new(&scenario);
    let jobs = jobs(args.jobs, &scenario);
    let estimate = if args.trials == 0 {
        None
    } else {
        let of = with_settings(registries, |settings| {
            sweep::estimate(&experiment, (args.trials, jobs), settings)
        })?;
        Some(of.ok_or_else(|| Failure::Interrupted("interrupted".to_owned()))?)
    };
    let (points, runs) = (experiment.points().count(), experiment.runs());
    let (seeds, repeated) = (experiment.sweep().seeds, experiment.points().repeated());
    if args.json {
        return print_json(&json!({
            "points": points,
            "seeds": seeds,
            "runs": runs,
            "repeated_points": repeated,
            "jobs": jobs,
            "estimate": estimate,
        }));
    }
    let mut text = format!("{points} points under {seeds} seeds: {runs} runs\n");
    for (at, key) in experiment.keys().iter().enumerate() {
        let values = experiment.points().values(at);
        let axis = &experiment.sweep().axis[at];
        text += &match (axis.low, axis.high) {
            (Some(low), Some(high)) if values.is_empty() => {
                format!("  {key}: drawn from {low} to {high}\n")
            }
            _ => format!("  {key}: {} values\n", values.len()),
        };
    }
    if repeated > 0 {
        text += &format!("{repeated} points were drawn a second time and are left out\n");
    }
    text += &estimate.map_or_else(String::new, |of| said(&of, runs, jobs));
    print(&text)
}

fn said(of: &Estimate, runs: u64, jobs: usize) -> String {
    let mean = of.trial_s.iter().sum::<f64>() / of.trial_s.len() as f64;
    let trials = of.trials.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let mut text = format!(
        "time: {:.1} s, {:.1} to {:.1} by the fastest and the slowest trial\n  \
         from run {trials}, played one at a time and thrown away: {mean:.3} s each on average, times {runs} runs, over \
         {jobs} jobs as if they did not slow each other down\n",
        of.total_s, of.total_s_range.0, of.total_s_range.1
    );
    if of.once_s > 0.0 {
        text += &format!("  and {:.1} s once, for what the runs have in common\n", of.once_s);
    }
    if let Some(bytes) = of.peak_bytes {
        text += &format!(
            "memory: {:.0} MB\n  the peak of this process over the trials; further jobs add what their runs take\n",
            bytes as f64 / 1e6
        );
    }
    of.failures.iter().for_each(|failure| text += &format!("failed: {failure}\n"));
    text
}

pub(super) fn status(args: &StatusArgs) -> Outcome {
    let dir = SweepDir::open(&args.sweep).map_err(failure)?;
    let (shards, messages) = sweep::status(&dir).map_err(failure)?;
    let sum = |of: fn(&sweep::ShardStatus) -> u64| shards.iter().map(of).sum::<u64>();
    let (done, failed) = (sum(|of| of.done), sum(|of| of.failed));
    let (runs, missed_goals) = (dir.head().runs, sum(|of| of.missed_goals));
    if args.json {
        return print_json(&json!({
            "name": dir.head().name,
            "runs": runs,
            "done": done,
            "failed": failed,
            "missed_goals": missed_goals,
            "complete": done == runs,
            "shards": shards,
            "messages": messages,
        }));
    }
    let mut text = format!(
        "{}: {done} of {runs} runs have ended, {failed} failed, {missed_goals} missed a goal\n",
        dir.head().name
    );
    for of in &shards {
        let state = match (of.started, of.done == of.runs) {
            (false, _) => "not started",
            (true, true) => "complete",
            (true, false) => "cut, or under way",
        };
        let (shard, done, runs, wall_s) = (&of.shard, of.done, of.runs, of.wall_s);
        text +=
            &format!("  shard {shard}: {done} of {runs} runs, {wall_s:.1} s of runs, {state}\n");
    }
    messages.iter().for_each(|message| text += &format!("  {message}\n"));
    print(&text)
}

pub(super) fn failure(error: SweepError) -> Failure {
    if error.is_bad_input() { Failure::bad_input(error) } else { Failure::dependency(error) }
}

/// Loads a scenario that has a sweep.
pub(super) fn load(
    path: &Path,
    sets: &[String],
    registries: &Registries,
    json: bool,
) -> Result<Scenario, Failure> {
    let scenario = check::load(path, sets, registries, json)?;
    if scenario.sweep.is_none() {
        return Err(Failure::BadInput(format!(
            "{} has no section [sweep]: add one, such as\n\n[sweep]\nseeds = 4\n\n[[sweep.axis]]\n\
             key = \"game.router\"\nvalues = [\"equilibrium\", \"top_k\"]",
            path.display()
        )));
    }
    Ok(scenario)
}

pub(super) fn jobs(asked: Option<NonZeroUsize>, scenario: &Scenario) -> usize {
    asked.map_or_else(
        || {
            let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
            (processors / scenario.compute.threads as usize).max(1)
        },
        NonZeroUsize::get,
    )
}

pub(super) fn with_settings<T>(
    registries: &Registries,
    work: impl FnOnce(&PlaySettings<'_>) -> Result<T, SweepError>,
) -> Result<T, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::Dependency(format!("cannot find this program: {error}")))?;
    let command = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let run_token = worker::run_token().into();
    let shared = Some(Shared::default());
    let settings = PlaySettings { command, program: &program, registries, run_token, shared };
    work(&settings).map_err(failure)
}

/// Prints what shards came to, and tells how they ended.
fn ended(dir: &SweepDir, ends: &[ShardEnd], json: bool) -> Outcome {
    let sum = |of: fn(&ShardEnd) -> u64| ends.iter().map(of).sum::<u64>();
    let (runs, done, failed) = (sum(|end| end.runs), sum(|end| end.done), sum(|end| end.failed));
    let missed_goals = sum(|end| end.missed_goals);
    let path = dir.path().display();
    if json {
        print_json(&json!({
            "dir": path.to_string(),
            "complete": done == runs,
            "runs": runs,
            "done": done,
            "failed": failed,
            "missed_goals": missed_goals,
            "peak_bytes": peak_resident_bytes(),
        }))?;
    } else {
        print(&format!(
            "{done} of {runs} runs have ended, {failed} failed, {missed_goals} missed a goal\nresults in {path}"
        ))?;
    }
    if dir.unfinished().map_err(failure)?.is_empty() {
        sweep::write_report(dir).map_err(failure)?;
    }
    if ends.iter().any(|end| end.interrupted) {
        return Err(Failure::Interrupted(format!(
            "interrupted: `nashflock resume {path}` goes on"
        )));
    }
    match ends.iter().find_map(|end| end.failure.as_ref()) {
        None => Ok(()),
        Some(first) => Err(Failure::Dependency(format!("{failed} runs failed; {first}"))),
    }
}

//! `nashflock calibrate`: plays runs again in virtual time and holds what is predicted against what was measured.

use super::fitted::{failure, section};
use super::run::{Audience, on_runtime};
use super::{Failure, Outcome, check, print, print_json, results_failure};
use crate::fidelity::{Comparison, Figure, Statistic, Times};
use crate::results::{RunDir, Summary};
use crate::run::{self, RunSettings};
use agents::game::Registries;
use clap::Args;
use serde_json::json;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct CalibrateArgs {
    /// Directories of runs on real nodes that were observed, `run --observe`. Runs of the same scenario and seed are
    /// repetitions: what is predicted is held against all of them together
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// What `nashflock fit --out` wrote, of other runs than these
    #[arg(long, value_name = "FILE")]
    fitted: PathBuf,
    /// Override a key of the virtual runs, as `virtual.shared_cores=4`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Largest error of a mean that is no failure, in percent
    #[arg(long, value_name = "PERCENT")]
    goal_mean: Option<f64>,
    /// Largest error of a 99th percentile that is no failure, in percent
    #[arg(long, value_name = "PERCENT")]
    goal_p99: Option<f64>,
    /// Print one JSON object: `runs`, `mean_error_max`, `p99_error_max`
    #[arg(long)]
    json: bool,
}

pub(super) fn calibrate(args: &CalibrateArgs, registries: &Registries) -> Outcome {
    let (mut opened, mut unlike) = (Vec::new(), Vec::new());
    // All of them before any is played.
    for path in &args.runs {
        let dir = RunDir::open(path).map_err(results_failure)?;
        let manifest = dir.read_manifest().map_err(results_failure)?;
        dir.check_scenario(&manifest).map_err(results_failure)?;
        opened.push((Times::of(&dir).map_err(failure)?, manifest.scenario_blake3, dir));
    }
    let predicting = [section(&args.fitted, "virtual")?, args.sets.clone()].concat();
    let knowing_means = [section(&args.fitted, "control")?, args.sets.clone()].concat();
    let mut compared = Vec::new();
    for (at, (_, scenario, dir)) in opened.iter().enumerate() {
        let same = |other: &&(Times, String, RunDir)| other.1 == *scenario;
        if opened[..at].iter().any(|other| same(&other)) {
            continue;
        }
        let repetitions: Vec<&Times> =
            opened[at..].iter().filter(same).map(|(times, ..)| times).collect();
        let (predicted, state_hash) = played(dir.path(), &predicting, registries, args.json)?;
        let (control, _) = played(dir.path(), &knowing_means, registries, args.json)?;
        let summary = dir.read_summary().map_err(results_failure)?;
        if summary.state_hash != state_hash {
            unlike.push(dir.path().display().to_string());
        }
        compared.push(Comparison {
            run: dir.path().display().to_string(),
            repetitions: repetitions.len(),
            scenario: summary.scenario,
            seed: summary.seed,
            same_state: summary.state_hash == state_hash,
            figures: Times::compare(&repetitions, &predicted, &control),
        });
    }
    let worst = |statistic| {
        let all = compared.iter().flat_map(|run| &run.figures);
        let of = all.filter(|figure| figure.statistic == statistic);
        of.map(|figure| figure.error.abs()).fold(0.0, f64::max)
    };
    let (mean, p99) = (worst(Statistic::Mean), worst(Statistic::P99));
    if args.json {
        print_json(&json!({"runs": compared, "mean_error_max": mean, "p99_error_max": p99}))?;
    } else {
        print(&text(&compared, mean, p99))?;
    }
    if !unlike.is_empty() {
        return Err(Failure::MissedGoal(format!(
            "not the same game was played again, so times cannot be held against each other: {}",
            unlike.join(", ")
        )));
    }
    let missed = |goal: Option<f64>, found: f64| goal.is_some_and(|goal| 100.0 * found > goal);
    if missed(args.goal_mean, mean) || missed(args.goal_p99, p99) {
        return Err(Failure::MissedGoal("missed goals: see the errors".into()));
    }
    Ok(())
}

/// The times of a run's scenario on virtual nodes, and its state.
fn played(
    run: &Path,
    sets: &[String],
    registries: &Registries,
    json: bool,
) -> Result<(Times, String), Failure> {
    let file = run.join("scenario.toml");
    let seats = check::load(&file, &[], registries, json)?.nodes.seats();
    let nodes = ["nodes.engine=virtual", "nodes.peers=[]"].map(str::to_owned);
    let count = [format!("nodes.count={seats}")];
    let scenario = check::load(&file, &[&nodes[..], &count, sets].concat(), registries, json)?;
    let folder = tempfile::tempdir()
        .map_err(|error| Failure::Dependency(format!("cannot make a temporary folder: {error}")))?;
    let out = Some(folder.path().join("virtual"));
    let end = on_runtime(
        &scenario,
        registries,
        out,
        None,
        &Audience::default(),
        async |settings, clock| {
            run::run(&scenario, RunSettings { observe: true, is_scratch: true, ..settings }, clock)
                .await
        },
    )?;
    match end.failure {
        None => {}
        Some(error @ run::ServeError::Interrupted(_)) => {
            return Err(Failure::Interrupted(error.to_string()));
        }
        Some(error) => return Err(Failure::dependency(error)),
    }
    let Summary { state_hash, .. } = end.summary;
    Ok((Times::of(&end.dir).map_err(failure)?, state_hash))
}

fn text(compared: &[Comparison], mean: f64, p99: f64) -> String {
    let mut text = String::new();
    for Comparison { run, repetitions, scenario, seed, same_state, figures } in compared {
        let same = if *same_state { "the same state" } else { "ANOTHER STATE" };
        let played =
            if *repetitions == 1 { String::new() } else { format!(", {repetitions} times") };
        let _ = writeln!(text, "{run}: {scenario}, seed {seed}{played}, {same} in virtual time\n");
        text +=
            "| of | | count | measured, ms | predicted, ms | error | means alone | repeated |\n";
        text += "|---|---|---:|---:|---:|---:|---:|---:|\n";
        for Figure {
            of,
            statistic,
            count,
            measured_ns,
            predicted_ns,
            error,
            control_error,
            repeat_error,
        } in figures
        {
            let repeated = repeat_error.map(percent).unwrap_or_default();
            let _ = writeln!(
                text,
                "| {of} | {} | {count} | {:.3} | {:.3} | {} | {} | {repeated} |",
                statistic.name(),
                measured_ns / 1e6,
                predicted_ns / 1e6,
                percent(*error),
                percent(*control_error),
            );
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "largest error of a mean {:.1} %, of a p99 {:.1} %",
        100.0 * mean,
        100.0 * p99
    );
    text
}

fn percent(share: f64) -> String {
    format!("{:+.1} %", 100.0 * share)
}

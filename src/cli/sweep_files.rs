//! `nashflock merge`, and what `diff` and `verify` do with sweeps.

use super::diff::section;
use super::sweep::{failure, load, with_settings};
use super::verify::repeats;
use super::{Failure, Outcome, print, print_json};
use crate::results::statistics::Interval;
use crate::scenario::sweep::Experiment;
use crate::sweep::{self, FigureDifference, SweepDifferences, SweepDir};
use agents::game::Registries;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Differences that are printed as text.
const SHOWN: usize = 60;

#[derive(Args)]
pub(super) struct MergeArgs {
    /// Directories with shards of one sweep
    #[arg(required = true, value_name = "DIR")]
    parts: Vec<PathBuf>,
    /// Directory for the whole sweep, new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print one JSON object: `dir`, `runs`, `missing`
    #[arg(long)]
    json: bool,
}

pub(super) fn merge(args: &MergeArgs, registries: &Registries) -> Outcome {
    let parts: Result<Vec<SweepDir>, _> =
        args.parts.iter().map(|part| SweepDir::open(part)).collect();
    let parts = parts.map_err(failure)?;
    let scenario = load(&parts[0].scenario(), &[], registries, args.json)?;
    let missing = sweep::merge(&parts, &scenario, &args.out).map_err(failure)?;
    let dir = SweepDir::open(&args.out).map_err(failure)?;
    sweep::write_report(&dir).map_err(failure)?;
    let (runs, path) = (dir.head().runs, args.out.display());
    if args.json {
        print_json(&json!({"dir": path.to_string(), "runs": runs, "missing": missing}))?;
    } else {
        print(&format!("{} of {runs} runs\nresults in {path}", runs - missing))?;
    }
    if missing == 0 {
        return Ok(());
    }
    Err(Failure::MissedGoal(format!("{missing} of {runs} runs are in none of the directories")))
}

/// Holds two sweeps against each other.
pub(super) fn diff((a, b): (&Path, &Path), figures: &[String], json: bool) -> Outcome {
    if let Some(other) = [a, b].into_iter().find(|path| !SweepDir::is_at(path)) {
        return Err(Failure::BadInput(format!(
            "{} is no sweep: compare two runs, or two sweeps",
            other.display()
        )));
    }
    let open = |path: &Path| SweepDir::open(path).map_err(failure);
    let (a, b) = (open(a)?, open(b)?);
    let figures = if figures.is_empty() {
        sweep::shown_figures(&[&a, &b]).map_err(failure)?
    } else {
        figures.to_vec()
    };
    let found = sweep::compare(&a, &b, &figures).map_err(failure)?;
    if json {
        return print_json(&json!(found));
    }
    print(&said(&found))
}

fn said(found: &SweepDifferences) -> String {
    let [only_a, only_b] = found.points_alone;
    let moved: Vec<&FigureDifference> = found.figures.iter().filter(|of| of.moved).collect();
    let mut text = section("keys of the scenarios", &found.scenario);
    text += &format!(
        "{} points in both, {only_a} only in the first, {only_b} only in the second\n\
         {} of {} differences of means exclude zero with their 95 % intervals; of those that are zero one in twenty does by chance\n",
        found.points,
        moved.len(),
        found.figures.len()
    );
    let mut before = None;
    for of in moved.iter().take(SHOWN) {
        if before != Some(&of.parameters) {
            let set = of.parameters.iter().map(|(key, value)| format!("{key}={value}"));
            text += &format!("  {}\n", set.collect::<Vec<_>>().join(", "));
            before = Some(&of.parameters);
        }
        let pairs = if of.paired { ", over pairs of the same seeds" } else { "" };
        text += &format!(
            "    {}: {} to {}, by {}{pairs}\n",
            of.figure,
            interval(&of.a),
            interval(&of.b),
            interval(&of.difference)
        );
    }
    if moved.len() > SHOWN {
        text += &format!("  and {} more: see --json\n", moved.len() - SHOWN);
    }
    text
}

fn interval(of: &Interval) -> String {
    let number = |value: f64| {
        let text = format!("{value:.5}");
        if value.abs() < 1e-3 && value != 0.0 { format!("{value:.3e}") } else { text }
    };
    match of.half_width {
        None => number(of.mean),
        Some(half) => format!("{} ± {}", number(of.mean), number(half)),
    }
}

/// Plays some runs of a sweep again.
pub(super) fn verify(path: &Path, sample: u64, registries: &Registries, json: bool) -> Outcome {
    let dir = SweepDir::open(path).map_err(failure)?;
    let scenario = load(&dir.scenario(), &[], registries, json)?;
    repeats(&scenario)?;
    let experiment = Experiment::new(&scenario);
    let verified =
        with_settings(registries, |settings| sweep::verify(&dir, &experiment, sample, settings))?
            .ok_or_else(|| Failure::Interrupted("interrupted".to_owned()))?;
    let good = verified.unlike.is_empty();
    if json {
        print_json(&json!({
            "verified": good,
            "runs": verified.runs,
            "unlike": verified.unlike.iter().map(|(run, differences)| json!({"run": run, "differences": differences})).collect::<Vec<_>>(),
        }))?;
    }
    if good {
        let runs = verified.runs.len();
        return if json {
            Ok(())
        } else {
            print(&format!(
                "verified: {runs} of {} runs played again have the same figures and states",
                dir.head().runs
            ))
        };
    }
    let mut lines = vec![format!(
        "{} of {} runs are not what they were:",
        verified.unlike.len(),
        verified.runs.len()
    )];
    for (run, differences) in &verified.unlike {
        let first = &differences[0];
        lines.push(format!(
            "  run {run}: {} is {} in the sweep and {} again; {} figures differ",
            first.key,
            first.a,
            first.b,
            differences.len()
        ));
    }
    Err(Failure::MissedGoal(lines.join("\n")))
}

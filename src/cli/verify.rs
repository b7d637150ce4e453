//! `nashflock verify`: plays the scenario of a run directory, or runs of a sweep, again and compares.

use super::run::play_again;
use super::{Failure, Outcome, check, print, print_json, results_failure, sweep_files};
use crate::results::compare::{Difference, game_differences};
use crate::results::{Manifest, RunDir};
use crate::scenario::Scenario;
use crate::scenario::file::Admission;
use crate::sweep::SweepDir;
use agents::game::Registries;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use tempfile::TempDir;

/// Differences that are printed as text.
const SHOWN: usize = 20;

#[derive(Args)]
pub(super) struct VerifyArgs {
    /// Directory of a run that is complete, or of a sweep
    run: PathBuf,
    /// Runs of a sweep that are played again, evenly over those that are complete
    #[arg(long, value_name = "N", default_value_t = 8)]
    sample: u64,
    /// Print one JSON object: `verified`, `state_hash`, `changed_files`, `differences`, `notes`; of a sweep
    /// `verified`, `runs`, `unlike`
    #[arg(long)]
    json: bool,
}

pub(super) fn verify(args: &VerifyArgs, registries: &Registries) -> Outcome {
    if SweepDir::is_at(&args.run) {
        return sweep_files::verify(&args.run, args.sample, registries, args.json);
    }
    let dir = RunDir::open(&args.run).map_err(results_failure)?;
    let manifest = dir.read_manifest().map_err(results_failure)?;
    if !manifest.is_complete() {
        let path = args.run.display();
        return Err(Failure::BadInput(format!(
            "{path} is not complete, so there is nothing to hold a repetition against: \
             `nashflock resume {path}` first"
        )));
    }
    let summary = dir.read_summary().map_err(results_failure)?;
    // First: a scenario whose files are gone is not read.
    let changed = changed_files(&dir, &manifest);
    let differences = if changed.is_empty() {
        let (_folder, again) = again(args, registries)?;
        game_differences(&dir, &again).map_err(results_failure)?
    } else {
        Vec::new()
    };
    let verified = changed.is_empty() && differences.is_empty();
    let notes = manifest.unlike_this_process();
    if args.json {
        print_json(&json!({
            "verified": verified,
            "state_hash": summary.state_hash,
            "changed_files": changed,
            "differences": differences,
            "notes": notes,
        }))?;
    } else if verified {
        print(&format!(
            "verified: {} rounds and {} requests played again have the same figures and the state \
             {}",
            summary.convergence.rounds,
            summary.outcomes.total(),
            summary.state_hash
        ))?;
    }
    if verified {
        return Ok(());
    }
    Err(Failure::MissedGoal(said(&changed, &differences, &notes)))
}

/// The run played again, into a folder that goes with the first of the two.
fn again(args: &VerifyArgs, registries: &Registries) -> Result<(TempDir, RunDir), Failure> {
    let scenario = check::load(&args.run.join("scenario.toml"), &[], registries, args.json)?;
    repeats(&scenario)?;
    let folder = tempfile::tempdir()
        .map_err(|error| Failure::Dependency(format!("cannot make a temporary folder: {error}")))?;
    let again = play_again(&scenario, registries, folder.path().join("again"))?;
    Ok((folder, again))
}

/// Refuses a scenario whose play depends on the machine's speed.
pub(super) fn repeats(scenario: &Scenario) -> Outcome {
    if scenario.load.admission == Admission::All {
        return Ok(());
    }
    Err(Failure::BadInput(
        "load.admission: which requests are served depends on the machine's speed, so no \
         repetition has the same state"
            .to_owned(),
    ))
}

/// Files that the manifest lists and that are not as it says.
fn changed_files(dir: &RunDir, manifest: &Manifest) -> Vec<String> {
    let read = manifest.inputs.iter().map(|record| (record, PathBuf::from(&record.path)));
    let written = manifest.outputs.iter().map(|record| (record, dir.path().join(&record.path)));
    read.chain(written).filter_map(|(record, file)| record.change(&file)).collect()
}

fn said(changed: &[String], differences: &[Difference], notes: &[String]) -> String {
    let mut lines = Vec::new();
    if !changed.is_empty() {
        lines.push("not played again, for files are not what they were:".to_owned());
        lines.extend(changed.iter().map(|file| format!("  {file}")));
    }
    if !differences.is_empty() {
        lines.push(format!("{} figures are not what they were:", differences.len()));
        let line = |of: &Difference| format!("  {}: {} in the run, {} again", of.key, of.a, of.b);
        lines.extend(differences.iter().take(SHOWN).map(line));
    }
    lines.extend(notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}

//! `nashflock replay`: plays the scenario of a run directory once more, into a new one.

use super::run::{Audience, ended, play};
use super::{Outcome, check, results_failure};
use crate::measure::Clock;
use crate::results::{RunDir, shell_line};
use agents::game::Registries;
use clap::Args;
use std::io::{self, Write as _};
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct ReplayArgs {
    /// Run directory, of a run that ended or not
    run: PathBuf,
    /// Directory for the results, new or empty [default: under runs/]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn replay(args: ReplayArgs, registries: &Registries) -> Outcome {
    let dir = RunDir::open(&args.run).map_err(results_failure)?;
    let manifest = dir.read_manifest().map_err(results_failure)?;
    dir.check_scenario(&manifest).map_err(results_failure)?;
    let file = args.run.join("scenario.toml");
    let scenario = check::load(&file, &[], registries, args.json)?;
    let out = args.out.unwrap_or_else(|| {
        RunDir::default_path(&scenario.name, scenario.seed, Clock::start().started_at())
    });
    let words = ["nashflock".into(), "run".into(), file.into_os_string(), "--out".into()];
    let words = words.into_iter().chain([out.clone().into_os_string()]);
    let line = shell_line(words.map(|word| word.to_string_lossy().into_owned()));
    // Standard error may be closed; the manifest of the new run has the scenario's hash.
    let _ = writeln!(io::stderr(), "{line}");
    let (wants, nobody) = ((false, false), Audience::default());
    ended(&play(&scenario, registries, Some(out), None, wants, nobody)?, args.json)
}

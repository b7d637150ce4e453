//! `nashflock resume`: goes on with a run that was cut.

use super::run::{ended, on_runtime};
use super::{Failure, Outcome, check};
use crate::run::{self, CutRun};
use agents::game::Registries;
use clap::Args;
use std::io::{self, Write as _};
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct ResumeArgs {
    /// Run directory of a run that was killed, interrupted, or ended by a failure
    run: PathBuf,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn resume(args: &ResumeArgs, registries: &Registries) -> Outcome {
    let cut = CutRun::open(&args.run).map_err(|error| {
        if error.is_bad_input() { Failure::bad_input(error) } else { Failure::dependency(error) }
    })?;
    let scenario = check::load(&cut.scenario(), &[], registries, args.json)?;
    // Standard error may be closed; the manifest says it too.
    let _ = writeln!(io::stderr(), "{}", cut.says());
    let end = on_runtime(&scenario, registries, None, None, async |settings, clock| {
        run::resume(&scenario, cut, settings, clock).await
    })?;
    ended(&end, args.json)
}

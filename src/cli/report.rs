//! `nashflock report`: rebuilds `report.html` from the files of a run or a sweep.

use super::{Outcome, print, print_json, results_failure, sweep};
use crate::results::RunDir;
use crate::sweep::{SweepDir, write_report};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct ReportArgs {
    /// Directory of a run or a sweep
    run: PathBuf,
    /// Print one JSON object: `report`
    #[arg(long)]
    json: bool,
}

pub(super) fn report(args: &ReportArgs) -> Outcome {
    if SweepDir::is_at(&args.run) {
        let dir = SweepDir::open(&args.run).map_err(sweep::failure)?;
        write_report(&dir).map_err(sweep::failure)?;
    } else {
        let dir = RunDir::open(&args.run).map_err(results_failure)?;
        dir.write_report().map_err(results_failure)?;
    }
    let path = args.run.join("report.html");
    if args.json {
        return print_json(&json!({"report": path.to_string_lossy()}));
    }
    print(&path.display().to_string())
}

//! `nashflock report`: rebuilds `report.html` from the files of a run directory.

use super::{Outcome, print, print_json, results_failure};
use crate::results::RunDir;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct ReportArgs {
    /// Run directory
    run: PathBuf,
    /// Print one JSON object: `report`
    #[arg(long)]
    json: bool,
}

pub(super) fn report(args: &ReportArgs) -> Outcome {
    let dir = RunDir::open(&args.run).map_err(results_failure)?;
    dir.write_report().map_err(results_failure)?;
    let path = dir.path().join("report.html");
    if args.json {
        return print_json(&json!({"report": path.to_string_lossy()}));
    }
    print(&path.display().to_string())
}

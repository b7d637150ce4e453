//! Prints how long a browser takes to open a report of ten thousand rounds, beside an empty page.
//!
//! `cargo bench --bench report_page`, with Chromium installed.
#![allow(clippy::print_stdout, reason = "the table is the output")]

mod shared;

use nashflock::measure::Clock;
use shared::figures::{median, spread};
use shared::{Failure, runs};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Seconds that a report may take to open.
const LIMIT_S: f64 = 2.0;
const TIMES: usize = 7;

fn main() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("out");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sets = [
        "load.requests=40000",
        "load.rate_per_s=1000000",
        "load.batch_requests_max=4",
        "source.layers=1",
        "nodes.engine=in-process",
    ];
    let status = runs::run(&root.join("scenarios/synthetic-skew.toml"), &out, &sets).status()?;
    // Goals may be missed; the report is written all the same.
    if !out.join("report.html").exists() {
        return Err(format!("the run ended with {status} and no report").into());
    }
    let summary: serde_json::Value = serde_json::from_slice(&fs::read(out.join("summary.json"))?)?;
    let empty = folder.path().join("empty.html");
    fs::write(&empty, "<!DOCTYPE html><title>empty</title>")?;
    println!(
        "| page | bytes | rounds | from start to the picture, s, median of {TIMES} (least to most) |"
    );
    println!("|---|---:|---:|---:|");
    let mut medians = Vec::new();
    for (name, page) in [("empty, the control", empty), ("report.html", out.join("report.html"))] {
        let mut times = Vec::new();
        for _ in 0..TIMES {
            times.push(opened(&page, folder.path())?);
        }
        let rounds = if medians.is_empty() {
            "".to_owned()
        } else {
            summary["convergence"]["rounds"].to_string()
        };
        let bytes = fs::metadata(&page)?.len();
        println!("| {name} | {bytes} | {rounds} | {} |", spread(&times, 2));
        medians.push(median(&times));
    }
    println!(
        "\nThe report takes {:.2} s more than an empty page (limit {LIMIT_S} s).",
        medians[1] - medians[0]
    );
    Ok(())
}

/// Seconds from the browser's start until it has laid out and painted a page.
fn opened(page: &Path, folder: &Path) -> Result<f64, Failure> {
    let clock = Clock::start();
    let status = Command::new("chromium")
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=900,2000"])
        .arg(format!("--user-data-dir={}", folder.join("browser").display()))
        .arg(format!("--screenshot={}", folder.join("page.png").display()))
        .arg(format!("file://{}", page.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("chromium ended with {status}").into());
    }
    Ok(clock.now_ns() as f64 / 1e9)
}

//! The memory that a run of the quickstart holds above the weights that it maps.
//!
//! `cargo bench --bench resident [-- SCENARIO CHECKPOINT]`
//!
//! Reads `/proc`, so it runs on Linux alone. The peak resident size is the kernel's own; the parts of
//! it are sampled every 2 ms.
#![allow(clippy::print_stdout, reason = "the figures are the output")]

mod shared;

use shared::Failure;
use shared::figures::verdict;
use shared::runs::{self, Running};
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

const LIMIT_MB: f64 = 64.0;

/// Runs that are measured.
const REPEATS: usize = 3;

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).filter(|w| !w.starts_with('-')).collect();
    let (scenario, checkpoint) = match words.as_slice() {
        [] => ("scenarios/quickstart.toml", "scenarios/models/books-moe-64e8k"),
        [scenario, checkpoint] => (scenario.as_str(), checkpoint.as_str()),
        _ => return Err("give a scenario and its checkpoint, or neither".into()),
    };
    let mapped_mb = mapped_bytes(Path::new(checkpoint))? as f64 / 1e6;
    println!("{scenario}: maps {mapped_mb:.1} MB of weights; MB are 10⁶ bytes");
    println!("run  peak resident MB  above the weights MB  peak anonymous MB  peak of files MB");
    let mut worst = 0.0_f64;
    for repeat in 1..=REPEATS {
        let peak = measure(scenario)?;
        let [resident, anonymous, files] =
            [peak.resident, peak.anonymous, peak.files].map(|bytes| bytes as f64 / 1e6);
        let above = resident - mapped_mb;
        worst = worst.max(above);
        println!("{repeat:>3}  {resident:>16.1}  {above:>20.1}  {anonymous:>17.1}  {files:>16.1}");
    }
    let verdict = verdict(worst, LIMIT_MB);
    println!("worst {worst:.1} MB, {verdict} the limit of {LIMIT_MB} MB");
    Ok(())
}

/// Bytes; each the largest seen, not all at once.
#[derive(Default)]
struct Peak {
    resident: u64,
    anonymous: u64,
    files: u64,
}

fn measure(scenario: &str) -> Result<Peak, Failure> {
    let out = tempfile::tempdir()?;
    let mut run = Running::start(&mut runs::run::<&str>(Path::new(scenario), out.path(), &[]))?;
    let mut peak = Peak::default();
    let status = loop {
        // A process that has ended has no such figures; its last milliseconds only tidy up.
        for (most, key) in [
            (&mut peak.resident, "VmHWM"),
            (&mut peak.anonymous, "RssAnon"),
            (&mut peak.files, "RssFile"),
        ] {
            *most = (*most).max(run.memory_bytes(key).unwrap_or(0));
        }
        if let Some(status) = run.try_wait()? {
            break status;
        }
        sleep(Duration::from_millis(2));
    };
    if status.success() { Ok(peak) } else { Err(format!("the run ended with {status}").into()) }
}

fn mapped_bytes(checkpoint: &Path) -> Result<u64, Failure> {
    let mut sum = 0;
    for entry in fs::read_dir(checkpoint)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            sum += path.metadata()?.len();
        }
    }
    Ok(sum)
}

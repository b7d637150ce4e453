//! Arrivals as scenarios ask for them, recorded traces among them.

use nashflock::source::trace::read_arrivals;
use std::path::Path;

use crate::binary::{Folder, SYNTHETIC, skipped};

/// Requests a second, and the gaps' coefficient of variation.
fn rate_and_variation(arrivals_ns: &[u64]) -> (f64, f64) {
    let gaps: Vec<f64> = arrivals_ns.windows(2).map(|w| (w[1] - w[0]) as f64 / 1e9).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
    (1.0 / mean, variance.sqrt() / mean)
}

/// Published of the Azure LLM inference traces of 2023: 19 366 requests of conversation at 5.53 a
/// second, 8 819 of code at 2.57.
#[test]
fn recorded_traces_have_the_rates_and_burstiness_that_are_known_of_them() {
    let traces = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/azure-llm-2023");
    if !traces.exists() {
        skipped(&format!("{} is not there", traces.display()));
        return;
    }
    for (file, rows, rate, variation) in
        [("conv.csv", 19_366, 5.53, 1.09), ("code.csv", 8_819, 2.57, 13.15)]
    {
        let arrivals = read_arrivals(&traces.join(file), rows).expect(file);
        let found = rate_and_variation(&arrivals);
        assert!((found.0 - rate).abs() < 0.005 && (found.1 - variation).abs() < 0.005, "{found:?}");
        assert!(read_arrivals(&traces.join(file), rows + 1).is_err(), "{file} has no further rows");
    }
}

#[test]
fn every_arrival_process_serves_all_requests_and_changes_no_route() {
    let folder = Folder::with(SYNTHETIC);
    std::fs::write(folder.path("trace.csv"), trace(24)).expect("a trace is written");
    let mut hashes = Vec::new();
    for sets in [
        "load.arrival=constant",
        "load.arrival=gamma --set load.variation=3",
        "load.arrival=burst --set load.burst_requests=4",
        "load.arrival=trace --set load.trace=trace.csv",
    ] {
        let out = format!("out-{}", hashes.len());
        // One batch a request: then who shares a batch does not depend on the arrivals.
        let line = format!(
            "run scenario.toml --json --out {out} --set load.batch_requests_max=1 --set {sets}"
        );
        let ended = folder.nashflock(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(ended.code, Some(0), "{sets}: {}", ended.stderr);
        let summary = ended.json();
        assert_eq!(summary["outcomes"]["ok"], 24, "{sets}");
        hashes.push(summary["state_hash"].as_str().expect("a hash").to_owned());
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
}

/// A trace of `rows` arrivals in pairs.
fn trace(rows: usize) -> String {
    let line = |row: usize| format!("{},8\n", row / 2);
    format!("time,tokens\n{}", (0..rows).map(line).collect::<String>())
}

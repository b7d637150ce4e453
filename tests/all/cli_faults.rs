//! Runs that lose workers and not results: whatever happens to a node, the state hash is that of the
//! undisturbed run.

use std::time::Duration;

use serde_json::Value;

use crate::binary::{Folder, Running, SYNTHETIC, signal, until};

/// Three seconds of batches, each expert on two of four nodes.
fn replicated() -> Folder {
    let scenario = SYNTHETIC
        .replace("rate_per_s = 2000.0", "rate_per_s = 100.0")
        .replace("requests = 24", "requests = 300");
    Folder::with(&scenario)
}

const REPLICATED: [&str; 4] = ["--nodes", "local:4", "--set", "nodes.replicas=2"];

/// Starts the run, does `to` one of its workers amid it, and gives its summary beside the state hash
/// of the run in this process.
fn disturbed(to: impl Fn(u32)) -> (Value, Value) {
    let folder = replicated();
    let args = [&["run", "scenario.toml", "--json", "--out", "out"][..], &REPLICATED].concat();
    let run = Running::start(folder.command(&args));
    let workers = run.workers(4);
    until("the tables are opened", || folder.path("out/requests.parquet.partial").exists());
    std::thread::sleep(Duration::from_millis(1_000));
    to(workers[1]);
    let ended = run.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let alone = folder.summary("alone", &["--set", "load.rate_per_s=100000"]);
    (ended.json(), alone["state_hash"].clone())
}

#[test]
fn a_killed_worker_changes_no_result_where_its_experts_have_replicas() {
    let (summary, hash) = disturbed(|pid| signal("KILL", pid));
    assert_eq!(summary["state_hash"], hash);
    assert_eq!(summary["status"], "complete");
    assert_eq!(summary["outcomes"]["ok"], 300, "{}", summary["outcomes"]);
    assert_eq!(summary["pairs"]["missing"], 0, "{}", summary["pairs"]);
    let faults = &summary["faults"];
    assert_eq!(faults["lost_nodes"], 1, "{faults}");
    let nodes = summary["nodes"].as_array().expect("a list");
    assert_eq!(nodes.iter().filter(|node| node["alive"] == false).count(), 1, "{nodes:?}");
}

#[test]
fn a_stopped_worker_is_hedged_and_set_aside_and_changes_no_result() {
    let (summary, hash) = disturbed(|pid| {
        signal("STOP", pid);
        std::thread::sleep(Duration::from_millis(1_000));
        signal("CONT", pid);
    });
    assert_eq!(summary["state_hash"], hash);
    assert_eq!(summary["pairs"]["missing"], 0, "{}", summary["pairs"]);
    let faults = &summary["faults"];
    assert_eq!(faults["lost_nodes"], 0, "{faults}");
    assert!(faults["hedges_won"].as_u64() >= Some(1), "{faults}");
    assert!(faults["set_aside"].as_u64() >= Some(1), "{faults}");
    assert!(faults["hedged_share"].as_f64().is_some_and(|share| share <= 0.05), "{faults}");
}

#[test]
fn without_a_fault_there_is_nothing_to_report() {
    let folder = Folder::with(SYNTHETIC);
    let none = ["--set", "nodes.hedge_budget=0"];
    let summary = folder.summary("out", &[&REPLICATED[..], &none].concat());
    let faults = &summary["faults"];
    for key in ["lost_nodes", "set_aside", "rerouted_pairs", "hedges", "hedges_won"] {
        assert_eq!(faults[key], 0, "{key}: {faults}");
    }
    assert_eq!(faults["hedged_share"], 0.0);
    assert_eq!(folder.summary("alone", &[])["faults"], Value::Null);
}

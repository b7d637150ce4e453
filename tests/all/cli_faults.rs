//! Runs that lose workers and not results: whatever happens to a node, the state hash is that of the
//! undisturbed run.

use std::time::Duration;

use nashflock::results::{RequestRow, RunDir};
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
fn disturbed(more: &[&str], to: impl Fn(u32)) -> (Value, Value) {
    let folder = replicated();
    let args = ["run", "scenario.toml", "--json", "--out", "out"];
    let args = [&args[..], &REPLICATED, more].concat();
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
    let (summary, hash) = disturbed(&[], |pid| signal("KILL", pid));
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
    let (summary, hash) = disturbed(&[], |pid| {
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
fn two_choices_keep_off_a_slow_worker_and_change_no_result() {
    let two = ["--set", "nodes.choice=two_choices", "--set", "nodes.hedge_budget=0"];
    let (summary, hash) = disturbed(&two, |pid| {
        for _ in 0..15 {
            signal("STOP", pid);
            std::thread::sleep(Duration::from_millis(90));
            signal("CONT", pid);
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    assert_eq!(summary["state_hash"], hash);
    assert_eq!(summary["pairs"]["missing"], 0, "{}", summary["pairs"]);
    let nodes = summary["nodes"].as_array().expect("a list");
    let pairs = |at: usize| nodes[at]["tokens"].as_u64().expect("a count");
    let others = pairs(0) + pairs(2) + pairs(3);
    // It was slow for half of the run.
    assert!(5 * pairs(1) < 4 * others / 3, "{nodes:?}");
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

#[test]
fn under_overload_admission_sheds_what_would_be_late_and_counts_it() {
    let folder = Folder::with_checkpoint();
    // A request of this model takes more than the half ms between two of them.
    let overload: Vec<&str> = [
        "load.rate_per_s=2000",
        "load.requests=60",
        "load.deadline_ms=20",
        "load.batch_requests_max=1",
    ]
    .into_iter()
    .flat_map(|set| ["--set", set])
    .collect();
    let all = folder.summary("all", &overload);
    assert_eq!(all["outcomes"]["shed"], 0);
    let admission = [&overload[..], &["--set", "load.admission=deadline"]].concat();
    let some = folder.summary("some", &admission);
    let count = |key: &str| some["outcomes"][key].as_u64().expect(key);
    let answered = count("ok") + count("late");
    assert!(count("shed") > 0 && answered > 0, "{}", some["outcomes"]);
    assert_eq!(count("shed") + answered, 60);
    assert_eq!(some["quality"]["tokens"], answered * 16, "losses are of what was answered");
    assert_eq!(some["latency_ns"]["count"], answered);
    let rows: Vec<RequestRow> =
        RunDir::open(&folder.path("some")).and_then(|dir| dir.read_table()).expect("readable");
    let shed: Vec<_> = rows.iter().filter(|row| row.outcome == "shed").collect();
    assert_eq!((rows.len(), shed.len() as u64), (60, count("shed")));
    assert!(shed.iter().all(|row| row.started_ns.is_none() && row.step.is_none()));
    // Under plain top-k the routed loss is that of the same windows: both count the same requests.
    let top_k = [&admission[..], &["--set", "game.router=top_k"]].concat();
    let quality = &folder.summary("top_k", &top_k)["quality"];
    let (served, control) = (quality["loss"].as_f64(), quality["loss_top_k"].as_f64());
    let apart = served.zip(control).map(|(a, b)| (a - b).abs());
    assert!(apart.is_some_and(|apart| apart < 1e-6), "{quality}");
}

//! `nashflock run` and `report`: the same state however it is computed, and a whole run directory.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nashflock::results::{RequestRow, RoundRow, RunDir};
use serde_json::Value;

use crate::binary::{Ended, Folder, SYNTHETIC};

/// Of a run that decodes answers, beside `FILES`.
const FILES_OF_DECODING: [&str; 2] = ["hist/tpot.hlog", "hist/ttft.hlog"];

const FILES: [&str; 10] = [
    "hist/generator-lag.hlog",
    "hist/requests.hlog",
    "layers.json",
    "manifest.json",
    "report.html",
    "requests.parquet",
    "rounds.parquet",
    "scenario.toml",
    "summary.json",
    "timeline.json",
];

const SUMMARY_KEYS: &str = "
    schema_version scenario seed state_hash status
    convergence.router convergence.rounds convergence.iterations convergence.epsilon_nash
    convergence.relative_gap convergence.max_over_mean convergence.score_loss convergence.converged
    convergence.max_over_mean_top_k
    throughput.tokens_per_s throughput.token_experts_per_s throughput.bytes_per_s
    latency_ns.count latency_ns.p50 latency_ns.p90 latency_ns.p99 latency_ns.p999 latency_ns.max
    generator_lag_ns.count generator_lag_ns.p50 generator_lag_ns.p99 generator_lag_ns.max
    generator_lag_ns.p99_limit generator_lag_ns.lagged
    theory.queue.batches theory.queue.utilisation theory.queue.wait_mean_ns
    theory.queue.response_p99_ns theory.queue.condition theory.hottest_expert.shares
    theory.hottest_expert.tokens_per_s_cap
    outcomes.ok outcomes.late outcomes.timeout outcomes.shed outcomes.error outcomes.partial
    memory.expert_bytes memory.expert_bytes_f32 memory.bits_per_weight memory.saving
    quality.loss quality.loss_f32 quality.loss_uniform quality.tokens
    nodes.0.experts nodes.0.bytes nodes.0.tokens nodes.0.busy_share";

/// Ways to compute the same state.
const VARIANTS: [&[&str]; 10] = [
    &[],
    &[],
    &["--set", "compute.threads=1"],
    &["--set", "compute.threads=3"],
    &["--set", "nodes.count=3", "--set", "nodes.replicas=2"],
    &["--nodes", "local:1"],
    &["--nodes", "local:3"],
    &["--nodes", "local:2", "--set", "nodes.threads=2"],
    &["--nodes", "local:3", "--set", "nodes.replicas=2"],
    &["--nodes", "local:2", "--set", "compute.threads=1", "--seed", "7"],
];

#[test]
fn threads_nodes_replicas_and_transport_do_not_change_the_state_of_a_synthetic_run() {
    let folder = Folder::with(SYNTHETIC);
    let hash = same_hash_in_all(&folder, &VARIANTS);
    for (out, seed) in [("seed 8", "8"), ("seed 0", "0")] {
        assert_ne!(state_hash(&folder.summary(out, &["--seed", seed])), hash, "seed {seed}");
    }
}

#[test]
fn threads_nodes_and_transport_do_not_change_the_state_of_a_checkpoint_run() {
    same_hash_in_all(&Folder::with_checkpoint(), &[VARIANTS[2], VARIANTS[8]]);
}

fn same_hash_in_all(folder: &Folder, variants: &[&[&str]]) -> String {
    let hashes: Vec<String> = variants
        .iter()
        .enumerate()
        .map(|(at, args)| state_hash(&folder.summary(&format!("out {at}"), args)))
        .collect();
    for (hash, args) in hashes.iter().zip(variants) {
        assert_eq!(hash, &hashes[0], "{args:?} against {:?}", variants[0]);
    }
    hashes[0].clone()
}

#[test]
fn a_checkpoint_run_leaves_every_file_and_every_key() {
    let folder = Folder::with_checkpoint();
    let printed = folder.summary("out", &["--nodes", "local:2"]);
    let written = check_run_dir(&folder.path("out"), 6, 6);
    assert_eq!(printed, written, "--json prints what summary.json holds");
    for key in SUMMARY_KEYS.split_whitespace() {
        let pointer = format!("/{}", key.replace('.', "/"));
        let value = written.pointer(&pointer).unwrap_or_else(|| panic!("{key} is missing"));
        assert!(!value.is_null(), "{key} is not measured: {}", written["null_reasons"][key]);
    }
    let loss = |key: &str| written["quality"][key].as_f64().expect(key);
    assert!((loss("loss_uniform") - 1000f64.ln()).abs() < 1e-9, "ln V");
    for key in ["loss", "loss_f32", "loss_top_k", "loss_f32_routed"] {
        assert!((1.0..5.0).contains(&loss(key)), "{key}: {}", loss(key));
    }
    assert_eq!(written["quality"]["tokens"], 6 * 16);
    let nodes = written["nodes"].as_array().expect("a list");
    let sum = |key: &str| nodes.iter().map(|node| node[key].as_u64().expect(key)).sum::<u64>();
    assert_eq!(sum("tokens"), written["pairs"]["combined"], "each pair is computed on one node");
    assert_eq!(sum("experts"), 2 * 64, "each expert is on one node");
    let expert_bytes = written["memory"]["expert_bytes"].as_u64().expect("bytes");
    assert_eq!(sum("bytes"), expert_bytes + 2 * 64 * 28, "a shard is an expert with its header");
    assert_eq!(written["memory"]["expert_bytes_f32"].as_u64(), Some(4 * sum_of_weights(&written)));
    assert!(written["memory"]["bits_per_weight"].as_f64().expect("measured") <= 4.5);
}

/// Weights by the sizes that the summary states.
fn sum_of_weights(summary: &Value) -> u64 {
    let memory = &summary["memory"];
    let bits = memory["expert_bytes"].as_f64().expect("bytes") * 8.0;
    let weights = bits / memory["bits_per_weight"].as_f64().expect("measured");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
    let weights = weights.round() as u64;
    weights
}

#[test]
fn a_run_directory_can_be_reported_again_run_again_and_not_overwritten() {
    let folder = Folder::with(SYNTHETIC);
    let first = folder.summary("out", &["--nodes", "local:2", "--set", "nodes.replicas=2"]);
    check_run_dir(&folder.path("out"), 24, 24);

    let report = folder.path("out/report.html");
    let html = fs::read(&report).expect("readable");
    fs::remove_file(&report).expect("removable");
    let again = folder.nashflock(&["report", "out", "--json"]);
    assert_eq!((again.code, &again.json()["report"]), (Some(0), &Value::from("out/report.html")));
    assert!(fs::read(&report).expect("readable") == html, "the report is rebuilt byte by byte");

    fs::copy(folder.path("out/scenario.toml"), folder.path("scenario.toml")).expect("copied");
    let second = folder.summary("again", &[]);
    assert_eq!(state_hash(&second), state_hash(&first), "the resolved scenario is the scenario");

    let before = files_under(&folder.path("out"));
    let refused = folder.nashflock(&["run", "scenario.toml", "--out", "out"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("out exists and is not empty"), "{}", refused.stderr);
    assert!(files_under(&folder.path("out")) == before, "nothing already written is lost");
}

#[test]
fn without_out_results_go_under_runs_and_the_table_says_where() {
    let folder = Folder::with(SYNTHETIC);
    let ended = folder.nashflock(&["run", "scenario.toml"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stderr, "", "a good run says nothing on standard error");
    let last = ended.stdout.lines().last().expect("a table");
    let out = last.strip_prefix("results in ").expect(last);
    assert!(out.starts_with("runs/small-7-"), "{out}");
    check_run_dir(&folder.path(out), 24, 24);
}

#[test]
fn a_path_that_is_not_utf8_is_a_path() {
    let folder = Folder::with(SYNTHETIC);
    let name = || OsStr::from_bytes(b"out \xff");
    for args in [&["run", "scenario.toml", "--out"][..], &["report", "--json"]] {
        let ended: Ended =
            folder.command(args).arg(name()).output().expect("the binary runs").into();
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_missed_goal_ends_with_3_and_a_whole_run_directory() {
    let folder = Folder::with(&format!("{SYNTHETIC}[goals]\nmax_over_mean_max = 1.0\n"));
    // Plain top-k on skewed scores cannot be even.
    let args = ["run", "scenario.toml", "--out", "out", "--json", "--set", "game.router=top_k"];
    let ended = folder.nashflock(&args);
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(3), "missed goals: max_over_mean_worst\n")
    );
    let summary = check_run_dir(&folder.path("out"), 24, 24);
    assert_eq!(ended.json(), summary);
    assert_eq!(summary["status"], "complete");
    let goal = &summary["goals"][0];
    assert_eq!((&goal["name"], &goal["met"]), (&"max_over_mean_worst".into(), &false.into()));
    assert!(goal["measured"].as_f64() > goal["limit"].as_f64(), "{goal}");
}

/// Checks what every ended run leaves, and gives its summary.
pub(crate) fn check_run_dir(path: &Path, requests_min: u64, requests_max: u64) -> Value {
    let names = files_under(path).into_iter().map(|(name, _)| name);
    let (to_go_on, names): (Vec<String>, Vec<String>) =
        names.partition(|name| name.starts_with("checkpoint/"));
    let mut expected = FILES.to_vec();
    if names.iter().any(|name| name == FILES_OF_DECODING[0]) {
        expected.extend(FILES_OF_DECODING);
        expected.sort_unstable();
    }
    assert_eq!(names, expected);
    let dir = RunDir::open(path).expect("a run directory");
    let text = fs::read_to_string(path.join("summary.json")).expect("readable");
    let value: Value = serde_json::from_str(&text).expect("summary.json is JSON");
    let summary = dir.read_summary().expect("readable");
    let manifest = dir.read_manifest().expect("readable");
    let requests: Vec<RequestRow> = dir.read_table().expect("requests.parquet is readable");
    let rounds: Vec<RoundRow> = dir.read_table().expect("rounds.parquet is readable");
    let latency = dir.read_latency().expect("requests.hlog is readable");
    let html = fs::read_to_string(path.join("report.html")).expect("readable");
    assert!(html.starts_with("<!DOCTYPE html>"), "{}", &html[..html.len().min(80)]);

    assert_eq!(summary.outcomes.total(), requests.len() as u64);
    let range = requests_min..=requests_max;
    assert!(range.contains(&summary.outcomes.total()), "{:?}", summary.outcomes);
    for (outcome, count) in summary.outcomes.rows() {
        let rows = requests.iter().filter(|row| row.outcome == outcome).count();
        assert_eq!(rows as u64, count, "{outcome}");
    }
    assert_eq!(summary.latency_ns.count, summary.outcomes.ok + summary.outcomes.late);
    assert_eq!(
        latency.quantiles(),
        summary.latency_ns,
        "the histogram holds the summary's figures"
    );
    assert_eq!(summary.convergence.rounds, rounds.len() as u64);
    let pairs = summary.pairs.expect("pairs are counted");
    assert_eq!(pairs.dispatched, pairs.combined + pairs.missing + pairs.shed);
    assert_eq!(summary.state_hash.len(), 64, "{}", summary.state_hash);
    assert!(summary.state_hash.bytes().all(|b| b.is_ascii_hexdigit()), "{}", summary.state_hash);
    assert_eq!(manifest.seed, summary.seed);
    assert!(manifest.exit_code.is_some() && manifest.ended_at.is_some());
    let is_complete = matches!(manifest.exit_code, Some(0 | 3));
    assert_eq!(to_go_on.is_empty(), is_complete, "{to_go_on:?}");
    value
}

/// Relative paths of the files under a directory, ascending.
pub(crate) fn names_under(path: &Path) -> Vec<String> {
    files_under(path).into_iter().map(|(name, _)| name).collect()
}

/// Every file under a directory by its relative path, with its bytes, ascending.
fn files_under(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable") {
            let entry = entry.expect("readable").path();
            if entry.is_dir() {
                folders.push(entry);
            } else {
                let name = entry.strip_prefix(path).expect("below it").to_string_lossy();
                found.push((name.into_owned(), fs::read(&entry).expect("readable")));
            }
        }
    }
    found.sort();
    found
}

fn state_hash(summary: &Value) -> String {
    summary["state_hash"].as_str().expect("a string").to_owned()
}

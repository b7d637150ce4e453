//! Experts that move between nodes in whole runs: the same bits wherever they are, and what the summary says.

use serde_json::Value;

use crate::binary::{Folder, Running, SYNTHETIC, signal, until};

/// Every policy has something to do: plain top-k on skewed affinities, experts dealt in turn.
const MOVING: [&str; 5] = [
    "game.router=top_k",
    "load.requests=96",
    "nodes.count=3",
    "nodes.migration.every_steps=2",
    "nodes.migration.load_step=0.5",
];

fn run(folder: &Folder, out: &str, sets: &[&str], more: &[&str]) -> Value {
    let sets = MOVING.iter().chain(sets).flat_map(|set| ["--set", set]);
    folder.summary(out, &sets.chain(more.iter().copied()).collect::<Vec<_>>())
}

fn number(figures: &Value, key: &str) -> f64 {
    figures[key].as_f64().unwrap_or_else(|| panic!("{key}: {figures}"))
}

#[test]
fn no_bit_depends_on_where_experts_go_by_which_rule_or_on_which_engine() {
    let folder = Folder::with(SYNTHETIC);
    let still = run(&folder, "still", &[], &[]);
    assert!(still.get("migration").is_none(), "experts stay unless asked: {still}");
    for policy in ["flock", "greedy", "eplb"] {
        let set = format!("nodes.migration.policy={policy}");
        let here = run(&folder, policy, &[&set], &[]);
        let threads = ["compute.threads=1", &set];
        let one = run(&folder, &format!("{policy} one"), &threads, &[]);
        let there = run(&folder, &format!("{policy} there"), &[&set], &["--nodes", "local:3"]);
        for summary in [&here, &one, &there] {
            assert_eq!(summary["state_hash"], still["state_hash"], "{policy}");
            assert_eq!(summary["pairs"]["missing"], 0, "{policy}");
            let (moved, of) = (&summary["migration"], &here["migration"]);
            for key in ["copies", "bytes_moved", "max_over_mean", "nodes_per_token", "incomplete"] {
                assert_eq!(moved[key], of[key], "{policy}: {key}");
            }
        }
        let moved = &there["migration"];
        assert!(number(moved, "copies") > 0.0, "{policy}: {moved}");
        assert_eq!(moved["bytes_sent"], moved["bytes_moved"], "{policy}: {moved}");
        assert_eq!(here["migration"]["bytes_sent"], 0, "{policy}: one process sends nothing");
        assert_eq!(number(moved, "decisions").to_bits(), 11.0_f64.to_bits(), "{policy}: {moved}");
        assert_eq!((&moved["incomplete"], &moved["refused"]), (&0.into(), &0.into()), "{moved}");
        // One copy of 12 experts in each of 2 layers, wherever they are.
        let held = |summary: &Value| -> f64 {
            (0..3).map(|node| number(&summary["nodes"][node], "experts")).sum()
        };
        assert_eq!((held(&there), held(&here)), (24.0, 24.0), "{policy}");
        check_controls(moved, &there);
    }
}

/// What holds of any policy by definition.
fn check_controls(moved: &Value, summary: &Value) {
    let served = &summary["placement"]["served"];
    assert_eq!(moved["max_over_mean"], served["max_over_mean"], "{moved}");
    for key in ["max_over_mean", "max_over_mean_frozen", "max_over_mean_eplb"] {
        assert!(number(moved, key) >= number(served, "lower_bound") - 1e-12, "{key}: {moved}");
    }
    for key in ["nodes_per_token", "nodes_per_token_frozen"] {
        assert!((1.0..=3.0).contains(&number(moved, key)), "{key}: {moved}");
    }
    if moved["policy"] == "eplb" {
        assert_eq!(moved["max_over_mean"], moved["max_over_mean_eplb"], "the control is itself");
        assert_eq!(moved["bytes_moved"], moved["bytes_eplb"], "{moved}");
    }
}

#[test]
fn a_limit_on_bytes_is_kept_at_every_decision() {
    let folder = Folder::with(SYNTHETIC);
    for policy in ["flock", "greedy", "eplb"] {
        let set = format!("nodes.migration.policy={policy}");
        let barred =
            run(&folder, &format!("{policy} barred"), &[&set, "nodes.migration.bytes_max=0"], &[]);
        assert_eq!(barred["migration"]["copies"], 0, "{policy}");
        let moved = &barred["migration"];
        assert_eq!(moved["max_over_mean"], moved["max_over_mean_frozen"], "{policy}: the control");
        assert_eq!(moved["nodes_per_token"], moved["nodes_per_token_frozen"], "{policy}");
        assert!(number(moved, "bytes_eplb") > 0.0, "{policy}: whole plans are the control");
        let some =
            run(&folder, &format!("{policy} some"), &[&set, "nodes.migration.bytes_max=6000"], &[]);
        let moved = &some["migration"];
        let most = 6000.0 * number(moved, "decisions");
        assert!(number(moved, "bytes_moved") <= most, "{policy}: {moved}");
    }
}

#[test]
fn a_worker_that_dies_while_experts_move_changes_no_result() {
    const SLOWLY: [&str; 6] = [
        "load.rate_per_s=100",
        "load.requests=300",
        "nodes.migration.policy=flock",
        "source.skew=3",
        "nodes.count=5",
        "nodes.replicas=2",
    ];
    let folder = Folder::with(SYNTHETIC);
    let sets = MOVING.iter().chain(&SLOWLY).flat_map(|set| ["--set", set]);
    let args = ["run", "scenario.toml", "--json", "--out", "out"].into_iter().chain(sets);
    let args: Vec<&str> = args.chain(["--nodes", "local:5"]).collect();
    let running = Running::start(folder.command(&args));
    let workers = running.workers(5);
    until("the tables are opened", || folder.path("out/requests.parquet.partial").exists());
    std::thread::sleep(std::time::Duration::from_millis(1_000));
    // What is on its way to it now hangs; what comes after it is lost finds it gone.
    signal("STOP", workers[1]);
    std::thread::sleep(std::time::Duration::from_millis(150));
    signal("KILL", workers[1]);
    let ended = running.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let (summary, alone) =
        (ended.json(), run(&folder, "alone", &["load.requests=300", "source.skew=3"], &[]));
    assert_eq!(summary["state_hash"], alone["state_hash"]);
    assert_eq!(summary["pairs"]["missing"], 0, "{}", summary["pairs"]);
    assert_eq!(summary["faults"]["lost_nodes"], 1, "{}", summary["faults"]);
    assert!(number(&summary["migration"], "copies") > 0.0, "{}", summary["migration"]);
}

#[test]
fn migration_that_cannot_be_is_refused_with_place_and_remedy() {
    let folder = Folder::with(SYNTHETIC);
    let refused = |sets: &[&str], says: &str| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let args: Vec<&str> = ["check", "scenario.toml"].into_iter().chain(sets).collect();
        let ended = folder.nashflock(&args);
        assert_eq!(ended.code, Some(2), "{}", ended.stdout);
        assert!(ended.stderr.contains(says), "{says}: {}", ended.stderr);
    };
    let flock = "nodes.migration.policy=flock";
    refused(&["nodes.migration.policy=flok", "nodes.count=2"], "did you mean \"flock\"?");
    refused(&[flock], "`nodes.count` is 1");
    refused(&[flock, "nodes.count=2", "nodes.combine=at_worker"], "write combine = \"exact\"");
    let widths = "precision.reallocate.every_steps=2";
    refused(&[flock, "nodes.count=2", widths], "or reallocate.every_steps = 0");
    let eplb = "nodes.migration.policy=eplb";
    refused(&[eplb, "nodes.count=5"], "do not divide over 5 nodes");
    refused(&[eplb, "nodes.count=3", "nodes.replicas=2"], "write policy = \"flock\"");
    refused(&[flock, "nodes.count=3", "nodes.engine=virtual"], "on virtual nodes experts stay");
    let capacity = ["capacity", "scenario.toml", "--goal-p99-ms", "100", "--set", flock];
    let ended = folder.nashflock(&[&capacity[..], &["--set", "nodes.count=2"]].concat());
    assert_eq!(ended.code, Some(2), "{}", ended.stdout);
    assert!(ended.stderr.contains("nodes.migration.policy=none"), "{}", ended.stderr);
}

#[test]
fn answers_are_decoded_on_experts_that_move() {
    let folder = Folder::with_checkpoint();
    let sets = [
        "nodes.count=2",
        "nodes.migration.policy=greedy",
        "nodes.migration.every_steps=2",
        "game.router=top_k",
        "load.generation.lengths=fixed",
        "load.generation.context_max=24",
        "load.generation.prompt_tokens=8",
        "load.generation.generated_tokens=6",
    ];
    let with = |out: &str, sets: &[&str], more: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        folder.summary(out, &sets.chain(more.iter().copied()).collect::<Vec<_>>())
    };
    let still = with("still", &[&sets[..1], &sets[3..]].concat(), &[]);
    let moving = with("moving", &sets, &["--nodes", "local:2"]);
    assert_eq!(moving["state_hash"], still["state_hash"]);
    assert!(number(&moving["migration"], "decisions") > 0.0, "{moving}");
}

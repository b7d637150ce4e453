//! Runs on virtual nodes: the game is the same as in process, and time is that of the nodes.

use std::path::Path;

use nashflock::results::RunDir;
use nashflock::results::compare::game_differences;
use serde_json::Value;

use crate::binary::{Folder, Running, SYNTHETIC, signal, skipped, until};

/// A folder from which `scenarios/` can be reached.
fn shipped() -> Folder {
    let folder = Folder::with("");
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    std::os::unix::fs::symlink(scenarios, folder.path("scenarios")).expect("a link is made");
    folder
}

/// Of the shipped scenarios those in which no clock enters the game. The others take minutes to play twice.
#[test]
fn shipped_scenarios_have_the_state_in_virtual_time_that_they_have_in_process() {
    const QUICK: [&str; 3] = ["synthetic-skew", "price-of-anarchy", "staleness"];
    const SLOW: [&str; 6] =
        ["router-race", "quickstart", "top-k-control", "murmuration", "decode", "placement"];
    let slow: &[&str] = match std::env::var_os("RUN_SLOW") {
        Some(_) => &SLOW,
        None => {
            skipped("RUN_SLOW is not set; six more scenarios take minutes");
            &[]
        }
    };
    let folder = shipped();
    for name in QUICK.iter().chain(slow) {
        let file = format!("scenarios/{name}.toml");
        let args = ["run", &file, "--json", "--nodes", "virtual:4", "--out", name];
        let ended = folder.nashflock(&args);
        assert!(matches!(ended.code, Some(0 | 3)), "{name}: {}", ended.stderr);
        assert_eq!(ended.json()["virtual_time"]["nodes"], 4, "{name}");
        let verified = folder.nashflock(&["verify", name]);
        assert_eq!(verified.code, Some(0), "{name}: {}{}", verified.stdout, verified.stderr);
    }
}

#[test]
fn a_run_of_blocks_is_verified_and_one_that_came_to_something_else_is_told() {
    let folder = shipped();
    let run = ["run", "scenarios/front-ends.toml", "--set", "load.requests=2000", "--out", "out"];
    assert_eq!(folder.nashflock(&run).code, Some(0));
    let verified = folder.nashflock(&["verify", "out"]);
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
    let replayed = folder.nashflock(&["replay", "out"]);
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);

    let run = ["run", "scenarios/front-ends.toml", "--set", "load.requests=2000", "--seed", "9"];
    assert_eq!(folder.nashflock(&[&run[..], &["--out", "other"]].concat()).code, Some(0));
    let dir = |name: &str| RunDir::open(&folder.path(name)).expect("a run directory");
    let found = game_differences(&dir("out"), &dir("other")).expect("both are whole");
    let keys: Vec<&str> = found.iter().map(|of| of.key.as_str()).collect();
    assert!(keys.contains(&"virtual_time.blocks.trace_hash"), "{keys:?}");
    assert!(keys.iter().all(|key| !key.contains("machine")), "{keys:?}");
}

#[test]
fn a_run_of_blocks_that_was_killed_starts_over_and_comes_to_the_same() {
    let folder = shipped();
    let sets = ["--set", "load.requests=400000", "--set", "compute.threads=1"];
    let args =
        [&["run", "scenarios/front-ends.toml", "--json", "--out", "out"], &sets[..]].concat();
    let run = Running::start(folder.command(&args));
    until("it is under way", || folder.path("out/manifest.json").exists());
    signal("KILL", run.pid());
    assert_eq!(run.end().code, None, "a signal ended it");
    let resumed = folder.nashflock(&["resume", "out", "--json"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    assert!(resumed.stderr.contains("starts over"), "{}", resumed.stderr);
    let resumed = resumed.json();
    assert_eq!(resumed["resumed"]["count"], 1);
    let verified = folder.nashflock(&["verify", "out"]);
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
}

#[test]
fn who_keeps_to_its_own_rack_does_not_wait_at_uplinks_and_all_that_leaves_a_rack_enters_one() {
    let folder = shipped();
    let run = |out: &str, sets: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let few = ["--set", "load.requests=20000"];
        let args = ["run", "scenarios/rack-uplinks.toml", "--json", "--out", out];
        let ended = folder.nashflock(&[&args[..], &few, &sets].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let page = std::fs::read_to_string(folder.path(out).join("report.html")).expect("a page");
        (ended.json(), page)
    };
    let (anywhere, page) = run("anywhere", &[]);
    assert!(page.contains("id=\"uplinks\"") && page.contains("out of a rack"));
    let own = ["virtual.blocks.own_rack=true", "virtual.blocks.racks_max=1"];
    let (own, _) = run("own", &own);
    let (shared, page) = run("shared", &["virtual.rack_gbit_per_s=0"]);
    assert!(!page.contains("id=\"uplinks\"") && shared["virtual_time"].get("uplinks").is_none());
    let links = |of: &Value, at: usize, key: &str| {
        of["virtual_time"]["uplinks"][at][key].as_f64().unwrap_or_else(|| panic!("{key}: {of}"))
    };
    for of in [&anywhere, &own] {
        for key in ["messages", "bytes"] {
            assert_eq!(links(of, 0, key).to_bits(), links(of, 1, key).to_bits(), "{key}");
        }
        let bytes: u64 = of["virtual_time"]["uplinks"][0]["stretches"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|part| part["bytes"].as_u64().expect("bytes"))
            .sum();
        assert_eq!(of["virtual_time"]["uplinks"][0]["bytes"], bytes);
    }
    let p99 = |of: &Value| of["latency_ns"]["p99"].as_u64().expect("requests ended");
    assert!(links(&anywhere, 0, "wait_mean_ns") > 0.0 && links(&anywhere, 0, "bytes") > 0.0);
    assert_eq!(links(&own, 0, "messages").to_bits(), 0.0_f64.to_bits());
    assert!(p99(&anywhere) > p99(&own) && p99(&anywhere) > p99(&shared));
    let verified = folder.nashflock(&["verify", "anywhere"]);
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
}

#[test]
fn experts_that_do_not_fit_in_the_memory_of_nodes_are_refused_and_what_fits_is_told() {
    let folder = five_seconds();
    let check = |sets: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let args = ["run", "scenario.toml", "--json", "--out", "out"];
        folder.nashflock(&[&args[..], &VIRTUAL, &["--set", "load.requests=20"], &sets].concat())
    };
    let held = check(&[]).json();
    let memory = &held["virtual_time"]["memory"];
    assert!(memory["memory_bytes"].is_null(), "{memory}");
    let of_nodes: Vec<u64> = held["nodes"]
        .as_array()
        .expect("six nodes")
        .iter()
        .map(|node| node["bytes"].as_u64().expect("bytes"))
        .collect();
    let most = of_nodes.iter().copied().max().expect("six nodes");
    // Nodes count what they were brought, placement what they shall hold.
    assert_eq!(memory["resident_bytes_max"], most);
    assert_eq!(memory["resident_bytes"], of_nodes.iter().sum::<u64>());
    std::fs::remove_dir_all(folder.path("out")).expect("the run is over");
    let enough = check(&[&format!("virtual.memory_bytes={most}")]);
    assert_eq!(enough.json()["virtual_time"]["memory"]["memory_bytes"], most);
    assert_eq!(enough.json()["state_hash"], held["state_hash"]);
    std::fs::remove_dir_all(folder.path("out")).expect("the run is over");
    let small = check(&[&format!("virtual.memory_bytes={}", most - 1)]);
    assert_eq!(small.code, Some(2), "{}", small.stderr);
    let over = of_nodes.iter().filter(|bytes| **bytes == most).count();
    let says = format!("virtual.memory_bytes: {over} of 6 nodes would hold more than");
    assert!(small.stderr.contains(&says), "{says}: {}", small.stderr);
    assert!(!folder.path("out").exists(), "nothing was started");
}

#[test]
fn nodes_of_blocks_hold_what_their_slots_and_memory_let_them() {
    let folder = shipped();
    let run = |memory_bytes: u64| {
        let set = format!("virtual.memory_bytes={memory_bytes}");
        let few = ["--set", "load.requests=200", "--set", &set, "--json", "--out", "out"];
        folder.nashflock(&[&["run", "scenarios/rack-uplinks.toml"], &few[..]].concat())
    };
    // Three matrices of 4096 by 1024 at 4 bits; four experts a node.
    let bytes = 4 * 3 * 4096 * 1024 / 2;
    let fits = run(bytes);
    assert_eq!(fits.code, Some(0), "{}", fits.stderr);
    let memory = fits.json()["virtual_time"]["memory"].clone();
    assert_eq!(
        (&memory["resident_bytes_max"], &memory["memory_bytes"]),
        (&bytes.into(), &bytes.into())
    );
    assert_eq!(memory["resident_bytes"], bytes * 1024);
    std::fs::remove_dir_all(folder.path("out")).expect("the run is over");
    let small = run(bytes - 1);
    assert_eq!(small.code, Some(2), "{}", small.stderr);
    assert!(small.stderr.contains("1024 of 1024 nodes would hold more than"), "{}", small.stderr);
    assert!(small.stderr.contains("and 1008 more"), "{}", small.stderr);
}

#[test]
fn hot_experts_that_are_narrow_are_quick_and_each_width_is_told() {
    let folder = shipped();
    let run = |out: &str, to: &str| {
        let sets = [
            "virtual.blocks.widths=[{bits=8,share=1},{bits=2.5,share=3}]".to_owned(),
            format!("virtual.blocks.widths_to={to}"),
            // Weights are what takes time.
            "virtual.weight_mib_us=8".to_owned(),
            "load.rate_per_s=1000000".to_owned(),
            "load.requests=20000".to_owned(),
        ];
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let args = ["run", "scenarios/rack-uplinks.toml", "--json", "--out", out];
        let ended = folder.nashflock(&[&args[..], &sets].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.json()
    };
    let (popular, rare) = (run("popular", "popular"), run("rare", "rare"));
    for of in [&popular, &rare] {
        let widths = of["virtual_time"]["blocks"]["widths"].as_array().expect("two widths");
        let figure = |at: usize, key: &str| widths[at][key].as_f64().expect("a figure");
        assert_eq!(widths.len(), 2);
        assert_eq!(
            [figure(0, "bits"), figure(1, "bits")].map(f64::to_bits),
            [2.5_f64, 8.0].map(f64::to_bits)
        );
        assert_eq!([&widths[0]["experts"], &widths[1]["experts"]], [&Value::from(192), &64.into()]);
        assert!((figure(0, "popularity") + figure(1, "popularity") - 1.0).abs() < 1e-9);
        let bytes = |at| figure(at, "copies") * 3.0 * 4096.0 * 1024.0 * figure(at, "bits") / 8.0;
        assert_eq!(figure(0, "resident_bytes").to_bits(), bytes(0).to_bits());
        let all = bytes(0) + bytes(1);
        let resident = of["virtual_time"]["memory"]["resident_bytes"].as_f64().expect("bytes");
        assert_eq!(resident.to_bits(), all.to_bits());
        assert!(figure(1, "service_ns") > 2.0 * figure(0, "service_ns"), "{of}");
    }
    let mean = |of: &Value| of["latency_ns"]["p50"].as_u64().expect("requests ended");
    assert!(mean(&rare) < mean(&popular), "{} {}", mean(&rare), mean(&popular));
    assert_ne!(rare["state_hash"], popular["state_hash"]);
    let widths = "virtual.blocks.widths=[{bits=2.51,share=1}]";
    let refused = folder.nashflock(&["check", "scenarios/rack-uplinks.toml", "--set", widths]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("is 2.51, not a multiple of 1/16"), "{}", refused.stderr);
}

#[test]
fn one_coordinator_asks_other_racks_through_uplinks_and_its_own_port_is_as_narrow() {
    let folder = five_seconds();
    let with = |out: &str, gbit_per_s: &str| {
        let set = format!("virtual.rack_gbit_per_s={gbit_per_s}");
        let port = "virtual.gbit_per_s=0.01";
        folder.summary(out, &[&VIRTUAL[..], &["--set", port, "--set", &set]].concat())
    };
    let (none, wide, narrow) = (with("none", "0"), with("wide", "1000"), with("narrow", "0.01"));
    for of in [&wide, &narrow] {
        assert_eq!(of["state_hash"], none["state_hash"]);
        let uplinks = of["virtual_time"]["uplinks"].as_array().expect("two directions");
        assert_eq!(uplinks.len(), 2);
        assert!(uplinks[0]["messages"].as_u64() > Some(0), "{of}");
        assert_eq!(uplinks[0]["bytes"], uplinks[1]["bytes"]);
        assert_eq!(uplinks[0]["links"], 3);
    }
    let max = |of: &Value| of["latency_ns"]["max"].as_u64().expect("requests ended");
    assert_eq!(max(&wide), max(&none), "a link that nothing waits for takes no time");
    // Answers that wait for a link would have waited for the coordinator's port.
    assert_eq!(max(&narrow), max(&none));
    let wait = |of: &Value| of["virtual_time"]["uplinks"][0]["wait_mean_ns"].as_f64();
    assert!(wait(&narrow) > wait(&wide), "{:?} {:?}", wait(&narrow), wait(&wide));
}

/// Five virtual seconds; each expert on two of six nodes, which stand in racks of two.
const VIRTUAL: [&str; 10] = [
    "--nodes",
    "virtual:6",
    "--set",
    "nodes.replicas=2",
    "--set",
    "virtual.topology=racks",
    "--set",
    "virtual.rack_nodes=2",
    "--set",
    "virtual.service=exponential",
];

fn five_seconds() -> Folder {
    let scenario = SYNTHETIC
        .replace("rate_per_s = 2000.0", "rate_per_s = 100.0")
        .replace("requests = 24", "requests = 500");
    Folder::with(&scenario)
}

fn run(folder: &Folder, out: &str, faults: &str) -> Value {
    let faults = format!("virtual.faults={faults}");
    folder.summary(out, &[&VIRTUAL[..], &["--set", &faults]].concat())
}

fn count(summary: &Value, key: &str) -> u64 {
    summary["faults"][key].as_u64().unwrap_or_else(|| panic!("{key}: {summary}"))
}

#[test]
fn faults_in_virtual_time_cost_time_and_change_no_result() {
    let folder = five_seconds();
    let alone = folder.summary("alone", &["--set", "load.rate_per_s=100000"]);
    let quiet = run(&folder, "quiet", "[]");
    // A node is lost for a second, one is slow from the start, and one loses messages.
    let faults = r#"[{kind="crash",node=2,at_ms=1000,for_ms=1000},
        {kind="slow",node=0,at_ms=0,for_ms=500,factor=100},
        {kind="flaky",node=5,at_ms=2500,for_ms=500,lost=0.5}]"#
        .replace('\n', "");
    let (faulty, again) = (run(&folder, "faulty", &faults), run(&folder, "again", &faults));
    for summary in [&quiet, &faulty] {
        assert_eq!(summary["state_hash"], alone["state_hash"]);
        assert_eq!(summary["pairs"]["dispatched"], summary["pairs"]["combined"]);
    }
    assert_eq!((count(&quiet, "lost_nodes"), count(&quiet, "rerouted_pairs")), (0, 0));
    assert_eq!(count(&faulty, "lost_nodes"), 1, "{faulty}");
    assert!(count(&faulty, "rerouted_pairs") > 0 && count(&faulty, "hedges_won") > 0, "{faulty}");
    let max = |summary: &Value| summary["latency_ns"]["max"].as_u64().expect("requests ended");
    assert!(max(&faulty) > max(&quiet), "{} {}", max(&faulty), max(&quiet));
    for key in ["latency_ns", "throughput", "faults", "nodes", "outcomes", "virtual_time"] {
        assert_eq!(faulty[key], again[key], "no clock of the machine enters {key}");
    }
    let span_ns = faulty["virtual_time"]["span_ns"].as_u64().expect("virtual");
    assert!((4_000_000_000..7_000_000_000).contains(&span_ns), "{span_ns}");
}

#[test]
fn a_node_that_is_lost_with_the_only_copy_of_an_expert_ends_a_virtual_run_too() {
    let folder = five_seconds();
    let crash = r#"virtual.faults=[{kind="crash",node=2,at_ms=1000,for_ms=1000}]"#;
    let args = ["run", "scenario.toml", "--nodes", "virtual:6", "--set", crash, "--out", "out"];
    let ended = folder.nashflock(&args);
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("node 2 was lost: it crashed in virtual time"),
        "{}",
        ended.stderr
    );
}

#[test]
fn what_virtual_nodes_cannot_be_is_said_before_anything_starts() {
    let folder = five_seconds();
    let refused = |sets: &[&str], says: &str| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let ended = folder.nashflock(&[&["check", "scenario.toml"], &sets[..]].concat());
        assert_eq!(ended.code, Some(2), "{sets:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(says), "{says}: {}", ended.stderr);
    };
    refused(&["nodes.count=5000"], "which only virtual nodes can be");
    let engine = "nodes.engine=virtual";
    let crash = r#"virtual.faults=[{kind="crash",node=99,at_ms=1,for_ms=1}]"#;
    refused(&[engine, crash], "`virtual.faults[0].node` is 99");
    let rack = r#"virtual.faults=[{kind="rack_loss",rack=1,at_ms=1,for_ms=1}]"#;
    refused(&[engine, rack], "`virtual.faults[0].rack` is 1 but there are 1");
    refused(&[engine, r#"virtual.faults=[{kind="crsh",node=0}]"#], "must be one of");
    refused(&[engine, "virtual.pair_us=-1"], "`virtual.pair_us`");
    let link = "virtual.rack_gbit_per_s=30";
    refused(
        &[engine, link],
        "`virtual.rack_gbit_per_s` is given but `virtual.topology` has no racks",
    );
    refused(
        &[engine, link, "virtual.topology=racks", "virtual.gbit_per_s=40"],
        "less than a node's port",
    );
    let pods = ["virtual.pod_gbit_per_s=90", "virtual.topology=racks"];
    refused(&[engine, pods[0], pods[1]], "`virtual.pod_gbit_per_s` is given but");
    refused(&[engine, "virtual.blocks.own_rack=true"], "`virtual.blocks.own_rack` is true but");
}

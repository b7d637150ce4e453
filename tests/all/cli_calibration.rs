//! `nashflock fit` and `calibrate`: what virtual nodes are told comes back from what they did.

use serde_json::Value;

use crate::binary::{Ended, Folder, SYNTHETIC};

/// A thousand steps of two rounds whose tokens vary.
fn folder() -> Folder {
    let scenario = SYNTHETIC
        .replace("arrival = \"constant\"", "arrival = \"poisson\"\nbatch_window_ms = 2")
        .replace("requests = 24", "requests = 2000");
    Folder::with(&scenario)
}

/// What four virtual nodes are told.
const TOLD: [(&str, f64); 11] = [
    ("setup_us", 50.0),
    ("pair_us", 2.0),
    ("weight_mib_us", 20_000.0),
    ("pass_mib_us", 10_000.0),
    ("latency_us", 30.0),
    ("message_us", 5.0),
    ("gbit_per_s", 1.0),
    ("coordinator_round_us", 40.0),
    ("coordinator_token_us", 1.5),
    ("coordinator_step_us", 100.0),
    ("coordinator_step_token_us", 0.5),
];

fn observed(folder: &Folder, out: &str, seed: &str, sets: &[&str]) {
    let told = TOLD.map(|(key, value)| format!("virtual.{key}={value}"));
    let told = told.iter().map(String::as_str).chain(sets.iter().copied());
    let told: Vec<&str> = told.flat_map(|set| ["--set", set]).collect();
    let args = ["run", "scenario.toml", "--nodes", "virtual:4", "--observe", "--seed", seed];
    let ended = folder.nashflock(&[&args[..], &["--out", out], &told].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

fn fitted(folder: &Folder, run: &str, file: &str) -> Value {
    let ended = folder.nashflock(&["fit", run, "--out", file, "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.json()
}

#[test]
fn what_virtual_nodes_are_told_is_found_in_what_they_did() {
    let folder = folder();
    observed(&folder, "quiet", "1", &["virtual.node_factors=[1.5, 0.9, 0.8, 0.8]"]);
    let found = fitted(&folder, "quiet", "fitted.toml");
    let text = std::fs::read_to_string(folder.path("fitted.toml")).expect("written");
    let file: toml::Table = text.parse().expect("TOML");
    for (key, told) in TOLD {
        let found = file["virtual"][key].as_float().expect("a number");
        assert!((found / told - 1.0).abs() < 0.02, "{key} is {found} and was {told}\n{text}");
    }
    let factors = found["node_factors"].as_array().expect("a list");
    for (found, told) in factors.iter().zip([1.5, 0.9, 0.8, 0.8]) {
        let found = found.as_f64().expect("a number");
        assert!((found - told).abs() < 0.01, "{factors:?}");
    }
    assert_eq!(found["shared_cores"], 0);
    let error = found["service"]["pair_ns"]["error"].as_f64().expect("it is told apart");
    assert!(error < 20.0, "nothing varied: {found}");
}

#[test]
fn held_out_virtual_runs_are_predicted_and_means_alone_are_not_enough() {
    let folder = folder();
    let noisy = [
        "virtual.shared_cores=2",
        "virtual.step_factors=[0.8, 0.85, 0.9, 0.9, 0.95, 1.0, 1.1, 1.3, 1.6]",
        "virtual.coordinator_factors=[0.7, 1.0, 1.3]",
    ];
    observed(&folder, "seen", "1", &noisy);
    observed(&folder, "held-out", "2", &noisy);
    let found = fitted(&folder, "seen", "fitted.toml");
    assert_eq!(found["shared_cores"], 2, "as the scenario says");
    let args = ["calibrate", "held-out", "--fitted", "fitted.toml", "--json"];
    // The means of 550 factors differ by 1.5 % between two runs, and what waits in a queue by twice that.
    let goals = ["--goal-mean", "5", "--goal-p99", "9"];
    let ended = folder.nashflock(&[&args[..], &goals].concat());
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let run = &ended.json()["runs"][0];
    assert_eq!(run["same_state"], true);
    let figures = run["figures"].as_array().expect("a list");
    let share = |of: &str, statistic: &str, key: &str| {
        let is = |figure: &&Value| figure["of"] == of && figure["statistic"] == statistic;
        figures.iter().find(is).expect("compared")[key].as_f64().expect("a number")
    };
    assert!(share("step", "mean", "control_error") < -0.1, "nodes that share no core are sooner");
    assert!(share("step", "p99", "control_error").abs() > share("step", "p99", "error").abs());
    // Half as far would be a wonder: it exits as a goal that is missed does.
    let ended = folder.nashflock(&[&args[..], &["--goal-p99", "0.0001"]].concat());
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
}

#[test]
fn observing_and_fitted_nodes_change_no_game() {
    let folder = Folder::with(SYNTHETIC);
    let plain = folder.summary("plain", &[]);
    let local = folder.summary("local", &["--nodes", "local:2", "--observe"]);
    assert_eq!(local["state_hash"], plain["state_hash"]);
    assert!(!folder.path("plain/observed.parquet").exists(), "only where it is asked for");
    let cores = std::thread::available_parallelism().expect("it is known").get();
    assert_eq!(fitted(&folder, "local", "fitted.toml")["shared_cores"], cores);
    let args = ["--nodes", "virtual:2", "--virtual", "fitted.toml"];
    assert_eq!(folder.summary("virtual", &args)["state_hash"], plain["state_hash"]);
}

#[test]
fn what_cannot_be_fitted_or_compared_is_said_with_a_remedy() {
    let folder = Folder::with(SYNTHETIC);
    folder.summary("plain", &[]);
    folder.summary("local", &["--nodes", "virtual:2", "--observe"]);
    let cores = ["--nodes", "virtual:2", "--observe", "--set", "virtual.shared_cores=3"];
    folder.summary("other", &cores);
    std::fs::write(folder.path("empty.toml"), "[game]\n").expect("writable");
    std::fs::write(folder.path("no.toml"), "setup_us: 1\n").expect("writable");
    let refused = |args: &[&str], says: &str| {
        let Ended { code, stderr, .. } = folder.nashflock(args);
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(says), "{says}: {stderr}");
    };
    refused(&["fit", "nowhere"], "nowhere/manifest.json");
    refused(&["fit", "plain"], "`nashflock run --observe`");
    refused(&["fit", "local", "other"], "`--shared-cores N`");
    refused(&["calibrate", "local", "--fitted", "empty.toml"], "has no [virtual]");
    refused(&["calibrate", "local", "--fitted", "no.toml"], "is not TOML");
    refused(&["calibrate", "local", "--fitted", "nowhere.toml"], "cannot read nowhere.toml");
    refused(&["calibrate", "plain", "--fitted", "empty.toml"], "`nashflock run --observe`");
    refused(&["run", "scenario.toml", "--virtual", "empty.toml"], "`nashflock fit --out`");
    let moving =
        ["--set", "precision.widths=[2, 4]", "--set", "precision.reallocate.every_steps=1"];
    refused(&[&["run", "scenario.toml", "--observe"], &moving[..]].concat(), "--observe");
    let pause =
        r#"virtual.faults=[{kind="pause",node=0,at_ms=0,for_ms=9,every_ms=2,stopped_ms=2}]"#;
    refused(&["check", "scenario.toml", "--set", pause], "`virtual.faults[0].stopped_ms` is 2");
    refused(&["check", "scenario.toml", "--set", "virtual.service=empirical"], "service_factors");
    let falling = "virtual.step_factors=[2, 1]";
    refused(
        &["check", "scenario.toml", "--set", falling],
        "`virtual.step_factors` does not ascend",
    );
}

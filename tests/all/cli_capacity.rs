//! `nashflock capacity`: the highest rate that holds a goal, and how sure that is.

use serde_json::Value;

use crate::binary::{Ended, Folder, SYNTHETIC};

/// The goal is loose and the search coarse: what is tested is what follows from a probe, not how fast this
/// machine is.
fn capacity(folder: &Folder, more: &[&str]) -> Ended {
    let args = ["capacity", "scenario.toml", "--set", "load.requests=450", "--precision", "1"];
    folder.nashflock(&[&args, more].concat())
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key}: {value}"))
}

#[test]
fn the_answer_is_the_highest_rate_whose_lower_bound_reaches_the_goal() {
    let folder = Folder::with(SYNTHETIC);
    let sets = ["--set", "load.rate_per_s=500", "--goal-p99-ms", "250", "--json"];
    let ended = capacity(&folder, &sets);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let found = ended.json();
    let probes = found["probes"].as_array().expect("a list");
    let mut held: f64 = 0.0;
    let mut failed = f64::INFINITY;
    for probe in probes {
        let [lower, share, upper] =
            ["share_lower", "share", "share_upper"].map(|key| number(probe, key));
        assert!(lower <= share && share <= upper, "{probe}");
        let rate = number(probe, "rate_per_s");
        if probe["verdict"] == "holds" {
            assert!(lower >= 0.99 && number(probe, "requests") >= 437.0, "{probe}");
            // As many requests as ten goals last, or the scenario's.
            assert!(number(probe, "requests") >= (rate * 2.5).floor(), "{probe}");
            held = held.max(rate);
        } else {
            assert!(lower < 0.99, "{probe}");
            failed = failed.min(rate);
        }
    }
    assert!(held > 0.0 && failed < f64::INFINITY && failed <= 2.0 * held, "{found}");
    let answer = [number(&found, "rate_per_s"), number(&found, "fails_at_per_s")];
    assert_eq!(answer.map(f64::to_bits), [held, failed].map(f64::to_bits));
    assert!(!found["limited_by"].as_str().expect("a text").is_empty());
    assert_eq!(folder.names(), ["scenario.toml"], "nothing is left behind");
}

#[test]
fn a_goal_that_no_rate_holds_is_missed_and_the_nodes_are_ended() {
    let folder = Folder::with(SYNTHETIC);
    let ended = capacity(&folder, &["--goal-p99-ms", "0.001", "--nodes", "local:2"]);
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("no rate holds a p99 of 0.001 ms"), "{}", ended.stderr);
    assert!(ended.stdout.contains("no rate holds the goal"), "{}", ended.stdout);
    assert!(ended.stdout.contains("limited by a batch alone"), "{}", ended.stdout);
}

#[test]
fn a_search_without_a_goal_or_with_too_few_requests_is_refused() {
    let folder = Folder::with(SYNTHETIC);
    for (args, words) in [
        (&[][..], "write p99_ms_max under [goals], or give --goal-p99-ms"),
        (&["--set", "goals.p99_ms_max=5", "--set", "load.requests=50"], "write at least 110"),
        (&["--goal-p99-ms", "0"], "--goal-p99-ms must be"),
        (&["--goal-p99-ms", "5", "--confidence", "1"], "--confidence must be"),
        (&["--goal-p99-ms", "5", "--precision", "0"], "--precision must be"),
    ] {
        let ended = folder.nashflock(&[&["capacity", "scenario.toml"], args].concat());
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{args:?}: {}", ended.stderr);
    }
}

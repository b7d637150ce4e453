//! Runs under each placement: the same state, and node loads that stand in the order they must.

use std::fs;
use std::path::Path;

use crate::binary::{Folder, SYNTHETIC};
use serde_json::Value;

const ROUND_ROBIN: &str = "nodes.placement=round_robin";

/// Placements and ways to run them, for 12 experts on three nodes.
const VARIANTS: [(&str, &[&str]); 8] = [
    ("in-process", &[ROUND_ROBIN]),
    ("in-process", &["nodes.replicas=2"]),
    ("in-process", &["nodes.placement=eplb", "nodes.replica_slots=9"]),
    ("in-process", &["nodes.placement=planned", "nodes.replica_slots=8"]),
    ("in-process", &["nodes.placement=planned", "nodes.replica_slots=5", "compute.threads=1"]),
    ("local:3", &["nodes.replicas=2"]),
    ("local:3", &["nodes.placement=eplb", "nodes.replica_slots=9"]),
    ("local:3", &["nodes.placement=planned", "nodes.replica_slots=7"]),
];

/// Runs the folder's scenario on three nodes with some of the keys set.
fn on_three_nodes(folder: &Folder, out: &str, (nodes, sets): (&str, &[&str])) -> Value {
    let sets = sets.iter().chain(&["nodes.count=3"]).flat_map(|set| ["--set", set]);
    folder.summary(out, &["--nodes", nodes].into_iter().chain(sets).collect::<Vec<_>>())
}

fn figure(summary: &Value, path: &str) -> f64 {
    summary.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {summary}"))
}

#[test]
fn placements_and_replicas_do_not_change_the_state() {
    for router in ["equilibrium", "top_k"] {
        let folder = Folder::with(&SYNTHETIC.replace("\"equilibrium\"", &format!("{router:?}")));
        let hashes: Vec<Value> = VARIANTS
            .iter()
            .enumerate()
            .map(|(at, (nodes, keys))| {
                let summary = on_three_nodes(&folder, &format!("out {at}"), (nodes, keys));
                check_figures(&summary);
                summary["state_hash"].clone()
            })
            .collect();
        for (hash, variant) in hashes.iter().zip(VARIANTS) {
            assert_eq!(hash, &hashes[0], "{router}: {variant:?}");
        }
    }
}

#[test]
fn a_checkpoint_is_placed_by_its_calibration_text_or_for_even_loads() {
    let folder = Folder::with_checkpoint();
    let dealt = on_three_nodes(&folder, "dealt", VARIANTS[0]);
    let planned = on_three_nodes(&folder, "planned", VARIANTS[3]);
    assert_eq!(planned["placement"]["expected"]["loads_from"], "calibration");
    assert_eq!(planned["state_hash"], dealt["state_hash"]);
    check_figures(&planned);

    let text = fs::read_to_string(folder.path("scenario.toml")).expect("readable");
    let without = text.replace("calibration_text = \"calibration.txt\"\n", "");
    assert_ne!(without, text);
    fs::write(folder.path("scenario.toml"), without).expect("written");
    let eplb = &["nodes.placement=eplb", "nodes.replica_slots=8"];
    let even = on_three_nodes(&folder, "even", ("in-process", eplb));
    assert_eq!(even["placement"]["expected"]["loads_from"], "even");
    check_figures(&even);
}

/// What holds of any placement, by definition or by proof.
fn check_figures(summary: &Value) {
    let served = |key: &str| figure(summary, &format!("/placement/served/{key}"));
    let measured = served("max_over_mean");
    assert_eq!(measured, served("dispatch_lower_bound"), "the split is exact: {summary}");
    assert!(1.0 <= served("lower_bound") && served("lower_bound") <= measured, "{summary}");
    assert!(measured <= served("max_over_mean_even_split"), "{summary}");
    if summary["placement"]["name"] == "round_robin" && summary["placement"]["replica_slots"] == 0 {
        assert_eq!(measured, served("max_over_mean_round_robin"), "{summary}");
    }
    if summary["placement"]["expected"].is_object() {
        let expected = |key: &str| figure(summary, &format!("/placement/expected/{key}"));
        let (bound, largest) = (expected("lower_bound"), expected("max_over_mean"));
        assert!(1.0 <= bound && bound <= largest * (1.0 + 1e-12), "{summary}");
        assert!((expected("relative_gap") - (1.0 - bound / largest)).abs() < 1e-9, "{summary}");
    }
    let nodes = summary["nodes"].as_array().expect("a list");
    let pairs = nodes.iter().map(|node| node["tokens"].as_u64().expect("a count"));
    assert_eq!(summary["pairs"]["combined"], pairs.sum::<u64>());
}

#[test]
fn the_scenario_shows_plan_below_eplb_below_round_robin() {
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let text = fs::read_to_string(scenarios.join("placement.toml")).expect("readable");
    let folder = Folder::with(&text);
    let planned = folder.summary("planned", &[]);
    let eplb = folder.summary("eplb", &["--set", "nodes.placement=eplb"]);
    let dealt_keys = ["--set", ROUND_ROBIN, "--set", "nodes.replica_slots=0"];
    let dealt = folder.summary("dealt", &dealt_keys);
    let served = |summary: &Value, key: &str| figure(summary, &format!("/placement/served/{key}"));
    for summary in [&planned, &eplb, &dealt] {
        check_figures(summary);
        assert_eq!(summary["state_hash"], planned["state_hash"]);
        let control = served(summary, "max_over_mean_round_robin");
        assert_eq!(
            control,
            served(&dealt, "max_over_mean"),
            "the control is the run it stands for"
        );
    }
    let [by_plan, by_eplb, by_turns] =
        [&planned, &eplb, &dealt].map(|summary| served(summary, "max_over_mean"));
    assert!(by_plan <= by_eplb && by_eplb <= by_turns, "{by_plan} {by_eplb} {by_turns}");
    assert!(by_plan < 1.05 && by_turns > 1.5, "there is something to win: {by_plan} {by_turns}");
    let split_evenly = served(&eplb, "max_over_mean_even_split");
    assert!(by_eplb + 0.02 < split_evenly, "the exact split wins on EPLB's own copies");
    let expected = |summary: &Value| figure(summary, "/placement/expected/max_over_mean");
    assert!(expected(&planned) <= expected(&eplb) * (1.0 + 1e-12));
    let copies = |summary: &Value| -> u64 {
        let nodes = summary["nodes"].as_array().expect("a list");
        nodes.iter().map(|node| node["experts"].as_u64().expect("a count")).sum()
    };
    assert_eq!((copies(&planned), copies(&dealt)), (2 * (64 + 8), 2 * 64));

    // With every expert at its fair share there is nothing for a placement to win.
    let even = [&["--set", "game.router=equilibrium"], &dealt_keys[..]].concat();
    let even = folder.summary("even", &even);
    assert!(served(&even, "max_over_mean") < 1.01, "{}", even["placement"]);
}

#[test]
fn the_table_has_a_line_for_a_chosen_placement_alone() {
    let folder = Folder::with(SYNTHETIC);
    for (sets, says) in [
        ("nodes.count=3", None),
        ("nodes.count=3 nodes.replicas=2", Some("max over mean by round_robin;")),
        ("nodes.count=3 nodes.placement=planned", Some("max over mean by planned;")),
    ] {
        let run = ["run", "scenario.toml", "--out", sets].into_iter();
        let args: Vec<&str> = run.chain(sets.split(' ').flat_map(|set| ["--set", set])).collect();
        let ended = folder.nashflock(&args);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let line = ended.stdout.lines().find(|line| line.trim_start().starts_with("node load"));
        assert_eq!(line.is_some(), says.is_some(), "{}", ended.stdout);
        assert!(line.unwrap_or_default().contains(says.unwrap_or_default()), "{}", ended.stdout);
    }
}

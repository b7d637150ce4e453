//! The shipped scenarios that need no checkpoint, run as their page says, show what it says.

use std::path::Path;

use agents::game::RouterRegistry;
use nashflock::results::{RoundRow, RunDir};
use serde_json::Value;

use crate::binary::{Folder, SYNTHETIC};

/// A folder from which `scenarios/` can be reached.
fn folder() -> Folder {
    let folder = Folder::with("");
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    std::os::unix::fs::symlink(scenarios, folder.path("scenarios")).expect("a link is made");
    folder
}

/// Runs a shipped scenario into `out`.
fn run(folder: &Folder, name: &str, out: &str, sets: &[&str]) -> Value {
    let file = format!("scenarios/{name}.toml");
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let args = [&["run", &file, "--json", "--out", out], &sets[..]].concat();
    let ended = folder.nashflock(&args);
    assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
    ended.json()
}

fn figure(summary: &Value, key: &str) -> f64 {
    summary["convergence"][key].as_f64().unwrap_or_else(|| panic!("{key}: {summary}"))
}

#[test]
fn the_skewed_source_is_loaded_evenly_and_meets_its_goals() {
    let summary = run(&folder(), "synthetic-skew", "out", &[]);
    assert!(figure(&summary, "max_over_mean_top_k") > 1.5, "there is something to balance");
    assert!(figure(&summary, "max_over_mean_worst") <= 1.02);
}

#[test]
fn in_the_race_each_router_ends_where_the_page_says() {
    let folder = folder();
    let race = |router: &str| {
        run(&folder, "router-race", router, &[&format!("game.router={router}")])["convergence"]
            .clone()
    };
    let of = |play: &Value, key: &str| play[key].as_f64().unwrap_or_else(|| panic!("{play}"));
    let equilibrium = race("equilibrium");
    assert!(of(&equilibrium, "relative_gap").abs() < 1e-12);
    assert_eq!(of(&equilibrium, "max_over_mean_worst").to_bits(), 1.0_f64.to_bits());
    let (quantile, sinkhorn) = (race("quantile_balancing"), race("sinkhorn"));
    assert!(of(&quantile, "max_over_mean_worst") < 1.1, "{quantile}");
    assert!(of(&sinkhorn, "max_over_mean_worst") > 2.0, "{sinkhorn}");
    assert!(quantile["relative_gap"].is_null() && sinkhorn["relative_gap"].is_null());
    let selfish = race("best_response");
    assert_eq!(of(&selfish, "epsilon_nash").to_bits(), 0.0_f64.to_bits());
    assert!(of(&selfish, "relative_gap") > 0.1, "{selfish}");
    let plain = race("top_k");
    assert!(of(&plain, "max_over_mean") > 2.0 && of(&plain, "score_loss") == 0.0);
    // A router that drops pairs is held against the same control.
    let dropping = race("top_k_capacity");
    assert!(of(&dropping, "dropped_pairs") > 0.0, "{dropping}");
    for play in [&equilibrium, &quantile, &sinkhorn, &selfish, &dropping] {
        let control = of(play, "max_over_mean_top_k");
        assert_eq!(control.to_bits(), of(&plain, "max_over_mean").to_bits(), "the same tokens");
    }
}

#[test]
fn a_scenario_plays_any_router_under_any_kind_of_information() {
    let folder = folder();
    for router in RouterRegistry::standard().names() {
        for kind in ["kind=\"stale\",batches=2", "kind=\"partial\",dispatchers=3"] {
            let sets = [
                format!("game.router={router}"),
                format!("game.information={{{kind}}}"),
                "load.requests=12".into(),
                "load.tokens_per_request=8".into(),
                "load.batch_requests_max=3".into(),
                "game.cost=linear".into(),
            ];
            let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
            let summary = run(&folder, "router-race", &format!("{router} {kind}"), &sets);
            let (gap, epsilon) =
                (figure(&summary, "relative_gap"), figure(&summary, "epsilon_nash"));
            assert!(gap >= -1e-12 && epsilon >= 0.0, "{router} {kind}: {summary}");
        }
    }
}

#[test]
fn a_flock_of_trained_experts_comes_near_the_equilibrium_by_bids_and_not_by_loads_alone() {
    let folder = folder();
    let sets = ["load.requests=32", "load.batch_requests_max=16"];
    let flock = run(&folder, "murmuration", "flock", &sets);
    assert!(figure(&flock, "max_over_mean_top_k") > 1.5, "there is something to balance");
    assert!(figure(&flock, "relative_gap") < 1e-3, "{flock}");
    let file = ["run", "scenarios/murmuration.toml", "--set", "load.requests=32", "--out", "loads"];
    let ended = folder.nashflock(&[&file[..], &["--set", "game.router=flock_excess"]].concat());
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
}

#[test]
fn messages_that_are_late_and_lost_cost_a_flock_no_balance() {
    let folder = folder();
    let late = run(&folder, "lost-messages", "late", &["load.requests=32"]);
    let at_once = ["load.requests=32", "game.router=flock"];
    let prompt = run(&folder, "lost-messages", "prompt", &at_once);
    assert!(figure(&late, "max_over_mean_top_k") > 4.0, "there is something to balance");
    let difference = figure(&late, "max_over_mean") - figure(&prompt, "max_over_mean");
    assert!(difference.abs() < 0.02 && figure(&late, "relative_gap") < 1e-3, "{late} {prompt}");
    assert!(figure(&late, "iterations") > figure(&prompt, "iterations"), "{late} {prompt}");
}

#[test]
fn a_flock_routes_around_stragglers_as_the_equilibrium_does_and_top_k_does_not() {
    let folder = folder();
    let share = |router: &str| {
        let sets = ["load.requests=32", &format!("game.router={router}")];
        let summary = run(&folder, "stragglers-and-flocks", router, &sets);
        let layers = std::fs::read_to_string(folder.path(router).join("layers.json"));
        let layers: Value = serde_json::from_str(&layers.expect("written")).expect("JSON");
        let loads = layers["layers"][0]["loads"].as_array().expect("loads");
        let of = |loads: &[Value]| loads.iter().filter_map(Value::as_f64).sum::<f64>();
        (of(&loads[..8]) / of(loads), summary)
    };
    let (flock, summary) = share("flock");
    let (equilibrium, _) = share("equilibrium");
    let (plain, control) = share("top_k");
    assert!((flock - equilibrium).abs() < 0.005 && flock < 0.5 * plain, "{flock} {plain}");
    assert!(figure(&summary, "relative_gap") < 1e-6, "{summary}");
    let cost = &control["convergence"]["social"]["cost"];
    assert!(cost.is_null(), "under top_k a queue grows without end: {control}");
}

#[test]
fn tokens_that_know_their_best_experts_only_still_even_out_most_of_the_crowd() {
    let folder = folder();
    let sets = ["source.experts=512", "load.requests=2", "game.price_per_fair_share=0.05"];
    let near = run(&folder, "thousand-experts", "near", &sets);
    let all = [&sets[..], &["game.router=equilibrium"]].concat();
    let all = run(&folder, "thousand-experts", "all", &all);
    let [near, all, plain] = [
        figure(&near, "max_over_mean"),
        figure(&all, "max_over_mean"),
        figure(&near, "max_over_mean_top_k"),
    ];
    assert!(all < near && near < 0.5 * plain, "{all} {near} {plain}");
}

#[test]
fn bits_that_follow_a_drift_of_the_text_err_less_than_bits_that_stay() {
    let summary = run(&folder(), "drift", "out", &["load.rate_per_s=10000", "load.requests=300"]);
    let (quality, moved) = (&summary["quality"], &summary["reallocation"]);
    let of =
        |figures: &Value, key: &str| figures[key].as_f64().unwrap_or_else(|| panic!("{figures}"));
    let (error, kept) = (of(quality, "output_error"), of(quality, "output_error_widths_kept"));
    assert!(error < 0.93 * kept, "{quality}");
    assert!(of(moved, "cost") < 0.75 * of(moved, "cost_kept"), "{moved}");
    let most = 200_000.0 * of(moved, "decisions");
    assert!(of(moved, "bytes_moved") <= most && of(moved, "bytes_sent") > 0.0, "{moved}");
    // Where nothing may change the control is the run itself, and by the requests alone, on any nodes.
    let few = ["load.rate_per_s=10000", "load.requests=48", "precision.reallocate.bytes_max=0"];
    let still = run(&folder(), "drift", "still", &few);
    let quality = &still["quality"];
    assert_eq!(quality["output_error"], quality["output_error_widths_kept"]);
    let (loss, kept) = (of(quality, "loss"), of(quality, "loss_widths_kept"));
    assert!((loss - kept).abs() < 1e-9, "{quality}");
    let here = [few[0], few[1], few[2], "nodes.engine=in-process", "compute.threads=1"];
    assert_eq!(run(&folder(), "drift", "here", &here)["state_hash"], still["state_hash"]);
}

#[test]
fn copies_that_follow_a_shift_of_domain_keep_nodes_even_for_a_share_of_fresh_plans_bytes() {
    let fast = "load.rate_per_s=100000";
    let summary = run(&folder(), "domain-shift", "out", &[fast, "precision.budget=f32"]);
    let moved = &summary["migration"];
    let of = |key: &str| moved[key].as_f64().unwrap_or_else(|| panic!("{key}: {moved}"));
    assert!(of("max_over_mean") <= 1.1 && of("max_over_mean_frozen") > 1.2, "{moved}");
    assert!(of("copies") > 0.0 && 4.0 * of("bytes_moved") <= of("bytes_eplb"), "{moved}");
    assert_eq!(summary["goals"][0]["met"], true, "{}", summary["goals"]);
    // On worker processes, and where experts stay, the same bits.
    let few = [fast, "load.requests=96", "goals.node_load_over_mean_max=2"];
    let nodes = [
        "nodes.engine=local",
        "nodes.count=4",
        "nodes.replica_slots=0",
        "nodes.migration.every_steps=2",
    ];
    let there = run(&folder(), "domain-shift", "there", &[&few[..], &nodes].concat());
    assert!(there["migration"]["bytes_sent"].as_u64() > Some(0), "{}", there["migration"]);
    let stay = ["nodes.migration.policy=none"];
    let still = run(&folder(), "domain-shift", "still", &[&few[..], &stay].concat());
    assert_eq!(there["state_hash"], still["state_hash"]);
}

#[test]
fn smooth_learning_settles_under_stale_prices_and_always_switching_does_not() {
    let folder = folder();
    // The hottest expert over the fair share, batch by batch.
    let balance = |out: &str, sets: &[&str]| -> Vec<f64> {
        run(&folder, "staleness", out, sets);
        let dir = RunDir::open(&folder.path(out)).expect("a run directory");
        let rounds: Vec<RoundRow> = dir.read_table().expect("readable");
        rounds.iter().map(|round| round.max_over_mean).collect()
    };
    let in_batch = ["game.information={kind=\"in-batch\"}", "game.router=equilibrium"];
    let whole_batch = balance("in batch", &in_batch);
    let plain = balance("plain", &["game.router=top_k"]);
    for batches in [1, 8] {
        let age = format!("game.information.batches={batches}");
        let smooth = balance(&format!("smooth {batches}"), &[&age]);
        assert_eq!(smooth[..batches], plain[..batches], "no prices are in force yet");
        for (at, best) in whole_batch.iter().enumerate().skip(batches) {
            assert!(smooth[at] < 1.25 * best, "age {batches}, batch {at}: {} {best}", smooth[at]);
        }
        let switch = ["game.router=always_switch", &age];
        let switching = balance(&format!("switching {batches}"), &switch);
        let last = switching.len() - 8;
        let pairs = || switching.iter().zip(&whole_batch).skip(last);
        assert!(pairs().all(|(switching, best)| *switching > 1.5 * best), "{switching:?}");
    }
}

#[test]
fn the_social_optimum_changes_no_play_and_what_it_cannot_give_says_why() {
    let folder = Folder::with(SYNTHETIC);
    let linear = ["--set", "game.cost=linear"];
    let run = |out: &str, sets: &[&str]| {
        let mut args = linear.to_vec();
        sets.iter().for_each(|set| args.extend(["--set", set]));
        folder.summary(out, &args)
    };
    let plain = run("without", &[]);
    assert_eq!(plain["convergence"].get("social"), None);
    let social = run("with", &["game.social_optimum=true"]);
    assert_eq!(plain["state_hash"], social["state_hash"]);
    assert!(social["convergence"]["social"]["price_of_anarchy"].as_f64() >= Some(1.0 - 1e-9));
    for (router, absent, reason) in [
        ("top_k", "price_of_anarchy", "a play is no equilibrium"),
        ("top_k_capacity", "optimum", "not k experts a token"),
    ] {
        let router_set = format!("game.router={router}");
        let summary = run(router, &["game.social_optimum=true", &router_set]);
        let key = format!("convergence.social.{absent}");
        assert!(summary["convergence"]["social"][absent].is_null(), "{router}: {summary}");
        let given = summary["null_reasons"][&key].as_str().expect("a reason");
        assert!(given.contains(reason), "{router}: {given}");
    }
}

#[test]
fn equilibria_cost_all_tokens_more_than_the_certified_social_optimum() {
    let folder = folder();
    let latency =
        ["game.cost=latency", "game.service_ms=[1]", "game.window_ms=128", "game.price_per_ms=0.1"];
    // The bounds at degree 1 and 4: 4/3 and 2.151 for many small tokens (Roughgarden 2003).
    for (out, sets, least, most) in [
        ("road", &[][..], 1.2, 2.151),
        ("linear", &["game.degree=1"], 1.01, 1.1),
        ("queue", &latency, 1.333, f64::INFINITY),
    ] {
        let summary = run(&folder, "price-of-anarchy", out, sets);
        assert!(figure(&summary, "epsilon_nash") <= 1e-9, "{out}");
        let social = &summary["convergence"]["social"];
        let of = |key: &str| social[key].as_f64().unwrap_or_else(|| panic!("{key}: {social}"));
        assert!(of("optimum") - of("optimum_bound") <= 1e-9 * of("optimum"), "{social}");
        let ratio = of("price_of_anarchy");
        assert!((ratio - of("cost") / of("optimum")).abs() < 1e-12, "{social}");
        assert!((least..most).contains(&ratio), "{out}: {ratio}");
    }
    let quota = run(&folder, "price-of-anarchy", "quota", &["game.cost=quota"]);
    let ratio = quota["convergence"]["social"]["price_of_anarchy"].as_f64().expect("proven");
    assert!((ratio - 1.0).abs() < 1e-9, "a quota has no toll below it: {ratio}");
}

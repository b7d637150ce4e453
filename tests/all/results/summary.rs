//! The summary and its table.

use super::written::{full_summary, node};
use nashflock::results::{Goal, Memory, Quality, Summary, summary_table};
use std::collections::BTreeMap;

/// The keys of `summary.json` that other programs rely on.
const SUMMARY_KEYS: &str = "
    schema_version scenario seed state_hash status
    convergence.router convergence.rounds convergence.iterations convergence.epsilon_nash
    convergence.relative_gap convergence.max_over_mean convergence.score_loss convergence.converged
    convergence.max_over_mean_top_k
    throughput.tokens_per_s throughput.token_experts_per_s throughput.bytes_per_s
    latency_ns.count latency_ns.p50 latency_ns.p90 latency_ns.p99 latency_ns.p999 latency_ns.max
    outcomes.ok outcomes.late outcomes.timeout outcomes.shed outcomes.error outcomes.partial
    memory.expert_bytes memory.expert_bytes_f32 memory.bits_per_weight memory.saving
    memory.base_type memory.widths
    quality.loss quality.loss_f32 quality.loss_uniform quality.tokens
    nodes.0.experts nodes.0.bytes nodes.0.tokens nodes.0.busy_share goals";

#[test]
fn the_summary_has_every_key_that_others_rely_on_even_where_nothing_was_measured() {
    let mut bare = Summary::new("bare", 1, Memory::new(0, 0, BTreeMap::new()));
    bare.quality = Some(Quality::default());
    bare.nodes = vec![node(0, false)];
    bare.nodes[0].busy_share = None;
    for summary in [bare, full_summary()] {
        let value: serde_json::Value = serde_json::from_str(&summary.to_json()).expect("JSON");
        for key in SUMMARY_KEYS.split_whitespace() {
            let pointer = format!("/{}", key.replace('.', "/"));
            let found = value.pointer(&pointer).unwrap_or_else(|| panic!("{key} is missing"));
            let reason = value["null_reasons"].get(key);
            assert_eq!(found.is_null(), reason.is_some(), "{key}");
        }
    }
    let read: Summary = serde_json::from_str(&full_summary().to_json()).expect("JSON");
    assert_eq!(read, full_summary());
}

#[test]
fn the_table_fits_a_screen_and_shows_each_figure_with_its_control() {
    let mut summary = full_summary();
    summary.goals = (0..30)
        .map(|at| Goal { name: format!("g{at}"), limit: 1.0, measured: None, met: at % 2 == 0 })
        .collect();
    let table = summary_table(&summary);
    assert!(table.lines().count() <= 25, "{table}");
    for shown in [
        "2.418 by plain top-k",
        "2.9176 f32, 6.9078 ln V",
        "90.6 % saved",
        "0.0312  by flock: 4.00 % above exact, 0.0299 at least, 0.0551 uniform bits",
        "32  of 128 experts by reap: 2.9188 f32 under top-k, 2.9351 had frequency chosen",
        "1.041  max over mean by planned; 1.724 round robin, 1.183 split evenly, at least 1.017",
        "2 560 offered",
        "MISSED",
    ] {
        assert!(table.contains(shown), "{shown} in\n{table}");
    }
    let bare = summary_table(&Summary::new("bare", 1, Memory::new(0, 0, BTreeMap::new())));
    assert!(bare.contains("n/a") && !bare.contains("NaN") && !bare.contains("inf"), "{bare}");
}

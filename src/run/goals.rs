//! What a scenario demands of its run, held against what was measured.

use crate::results::{Goal, Summary};
use crate::scenario::file::Goals;

/// What a run had to reach, and whether it did.
pub(super) fn goals(goals: &Goals, summary: &Summary) -> Vec<Goal> {
    let p99_ms = summary.latency_ns.p99.map(|ns| ns as f64 / 1e6);
    let placement = summary.placement.as_ref();
    let node_load = placement.and_then(|placement| placement.served.max_over_mean);
    let stated = [
        ("relative_gap", goals.relative_gap_max, summary.convergence.relative_gap),
        ("max_over_mean_worst", goals.max_over_mean_max, summary.convergence.max_over_mean_worst),
        ("node_load_over_mean", goals.node_load_over_mean_max, node_load),
        ("p99_ms", goals.p99_ms_max, p99_ms),
    ];
    stated
        .into_iter()
        .filter_map(|(name, limit, measured)| {
            let limit = limit?;
            let met = measured.is_some_and(|measured| measured <= limit);
            Some(Goal { name: name.to_owned(), limit, measured, met })
        })
        .collect()
}

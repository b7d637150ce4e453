//! More than can be served: who is given up, and that the books balance.

use serde_json::Value;

use crate::binary::{Folder, SYNTHETIC};

fn outcome(summary: &Value, name: &str) -> u64 {
    summary["outcomes"][name].as_u64().unwrap_or_else(|| panic!("{name}: {summary}"))
}

#[test]
fn under_codel_what_waits_too_long_times_out_and_what_finds_no_room_is_shed() {
    let folder = Folder::with(SYNTHETIC);
    // All at once: whatever the machine's speed, the later batches wait for the first.
    let run = |out: &str, more: &[&str]| {
        let load = ["load.admission=codel", "load.rate_per_s=1000000", "load.requests=8000"];
        let sets: Vec<&str> = load.iter().chain(more).flat_map(|set| ["--set", set]).collect();
        folder.summary(out, &sets)
    };
    let waits =
        ["load.queue_requests_max=8000", "load.queue_interval_ms=100", "load.queue_target_ms=1"];
    let summary = run("waits", &waits);
    assert!(outcome(&summary, "timeout") > 0 && outcome(&summary, "shed") == 0, "{summary}");
    assert!(outcome(&summary, "ok") > 0, "the first batches are served");
    let bounded = run("bounded", &["load.queue_requests_max=40", "load.queue_interval_ms=3600000"]);
    assert!(outcome(&bounded, "shed") > 0 && outcome(&bounded, "timeout") == 0, "{bounded}");
    for summary in [summary, bounded] {
        let all: u64 =
            ["ok", "late", "timeout", "shed"].map(|name| outcome(&summary, name)).iter().sum();
        assert_eq!(all, 8000, "every request counts once");
        let pairs = &summary["pairs"];
        assert_eq!(pairs["dispatched"], pairs["combined"]);
    }
}

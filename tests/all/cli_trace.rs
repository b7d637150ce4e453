//! `nashflock run --trace`: what happened when, for a trace viewer.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::binary::{Folder, SYNTHETIC};

const STAGES: [&str; 9] = [
    "arrive",
    "perceive",
    "respond",
    "certify",
    "flock",
    "precision",
    "order",
    "dispatch",
    "absorb",
];

struct Slice {
    name: String,
    from_us: f64,
    to_us: f64,
}

/// Slices by process and row, in the order of the file.
fn slices(events: &[Value]) -> BTreeMap<(u64, u64), Vec<Slice>> {
    let mut rows: BTreeMap<(u64, u64), Vec<Slice>> = BTreeMap::new();
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let number = |key: &str| event[key].as_f64().expect("a number");
        let row = (event["pid"].as_u64().expect("an id"), event["tid"].as_u64().expect("an id"));
        let name = event["name"].as_str().expect("a name").to_owned();
        let slice = Slice { name, from_us: number("ts"), to_us: number("ts") + number("dur") };
        rows.entry(row).or_default().push(slice);
    }
    rows
}

#[test]
fn a_trace_has_every_stage_of_every_round_one_after_the_other_and_every_request() {
    let folder = Folder::with(SYNTHETIC);
    for (nodes, processes) in [("in-process", 1), ("local:2", 2)] {
        let out = format!("out-{nodes}").replace(':', "-");
        let args = ["run", "scenario.toml", "--nodes", nodes, "--trace", "--out", &out];
        let ended = folder.nashflock(&args);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let text = fs::read(folder.path(&out).join("trace.json")).expect("written");
        let events: Vec<Value> = serde_json::from_slice(&text).expect("a JSON array");
        let rows = slices(&events);
        // 24 requests in batches of up to four, two layers.
        let stages = &rows[&(0, 0)];
        let rounds = stages.len() / STAGES.len();
        assert!(rounds >= 12 && rounds.is_multiple_of(2), "{rounds}");
        for (at, slice) in stages.iter().enumerate() {
            assert_eq!(slice.name, STAGES[at % STAGES.len()], "{at}");
        }
        let in_order = stages.windows(2).all(|pair| pair[0].to_us <= pair[1].from_us + 1e-3);
        assert!(in_order, "no stage begins before the one before it has ended");
        assert_eq!(rows[&(0, 1)].len(), rounds / 2, "a batch is two rounds");
        let of_nodes: Vec<_> = rows.iter().filter(|((process, _), _)| *process > 0).collect();
        assert_eq!(of_nodes.len(), processes, "{nodes}");
        for (_, slices) in of_nodes {
            for pair in slices.chunks(2) {
                let [order, compute] = pair else { panic!("an order and its computing") };
                assert_eq!((&*order.name, &*compute.name), ("order", "compute"));
                let within =
                    compute.from_us >= order.from_us && compute.to_us <= order.to_us + 1e-3;
                assert!(within, "computing is a part of the order");
                let sent = stages.iter().any(|stage| {
                    stage.name == "dispatch" && (stage.from_us - order.from_us).abs() < 1e-3
                });
                assert!(sent, "an order goes out when a dispatch begins");
            }
        }
        for phase in ["b", "e"] {
            let ids = events.iter().filter(|event| event["ph"] == phase);
            let mut ids: Vec<u64> = ids.map(|event| event["id"].as_u64().expect("an id")).collect();
            ids.sort_unstable();
            assert!(ids.into_iter().eq(0..24), "each request once");
        }
        let last = events.last().expect("there are events");
        assert_eq!((&last["name"], &last["args"]["left_out"]), (&"trace_ended".into(), &0.into()));
        assert_eq!(last["args"]["events"], events.len() as u64 - 1);
    }
    let ended = folder.nashflock(&["run", "scenario.toml", "--out", "plain"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!folder.path("plain/trace.json").exists(), "only where it is asked for");
}

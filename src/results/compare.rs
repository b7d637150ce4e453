//! What differs between two runs, or between a run and the same again.

use super::{BlockFigures, Layers, RequestRow, ResultsError, RoundRow, RunDir, Summary};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A key that has not the same value on both sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Dotted, as `game.top_k` or `nodes.0.tokens`.
    pub key: String,
    /// On the one side; null where it is not there.
    pub a: Value,
    /// On the other.
    pub b: Value,
    /// (b − a) / |a|, where both are numbers and a is not 0.
    pub relative: Option<f64>,
}

/// The leaves that differ, by key.
#[must_use]
pub fn differences(a: &Value, b: &Value) -> Vec<Difference> {
    let (mut of_a, mut of_b) = (BTreeMap::new(), BTreeMap::new());
    leaves("", a, &mut of_a);
    leaves("", b, &mut of_b);
    let mut keys: Vec<&String> = of_a.keys().chain(of_b.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let differing = keys.into_iter().filter(|key| of_a.get(*key) != of_b.get(*key));
    differing
        .map(|key| {
            let side = |leaves: &BTreeMap<String, Value>| leaves.get(key).cloned();
            let (a, b) = (side(&of_a).unwrap_or_default(), side(&of_b).unwrap_or_default());
            let numbers = a.as_f64().zip(b.as_f64()).filter(|(a, _)| *a != 0.0);
            let relative = numbers.map(|(a, b)| (b - a) / a.abs());
            Difference { key: key.clone(), a, b, relative }
        })
        .collect()
}

fn leaves(path: &str, value: &Value, found: &mut BTreeMap<String, Value>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| leaves(&below(key), value, found)),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(at, item)| leaves(&below(&at.to_string()), item, found)),
        leaf => {
            found.insert(path.to_owned(), leaf.clone());
        }
    }
}

/// The figures of a summary that follow from scenario and seed: no clock, no fault and no number of nodes
/// enters them.
#[must_use]
pub fn game_figures(summary: &Summary) -> Value {
    let mut convergence = summary.convergence.clone();
    convergence.route_ns = 0;
    let generation = summary.generation.as_ref().map(|of| {
        json!({
            "context": of.context,
            "cut_requests": of.cut_requests,
            "prompt_tokens": of.prompt_tokens,
            "generated_tokens": of.generated_tokens,
            "steps": of.steps,
            "tokens_per_step": of.tokens_per_step,
            "cache_bytes_max": of.cache_bytes_max,
        })
    });
    json!({
        "state_hash": summary.state_hash,
        "convergence": convergence,
        "flock": summary.flock,
        "motion": summary.motion,
        "pairs": summary.pairs,
        "memory": summary.memory,
        "precision": summary.precision,
        "pruning": summary.pruning,
        "quality": summary.quality,
        "generation": generation,
        "answered": summary.outcomes.ok + summary.outcomes.late,
        "requests": summary.outcomes.total(),
    })
}

/// What a run directory says that does not follow from scenario and seed as `again` does: keys of the
/// summary, cells of the tables, loads of the experts. Empty where all is the same, bit for bit.
///
/// # Errors
/// A file is missing or damaged.
pub fn game_differences(run: &RunDir, again: &RunDir) -> Result<Vec<Difference>, ResultsError> {
    let (of_run, of_again) = (run.read_summary()?, again.read_summary()?);
    let mut found = differences(&game_figures(&of_run), &game_figures(&of_again));
    if let Some((of_run, of_again)) = blocks(&of_run).zip(blocks(&of_again)) {
        // There are no rows of blocks.
        found.extend(differences(&of_run, &of_again));
        return Ok(found);
    }
    let layers = |dir: &RunDir| -> Result<Value, ResultsError> {
        let layers: Layers = dir.read_layers()?;
        Ok(json!({"layers.json": layers}))
    };
    found.extend(differences(&layers(run)?, &layers(again)?));
    found.extend(first_row("rounds", &rounds(run)?, &rounds(again)?));
    found.extend(first_row("requests", &requests(run)?, &requests(again)?));
    Ok(found)
}

/// What a run of token blocks came to, times too, which are virtual; none of another run.
fn blocks(summary: &Summary) -> Option<Value> {
    let virtual_time = summary.virtual_time.as_ref()?;
    let (blocks, uplinks) = (virtual_time.blocks.as_ref()?, &virtual_time.uplinks);
    // What simulating took of this machine is of the machine, and the number of threads.
    let blocks = BlockFigures { machine_ns: 0, bytes: 0, ..blocks.clone() };
    Some(
        json!({"latency_ns": summary.latency_ns, "virtual_time": {"blocks": blocks, "uplinks": uplinks}}),
    )
}

/// Without times and payload.
fn rounds(dir: &RunDir) -> Result<Vec<RoundRow>, ResultsError> {
    let without = |row: RoundRow| RoundRow {
        route_ns: 0,
        dispatch_ns: 0,
        bytes_sent: 0,
        bytes_received: 0,
        ..row
    };
    Ok(dir.read_table()?.into_iter().map(without).collect())
}

/// Without times, by id.
fn requests(dir: &RunDir) -> Result<Vec<RequestRow>, ResultsError> {
    let without = |row: RequestRow| RequestRow {
        intended_ns: 0,
        started_ns: None,
        finished_ns: 0,
        latency_ns: 0,
        first_token_ns: None,
        outcome: if row.outcome == "late" { "ok".to_owned() } else { row.outcome },
        ..row
    };
    let mut rows: Vec<RequestRow> = dir.read_table()?.into_iter().map(without).collect();
    rows.sort_by_key(|row| row.request);
    Ok(rows)
}

/// Rows further down would only repeat what the first one says.
fn first_row<R: Serialize + PartialEq>(table: &str, a: &[R], b: &[R]) -> Vec<Difference> {
    let differing = a.iter().zip(b).position(|(a, b)| a != b);
    let (key, a, b) = match differing {
        Some(row) => (format!("{table}.{row}"), json!(a[row]), json!(b[row])),
        None if a.len() != b.len() => (format!("{table}.rows"), json!(a.len()), json!(b.len())),
        None => return Vec::new(),
    };
    differences(&json!({ &key: a }), &json!({ &key: b }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_that_differ_are_listed_with_how_far_they_moved() {
        let a = json!({"game": {"top_k": 2, "router": "bip"}, "nodes": [{"tokens": 10}], "x": 0});
        let b = json!({"game": {"top_k": 4, "router": "bip"}, "nodes": [], "x": 1, "y": null});
        let found = differences(&a, &b);
        let listed: Vec<_> =
            found.iter().map(|of| (of.key.as_str(), &of.a, &of.b, of.relative)).collect();
        let (none, null) = (None, Value::Null);
        assert_eq!(
            listed,
            [
                ("game.top_k", &json!(2), &json!(4), Some(1.0)),
                ("nodes.0.tokens", &json!(10), &null, none),
                ("x", &json!(0), &json!(1), none),
                ("y", &null, &null, none),
            ]
        );
        assert!(differences(&a, &a).is_empty());
    }
}

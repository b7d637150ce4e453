//! What is read, and written as it was resolved.

use super::{GOOD, known, schema_keys, shipped};
use agents::precision::Budget as Limit;
use nashflock::scenario::file::Source;
use nashflock::scenario::{Budget, load, resolved, schema};
use std::collections::BTreeSet;
use std::fs;
use tempfile::TempDir;

#[test]
fn every_shipped_scenario_opens_with_its_question_and_reads() {
    let (_folder, files) = shipped();
    for file in files {
        let text = fs::read_to_string(&file).expect("a text");
        assert!(text.starts_with("# Question: "), "{}", file.display());
        let scenario = load(&file, &[], &known()).unwrap_or_else(|problems| panic!("{problems}"));
        let stem = file.file_stem().and_then(|stem| stem.to_str());
        assert_eq!(Some(scenario.name.as_str()), stem);
    }
}

#[test]
fn the_control_differs_from_the_quickstart_in_name_router_and_goals_alone() {
    let (folder, _) = shipped();
    let read = |name: &str, sets: &[String]| {
        load(&folder.path().join(name), sets, &known())
            .unwrap_or_else(|problems| panic!("{problems}"))
    };
    let mut quickstart =
        read("quickstart.toml", &["name=top-k-control".into(), "game.router=top_k".into()]);
    quickstart.goals = Default::default();
    assert_eq!(quickstart, read("top-k-control.toml", &[]));
}

#[test]
fn a_resolved_scenario_states_every_key_with_absolute_paths_and_reads_as_the_same_value() {
    let (_folder, files) = shipped();
    let elsewhere = TempDir::new().expect("a temporary folder");
    let copy = elsewhere.path().join("scenario.toml");
    for file in files {
        let scenario = load(&file, &[], &known()).unwrap_or_else(|problems| panic!("{problems}"));
        if let Source::Checkpoint { checkpoint, text } = &scenario.source {
            assert!(checkpoint.is_absolute() && text.iter().all(|path| path.is_absolute()));
        }
        fs::write(&copy, resolved(&scenario)).expect("the copy is written");
        let again = load(&copy, &[], &known()).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(again, scenario);
    }
    // Everything but optional keys without a value: compared with the keys of the schema.
    let full = [
        "precision.calibration_text=text.txt",
        "goals.relative_gap_max=0",
        "goals.max_over_mean_max=1",
        "goals.node_load_over_mean_max=1",
        "nodes.migration.bytes_max=1",
        "goals.p99_ms_max=1",
        "game.window_ms=1",
        "nodes.min_workers=1",
        "load.generation.context_max=64",
        "precision.reallocate.bytes_max=1",
        "sweep.samples=1",
        "sweep.on_failure.retry=1",
        "sweep.target={figure=\"relative_gap\",at_most=[0.1]}",
        "sweep.optimize.figure=quality.loss",
    ];
    fs::write(elsewhere.path().join("text.txt"), "birds").expect("a text");
    fs::write(&copy, GOOD).expect("the file is written");
    let scenario = load(&copy, &full.map(str::to_owned), &known()).expect("the scenario reads");
    let stated = keys(&resolved(&scenario));
    let missing: Vec<String> = schema_keys().difference(&stated).cloned().collect();
    let expected = [
        "game.information.batches",
        "game.information.dispatchers",
        "load.trace",
        "nodes.listen",
        "nodes.tls.ca",
        "nodes.tls.certificate",
        "nodes.tls.key",
        "nodes.tls.peers",
        "source.checkpoint",
        "source.text",
        "virtual.blocks.patience_ms",
    ];
    assert_eq!(missing, expected, "keys of the other kinds alone");
}

proptest::proptest! {
    #[test]
    fn budgets_read_back_as_printed(value in 1e-9..99.9_f64, unit in 0..3) {
        let budget = match unit {
            0 => Budget::Limited(Limit::SavedPercent(value)),
            1 => Budget::Limited(Limit::BitsPerWeight(value / 4.0)),
            _ => Budget::Full,
        };
        proptest::prop_assert_eq!(budget.to_string().parse(), Ok(budget));
    }
}

#[test]
fn the_schema_covers_the_shipped_scenarios_and_refuses_unknown_keys_everywhere() {
    let known = schema_keys();
    let (_folder, files) = shipped();
    for file in files {
        let stated = keys(&fs::read_to_string(&file).expect("a text"));
        let unknown: Vec<&String> = stated.difference(&known).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", file.display());
    }
    let mut sections = 0;
    each_schema(&schema(), &mut |part| {
        if part["properties"].is_object() {
            sections += 1;
            assert_eq!(part["additionalProperties"], false, "{part}");
            for (key, property) in part["properties"].as_object().expect("an object") {
                let described = property["description"].is_string() || key == "kind";
                assert!(described, "`{key}` has no description");
            }
        }
        // Without limits a number could pass the schema and then fail to fit its type.
        if part["type"] == "integer" {
            let limited = part["enum"].is_array() || part["maximum"].is_number();
            assert!(limited, "{part}");
        }
    });
    assert_eq!(
        sections, 24,
        "the root, two sources, three informations, four of a sweep and fourteen others"
    );
}

fn each_schema(schema: &serde_json::Value, visit: &mut impl FnMut(&serde_json::Value)) {
    visit(schema);
    let parts = schema["properties"].as_object().into_iter().flat_map(|map| map.values());
    let variants = schema["oneOf"].as_array().into_iter().flatten();
    parts.chain(variants).for_each(|part| each_schema(part, visit));
}

/// The dotted keys of every single value in a TOML text.
fn keys(text: &str) -> BTreeSet<String> {
    fn collect(table: &toml::Table, path: &str, keys: &mut BTreeSet<String>) {
        for (key, value) in table {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match value {
                toml::Value::Table(inner) => collect(inner, &path, keys),
                _ => drop(keys.insert(path)),
            }
        }
    }
    let mut keys = BTreeSet::new();
    collect(&text.parse().expect("TOML"), "", &mut keys);
    keys
}

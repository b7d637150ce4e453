//! Keys that are set beside the file.

use super::{GOOD, known, read, refused, schema_keys, shipped};
use agents::precision::Budget as Limit;
use nashflock::scenario::file::{Engine, Nodes};
use nashflock::scenario::{Budget, load, sets_of_nodes};

#[test]
fn sets_override_the_file_and_the_last_one_wins() {
    let scenario = read(
        GOOD,
        &[
            "game.router=top_k",
            "precision.budget=2.5bpw",
            "precision.widths=[2, 8]",
            "load.rate_per_s=80",
            "seed=1",
            "seed=2",
            "flock.enabled=false",
            "goals.p99_ms_max=500",
        ],
    )
    .expect("the overridden scenario reads");
    assert_eq!(scenario.game.router, "top_k");
    assert_eq!(scenario.precision.budget, Budget::Limited(Limit::BitsPerWeight(2.5)));
    assert_eq!(scenario.precision.widths, [2, 8]);
    assert_eq!((scenario.load.rate_per_s, scenario.seed), (80.0, 2));
    assert_eq!((scenario.flock.enabled, scenario.goals.p99_ms_max), (false, Some(500.0)));

    let sets =
        sets_of_nodes(&"peers:127.0.0.1:1,localhost:2,[::1]:3".parse().expect("three peers"));
    let scenario = read(GOOD, &sets.iter().map(String::as_str).collect::<Vec<_>>());
    let peers = ["127.0.0.1:1", "localhost:2", "[::1]:3"].map(str::to_owned).to_vec();
    let nodes = Nodes { count: 3, engine: Engine::Peers, peers, ..Nodes::default() };
    assert_eq!(scenario.expect("three peers").nodes, nodes);
}

#[test]
fn problems_of_a_set_name_the_set() {
    let rows = [
        (
            "game.rooter=x",
            "game.rooter",
            "unknown key `rooter` in [game]",
            "did you mean `router`?",
        ),
        ("nods.count=3", "nods", "unknown key `nods`", "did you mean `nodes`?"),
        ("game.router=equilibrum", "game.router", "no router", "did you mean \"equilibrium\"?"),
        ("precision.widths=[2,5]", "precision.widths[1]", "one of 2, 4, 8, not 5", "write one of"),
        ("name.x=5", "name.x", "`name` is a single value", "write `--set name=…`"),
        ("seed", "seed", "has no `=`", "--set section.key=value"),
        ("nodes.replicas=9", "nodes.replicas", "`nodes.count` is 2", "more nodes"),
        ("source.experts=1", "game.top_k", "`source.experts` is 1", "top_k from 1 to 1"),
        (
            "load.batch_requests_max=16385",
            "load.batch_requests_max",
            "exceeds 1048576 tokens a batch",
            "fewer requests a batch",
        ),
        (
            "source.experts=65536",
            "source.experts",
            "more than 1073741824",
            "fewer or smaller experts",
        ),
    ];
    for (set, key, message, help) in rows {
        let problems = refused(GOOD, &[set]);
        let all = problems.to_string();
        let problem = &problems.0[0];
        assert_eq!(problem.key, key, "{all}");
        assert!(problem.message.contains(message) && problem.help.contains(help), "{all}");
        if set != "source.experts=1" {
            assert_eq!((problems.0.len(), problem.line), (1, None), "{all}");
            assert!(all.starts_with(&format!("--set {set}: ")), "{all}");
        }
    }
}

/// Sets every key to values of every type: the schema must refuse all that serde would, since
/// serde's own errors have no place in the file and hide the rest.
#[test]
fn whatever_the_schema_lets_through_is_a_scenario() {
    let values = [
        "0",
        "1",
        "2",
        "-1",
        "4294967296",
        "9223372036854775807",
        "0.5",
        "1e300",
        "inf",
        "nan",
        "true",
        "''",
        "x",
        "4bpw",
        "[]",
        "[2]",
        "['a:1']",
        "[[]]",
        "{}",
        "{a=1}",
        "2026-01-01",
    ];
    let (folder, _) = shipped();
    let (mut read, mut refused) = (0, 0);
    // One with a checkpoint as its source and one that is synthetic.
    let files = ["quickstart.toml", "synthetic-skew.toml"].map(|name| folder.path().join(name));
    for (file, key) in
        files.iter().flat_map(|file| schema_keys().into_iter().map(move |key| (file, key)))
    {
        for value in values {
            match load(file, &[format!("{key}={value}")], &known()) {
                Ok(_) => read += 1,
                Err(problems) => {
                    refused += 1;
                    let keyed = problems.0.iter().all(|problem| !problem.key.is_empty());
                    assert!(keyed, "{key}={value}: {problems}");
                }
            }
        }
    }
    assert!(read > 100 && refused > 1000, "{read} read, {refused} refused");
}

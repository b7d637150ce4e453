//! Overrides from the command line: `--set a.b=c`, and what `--nodes` stands for.

use crate::dispatch::NodeSpec;
use toml::{Table, Value};

/// The `--set` texts that a `--nodes` specification stands for.
#[must_use]
pub fn sets_of_nodes(spec: &NodeSpec) -> Vec<String> {
    let sets = |engine: &str, count: Option<usize>, peers: &[String]| {
        let count = count.map(|count| format!("nodes.count={count}"));
        let engine = format!("nodes.engine={engine}");
        let peers = Value::from(peers.to_vec());
        [engine, format!("nodes.peers={peers}")].into_iter().chain(count).collect()
    };
    match spec {
        NodeSpec::InProcess => sets("in-process", None, &[]),
        NodeSpec::Virtual(count) => sets("virtual", Some(count.get() as usize), &[]),
        NodeSpec::Local(count) => sets("local", Some(count.get() as usize), &[]),
        NodeSpec::Peers(peers) => sets("peers", Some(peers.len()), peers),
        // The caller adds what the engine says of the job: `nodes.count` and `nodes.listen`.
        NodeSpec::Slurm | NodeSpec::Kubernetes => sets("join", None, &[]),
        NodeSpec::Join(listen, seats) => {
            let mut sets = sets("join", Some(seats.get() as usize), &[]);
            sets.push(format!("nodes.listen={}", Value::from(listen.as_str())));
            sets
        }
    }
}

/// Message and help of a `--set` that cannot be applied.
pub(super) type Refused = (String, String);

/// Splits `a.b=c` into its dotted key and its value: a TOML value, else a bare string.
pub(super) fn split(set: &str) -> Result<(String, Value), Refused> {
    let help = || "write `--set section.key=value`, such as `--set game.top_k=4`".to_owned();
    let Some((key, value)) = set.split_once('=') else {
        return Err((format!("`{set}` has no `=`"), help()));
    };
    let parts: Vec<&str> = key.split('.').map(str::trim).collect();
    const DEPTH_MAX: usize = 8;
    if parts.len() > DEPTH_MAX || parts.iter().any(|part| part.is_empty()) {
        return Err((format!("`{key}` is not a dotted key"), help()));
    }
    let value = value.trim();
    Ok((parts.join("."), value.parse().unwrap_or_else(|_| Value::from(value))))
}

/// Writes a value under its dotted key; sections that are missing are made.
pub(super) fn apply(table: &mut Table, key: &str, value: Value) -> Result<(), Refused> {
    let Some((section, rest)) = key.split_once('.') else {
        table.insert(key.into(), value);
        return Ok(());
    };
    match table.entry(section).or_insert_with(|| Table::new().into()) {
        Value::Table(inner) => apply(inner, rest, value),
        _ => Err((
            format!("`{section}` is a single value, so there is no `{section}.{rest}`"),
            format!("write `--set {section}=…`"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_a_toml_value_or_else_a_bare_string() {
        let rows: [(&str, &str, Value); 11] = [
            ("seed=7", "seed", 7.into()),
            ("game.router=top_k", "game.router", "top_k".into()),
            ("game.router=\"top_k\"", "game.router", "top_k".into()),
            ("precision.budget=2.5bpw", "precision.budget", "2.5bpw".into()),
            ("precision.budget=90.6%", "precision.budget", "90.6%".into()),
            ("load.rate_per_s=1e3", "load.rate_per_s", 1000.0.into()),
            ("flock.enabled=false", "flock.enabled", false.into()),
            (" precision.widths = [2, 4]", "precision.widths", vec![2, 4].into()),
            ("nodes.peers=[]", "nodes.peers", Value::Array(Vec::new())),
            ("name=a=b", "name", "a=b".into()),
            // A line break must not smuggle in a second key.
            ("seed=1\nname=2", "seed", "1\nname=2".into()),
        ];
        for (set, key, value) in rows {
            assert_eq!(split(set), Ok((key.to_owned(), value)), "{set}");
        }
        for set in ["seed", "=1", "game.=1", ".game=1", "game..top_k=1"] {
            assert!(split(set).is_err(), "{set}");
        }
    }

    #[test]
    fn nodes_specifications_map_to_sets() {
        let sets = |spec: &str| sets_of_nodes(&spec.parse().expect(spec));
        assert_eq!(sets("in-process"), ["nodes.engine=in-process", "nodes.peers=[]"]);
        assert_eq!(sets("local:3")[2], "nodes.count=3");
        assert_eq!(sets("virtual:3")[0], "nodes.engine=virtual");
        assert_eq!(
            sets("peers:a:1,[::1]:2"),
            ["nodes.engine=peers", "nodes.peers=[\"a:1\", \"[::1]:2\"]", "nodes.count=2"]
        );
        assert_eq!(
            sets("join:127.0.0.1:5000:3"),
            [
                "nodes.engine=join",
                "nodes.peers=[]",
                "nodes.count=3",
                "nodes.listen=\"127.0.0.1:5000\""
            ]
        );
    }
}

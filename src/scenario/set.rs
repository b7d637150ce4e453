//! Overrides from the command line: `--set a.b=c`, and what `--nodes` stands for.

use toml::{Table, Value};

/// The `--set` texts that a `--nodes` specification stands for: `in-process`, `local:N` or
/// `peers:HOST:PORT,…`.
///
/// # Errors
/// When the specification is none of these, N is not 1 to 4096, or an address is not `host:port`.
pub fn sets_of_nodes(spec: &str) -> Result<Vec<String>, NodesSpecError> {
    let error = |reason: &str| NodesSpecError { spec: spec.into(), reason: reason.into() };
    let sets = |engine: &str, count: Option<usize>, peers: Vec<&str>| {
        let count = count.map(|count| format!("nodes.count={count}"));
        let engine = format!("nodes.engine={engine}");
        [engine, format!("nodes.peers={}", Value::from(peers))].into_iter().chain(count).collect()
    };
    match spec.split_once(':').map_or((spec, None), |(kind, rest)| (kind, Some(rest))) {
        ("in-process", None) => Ok(sets("in-process", None, Vec::new())),
        ("local", Some(count)) => match count.parse() {
            Ok(count @ 1..=4096) => Ok(sets("local", Some(count), Vec::new())),
            _ => Err(error("N in `local:N` is a whole number from 1 to 4096")),
        },
        ("peers", Some(peers)) => {
            let peers: Vec<&str> = peers.split(',').map(str::trim).collect();
            match peers.iter().find(|peer| !is_host_port(peer)) {
                Some(peer) => Err(error(&format!("`{peer}` is not host:port"))),
                None => Ok(sets("peers", Some(peers.len()), peers)),
            }
        }
        ("slurm", _) | ("virtual", _) => Err(error("not available in this version")),
        _ => Err(error("write `in-process`, `local:N` or `peers:HOST:PORT,…`")),
    }
}

/// A `--nodes` specification that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--nodes {spec}: {reason}")]
pub struct NodesSpecError {
    spec: String,
    reason: String,
}

/// Whether a text is `host:port`, with a port from 1 to 65535 and IPv6 hosts in brackets.
pub(super) fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let plain = |host: &str| {
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
    };
    let bracketed = |host: &str| {
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok())
    };
    (plain(host) || bracketed(host)) && port.parse::<u16>().is_ok_and(|port| port > 0)
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
        let sets = |spec| sets_of_nodes(spec).map_err(|error| error.to_string());
        assert_eq!(
            sets("in-process"),
            Ok(vec!["nodes.engine=in-process".into(), "nodes.peers=[]".into()])
        );
        assert_eq!(sets("local:3").expect("three nodes")[2], "nodes.count=3");
        assert_eq!(
            sets("peers:a:1,[::1]:2"),
            Ok(vec![
                "nodes.engine=peers".into(),
                "nodes.peers=[\"a:1\", \"[::1]:2\"]".into(),
                "nodes.count=2".into()
            ])
        );
        for (spec, reason) in [
            ("local:0", "from 1 to 4096"),
            ("local", "write `in-process`"),
            ("peers:a", "`a` is not host:port"),
            ("peers:a:1,,b:2", "`` is not host:port"),
            ("peers:a:0", "`a:0` is not host:port"),
            ("peers:http://a:1", "`http://a:1` is not host:port"),
            ("slurm", "not available in this version"),
            ("virtual:9", "not available in this version"),
            ("cloud", "write `in-process`"),
        ] {
            let message = sets(spec).expect_err(spec);
            assert!(message.contains(reason) && message.contains(spec), "{message}");
        }
    }
}

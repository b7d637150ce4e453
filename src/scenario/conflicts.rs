//! Checks that no single key can fail: names that others define, keys that contradict each other,
//! files that are not there.

mod generation;
mod migration;
mod precision;
mod security;
mod virtual_nodes;

use std::path::Path;

use super::file::{
    Arrival, Choice, Combine, Engine, Information, Nodes, PlacementRule, Scenario, Source,
};
use super::problem::{At, Origins, Problem, within};
use super::read::Known;
use super::shape::{closest, quoted};
use agents::game::{CostError, GameShape};

pub(crate) use migration::migration_problem;

/// Every conflict. A check that reads a key in `bad` is left out: that key is reported already and
/// its value here is a placeholder.
pub(super) fn find(
    scenario: &Scenario,
    known: &Known<'_>,
    origins: &Origins,
    bad: &[String],
) -> Vec<Problem> {
    let mut found = Found { origins, bad, problems: Vec::new() };
    game(scenario, known, &mut found);
    cost(scenario, known, &mut found);
    information(scenario, &mut found);
    motion(scenario, known, &mut found);
    precision::find(scenario, known, &mut found);
    nodes(scenario, &mut found);
    migration::find(scenario, known, &mut found);
    load(scenario, &mut found);
    synthetic(scenario, &mut found);
    files(scenario, &mut found);
    found.problems
}

struct Found<'a> {
    origins: &'a Origins,
    bad: &'a [String],
    problems: Vec<Problem>,
}

impl Found<'_> {
    /// Reports on the first of the keys that the check reads, unless it holds; points at the first
    /// of them that was written, since the others have their defaults.
    fn unless(&mut self, holds: bool, keys: &[&str], text: impl FnOnce() -> (String, String)) {
        let is_bad = |key: &&str| self.bad.iter().any(|bad| within(key, bad) || within(bad, key));
        if !holds && !keys.iter().any(is_bad) {
            let (message, help) = text();
            let written = keys.iter().find(|key| self.origins.is_written(key));
            let place = written.unwrap_or(&keys[0]);
            let mut problem = self.origins.problem(place, At::Value, message, help);
            problem.key = keys[0].into();
            self.problems.push(problem);
        }
    }
}

fn game(scenario: &Scenario, known: &Known<'_>, found: &mut Found<'_>) {
    let router = &scenario.game.router;
    found.unless(known.routers.contains(router), &["game.router"], || {
        let names = known.routers.iter().map(String::as_str).collect();
        (format!("there is no router \"{router}\""), one_of(router, names))
    });
    let Source::Synthetic { experts, .. } = scenario.source else { return };
    let top_k = scenario.game.top_k;
    found.unless(top_k.is_some(), &["game.top_k"], || {
        let message = "`game.top_k` is missing: a synthetic source has no model to take it from";
        (message.into(), format!("add `top_k = …` under [game], 1 to {experts}"))
    });
    let top_k = top_k.unwrap_or(1);
    found.unless(top_k <= experts, &["game.top_k", "source.experts"], || {
        let message = format!("`game.top_k` is {top_k} but `source.experts` is {experts}");
        (message, format!("write a top_k from 1 to {experts}, or more experts"))
    });
    let neighbours = scenario.flock.neighbours;
    let holds = !scenario.flock.enabled || neighbours < experts;
    found.unless(holds, &["flock.neighbours", "source.experts", "flock.enabled"], || {
        let message = format!("`flock.neighbours` is {neighbours} but `source.experts` is {experts}");
        (message, "an expert has at most experts - 1 neighbours: write fewer neighbours, or flock.enabled = false".into())
    });
}

fn motion(scenario: &Scenario, known: &Known<'_>, found: &mut Found<'_>) {
    let Some(name) = scenario.flock.motion_rule() else { return };
    found.unless(known.motions.names().any(|known| known == name), &["flock.motion"], || {
        let names = known.motions.names().chain(["none"]).collect();
        (format!("there is no rule of motion \"{name}\""), one_of(name, names))
    });
    let has_rows = matches!(scenario.source, Source::Checkpoint { .. });
    found.unless(has_rows, &["flock.motion", "source.kind"], || {
        let message = "`flock.motion` moves router rows, but a synthetic source has none";
        (message.into(), "read a checkpoint, or leave `motion` out".into())
    });
}

/// The name that was probably meant, or all there are.
fn one_of(name: &str, known: Vec<&str>) -> String {
    match closest(name, known.iter().copied()) {
        Some(name) => format!("did you mean \"{name}\"?"),
        None => format!("write one of {}", quoted(known)),
    }
}

fn cost(scenario: &Scenario, known: &Known<'_>, found: &mut Found<'_>) {
    let game = &scenario.game;
    let name = &game.cost;
    found.unless(known.costs.names().any(|known| known == name), &["game.cost"], || {
        let names = known.costs.names().collect();
        (format!("there is no congestion cost \"{name}\""), one_of(name, names))
    });
    if name == "latency" {
        found.unless(!game.service_ms.is_empty(), &["game.service_ms", "game.cost"], || {
            let message = "`game.service_ms` is missing: cost `latency` needs service times";
            (
                message.into(),
                "add `service_ms = […]` under [game]: one time in ms, or one for every expert"
                    .into(),
            )
        });
        found.unless(game.window_ms.is_some(), &["game.window_ms", "game.cost"], || {
            let message =
                "`game.window_ms` is missing: cost `latency` needs the time to serve a batch in";
            (message.into(), "add `window_ms = …` under [game]".into())
        });
        if game.service_ms.is_empty() || game.window_ms.is_none() {
            return;
        }
    }
    // The experts of a checkpoint are known when it is loaded, and checked then.
    let (Source::Synthetic { experts, .. }, Some(top_k)) = (&scenario.source, game.top_k) else {
        return;
    };
    let tokens = scenario.batch_tokens_max();
    let kept = scenario.precision.kept_experts(*experts as usize);
    let playable =
        (1..=kept).contains(&(top_k as usize)) && (1..=BATCH_TOKENS_MAX).contains(&tokens);
    let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
    let shape = GameShape { tokens, experts: kept, top_k: top_k as usize };
    if !playable {
        return;
    }
    let Err(error) = known.costs.build(name, &game.cost_parameters(), shape) else { return };
    let experts_key = ["source.experts", "game.top_k", "game.cost"];
    let (keys, help): (Vec<&str>, _) = match &error {
        CostError::Unknown { .. } => return,
        CostError::Range { parameter, .. } => {
            let key = format!("game.{parameter}");
            let help = format!("write another `{parameter}`");
            return found.unless(false, &[&key, "game.cost"], || (error.to_string(), help));
        }
        // Reported as such: who is pruned is not known yet.
        CostError::ServiceTimes { .. } if scenario.precision.prune > 0.0 => return,
        CostError::ServiceTimes { .. } => {
            let help = format!("list {experts} times, or one for all experts");
            ([&["game.service_ms"], &experts_key[..]].concat(), help)
        }
        CostError::Places { .. } => (
            [&["game.window_ms", "game.service_ms"], &BATCH_KEYS[..], &experts_key[..]].concat(),
            "write a longer window_ms, shorter service_ms, or a smaller batch".into(),
        ),
    };
    found.unless(false, &keys, || (error.to_string(), help));
}

fn information(scenario: &Scenario, found: &mut Found<'_>) {
    let requests = scenario.load.requests;
    match scenario.game.information {
        Information::InBatch => {}
        Information::Stale { batches } => {
            let keys = ["game.information.batches", "game.information", "load.requests"];
            found.unless(batches < requests, &keys, || {
                let message = format!(
                    "`game.information.batches` is {batches} but {requests} requests make at most \
                     {requests} batches: no prices would ever come into force"
                );
                (message, "write fewer batches, or more requests".into())
            });
        }
        Information::Partial { dispatchers } => {
            let tokens = scenario.batch_tokens_max();
            let keys = ["game.information.dispatchers", "game.information"];
            let keys = [&keys[..], &BATCH_KEYS].concat();
            found.unless(u64::from(dispatchers) <= tokens, &keys, || {
                let message = format!(
                    "`game.information.dispatchers` is {dispatchers} but a batch has at most {tokens} tokens"
                );
                (message, "write fewer dispatchers, or a larger batch".into())
            });
        }
    }
}

fn nodes(scenario: &Scenario, found: &mut Found<'_>) {
    let nodes = &scenario.nodes;
    let (count, replicas, peers) = (nodes.count, nodes.replicas, nodes.peers.len());
    found.unless(replicas <= count, &["nodes.replicas", "nodes.count"], || {
        let message = format!("`nodes.replicas` is {replicas} but `nodes.count` is {count}");
        (
            message,
            "replicas of an expert stand on different nodes: write fewer replicas or more nodes"
                .into(),
        )
    });
    placement(scenario, found);
    joining(nodes, found);
    virtual_nodes::find(scenario, found);
    security::find(nodes, found);
    let has_copies = nodes.replicas > 1 || nodes.replica_slots > 0;
    let checks = nodes.spot_check_share > 0.0;
    found.unless(!checks || has_copies, &["nodes.spot_check_share", "nodes.replicas"], || {
        let share = nodes.spot_check_share;
        let message =
            format!("`nodes.spot_check_share` is {share} but no expert has a second node");
        (message, "write replicas = 2 or more, or take the share out".into())
    });
    let sums = nodes.combine == Combine::AtWorker;
    found.unless(!checks || !sums, &["nodes.spot_check_share", "nodes.combine"], || {
        let message =
            "`nodes.spot_check_share` compares outputs but `nodes.combine` is \"at_worker\"";
        (message.into(), "write combine = \"exact\", or take the share out".into())
    });
    let chooses = nodes.choice != Choice::Planned;
    let choice = nodes.choice.name();
    found.unless(!chooses || has_copies, &["nodes.choice", "nodes.replicas"], || {
        let message = format!("`nodes.choice` is \"{choice}\" but no expert has a second node");
        (message, "write replicas = 2 or more, or take the choice out".into())
    });
    found.unless(!chooses || !sums, &["nodes.choice", "nodes.combine"], || {
        let message = format!(
            "`nodes.choice` is \"{choice}\" but `nodes.combine` is \"at_worker\": sums would depend on \
             which nodes are quick"
        );
        (message, "write combine = \"exact\", or choice = \"planned\"".into())
    });
    if nodes.engine == Engine::Peers {
        found.unless(
            peers == count as usize,
            &["nodes.peers", "nodes.count", "nodes.engine"],
            || {
                let message =
                    format!("`nodes.peers` lists {peers} addresses but `nodes.count` is {count}");
                (
                    message,
                    "list one host:port a node, or use --nodes peers:HOST:PORT,…, which sets both"
                        .into(),
                )
            },
        );
    } else {
        found.unless(peers == 0, &["nodes.peers", "nodes.engine"], || {
            let message = "`nodes.peers` lists addresses but `nodes.engine` is not \"peers\"";
            (message.into(), "write engine = \"peers\", or take the peers out".into())
        });
    }
    for (index, peer) in nodes.peers.iter().enumerate() {
        let key = format!("nodes.peers[{index}]");
        found.unless(!nodes.peers[..index].contains(peer), &[&key], || {
            (format!("`nodes.peers` lists {peer} twice"), "list each worker once".into())
        });
    }
}

fn joining(nodes: &Nodes, found: &mut Found<'_>) {
    let joins = nodes.engine == Engine::Join;
    found.unless(!joins || nodes.listen.is_some(), &["nodes.listen", "nodes.engine"], || {
        let message = "`nodes.listen` is missing: engine \"join\" needs an address for workers";
        (
            message.into(),
            "add `listen = \"IP:PORT\"` under [nodes], or use --nodes join:IP:PORT:N".into(),
        )
    });
    found.unless(joins || nodes.listen.is_none(), &["nodes.listen", "nodes.engine"], || {
        let message = "`nodes.listen` is given but `nodes.engine` is not \"join\"";
        (message.into(), "write engine = \"join\", or take the address out".into())
    });
    let (least, count) = (nodes.min_workers.unwrap_or(1), nodes.count);
    found.unless(least <= count, &["nodes.min_workers", "nodes.count"], || {
        let message = format!("`nodes.min_workers` is {least} but `nodes.count` is {count}");
        (message, "a worker needs a seat: write fewer min_workers or more nodes".into())
    });
}

fn placement(scenario: &Scenario, found: &mut Found<'_>) {
    let nodes = &scenario.nodes;
    let rule = nodes.placement.name();
    if nodes.placement == PlacementRule::RoundRobin {
        let holds = nodes.replica_slots == 0;
        found.unless(holds, &["nodes.replica_slots", "nodes.placement"], || {
            let slots = nodes.replica_slots;
            let message =
                format!("`nodes.replica_slots` is {slots} but `nodes.placement` is \"{rule}\"");
            let help = "write placement = \"eplb\" or \"planned\", or give every expert as many \
                        copies with `nodes.replicas`";
            (message, help.into())
        });
        return;
    }
    found.unless(nodes.replicas == 1, &["nodes.replicas", "nodes.placement"], || {
        let replicas = nodes.replicas;
        let message = format!("`nodes.replicas` is {replicas} but `nodes.placement` is \"{rule}\"");
        let help = "say how many further copies a layer has with `nodes.replica_slots`, or write \
                    placement = \"round_robin\"";
        (message, help.into())
    });
    // A checkpoint states its experts when it is loaded.
    let Source::Synthetic { experts, .. } = scenario.source else { return };
    if let Some(problem) = slots_problem(nodes, scenario.precision.kept_experts(experts as usize)) {
        let keys = ["nodes.replica_slots", "nodes.placement", "nodes.count", "source.experts"];
        found.unless(false, &keys, || problem);
    }
}

/// Why layers of `experts` cannot be placed as `nodes` asks by `replica_slots`: message and help.
pub(crate) fn slots_problem(nodes: &Nodes, experts: usize) -> Option<(String, String)> {
    let (count, slots) = (nodes.count as usize, nodes.replica_slots as usize);
    let most = experts * count.saturating_sub(1);
    if slots > most {
        let message = format!(
            "`nodes.replica_slots` is {slots} but {experts} experts on {count} nodes can have \
             {most} further copies"
        );
        let help = format!("a node holds an expert once: write at most {most}, or more nodes");
        return Some((message, help));
    }
    let rest = (experts + slots) % count.max(1);
    (nodes.placement == PlacementRule::Eplb && rest > 0).then(|| {
        let copies = experts + slots;
        let message = format!(
            "`nodes.placement` \"eplb\" gives every node as many copies, but {copies} \
             ({experts} experts and {slots} replica_slots) do not divide over {count} nodes"
        );
        let next = slots + count - rest;
        (message, format!("write replica_slots = {next}, or placement = \"planned\""))
    })
}

/// Tokens of a batch, at most: each is an agent with rows in several matrices.
const BATCH_TOKENS_MAX: u64 = 1 << 20;

/// What the largest batch follows from.
const BATCH_KEYS: [&str; 2] = ["load.batch_requests_max", "load.tokens_per_request"];

fn load(scenario: &Scenario, found: &mut Found<'_>) {
    let load = &scenario.load;
    let (requests, tokens) = (load.batch_requests_max, load.tokens_per_request);
    generation::find(scenario, found);
    found.unless(scenario.batch_tokens_max() <= BATCH_TOKENS_MAX, &BATCH_KEYS, || {
        let message = format!(
            "`load.batch_requests_max` {requests} times `load.tokens_per_request` {tokens} exceeds \
             {BATCH_TOKENS_MAX} tokens a batch"
        );
        (message, "write fewer requests a batch or fewer tokens a request".into())
    });
    let is_replay = load.arrival == Arrival::Trace;
    found.unless(!is_replay || load.trace.is_some(), &["load.trace", "load.arrival"], || {
        let message = "`load.arrival` is \"trace\" but `load.trace` is missing".to_owned();
        (message, "add `trace = …` under [load]: a CSV file with a column of times".into())
    });
    found.unless(is_replay || load.trace.is_none(), &["load.trace", "load.arrival"], || {
        let message = "`load.trace` is given but `load.arrival` is another".to_owned();
        (message, "write arrival = \"trace\", or take the trace out".into())
    });
}

/// Weights of all seeded experts, at most: 4 GiB in f32.
const SYNTHETIC_WEIGHTS_MAX: u128 = 1 << 30;

fn synthetic(scenario: &Scenario, found: &mut Found<'_>) {
    let Source::Synthetic { experts, layers, width, expert_hidden, .. } = scenario.source else {
        return;
    };
    let sizes = [layers, experts, width, expert_hidden];
    let weights: u128 = 3 * sizes.into_iter().map(u128::from).product::<u128>();
    let keys = ["source.experts", "source.layers", "source.width", "source.expert_hidden"];
    let are_computed = scenario.virtual_nodes.blocks.is_off();
    found.unless(weights <= SYNTHETIC_WEIGHTS_MAX || !are_computed, &keys, || {
        let message = format!(
            "the experts would have {weights} weights, more than {SYNTHETIC_WEIGHTS_MAX}: three times \
             experts, layers, width and expert_hidden multiplied"
        );
        (message, "write fewer or smaller experts".into())
    });
}

fn files(scenario: &Scenario, found: &mut Found<'_>) {
    let mut text = |key: &str, path: &Path| {
        found.unless(path.is_file(), &[key], || {
            let message = format!("there is no text file {}", path.display());
            (message, "correct the path: it is relative to the scenario file".into())
        });
    };
    if let Some(path) = &scenario.precision.calibration_text {
        text("precision.calibration_text", path);
    }
    if let Some(path) = &scenario.load.trace {
        text("load.trace", path);
    }
    if let Source::Checkpoint { checkpoint, text: texts } = &scenario.source {
        texts.iter().enumerate().for_each(|(i, path)| text(&format!("source.text[{i}]"), path));
        found.unless(checkpoint.exists(), &["source.checkpoint"], || {
            let message = format!("there is no checkpoint {}", checkpoint.display());
            (message, "correct the path: it is relative to the scenario file".into())
        });
    }
}

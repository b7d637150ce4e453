//! What contradicts itself in `[virtual]`, and how many nodes an engine can have.

use super::Found;
use crate::scenario::file::{Engine, Scenario, Shape, Source, Topology, VirtualFault};

/// Nodes that are not virtual, at most.
const REAL_NODES_MAX: u32 = 4096;

pub(super) fn find(scenario: &Scenario, found: &mut Found<'_>) {
    let (count, engine) = (scenario.nodes.count, scenario.nodes.engine);
    let holds = engine == Engine::Virtual || count <= REAL_NODES_MAX;
    found.unless(holds, &["nodes.count", "nodes.engine"], || {
        let message = format!("`nodes.count` is {count}, which only virtual nodes can be");
        let help = format!("write at most {REAL_NODES_MAX}, or engine = \"virtual\"");
        (message, help)
    });
    let with = &scenario.virtual_nodes;
    if !with.blocks.is_off() {
        blocks(scenario, found);
    }
    let has_factors = with.service != Shape::Empirical || !with.service_factors.is_empty();
    found.unless(has_factors, &["virtual.service", "virtual.service_factors"], || {
        let message = "`virtual.service` is \"empirical\" but `virtual.service_factors` is empty";
        (message.into(), "write the factors that were measured".into())
    });
    for (key, factors) in [
        ("virtual.service_factors", &with.service_factors),
        ("virtual.step_factors", &with.step_factors),
        ("virtual.coordinator_factors", &with.coordinator_factors),
    ] {
        found.unless(factors.is_sorted(), &[key], || {
            (format!("`{key}` does not ascend"), "sort the factors".into())
        });
    }
    uplinks(scenario, found);
    memory(scenario, found);
    let racks = match with.topology {
        Topology::Flat => 1,
        Topology::Racks | Topology::Pods => count.div_ceil(with.rack_nodes.max(1)),
    };
    for (at, fault) in with.faults.iter().enumerate() {
        let (place, what) = fault.place();
        let all = if what == "rack" { racks } else { count };
        if let VirtualFault::Pause { every_ms, stopped_ms, .. } = fault {
            let key = format!("virtual.faults[{at}].stopped_ms");
            found.unless(stopped_ms < every_ms, &[&key, "virtual.faults"], || {
                let message =
                    format!("`{key}` is {stopped_ms} but a pause begins every {every_ms} ms");
                (message, "write a shorter pause".into())
            });
        }
        let key = format!("virtual.faults[{at}].{what}");
        // Where other engines run it, nobody reads it.
        let holds = engine != Engine::Virtual || place < all;
        found.unless(holds, &[&key, "virtual.faults", "nodes.count"], || {
            let message = format!("`{key}` is {place} but there are {all}");
            (message, format!("write a {what} from 0 to {}", all.saturating_sub(1)))
        });
    }
}

/// Links between racks and pods need these, and are no slower than what they carry comes.
fn uplinks(scenario: &Scenario, found: &mut Found<'_>) {
    let with = &scenario.virtual_nodes;
    let (port, topology) = ("virtual.gbit_per_s", "virtual.topology");
    let (racks, pods) = (with.topology != Topology::Flat, with.topology == Topology::Pods);
    for (key, gbit_per_s, has_level, needs) in [
        ("virtual.rack_gbit_per_s", with.rack_gbit_per_s, racks, "racks"),
        ("virtual.pod_gbit_per_s", with.pod_gbit_per_s, pods, "pods"),
    ] {
        let is_given = gbit_per_s > 0.0;
        found.unless(has_level || !is_given, &[key, topology], || {
            let message = format!("`{key}` is given but `{topology}` has no {needs}");
            (message, format!("write topology = \"{needs}\", or take the key out"))
        });
        let is_fast = !is_given || gbit_per_s >= with.gbit_per_s;
        found.unless(is_fast, &[key, port], || {
            let message = format!(
                "`{key}` is {gbit_per_s}, less than a node's port: `{port}` is {}",
                with.gbit_per_s
            );
            (message, format!("write at least {}, or 0 for no limit", with.gbit_per_s))
        });
    }
    let has_racks = with.topology != Topology::Flat || !with.blocks.own_rack;
    found.unless(has_racks, &["virtual.blocks.own_rack", topology], || {
        let message = format!("`virtual.blocks.own_rack` is true but `{topology}` is \"flat\"");
        (message, "write topology = \"racks\" or \"pods\", or own_rack = false".into())
    });
}

/// What nodes hold is checked before serving starts, so it has to stay.
fn memory(scenario: &Scenario, found: &mut Found<'_>) {
    let (key, memory_bytes) = ("virtual.memory_bytes", scenario.virtual_nodes.memory_bytes);
    let is_limited = memory_bytes > 0 && scenario.nodes.engine == Engine::Virtual;
    for (moving, stays, off) in [
        ("nodes.migration.policy", scenario.nodes.migration.is_off(), "copies"),
        ("precision.reallocate.every_steps", scenario.precision.reallocate.is_off(), "widths"),
    ] {
        found.unless(stays || !is_limited, &[key, moving], || {
            let message = format!("`{key}` is {memory_bytes}, but {off} change during the run, which it does not follow");
            (message, format!("take `{key}` out, or the section of `{moving}`"))
        });
    }
}

fn blocks(scenario: &Scenario, found: &mut Found<'_>) {
    let (blocks, game) = (&scenario.virtual_nodes.blocks, &scenario.game);
    let on = "virtual.blocks.front_ends";
    let is_virtual = scenario.nodes.engine == Engine::Virtual;
    found.unless(is_virtual, &[on, "nodes.engine"], || {
        let message = "`virtual.blocks.front_ends` is given but `nodes.engine` is not \"virtual\"";
        (message.into(), "write engine = \"virtual\", or take the section out".into())
    });
    let Source::Synthetic { experts, layers, .. } = scenario.source else {
        return found.unless(false, &["source.kind", on], || {
            let message = "`virtual.blocks` draws affinities, but `source.kind` is \"checkpoint\"";
            (message.into(), "write kind = \"synthetic\", or take the section out".into())
        });
    };
    found.unless(layers == 1, &["source.layers", on], || {
        let message = format!("`source.layers` is {layers} but requests of blocks pass one layer");
        (message, "write layers = 1".into())
    });
    found.unless(game.router == "top_k", &["game.router", on], || {
        let message = format!(
            "`game.router` is \"{}\" but blocks take the top k of affinity less price",
            game.router
        );
        (message, "write router = \"top_k\": [virtual.blocks] says how prices come about".into())
    });
    let priced = ["linear", "polynomial"].contains(&game.cost.as_str());
    found.unless(priced || !blocks.prices, &["game.cost", "virtual.blocks.prices"], || {
        let message = format!("`game.cost` is \"{}\", which front ends cannot price", game.cost);
        (message, "write cost = \"linear\" or \"polynomial\", or prices = false".into())
    });
    let (top_k, candidates) = (game.top_k.unwrap_or(1), blocks.candidates);
    found.unless(top_k <= 64, &["game.top_k", on], || {
        let message =
            format!("`game.top_k` is {top_k} but requests of blocks have at most 64 experts");
        (message, "write a smaller top_k".into())
    });
    let fits = (top_k..=experts).contains(&candidates);
    found.unless(fits, &["virtual.blocks.candidates", "game.top_k", "source.experts"], || {
        let message =
            format!("`virtual.blocks.candidates` is {candidates}, not from {top_k} to {experts}");
        (message, "write at least top_k, and at most the experts".into())
    });
    for (at, width) in blocks.widths.iter().enumerate() {
        let key = format!("virtual.blocks.widths[{at}].bits");
        let is_whole = (width.bits * 16.0).fract() == 0.0;
        found.unless(is_whole, &[&key, "virtual.blocks.widths"], || {
            let message = format!("`{key}` is {}, not a multiple of 1/16", width.bits);
            (message, format!("write {}", (width.bits * 16.0).round() / 16.0))
        });
    }
    let (count, slots) = (scenario.nodes.count, blocks.expert_slots);
    let has_room = u64::from(count) * u64::from(slots) >= u64::from(experts);
    found.unless(
        has_room,
        &["virtual.blocks.expert_slots", "nodes.count", "source.experts"],
        || {
            let message =
                format!("{count} nodes with memory for {slots} experts each cannot hold {experts}");
            (message, "write more nodes or more expert_slots".into())
        },
    );
    let can_be_silent = scenario.virtual_nodes.faults.iter().any(|fault| {
        use crate::scenario::file::VirtualFault as Fault;
        matches!(fault, Fault::Partition { .. } | Fault::Flaky { .. })
    });
    let has_patience = blocks.patience_ms.is_some() || !can_be_silent;
    found.unless(has_patience, &["virtual.blocks.patience_ms", "virtual.faults"], || {
        let message = "`virtual.faults` lose messages without notice, and requests wait for ever";
        (message.into(), "add `patience_ms = …` under [virtual.blocks]".into())
    });
}

//! What a scenario says of virtual nodes, as the virtual cluster takes it.

use crate::dispatch::{Coordinator, VirtualSettings};
use crate::scenario::Scenario;
use crate::scenario::file::{self, Shape, VirtualFault, VirtualNodes};
use agents::cluster::{
    CrashRate, Fault, FaultPlan, Hardware, Network, Noise, Service, Topology, Uplinks,
};
use agents::ids::NodeId;
use std::ops::Range;

const US: f64 = 1e3;
const MS: f64 = 1e6;

/// Crashes at random come within this time: a run of a day.
const CRASHES_UNTIL_NS: u64 = 86_400_000_000_000;

/// Of the nodes of engine `virtual`, and of the coordinator beside them.
pub(super) fn settings(scenario: &Scenario) -> VirtualSettings {
    let (nodes, with) = (&scenario.nodes, &scenario.virtual_nodes);
    VirtualSettings {
        hardware: hardware(with, nodes.count, scenario.seed, CRASHES_UNTIL_NS),
        nodes: nodes.count,
        deadline_ms: u64::from(nodes.deadline_ms),
        hedge_budget: nodes.hedge_budget,
        coordinator: Coordinator {
            round_ns: with.coordinator_round_us * US,
            token_ns: with.coordinator_token_us * US,
            step_ns: with.coordinator_step_us * US,
            step_token_ns: with.coordinator_step_token_us * US,
            noise: empirical(&with.coordinator_factors),
        },
        step_noise: empirical(&with.step_factors),
        shared_cores: with.shared_cores,
        seed: scenario.seed,
    }
}

/// Nodes, ways and faults.
pub(super) fn hardware(
    with: &VirtualNodes,
    nodes: u32,
    seed: u64,
    crashes_until_ns: u64,
) -> Hardware {
    const MIB: f64 = (1 << 20) as f64;
    let network = network(with);
    let topology = network.topology;
    let service = Service {
        setup_ns: with.setup_us * US,
        pair_ns: with.pair_us * US,
        weight_byte_ns: with.weight_mib_us * US / MIB,
        pass_byte_ns: with.pass_mib_us * US / MIB,
        noise: match with.service {
            Shape::Constant => Noise::Constant,
            Shape::Exponential => Noise::Exponential,
            Shape::LogNormal => Noise::LogNormal(with.service_deviation),
            Shape::Empirical => empirical(&with.service_factors),
        },
        node_deviation: with.node_deviation,
        slowness: (0..).map(NodeId).zip(with.node_factors.iter().copied()).collect(),
    };
    let faults: Vec<Fault> = with.faults.iter().map(fault).collect();
    const HOUR_NS: f64 = 3.6e12;
    let rate = CrashRate {
        per_node_ns: with.crashes_per_hour / HOUR_NS,
        down_ns: with.crash_ms * MS,
        until_ns: crashes_until_ns,
    };
    let plan =
        FaultPlan::new(&faults, nodes, |node| topology.rack(node)).with_crashes(rate, nodes, seed);
    Hardware::new(service, network, plan, whole(with.detect_ms * MS), seed)
}

/// The ways between nodes.
pub(super) fn network(with: &VirtualNodes) -> Network {
    let link = |gbit_per_s: f64| (gbit_per_s > 0.0).then_some(gbit_per_s / 8.0);
    let uplinks = Uplinks {
        rack_bytes_per_ns: link(with.rack_gbit_per_s),
        pod_bytes_per_ns: link(with.pod_gbit_per_s),
    };
    // Links part a way in up to five, of which each takes time.
    let least_ns = if uplinks.are_none() { 1 } else { 5 };
    Network {
        topology: topology(with),
        base_ns: [with.latency_us, with.latency_rack_us, with.latency_pod_us]
            .map(|us| whole(us * US).max(least_ns)),
        jitter_ns: with.jitter_us * US,
        jitter: Noise::Exponential,
        bytes_per_ns: with.gbit_per_s / 8.0,
        message_ns: whole(with.message_us * US),
        uplinks,
    }
}

/// Constant where there are no factors.
fn empirical(factors: &[f64]) -> Noise {
    if factors.is_empty() { Noise::Constant } else { Noise::Empirical(factors.into()) }
}

/// Which nodes are near.
pub(super) fn topology(with: &VirtualNodes) -> Topology {
    match with.topology {
        file::Topology::Flat => Topology::Flat,
        file::Topology::Racks => Topology::Racks { rack: with.rack_nodes },
        file::Topology::Pods => Topology::Pods { rack: with.rack_nodes, racks: with.pod_racks },
    }
}

fn fault(fault: &VirtualFault) -> Fault {
    let when = |at_ms: f64, for_ms: f64| -> Range<u64> {
        let from_ns = whole(at_ms * MS);
        from_ns..from_ns + whole(for_ms * MS)
    };
    match *fault {
        VirtualFault::Crash { node, at_ms, for_ms } => {
            Fault::Crash { node: NodeId(node), when_ns: when(at_ms, for_ms) }
        }
        VirtualFault::RackLoss { rack, at_ms, for_ms } => {
            Fault::RackLoss { rack, when_ns: when(at_ms, for_ms) }
        }
        VirtualFault::Slow { node, at_ms, for_ms, factor } => {
            Fault::Slow { node: NodeId(node), when_ns: when(at_ms, for_ms), factor }
        }
        VirtualFault::Pause { node, at_ms, for_ms, every_ms, stopped_ms } => Fault::Pause {
            node: NodeId(node),
            when_ns: when(at_ms, for_ms),
            every_ns: whole(every_ms * MS).max(whole(stopped_ms * MS) + 1),
            stopped_ns: whole(stopped_ms * MS),
        },
        VirtualFault::Partition { rack, at_ms, for_ms } => {
            Fault::Partition { rack, when_ns: when(at_ms, for_ms) }
        }
        VirtualFault::Flaky { node, at_ms, for_ms, lost } => {
            Fault::Flaky { node: NodeId(node), when_ns: when(at_ms, for_ms), lost }
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times of a scenario are not negative, and `as` saturates"
)]
pub(super) fn whole(ns: f64) -> u64 {
    ns.round() as u64
}

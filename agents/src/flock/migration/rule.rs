//! Rules of migration: where the copies of one layer shall be next.

use super::{MigrationSettings, migrate};
use crate::ids::{ExpertId, NodeId};
use crate::placement::{EplbShape, Placement, PlanSettings, Previous, eplb, plan};

/// What a rule is told of one layer.
#[derive(Clone, Copy, Debug)]
pub struct MigrationView<'v> {
    /// The copies in force.
    pub placement: &'v Placement,
    /// Running loads in pairs, `[E]`.
    pub loads: &'v [f64],
    /// Copies that each node has room for, `[N]`; none on a node that is out of service.
    pub slots: &'v [usize],
    /// Bytes of each expert, `[E]`.
    pub shard_bytes: &'v [u64],
    /// Hosts that every expert keeps that has as many, at least 1.
    pub copies_min: usize,
    /// Bytes that may be sent to nodes.
    pub bytes_max: u64,
    /// Decisions before this one.
    pub decision: u64,
}

/// Says which nodes shall hold the copies of a layer next. It sees placements and loads, never a node: what
/// it asks for is brought beside the serving, and no result depends on it.
///
/// What breaks the view's bytes, room or copies is not carried out.
pub trait MigrationRule: Send + Sync {
    /// The copies that shall be there next; those in force where nothing is worth it.
    fn next(&mut self, view: &MigrationView<'_>) -> Placement;
}

/// Pairs of nodes exchange copies ([`migrate`]), some rounds a decision. What is sent is the difference
/// that the rounds make together.
#[derive(Clone, Copy, Debug)]
pub struct FlockMigration {
    /// Of every round.
    pub settings: MigrationSettings,
    /// Rounds of a decision, in which nothing is sent yet but word of loads.
    pub rounds: u64,
}

impl MigrationRule for FlockMigration {
    fn next(&mut self, view: &MigrationView<'_>) -> Placement {
        let largest = view.shard_bytes.iter().copied().max().unwrap_or(0).max(1);
        let mut placement = view.placement.clone();
        for round in 0..self.rounds {
            let sent = placement.moved_bytes(view.placement, view.shard_bytes);
            let copies = view.bytes_max.saturating_sub(sent) / largest;
            let copies_max = usize::try_from(copies).unwrap_or(usize::MAX);
            let settings =
                MigrationSettings { copies_max, copies_min: view.copies_min, ..self.settings };
            let round = view.decision * self.rounds + round;
            let next = migrate(&placement, view.loads, view.slots, round, None, &settings);
            placement = next.expect("running loads are finite and not negative").placement;
        }
        placement
    }
}

/// The control that sees all nodes: greedy local search from what is there ([`plan`]), with a price on what
/// is sent. Where that is more than may be sent the price rises until it is not.
#[derive(Clone, Copy, Debug)]
pub struct GreedyMigration {
    /// What a copy of mean size must lower the largest node load by, in parts of the mean one.
    pub price: f64,
    /// Placements that the search may dispatch.
    pub evaluations_max: usize,
}

impl MigrationRule for GreedyMigration {
    fn next(&mut self, view: &MigrationView<'_>) -> Placement {
        /// Prices tried: from the first to 4^9 times as much, at which nothing is worth sending.
        const PRICES: usize = 10;
        let nodes = view.slots.iter().filter(|slots| **slots > 0).count().max(1);
        let mean_load = view.loads.iter().sum::<f64>() / nodes as f64;
        let bytes: u64 = view.shard_bytes.iter().sum();
        let mean_bytes = bytes as f64 / view.shard_bytes.len() as f64;
        let mut load_per_byte = self.price * mean_load / mean_bytes;
        for _ in 0..PRICES {
            let (placement, shard_bytes) = (view.placement, view.shard_bytes);
            let previous = Some(Previous { placement, shard_bytes, load_per_byte });
            let evaluations_max = self.evaluations_max;
            let settings = PlanSettings { slots: view.slots, evaluations_max, previous };
            match plan(view.loads, &settings) {
                Ok(found) if found.moved_bytes <= view.bytes_max => return found.placement,
                Ok(_) => load_per_byte *= 4.0,
                Err(_) => break,
            }
        }
        view.placement.clone()
    }
}

/// The baseline of the field: a fresh EPLB plan each time, whole or not at all. It looks at nothing that is
/// there, and needs as much room on every node.
#[derive(Clone, Copy, Debug, Default)]
pub struct EplbMigration;

impl MigrationRule for EplbMigration {
    fn next(&mut self, view: &MigrationView<'_>) -> Placement {
        let serving: Vec<usize> = (0..view.slots.len()).filter(|n| view.slots[*n] > 0).collect();
        let is_even = serving.windows(2).all(|pair| view.slots[pair[0]] == view.slots[pair[1]]);
        let replicas = view.slots.iter().sum();
        let shape = EplbShape { replicas, groups: 1, servers: 1, gpus: serving.len() };
        let Some(found) = eplb(view.loads, shape).ok().filter(|_| is_even) else {
            return view.placement.clone();
        };
        let found = found.placement();
        let hosts = |expert| {
            let hosts = found.hosts(ExpertId::from_index(expert)).iter();
            hosts.map(|gpu| NodeId::from_index(serving[gpu.index()])).collect()
        };
        let hosts: Vec<Vec<NodeId>> = (0..found.experts()).map(hosts).collect();
        let found = Placement::new(view.slots.len(), &hosts).expect("a plan places every expert");
        let sent = found.moved_bytes(view.placement, view.shard_bytes);
        if sent <= view.bytes_max { found } else { view.placement.clone() }
    }
}

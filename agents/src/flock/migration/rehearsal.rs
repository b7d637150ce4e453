//! Migration on placements alone: what a rule would have done with the loads of a run.

use super::follow::HostsOfLayer;
use super::{Migrating, MigrationDecision};
use crate::game::Choices;
use crate::ids::{ExpertId, LayerId, NodeId};
use crate::placement::{Placement, TokenDispatch, dispatch_tokens};

/// Copies of all layers that follow the loads without nodes: what is decided after a step is in force from the
/// second step after it on, as in a run.
#[derive(Debug)]
pub struct Rehearsal {
    placements: Vec<Placement>,
    migrating: Option<Migrating>,
    pending: Option<MigrationDecision>,
    copies: u64,
    bytes: u64,
}

impl Rehearsal {
    /// From these copies on; without anything that migrates they stay.
    #[must_use]
    pub fn new(placements: Vec<Placement>, migrating: Option<Migrating>) -> Self {
        Self { placements, migrating, pending: None, copies: 0, bytes: 0 }
    }

    /// Plays a layer of a step, `[E]` pairs, and gives the split of its tokens over the copies in force.
    ///
    /// # Panics
    /// When the layer is unknown or there is not one load an expert.
    pub fn play(&mut self, layer: LayerId, loads: &[u32]) -> TokenDispatch {
        let split = dispatch_tokens(&self.placements[layer.index()], loads);
        let is_due = self.migrating.as_mut().is_some_and(|of| of.absorb(layer, loads));
        if layer.index() + 1 == self.placements.len() {
            if let Some(decision) = self.pending.take() {
                self.carry_out(&decision);
            }
            if let Some(migrating) = self.migrating.as_mut().filter(|_| is_due) {
                let hosts: Vec<HostsOfLayer> = self.placements.iter().map(hosts).collect();
                let available = vec![true; self.placements[0].nodes()];
                self.pending = Some(migrating.decide(&hosts, &available));
            }
        }
        split.expect("there is one load an expert")
    }

    /// The copies in force.
    #[must_use]
    pub fn placements(&self) -> &[Placement] {
        &self.placements
    }

    /// Copies and bytes that were sent for what came into force.
    #[must_use]
    pub fn sent(&self) -> (u64, u64) {
        (self.copies, self.bytes)
    }

    fn carry_out(&mut self, decision: &MigrationDecision) {
        self.copies += decision.copies;
        self.bytes += decision.bytes;
        for (layer, placement) in (0..).map(LayerId).zip(&mut self.placements) {
            let mut hosts = hosts(placement);
            let mut changes = decision.changes.iter().filter(|of| of.layer == layer).peekable();
            if changes.peek().is_some() {
                changes.for_each(|of| hosts[of.expert.index()].clone_from(&of.hosts));
                *placement = Placement::new(placement.nodes(), &hosts).expect("as decided");
            }
        }
    }
}

fn hosts(placement: &Placement) -> HostsOfLayer {
    let experts = (0..placement.experts()).map(ExpertId::from_index);
    experts.map(|expert| placement.hosts(expert).to_vec()).collect()
}

/// Nodes that tokens are computed on, summed over the tokens, when every copy takes its share of an expert's
/// tokens in their order.
///
/// # Panics
/// When the split is not of the placement and the choices.
#[must_use]
pub fn nodes_of_tokens(placement: &Placement, split: &TokenDispatch, choices: &Choices) -> u64 {
    let mut left = split.shares.clone();
    let mut copy_of: Vec<usize> = (0..placement.experts())
        .map(|expert| placement.copies_of(ExpertId::from_index(expert)).start)
        .collect();
    let mut sum = 0;
    let mut nodes: Vec<NodeId> = Vec::new();
    for token in 0..choices.tokens() {
        nodes.clear();
        for expert in choices.row(token) {
            let copy = &mut copy_of[expert.index()];
            while left[*copy] == 0 {
                *copy += 1;
            }
            left[*copy] -= 1;
            let first = placement.copies_of(*expert).start;
            nodes.push(placement.hosts(*expert)[*copy - first]);
        }
        nodes.sort_unstable();
        nodes.dedup();
        sum += nodes.len() as u64;
    }
    sum
}

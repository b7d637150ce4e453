//! Copies in slots while a plan is being made, and the two plans that a search starts from.

use super::{Placement, PlacementError};
use crate::ids::{ExpertId, NodeId};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Experts on nodes, both ways round. No node holds an expert twice or more than its slots.
#[derive(Clone, Debug)]
pub(super) struct Draft<'a> {
    slots: &'a [usize],
    hosts: Vec<Vec<NodeId>>,
    held: Vec<Vec<ExpertId>>,
}

impl<'a> Draft<'a> {
    /// Copies as [`copies_for`] counts them, the expert with the largest load a copy first, each
    /// copy to the node with the least load so far that has a free slot and no copy. A copy beyond
    /// the first for which no such node is left is not placed.
    pub(super) fn greedy(loads: &[f64], slots: &'a [usize]) -> Self {
        let copies = copies_for(loads, slots);
        let mut draft = Self::empty(loads.len(), slots);
        let mut filled = vec![0.0; slots.len()];
        let each = |expert: &usize| loads[*expert] / f64::from(copies[*expert]);
        let mut order: Vec<usize> = (0..loads.len()).collect();
        order.sort_by(|a, b| each(b).total_cmp(&each(a)));
        for expert in order {
            for _ in 0..copies[expert] {
                if let Some(node) = draft.least_filled_for(ExpertId::from_index(expert), &filled) {
                    draft.add(ExpertId::from_index(expert), node);
                    filled[node.index()] += each(&expert);
                }
            }
        }
        draft
    }

    /// What of `previous` fits the slots. Nodes with too much keep the experts with the fewest
    /// copies; an expert that lost its last copy gets the emptiest slot, or that of the expert
    /// with the least load a copy among those with several.
    pub(super) fn from_previous(loads: &[f64], slots: &'a [usize], previous: &Placement) -> Self {
        let mut draft = Self::empty(loads.len(), slots);
        for (node, mut held) in (0..slots.len()).map(NodeId::from_index).zip(previous.held()) {
            held.sort_by_key(|expert| (previous.hosts(*expert).len(), *expert));
            for expert in held.into_iter().take(slots[node.index()]) {
                draft.add(expert, node);
            }
        }
        let each = |draft: &Self, expert: ExpertId| {
            loads[expert.index()] / draft.hosts[expert.index()].len() as f64
        };
        for expert in (0..loads.len()).map(ExpertId::from_index) {
            if !draft.hosts[expert.index()].is_empty() {
                continue;
            }
            let filled: Vec<f64> = (draft.held.iter())
                .map(|held| held.iter().map(|expert| each(&draft, *expert)).sum())
                .collect();
            let node = draft.least_filled_for(expert, &filled).unwrap_or_else(|| {
                let spare = (0..loads.len()).map(ExpertId::from_index);
                let spare = spare.filter(|spare| draft.hosts[spare.index()].len() > 1);
                let spare = spare.min_by(|a, b| each(&draft, *a).total_cmp(&each(&draft, *b)));
                let spare = spare.expect("full slots hold more copies than the placed experts");
                let node = draft.hosts[spare.index()][0];
                draft.remove(spare, node);
                node
            });
            draft.add(expert, node);
        }
        draft
    }

    fn empty(experts: usize, slots: &'a [usize]) -> Self {
        Self { slots, hosts: vec![Vec::new(); experts], held: vec![Vec::new(); slots.len()] }
    }

    fn least_filled_for(&self, expert: ExpertId, filled: &[f64]) -> Option<NodeId> {
        (0..self.slots.len())
            .map(NodeId::from_index)
            .filter(|node| self.has_free_slot(*node) && !self.holds(*node, expert))
            .min_by(|a, b| filled[a.index()].total_cmp(&filled[b.index()]))
    }

    pub(super) fn nodes(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn hosts(&self, expert: ExpertId) -> &[NodeId] {
        &self.hosts[expert.index()]
    }

    pub(super) fn held(&self, node: NodeId) -> &[ExpertId] {
        &self.held[node.index()]
    }

    pub(super) fn has_free_slot(&self, node: NodeId) -> bool {
        self.held[node.index()].len() < self.slots[node.index()]
    }

    pub(super) fn holds(&self, node: NodeId, expert: ExpertId) -> bool {
        self.hosts[expert.index()].contains(&node)
    }

    pub(super) fn add(&mut self, expert: ExpertId, node: NodeId) {
        self.hosts[expert.index()].push(node);
        self.held[node.index()].push(expert);
    }

    pub(super) fn remove(&mut self, expert: ExpertId, node: NodeId) {
        self.hosts[expert.index()].retain(|host| *host != node);
        self.held[node.index()].retain(|held| *held != expert);
    }

    pub(super) fn placement(&self) -> Placement {
        let placement: Result<_, PlacementError> = Placement::new(self.slots.len(), &self.hosts);
        placement.expect("every expert keeps a copy and no node holds two")
    }
}

/// One copy of each expert, then each further copy to the expert with the largest load a copy
/// that is not on every node yet. Of all numbers of copies that fit the slots, these make
/// max_e w_e / copies_e least: a lower maximum needs a further copy of the expert that attains it.
pub(super) fn copies_for(loads: &[f64], slots: &[usize]) -> Vec<u32> {
    let nodes = slots.iter().filter(|slots| **slots > 0).count();
    let room: usize = slots.iter().map(|slots| (*slots).min(loads.len())).sum();
    let mut copies = vec![1_u32; loads.len()];
    if room <= loads.len() || nodes < 2 {
        return copies;
    }
    // The bits of numbers from +0 on ascend with them; adding 0 makes +0 of -0. Among equals the
    // first expert is the largest entry.
    let each = |expert: usize, copies: u32| {
        ((loads[expert] / f64::from(copies) + 0.0).to_bits(), Reverse(expert))
    };
    let mut open: BinaryHeap<_> = (0..loads.len()).map(|expert| each(expert, 1)).collect();
    for _ in loads.len()..room {
        let Some((_, Reverse(hottest))) = open.pop() else { break };
        copies[hottest] += 1;
        if (copies[hottest] as usize) < nodes {
            open.push(each(hottest, copies[hottest]));
        }
    }
    copies
}

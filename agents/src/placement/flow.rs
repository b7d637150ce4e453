//! The flow that levels node loads out.

use super::dispatch::node_loads;
use super::{Dispatch, Placement, TightSet};
use crate::ids::{ExpertId, NodeId};

/// Loads above a set's mean by less than this share of it count as balanced. It lies above the
/// rounding of a few hundred additions and far below anything measurable.
const BALANCED: f64 = 1e-12;

/// A dispatch in the making and the network it flows in: a node reaches the hosts of every expert
/// of which it serves a positive share.
pub(super) struct Flow<'a> {
    placement: &'a Placement,
    pub(super) shares: Vec<f64>,
    loads: Vec<f64>,
    /// `loads` minus the mean of the set being balanced.
    excess: Vec<f64>,
    /// Nodes; the set being balanced is a range of it.
    order: Vec<NodeId>,
    /// The set a node is in: its experts' copies elsewhere are closed.
    set: Vec<u32>,
    sets: u32,
    /// Distance from a node with excess, plus `epoch`; smaller values are of earlier searches.
    node_level: Vec<u64>,
    expert_level: Vec<u64>,
    epoch: u64,
    /// The arc that a search looks at next.
    node_next: Vec<u32>,
    expert_next: Vec<u32>,
    queue: Vec<NodeId>,
    /// The copies that give and take along a path.
    path: Vec<(usize, usize)>,
}

impl<'a> Flow<'a> {
    pub(super) fn new(placement: &'a Placement) -> Self {
        let (nodes, experts) = (placement.nodes(), placement.experts());
        Self {
            placement,
            shares: vec![0.0; placement.copies()],
            loads: vec![0.0; nodes],
            excess: vec![0.0; nodes],
            order: placement.by_component.clone(),
            set: vec![0; nodes],
            sets: 0,
            node_level: vec![0; nodes],
            expert_level: vec![0; experts],
            epoch: 1,
            node_next: vec![0; nodes],
            expert_next: vec![0; experts],
            queue: Vec::with_capacity(nodes),
            path: Vec::new(),
        }
    }

    /// A first dispatch: experts with one copy first, then each other expert fills its nodes up to
    /// a common level, in order of expert.
    pub(super) fn pour(&mut self, loads: &[f64]) {
        let placement = self.placement;
        let experts = || (0..placement.experts()).map(ExpertId::from_index).zip(loads);
        for (expert, load) in experts() {
            let copies = placement.copies_of(expert);
            if copies.len() == 1 {
                self.shares[copies.start] = *load;
                self.loads[placement.host[copies.start].index()] += load;
            }
        }
        let mut hosts = Vec::new();
        for (expert, load) in experts() {
            let copies = placement.copies_of(expert);
            if copies.len() > 1 && *load > 0.0 {
                hosts.clear();
                hosts.extend(copies.map(|copy| (self.loads[placement.host[copy].index()], copy)));
                hosts.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                let lowest = hosts[0].0;
                let level = water_level(&hosts, *load);
                for (height, copy) in &hosts {
                    self.shares[*copy] = (level - (height - lowest)).max(0.0);
                    self.loads[placement.host[*copy].index()] += self.shares[*copy];
                }
            }
        }
    }

    /// A first dispatch with the proportions of an earlier one; shares that are no amounts count
    /// as zero.
    pub(super) fn rescale(&mut self, loads: &[f64], warm: &Dispatch) {
        for (expert, load) in (0..).map(ExpertId).zip(loads) {
            let copies = self.placement.copies_of(expert);
            let before = warm.shares[copies.clone()].iter().map(|share| share.max(0.0));
            let total: f64 = before.clone().sum();
            let even = 1.0 / copies.len() as f64;
            for (copy, share) in copies.zip(before) {
                let part = if total > 0.0 && total.is_finite() { share / total } else { even };
                self.shares[copy] = load * part;
            }
        }
        self.loads = node_loads(self.placement, &self.shares);
    }

    /// Balances the nodes `order[nodes]`, which no expert connects with others. Returns the mean
    /// load and the range of their most loaded set.
    pub(super) fn balance(
        &mut self,
        nodes: std::ops::Range<usize>,
    ) -> (f64, std::ops::Range<usize>) {
        let mut most_loaded = None;
        let mut open = vec![nodes];
        while let Some(nodes) = open.pop() {
            let mean = self.mean(nodes.clone());
            let reached = if nodes.len() == 1 { 0 } else { self.level(nodes.clone(), mean) };
            if reached == 0 || reached == nodes.len() {
                most_loaded.get_or_insert((mean, nodes));
                continue;
            }
            let middle = nodes.start + reached;
            open.push(middle..nodes.end);
            open.push(nodes.start..middle);
        }
        most_loaded.expect("the first set without a division was noted")
    }

    fn mean(&self, nodes: std::ops::Range<usize>) -> f64 {
        let count = nodes.len() as f64;
        self.order[nodes].iter().map(|node| self.loads[node.index()]).sum::<f64>() / count
    }

    /// Moves load from nodes above `mean` to nodes below until no path is left. Then puts the
    /// nodes that are reached from those still above first, as a set of their own, and returns
    /// their number: 0 when the set is balanced.
    fn level(&mut self, nodes: std::ops::Range<usize>, mean: f64) -> usize {
        for node in &self.order[nodes.clone()] {
            self.excess[node.index()] = self.loads[node.index()] - mean;
        }
        let negligible = BALANCED * mean;
        while self.search(nodes.clone(), negligible) {
            for at in nodes.clone() {
                let node = self.order[at];
                if self.excess[node.index()] > negligible {
                    self.push_from(node, negligible);
                }
            }
        }
        for node in &self.order[nodes.clone()] {
            self.loads[node.index()] = mean + self.excess[node.index()];
        }
        let reached = self.queue.len();
        if reached > 0 && reached < nodes.len() {
            self.sets += 1;
            for node in &self.queue {
                self.set[node.index()] = self.sets;
            }
            let mut free = nodes.end;
            for at in nodes.clone().rev() {
                if self.set[self.order[at].index()] != self.sets {
                    free -= 1;
                    self.order[free] = self.order[at];
                }
            }
            self.order[nodes.start..free].copy_from_slice(&self.queue);
        }
        reached
    }

    /// Breadth-first levels from all nodes with excess; whether a node below the mean was reached.
    /// Leaves the reached nodes in `queue`.
    fn search(&mut self, nodes: std::ops::Range<usize>, negligible: f64) -> bool {
        let placement = self.placement;
        self.epoch += nodes.len() as u64 + 1;
        self.queue.clear();
        for node in &self.order[nodes] {
            if self.excess[node.index()] > negligible {
                self.queue.push(*node);
                self.node_level[node.index()] = self.epoch;
                self.node_next[node.index()] = placement.first_shared[node.index()];
            }
        }
        let (mut visited, mut found) = (0, false);
        while let Some(node) = self.queue.get(visited).copied() {
            visited += 1;
            let level = self.node_level[node.index()];
            for copy in placement.shared_on(node) {
                let expert = placement.owner[*copy as usize].index();
                if self.shares[*copy as usize] == 0.0 || self.expert_level[expert] >= self.epoch {
                    continue;
                }
                self.expert_level[expert] = level;
                self.expert_next[expert] = placement.first_copy[expert];
                for next in placement.hosts(placement.owner[*copy as usize]) {
                    let next = next.index();
                    if self.node_level[next] < self.epoch
                        && self.set[next] == self.set[node.index()]
                    {
                        self.node_level[next] = level + 1;
                        self.node_next[next] = placement.first_shared[next];
                        self.queue.push(NodeId::from_index(next));
                        found |= self.excess[next] < 0.0;
                    }
                }
            }
        }
        found
    }

    /// Sends the excess of a node along the levels to nodes below the mean, path by path, until it
    /// is gone or no path is left (the blocking flow of Dinic's algorithm).
    fn push_from(&mut self, source: NodeId, negligible: f64) {
        let placement = self.placement;
        self.path.clear();
        let mut node = source;
        loop {
            if self.excess[node.index()] < 0.0 {
                let narrowest = self.augment(source, node);
                if self.excess[source.index()] <= negligible {
                    return;
                }
                if let Some(at) = narrowest {
                    node = placement.host[self.path[at].0];
                    self.path.truncate(at);
                }
            } else if let Some((giver, taker)) = self.next_arc(node) {
                self.path.push((giver, taker));
                node = placement.host[taker];
            } else if let Some((giver, _)) = self.path.pop() {
                // A dead end: the expert offers its next host instead.
                self.expert_next[placement.owner[giver].index()] += 1;
                node = placement.host[giver];
            } else {
                return;
            }
        }
    }

    /// A copy on a node that serves something and a copy of the same expert one level further.
    fn next_arc(&mut self, node: NodeId) -> Option<(usize, usize)> {
        let placement = self.placement;
        let level = self.node_level[node.index()];
        let end = placement.first_shared[node.index() + 1];
        while self.node_next[node.index()] < end {
            let giver = placement.shared[self.node_next[node.index()] as usize] as usize;
            let expert = placement.owner[giver].index();
            if self.shares[giver] > 0.0 && self.expert_level[expert] == level {
                while self.expert_next[expert] < placement.first_copy[expert + 1] {
                    let taker = self.expert_next[expert] as usize;
                    if self.node_level[placement.host[taker].index()] == level + 1 {
                        return Some((giver, taker));
                    }
                    self.expert_next[expert] += 1;
                }
            }
            self.node_next[node.index()] += 1;
        }
        None
    }

    /// Moves as much as the path allows and returns where on it the first copy gave all it served.
    fn augment(&mut self, source: NodeId, target: NodeId) -> Option<usize> {
        let ends = self.excess[source.index()].min(-self.excess[target.index()]);
        let amount = self.path.iter().map(|(giver, _)| self.shares[*giver]).fold(ends, f64::min);
        self.excess[source.index()] -= amount;
        self.excess[target.index()] += amount;
        let mut emptied = None;
        for (at, (giver, taker)) in self.path.iter().enumerate() {
            self.shares[*giver] -= amount;
            self.shares[*taker] += amount;
            if self.shares[*giver] == 0.0 {
                emptied = emptied.or(Some(at));
            }
        }
        emptied
    }

    /// The experts with load whose copies all lie on `order[nodes]`, and these nodes.
    pub(super) fn tight_set(&self, loads: &[f64], nodes: std::ops::Range<usize>) -> TightSet {
        let mut inside = vec![false; self.placement.nodes()];
        let mut nodes = self.order[nodes].to_vec();
        nodes.sort_unstable();
        for node in &nodes {
            inside[node.index()] = true;
        }
        let confined = |expert: &ExpertId| {
            loads[expert.index()] > 0.0
                && self.placement.hosts(*expert).iter().all(|node| inside[node.index()])
        };
        let experts = (0..loads.len()).map(ExpertId::from_index).filter(confined).collect();
        TightSet { experts, nodes }
    }
}

/// How far above the lowest of these heights, ascending, `amount` stands when poured over them:
/// Σ max(0, level − (height − lowest)) = amount.
fn water_level(heights: &[(f64, usize)], amount: f64) -> f64 {
    let mut level = f64::INFINITY;
    let mut volume = amount;
    for (count, (height, _)) in heights.iter().enumerate() {
        let height = height - heights[0].0;
        if height >= level {
            break;
        }
        volume += height;
        level = volume / (count + 1) as f64;
    }
    level
}

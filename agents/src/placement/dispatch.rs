//! The exact split of expert loads over their copies.

use super::{Placement, position};
use crate::ids::{ExpertId, NodeId};

/// Loads above a piece's mean by less than this share of it count as balanced. It lies above the
/// rounding of a few hundred additions and far below anything measurable.
const BALANCED: f64 = 1e-12;

/// A split of the experts' loads over their copies.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// x[e,g] ≥ 0 for every copy, in the order of [`Placement::copies_of`]; in units of the loads.
    pub shares: Vec<f64>,
    /// L_g = Σ_e x[e,g], `[N]`.
    pub node_loads: Vec<f64>,
    /// Why the largest node load cannot be lower.
    pub tight: TightSet,
}

impl Dispatch {
    /// The largest node load.
    #[must_use]
    pub fn max_load(&self) -> f64 {
        self.node_loads.iter().copied().fold(0.0, f64::max)
    }
}

/// A set A of experts and the nodes that hold a copy of any of them. Their load has nowhere else
/// to go, so whatever the dispatch some node carries w(A) / |nodes(A)|.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TightSet {
    /// A, ascending; empty when all loads are zero.
    pub experts: Vec<ExpertId>,
    /// nodes(A), ascending.
    pub nodes: Vec<NodeId>,
}

/// Why loads cannot be dispatched.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LoadError {
    /// One load an expert is needed.
    #[error("{given} loads given for {experts} experts")]
    Experts {
        /// Given.
        given: usize,
        /// E.
        experts: usize,
    },
    /// A load is no amount of work.
    #[error("the load of expert {expert} is {load}: give a finite number of at least zero")]
    Load {
        /// The expert.
        expert: ExpertId,
        /// Its load.
        load: f64,
    },
    /// The sum of the loads is not finite.
    #[error("the loads add up to more than f64 holds: scale them down")]
    Total,
    /// A dispatch to start from belongs to another placement.
    #[error("the dispatch to start from has {given} shares but the placement has {copies} copies")]
    Warm {
        /// Shares of the earlier dispatch.
        given: usize,
        /// Copies of this placement.
        copies: usize,
    },
}

/// Splits loads w_e ≥ 0 (any unit) over the copies so that the vector of node loads is the least
/// majorised one: it minimises Σ_g L_g², the largest load, and the sum of the k largest for every
/// k at once. `warm`, a dispatch on the same placement under other loads, only saves time.
///
/// The node loads that a dispatch can reach are the bases of a polymatroid, where these aims
/// agree (Fujishige, *Math. Oper. Res.* 5, 1980). The method is decomposition by maximum flow
/// (Groenevelt, *Eur. J. Oper. Res.* 54, 1991): move load along paths of shared experts from nodes
/// above the mean λ of a set of nodes to nodes below it (Dinic's algorithm). If all reach λ, the
/// set is done. Otherwise the nodes R that can still be reached from those above λ serve only
/// experts without a copy elsewhere in the set; R and the rest no longer touch and are solved
/// apart, each with its own mean. Each division is final, so N nodes need fewer than 2N flows. The
/// set reached first, always into R, is the [`TightSet`].
///
/// The split is the equilibrium of the nonatomic game in which work picks the copy on the least
/// loaded node. Exact up to rounding: every node is within 1e-12 of what its set may carry.
///
/// # Errors
/// Loads that are negative, not finite, or not one an expert; a warm start of another placement.
pub fn dispatch(
    placement: &Placement,
    loads: &[f64],
    warm: Option<&Dispatch>,
) -> Result<Dispatch, LoadError> {
    check_loads(placement.experts(), loads)?;
    let mut flow = Flow::new(placement);
    match warm {
        None => flow.pour(loads),
        Some(warm) if warm.shares.len() == placement.copies() => flow.rescale(loads, warm),
        Some(warm) => {
            let (given, copies) = (warm.shares.len(), placement.copies());
            return Err(LoadError::Warm { given, copies });
        }
    }
    let mut tight = (0.0, 0..0);
    let first = &placement.first_of_component;
    for component in first.windows(2) {
        let nodes = component[0] as usize..component[1] as usize;
        let most_loaded = flow.balance(nodes);
        if most_loaded.0 > tight.0 {
            tight = most_loaded;
        }
    }
    let tight = flow.tight_set(loads, tight.1);
    let shares = flow.shares;
    Ok(Dispatch { node_loads: node_loads(placement, &shares), shares, tight })
}

/// Whether there is one finite load of at least zero for each expert.
pub(super) fn check_loads(experts: usize, loads: &[f64]) -> Result<(), LoadError> {
    if loads.len() != experts {
        return Err(LoadError::Experts { given: loads.len(), experts });
    }
    let wrong = |load: &f64| !(load.is_finite() && *load >= 0.0);
    if let Some(at) = loads.iter().position(wrong) {
        return Err(LoadError::Load { expert: ExpertId::from_index(at), load: loads[at] });
    }
    // Headroom for the sums of a solver that adds a load twice.
    if loads.iter().sum::<f64>() > f64::MAX / 4.0 { Err(LoadError::Total) } else { Ok(()) }
}

fn node_loads(placement: &Placement, shares: &[f64]) -> Vec<f64> {
    let mut loads = vec![0.0; placement.nodes()];
    for (node, share) in placement.host.iter().zip(shares) {
        loads[node.index()] += share;
    }
    loads
}

/// A dispatch in the making and the network it flows in: a node reaches the hosts of every expert
/// of which it serves a positive share.
struct Flow<'a> {
    placement: &'a Placement,
    shares: Vec<f64>,
    loads: Vec<f64>,
    /// `loads` minus the mean of the set being balanced.
    excess: Vec<f64>,
    /// Nodes; the set being balanced is a range of it.
    order: Vec<NodeId>,
    /// The set a node is in: its experts' copies elsewhere are closed.
    set: Vec<u32>,
    sets: u32,
    /// Distance from a node with excess, plus `epoch`; smaller values are of earlier searches.
    node_level: Vec<u32>,
    expert_level: Vec<u32>,
    epoch: u32,
    /// The arc that a search looks at next.
    node_next: Vec<u32>,
    expert_next: Vec<u32>,
    queue: Vec<NodeId>,
}

impl<'a> Flow<'a> {
    fn new(placement: &'a Placement) -> Self {
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
        }
    }

    /// A first dispatch: experts with one copy first, then each other expert fills its nodes up to
    /// a common level, in order of expert.
    fn pour(&mut self, loads: &[f64]) {
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

    /// A first dispatch with the proportions of an earlier one.
    fn rescale(&mut self, loads: &[f64], warm: &Dispatch) {
        for (expert, load) in (0..).map(ExpertId).zip(loads) {
            let copies = self.placement.copies_of(expert);
            let before = &warm.shares[copies.clone()];
            let total: f64 = before.iter().sum();
            let even = 1.0 / copies.len() as f64;
            for (copy, share) in copies.zip(before) {
                let part = if total > 0.0 { share / total } else { even };
                self.shares[copy] = load * part;
            }
        }
        self.loads = node_loads(self.placement, &self.shares);
    }

    /// Balances the nodes `order[nodes]`, which no expert connects with others. Returns the mean
    /// load and the range of their most loaded set.
    fn balance(&mut self, nodes: std::ops::Range<usize>) -> (f64, std::ops::Range<usize>) {
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
                let excess = self.excess[node.index()];
                if excess > negligible {
                    self.excess[node.index()] -= self.push_from_node(node, excess);
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
        self.epoch += position(nodes.len()) + 1;
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

    /// Sends up to `amount` on along the levels, through the experts of a node. Returns what left.
    fn push_from_node(&mut self, node: NodeId, amount: f64) -> f64 {
        let placement = self.placement;
        let end = placement.first_shared[node.index() + 1];
        let mut left = amount;
        while self.node_next[node.index()] < end {
            let copy = placement.shared[self.node_next[node.index()] as usize] as usize;
            let expert = placement.owner[copy];
            if self.shares[copy] > 0.0
                && self.expert_level[expert.index()] == self.node_level[node.index()]
            {
                let sent = self.push_from_expert(expert, left.min(self.shares[copy]));
                self.shares[copy] -= sent;
                left -= sent;
                if left <= 0.0 {
                    return amount;
                }
            }
            self.node_next[node.index()] += 1;
        }
        amount - left
    }

    /// Gives up to `amount` more of an expert to its hosts one level further. Returns what stuck.
    fn push_from_expert(&mut self, expert: ExpertId, amount: f64) -> f64 {
        let placement = self.placement;
        let end = placement.first_copy[expert.index() + 1];
        let level = self.expert_level[expert.index()] + 1;
        let mut left = amount;
        while self.expert_next[expert.index()] < end {
            let copy = self.expert_next[expert.index()] as usize;
            let node = placement.host[copy];
            if self.node_level[node.index()] == level {
                let kept = left.min(-self.excess[node.index()]).max(0.0);
                self.excess[node.index()] += kept;
                let sent = if kept < left { self.push_from_node(node, left - kept) } else { 0.0 };
                self.shares[copy] += kept + sent;
                left -= kept + sent;
                if left <= 0.0 {
                    return amount;
                }
            }
            self.expert_next[expert.index()] += 1;
        }
        amount - left
    }

    /// The experts with load whose copies all lie on `order[nodes]`, and these nodes.
    fn tight_set(&self, loads: &[f64], nodes: std::ops::Range<usize>) -> TightSet {
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

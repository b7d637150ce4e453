//! The second-level game: which node serves an expert's tokens when several hold a copy, and which
//! node should hold a copy of what.
//!
//! The router decides the load w_e of each expert. [`dispatch`] splits it over the nodes that hold
//! a copy so that no node is loaded more than it must be; [`plan`] chooses the copies; [`eplb`] is
//! the published baseline for that choice. [`certify_dispatch`] checks a split by code of its own.
//!
//! ```
//! use agents::ids::NodeId;
//! use agents::placement::{Placement, certify_dispatch, dispatch};
//!
//! // Expert 0 on nodes 0 and 1, expert 1 on nodes 1 and 2, expert 2 on node 2 alone.
//! let hosts = [vec![NodeId(0), NodeId(1)], vec![NodeId(1), NodeId(2)], vec![NodeId(2)]];
//! let placement = Placement::new(3, &hosts)?;
//! let loads = [6.0, 3.0, 3.0];
//! let split = dispatch(&placement, &loads, None)?;
//! assert_eq!(split.node_loads, [4.0, 4.0, 4.0]);
//! assert_eq!(certify_dispatch(&placement, &loads, &split)?.relative_gap, 0.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod certificate;
mod choice;
mod dispatch;
mod draft;
mod eplb;
mod exchange;
mod flow;
mod search;
mod tokens;

pub use certificate::{DispatchCertificate, DispatchFault, certify_dispatch, tight_set_bound};
pub use choice::{NodeLoad, ORDER_COST_PAIRS, ReplicaChoice, choose_copies, pairs_by_node};
pub use dispatch::{Dispatch, LoadError, TightSet, dispatch};
pub use eplb::{Eplb, EplbError, EplbShape, eplb};
pub use search::{Plan, PlanError, PlanSettings, Previous, placement_lower_bound, plan};
pub use tokens::{TokenDispatch, dispatch_tokens};

use crate::ids::{ExpertId, NodeId};

/// Which nodes hold a copy of each expert of one layer.
///
/// Copies are numbered expert by expert, within an expert by ascending node: shares of a
/// [`Dispatch`] follow that order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    nodes: usize,
    /// Where an expert's copies begin, `[E + 1]`.
    first_copy: Vec<u32>,
    /// The node of each copy.
    host: Vec<NodeId>,
    /// The expert of each copy.
    owner: Vec<ExpertId>,
    /// Where a node's shared copies begin in `shared`, `[N + 1]`.
    first_shared: Vec<u32>,
    /// Copies of experts that have more than one, node by node.
    shared: Vec<u32>,
    /// Nodes, those connected by shared experts side by side.
    by_component: Vec<NodeId>,
    /// Where each connected component begins in `by_component`, and its end.
    first_of_component: Vec<u32>,
}

/// Why lists of nodes are no placement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Nothing holds anything.
    #[error("a placement needs at least one node")]
    NoNodes,
    /// An expert cannot be served.
    #[error("expert {expert} has no copy: give it at least one node")]
    NoCopy {
        /// The expert.
        expert: ExpertId,
    },
    /// A node does not exist.
    #[error("expert {expert} has a copy on node {node}: there are {nodes}")]
    NoSuchNode {
        /// The expert.
        expert: ExpertId,
        /// Its host.
        node: NodeId,
        /// N.
        nodes: usize,
    },
    /// A second copy on a node serves nobody.
    #[error("expert {expert} has two copies on node {node}: list each node once")]
    Twice {
        /// The expert.
        expert: ExpertId,
        /// The node listed twice.
        node: NodeId,
    },
}

impl Placement {
    /// A placement on nodes `0..nodes`, from the hosts of each expert in any order.
    ///
    /// # Errors
    /// The first expert without a host, with one out of range, or with one listed twice.
    pub fn new(nodes: usize, hosts: &[Vec<NodeId>]) -> Result<Self, PlacementError> {
        if nodes == 0 {
            return Err(PlacementError::NoNodes);
        }
        let copies = hosts.iter().map(Vec::len).sum();
        let mut first_copy = Vec::with_capacity(hosts.len() + 1);
        let (mut host, mut owner) = (Vec::with_capacity(copies), Vec::with_capacity(copies));
        first_copy.push(0);
        for (expert, listed) in (0..).map(ExpertId).zip(hosts) {
            let first = host.len();
            host.extend_from_slice(listed);
            host[first..].sort_unstable();
            match host[first..].last() {
                None => return Err(PlacementError::NoCopy { expert }),
                Some(node) if node.index() >= nodes => {
                    return Err(PlacementError::NoSuchNode { expert, node: *node, nodes });
                }
                Some(_) => {}
            }
            if let Some(pair) = host[first..].windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(PlacementError::Twice { expert, node: pair[0] });
            }
            owner.resize(host.len(), expert);
            first_copy.push(position(host.len()));
        }
        let mut placement = Self {
            nodes,
            first_copy,
            host,
            owner,
            first_shared: Vec::new(),
            shared: Vec::new(),
            by_component: Vec::with_capacity(nodes),
            first_of_component: Vec::new(),
        };
        placement.index_shared_copies();
        placement.find_components();
        Ok(placement)
    }

    /// N.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// E.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.first_copy.len() - 1
    }

    /// Copies of all experts together: the shares of a dispatch.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.host.len()
    }

    /// The nodes that hold a copy of an expert, ascending.
    #[must_use]
    pub fn hosts(&self, expert: ExpertId) -> &[NodeId] {
        &self.host[self.copies_of(expert)]
    }

    /// The copies of an expert, as positions in the shares of a dispatch.
    #[must_use]
    pub fn copies_of(&self, expert: ExpertId) -> std::ops::Range<usize> {
        self.first_copy[expert.index()] as usize..self.first_copy[expert.index() + 1] as usize
    }

    /// The experts that each node holds, ascending: `[N]`.
    #[must_use]
    pub fn held(&self) -> Vec<Vec<ExpertId>> {
        let mut held = vec![Vec::new(); self.nodes];
        for (node, expert) in self.host.iter().zip(&self.owner) {
            held[node.index()].push(*expert);
        }
        held
    }

    /// What must be sent to turn `previous` into this placement: the bytes of every copy on a node
    /// that did not hold that expert. Dropping a copy is free.
    ///
    /// # Panics
    /// When the numbers of experts differ or `shard_bytes` has not one value an expert.
    #[must_use]
    pub fn moved_bytes(&self, previous: &Self, shard_bytes: &[u64]) -> u64 {
        assert_eq!(self.experts(), previous.experts(), "both placements are of one layer");
        assert_eq!(self.experts(), shard_bytes.len(), "one size an expert");
        let arrived = |expert: ExpertId| {
            let before = previous.hosts(expert);
            self.hosts(expert).iter().filter(|node| before.binary_search(node).is_err()).count()
        };
        let ids = (0..self.experts()).map(ExpertId::from_index);
        ids.zip(shard_bytes).map(|(expert, bytes)| arrived(expert) as u64 * bytes).sum()
    }

    fn index_shared_copies(&mut self) {
        let is_shared = |expert: ExpertId| self.copies_of(expert).len() > 1;
        let mut first = vec![0_u32; self.nodes + 1];
        for (node, expert) in self.host.iter().zip(&self.owner) {
            first[node.index() + 1] += u32::from(is_shared(*expert));
        }
        for node in 0..self.nodes {
            first[node + 1] += first[node];
        }
        let mut next = first.clone();
        let mut shared = vec![0_u32; first[self.nodes] as usize];
        for (copy, (node, expert)) in self.host.iter().zip(&self.owner).enumerate() {
            if is_shared(*expert) {
                shared[next[node.index()] as usize] = position(copy);
                next[node.index()] += 1;
            }
        }
        (self.first_shared, self.shared) = (first, shared);
    }

    fn find_components(&mut self) {
        let mut node_seen = vec![false; self.nodes];
        let mut expert_seen = vec![false; self.experts()];
        let (mut order, mut first) = (Vec::with_capacity(self.nodes), vec![0]);
        for root in (0..self.nodes).map(NodeId::from_index) {
            if std::mem::replace(&mut node_seen[root.index()], true) {
                continue;
            }
            let mut visited = order.len();
            order.push(root);
            while let Some(node) = order.get(visited).copied() {
                visited += 1;
                for copy in self.shared_on(node) {
                    let expert = self.owner[*copy as usize];
                    if std::mem::replace(&mut expert_seen[expert.index()], true) {
                        continue;
                    }
                    for next in self.hosts(expert) {
                        if !std::mem::replace(&mut node_seen[next.index()], true) {
                            order.push(*next);
                        }
                    }
                }
            }
            first.push(position(order.len()));
        }
        (self.by_component, self.first_of_component) = (order, first);
    }

    /// The copies on a node whose expert has another host too.
    fn shared_on(&self, node: NodeId) -> &[u32] {
        let range = self.first_shared[node.index()]..self.first_shared[node.index() + 1];
        &self.shared[range.start as usize..range.end as usize]
    }
}

fn position(index: usize) -> u32 {
    u32::try_from(index).expect("a layer has fewer than 2^32 copies and nodes")
}

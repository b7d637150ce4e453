//! What a dispatch is worth, recomputed from the placement, the loads and the shares alone.
//!
//! Nothing here is shared with the solver: a mistake in one cannot hide in the other.

use super::{Dispatch, Placement, TightSet};
use crate::ids::{ExpertId, NodeId};

/// Rounding allowed in the sum of an expert's shares, as a part of its load.
const ROUNDING: f64 = 1e-9;

/// The distance of a dispatch from the optimum and from equilibrium, in the loads' unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DispatchCertificate {
    /// max_g L_g.
    pub max_load: f64,
    /// w(A) / |nodes(A)| of the tight set A: no dispatch on this placement has a lower maximum.
    pub lower_bound: f64,
    /// `(max_load − lower_bound) / max_load`, with 0/0 = 0. May be negative by rounding.
    pub relative_gap: f64,
    /// The most that any served work gains by another copy: the largest L_u − L_v over experts
    /// served on u with a copy on v, at least 0. A dispatch with 0 is a Wardrop equilibrium and
    /// minimises Σ L_g² (its Kuhn–Tucker conditions).
    pub largest_gain: f64,
    /// Σ_g L_g / N.
    pub mean_load: f64,
}

/// Why shares are no dispatch of these loads.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DispatchFault {
    /// The sizes of the three differ.
    #[error("{loads} loads and {shares} shares given for {experts} experts with {copies} copies")]
    Sizes {
        /// Loads given.
        loads: usize,
        /// Shares given.
        shares: usize,
        /// E.
        experts: usize,
        /// Copies of the placement.
        copies: usize,
    },
    /// A share is negative or not finite.
    #[error("node {node} serves {share} of expert {expert}: a share is at least zero")]
    Share {
        /// The expert.
        expert: ExpertId,
        /// The node.
        node: NodeId,
        /// The share.
        share: f64,
    },
    /// Work was lost or invented.
    #[error("the shares of expert {expert} add up to {sum}: its load is {load}")]
    Sum {
        /// The expert.
        expert: ExpertId,
        /// Σ_g `x[e,g]`.
        sum: f64,
        /// w_e.
        load: f64,
    },
    /// The reported node loads are not those of the shares.
    #[error("node {node} is reported to carry {reported}: its shares add up to {sum}")]
    NodeLoad {
        /// The node.
        node: NodeId,
        /// What the dispatch says.
        reported: f64,
        /// What the shares say.
        sum: f64,
    },
}

/// Certifies a dispatch. O(copies).
///
/// # Errors
/// The first share, sum or node load that is wrong by more than 1e-9 of the load it belongs to.
pub fn certify_dispatch(
    placement: &Placement,
    loads: &[f64],
    dispatch: &Dispatch,
) -> Result<DispatchCertificate, DispatchFault> {
    let node_loads = check_shares(placement, loads, &dispatch.shares)?;
    let largest = node_loads.iter().copied().fold(0.0, f64::max);
    let nodes = || (0..placement.nodes()).map(NodeId::from_index);
    for ((node, sum), reported) in nodes().zip(&node_loads).zip(&dispatch.node_loads) {
        if (sum - reported).abs() > ROUNDING * largest {
            return Err(DispatchFault::NodeLoad { node, reported: *reported, sum: *sum });
        }
    }
    let mut largest_gain = 0.0_f64;
    for expert in (0..loads.len()).map(ExpertId::from_index) {
        let hosts = placement.hosts(expert).iter().map(|node| node_loads[node.index()]);
        let least = hosts.clone().fold(f64::INFINITY, f64::min);
        let served = hosts.zip(&dispatch.shares[placement.copies_of(expert)]);
        let most = served.filter(|(_, share)| **share > 0.0).map(|(load, _)| load);
        largest_gain = largest_gain.max(most.fold(0.0, f64::max) - least);
    }
    let lower_bound = tight_set_bound(placement, loads, &dispatch.tight);
    let gap = largest - lower_bound;
    Ok(DispatchCertificate {
        max_load: largest,
        lower_bound,
        relative_gap: if gap == 0.0 { 0.0 } else { gap / largest },
        largest_gain,
        mean_load: node_loads.iter().sum::<f64>() / placement.nodes() as f64,
    })
}

/// w(A) / |nodes(A)|: a lower bound of the largest node load for any set A of experts; 0 for the
/// empty set. The nodes are taken from the placement, not from the set.
///
/// # Panics
/// When an expert of the set is out of range.
#[must_use]
pub fn tight_set_bound(placement: &Placement, loads: &[f64], set: &TightSet) -> f64 {
    let mut experts = set.experts.clone();
    experts.sort_unstable();
    experts.dedup();
    let mut reached = vec![false; placement.nodes()];
    for node in experts.iter().flat_map(|expert| placement.hosts(*expert)) {
        reached[node.index()] = true;
    }
    let nodes = reached.into_iter().filter(|reached| *reached).count();
    let load: f64 = experts.iter().map(|expert| loads[expert.index()]).sum();
    if nodes == 0 { 0.0 } else { load / nodes as f64 }
}

/// The node loads of shares that serve every expert exactly.
fn check_shares(
    placement: &Placement,
    loads: &[f64],
    shares: &[f64],
) -> Result<Vec<f64>, DispatchFault> {
    let (experts, copies) = (placement.experts(), placement.copies());
    if loads.len() != experts || shares.len() != copies {
        let (loads, shares) = (loads.len(), shares.len());
        return Err(DispatchFault::Sizes { loads, shares, experts, copies });
    }
    let mut node_loads = vec![0.0; placement.nodes()];
    for (expert, load) in (0..).map(ExpertId).zip(loads) {
        let mut sum = 0.0;
        for (node, share) in
            placement.hosts(expert).iter().zip(&shares[placement.copies_of(expert)])
        {
            if !(share.is_finite() && *share >= 0.0) {
                return Err(DispatchFault::Share { expert, node: *node, share: *share });
            }
            sum += share;
            node_loads[node.index()] += share;
        }
        if (sum - load).abs() > ROUNDING * load {
            return Err(DispatchFault::Sum { expert, sum, load: *load });
        }
    }
    Ok(node_loads)
}

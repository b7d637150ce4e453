//! The exact split of expert loads over their copies.

use super::Placement;
use super::flow::Flow;
use crate::ids::{ExpertId, NodeId};

/// A split of the experts' loads over their copies.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// `x[e,g]` ≥ 0 for every copy, in the order of [`Placement::copies_of`] and the loads' unit.
    pub shares: Vec<f64>,
    /// L_g = Σ_e `x[e,g]`: `[N]`.
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
/// k at once. `warm` is a dispatch on the same placement under other loads whose proportions are
/// the starting point; the node loads and their guarantee do not depend on it.
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
/// loaded node. Exact up to rounding: no node exceeds the mean of its final set by more than 1e-12
/// of it. Deterministic: the same arguments give the same bits.
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

pub(super) fn node_loads(placement: &Placement, shares: &[f64]) -> Vec<f64> {
    let mut loads = vec![0.0; placement.nodes()];
    for (node, share) in placement.host.iter().zip(shares) {
        loads[node.index()] += share;
    }
    loads
}

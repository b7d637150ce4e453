//! Flock precision: each node decides the widths of the experts that it holds, within its own bytes, by what
//! it and their companions see.
//!
//! An expert's demand is its own running load, mixed with those of the experts that the same tokens choose:
//! they vouch for it. With the mixed loads a node moves its experts towards its own hull allocation, a few at
//! a time. No node sees another's experts, but for the loads of companions.

use crate::ids::NodeId;
use crate::precision::{
    BitsMove, ReallocateError, ReallocateLimits, Unit, evaluate, reallocate, reweigh,
};

/// Parameters of the rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlockPrecision {
    /// σ, 0 to 1: weight of the companions' mean load in an expert's own.
    pub vouching: f64,
    /// Bytes that a node may load in a round.
    pub node_bytes_max: u64,
    /// What loading a byte must save, in units of cost, at least 0.
    pub cost_per_byte: f64,
}

/// One layer's experts as nodes hold them.
#[derive(Clone, Copy, Debug)]
pub struct Holdings<'h> {
    /// Experts with the costs of the calibration.
    pub units: &'h [Unit],
    /// Loads that the costs were measured with, `[E]`.
    pub calibrated: &'h [f64],
    /// The node of each expert, `[E]`.
    pub nodes: &'h [NodeId],
    /// Bytes of each node.
    pub budgets: &'h [u64],
    /// The companions of each expert, `[E]`.
    pub companions: &'h [Vec<usize>],
}

/// `n̂_e = (1 − σ) n_e + σ mean_{j∈N(e)} n_j`; an expert without companions keeps its own.
///
/// # Panics
/// When there are not as many neighbourhoods as loads.
#[must_use]
pub fn vouched(loads: &[f64], companions: &[Vec<usize>], vouching: f64) -> Vec<f64> {
    assert_eq!(loads.len(), companions.len(), "companions of each expert");
    let mixed = |(own, near): (&f64, &Vec<usize>)| match near.len() {
        0 => *own,
        count => {
            let sum: f64 = near.iter().map(|other| loads[*other]).sum();
            (1.0 - vouching) * own + vouching * sum / count as f64
        }
    };
    loads.iter().zip(companions).map(mixed).collect()
}

impl FlockPrecision {
    /// One round: the moves of all nodes, node by node in the order of their ids. `current` are the options
    /// in force, `loads` the running loads.
    ///
    /// # Errors
    /// When a node's bytes do not hold what is in force, or the parts do not fit together.
    ///
    /// # Panics
    /// When the tables differ in length or name a node without a budget.
    pub fn round(
        &self,
        holdings: &Holdings<'_>,
        loads: &[f64],
        current: &[usize],
    ) -> Result<Vec<BitsMove>, ReallocateError> {
        self.round_passing_on(holdings, loads, current, (0, u64::MAX))
    }

    /// The same where all nodes together may load so many bytes: each passes on what it leaves, from the
    /// given node on and around.
    ///
    /// # Errors
    /// As [`Self::round`].
    ///
    /// # Panics
    /// As [`Self::round`].
    pub fn round_passing_on(
        &self,
        holdings: &Holdings<'_>,
        loads: &[f64],
        current: &[usize],
        (first, bytes_max): (usize, u64),
    ) -> Result<Vec<BitsMove>, ReallocateError> {
        let Holdings { units, calibrated, nodes, budgets, companions } = *holdings;
        assert_eq!(
            (units.len(), current.len()),
            (nodes.len(), nodes.len()),
            "one of each an expert"
        );
        let units = reweigh(units, calibrated, &vouched(loads, companions, self.vouching));
        let mut moves = Vec::new();
        let mut left = bytes_max;
        let around = (0..budgets.len()).map(|place| (first + place) % budgets.len());
        for node in around {
            let budget = budgets[node];
            let held: Vec<usize> = (0..nodes.len()).filter(|e| nodes[*e].index() == node).collect();
            let own: Vec<Unit> = held.iter().map(|unit| units[*unit].clone()).collect();
            let options: Vec<usize> = held.iter().map(|unit| current[*unit]).collect();
            let bytes_moved_max = self.node_bytes_max.min(left);
            let cost_per_byte = self.cost_per_byte;
            let limits = ReallocateLimits { budget, bytes_moved_max, cost_per_byte };
            let found = reallocate(&own, &options, limits)?;
            left -= found.bytes_moved;
            moves
                .extend(found.moves.iter().map(|step| BitsMove { unit: held[step.unit], ..*step }));
        }
        Ok(moves)
    }
}

/// Bytes that each node's experts take under `options`: budgets under which nothing needs to move.
#[must_use]
pub fn bytes_by_node(
    units: &[Unit],
    options: &[usize],
    nodes: &[NodeId],
    count: usize,
) -> Vec<u64> {
    let mut bytes = vec![0; count];
    for ((unit, option), node) in units.iter().zip(options).zip(nodes) {
        bytes[node.index()] += unit.bytes[*option];
    }
    debug_assert_eq!(bytes.iter().sum::<u64>(), evaluate(units, options.to_vec(), u64::MAX).bytes);
    bytes
}

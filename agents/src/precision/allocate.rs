//! Which option each unit gets under a byte budget: a multiple-choice knapsack.
//!
//! `min Σ_u cost_u(b_u)` subject to `Σ_u bytes_u(b_u) ≤ B`, one option `b_u` per unit. Dynamic
//! programming over the budget solves it exactly. The Lagrangian dual
//! `max_{λ ≥ 0} Σ_u min_b (cost_u(b) + λ bytes_u(b)) − λ B` bounds the optimum from below and
//! certifies any other allocator.

use super::hull;

/// What an allocator is given.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// The units, all layers' one after the other.
    pub units: &'a [Unit],
    /// Bytes that all units may take together.
    pub budget: u64,
    /// Bits of each option, where every unit has the same options; read by `uniform:N` alone.
    pub widths: &'a [u32],
    /// The units that each unit minds, read by `flock` alone; empty: those beside it by index.
    pub neighbours: &'a [Vec<usize>],
    /// Seed of allocators that draw.
    pub seed: u64,
}

/// Gives each unit one of its options. One file each.
pub trait Allocator: Send + Sync {
    /// Allocates within the budget. Deterministic: the same problem gives the same bits at any thread
    /// count.
    ///
    /// # Errors
    /// When a unit is malformed, the budget is below the smallest size, or the allocator cannot meet it.
    fn allocate(&self, problem: &Problem<'_>) -> Result<Allocation, AllocationError>;
}

/// One unit, an expert say, and its options: bit widths.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// Cost of each option, finite.
    pub costs: Vec<f64>,
    /// Bytes of each option.
    pub bytes: Vec<u64>,
}

/// An option for each unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// The chosen option of each unit.
    pub options: Vec<usize>,
    /// Sum of their costs, in the order of the units.
    pub cost: f64,
    /// Sum of their bytes, at most the budget.
    pub bytes: u64,
    /// No allocation within the budget costs less than this.
    pub dual_bound: f64,
    /// Every size was rounded up to a multiple of this many bytes above the unit's smallest.
    pub step_bytes: u64,
    /// Whether `step_bytes` divides every size difference, so that nothing was lost by rounding.
    pub exact: bool,
}

impl Allocation {
    /// `(cost − exact) / exact` against the exact allocation of the same problem: 0 where both cost the
    /// same, none where the exact one is free and this one is not.
    #[must_use]
    pub fn gap_to(&self, exact: &Self) -> Option<f64> {
        if self.cost.total_cmp(&exact.cost).is_eq() {
            return Some(0.0);
        }
        (exact.cost > 0.0).then(|| (self.cost - exact.cost) / exact.cost)
    }
}

/// Why there is no allocation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// The budget is too small.
    #[error(
        "a budget of {budget} bytes is too small: the smallest feasible size is {smallest} bytes"
    )]
    Infeasible {
        /// The budget.
        budget: u64,
        /// Bytes of the smallest allocation.
        smallest: u64,
    },
    /// A unit without options, with unequal lists, or with a cost that is not finite.
    #[error("unit {0} needs at least one option, as many sizes as costs, and finite costs")]
    Unit(usize),
    /// A uniform width that is none of the options.
    #[error("no option has {bits} bits: choose a width that is allowed")]
    NoSuchWidth {
        /// Bits asked for.
        bits: u32,
    },
    /// A uniform width above the budget.
    #[error(
        "all at {bits} bits take {bytes} bytes, above the {budget} of the budget: allow more bytes, or \
         choose fewer bits"
    )]
    UniformTooLarge {
        /// Bits asked for.
        bits: u32,
        /// What they would take.
        bytes: u64,
        /// The budget.
        budget: u64,
    },
    /// Neighbour lists that do not fit the units.
    #[error("neighbours need one list a unit, of units that there are")]
    Neighbours,
}

/// The certificate line of given options, whoever chose them.
///
/// # Panics
/// When there is not one option per unit.
#[must_use]
pub fn evaluate(units: &[Unit], options: Vec<usize>, budget: u64) -> Allocation {
    assert_eq!(units.len(), options.len(), "one option per unit");
    let chosen = || units.iter().zip(&options);
    let cost: f64 = chosen().map(|(unit, option)| unit.costs[*option]).sum();
    let bytes = chosen().map(|(unit, option)| unit.bytes[*option]).fold(0, u64::saturating_add);
    let bound = hull::dual_bound(units, budget);
    let feasible = bytes <= budget;
    let magnitude: f64 = units.iter().map(largest_cost).sum();
    assert!(
        !feasible || bound <= cost + 1e-9 * magnitude,
        "a bound of {bound} lies below the {cost} of what is feasible"
    );
    // Rounding alone may lift the bound of a feasible allocation above its cost.
    let dual_bound = if feasible { bound.min(cost) } else { bound };
    Allocation { options, cost, bytes, dual_bound, step_bytes: 1, exact: true }
}

/// Bytes that are left when every unit takes its smallest option.
pub(super) fn slack(units: &[Unit], budget: u64) -> Result<u64, AllocationError> {
    let malformed = |unit: &Unit| {
        unit.costs.is_empty()
            || unit.costs.len() != unit.bytes.len()
            || unit.costs.iter().any(|cost| !cost.is_finite())
    };
    if let Some(unit) = units.iter().position(malformed) {
        return Err(AllocationError::Unit(unit));
    }
    let smallest = units.iter().map(smallest_bytes).fold(0, u64::saturating_add);
    budget.checked_sub(smallest).ok_or(AllocationError::Infeasible { budget, smallest })
}

pub(super) fn smallest_bytes(unit: &Unit) -> u64 {
    unit.bytes.iter().copied().min().unwrap_or(0)
}

fn largest_cost(unit: &Unit) -> f64 {
    unit.costs.iter().fold(0.0, |most: f64, cost| most.max(cost.abs()))
}

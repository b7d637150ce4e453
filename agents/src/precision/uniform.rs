//! The same width for every unit: the control of mixed widths.

use super::allocate::slack;
use super::{Allocation, AllocationError, Allocator, Problem, Unit, evaluate};

/// All units at `bits` bits, or nothing: `uniform:N`. Label: tested.
pub struct Uniform {
    /// Bits of the option that every unit takes.
    pub bits: u32,
}

impl Allocator for Uniform {
    /// # Errors
    /// As [`uniform`], and when no option has so many bits or they do not fit the budget.
    fn allocate(&self, problem: &Problem<'_>) -> Result<Allocation, AllocationError> {
        let Problem { units, budget, widths, .. } = *problem;
        slack(units, budget)?;
        let bits = self.bits;
        let option = widths.iter().position(|width| *width == bits);
        let option = option.ok_or(AllocationError::NoSuchWidth { bits })?;
        if let Some(unit) = units.iter().position(|unit| unit.costs.len() <= option) {
            return Err(AllocationError::Unit(unit));
        }
        let all = evaluate(units, vec![option; units.len()], budget);
        if all.bytes > budget {
            return Err(AllocationError::UniformTooLarge { bits, bytes: all.bytes, budget });
        }
        Ok(all)
    }
}

/// The best allocation in which every unit has the same option: the control of [`allocate`](super::allocate()).
///
/// # Errors
/// When a unit is malformed, units differ in their number of options, or no option fits the budget.
pub fn uniform(units: &[Unit], budget: u64) -> Result<Allocation, AllocationError> {
    slack(units, budget)?;
    let count = units.first().map_or(1, |unit| unit.costs.len());
    if let Some(other) = units.iter().position(|unit| unit.costs.len() != count) {
        return Err(AllocationError::Unit(other));
    }
    let candidates = || (0..count).map(|option| evaluate(units, vec![option; units.len()], budget));
    candidates()
        .filter(|allocation| allocation.bytes <= budget)
        .min_by(|a, b| a.cost.total_cmp(&b.cost).then(a.bytes.cmp(&b.bytes)))
        .ok_or_else(|| {
            let smallest = candidates().map(|allocation| allocation.bytes).min().unwrap_or(0);
            AllocationError::Infeasible { budget, smallest }
        })
}

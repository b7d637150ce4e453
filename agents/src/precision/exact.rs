//! The exact allocator: dynamic programming over the budget.

use super::allocate::{slack, smallest_bytes};
use super::{Allocation, AllocationError, Allocator, Problem, Unit, evaluate};

/// [`allocate`] under a name: `exact`. Label: tested.
#[derive(Default)]
pub struct Exact;

impl Allocator for Exact {
    fn allocate(&self, problem: &Problem<'_>) -> Result<Allocation, AllocationError> {
        allocate(problem.units, problem.budget)
    }
}

/// States of the table over all units, at most: 64 MiB of choices.
const MAX_STATES: u64 = 1 << 26;

/// States of one unit, at most.
const MAX_UNIT_STATES: u64 = 1 << 20;

/// The allocation of least cost; of equal costs the smallest; then the lowest options from the last
/// unit on.
///
/// Exact unless the table would exceed its bound. Then sizes are rounded up, so that the result stays
/// within the budget but may cost more than the optimum; [`Allocation::dual_bound`] limits by how much.
///
/// # Errors
/// When a unit is malformed or the budget is below the smallest size.
pub fn allocate(units: &[Unit], budget: u64) -> Result<Allocation, AllocationError> {
    let slack = slack(units, budget)?;
    let scale = Scale::choose(units, slack);
    let sizes: Vec<Vec<usize>> = units.iter().map(|unit| scale.sizes(unit)).collect();
    let options = table(units, &sizes, scale.states);
    Ok(Allocation {
        step_bytes: scale.step,
        exact: scale.exact,
        ..evaluate(units, options, budget)
    })
}

/// How bytes above a unit's smallest option become states of the table.
struct Scale {
    step: u64,
    exact: bool,
    states: usize,
}

impl Scale {
    fn choose(units: &[Unit], slack: u64) -> Self {
        let extra = |unit: &Unit| {
            let smallest = smallest_bytes(unit);
            unit.bytes.iter().map(move |bytes| bytes - smallest).collect::<Vec<_>>()
        };
        let extras: Vec<Vec<u64>> = units.iter().map(extra).collect();
        let common = extras.iter().flatten().fold(0, |a, b| gcd(a, *b)).max(1);
        let most = |extra: &Vec<u64>| extra.iter().copied().max().unwrap_or(0);
        // Nothing beyond the largest options can be spent.
        let spendable = extras.iter().map(most).fold(0, u64::saturating_add).min(slack);
        let per_unit = (MAX_STATES / (units.len() as u64).max(1)).clamp(2, MAX_UNIT_STATES);
        let factor = (spendable / common).div_ceil(per_unit - 1).max(1);
        let step = common.saturating_mul(factor);
        let states = usize::try_from(spendable / step + 1).expect("bounded by MAX_UNIT_STATES");
        Self { step, exact: factor == 1, states }
    }

    /// Steps of each option above the smallest, rounded up.
    fn sizes(&self, unit: &Unit) -> Vec<usize> {
        let smallest = smallest_bytes(unit);
        let steps = |bytes: &u64| (bytes - smallest).div_ceil(self.step);
        unit.bytes.iter().map(|bytes| usize::try_from(steps(bytes)).unwrap_or(usize::MAX)).collect()
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The least cost for every size, unit by unit, and the choices traced back from the best.
fn table(units: &[Unit], sizes: &[Vec<usize>], states: usize) -> Vec<usize> {
    let mut least = vec![f64::INFINITY; states];
    least[0] = 0.0;
    let mut choices = Vec::with_capacity(units.len());
    for (unit, sizes) in units.iter().zip(sizes) {
        let mut next = vec![f64::INFINITY; states];
        let mut choice = vec![0_u8; states];
        assert!(sizes.len() <= usize::from(u8::MAX), "a unit has fewer than 256 options");
        for (option, (size, cost)) in (0..).zip(sizes.iter().zip(&unit.costs)) {
            for state in *size..states {
                let total = least[state - size] + cost;
                if total < next[state] {
                    next[state] = total;
                    choice[state] = option;
                }
            }
        }
        least = next;
        choices.push(choice);
    }
    let mut state = (0..states).fold(0, |best, s| if least[s] < least[best] { s } else { best });
    let mut options: Vec<usize> = choices
        .iter()
        .zip(sizes)
        .rev()
        .map(|(choice, sizes)| {
            let option = usize::from(choice[state]);
            state -= sizes[option];
            option
        })
        .collect();
    options.reverse();
    options
}

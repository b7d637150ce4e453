//! Which option each unit gets under a byte budget: a multiple-choice knapsack.
//!
//! `min Σ_u cost_u(b_u)` subject to `Σ_u bytes_u(b_u) ≤ B`, one option `b_u` per unit. Dynamic
//! programming over the budget solves it exactly. The Lagrangian dual
//! `max_{λ ≥ 0} Σ_u min_b (cost_u(b) + λ bytes_u(b)) − λ B` bounds the optimum from below and
//! certifies any other allocator.

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
}

/// States of the table over all units, at most: 64 MiB of choices.
const MAX_STATES: u64 = 1 << 26;

/// States of one unit, at most.
const MAX_UNIT_STATES: u64 = 1 << 20;

/// Bisections of the multiplier: enough to exhaust the digits of an f64.
const BISECTIONS: usize = 128;

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

/// The best allocation in which every unit has the same option: the control of [`allocate`].
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
    let bound = dual_bound(units, budget);
    let feasible = bytes <= budget;
    assert!(!feasible || bound <= cost + 1e-9 * cost.abs(), "a bound lies below what is feasible");
    // Rounding alone may lift the bound of a feasible allocation above its cost.
    let dual_bound = if feasible { bound.min(cost) } else { bound };
    Allocation { options, cost, bytes, dual_bound, step_bytes: 1, exact: true }
}

/// Bytes that are left when every unit takes its smallest option.
fn slack(units: &[Unit], budget: u64) -> Result<u64, AllocationError> {
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

fn smallest_bytes(unit: &Unit) -> u64 {
    unit.bytes.iter().copied().min().unwrap_or(0)
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

/// The Lagrangian dual, by bisection of its multiplier. Its value at any multiplier is a bound.
fn dual_bound(units: &[Unit], budget: u64) -> f64 {
    let (mut best, bytes) = dual(units, budget, 0.0);
    if bytes <= budget {
        return best;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..BISECTIONS {
        let (bound, bytes) = dual(units, budget, high);
        best = best.max(bound);
        if bytes <= budget {
            break;
        }
        (low, high) = (high, high * 2.0);
    }
    for _ in 0..BISECTIONS {
        let middle = 0.5 * (low + high);
        let (bound, bytes) = dual(units, budget, middle);
        best = best.max(bound);
        if bytes <= budget {
            high = middle;
        } else {
            low = middle;
        }
    }
    best
}

/// The dual's value at one multiplier, and the bytes of its minimiser: the slope is their excess.
fn dual(units: &[Unit], budget: u64, multiplier: f64) -> (f64, u64) {
    let mut value = 0.0;
    let mut total = 0_u64;
    for unit in units {
        let price = |(cost, bytes): (&f64, &u64)| (cost + multiplier * *bytes as f64, *bytes);
        let least = |a: (f64, u64), b: (f64, u64)| if (b.0, b.1) < (a.0, a.1) { b } else { a };
        let (cost, bytes) =
            unit.costs.iter().zip(&unit.bytes).map(price).fold((f64::INFINITY, u64::MAX), least);
        value += cost;
        total = total.saturating_add(bytes);
    }
    (value - multiplier * budget as f64, total)
}

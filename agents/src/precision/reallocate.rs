//! Online re-allocation: routing drifts, costs follow the loads, and few bytes move.

use super::allocate::slack;
use super::{AllocationError, Allocator as _, Hull, Problem, Unit, evaluate};
use serde::{Deserialize, Serialize};

/// The exponential moving average of each expert's load in pairs: `n̄ ← n̄ + s (n − n̄)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningLoads {
    step: f64,
    loads: Vec<f64>,
    started: bool,
}

impl RunningLoads {
    /// Nothing seen yet. `step` is s, above 0 and up to 1: 1 remembers the last batch alone.
    ///
    /// # Panics
    /// When s is out of range.
    #[must_use]
    pub fn new(experts: usize, step: f64) -> Self {
        assert!(step > 0.0 && step <= 1.0, "the step of an average lies above 0 and goes up to 1");
        Self { step, loads: vec![0.0; experts], started: false }
    }

    /// Takes a batch's loads; the first batch is the average.
    ///
    /// # Panics
    /// When there is not one load an expert.
    pub fn absorb(&mut self, loads: &[u32]) {
        assert_eq!(loads.len(), self.loads.len(), "one load an expert");
        let step = if self.started { self.step } else { 1.0 };
        self.started = true;
        for (mean, load) in self.loads.iter_mut().zip(loads) {
            *mean += step * (f64::from(*load) - *mean);
        }
    }

    /// The averages, by expert.
    #[must_use]
    pub fn loads(&self) -> &[f64] {
        &self.loads
    }
}

/// A layer's units with the costs that they have under other loads.
///
/// A measured cost is a sum over the tokens that an expert saw, so it grows with their share:
/// `cost′ = cost · π(running) / π(calibrated)` with `π(n) = (1 − δ) n/N + δ/E` and
/// `δ = E / (N_calibrated + E)`, Laplace's rule on the calibration's pairs. How the tokens themselves
/// changed is not seen. The loads of either kind are in units of their own. Without any load of one
/// kind the costs stay.
///
/// # Panics
/// When there are not two finite loads ≥ 0 a unit.
#[must_use]
pub fn reweigh(units: &[Unit], calibrated: &[f64], running: &[f64]) -> Vec<Unit> {
    assert!(units.len() == calibrated.len() && units.len() == running.len(), "a load a unit");
    let all = || calibrated.iter().chain(running);
    assert!(
        all().all(|load| load.is_finite() && *load >= 0.0),
        "loads are finite and not negative"
    );
    let experts = units.len() as f64;
    let (seen, now): (f64, f64) = (calibrated.iter().sum(), running.iter().sum());
    if seen <= 0.0 || now <= 0.0 {
        return units.to_vec();
    }
    let prior = experts / (seen + experts);
    let share = |load: f64, sum: f64| (1.0 - prior) * load / sum + prior / experts;
    let weighted = |((unit, then), now_load): ((&Unit, &f64), &f64)| {
        let factor = share(*now_load, now) / share(*then, seen);
        Unit { costs: unit.costs.iter().map(|cost| cost * factor).collect(), ..unit.clone() }
    };
    units.iter().zip(calibrated).zip(running).map(weighted).collect()
}

/// What a re-allocation may do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReallocateLimits {
    /// Bytes that all units may take together, after every move.
    pub budget: u64,
    /// Bytes that may be loaded: the new size of every unit that changes.
    pub bytes_moved_max: u64,
    /// Hysteresis: what loading a byte must save, in units of cost, at least 0.
    pub cost_per_byte: f64,
}

/// A unit takes another option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BitsMove {
    /// The unit.
    pub unit: usize,
    /// The option it had.
    pub from: usize,
    /// The option it gets.
    pub to: usize,
    /// Bytes loaded: its new size.
    pub bytes: u64,
}

/// What changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reallocation {
    /// The moves, in an order in which the budget holds after each.
    pub moves: Vec<BitsMove>,
    /// The option of each unit after them.
    pub options: Vec<usize>,
    /// Bytes loaded.
    pub bytes_moved: u64,
    /// Cost of the options before, at the costs given.
    pub cost_before: f64,
    /// Cost of the options after.
    pub cost_after: f64,
    /// Cost of the hull allocation, had moving been free: the control.
    pub cost_hull: f64,
    /// No allocation within the budget costs less.
    pub dual_bound: f64,
}

/// Why nothing can be re-allocated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReallocateError {
    /// The units or the budget.
    #[error(transparent)]
    Allocation(#[from] AllocationError),
    /// The options in force are not one for each unit, of those that it has.
    #[error("the options in force need one for each unit, of those that it has")]
    Options,
    /// They exceed the budget.
    #[error("the options in force take {bytes} bytes, above the budget of {budget}: allocate anew")]
    OverBudget {
        /// What they take.
        bytes: u64,
        /// The budget.
        budget: u64,
    },
    /// The price of a byte is negative or not finite.
    #[error("cost_per_byte is {0}: choose a finite number of at least 0")]
    CostPerByte(f64),
}

/// Moves units towards the hull allocation of `units`, whose costs are those of today, as far as the
/// moves are worth it.
///
/// Moves come in bundles: one unit that gains and as many as must shrink to make room for it, those
/// first that lose least for each byte they free. The gainers come in the order of what they save for
/// each byte loaded. A bundle is made if it saves more than `cost_per_byte` for each byte it loads and
/// those bytes are still allowed.
///
/// Guaranteed: the budget holds after every move, at most `bytes_moved_max` bytes move, and
/// `cost_after + cost_per_byte · bytes_moved ≤ cost_before`: noise in the loads that is worth less
/// moves nothing. O(n log n + n m), m the units that change.
///
/// # Errors
/// When the arguments do not fit together or the options in force exceed the budget.
pub fn reallocate(
    units: &[Unit],
    current: &[usize],
    limits: ReallocateLimits,
) -> Result<Reallocation, ReallocateError> {
    let ReallocateLimits { budget, bytes_moved_max, cost_per_byte } = limits;
    slack(units, budget)?;
    let listed = units.iter().zip(current).all(|(unit, option)| *option < unit.costs.len());
    if !listed || units.len() != current.len() {
        return Err(ReallocateError::Options);
    }
    if !(cost_per_byte.is_finite() && cost_per_byte >= 0.0) {
        return Err(ReallocateError::CostPerByte(cost_per_byte));
    }
    let before = evaluate(units, current.to_vec(), budget);
    if before.bytes > budget {
        return Err(ReallocateError::OverBudget { bytes: before.bytes, budget });
    }
    let problem = Problem { units, budget, widths: &[], neighbours: &[], seed: 0 };
    let target = Hull.allocate(&problem)?;
    let (gainers, payers) = changes(units, current, &target.options, cost_per_byte);

    let mut left = budget - before.bytes;
    let mut waiting = payers.as_slice();
    let (mut moves, mut bytes_moved) = (Vec::new(), 0_u64);
    for gainer in &gainers {
        let Some(paying) = payers_for(gainer, waiting, left) else { continue };
        let bundle = || waiting[..paying].iter().chain([gainer]);
        let loaded = bundle().map(|change| change.step.bytes).fold(0, u64::saturating_add);
        let worth: f64 = bundle().map(|change| change.saved).sum();
        if worth <= 0.0 || loaded > bytes_moved_max - bytes_moved {
            continue;
        }
        bytes_moved += loaded;
        moves.extend(bundle().map(|change| change.step));
        left = bundle().fold(left, |left, change| left + change.freed) - gainer.taken;
        waiting = &waiting[paying..];
    }
    let mut options = current.to_vec();
    moves.iter().for_each(|step: &BitsMove| options[step.unit] = step.to);
    let after = evaluate(units, options, budget);
    assert!(after.bytes <= budget, "a bundle makes room for what it takes");
    Ok(Reallocation {
        moves,
        options: after.options,
        bytes_moved,
        cost_before: before.cost,
        cost_after: after.cost,
        cost_hull: target.cost,
        dual_bound: after.dual_bound.min(target.dual_bound),
    })
}

/// One unit's way from its option to the target's.
struct Change {
    step: BitsMove,
    /// Cost saved, less the price of the bytes loaded.
    saved: f64,
    /// Bytes it frees.
    freed: u64,
    /// Bytes it takes beyond what it has.
    taken: u64,
}

/// The changes that save cost, those first that save most for each byte loaded; and the others that
/// free bytes, those first that lose least for each byte freed.
fn changes(
    units: &[Unit],
    current: &[usize],
    target: &[usize],
    cost_per_byte: f64,
) -> (Vec<Change>, Vec<Change>) {
    let change = |unit: usize| {
        let Unit { costs, bytes } = &units[unit];
        let (from, to) = (current[unit], target[unit]);
        let saved = costs[from] - costs[to] - cost_per_byte * bytes[to] as f64;
        Change {
            step: BitsMove { unit, from, to, bytes: bytes[to] },
            saved,
            freed: bytes[from].saturating_sub(bytes[to]),
            taken: bytes[to].saturating_sub(bytes[from]),
        }
    };
    let changed = (0..units.len()).filter(|unit| current[*unit] != target[*unit]).map(change);
    let (mut gainers, rest): (Vec<_>, Vec<_>) = changed.partition(|change| change.saved > 0.0);
    let mut payers: Vec<Change> = rest.into_iter().filter(|change| change.freed > 0).collect();
    let by_rate = |rate: fn(&Change) -> f64| {
        move |a: &Change, b: &Change| {
            rate(b).total_cmp(&rate(a)).then(a.step.unit.cmp(&b.step.unit))
        }
    };
    gainers.sort_by(by_rate(|change| change.saved / change.step.bytes.max(1) as f64));
    payers.sort_by(by_rate(|change| change.saved / change.freed as f64));
    (gainers, payers)
}

/// How many of the waiting must pay for the gainer to fit; none where all of them are too few.
fn payers_for(gainer: &Change, waiting: &[Change], left: u64) -> Option<usize> {
    let mut room = left;
    let mut paying = 0;
    while room < gainer.taken {
        room = room.saturating_add(waiting.get(paying)?.freed);
        paying += 1;
    }
    Some(paying)
}

//! The hull allocator, and the dual bound that every allocator is held against.

use std::collections::BinaryHeap;

use super::allocate::{slack, smallest_bytes};
use super::ladder::{Ladders, Rung, Step, rate, rungs};
use super::{Allocation, AllocationError, Allocator, Problem, Unit, evaluate};

/// Greedy over the lower convex hulls of all units: `hull`.
///
/// Every unit starts at its smallest option; the step along a hull that saves most cost for each byte
/// is taken next, while it fits. What is left is filled with options off the hull. O(nK log nK).
///
/// Guaranteed: up to the first step that does not fit this is the optimum of the linear relaxation, so
/// the cost exceeds the dual bound by less than what that one step would have saved (Sinha and Zoltners
/// 1979). Label: tested.
#[derive(Default)]
pub struct Hull;

impl Allocator for Hull {
    fn allocate(&self, problem: &Problem<'_>) -> Result<Allocation, AllocationError> {
        let Problem { units, budget, .. } = *problem;
        let mut left = slack(units, budget)?;
        let hulls: Vec<Vec<Rung>> = units.iter().map(hull).collect();
        let next = |unit: usize, at: usize| {
            let to = hulls[unit].get(at + 1)?;
            Some(Step { rate: rate(&hulls[unit][at], to), unit })
        };
        let mut taken = vec![0; units.len()];
        let mut heap: BinaryHeap<Step> =
            (0..units.len()).filter_map(|unit| next(unit, 0)).collect();
        while let Some(Step { unit, .. }) = heap.pop() {
            let at = taken[unit];
            let more = hulls[unit][at + 1].bytes - hulls[unit][at].bytes;
            // Later steps of a unit whose next one does not fit take more still.
            if more <= left {
                left -= more;
                taken[unit] = at + 1;
                heap.extend(next(unit, at + 1));
            }
        }
        let ladders = Ladders::new(units);
        let mut levels: Vec<usize> = (0..units.len())
            .map(|unit| {
                let bytes = hulls[unit][taken[unit]].bytes;
                ladders.0[unit].partition_point(|rung| rung.bytes < bytes)
            })
            .collect();
        ladders.fill(&mut levels, budget);
        Ok(evaluate(units, ladders.options(&levels), budget))
    }
}

/// The maximum of the Lagrangian dual: concave and piecewise linear in its multiplier, it turns at the
/// rate of the first hull step, steepest first, that no longer fits the budget. Its value at any
/// multiplier is a bound, so rounding of the rates costs tightness alone.
pub(super) fn dual_bound(units: &[Unit], budget: u64) -> f64 {
    let hulls = units.iter().map(hull);
    let mut steps: Vec<(f64, u64)> = hulls
        .flat_map(|hull| {
            let step = |pair: &[Rung]| (rate(&pair[0], &pair[1]), pair[1].bytes - pair[0].bytes);
            hull.windows(2).map(step).collect::<Vec<_>>()
        })
        .collect();
    steps.sort_by(|a, b| b.0.total_cmp(&a.0));
    let smallest: u128 = units.iter().map(|unit| u128::from(smallest_bytes(unit))).sum();
    // Where not even the smallest options fit the dual grows without end.
    let Some(mut left) = u128::from(budget).checked_sub(smallest) else { return f64::INFINITY };
    let over = steps.iter().find(|(_, bytes)| match left.checked_sub(u128::from(*bytes)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    });
    let multiplier = over.map_or(0.0, |(rate, _)| *rate);
    dual(units, (u128::from(budget) - smallest) as f64, multiplier)
}

/// The dual's value at one multiplier, in bytes above the smallest options: large sizes that all
/// options share would drown the costs.
fn dual(units: &[Unit], slack: f64, multiplier: f64) -> f64 {
    let least = |unit: &Unit| {
        let smallest = smallest_bytes(unit);
        let price = |(cost, bytes): (&f64, &u64)| cost + multiplier * (bytes - smallest) as f64;
        unit.costs.iter().zip(&unit.bytes).map(price).fold(f64::INFINITY, f64::min)
    };
    units.iter().map(least).sum::<f64>() - multiplier * slack
}

/// The lower convex hull of a unit's options: bytes rise, costs fall, and each step saves less for a
/// byte than the one before.
fn hull(unit: &Unit) -> Vec<Rung> {
    let mut kept: Vec<Rung> = Vec::new();
    for rung in rungs(unit) {
        while let [.., before, last] = kept.as_slice()
            && rate(before, last) <= rate(last, &rung)
        {
            kept.pop();
        }
        kept.push(rung);
    }
    kept
}

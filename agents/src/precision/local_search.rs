//! Random-restart local search: the control of the swarm, at equal evaluations.

use rand::RngExt as _;

use super::allocate::slack;
use super::flock::neighbours;
use super::ladder::Ladders;
use super::{Allocation, AllocationError, Allocator, Problem, evaluate, uniform};
use crate::rng::stream;

/// Local search from random starts: `local_search`.
///
/// A move redraws the options of one to three units and brings the vector within the budget by the
/// contests of the swarm; it stays unless it costs more. After 300 moves in a row without a gain the next random start
/// begins. The first start is the best uniform width, as the swarm's.
///
/// Guaranteed: within the budget, and no worse than the best uniform width. Label: tested.
pub struct LocalSearch {
    /// Vectors whose cost is found, at least 1.
    pub evaluations_max: usize,
}

/// Moves without a gain that end a start.
const STALE_MAX: usize = 300;

impl Default for LocalSearch {
    fn default() -> Self {
        Self { evaluations_max: super::Flock::default().evaluations_max }
    }
}

impl Allocator for LocalSearch {
    fn allocate(&self, problem: &Problem<'_>) -> Result<Allocation, AllocationError> {
        let Problem { units, budget, seed, .. } = *problem;
        slack(units, budget)?;
        let neighbours = neighbours(problem)?;
        let ladders = Ladders::new(units);
        let mut rng = stream(seed, "precision local search");
        let mut current = start(problem, &ladders);
        let mut cost = ladders.contest(&mut current, budget, &neighbours, &mut rng);
        let (mut best, mut best_cost, mut stale) = (current.clone(), cost, 0);
        for _ in 1..self.evaluations_max {
            let mut next = current.clone();
            let restart = stale == STALE_MAX;
            if restart {
                stale = 0;
                for (level, ladder) in next.iter_mut().zip(&ladders.0) {
                    *level = rng.random_range(0..ladder.len());
                }
            } else if !units.is_empty() {
                for _ in 0..rng.random_range(1..=3) {
                    let unit = rng.random_range(0..units.len());
                    next[unit] = rng.random_range(0..ladders.0[unit].len());
                }
            }
            let next_cost = ladders.contest(&mut next, budget, &neighbours, &mut rng);
            stale = if next_cost < cost { 0 } else { stale + 1 };
            if restart || next_cost <= cost {
                (current, cost) = (next, next_cost);
            }
            if cost < best_cost {
                (best, best_cost) = (current.clone(), cost);
            }
        }
        Ok(evaluate(units, ladders.options(&best), budget))
    }
}

/// The levels of the best uniform width, or the smallest where none fits.
pub(super) fn start(problem: &Problem<'_>, ladders: &Ladders) -> Vec<usize> {
    let best = uniform(problem.units, problem.budget).ok().filter(|best| !best.options.is_empty());
    best.map_or_else(
        || vec![0; problem.units.len()],
        |best| ladders.levels_of(problem.units, best.options[0]),
    )
}

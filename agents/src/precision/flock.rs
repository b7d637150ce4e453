//! The swarm: particles fly over bit vectors, and units near each other turn together.

use rayon::prelude::*;

use super::allocate::slack;
use super::ladder::{Ladders, Rung};
use super::local_search::start;
use super::{Allocation, AllocationError, Allocator, Problem, evaluate};
use crate::rng::stream;
use crate::swarm::{Bounds, Constriction, ConstrictionSettings, Optimizer as _};

/// A particle swarm over bit vectors: `flock`.
///
/// A particle has a real level for each unit, `x ∈ [0, options − 1]`, and flies by constriction
/// ([`Constriction`]), towards its own best P and the best L of its ring of three:
///
/// ```text
/// v ← χ (v + φ₁ U₁ ∘ (P − x) + φ₂ U₂ ∘ (L − x)),   v_u ← (1 − σ) v_u + σ mean_{w∈N(u)} v_w,   x ← x + v
/// ```
///
/// The second line is the flock's alignment: units that are chosen together turn together. What is
/// evaluated is x rounded and brought within the budget by local contests: among a unit and its
/// neighbours the one steps down that loses least for each byte, until the budget holds; then those
/// step up that save most, while they fit. No unit sees more than its neighbours' costs, and the swarm
/// sees the sum alone. [`super::LocalSearch`] has the same contests and is the control. Particle 0
/// starts at the best uniform width, the others at random.
///
/// Guaranteed: within the budget, no worse than the best uniform width, at most `evaluations_max`
/// vectors, the same bits at any thread count. Nothing is promised of the gap, which is why it is
/// printed: where costs add, `exact` and `hull` are better and faster. Label: tested.
pub struct Flock {
    /// Particles, at least 1.
    pub particles: usize,
    /// Vectors whose cost is found, at least 1.
    pub evaluations_max: usize,
    /// σ, 0 to 1: weight of the neighbours' velocity in a unit's own.
    pub alignment: f64,
}

impl Default for Flock {
    fn default() -> Self {
        Self { particles: 24, evaluations_max: 2400, alignment: 0.3 }
    }
}

/// Units on either side that a unit minds where no neighbours are given: with itself seven.
const BESIDE: usize = 3;

impl Allocator for Flock {
    fn allocate(&self, problem: &Problem<'_>) -> Result<Allocation, AllocationError> {
        let Problem { units, budget, seed, .. } = *problem;
        slack(units, budget)?;
        let neighbours = neighbours(problem)?;
        if units.is_empty() {
            return Ok(evaluate(units, Vec::new(), budget));
        }
        let ladders = Ladders::new(units);
        let evaluations = self.evaluations_max.max(1);
        let count = self.particles.clamp(1, evaluations);
        let mut swarm = self.swarm(problem, &ladders, count);
        for round in 0..evaluations / count {
            let measured = swarm.ask().into_par_iter().enumerate().map(|(particle, position)| {
                let mut rng = stream(seed, &format!("precision flock {round} {particle}"));
                let mut levels = ladders.levels_at(&position);
                let cost = ladders.contest(&mut levels, budget, &neighbours, &mut rng);
                (levels.into_iter().map(|level| level as f64).collect(), cost)
            });
            let (points, costs): (Vec<Vec<f64>>, Vec<f64>) = measured.collect();
            swarm.tell(&points, &costs);
        }
        let best = &swarm.best().expect("there is a particle").point;
        Ok(evaluate(units, ladders.options(&ladders.levels_at(best)), budget))
    }
}

impl Flock {
    fn swarm(&self, problem: &Problem<'_>, ladders: &Ladders, count: usize) -> Constriction {
        // A box has some width, where a unit has nothing to choose too.
        let top = |ladder: &Vec<Rung>| (0.0, ladder.len().max(2) as f64 - 1.0);
        let bounds = Bounds::new(ladders.0.iter().map(top).collect());
        let settings = ConstrictionSettings {
            particles: count,
            ring: 1,
            neighbours: neighbours(problem).expect("checked before"),
            alignment: self.alignment,
        };
        let begin = start(problem, ladders).into_iter().map(|level| level as f64).collect();
        let rng = stream(problem.seed, "precision flock");
        Constriction::new(bounds.expect("from low to high"), settings, rng).starting_at(begin)
    }
}

/// The neighbours of each unit: those given, or those beside it.
pub(super) fn neighbours(problem: &Problem<'_>) -> Result<Vec<Vec<usize>>, AllocationError> {
    let (count, given) = (problem.units.len(), problem.neighbours);
    if given.is_empty() {
        let beside = |unit: usize| {
            let window = unit.saturating_sub(BESIDE)..count.min(unit + BESIDE + 1);
            window.filter(|other| *other != unit).collect()
        };
        return Ok((0..count).map(beside).collect());
    }
    let fits = given.len() == count && given.iter().flatten().all(|unit| *unit < count);
    if fits { Ok(given.to_vec()) } else { Err(AllocationError::Neighbours) }
}

/// The units of a layer that share most tokens with each unit, at most `count` each, most first; ties
/// go to the lower id, and units that never met are no neighbours.
///
/// `pairs` counts, row-major `[E, E]`, the tokens that chose both experts.
///
/// # Panics
/// When `pairs` is not square.
#[must_use]
pub fn chosen_together(pairs: &[u64], experts: usize, count: usize) -> Vec<Vec<usize>> {
    assert_eq!(pairs.len(), experts * experts, "one count for every two experts");
    let of = |unit: usize| {
        let row = &pairs[unit * experts..(unit + 1) * experts];
        let met = |other: &usize| *other != unit && row[*other] > 0;
        let mut others: Vec<usize> = (0..experts).filter(met).collect();
        others.sort_by_key(|other| (std::cmp::Reverse(row[*other]), *other));
        others.truncate(count);
        others
    };
    (0..experts).map(of).collect()
}

//! The swarm: particles fly over bit vectors, and units near each other turn together.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::allocate::slack;
use super::ladder::Ladders;
use super::local_search::start;
use super::{Allocation, AllocationError, Allocator, Problem, evaluate};
use crate::rng::stream;

/// A particle swarm over bit vectors: `flock`.
///
/// A particle has a real level for each unit, `x ∈ [0, options − 1]`, and flies by constriction
/// (Clerc and Kennedy 2002), towards its own best P and the best L of its ring of three:
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

/// χ and χ·2.05 of Clerc and Kennedy for φ₁ + φ₂ = 4.1.
const CONSTRICTION: f64 = 0.729_843_8;
const PULL: f64 = 1.496_179_8;

/// Units on either side that a unit minds where no neighbours are given: with itself seven.
const BESIDE: usize = 3;

impl Allocator for Flock {
    fn allocate(&self, problem: &Problem<'_>) -> Result<Allocation, AllocationError> {
        let Problem { units, budget, .. } = *problem;
        slack(units, budget)?;
        let neighbours = neighbours(problem)?;
        let ladders = Ladders::new(units);
        let alignment = self.alignment;
        let sky = Sky { ladders: &ladders, neighbours: &neighbours, budget, alignment };
        let evaluations = self.evaluations_max.max(1);
        let count = self.particles.clamp(1, evaluations);
        let mut particles: Vec<Particle> =
            (0..count).into_par_iter().map(|index| Particle::new(problem, &sky, index)).collect();
        for _ in 1..evaluations / count {
            // All fly by the bests of the iteration before: no order among them.
            let bests: Vec<Best> = particles.iter().map(|particle| particle.best.clone()).collect();
            particles.par_iter_mut().enumerate().for_each(|(index, particle)| {
                let ring = [index, (index + 1) % count, (index + count - 1) % count];
                let least = |a: usize, b: usize| if bests[b].cost < bests[a].cost { b } else { a };
                let local = ring.into_iter().reduce(least).expect("a ring is not empty");
                particle.fly(&bests[local], &sky);
            });
        }
        let least = |a: Best, b: Best| if b.cost < a.cost { b } else { a };
        let best = particles.into_iter().map(|particle| particle.best).reduce(least);
        let levels = best.expect("there is a particle").levels;
        Ok(evaluate(units, ladders.options(&levels), budget))
    }
}

/// What all particles share.
struct Sky<'a> {
    ladders: &'a Ladders,
    neighbours: &'a [Vec<usize>],
    budget: u64,
    alignment: f64,
}

impl Sky<'_> {
    fn contest(&self, levels: &mut [usize], rng: &mut ChaCha8Rng) -> f64 {
        self.ladders.contest(levels, self.budget, self.neighbours, rng)
    }
}

/// The best vector that a particle has seen.
#[derive(Clone)]
struct Best {
    levels: Vec<usize>,
    cost: f64,
}

struct Particle {
    rng: ChaCha8Rng,
    position: Vec<f64>,
    velocity: Vec<f64>,
    best: Best,
}

impl Particle {
    fn new(problem: &Problem<'_>, sky: &Sky<'_>, index: usize) -> Self {
        let mut rng = stream(problem.seed, &format!("precision flock {index}"));
        let tops: Vec<f64> = sky.ladders.0.iter().map(|ladder| (ladder.len() - 1) as f64).collect();
        let position: Vec<f64> = if index == 0 {
            start(problem, sky.ladders).into_iter().map(|level| level as f64).collect()
        } else {
            tops.iter().map(|top| top * rng.random::<f64>()).collect()
        };
        let toward = |(top, x): (&f64, &f64)| top * rng.random::<f64>() - x;
        let velocity = tops.iter().zip(&position).map(toward).collect();
        let mut levels: Vec<usize> = position.iter().map(|x| rounded(*x)).collect();
        let cost = sky.contest(&mut levels, &mut rng);
        Self { rng, position, velocity, best: Best { levels, cost } }
    }

    fn fly(&mut self, local: &Best, sky: &Sky<'_>) {
        let Self { rng, position, velocity, best } = self;
        for (unit, v) in velocity.iter_mut().enumerate() {
            let x = position[unit];
            let (own, near) = (best.levels[unit] as f64, local.levels[unit] as f64);
            let (u, w): (f64, f64) = (rng.random(), rng.random());
            *v = CONSTRICTION * *v + PULL * (u * (own - x) + w * (near - x));
        }
        let alone = velocity.clone();
        for (v, near) in
            velocity.iter_mut().zip(sky.neighbours).filter(|(_, near)| !near.is_empty())
        {
            let mean = near.iter().map(|unit| alone[*unit]).sum::<f64>() / near.len() as f64;
            *v = (1.0 - sky.alignment) * *v + sky.alignment * mean;
        }
        for ((x, v), ladder) in position.iter_mut().zip(velocity).zip(&sky.ladders.0) {
            let top = (ladder.len() - 1) as f64;
            *x += *v;
            if !(0.0..=top).contains(x) {
                *x = x.clamp(0.0, top);
                // At a bound the velocity turns, as in SPSO-2011.
                *v *= -0.5;
            }
        }
        let mut levels: Vec<usize> = position.iter().map(|x| rounded(*x)).collect();
        let cost = sky.contest(&mut levels, rng);
        if cost < best.cost {
            *best = Best { levels, cost };
        }
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

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a level lies between 0 and the number of options"
)]
fn rounded(level: f64) -> usize {
    level.round() as usize
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

//! Particle swarm by constriction.

use super::particles::{Particle, hatch, least, remember, uniform};
use super::{Best, Bounds, Optimizer};
use rand_chacha::ChaCha8Rng;

/// χ = 2 / |2 − φ − √(φ² − 4φ)| for φ = 4.1 (Clerc and Kennedy 2002).
const CHI: f64 = 0.729_843_788_12;
/// χ φ/2, the weight of each pull.
const PULL: f64 = 1.496_179_765_7;

/// Settings of [`Constriction`].
#[derive(Clone, Debug, PartialEq)]
pub struct ConstrictionSettings {
    /// Particles, at least 1.
    pub particles: usize,
    /// How many particles on either side on a ring tell a particle of their bests.
    pub ring: usize,
    /// For each dimension those whose velocities it aligns with; empty for no alignment.
    pub neighbours: Vec<Vec<usize>>,
    /// σ, 0 to 1: weight of the neighbours' mean velocity in a dimension's own.
    pub alignment: f64,
}

impl Default for ConstrictionSettings {
    /// 50 particles on a ring of three, as the standard of Bratton and Kennedy 2007; no alignment.
    fn default() -> Self {
        Self { particles: 50, ring: 1, neighbours: Vec::new(), alignment: 0.0 }
    }
}

/// `v ← χ (v + φ₁ U₁ ∘ (P − x) + φ₂ U₂ ∘ (L − x))`, `x ← x + v`, with P the own best and L the best of the
/// ring, all at once. With alignment, between the two: `v_d ← (1 − σ) v_d + σ mean_{j∈N(d)} v_j`, the flock's
/// own addition.
#[derive(Clone, Debug)]
pub struct Constriction {
    bounds: Bounds,
    settings: ConstrictionSettings,
    rng: ChaCha8Rng,
    particles: Vec<Particle>,
    best: Option<Best>,
}

impl Constriction {
    /// Draws from `rng`.
    ///
    /// # Panics
    /// When neighbours are given, but not for every dimension or outside of them.
    #[must_use]
    pub fn new(bounds: Bounds, settings: ConstrictionSettings, mut rng: ChaCha8Rng) -> Self {
        let near = &settings.neighbours;
        let dimensions = bounds.dimensions();
        let fits =
            near.len() == dimensions && near.iter().flatten().all(|other| *other < dimensions);
        assert!(near.is_empty() || fits, "neighbours of every dimension");
        let particles = hatch(&bounds, settings.particles.max(1), &mut rng);
        Self { bounds, settings, rng, particles, best: None }
    }

    /// Begins with a particle at `point`, which must lie within the bounds.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn starting_at(mut self, point: Vec<f64>) -> Self {
        assert!(self.bounds.contain(&point), "a start within the bounds");
        self.particles[0].position = point;
        self
    }

    fn fly(&mut self) {
        let (before, count) = (self.particles.clone(), self.particles.len());
        for (index, particle) in self.particles.iter_mut().enumerate() {
            let far = self.settings.ring.min(count - 1);
            let ring = (0..=2 * far).map(|step| (index + count + step - far) % count);
            let (own, local) = before[index].bests(&before[least(&before, ring)]);
            for (d, v) in particle.velocity.iter_mut().enumerate() {
                let (u, w, x) =
                    (uniform(&mut self.rng), uniform(&mut self.rng), particle.position[d]);
                *v = CHI * *v + PULL * (u * (own.point[d] - x) + w * (local.point[d] - x));
            }
            let alone = particle.velocity.clone();
            let near = particle.velocity.iter_mut().zip(&self.settings.neighbours);
            for (v, near) in near.filter(|(_, near)| !near.is_empty()) {
                let mean = near.iter().map(|other| alone[*other]).sum::<f64>() / near.len() as f64;
                *v += self.settings.alignment * (mean - *v);
            }
            particle.advance(&self.bounds);
        }
    }
}

impl Optimizer for Constriction {
    fn ask(&mut self) -> Vec<Vec<f64>> {
        if self.best.is_some() {
            self.fly();
        }
        self.particles.iter().map(|particle| particle.position.clone()).collect()
    }

    fn tell(&mut self, points: &[Vec<f64>], costs: &[f64]) {
        remember(&mut self.particles, &mut self.best, points, costs);
    }

    fn best(&self) -> Option<&Best> {
        self.best.as_ref()
    }
}

//! Consensus-based optimisation on spheres: the rule with a proof, of another problem.

use super::{RowRule, RuleMemory, Seen, add, dot, narrow, normalise};
use crate::rng::stream;
use crate::swarm::weighted_mean;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};

/// A swarm of whole sets of rows, each row on its sphere:
///
/// ```text
/// V ← V + λ Δt P(V) v_α + σ √Δt P(V) D(V − v_α) ξ,  V ← V/‖V‖,   P(V) = I − V Vᵀ,   D = diag
/// ```
///
/// with `v_α` the mean weighted by `e^(−α f)` (Fornasier, Huang, Pareschi and Sünnen 2020, arXiv:2001.11994;
/// anisotropic noise as in their 2022 paper). `f = imbalance + weight · score loss` of plain top-k on the
/// batch. Their proof is of a function that stands still, many particles and prepared starts; here batches
/// change it. Each particle costs a product of the whole batch: it is not local.
#[derive(Clone, Debug)]
pub struct SphereConsensus {
    /// α.
    pub sharpness: f64,
    /// λ Δt.
    pub drift: f64,
    /// σ √Δt.
    pub noise: f64,
    /// Of the score loss in f.
    pub weight: f64,
    /// How far particles begin from the trained rows, radians.
    pub spread: f64,
    particles: Vec<Vec<f32>>,
    rng: ChaCha8Rng,
}

impl SphereConsensus {
    /// So many particles, drawn from `seed`.
    #[must_use]
    pub fn new(particles: usize, seed: u64) -> Self {
        let rng = stream(seed, "consensus of rows");
        let particles = vec![Vec::new(); particles.max(1)];
        Self { sharpness: 100.0, drift: 0.1, noise: 0.4, weight: 4.0, spread: 0.1, particles, rng }
    }

    /// Particles around the rows of the first batch.
    fn hatch(&mut self, seen: &Seen<'_>) {
        let each = self.spread / (seen.width as f64).sqrt();
        for (index, particle) in self.particles.iter_mut().enumerate() {
            *particle = seen.rows.to_vec();
            if index > 0 {
                particle.iter_mut().for_each(|x| {
                    let shake: f64 = StandardNormal.sample(&mut self.rng);
                    *x += narrow(each * shake);
                });
                particle.chunks_exact_mut(seen.width).for_each(|row| {
                    normalise(row);
                });
            }
        }
    }
}

impl RowRule for SphereConsensus {
    fn memory(&self) -> RuleMemory {
        RuleMemory { tables: self.particles.clone(), draws: self.rng.get_word_pos() }
    }

    fn recall(&mut self, memory: RuleMemory) {
        self.particles = memory.tables;
        self.rng.set_word_pos(memory.draws);
    }

    fn velocities(&mut self, seen: &Seen<'_>) -> Vec<f32> {
        if self.particles[0].is_empty() {
            self.hatch(seen);
        }
        let cost = |rows: &Vec<f32>| {
            let outcome = seen.outcome(rows);
            outcome.imbalance + self.weight * outcome.score_loss
        };
        let costs: Vec<f64> = self.particles.iter().map(cost).collect();
        let wide: Vec<Vec<f64>> = self
            .particles
            .iter()
            .map(|rows| rows.iter().map(|x| f64::from(*x)).collect())
            .collect();
        let mean = weighted_mean(&wide, &costs, self.sharpness).expect("costs are finite");
        let mean: Vec<f32> = mean.into_iter().map(narrow).collect();
        for particle in &mut self.particles {
            let rows = particle.chunks_exact_mut(seen.width).zip(mean.chunks_exact(seen.width));
            for (row, mean) in rows {
                let mut step: Vec<f32> = mean
                    .iter()
                    .zip(row.iter())
                    .map(|(m, v)| {
                        let shake: f64 = StandardNormal.sample(&mut self.rng);
                        narrow(self.drift * f64::from(*m) + self.noise * f64::from(v - m) * shake)
                    })
                    .collect();
                let along = dot(&step, row);
                add(&mut step, -along, row);
                add(row, 1.0, &step);
                normalise(row);
            }
        }
        mean.iter().zip(seen.rows).map(|(to, from)| to - from).collect()
    }
}

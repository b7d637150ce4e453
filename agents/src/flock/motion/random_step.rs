//! Steps at random, kept where they help. A control.

use super::{RowRule, RuleMemory, Seen};
use crate::rng::stream;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};

/// All rows turn by `step` in directions at random, where plain top-k would then be evener on the batch; else
/// they stand. Asks for the outcome of the whole batch: it is not local.
#[derive(Clone, Debug)]
pub struct RandomStep {
    step: f64,
    rng: ChaCha8Rng,
}

impl RandomStep {
    /// Turns by `step` radians, drawn from `seed`.
    #[must_use]
    pub fn new(step: f64, seed: u64) -> Self {
        Self { step, rng: stream(seed, "random step of rows") }
    }
}

impl RowRule for RandomStep {
    fn memory(&self) -> RuleMemory {
        RuleMemory { tables: Vec::new(), draws: self.rng.get_word_pos() }
    }

    fn recall(&mut self, memory: RuleMemory) {
        self.rng.set_word_pos(memory.draws);
    }

    fn velocities(&mut self, seen: &Seen<'_>) -> Vec<f32> {
        let draw = |_| -> f32 { StandardNormal.sample(&mut self.rng) };
        let mut velocities: Vec<f32> = (0..seen.rows.len()).map(draw).collect();
        velocities.chunks_exact_mut(seen.width).for_each(|row| {
            super::normalise(row);
            row.iter_mut().for_each(|x| *x *= super::narrow(self.step));
        });
        let moved = super::turned(seen.rows, &mut velocities, seen.width, self.step);
        if seen.outcome(&moved).imbalance >= seen.outcome(seen.rows).imbalance {
            velocities.fill(0.0);
        }
        velocities
    }
}

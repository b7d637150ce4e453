//! Points at random: what any search must beat.

use super::{Best, Bounds, Optimizer};
use rand_chacha::ChaCha8Rng;

/// Draws points uniformly in the box, one at a time. The control.
#[derive(Clone, Debug)]
pub struct RandomSearch {
    bounds: Bounds,
    rng: ChaCha8Rng,
    best: Option<Best>,
}

impl RandomSearch {
    /// Draws from `rng`.
    #[must_use]
    pub fn new(bounds: Bounds, rng: ChaCha8Rng) -> Self {
        Self { bounds, rng, best: None }
    }
}

impl Optimizer for RandomSearch {
    fn ask(&mut self) -> Vec<Vec<f64>> {
        vec![self.bounds.draw(&mut self.rng)]
    }

    fn tell(&mut self, points: &[Vec<f64>], costs: &[f64]) {
        assert_eq!((points.len(), costs.len()), (1, 1), "all that was asked");
        Best::keep(&mut self.best, &points[0], costs[0]);
    }

    fn best(&self) -> Option<&Best> {
        self.best.as_ref()
    }
}

//! Consensus-based optimisation: particles drift to a weighted mean of themselves and shake the less the
//! nearer they are.

use super::{Best, Bounds, Optimizer};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};

/// How particles shake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Noise {
    /// `D = ‖X − x_α‖ I`: contracts where `2λ > d σ²`.
    Isotropic,
    /// `D = diag(X − x_α)`: contracts where `2λ > σ²`, in any dimension.
    Anisotropic,
}

/// Settings of [`Consensus`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConsensusSettings {
    /// Particles, at least 1.
    pub particles: usize,
    /// λ: the drift, per unit of time.
    pub drift: f64,
    /// σ: the noise.
    pub noise: f64,
    /// How the noise is shaped.
    pub shape: Noise,
    /// α: how much better points weigh more, per unit of cost.
    pub sharpness: f64,
    /// Δt: time of a step.
    pub step: f64,
}

impl Default for ConsensusSettings {
    /// 100 particles, λ = 1, σ = 1.3, anisotropic, α = 50, Δt = 0.1.
    fn default() -> Self {
        let (drift, noise, sharpness, step) = (1.0, 1.3, 50.0, 0.1);
        Self { particles: 100, drift, noise, shape: Noise::Anisotropic, sharpness, step }
    }
}

impl ConsensusSettings {
    /// Whether the particles come together around a consensus that stands still: the mean square distance
    /// goes as `e^(−(2λ − c σ²) t)`, with c = d for isotropic noise and 1 else.
    #[must_use]
    pub fn contracts(&self, dimensions: usize) -> bool {
        let c = if self.shape == Noise::Isotropic { dimensions as f64 } else { 1.0 };
        2.0 * self.drift > c * self.noise * self.noise
    }
}

/// `X ← X − λ (X − x_α) Δt + σ √Δt D ξ` with `x_α = Σ X e^(−α f(X)) / Σ e^(−α f(X))` and normal ξ (Pinnau et
/// al. 2017; anisotropic: Carrillo et al. 2021). The least cost is taken off before the exponential. A
/// particle beyond a bound is put on it. In the mean field, and for well-prepared starts, the consensus
/// comes near the global least with high probability (Fornasier, Klock and Riedl 2024); for a finite swarm
/// nothing is proven here.
#[derive(Clone, Debug)]
pub struct Consensus {
    bounds: Bounds,
    settings: ConsensusSettings,
    rng: ChaCha8Rng,
    particles: Vec<Vec<f64>>,
    /// Of the points told last.
    costs: Vec<f64>,
    best: Option<Best>,
}

impl Consensus {
    /// Draws from `rng`.
    #[must_use]
    pub fn new(bounds: Bounds, settings: ConsensusSettings, mut rng: ChaCha8Rng) -> Self {
        let particles = (0..settings.particles.max(1)).map(|_| bounds.draw(&mut rng)).collect();
        Self { bounds, settings, rng, particles, costs: Vec::new(), best: None }
    }

    /// Begins with all particles drawn in `start`, a box within the bounds.
    ///
    /// # Panics
    /// When `start` has another number of dimensions.
    #[must_use]
    pub fn starting_in(mut self, start: &Bounds) -> Self {
        assert_eq!(start.dimensions(), self.bounds.dimensions(), "a box of the same space");
        self.particles.iter_mut().for_each(|particle| *particle = start.draw(&mut self.rng));
        self
    }

    /// x_α of the points told last; none before.
    #[must_use]
    pub fn consensus(&self) -> Option<Vec<f64>> {
        weighted_mean(&self.particles, &self.costs, self.settings.sharpness)
    }

    fn drift(&mut self, to: &[f64]) {
        let ConsensusSettings { drift, noise, shape, step, .. } = self.settings;
        for x in &mut self.particles {
            let away: Vec<f64> = x.iter().zip(to).map(|(x, to)| x - to).collect();
            let distance = away.iter().map(|a| a * a).sum::<f64>().sqrt();
            for ((x, away), (low, high)) in x.iter_mut().zip(away).zip(&self.bounds.0) {
                let spread = if shape == Noise::Isotropic { distance } else { away };
                let shake: f64 = StandardNormal.sample(&mut self.rng);
                *x += -drift * away * step + noise * step.sqrt() * spread * shake;
                *x = x.clamp(*low, *high);
            }
        }
    }
}

/// `Σ x e^(−α f) / Σ e^(−α f)`, with the least f taken off first; none without a finite cost.
pub(crate) fn weighted_mean(
    points: &[Vec<f64>],
    costs: &[f64],
    sharpness: f64,
) -> Option<Vec<f64>> {
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    if !least.is_finite() {
        return None;
    }
    // What has no number for a cost has no weight.
    let weight = |cost: &f64| if cost.is_nan() { 0.0 } else { (-sharpness * (cost - least)).exp() };
    let weights: Vec<f64> = costs.iter().map(weight).collect();
    let total: f64 = weights.iter().sum();
    let mean = |d: usize| {
        points.iter().zip(&weights).map(|(x, w)| if *w > 0.0 { w * x[d] } else { 0.0 }).sum::<f64>()
            / total
    };
    Some((0..points[0].len()).map(mean).collect())
}

impl Optimizer for Consensus {
    fn ask(&mut self) -> Vec<Vec<f64>> {
        if let Some(to) = self.consensus() {
            self.drift(&to);
        }
        self.particles.clone()
    }

    fn tell(&mut self, points: &[Vec<f64>], costs: &[f64]) {
        let count = self.particles.len();
        assert_eq!((points.len(), costs.len()), (count, count), "all that was asked");
        for (point, cost) in points.iter().zip(costs) {
            Best::keep(&mut self.best, point, *cost);
        }
        self.costs = costs.to_vec();
    }

    fn best(&self) -> Option<&Best> {
        self.best.as_ref()
    }
}

//! SPSO-2011, the standard particle swarm that does not know the axes.

use super::particles::{Particle, hatch, least, remember, uniform};
use super::{Best, Bounds, Optimizer};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};

/// Settings of [`Spso2011`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpsoSettings {
    /// S: particles, at least 1.
    pub particles: usize,
    /// w.
    pub inertia: f64,
    /// c.
    pub pull: f64,
    /// How many others a particle informs in the mean, K.
    pub informed: i32,
}

impl Default for SpsoSettings {
    /// S = 40, w = 1/(2 ln 2), c = ½ + ln 2, K = 3 (Zambrano-Bigiarini, Clerc and Rojas, CEC 2013).
    fn default() -> Self {
        let ln2 = std::f64::consts::LN_2;
        Self { particles: 40, inertia: 0.5 / ln2, pull: 0.5 + ln2, informed: 3 }
    }
}

/// A particle goes to a random point in the ball around the mean of where it is, of beyond its own best P
/// and of beyond the best L that it was told of:
///
/// ```text
/// p = x + c U₁ ∘ (P − x),  l = x + c U₂ ∘ (L − x),  G = (x + p + l)/3, or (x + p)/2 where L is its own
/// x' in the ball B(G, ‖G − x‖),   v ← w v + x' − x,   x ← x + v
/// ```
///
/// x' has a direction at random and a distance uniform in 0 to ‖G − x‖, as Clerc's program has it (not
/// uniform in the volume). Each particle informs each other with probability `1 − (1 − 1/S)^K`; who informs
/// whom is drawn anew after a round without a better point. All fly at once; Clerc's program lets one fly
/// after the other.
#[derive(Clone, Debug)]
pub struct Spso2011 {
    bounds: Bounds,
    settings: SpsoSettings,
    rng: ChaCha8Rng,
    particles: Vec<Particle>,
    /// By particle: who informs it, itself among them.
    informants: Vec<Vec<usize>>,
    best: Option<Best>,
}

impl Spso2011 {
    /// Draws from `rng`.
    #[must_use]
    pub fn new(bounds: Bounds, settings: SpsoSettings, mut rng: ChaCha8Rng) -> Self {
        let particles = hatch(&bounds, settings.particles.max(1), &mut rng);
        let informants = draw_informants(particles.len(), settings.informed, &mut rng);
        Self { bounds, settings, rng, particles, informants, best: None }
    }

    fn fly(&mut self) {
        let before = self.particles.clone();
        let SpsoSettings { inertia, pull, .. } = self.settings;
        let rng = &mut self.rng;
        for (index, particle) in self.particles.iter_mut().enumerate() {
            let leader = least(&before, self.informants[index].iter().copied());
            let (own, local) = before[index].bests(&before[leader]);
            let x = &before[index].position;
            let centre: Vec<f64> = (0..x.len())
                .map(|d| {
                    let p = x[d] + pull * uniform(rng) * (own.point[d] - x[d]);
                    let l = x[d] + pull * uniform(rng) * (local.point[d] - x[d]);
                    if leader == index { f64::midpoint(x[d], p) } else { (x[d] + p + l) / 3.0 }
                })
                .collect();
            let radius = norm(centre.iter().zip(x).map(|(g, x)| g - x)) * uniform(rng);
            let towards: Vec<f64> = x.iter().map(|_| StandardNormal.sample(rng)).collect();
            let length = norm(towards.iter().copied()).max(f64::MIN_POSITIVE);
            for (d, v) in particle.velocity.iter_mut().enumerate() {
                let landed = centre[d] + radius * towards[d] / length;
                *v = inertia * *v + landed - x[d];
            }
            particle.advance(&self.bounds);
        }
    }
}

fn draw_informants(count: usize, informed: i32, rng: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
    let link = 1.0 - (1.0 - 1.0 / count as f64).powi(informed);
    let mut of =
        |to: usize| (0..count).filter(|from| rng.random::<f64>() < link || *from == to).collect();
    (0..count).map(&mut of).collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

impl Optimizer for Spso2011 {
    fn ask(&mut self) -> Vec<Vec<f64>> {
        if self.best.is_some() {
            self.fly();
        }
        self.particles.iter().map(|particle| particle.position.clone()).collect()
    }

    fn tell(&mut self, points: &[Vec<f64>], costs: &[f64]) {
        if !remember(&mut self.particles, &mut self.best, points, costs) {
            let count = self.particles.len();
            self.informants = draw_informants(count, self.settings.informed, &mut self.rng);
        }
    }

    fn best(&self) -> Option<&Best> {
        self.best.as_ref()
    }
}

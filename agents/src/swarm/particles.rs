//! What the two particle swarms share: positions, velocities, own bests and bounds.

use super::{Best, Bounds};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

/// A particle of a swarm.
#[derive(Clone, Debug)]
pub(super) struct Particle {
    pub(super) position: Vec<f64>,
    pub(super) velocity: Vec<f64>,
    /// None before the first `tell`.
    pub(super) best: Option<Best>,
}

/// `x ~ U(lo, hi)`, then `v ~ U(lo − x, hi − x)`, as SPSO-2011 begins.
pub(super) fn hatch(bounds: &Bounds, count: usize, rng: &mut ChaCha8Rng) -> Vec<Particle> {
    let particle = |_| {
        let position = bounds.draw(rng);
        let towards = bounds.draw(rng);
        let velocity = towards.iter().zip(&position).map(|(to, x)| to - x).collect();
        Particle { position, velocity, best: None }
    };
    (0..count).map(particle).collect()
}

/// Takes the costs: own bests, then the best of all. Gives whether the best of all is a new one.
pub(super) fn remember(
    particles: &mut [Particle],
    best: &mut Option<Best>,
    points: &[Vec<f64>],
    costs: &[f64],
) -> bool {
    assert_eq!(
        (points.len(), costs.len()),
        (particles.len(), particles.len()),
        "all that was asked"
    );
    let mut improved = false;
    for ((particle, point), cost) in particles.iter_mut().zip(points).zip(costs) {
        Best::keep(&mut particle.best, point, *cost);
        improved |= Best::keep(best, point, *cost);
    }
    improved
}

impl Particle {
    /// `x ← x + v`; at a bound `x = bound, v ← −v/2` (SPSO-2011).
    pub(super) fn advance(&mut self, bounds: &Bounds) {
        let each = self.position.iter_mut().zip(&mut self.velocity).zip(&bounds.0);
        for ((x, v), (low, high)) in each {
            *x += *v;
            if !(*low..=*high).contains(x) {
                *x = x.clamp(*low, *high);
                *v *= -0.5;
            }
        }
    }

    /// Its own best point and that of `other`, which may be itself.
    pub(super) fn bests<'p>(&'p self, other: &'p Self) -> (&'p Best, &'p Best) {
        let told = "a particle is measured before it flies";
        (self.best.as_ref().expect(told), other.best.as_ref().expect(told))
    }
}

/// The one of `informants` with the least own best, the first of equals.
pub(super) fn least(particles: &[Particle], informants: impl Iterator<Item = usize>) -> usize {
    let cost =
        |index: usize| particles[index].best.as_ref().map_or(f64::INFINITY, |best| best.cost);
    informants
        .reduce(|a, b| if cost(b) < cost(a) { b } else { a })
        .expect("a particle informs itself")
}

pub(super) fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    rng.random()
}

//! Swarms that look for the least of a function nobody has a formula for: `ask` for points, measure them,
//! `tell` what they cost (MODEL.md section 4).
//!
//! No optimality is claimed. What holds for all: the same seed gives the same points, no point lies outside
//! the bounds, the best so far is always at hand, and a cost that is no number counts as the worst.
//! [`RandomSearch`] is the control beside the others.

mod consensus;
mod constriction;
pub mod landscape;
mod particles;
mod random_search;
mod spso;

pub(crate) use consensus::weighted_mean;
pub use consensus::{Consensus, ConsensusSettings, Noise};
pub use constriction::{Constriction, ConstrictionSettings};
pub use random_search::RandomSearch;
pub use spso::{Spso2011, SpsoSettings};

use crate::rng::stream;
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

/// A search by points. Every `ask` is answered by one `tell`.
pub trait Optimizer: Send {
    /// The points to measure next, at least one, each `[dimensions]` within the bounds.
    fn ask(&mut self) -> Vec<Vec<f64>>;

    /// What the points of the last `ask` cost, in their order. `points` are those that were measured:
    /// the asked ones, or what a caller made of them (rounded, brought within a budget). The best
    /// remembers them, while the particles fly on from where they are.
    ///
    /// # Panics
    /// When there are not as many points and costs as were asked for.
    fn tell(&mut self, points: &[Vec<f64>], costs: &[f64]);

    /// The best point told of so far; the earliest of equals.
    fn best(&self) -> Option<&Best>;
}

/// A point and its cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// `[dimensions]`.
    pub point: Vec<f64>,
    /// What it cost; infinite when no point had a number for a cost.
    pub cost: f64,
}

impl Best {
    /// Takes a point if it is better. A cost that is no number is the worst there is.
    fn keep(best: &mut Option<Self>, point: &[f64], cost: f64) -> bool {
        let cost = if cost.is_nan() { f64::INFINITY } else { cost };
        let better = best.as_ref().is_none_or(|best| cost < best.cost);
        if better {
            *best = Some(Self { point: point.to_vec(), cost });
        }
        better
    }
}

/// Where to look: a box.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds(Vec<(f64, f64)>);

/// Why bounds are none.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum BoundsError {
    /// There is nothing to look for.
    #[error("a search needs at least one dimension")]
    Empty,
    /// Not from low to high.
    #[error(
        "dimension {dimension} reaches from {low} to {high}: both must be numbers, the first the lower"
    )]
    Order {
        /// Which.
        dimension: usize,
        /// Its lower bound.
        low: f64,
        /// Its upper bound.
        high: f64,
    },
}

impl Bounds {
    /// The lower and upper bound of each dimension.
    ///
    /// # Errors
    /// No dimension, bounds that are no finite numbers or not in order.
    pub fn new(bounds: Vec<(f64, f64)>) -> Result<Self, BoundsError> {
        let is_wrong = |(low, high): &(f64, f64)| !(high - low).is_finite() || low >= high;
        if let Some(dimension) = bounds.iter().position(is_wrong) {
            let (low, high) = bounds[dimension];
            return Err(BoundsError::Order { dimension, low, high });
        }
        if bounds.is_empty() { Err(BoundsError::Empty) } else { Ok(Self(bounds)) }
    }

    /// How many dimensions.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.0.len()
    }

    /// Whether a point lies inside or on the edge.
    #[must_use]
    pub fn contain(&self, point: &[f64]) -> bool {
        self.0.iter().zip(point).all(|((low, high), x)| (*low..=*high).contains(x))
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> Vec<f64> {
        self.0.iter().map(|(low, high)| low + (high - low) * rng.random::<f64>()).collect()
    }
}

/// Which optimiser, with its published settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`Spso2011`].
    Spso2011,
    /// [`Constriction`].
    Constriction,
    /// [`Consensus`] with noise in each dimension by itself.
    Consensus,
    /// [`RandomSearch`], the control.
    Random,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Spso2011, Self::Constriction, Self::Consensus, Self::Random];

    /// Its name in tables and scenarios.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spso2011 => "spso_2011",
            Self::Constriction => "constriction",
            Self::Consensus => "consensus",
            Self::Random => "random_search",
        }
    }

    /// A fresh one, with the standard settings and its own random stream of `seed`.
    #[must_use]
    pub fn build(self, bounds: Bounds, seed: u64) -> Box<dyn Optimizer> {
        let rng = stream(seed, self.name());
        match self {
            Self::Spso2011 => Box::new(Spso2011::new(bounds, SpsoSettings::default(), rng)),
            Self::Constriction => {
                Box::new(Constriction::new(bounds, ConstrictionSettings::default(), rng))
            }
            Self::Consensus => Box::new(Consensus::new(bounds, ConsensusSettings::default(), rng)),
            Self::Random => Box::new(RandomSearch::new(bounds, rng)),
        }
    }
}

/// Whether weights of a particle swarm keep the variance of its positions bounded while its bests stand
/// still: `c₁ + c₂ < 24 (1 − w²) / (7 − 5w)` (Poli 2009). Outside, a swarm does worse than drawing at random.
#[must_use]
pub fn is_order_two_stable(inertia: f64, pulls: f64) -> bool {
    inertia.abs() < 1.0
        && pulls > 0.0
        && pulls < 24.0 * (1.0 - inertia * inertia) / (7.0 - 5.0 * inertia)
}

/// One round: asks, measures by `cost`, tells. Gives the number of points measured.
pub fn advance(optimizer: &mut dyn Optimizer, mut cost: impl FnMut(&[f64]) -> f64) -> usize {
    let points = optimizer.ask();
    let costs: Vec<f64> = points.iter().map(|point| cost(point)).collect();
    optimizer.tell(&points, &costs);
    points.len()
}

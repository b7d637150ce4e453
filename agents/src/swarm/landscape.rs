//! Functions whose least is known, to measure a search by: shifted and rotated, so that neither the origin
//! nor the axes are special. A search that drifts to zero looks perfect on functions with the least at zero.

use crate::rng::stream;
use nalgebra::{DMatrix, DVector};
use rand::RngExt as _;
use rand_distr::{Distribution as _, StandardNormal};
use std::f64::consts::{E, TAU};

/// A shape with its least, 0, at the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// `Σ z²`.
    Sphere,
    /// `Σ 10^(6 i/(d−1)) z²`: a long narrow bowl.
    Ellipsoid,
    /// Rosenbrock's valley, `Σ 100 (y_i² − y_{i+1})² + (y_i − 1)²` with `y = z + 1`.
    Rosenbrock,
    /// `10 d + Σ z² − 10 cos 2πz`: a bowl with a hollow at every whole number.
    Rastrigin,
    /// Ackley's: flat far out, a hole in the middle, hollows all over.
    Ackley,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Sphere, Self::Ellipsoid, Self::Rosenbrock, Self::Rastrigin, Self::Ackley];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sphere => "sphere",
            Self::Ellipsoid => "ellipsoid",
            Self::Rosenbrock => "Rosenbrock",
            Self::Rastrigin => "Rastrigin",
            Self::Ackley => "Ackley",
        }
    }

    /// Its value at z.
    #[must_use]
    pub fn at(self, z: &[f64]) -> f64 {
        let count = z.len() as f64;
        let squares: f64 = z.iter().map(|z| z * z).sum();
        match self {
            Self::Sphere => squares,
            Self::Ellipsoid => {
                let last = (count - 1.0).max(1.0);
                z.iter().enumerate().map(|(i, z)| 10_f64.powf(6.0 * i as f64 / last) * z * z).sum()
            }
            Self::Rosenbrock => {
                let step = |pair: &[f64]| {
                    let (a, b) = (pair[0] + 1.0, pair[1] + 1.0);
                    100.0 * (a * a - b).powi(2) + (a - 1.0).powi(2)
                };
                z.windows(2).map(step).sum()
            }
            Self::Rastrigin => z.iter().map(|z| z * z + 10.0 * (1.0 - (TAU * z).cos())).sum(),
            Self::Ackley => {
                let cosines: f64 = z.iter().map(|z| (TAU * z).cos()).sum();
                20.0 * (1.0 - (-0.2 * (squares / count).sqrt()).exp()) + E - (cosines / count).exp()
            }
        }
    }
}

/// `f(R (x − s))`: a shape with its least moved to s and its axes turned by R.
#[derive(Clone, Debug, PartialEq)]
pub struct Landscape {
    shape: Shape,
    shift: DVector<f64>,
    turn: DMatrix<f64>,
}

impl Landscape {
    /// s uniform in ±`reach` in each dimension, R a rotation or reflection uniform over all (Q of a normal
    /// matrix, with R's diagonal made positive), both by `seed`.
    #[must_use]
    pub fn new(shape: Shape, dimensions: usize, reach: f64, seed: u64) -> Self {
        let mut rng = stream(seed, "landscape");
        let shift = DVector::from_fn(dimensions, |_, _| reach * (2.0 * rng.random::<f64>() - 1.0));
        let normal =
            DMatrix::from_fn(dimensions, dimensions, |_, _| StandardNormal.sample(&mut rng));
        let (mut turn, upper) = normal.qr().unpack();
        for (column, diagonal) in upper.diagonal().iter().enumerate() {
            if *diagonal < 0.0 {
                turn.column_mut(column).neg_mut();
            }
        }
        Self { shape, shift, turn }
    }

    /// Where the least is.
    #[must_use]
    pub fn least(&self) -> &[f64] {
        self.shift.as_slice()
    }

    /// Its value at x.
    ///
    /// # Panics
    /// When x has another number of dimensions.
    #[must_use]
    pub fn at(&self, x: &[f64]) -> f64 {
        let z = &self.turn * (DVector::from_column_slice(x) - &self.shift);
        self.shape.at(z.as_slice())
    }
}

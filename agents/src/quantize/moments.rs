//! Second moments of the inputs of a matrix.

use crate::linear;
use nalgebra::DMatrix;
use rayon::prelude::*;

/// `H = Σ_t w_t x̂_t x̂_tᵀ` and `C = Σ_t w_t x_t x̂_tᵀ`, where x are the inputs that the exact model
/// feeds to a matrix, x̂ those that reach it once everything before it is quantized, and w the
/// tokens' weights: the squared gates for an expert.
#[derive(Clone, Debug)]
pub struct InputMoments {
    columns: usize,
    /// H and C, row-major `[columns, columns]`.
    served: Vec<f64>,
    cross: Vec<f64>,
    tokens: usize,
}

/// Tokens whose moments are summed in f32 before they are added up in f64.
const BLOCK_TOKENS: usize = 256;

impl InputMoments {
    /// Of no inputs.
    ///
    /// # Panics
    /// When there are no columns.
    #[must_use]
    pub fn new(columns: usize) -> Self {
        assert!(columns > 0, "a matrix has inputs");
        let zeros = || vec![0.0; columns * columns];
        Self { columns, served: zeros(), cross: zeros(), tokens: 0 }
    }

    /// Adds tokens: rows of `exact` and `served`, `[m, columns]`, and their weights, `[m]`.
    ///
    /// # Panics
    /// When lengths do not match.
    pub fn add(&mut self, exact: &[f32], served: &[f32], weights: &[f32]) {
        let k = self.columns;
        assert!(exact.len() == weights.len() * k && served.len() == exact.len(), "rows [m, k]");
        let block = BLOCK_TOKENS * k;
        let rows = exact.chunks(block).zip(served.chunks(block));
        for ((exact, served), weights) in rows.zip(weights.chunks(BLOCK_TOKENS)) {
            let by_column = transposed(served, k, |_| 1.0);
            let weight = |token: usize| weights[token];
            add_product(&mut self.served, &transposed(served, k, weight), &by_column, k);
            add_product(&mut self.cross, &transposed(exact, k, weight), &by_column, k);
        }
        self.tokens += weights.len();
    }

    /// Tokens added.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of inputs.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Adds `share` times other moments: those of the whole layer to an expert that saw few tokens.
    ///
    /// # Panics
    /// When the numbers of inputs differ.
    pub fn blend(&mut self, other: &Self, share: f64) {
        assert_eq!(self.columns, other.columns, "moments of the same inputs");
        for (own, more) in [(&mut self.served, &other.served), (&mut self.cross, &other.cross)] {
            own.iter_mut().zip(more).for_each(|(own, more)| *own += share * more);
        }
    }

    /// The mean of the diagonal of H.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let diagonal = self.served.iter().step_by(self.columns + 1);
        diagonal.sum::<f64>() / self.columns as f64
    }

    pub(super) fn served(&self) -> DMatrix<f64> {
        DMatrix::from_row_slice(self.columns, self.columns, &self.served)
    }

    pub(super) fn cross(&self) -> DMatrix<f64> {
        DMatrix::from_row_slice(self.columns, self.columns, &self.cross)
    }
}

/// Row-major `[columns, BLOCK_TOKENS]`, each token times its weight, missing ones 0.
fn transposed(rows: &[f32], columns: usize, weight: impl Fn(usize) -> f32) -> Vec<f32> {
    let mut to = vec![0.0; columns * BLOCK_TOKENS];
    for (token, row) in rows.chunks_exact(columns).enumerate() {
        let weight = weight(token);
        for (column, value) in row.iter().enumerate() {
            to[column * BLOCK_TOKENS + token] = weight * value;
        }
    }
    to
}

/// `sums += a · bᵀ` over the tokens of a block.
fn add_product(sums: &mut [f64], a: &[f32], b: &[f32], columns: usize) {
    const ROWS: usize = linear::ROW_BLOCK;
    let parts = sums.par_chunks_mut(ROWS * columns).zip(a.par_chunks(ROWS * BLOCK_TOKENS));
    parts.for_each(|(sums, a)| {
        let mut product = vec![0.0; sums.len()];
        linear::linear_serial(a, b, &mut product, BLOCK_TOKENS, columns);
        sums.iter_mut().zip(product).for_each(|(sum, value)| *sum += f64::from(value));
    });
}

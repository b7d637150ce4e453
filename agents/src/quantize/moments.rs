//! Second moments of the inputs of a matrix.

use crate::linear::{ROW_BLOCK, Weights};
use nalgebra::DMatrix;
use rayon::prelude::*;

/// `H = Σ_t w_t x̂_t x̂_tᵀ` and `C = Σ_t w_t x_t x̂_tᵀ`, where x are the inputs that the exact model
/// feeds to a matrix, x̂ those that reach it once everything before it is quantized, and w the
/// tokens' weights: the squared gates for an expert.
#[derive(Clone, Debug)]
pub struct InputMoments {
    columns: usize,
    /// H, row-major `[columns, columns]`.
    served: Vec<f64>,
    /// C in the same order; none as long as it is H, because every x̂ was x.
    cross: Option<Vec<f64>>,
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
        Self { columns, served: vec![0.0; columns * columns], cross: None, tokens: 0 }
    }

    /// Adds tokens: rows of `exact` and `served`, `[m, columns]`, and their weights, `[m]`.
    ///
    /// # Panics
    /// When lengths do not match.
    pub fn add(&mut self, exact: &[f32], served: &[f32], weights: &[f32]) {
        let k = self.columns;
        assert!(exact.len() == weights.len() * k && served.len() == exact.len(), "rows [m, k]");
        if exact != served && self.cross.is_none() {
            self.cross = Some(self.served.clone());
        }
        let block = BLOCK_TOKENS * k;
        let rows = exact.chunks(block).zip(served.chunks(block));
        for ((exact, served), weights) in rows.zip(weights.chunks(BLOCK_TOKENS)) {
            let right = Weights::from_transposed(served.to_vec(), weights.len());
            add_product(&mut self.served, &transposed(served, k, weights), &right);
            if let Some(cross) = &mut self.cross {
                add_product(cross, &transposed(exact, k, weights), &right);
            }
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
        if other.cross.is_some() && self.cross.is_none() {
            self.cross = Some(self.served.clone());
        }
        if let Some(cross) = &mut self.cross {
            add_scaled(cross, share, other.cross.as_ref().unwrap_or(&other.served));
        }
        add_scaled(&mut self.served, share, &other.served);
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

    /// C, or none where it is H.
    pub(super) fn cross(&self) -> Option<DMatrix<f64>> {
        let cross = self.cross.as_ref()?;
        Some(DMatrix::from_row_slice(self.columns, self.columns, cross))
    }
}

fn add_scaled(sums: &mut [f64], scale: f64, values: &[f64]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += scale * value);
}

/// Row-major `[columns, tokens]`, each token times its weight.
fn transposed(rows: &[f32], columns: usize, weights: &[f32]) -> Vec<f32> {
    let tokens = weights.len();
    let mut to = vec![0.0; columns * tokens];
    for (token, (row, weight)) in rows.chunks_exact(columns).zip(weights).enumerate() {
        for (column, value) in row.iter().enumerate() {
            to[column * tokens + token] = weight * value;
        }
    }
    to
}

/// `sums += left · right` over the tokens of a block; `left` is `[columns, tokens]`.
fn add_product(sums: &mut [f64], left: &[f32], right: &Weights) {
    let (columns, tokens) = (right.outputs(), left.len() / right.outputs());
    let parts = sums.par_chunks_mut(ROW_BLOCK * columns).zip(left.par_chunks(ROW_BLOCK * tokens));
    parts.for_each(|(sums, left)| {
        let mut product = vec![0.0; sums.len()];
        right.product_serial(left, &mut product);
        sums.iter_mut().zip(product).for_each(|(sum, value)| *sum += f64::from(value));
    });
}

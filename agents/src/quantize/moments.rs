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

    /// `tr((W − Ŵ) H (W − Ŵ)ᵀ)` for row-major `[rows, columns]`: what the outputs of W err by when they are computed
    /// with Ŵ, squared, weighted and summed over the tokens.
    ///
    /// # Panics
    /// When lengths do not match.
    #[must_use]
    pub fn error(&self, weights: &[f32], quantized: &[f32]) -> f64 {
        let k = self.columns;
        assert!(weights.len() == quantized.len() && weights.len().is_multiple_of(k), "[rows, k]");
        let of_row = |(weights, quantized): (&[f32], &[f32])| {
            let pairs = weights.iter().zip(quantized);
            let change: Vec<f64> = pairs.map(|(w, q)| f64::from(*w) - f64::from(*q)).collect();
            let moments = self.served.chunks_exact(k).zip(&change);
            let dot = |row: &[f64]| row.iter().zip(&change).map(|(a, b)| a * b).sum::<f64>();
            moments.map(|(row, change)| change * dot(row)).sum::<f64>()
        };
        let rows = weights.par_chunks_exact(k).zip(quantized.par_chunks_exact(k));
        // Collected first: summed in the order of the rows.
        rows.map(of_row).collect::<Vec<f64>>().into_iter().sum()
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

#[cfg(test)]
mod tests {
    use super::InputMoments;
    use crate::rng::stream;
    use rand::RngExt as _;

    #[test]
    fn the_error_of_a_matrix_is_that_of_its_outputs_over_the_tokens() {
        let mut rng = stream(3, "moments");
        let mut random =
            |len: usize| -> Vec<f32> { (0..len).map(|_| rng.random::<f32>() - 0.5).collect() };
        let (rows, columns, tokens) = (5, 17, 300);
        let (w, q) = (random(rows * columns), random(rows * columns));
        let (x, weights) = (random(tokens * columns), random(tokens));
        let weights: Vec<f32> = weights.iter().map(|weight| weight * weight).collect();
        let mut moments = InputMoments::new(columns);
        moments.add(&x, &x, &weights);
        let output = |w: &[f32], x: &[f32]| -> f64 {
            w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let mut exact = 0.0;
        for (x, weight) in x.chunks(columns).zip(&weights) {
            for (w, q) in w.chunks(columns).zip(q.chunks(columns)) {
                exact += f64::from(*weight) * (output(w, x) - output(q, x)).powi(2);
            }
        }
        let found = moments.error(&w, &q);
        assert!((found - exact).abs() < 1e-4 * exact, "{found} against {exact}");
        assert_eq!(moments.error(&w, &w).to_bits(), 0.0_f64.to_bits());
    }
}

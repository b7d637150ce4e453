//! Products of f32 matrices, single-threaded, through the `gemm` microkernels. `benches/libraries` measures
//! them beside other libraries.
//!
//! Callers parallelise over fixed row blocks, so that the bits of a result never depend on the
//! number of threads.
#![allow(unsafe_code, reason = "the gemm kernels take raw pointers; lengths are asserted first")]

use gemm_common::Parallelism;
use rayon::prelude::*;

/// Rows that one kernel call multiplies, always exactly: `gemm` picks its summation order by the
/// shape of a call, so only one shape gives a row the same bits beside any other rows.
pub const ROW_BLOCK: usize = 32;

/// A weight matrix `w` of shape `[outputs, inputs]`, stored so that the kernels read it in place:
/// rows would have to be packed anew in every call, which takes longer than multiplying a block.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// Row-major `[inputs, outputs]`.
    transposed: Vec<f32>,
    inputs: usize,
    outputs: usize,
}

impl Weights {
    /// From row-major `[outputs, inputs]`.
    ///
    /// # Panics
    /// When there is not at least one whole row.
    #[must_use]
    pub fn from_rows(rows: &[f32], inputs: usize) -> Self {
        assert!(inputs > 0 && !rows.is_empty() && rows.len().is_multiple_of(inputs), "whole rows");
        Self { transposed: transpose(rows, inputs), inputs, outputs: rows.len() / inputs }
    }

    /// From row-major `[inputs, outputs]`, which is kept as it is.
    ///
    /// # Panics
    /// When there is not at least one whole row.
    #[must_use]
    pub fn from_transposed(transposed: Vec<f32>, inputs: usize) -> Self {
        let outputs = transposed.len().checked_div(inputs).unwrap_or(0);
        assert!(outputs > 0 && transposed.len() == inputs * outputs, "whole rows");
        Self { transposed, inputs, outputs }
    }

    /// Row-major `[outputs, inputs]`, as given.
    #[must_use]
    pub fn rows(&self) -> Vec<f32> {
        transpose(&self.transposed, self.outputs)
    }

    /// Columns of the product.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `x · wᵀ`, `[m, outputs]`, for row-major `x` of `[m, inputs]`.
    ///
    /// Row blocks run on the current rayon pool. A row's bits depend on nothing but the row and `w`.
    ///
    /// # Panics
    /// When `x` has no whole rows.
    #[must_use]
    pub fn product(&self, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len() / self.inputs * self.outputs];
        out.par_chunks_mut(ROW_BLOCK * self.outputs)
            .zip(x.par_chunks(ROW_BLOCK * self.inputs))
            .for_each(|(out, x)| self.product_serial(x, out));
        out
    }

    /// The same product, with the same bits, on the calling thread.
    ///
    /// # Panics
    /// When `x` has no whole rows or `out` another number of rows.
    pub fn product_serial(&self, x: &[f32], out: &mut [f32]) {
        blocks(x, &self.transposed, out, (self.inputs, self.outputs), (1, self.outputs));
    }
}

/// Transposes a row-major matrix of `columns` columns.
fn transpose(matrix: &[f32], columns: usize) -> Vec<f32> {
    /// Values of a line, so that both sides are read and written in whole lines.
    const SIDE: usize = 16;
    let rows = matrix.len() / columns;
    let mut out = vec![0.0; matrix.len()];
    for first_row in (0..rows).step_by(SIDE) {
        for first_column in (0..columns).step_by(SIDE) {
            for row in first_row..rows.min(first_row + SIDE) {
                for column in first_column..columns.min(first_column + SIDE) {
                    out[column * rows + row] = matrix[row * columns + column];
                }
            }
        }
    }
    out
}

/// `out = x · wᵀ` for row-major `x` of shape `[m, k]`, `w` of `[n, k]` and `out` of `[m, n]`, on the
/// calling thread: for a `w` that is used once. A row's bits depend on nothing but the row and `w`.
///
/// # Panics
/// When a slice's length does not match its shape.
pub fn linear_serial(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    blocks(x, w, out, (k, n), (k, 1));
}

/// Blocks of exactly [`ROW_BLOCK`] rows; a last short one is padded with zero rows. `w_strides` are
/// the distances between two outputs and between two inputs.
fn blocks(
    x: &[f32],
    w: &[f32],
    out: &mut [f32],
    (k, n): (usize, usize),
    w_strides: (usize, usize),
) {
    assert!(k > 0 && n > 0, "a product needs at least one column");
    assert_eq!(x.len() % k, 0, "x has whole rows");
    assert_eq!(w.len(), n * k, "w has n times k values");
    assert_eq!(out.len(), x.len() / k * n, "out is [m, n]");
    for (x, out) in x.chunks(ROW_BLOCK * k).zip(out.chunks_mut(ROW_BLOCK * n)) {
        if x.len() == ROW_BLOCK * k {
            kernel(x, w, out, (k, n), w_strides);
        } else {
            let mut padded_x = vec![0.0; ROW_BLOCK * k];
            let mut padded_out = vec![0.0; ROW_BLOCK * n];
            padded_x[..x.len()].copy_from_slice(x);
            kernel(&padded_x, w, &mut padded_out, (k, n), w_strides);
            out.copy_from_slice(&padded_out[..out.len()]);
        }
    }
}

fn kernel(
    x: &[f32],
    w: &[f32],
    out: &mut [f32],
    (k, n): (usize, usize),
    (w_output_stride, w_input_stride): (usize, usize),
) {
    assert!(x.len() == ROW_BLOCK * k && w.len() == n * k && out.len() == ROW_BLOCK * n);
    assert!((n - 1) * w_output_stride + (k - 1) * w_input_stride < w.len(), "w is read inside");
    // SAFETY: the assertions give every pointer the extent that shapes and strides describe, and
    // `out` is a unique borrow. The kernel wants unit row stride in its destination, so it
    // computes outᵀ [n, m] = w [n, k] · xᵀ [k, m].
    unsafe {
        (gemm_f32::gemm::f32::get_gemm_fn())(
            n,
            ROW_BLOCK,
            k,
            out.as_mut_ptr(),
            stride(n),
            1,
            false,
            w.as_ptr(),
            stride(w_input_stride),
            stride(w_output_stride),
            x.as_ptr(),
            stride(k),
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

fn stride(columns: usize) -> isize {
    isize::try_from(columns).expect("a row is shorter than the address space")
}

#[cfg(test)]
mod tests {
    use super::{ROW_BLOCK, Weights, linear_serial};
    use crate::rng::stream;
    use rand::RngExt as _;

    fn random(seed: u64, len: usize) -> Vec<f32> {
        let mut rng = stream(seed, "linear test");
        (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
    }

    #[test]
    fn products_agree_with_f64_sums() {
        for (m, k, n) in [(1, 1, 1), (3, 17, 5), (130, 256, 64), (65, 64, 256)] {
            let (x, w) = (random(1, m * k), random(2, n * k));
            let mut once = vec![0.0; m * n];
            linear_serial(&x, &w, &mut once, k, n);
            let stored = Weights::from_rows(&w, k);
            assert_eq!(stored.rows(), w);
            for out in [once, stored.product(&x)] {
                for (i, row) in x.chunks(k).enumerate() {
                    for (j, column) in w.chunks(k).enumerate() {
                        let exact: f64 = row
                            .iter()
                            .zip(column)
                            .map(|(a, b)| f64::from(*a) * f64::from(*b))
                            .sum();
                        // |error| <= k · eps · Σ|x||w| <= k · k · eps / 4 for entries below one half.
                        let bound = (k * k) as f64 * f64::from(f32::EPSILON) / 4.0;
                        assert!((f64::from(out[i * n + j]) - exact).abs() <= bound.max(1e-12));
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it() {
        let shapes = [(256, 64), (64, 256), (256, 1000), (640, 256), (256, 8), (33, 7), (1, 1)];
        for (k, n) in shapes {
            let (x, w) = (random(3, 2 * ROW_BLOCK * k), random(4, n * k));
            let stored = Weights::from_rows(&w, k);
            row_bits_are_independent(&x, k, n, |x, out| stored.product_serial(x, out));
            row_bits_are_independent(&x, k, n, |x, out| linear_serial(x, &w, out, k, n));
            let mut serial = vec![0.0; 2 * ROW_BLOCK * n];
            stored.product_serial(&x, &mut serial);
            assert_eq!(stored.product(&x), serial);
        }
    }

    fn row_bits_are_independent(
        x: &[f32],
        k: usize,
        n: usize,
        product: impl Fn(&[f32], &mut [f32]),
    ) {
        let mut all = vec![0.0; 2 * ROW_BLOCK * n];
        product(x, &mut all);
        for m in 1..=ROW_BLOCK {
            let mut some = vec![0.0; m * n];
            product(&x[..m * k], &mut some);
            let same = some.iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "k={k} n={n} m={m}");
        }
    }
}

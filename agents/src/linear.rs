//! Products of f32 matrices, single-threaded, through the `gemm` microkernels.
//!
//! Callers parallelise over fixed row blocks, so that the bits of a result never depend on the
//! number of threads.
#![allow(unsafe_code, reason = "the gemm kernels take raw pointers; lengths are asserted first")]

use gemm_common::Parallelism;
use rayon::prelude::*;

/// Rows that one kernel call multiplies, always exactly: `gemm` picks its summation order by the
/// shape of a call, so only one shape gives a row the same bits beside any other rows.
pub const ROW_BLOCK: usize = 32;

/// `out = x · wᵀ` for row-major `x` of shape `[m, k]`, `w` of `[n, k]` and `out` of `[m, n]`.
///
/// Row blocks run on the current rayon pool. A row's bits depend on nothing but the row and `w`.
///
/// # Panics
/// When a slice's length does not match its shape.
pub fn linear(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    check_shapes(x, w, out, k, n);
    out.par_chunks_mut(ROW_BLOCK * n)
        .zip(x.par_chunks(ROW_BLOCK * k))
        .for_each(|(out, x)| block(x, w, out, k, n));
}

/// The same product, with the same bits, on the calling thread.
///
/// # Panics
/// When a slice's length does not match its shape.
pub fn linear_serial(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    check_shapes(x, w, out, k, n);
    out.chunks_mut(ROW_BLOCK * n)
        .zip(x.chunks(ROW_BLOCK * k))
        .for_each(|(out, x)| block(x, w, out, k, n));
}

fn check_shapes(x: &[f32], w: &[f32], out: &[f32], k: usize, n: usize) {
    assert!(k > 0 && n > 0, "a product needs at least one column");
    assert_eq!(x.len() % k, 0, "x has whole rows");
    assert_eq!(w.len(), n * k, "w is [n, k]");
    assert_eq!(out.len(), x.len() / k * n, "out is [m, n]");
}

/// At most [`ROW_BLOCK`] rows; fewer are padded with zero rows.
fn block(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    if x.len() == ROW_BLOCK * k {
        return kernel(x, w, out, k, n);
    }
    let mut padded_x = vec![0.0; ROW_BLOCK * k];
    let mut padded_out = vec![0.0; ROW_BLOCK * n];
    padded_x[..x.len()].copy_from_slice(x);
    kernel(&padded_x, w, &mut padded_out, k, n);
    out.copy_from_slice(&padded_out[..out.len()]);
}

fn kernel(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    assert!(x.len() == ROW_BLOCK * k && w.len() == n * k && out.len() == ROW_BLOCK * n);
    let (k_stride, n_stride) = (stride(k), stride(n));
    // SAFETY: the assertion gives every pointer the extent that shape and strides describe, and
    // `out` is a unique borrow. The kernel wants unit row stride in its destination, so it
    // computes outᵀ [n, m] = w [n, k] · xᵀ [k, m].
    unsafe {
        (gemm_f32::gemm::f32::get_gemm_fn())(
            n,
            ROW_BLOCK,
            k,
            out.as_mut_ptr(),
            n_stride,
            1,
            false,
            w.as_ptr(),
            1,
            k_stride,
            x.as_ptr(),
            k_stride,
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
    use super::{ROW_BLOCK, linear};
    use crate::rng::stream;
    use rand::RngExt as _;

    fn random(seed: u64, len: usize) -> Vec<f32> {
        let mut rng = stream(seed, "linear test");
        (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
    }

    #[test]
    fn product_agrees_with_f64_sums() {
        for (m, k, n) in [(1, 1, 1), (3, 17, 5), (130, 256, 64), (65, 64, 256)] {
            let (x, w) = (random(1, m * k), random(2, n * k));
            let mut out = vec![0.0; m * n];
            linear(&x, &w, &mut out, k, n);
            for (i, row) in x.chunks(k).enumerate() {
                for (j, column) in w.chunks(k).enumerate() {
                    let exact: f64 =
                        row.iter().zip(column).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    // |error| <= k · eps · Σ|x||w| <= k · k · eps / 4 for entries below one half.
                    let bound = (k * k) as f64 * f64::from(f32::EPSILON) / 4.0;
                    assert!((f64::from(out[i * n + j]) - exact).abs() <= bound.max(1e-12));
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it() {
        for (k, n) in [(256, 64), (64, 256), (256, 1000), (640, 256), (256, 8), (33, 7), (1, 1)] {
            row_bits_are_independent(k, n);
        }
    }

    fn row_bits_are_independent(k: usize, n: usize) {
        let (x, w) = (random(3, 2 * ROW_BLOCK * k), random(4, n * k));
        let mut all = vec![0.0; 2 * ROW_BLOCK * n];
        linear(&x, &w, &mut all, k, n);
        for m in 1..=ROW_BLOCK {
            let mut some = vec![0.0; m * n];
            linear(&x[..m * k], &w, &mut some, k, n);
            for i in 0..m {
                let (a, b) = (&some[i * n..(i + 1) * n], &all[i * n..(i + 1) * n]);
                assert!(
                    a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "k={k} n={n} m={m} row {i}"
                );
            }
        }
    }
}

//! Products of f32 matrices, single-threaded, through the `gemm` microkernels.
//!
//! Callers parallelise over fixed row blocks, so that the bits of a result never depend on the
//! number of threads.
#![allow(unsafe_code, reason = "the gemm kernels take raw pointers; lengths are asserted first")]

use gemm_common::Parallelism;
use rayon::prelude::*;

/// Rows that one task multiplies. Part of the definition of a result's bits: never a tuning knob
/// that follows the thread count.
pub const ROW_BLOCK: usize = 64;

/// `out = x · wᵀ` for row-major `x` of shape `[m, k]`, `w` of `[n, k]` and `out` of `[m, n]`.
///
/// Row blocks of [`ROW_BLOCK`] run on the current rayon pool.
///
/// # Panics
/// When a slice's length does not match its shape.
pub fn linear(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    assert!(k > 0 && n > 0, "a product needs at least one column");
    assert_eq!(x.len() % k, 0, "x has whole rows");
    assert_eq!(w.len(), n * k, "w is [n, k]");
    assert_eq!(out.len(), x.len() / k * n, "out is [m, n]");
    out.par_chunks_mut(ROW_BLOCK * n)
        .zip(x.par_chunks(ROW_BLOCK * k))
        .for_each(|(out, x)| block(x, w, out, k, n));
}

/// The same product for at most a few rows, on the calling thread.
///
/// # Panics
/// When a slice's length does not match its shape.
pub fn block(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    let m = x.len() / k;
    assert!(x.len() == m * k && w.len() == n * k && out.len() == m * n, "shapes agree");
    let (k_stride, n_stride) = (stride(k), stride(n));
    // SAFETY: the assertion above gives every pointer the extent that shape and strides describe,
    // and `out` is a unique borrow. The kernel wants unit row stride in its destination, so it
    // computes outᵀ [n, m] = w [n, k] · xᵀ [k, m].
    unsafe {
        (gemm_f32::gemm::f32::get_gemm_fn())(
            n,
            m,
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
        let (k, n) = (256, 64);
        let (x, w) = (random(3, 2 * ROW_BLOCK * k), random(4, n * k));
        let mut all = vec![0.0; 2 * ROW_BLOCK * n];
        linear(&x, &w, &mut all, k, n);
        for m in 1..=ROW_BLOCK {
            let mut some = vec![0.0; m * n];
            linear(&x[..m * k], &w, &mut some, k, n);
            for i in 0..m {
                let (a, b) = (&some[i * n..(i + 1) * n], &all[i * n..(i + 1) * n]);
                assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()), "m={m} row {i}");
            }
        }
    }
}

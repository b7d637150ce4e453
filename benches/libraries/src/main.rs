//! Writes the part of docs/speed.md on f32 products: the libraries that could compute them, on one thread.
//!
//! `cargo run --release --manifest-path benches/libraries/Cargo.toml`

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use gemm_common::Parallelism;
use std::hint::black_box;
use std::time::Instant;

/// Rows of a block, as `agents::linear` multiplies them.
const ROWS: usize = 32;
/// Inputs and outputs: projections and head of the shipped models, and a projection of OLMoE.
const SHAPES: [(usize, usize); 4] = [(256, 256), (256, 1000), (640, 256), (2048, 2048)];
const REPEATS: usize = 15;
/// Work of one timing, multiplications and additions.
const WORK: usize = 1 << 28;

/// `out = x · w` for row-major `x` `[ROWS, k]`, `w` `[k, n]` and `out` `[ROWS, n]`.
type Product = fn(&[f32], &[f32], &mut [f32], usize, usize);

fn by_gemm(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    let (k_stride, n_stride) = (k as isize, n as isize);
    // SAFETY: the slices have the extents that shapes and strides describe.
    unsafe {
        (gemm_f32::gemm::f32::get_gemm_fn())(
            n, ROWS, k, out.as_mut_ptr(), n_stride, 1, false, w.as_ptr(), n_stride, 1, x.as_ptr(), k_stride, 1,
            0.0, 1.0, false, false, false, Parallelism::None,
        );
    }
}

fn by_matrixmultiply(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    let (k_stride, n_stride) = (k as isize, n as isize);
    // SAFETY: as above.
    unsafe {
        matrixmultiply::sgemm(
            ROWS, k, n, 1.0, x.as_ptr(), k_stride, 1, w.as_ptr(), n_stride, 1, 0.0, out.as_mut_ptr(), n_stride, 1,
        );
    }
}

fn by_faer(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    let x = MatRef::from_row_major_slice(x, ROWS, k);
    let w = MatRef::from_row_major_slice(w, k, n);
    let out = MatMut::from_row_major_slice_mut(out, ROWS, n);
    matmul(out, Accum::Replace, x, w, 1.0, Par::Seq);
}

const LIBRARIES: [(&str, Product); 3] =
    [("gemm 0.19", by_gemm), ("matrixmultiply 0.3", by_matrixmultiply), ("faer 0.24", by_faer)];

fn main() {
    println!("## Products of f32\n");
    println!("Blocks of {ROWS} rows on one thread, as `agents::linear` multiplies them; 10⁹ multiplications with additions a");
    println!("second, medians of {REPEATS} repeats in turn. The project uses `gemm`.\n");
    println!("| inputs × outputs | {} | {} | {} |", LIBRARIES[0].0, LIBRARIES[1].0, LIBRARIES[2].0);
    println!("|---|---:|---:|---:|");
    for (k, n) in SHAPES {
        let values = |len: usize| (0..len).map(|i| (i % 17) as f32 - 8.0).collect::<Vec<f32>>();
        let (x, w) = (values(ROWS * k), values(k * n));
        let mut outs = vec![vec![0.0; ROWS * n]; LIBRARIES.len()];
        let mut rates = vec![Vec::new(); LIBRARIES.len()];
        let calls = (WORK / (ROWS * k * n)).max(1);
        for _ in 0..=REPEATS {
            for (((_, product), out), rates) in LIBRARIES.iter().zip(&mut outs).zip(&mut rates) {
                let start = Instant::now();
                for _ in 0..calls {
                    product(black_box(&x), black_box(&w), black_box(out), k, n);
                }
                rates.push((calls * ROWS * k * n) as f64 / start.elapsed().as_secs_f64() / 1e9);
            }
        }
        // Whole numbers of this size have exact products: all libraries must agree.
        assert!(outs.iter().all(|out| out == &outs[0]), "the libraries agree");
        let median = |rates: &[f64]| {
            let mut rates = rates[1..].to_vec();
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        };
        let cells: Vec<String> = rates.iter().map(|rates| format!("{:.0}", median(rates))).collect();
        println!("| {k} × {n} | {} |", cells.join(" | "));
    }
}

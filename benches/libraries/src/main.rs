//! Writes the part of docs/speed.md on f32 products: the libraries that could compute them, on one thread.
//!
//! `cargo run --release --manifest-path benches/libraries/Cargo.toml`, on x86-64 with AVX-512.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use gemm_common::Parallelism;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;
use std::arch::x86_64::*;
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
type Product<'a> = Box<dyn FnMut(&[f32], &[f32], &mut [f32]) + 'a>;

fn by_gemm(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    let (k_stride, n_stride) = (k as isize, n as isize);
    // SAFETY: the slices have the extents that shapes and strides describe.
    unsafe {
        (gemm_f32::gemm::f32::get_gemm_fn())(
            n,
            ROWS,
            k,
            out.as_mut_ptr(),
            n_stride,
            1,
            false,
            w.as_ptr(),
            n_stride,
            1,
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

fn by_matrixmultiply(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    let (k_stride, n_stride) = (k as isize, n as isize);
    // SAFETY: as above.
    unsafe {
        matrixmultiply::sgemm(
            ROWS,
            k,
            n,
            1.0,
            x.as_ptr(),
            k_stride,
            1,
            w.as_ptr(),
            n_stride,
            1,
            0.0,
            out.as_mut_ptr(),
            n_stride,
            1,
        );
    }
}

fn by_faer(x: &[f32], w: &[f32], out: &mut [f32], k: usize, n: usize) {
    let x = MatRef::from_row_major_slice(x, ROWS, k);
    let w = MatRef::from_row_major_slice(w, k, n);
    let out = MatMut::from_row_major_slice_mut(out, ROWS, n);
    matmul(out, Accum::Replace, x, w, 1.0, Par::Seq);
}

/// Multiplies weights that it has packed before, which the others read as they are.
fn by_rten(w: &[f32], k: usize, n: usize) -> Product<'static> {
    let executor = GemmExecutor::<f32>::new();
    let packed = executor.prepack_b(NdTensorView::from_data([k, n], w));
    Box::new(move |x, _, out| {
        let x = GemmInputA::Unpacked(NdTensorView::from_data([ROWS, k], x));
        let done = executor.gemm(out, x, GemmInputB::Packed(&packed), GemmOptions::default());
        done.expect("the shapes fit");
    })
}

const NAMES: [&str; 4] = ["gemm 0.19", "matrixmultiply 0.3", "faer 0.24", "rten-gemm 0.27, packed"];

/// In the order of [`NAMES`].
fn products(w: &[f32], k: usize, n: usize) -> [Product<'static>; 4] {
    [
        Box::new(move |x, w, out| by_gemm(x, w, out, k, n)),
        Box::new(move |x, w, out| by_matrixmultiply(x, w, out, k, n)),
        Box::new(move |x, w, out| by_faer(x, w, out, k, n)),
        by_rten(w, k, n),
    ]
}

/// Multiplications with additions of registers, of one thread: the limit of all libraries.
#[target_feature(enable = "avx512f")]
fn peak(calls: usize) -> f32 {
    // Alike, the compiler would make one of them.
    let mut sums: [_; PEAK_SUMS] = std::array::from_fn(|i| _mm512_set1_ps(black_box(i as f32)));
    let factor = _mm512_set1_ps(black_box(0.5));
    for _ in 0..calls {
        for _ in 0..PEAK_ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, factor);
            }
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}

/// Sums that do not wait for each other.
const PEAK_SUMS: usize = 16;
/// So often in a call that the compiler keeps them in registers.
const PEAK_ROUNDS: usize = 16;

fn rate(work: usize, run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    work as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn median(rates: &[f64]) -> f64 {
    let mut rates = rates[1..].to_vec();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn main() {
    assert!(is_x86_feature_detected!("avx512f"), "the limit is measured with AVX-512");
    // One library would use more.
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    one.install(page);
}

fn page() {
    println!("## Products of f32\n");
    println!(
        "Blocks of {ROWS} rows on one thread, as `agents::linear` multiplies them; 10⁹ multiplications with additions a"
    );
    println!(
        "second, medians of {REPEATS} repeats in turn, and the rate of the same instructions on registers in the same"
    );
    println!(
        "repeats. Weights are read as the project stores them, but for the last library, which has them packed.\n"
    );
    println!("| inputs × outputs | registers | {} |", NAMES.join(" | "));
    println!("|---|---:|---:|---:|---:|---:|");
    let mut shares = vec![1.0; NAMES.len()];
    for (k, n) in SHAPES {
        let (limit, medians) = measure(k, n);
        let cells: Vec<String> = medians.iter().map(|rate| format!("{rate:.0}")).collect();
        println!("| {k} × {n} | {limit:.0} | {} |", cells.join(" | "));
        shares.iter_mut().zip(medians).for_each(|(share, rate)| *share *= rate / limit);
    }
    let mean = |share: &f64| share.powf(1.0 / SHAPES.len() as f64);
    let means: Vec<f64> = shares.iter().map(mean).collect();
    let named: Vec<String> = NAMES
        .iter()
        .zip(&means)
        .map(|(name, share)| format!("{name} {:.0} %", 100.0 * share))
        .collect();
    let best = (0..NAMES.len()).fold(0, |best, at| if means[at] > means[best] { at } else { best });
    println!("\nOf the registers' rate, as geometric means over the shapes: {}.", named.join("; "));
    let others = means.iter().enumerate().filter(|(at, _)| *at != 0).map(|(_, mean)| *mean);
    let next = others.fold(0.0, f64::max);
    let found = match best {
        0 => format!(
            "It is the fastest here, by {:.0} % before the next.",
            100.0 * (means[0] / next - 1.0)
        ),
        at => format!("{} is faster by {:.0} %.", NAMES[at], 100.0 * (means[at] / means[0] - 1.0)),
    };
    println!(
        "\nThe project stays with gemm. {found} A library is taken for more than its rate: gemm reads weights where"
    );
    println!(
        "they stand, so that a model is in memory once; it sums a row in the same order beside any other rows as long as"
    );
    println!(
        "calls have one shape, which results that do not depend on batches, threads and nodes rest on (`agents::linear`);"
    );
    println!("and another order of sums would change the bits of every result that is on record.");
}

/// Rate of the registers, and of each library.
fn measure(k: usize, n: usize) -> (f64, Vec<f64>) {
    let values = |len: usize| (0..len).map(|i| (i % 17) as f32 - 8.0).collect::<Vec<f32>>();
    let (x, w) = (values(ROWS * k), values(k * n));
    let mut outs = vec![vec![0.0; ROWS * n]; NAMES.len()];
    let mut rates = vec![Vec::new(); NAMES.len()];
    let mut limits = Vec::new();
    let mut products = products(&w, k, n);
    let calls = (WORK / (ROWS * k * n)).max(1);
    for _ in 0..=REPEATS {
        // SAFETY: the processor has AVX-512F.
        limits.push(rate(WORK, || unsafe {
            black_box(peak(WORK / (16 * PEAK_SUMS * PEAK_ROUNDS)));
        }));
        for ((product, out), rates) in products.iter_mut().zip(&mut outs).zip(&mut rates) {
            rates.push(rate(calls * ROWS * k * n, || {
                (0..calls).for_each(|_| product(black_box(&x), black_box(&w), black_box(out)));
            }));
        }
    }
    // Whole numbers of this size have exact products: all libraries must agree.
    assert!(outs.iter().all(|out| out == &outs[0]), "the libraries agree");
    (median(&limits), rates.iter().map(|rates| median(rates)).collect())
}

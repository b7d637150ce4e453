//! The experts of a layer beside what the machine can do. Run with `cargo bench -p agents --bench
//! expert [-- FILTER]`; on a shared machine, build with `--no-run` and give the binary a priority.
//!
//! Ceilings are measured in the same run, before and after the table: the bandwidth at which all
//! threads read memory, and the rate of 8-bit products of registers. A figure is the median of the
//! repeats; rounds of all cases of a section alternate, so that a slow spell hits them alike.

#![allow(unsafe_code, reason = "ceilings are measured with vector instructions")]
#![allow(clippy::print_stdout, reason = "the table")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use agents::expert::grouped::{self, ExpertBatch};
use agents::expert::{BitWidth, Expert, ExpertShape};
use agents::ids::TokenId;
use agents::rng::stream;
use rand::RngExt as _;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Repeats of each case.
const REPEATS: usize = 15;

/// Weights that share a scale.
const GROUP: usize = 64;

const LARGE: ExpertShape = ExpertShape { width: 2048, hidden: 1024 };
const SHIPPED: [ExpertShape; 2] =
    [ExpertShape { width: 256, hidden: 64 }, ExpertShape { width: 256, hidden: 640 }];

fn main() {
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    println!("instructions {}, groups of {GROUP}", grouped::instructions());
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads").install(|| tables(threads, &filter));
    }
}

fn tables(threads: usize, filter: &str) {
    let ceilings = Ceilings::measure(threads);
    ceilings.print(threads);
    for shape in [LARGE].into_iter().chain(SHIPPED) {
        for (tokens, what) in
            [(1, "decode"), (2, "decode"), (4, "decode"), (32, "prefill"), (128, "prefill")]
        {
            let title = format!("{}x{} {what} {tokens}", shape.width, shape.hidden);
            if title.contains(filter) {
                section(&title, shape, tokens, &ceilings);
            }
        }
    }
    Ceilings::measure(threads).print(threads);
}

/// What all threads reach together.
struct Ceilings {
    read_gb_per_s: f64,
    giga_macs_per_s: f64,
}

impl Ceilings {
    fn measure(threads: usize) -> Self {
        let memory = vec![1_u64; 1 << 26];
        let bytes = 8.0 * memory.len() as f64;
        let read = || {
            let part = memory.len() / threads / 8 * 8;
            let sum: u64 = memory.par_chunks(part).map(sum).sum();
            black_box(sum);
        };
        let calls = 1 << 16;
        let products = || {
            (0..threads).into_par_iter().for_each(|_| {
                black_box(products(calls));
            });
        };
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..REPEATS {
            times[0].push(seconds(read));
            times[1].push(seconds(products));
        }
        let [read, products] = times.map(|times| median(&times));
        let macs = (threads * calls) as f64 * PRODUCTS_PER_CALL as f64 * 64.0;
        Self { read_gb_per_s: bytes / read / 1e9, giga_macs_per_s: macs / products / 1e9 }
    }

    fn print(&self, threads: usize) {
        println!(
            "{threads} threads: reads {:.1} GB/s, {:.0} giga-MAC/s in 8 bits",
            self.read_gb_per_s, self.giga_macs_per_s
        );
    }
}

/// Sums with as many independent additions as hide their latency.
fn sum(values: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512F.
        return unsafe { sum_wide(values) };
    }
    sum_lanes(values)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_wide(values: &[u64]) -> u64 {
    sum_lanes(values)
}

#[inline(always)]
fn sum_lanes(values: &[u64]) -> u64 {
    let mut sums = [0_u64; 32];
    for values in values.as_chunks::<32>().0 {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// Products of [`products`] with 64 pairs each.
const PRODUCTS_PER_CALL: usize = 16 * 16;

fn products(calls: usize) -> i32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the processor has AVX-512 VNNI.
        return unsafe { products_vnni(calls) };
    }
    let _ = calls;
    1
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn products_vnni(calls: usize) -> i32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 16];
    for call in 0..calls {
        let codes = _mm512_set1_epi32(i32::try_from(call).unwrap_or(0));
        for _ in 0..16 {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, codes, codes);
            }
        }
    }
    let sum = |a, b| _mm512_add_epi32(a, b);
    _mm512_reduce_add_epi32(sums.into_iter().fold(_mm512_setzero_si512(), sum))
}

/// The same routing at each width, and at all widths mixed.
fn section(title: &str, shape: ExpertShape, tokens: usize, ceilings: &Ceilings) {
    let experts = 64;
    let models: Vec<Vec<Expert>> =
        BitWidth::QUANTIZED.map(|bits| copies(shape, bits, experts)).into();
    let mixed = (0..experts).map(|e| models[e % 3][e].clone()).collect();
    let models: Vec<Vec<Expert>> = models.into_iter().chain([mixed]).collect();
    let rows = tokens * experts / 4;
    let x = random("x", rows * shape.width);
    let mut out = vec![0.0; experts * tokens * shape.width];
    let mut rng = stream(3, "routing");
    let mut row = || TokenId::from_index(rng.random_range(0..rows));
    let routed: Vec<Vec<TokenId>> =
        (0..experts).map(|_| (0..tokens).map(|_| row()).collect()).collect();
    let mut times = vec![Vec::new(); models.len()];
    for _ in 0..=REPEATS {
        for (model, times) in models.iter().zip(&mut times) {
            let batches = model.iter().zip(&routed);
            let batches: Vec<ExpertBatch<'_>> =
                batches.map(|(expert, tokens)| ExpertBatch { expert, tokens }).collect();
            // Small models stay in the cache, as they do in use: one run is too short to time.
            let runs = (LARGE.weights() / shape.weights() / tokens).clamp(1, 50);
            let time = seconds(|| (0..runs).for_each(|_| grouped::forward(&batches, &x, &mut out)));
            times.push(time / runs as f64);
        }
    }
    let times: Vec<f64> = times.iter().map(|times| median(&times[1..])).collect();
    let bytes = |model: &[Expert]| model.iter().map(|e| e.bytes() as f64).sum::<f64>();
    let macs = (experts * tokens * shape.weights()) as f64;
    for (i, name) in ["2 bits", "4 bits", "8 bits", "mixed"].into_iter().enumerate() {
        let (read, macs) = (bytes(&models[i]) / times[i] / 1e9, macs / times[i] / 1e9);
        println!(
            "{title:<22} {name:<7} {:>9.3} ms  {read:>6.1} GB/s {:>4.0} %  {macs:>6.1} GMAC/s {:>4.0} %",
            times[i] * 1e3,
            100.0 * read / ceilings.read_gb_per_s,
            100.0 * macs / ceilings.giga_macs_per_s,
        );
    }
    // Expert e of the mixed model costs its share of the uniform model of its width.
    let share =
        |i: usize| (i..experts).step_by(3).map(|e| models[i][e].bytes() as f64).sum::<f64>();
    let mean: f64 = (0..3).map(|i| times[i] * share(i) / bytes(&models[i])).sum();
    println!("{title:<22} mixed ÷ byte-weighted mean of uniform: {:.3}", times[3] / mean);
}

fn copies(shape: ExpertShape, bits: BitWidth, count: usize) -> Vec<Expert> {
    let part = |purpose| random(purpose, shape.weights() / 3);
    let expert = Expert::quantize(shape, &part("gate"), &part("up"), &part("down"), bits, GROUP);
    vec![expert; count]
}

fn random(purpose: &str, len: usize) -> Vec<f32> {
    let mut rng = stream(1, purpose);
    (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn median(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

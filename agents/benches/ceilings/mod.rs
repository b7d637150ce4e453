//! What the machine can do: the rates that benchmarks stand beside.
#![allow(unsafe_code, reason = "ceilings are measured with vector instructions")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// The rate at which all threads read `memory` so many times, each a part of its own again and again, in 10⁹
/// bytes a second: once, and it comes from where it is; often, and it comes from the cache that holds it.
pub(crate) fn read_gb_per_s(memory: &[u64], times: usize) -> f64 {
    let part = (memory.len() / rayon::current_num_threads() / 64 * 64).max(64);
    let sums = |part| (0..times).map(|_| sum(black_box(part))).fold(0, u64::wrapping_add);
    let read = || {
        let sum: u64 = memory.par_chunks(part).map(sums).reduce(|| 0, u64::wrapping_add);
        black_box(sum);
    };
    8e-9 * (times * memory.len()) as f64 / seconds(read)
}

/// The rate of all threads in products of a code and an activation.
pub(crate) fn giga_macs_per_s(threads: usize) -> f64 {
    let calls = 1 << 16;
    let time = seconds(|| {
        (0..threads).into_par_iter().for_each(|_| {
            black_box(products(calls));
        });
    });
    1e-9 * (threads * calls * PRODUCTS_PER_CALL * 64) as f64 / time
}

/// The time that `run` takes.
pub(crate) fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// How far ahead values are asked for: without, a thread of some processors reads a fifth slower.
#[cfg(target_arch = "x86_64")]
const PREFETCH_BYTES: usize = 2048;

/// Reads all values: sums with as many independent additions as hide their latency.
fn sum(values: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512F.
        return unsafe { sum_avx512(values) };
    }
    values.iter().fold(0, |sum, value| sum ^ value)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(values: &[u64]) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 8];
    for values in values.as_chunks::<64>().0 {
        let ahead = values.as_ptr().cast::<i8>().wrapping_add(PREFETCH_BYTES);
        for line in 0..8 {
            // Beyond the end a line is asked for in vain: that is no access.
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line));
        }
        for (sum, values) in sums.iter_mut().zip(values.as_chunks::<8>().0) {
            // SAFETY: the array has the 64 bytes that are read.
            let values = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
            *sum = _mm512_add_epi64(*sum, values);
        }
    }
    let sum = |a, b| _mm512_add_epi64(a, b);
    let sum = _mm512_reduce_add_epi64(sums.into_iter().fold(_mm512_setzero_si512(), sum));
    sum.cast_unsigned()
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

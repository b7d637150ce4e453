//! The kernels for AVX-512 with VNNI: 16 rows × 4 columns are one instruction.

#![allow(unsafe_code, reason = "vector loads and stores; each use says why it is sound")]

use std::arch::x86_64::*;

use super::{Sums, elementwise};
use crate::expert::activations::{GroupPanel, Panel};
use crate::expert::matrix::{Factors, Lanes, Line, Tile};

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn product<const LINES: usize, const M: usize>(
    tiles: [Tile<'_>; 2],
    panel: Panel<'_>,
    sums: &mut Sums,
) {
    let zero = _mm512_setzero_ps();
    let mut totals = [[zero; M]; 2];
    let [mut first, mut second] = tiles.map(|tile| tile.lines.as_chunks::<LINES>().0.iter());
    let factors = tiles[0].factors.iter().zip(tiles[1].factors);
    for ((first_factors, second_factors), group) in factors.zip(panel.groups::<M>()) {
        let mut dots = [[_mm512_setzero_si512(); M]; 2];
        for quads in group.codes.as_chunks::<4>().0 {
            let (Some(first), Some(second)) = (first.next(), second.next()) else { break };
            add_quad::<LINES, M, 0>(&mut dots, [first, second], &quads[0]);
            add_quad::<LINES, M, 1>(&mut dots, [first, second], &quads[1]);
            add_quad::<LINES, M, 2>(&mut dots, [first, second], &quads[2]);
            add_quad::<LINES, M, 3>(&mut dots, [first, second], &quads[3]);
        }
        add_group(&mut totals[0], &dots[0], first_factors, &group);
        add_group(&mut totals[1], &dots[1], second_factors, &group);
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        for (sums, total) in sums.iter_mut().zip(totals) {
            store(sums, total);
        }
    }
}

/// Adds the products of one quad of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_quad<const LINES: usize, const M: usize, const QUAD: usize>(
    dots: &mut [[__m512i; M]; 2],
    blocks: [&[Line; LINES]; 2],
    activations: &[i32; M],
) {
    let codes = blocks.map(|block| quad::<LINES, QUAD>(block));
    for t in 0..M {
        let activation = _mm512_set1_epi32(activations[t]);
        dots[0][t] = _mm512_dpbusd_epi32(dots[0][t], codes[0], activation);
        dots[1][t] = _mm512_dpbusd_epi32(dots[1][t], codes[1], activation);
    }
}

/// The codes of one quad of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn quad<const LINES: usize, const QUAD: usize>(block: &[Line; LINES]) -> __m512i {
    let quads_per_line = 4 / LINES;
    let line = load(&block[QUAD / quads_per_line]);
    // A shift by halves of 32 bits brings in bits of the next byte, which the mask removes.
    let shifted = match QUAD % quads_per_line * 2 * LINES {
        0 => line,
        2 => _mm512_srli_epi32::<2>(line),
        4 => _mm512_srli_epi32::<4>(line),
        _ => _mm512_srli_epi32::<6>(line),
    };
    match LINES {
        1 => _mm512_and_si512(shifted, _mm512_set1_epi8(0x03)),
        2 => _mm512_and_si512(shifted, _mm512_set1_epi8(0x0f)),
        _ => shifted,
    }
}

/// Adds a group's part to the outputs of a tile, in the order that [`super`] gives.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_group<const M: usize>(
    totals: &mut [__m512; M],
    dots: &[__m512i; M],
    factors: &Factors,
    group: &GroupPanel<'_, M>,
) {
    let at: *const Factors = factors;
    // SAFETY: the 64 bytes of factors are 16 scales and then 16 minima.
    let (scales, minima) = unsafe {
        let at = at.cast::<__m256i>();
        (_mm512_cvtph_ps(_mm256_load_si256(at)), _mm512_cvtph_ps(_mm256_load_si256(at.add(1))))
    };
    for t in 0..M {
        let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[t]), scales);
        let dot = _mm512_mul_ps(dot, _mm512_set1_ps(group.scales[t]));
        let offset = _mm512_mul_ps(minima, _mm512_set1_ps(group.offsets[t]));
        totals[t] = _mm512_add_ps(totals[t], _mm512_add_ps(dot, offset));
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line has 64 bytes at a multiple of 64.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn store(to: &mut Lanes, values: __m512) {
    // SAFETY: the array has the 64 bytes that are written.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn swiglu(sums: &Sums, tokens: usize, values: &mut [f32], stride: usize) {
    elementwise::swiglu(sums, tokens, values, stride);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn quantize(values: &[f32], codes: &mut [i32]) -> (f32, f32) {
    elementwise::quantize(values, codes)
}

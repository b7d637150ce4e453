//! The kernels for AVX2: 8 rows × 4 columns are two instructions.
//!
//! `maddubs` adds two products of an unsigned and a signed byte in 16 bits, and saturates. Codes of
//! 8 bits are taken as two of 4, so that a sum is at most 2 · 15 · 127 = 3810 in magnitude, and eight
//! of them, a block, at most 30 480. They are widened to 32 bits after that.

#![allow(unsafe_code, reason = "vector loads and stores; each use says why it is sound")]

use std::arch::x86_64::*;

use super::{PANEL_TOKENS, Sums, elementwise};
use crate::expert::activations::Panel;
use crate::expert::matrix::{BLOCK_QUADS, FACTOR_LINES, LANES, Lanes, Line};

#[target_feature(enable = "avx2,f16c")]
pub(super) fn product<const BITS: usize, const M: usize>(
    (tile, _): (&[Line], &[Line]),
    panel: Panel<'_>,
    sums: &mut Sums,
) {
    let mut rest = tile;
    let mut totals = [[[0.0; LANES]; M]; 2];
    for group in panel.groups::<M>() {
        let quads = group.codes.as_chunks::<BLOCK_QUADS>().0;
        let (factors, codes) = rest.split_at(FACTOR_LINES);
        let (codes, after) = codes.split_at(2 * BITS * quads.len());
        rest = after;
        let blocks = codes.as_chunks::<2>().0.as_chunks::<BITS>().0;
        let mut dots = [[[0; LANES]; M]; 2];
        for (block, quads) in blocks.iter().zip(quads) {
            for (half, dots) in dots.iter_mut().enumerate() {
                let lines = block.each_ref().map(|lines| &lines[half]);
                for (t, dots) in dots.iter_mut().enumerate() {
                    for eight in 0..2 {
                        add_narrow(dots, &lines, quads, t, eight);
                    }
                }
            }
        }
        for (half, (totals, dots)) in totals.iter_mut().zip(&dots).enumerate() {
            let [scales, minima] = [0, 1].map(|line: usize| half_factors(&factors[line], half));
            for t in 0..M {
                let scale = (group.scales[t], group.offsets[t]);
                elementwise::add_group(&mut totals[t], &dots[t], (&scales, &minima), scale);
            }
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        sums[..M].copy_from_slice(&totals);
    }
}

/// Adds the products of half a block for one token and eight of the rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_narrow<const BITS: usize, const M: usize>(
    dots: &mut [i32; LANES],
    lines: &[&Line; BITS],
    quads: &[[i32; M]; BLOCK_QUADS],
    token: usize,
    eight: usize,
) {
    let nibble = _mm256_set1_epi8(0x0f);
    let mut low = _mm256_setzero_si256();
    let mut high = low;
    for (quad, activations) in quads.iter().enumerate() {
        let activation = _mm256_set1_epi32(activations[token]);
        let codes = codes(lines, quad, eight);
        if BITS == 8 {
            let upper = _mm256_and_si256(_mm256_srli_epi32::<4>(codes), nibble);
            high = _mm256_add_epi16(high, _mm256_maddubs_epi16(upper, activation));
            let lower = _mm256_and_si256(codes, nibble);
            low = _mm256_add_epi16(low, _mm256_maddubs_epi16(lower, activation));
        } else {
            low = _mm256_add_epi16(low, _mm256_maddubs_epi16(codes, activation));
        }
    }
    let mut dot = _mm256_madd_epi16(low, _mm256_set1_epi16(1));
    if BITS == 8 {
        dot = _mm256_add_epi32(dot, _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
    }
    let to = dots[8 * eight..][..8].as_mut_ptr().cast::<__m256i>();
    // SAFETY: the slice has the 32 bytes that are read and written.
    unsafe { _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), dot)) }
}

/// The codes of a quad for eight rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn codes<const BITS: usize>(lines: &[&Line; BITS], quad: usize, eight: usize) -> __m256i {
    let load = |line: usize| {
        let line = &lines[line].0[32 * eight..][..32];
        // SAFETY: the slice has the 32 bytes that are read.
        unsafe { _mm256_loadu_si256(line.as_ptr().cast()) }
    };
    // A shift by halves of 32 bits brings in bits of the next byte, which the mask removes.
    let shift = |line: __m256i, by: usize| match by {
        0 => line,
        2 => _mm256_srli_epi32::<2>(line),
        3 => _mm256_srli_epi32::<3>(line),
        4 => _mm256_srli_epi32::<4>(line),
        5 => _mm256_srli_epi32::<5>(line),
        6 => _mm256_srli_epi32::<6>(line),
        _ => _mm256_srli_epi32::<7>(line),
    };
    let mask = |bytes: __m256i, mask: i8| _mm256_and_si256(bytes, _mm256_set1_epi8(mask));
    match (BITS, quad) {
        (3, 0..3) => mask(load(quad), 7),
        (3, 3..6) => mask(shift(load(quad - 3), 3), 7),
        (3, _) => {
            let upper = mask(shift(load(quad - 6), 5), 6);
            _mm256_or_si256(upper, mask(shift(load(2), quad), 1))
        }
        (8, _) => load(quad),
        _ => mask(shift(load(quad * BITS / 8), quad * BITS % 8), i8::MAX >> (7 - BITS)),
    }
}

/// The factors of half the rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn half_factors(line: &Line, half: usize) -> Lanes {
    let mut lanes = [0.0; LANES];
    let eights = line.0.as_chunks::<16>().0[2 * half..].iter();
    for (eight, lanes) in eights.zip(lanes.as_chunks_mut::<8>().0) {
        // SAFETY: eight factors have the 16 bytes that are read, their values the 32 that are written.
        unsafe {
            let factors = _mm256_cvtph_ps(_mm_loadu_si128(eight.as_ptr().cast()));
            _mm256_storeu_ps(lanes.as_mut_ptr(), factors);
        }
    }
    lanes
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn swiglu(sums: [&Sums; 2], tokens: usize, values: &mut [f32], stride: usize) {
    elementwise::swiglu(sums, tokens, values, stride);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn quantize(values: &[f32], codes: &mut [i32]) -> (f32, f32) {
    elementwise::quantize(values, codes)
}

/// [`elementwise::interleave`], eight quads at a time.
#[target_feature(enable = "avx2")]
pub(super) fn interleave(rows: &[&[i32]; PANEL_TOKENS], to: &mut [i32]) {
    let blocks = to.as_chunks_mut::<{ BLOCK_QUADS * PANEL_TOKENS }>().0;
    let quads = BLOCK_QUADS * blocks.len();
    assert!(rows.iter().all(|row| row.len() == quads), "whole blocks of every row");
    for (block, to) in blocks.iter_mut().enumerate() {
        let from = BLOCK_QUADS * block;
        // SAFETY: every row has eight values from there on, as was asserted.
        let load = |row: &[i32]| unsafe { _mm256_loadu_si256(row.as_ptr().add(from).cast()) };
        for (to, values) in
            to.as_chunks_mut::<BLOCK_QUADS>().0.iter_mut().zip(transposed(rows.map(load)))
        {
            // SAFETY: the array has the 32 bytes that are written.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), values) };
        }
    }
}

/// Eight vectors of eight values, transposed.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed([a, b, c, d, e, f, g, h]: [__m256i; 8]) -> [__m256i; 8] {
    // Of each half of 128 bits: pairs, then fours of the rows a to d and e to h.
    let fours = |a, b, c, d| {
        let (low, high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (next_low, next_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(low, next_low),
            _mm256_unpackhi_epi64(low, next_low),
            _mm256_unpacklo_epi64(high, next_high),
            _mm256_unpackhi_epi64(high, next_high),
        ]
    };
    let (first, last) = (fours(a, b, c, d), fours(e, f, g, h));
    let low = |i: usize| _mm256_permute2x128_si256::<0x20>(first[i], last[i]);
    let high = |i: usize| _mm256_permute2x128_si256::<0x31>(first[i], last[i]);
    [low(0), low(1), low(2), low(3), high(0), high(1), high(2), high(3)]
}

//! The kernels for AVX-512 with VNNI: 16 rows × 4 columns are one instruction.

#![allow(unsafe_code, reason = "vector loads and stores; each use says why it is sound")]

use std::arch::x86_64::*;

use super::{Sums, elementwise};
use crate::expert::activations::Panel;
use crate::expert::matrix::{Factors, Lanes, Line, Tile};

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn product<const LINES: usize, const M: usize>(
    tiles: [Tile<'_>; 2],
    panel: Panel<'_>,
    sums: &mut Sums,
) {
    let sizes = panel.sizes();
    let blocks = sizes.quads / 4;
    assert!(sizes.tokens == M, "the kernel is one for this number of tokens");
    assert!(sizes.first + M <= sizes.batch && sizes.quads == 4 * blocks, "a panel of its batch");
    for tile in &tiles {
        assert!(tile.lines.len() == blocks * LINES && tile.factors.len() == sizes.groups);
    }
    let (codes, scales, offsets) = panel.slices();
    assert!(codes.len() == sizes.batch * sizes.quads, "codes of all tokens");
    assert!(scales.len() == sizes.batch * sizes.groups && offsets.len() == scales.len());

    let mut totals = [[_mm512_setzero_ps(); M]; 2];
    let mut done = 0;
    for g in 0..sizes.groups {
        let in_group = (sizes.group_quads / 4).min(blocks - done);
        let mut dots = [[[_mm512_setzero_si512(); M]; 4]; 2];
        // SAFETY: `done + in_group` blocks are at most `blocks`, which both tiles have. Before this
        // group stand the codes of `done` blocks of all tokens, and in it those of `first` tokens
        // before the panel's: with `first + M` at most `batch`, the panel's codes end inside.
        unsafe {
            let from = 4 * (done * sizes.batch + sizes.first * in_group);
            let codes = codes.as_ptr().add(from).cast::<[[i32; M]; 4]>();
            for block in 0..in_group {
                let lines = |tile: usize| {
                    let lines = tiles[tile].lines.as_ptr().cast::<[Line; LINES]>();
                    &*lines.add(done + block)
                };
                let (lines, quads) = ([lines(0), lines(1)], &*codes.add(block));
                add_quad::<LINES, M, 0>(&mut dots, lines, &quads[0]);
                add_quad::<LINES, M, 1>(&mut dots, lines, &quads[1]);
                add_quad::<LINES, M, 2>(&mut dots, lines, &quads[2]);
                add_quad::<LINES, M, 3>(&mut dots, lines, &quads[3]);
            }
        }
        done += in_group;
        let at = g * sizes.batch + sizes.first;
        // SAFETY: there are factors of `groups` groups, and `groups · batch` scales and offsets.
        unsafe {
            let scales = &*scales.as_ptr().add(at).cast::<[f32; M]>();
            let offsets = &*offsets.as_ptr().add(at).cast::<[f32; M]>();
            for tile in 0..2 {
                let factors = tiles[tile].factors.get_unchecked(g);
                add_group(&mut totals[tile], &dots[tile], factors, (scales, offsets));
            }
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        for (sums, total) in sums.iter_mut().zip(totals) {
            store(sums, total);
        }
    }
}

/// Sums of a token and tile that are kept apart until the end of a group: with few tokens, additions
/// would wait for each other.
const fn chains(tokens: usize) -> usize {
    if tokens < 4 { 4 / tokens } else { 1 }
}

/// Adds the products of one quad of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_quad<const LINES: usize, const M: usize, const QUAD: usize>(
    dots: &mut [[[__m512i; M]; 4]; 2],
    blocks: [&[Line; LINES]; 2],
    activations: &[i32; M],
) {
    let codes = blocks.map(|block| quad::<LINES, QUAD>(block));
    for t in 0..M {
        let activation = _mm512_set1_epi32(activations[t]);
        for (dots, codes) in dots.iter_mut().zip(codes) {
            let dot = &mut dots[QUAD % chains(M)][t];
            *dot = _mm512_dpbusd_epi32(*dot, codes, activation);
        }
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
    dots: &[[__m512i; M]; 4],
    factors: &Factors,
    (token_scales, token_offsets): (&[f32; M], &[f32; M]),
) {
    let at: *const Factors = factors;
    // SAFETY: the 64 bytes of factors are 16 scales and then 16 minima.
    let (scales, minima) = unsafe {
        let at = at.cast::<__m256i>();
        (_mm512_cvtph_ps(_mm256_load_si256(at)), _mm512_cvtph_ps(_mm256_load_si256(at.add(1))))
    };
    for t in 0..M {
        let mut dot = dots[0][t];
        for dots in &dots[1..chains(M)] {
            dot = _mm512_add_epi32(dot, dots[t]);
        }
        let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), scales);
        let dot = _mm512_mul_ps(dot, _mm512_set1_ps(token_scales[t]));
        let offset = _mm512_mul_ps(minima, _mm512_set1_ps(token_offsets[t]));
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

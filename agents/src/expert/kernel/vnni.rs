//! The kernels for AVX-512 with VNNI: 16 rows × 4 columns are one instruction.
//!
//! With one or two tokens, a code is not shifted down but masked where it stands, and quads that
//! stand `s` bits up have sums of their own, which are shifted down by `s` once a group: they are
//! multiples of 2^s, at most 255 · 127 · 256 in magnitude, so nothing is lost.

#![allow(unsafe_code, reason = "vector loads and stores; each use says why it is sound")]

use std::arch::x86_64::*;

use super::{Sums, elementwise};
use crate::expert::activations::Panel;
use crate::expert::matrix::{BLOCK_QUADS, Block, FACTOR_LINES, LANES, Lanes, Line};

/// Most tokens of a panel for which codes are read from memory rather than from a cache.
const STREAMED_TOKENS: usize = 2;

/// How far ahead of a block lines are asked for, into the first cache.
const PREFETCH_BYTES: usize = 2048;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn product<const BITS: usize, const M: usize>(
    (tile, next): (&[Line], &[Line]),
    panel: Panel<'_>,
    sums: &mut Sums,
) {
    let sizes = panel.sizes();
    let blocks = sizes.quads / BLOCK_QUADS;
    assert!(sizes.tokens == M, "the kernel is one for this number of tokens");
    assert!(sizes.first + M <= sizes.batch, "a panel of its batch");
    assert!(sizes.quads == BLOCK_QUADS * blocks, "whole blocks");
    assert!(tile.len() == FACTOR_LINES * sizes.groups + 2 * BITS * blocks, "a tile of the batch");
    let (codes, scales, offsets) = panel.slices();
    assert!(codes.len() == sizes.batch * sizes.quads, "codes of all tokens");
    assert!(scales.len() == sizes.batch * sizes.groups && offsets.len() == scales.len());

    let mut totals = [[_mm512_setzero_ps(); M]; 2];
    // A division is long beside a small product.
    let asked = if next.is_empty() { 1 } else { next.len().div_ceil(blocks) };
    let mut next = next.chunks(asked);
    let mut lines = tile.as_ptr();
    let mut done = 0;
    for g in 0..sizes.groups {
        let in_group = (sizes.group_quads / BLOCK_QUADS).min(blocks - done);
        let mut dots = [[[_mm512_setzero_si512(); M]; 4]; 2];
        let at = g * sizes.batch + sizes.first;
        // SAFETY: `done + in_group` blocks are at most `blocks`, so that groups have all lines of the
        // tile and no more. Before this group stand the codes of `done` blocks of all tokens, and in
        // it those of `first` tokens before the panel's: with `first + M` at most `batch`, the
        // panel's codes end inside. There are `groups · batch` scales and offsets.
        unsafe {
            let factors = &*lines.cast::<[Line; FACTOR_LINES]>();
            lines = lines.add(FACTOR_LINES);
            let from = BLOCK_QUADS * (done * sizes.batch + sizes.first * in_group);
            let codes = codes.as_ptr().add(from).cast::<[[i32; M]; BLOCK_QUADS]>();
            for block in 0..in_group {
                prefetch::<BITS>(lines);
                for line in next.next().unwrap_or_default() {
                    _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(line).cast());
                }
                add_block(&mut dots, &*lines.cast::<Block<BITS>>(), &*codes.add(block));
                lines = lines.add(2 * BITS);
            }
            let scales = &*scales.as_ptr().add(at).cast::<[f32; M]>();
            let offsets = &*offsets.as_ptr().add(at).cast::<[f32; M]>();
            add_group::<BITS, M>(&mut totals, &dots, factors, (scales, offsets));
        }
        done += in_group;
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        for (sums, total) in sums.iter_mut().zip(totals) {
            store(sums, total);
        }
    }
}

/// Asks for the lines that come a while after a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn prefetch<const BITS: usize>(lines: *const Line) {
    let ahead = lines.cast::<i8>().wrapping_add(PREFETCH_BYTES);
    for line in 0..2 * BITS {
        // A line beyond the matrix is asked for in vain: that is no access.
        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * size_of::<Line>()));
    }
}

/// How many bits up the codes of a quad stand in their bytes.
const fn shift(bits: usize, quad: usize) -> usize {
    match bits {
        3 => [0, 0, 0, 3, 3, 3, 5, 5][quad],
        _ => quad * bits % 8,
    }
}

/// The sums that take the products of a quad. With few tokens there are four, so that additions do
/// not wait for each other, and each takes quads of one [`shift`]; otherwise codes are shifted down.
const fn chain(bits: usize, tokens: usize, quad: usize) -> usize {
    match (tokens <= STREAMED_TOKENS, bits) {
        (false, _) => 0,
        (true, 3) => [0, 0, 0, 1, 1, 1, 2, 3][quad],
        (true, _) => quad % 4,
    }
}

/// How many bits up the sums of a chain stand.
const fn chain_shift(bits: usize, chain: usize) -> usize {
    match bits {
        3 => [0, 3, 5, 5][chain],
        _ => shift(bits, chain),
    }
}

/// Adds the products of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_block<const BITS: usize, const M: usize>(
    dots: &mut [[[__m512i; M]; 4]; 2],
    block: &Block<BITS>,
    quads: &[[i32; M]; BLOCK_QUADS],
) {
    add_quad::<BITS, M, 0>(dots, block, &quads[0]);
    add_quad::<BITS, M, 1>(dots, block, &quads[1]);
    add_quad::<BITS, M, 2>(dots, block, &quads[2]);
    add_quad::<BITS, M, 3>(dots, block, &quads[3]);
    add_quad::<BITS, M, 4>(dots, block, &quads[4]);
    add_quad::<BITS, M, 5>(dots, block, &quads[5]);
    add_quad::<BITS, M, 6>(dots, block, &quads[6]);
    add_quad::<BITS, M, 7>(dots, block, &quads[7]);
}

/// Adds the products of one quad of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_quad<const BITS: usize, const M: usize, const QUAD: usize>(
    dots: &mut [[[__m512i; M]; 4]; 2],
    block: &Block<BITS>,
    activations: &[i32; M],
) {
    let mut codes = [masked::<BITS, QUAD>(block, 0), masked::<BITS, QUAD>(block, 1)];
    if M > STREAMED_TOKENS {
        codes = codes.map(|codes| shift_codes(codes, const { shift(BITS, QUAD) }));
    }
    for t in 0..M {
        let activation = _mm512_set1_epi32(activations[t]);
        for (dots, codes) in dots.iter_mut().zip(codes) {
            let dot = &mut dots[const { chain(BITS, M, QUAD) }][t];
            *dot = _mm512_dpbusd_epi32(*dot, codes, activation);
        }
    }
}

/// The codes of one quad of half a block, [`shift`] bits up in their bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn masked<const BITS: usize, const QUAD: usize>(block: &Block<BITS>, half: usize) -> __m512i {
    if BITS == 8 {
        return load(&block[QUAD][half]);
    }
    let bytes = |byte: u8| _mm512_set1_epi8(byte.cast_signed());
    let codes = match (BITS, QUAD) {
        (3, 0..3) => load(&block[QUAD][half]),
        (3, 3..6) => load(&block[QUAD - 3][half]),
        (3, _) => {
            // Bits 6 and 7 of one line, and below them one bit of the last.
            let last = load(&block[2][half]);
            let lowest = match QUAD {
                6 => _mm512_srli_epi32::<1>(last),
                _ => _mm512_srli_epi32::<2>(last),
            };
            // The first argument's ones select the second, its zeros the third.
            _mm512_ternarylogic_epi32::<0xca>(bytes(0xc0), load(&block[QUAD - 6][half]), lowest)
        }
        _ => load(&block[QUAD * BITS / 8][half]),
    };
    let mask = u8::MAX >> (8 - BITS) << const { shift(BITS, QUAD) };
    _mm512_and_si512(codes, bytes(mask))
}

/// Codes that stand `by` bits up, shifted down: their bytes have nothing below to lose.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn shift_codes(codes: __m512i, by: usize) -> __m512i {
    match by {
        0 => codes,
        2 => _mm512_srli_epi32::<2>(codes),
        3 => _mm512_srli_epi32::<3>(codes),
        4 => _mm512_srli_epi32::<4>(codes),
        5 => _mm512_srli_epi32::<5>(codes),
        _ => _mm512_srli_epi32::<6>(codes),
    }
}

/// Sums that stand `by` bits up, shifted down.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn shift_sums(sums: __m512i, by: usize) -> __m512i {
    match by {
        0 => sums,
        2 => _mm512_srai_epi32::<2>(sums),
        3 => _mm512_srai_epi32::<3>(sums),
        4 => _mm512_srai_epi32::<4>(sums),
        5 => _mm512_srai_epi32::<5>(sums),
        _ => _mm512_srai_epi32::<6>(sums),
    }
}

/// Adds a group's part to the outputs of a tile, in the order that [`super`] gives.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_group<const BITS: usize, const M: usize>(
    totals: &mut [[__m512; M]; 2],
    dots: &[[[__m512i; M]; 4]; 2],
    factors: &[Line; FACTOR_LINES],
    (token_scales, token_offsets): (&[f32; M], &[f32; M]),
) {
    for (half, (totals, dots)) in totals.iter_mut().zip(dots).enumerate() {
        let [scales, minima] = factors.each_ref().map(|line| half_factors(line, half));
        for t in 0..M {
            let mut dot = dots[0][t];
            if M <= STREAMED_TOKENS {
                for (chain, dots) in dots.iter().enumerate().skip(1) {
                    dot = _mm512_add_epi32(dot, shift_sums(dots[t], chain_shift(BITS, chain)));
                }
            }
            let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), scales);
            let dot = _mm512_mul_ps(dot, _mm512_set1_ps(token_scales[t]));
            let offset = _mm512_mul_ps(minima, _mm512_set1_ps(token_offsets[t]));
            totals[t] = _mm512_add_ps(totals[t], _mm512_add_ps(dot, offset));
        }
    }
}

/// The factors of half the rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn half_factors(line: &Line, half: usize) -> __m512 {
    let factors = line.0.as_chunks::<32>().0;
    // SAFETY: half a line has 32 bytes, at a multiple of 32.
    _mm512_cvtph_ps(unsafe { _mm256_load_si256(factors[half].as_ptr().cast()) })
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
pub(super) fn swiglu(sums: [&Sums; 2], tokens: usize, values: &mut [f32], stride: usize) {
    elementwise::swiglu(sums, tokens, values, stride);
}

/// [`elementwise::quantize`] step by step, which the compiler makes a third as fast of.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn quantize(values: &[f32], codes: &mut [i32]) -> (f32, f32) {
    let (values, rest) = values.as_chunks::<LANES>();
    let (codes, rest_codes) = codes.as_chunks_mut::<4>();
    assert!(rest.is_empty() && rest_codes.is_empty() && values.len() == codes.len());
    // SAFETY: the array has the 64 bytes that are read.
    let load = |values: &Lanes| unsafe { _mm512_loadu_ps(values.as_ptr()) };
    let magnitudes = _mm512_set1_epi32(i32::MAX);
    let mut largest = _mm512_setzero_si512();
    for values in values {
        let bits = _mm512_and_si512(_mm512_castps_si512(load(values)), magnitudes);
        largest = _mm512_max_epi32(largest, bits);
    }
    let largest = f32::from_bits(_mm512_reduce_max_epi32(largest).cast_unsigned());
    let (scale, inverse) = match elementwise::scale(largest) {
        Ok(scale) => scale,
        Err(factors) => {
            codes.as_flattened_mut().fill(0);
            return factors;
        }
    };
    let inverse = _mm512_set1_ps(inverse);
    let rounder = _mm512_set1_ps(elementwise::ROUNDER);
    let mut sums = _mm512_setzero_si512();
    for (values, codes) in values.iter().zip(codes) {
        let rounded = _mm512_add_ps(_mm512_mul_ps(load(values), inverse), rounder);
        let whole = _mm512_sub_epi32(_mm512_castps_si512(rounded), _mm512_castps_si512(rounder));
        sums = _mm512_add_epi32(sums, whole);
        // SAFETY: the array has the 16 bytes that are written.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(whole)) };
    }
    (scale, scale * elementwise::whole(_mm512_reduce_add_epi32(sums)))
}

//! The kernels for AVX2: 8 rows × 4 columns are two instructions.
//!
//! `maddubs` adds two products of an unsigned and a signed byte in 16 bits, and saturates. Codes of
//! 8 bits are taken as two of 4, so that a sum is at most 2 · 15 · 127 = 3810 in magnitude, and eight
//! of them, 32 columns, at most 30 480. They are widened to 32 bits after that.

#![allow(unsafe_code, reason = "vector loads and stores; each use says why it is sound")]

use std::arch::x86_64::*;

use super::{Sums, elementwise};
use crate::expert::activations::Panel;
use crate::expert::matrix::{Line, TILE_ROWS, Tile};

/// Blocks of columns whose sums fit 16 bits.
const NARROW_BLOCKS: usize = 2;

#[target_feature(enable = "avx2,f16c")]
pub(super) fn product<const LINES: usize, const M: usize>(
    tiles: [Tile<'_>; 2],
    panel: Panel<'_>,
    sums: &mut Sums,
) {
    for (tile, sums) in tiles.into_iter().zip(sums) {
        let sums = sums.first_chunk_mut::<M>().expect("a panel has at most 8 tokens");
        *sums = [[0.0; TILE_ROWS]; M];
        let mut rest = tile.lines.as_chunks::<LINES>().0;
        for (factors, group) in tile.factors.iter().zip(panel.groups::<M>()) {
            let quads = group.codes.as_chunks::<4>().0;
            let (blocks, after) = rest.split_at(quads.len());
            rest = after;
            let factors = elementwise::to_f32(factors);
            let mut dots = [[0; TILE_ROWS]; M];
            for (blocks, quads) in blocks.chunks(NARROW_BLOCKS).zip(quads.chunks(NARROW_BLOCKS)) {
                for (t, dots) in dots.iter_mut().enumerate() {
                    for half in 0..2 {
                        add_narrow(dots, blocks, quads, t, half);
                    }
                }
            }
            for t in 0..M {
                let scale = (group.scales[t], group.offsets[t]);
                elementwise::add_group(&mut sums[t], &dots[t], &factors, scale);
            }
        }
    }
}

/// Adds the products of a few blocks for one token and one half of the rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_narrow<const LINES: usize, const M: usize>(
    dots: &mut [i32; TILE_ROWS],
    blocks: &[[Line; LINES]],
    quads: &[[[i32; M]; 4]],
    token: usize,
    half: usize,
) {
    let nibble = _mm256_set1_epi8(0x0f);
    let mut low = _mm256_setzero_si256();
    let mut high = low;
    for (block, quads) in blocks.iter().zip(quads) {
        for (quad, activations) in quads.iter().enumerate() {
            let activation = _mm256_set1_epi32(activations[token]);
            let codes = codes(block, quad, half);
            if LINES == 4 {
                let upper = _mm256_and_si256(_mm256_srli_epi32::<4>(codes), nibble);
                high = _mm256_add_epi16(high, _mm256_maddubs_epi16(upper, activation));
                let lower = _mm256_and_si256(codes, nibble);
                low = _mm256_add_epi16(low, _mm256_maddubs_epi16(lower, activation));
            } else {
                low = _mm256_add_epi16(low, _mm256_maddubs_epi16(codes, activation));
            }
        }
    }
    let mut dot = _mm256_madd_epi16(low, _mm256_set1_epi16(1));
    if LINES == 4 {
        dot = _mm256_add_epi32(dot, _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
    }
    let to = dots[8 * half..][..8].as_mut_ptr().cast::<__m256i>();
    // SAFETY: the slice has the 32 bytes that are read and written.
    unsafe { _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), dot)) }
}

/// The codes of half the rows of a quad.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn codes<const LINES: usize>(block: &[Line; LINES], quad: usize, half: usize) -> __m256i {
    let quads_per_line = 4 / LINES;
    let line = &block[quad / quads_per_line].0[32 * half..][..32];
    // SAFETY: the slice has the 32 bytes that are read.
    let line = unsafe { _mm256_loadu_si256(line.as_ptr().cast()) };
    // A shift by halves of 32 bits brings in bits of the next byte, which the mask removes.
    let shifted = match quad % quads_per_line * 2 * LINES {
        0 => line,
        2 => _mm256_srli_epi32::<2>(line),
        4 => _mm256_srli_epi32::<4>(line),
        _ => _mm256_srli_epi32::<6>(line),
    };
    match LINES {
        1 => _mm256_and_si256(shifted, _mm256_set1_epi8(0x03)),
        2 => _mm256_and_si256(shifted, _mm256_set1_epi8(0x0f)),
        _ => shifted,
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn swiglu(sums: &Sums, tokens: usize, values: &mut [f32], stride: usize) {
    elementwise::swiglu(sums, tokens, values, stride);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn quantize(values: &[f32], codes: &mut [i32]) -> (f32, f32) {
    elementwise::quantize(values, codes)
}

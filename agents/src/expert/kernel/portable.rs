//! The kernels for every processor, and what the others are compared with.

use super::{Sums, elementwise};
use crate::expert::activations::Panel;
use crate::expert::matrix::{BLOCK_QUADS, Block, FACTOR_LINES, LANES, LINE_BYTES, Line};

pub(super) fn product<const BITS: usize, const M: usize>(
    (tile, _): (&[Line], &[Line]),
    panel: Panel<'_>,
    sums: &mut Sums,
) {
    let mut rest = tile;
    let mut totals = [[[0.0; LANES]; M]; 2];
    for activations in panel.groups::<M>() {
        let quads = activations.codes.as_chunks::<BLOCK_QUADS>().0;
        let (factors, codes) = rest.split_at(FACTOR_LINES);
        let (codes, after) = codes.split_at(2 * BITS * quads.len());
        rest = after;
        let mut dots = [[[0; LANES]; M]; 2];
        for (block, quads) in codes.as_chunks::<2>().0.as_chunks::<BITS>().0.iter().zip(quads) {
            add_block(&mut dots, block, quads);
        }
        for (half, (totals, dots)) in totals.iter_mut().zip(&dots).enumerate() {
            let factor = |line: usize| {
                std::array::from_fn(|lane| factors[line].factor(half * LANES + lane).to_f32())
            };
            let (scales, minima) = (factor(0), factor(1));
            for t in 0..M {
                let scale = (activations.scales[t], activations.offsets[t]);
                elementwise::add_group(&mut totals[t], &dots[t], (&scales, &minima), scale);
            }
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        sums[..M].copy_from_slice(&totals);
    }
}

#[inline(always)]
fn add_block<const BITS: usize, const M: usize>(
    dots: &mut [[[i32; LANES]; M]; 2],
    block: &Block<BITS>,
    quads: &[[i32; M]; BLOCK_QUADS],
) {
    for (half, dots) in dots.iter_mut().enumerate() {
        for (codes, quads) in unpack(block.each_ref().map(|lines| &lines[half])).iter().zip(quads) {
            for (dots, quad) in dots.iter_mut().zip(quads) {
                add_quad(dots, codes, quad.to_le_bytes().map(u8::cast_signed));
            }
        }
    }
}

/// The quads of half a block.
#[inline(always)]
fn unpack<const BITS: usize>(lines: [&Line; BITS]) -> [[u8; LINE_BYTES]; BLOCK_QUADS] {
    if BITS == 3 {
        return unpack_three(*lines.first_chunk().expect("three lines"));
    }
    let (quads_per_line, mask) = (8 / BITS, u8::MAX >> (8 - BITS));
    std::array::from_fn(|quad| {
        let shift = quad % quads_per_line * BITS;
        lines[quad / quads_per_line].0.map(|byte| (byte >> shift) & mask)
    })
}

#[inline(always)]
fn unpack_three(lines: [&Line; 3]) -> [[u8; LINE_BYTES]; BLOCK_QUADS] {
    std::array::from_fn(|quad| match quad {
        0..3 => lines[quad].0.map(|byte| byte & 7),
        3..6 => lines[quad - 3].0.map(|byte| (byte >> 3) & 7),
        _ => std::array::from_fn(|i| {
            let (upper, lowest) = (lines[quad - 6].0[i] >> 6, lines[2].0[i] >> quad);
            (upper << 1) | (lowest & 1)
        }),
    })
}

#[inline(always)]
fn add_quad(dots: &mut [i32; LANES], codes: &[u8; LINE_BYTES], quad: [i8; 4]) {
    for (dot, codes) in dots.iter_mut().zip(codes.as_chunks::<4>().0) {
        for (code, a) in codes.iter().zip(quad) {
            *dot += i32::from(*code) * i32::from(a);
        }
    }
}

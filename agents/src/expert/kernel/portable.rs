//! The kernels for every processor, and what the others are compared with.

use super::{Sums, elementwise};
use crate::expert::activations::Panel;
use crate::expert::matrix::{LINE_BYTES, Line, TILE_ROWS, Tile};

pub(super) fn product<const LINES: usize, const M: usize>(
    tiles: [Tile<'_>; 2],
    panel: Panel<'_>,
    sums: &mut Sums,
) {
    for (tile, sums) in tiles.into_iter().zip(sums) {
        let sums = sums.first_chunk_mut::<M>().expect("a panel has at most 8 tokens");
        *sums = [[0.0; TILE_ROWS]; M];
        let mut blocks = tile.lines.as_chunks::<LINES>().0.iter();
        for (factors, activations) in tile.factors.iter().zip(panel.groups::<M>()) {
            let mut dots = [[0; TILE_ROWS]; M];
            // The longer of the two comes last, so that no block is taken for a missing quad.
            for (quads, block) in activations.codes.as_chunks::<4>().0.iter().zip(&mut blocks) {
                for (codes, quads) in unpack(block).iter().zip(quads) {
                    for (dots, quad) in dots.iter_mut().zip(quads) {
                        add_quad(dots, codes, quad.to_le_bytes().map(u8::cast_signed));
                    }
                }
            }
            let factors = elementwise::to_f32(factors);
            for t in 0..M {
                let scale = (activations.scales[t], activations.offsets[t]);
                elementwise::add_group(&mut sums[t], &dots[t], &factors, scale);
            }
        }
    }
}

/// The quads of a block.
#[inline(always)]
fn unpack<const LINES: usize>(block: &[Line; LINES]) -> [[u8; LINE_BYTES]; 4] {
    let quads_per_line = 4 / LINES;
    let (bits, mask) = (2 * LINES, u8::MAX >> (8 - 2 * LINES));
    std::array::from_fn(|quad| {
        let shift = quad % quads_per_line * bits;
        block[quad / quads_per_line].0.map(|byte| (byte >> shift) & mask)
    })
}

#[inline(always)]
fn add_quad(dots: &mut [i32; TILE_ROWS], codes: &[u8; LINE_BYTES], quad: [i8; 4]) {
    for (dot, codes) in dots.iter_mut().zip(codes.as_chunks::<4>().0) {
        for (code, a) in codes.iter().zip(quad) {
            *dot += i32::from(*code) * i32::from(a);
        }
    }
}

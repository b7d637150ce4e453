//! A quantized matrix in the order in which the kernel reads it.
//!
//! Rows (outputs) come in tiles of [`TILE_ROWS`], columns (inputs) in pairs. A pair of columns of one
//! tile is 32 codes: code `c` belongs to row `c / 2` of the tile and column `c % 2` of the pair. It is
//! stored in `4 · bits` bytes as planes: code `c` sits in byte `c % (4 · bits)` at bit
//! `bits · (c / (4 · bits))`, so that a plane unpacks with one shift and mask. Pairs follow each other
//! within a tile, tiles within the matrix. Missing rows and a missing last column have code 0.
//!
//! Scales and minima are f16, `[tile, group, row of the tile]`; those of missing rows are 0.

use super::group::Group;
use half::f16;

/// Rows that one kernel step computes.
pub(super) const TILE_ROWS: usize = 16;

/// Codes of a tile's pair of columns.
const PAIR_CODES: usize = 2 * TILE_ROWS;

/// Codes of one pair of columns: four vectors of four rows, each row with its two columns.
pub(super) type Pair = [[i16; 8]; TILE_ROWS / 4];

/// What a row tile's scales or minima of one group are.
pub(super) type Factors = [[f32; 4]; TILE_ROWS / 4];

/// Sizes of a quantized matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) bits: u32,
    pub(super) group: usize,
}

/// A quantized matrix `[rows, columns]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrix {
    pub(super) layout: Layout,
    pub(super) codes: Vec<u8>,
    pub(super) scales: Vec<f16>,
    pub(super) minima: Vec<f16>,
}

impl Layout {
    pub(super) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    pub(super) fn pairs(&self) -> usize {
        self.columns.div_ceil(2)
    }

    pub(super) fn groups(&self) -> usize {
        self.columns.div_ceil(self.group)
    }

    fn pair_bytes(&self) -> usize {
        PAIR_CODES * self.bits as usize / 8
    }

    pub(super) fn code_bytes(&self) -> usize {
        self.tiles() * self.pairs() * self.pair_bytes()
    }

    /// Scales, and as many minima.
    pub(super) fn factors(&self) -> usize {
        self.tiles() * self.groups() * TILE_ROWS
    }

    /// Bytes of codes, scales and minima.
    pub(super) fn bytes(&self) -> usize {
        self.code_bytes() + 4 * self.factors()
    }

    /// Byte and shift of a weight's code.
    fn place(&self, row: usize, column: usize) -> (usize, u32) {
        let code = row % TILE_ROWS * 2 + column % 2;
        let pair = row / TILE_ROWS * self.pairs() + column / 2;
        let (plane, byte) = (code / self.pair_bytes(), code % self.pair_bytes());
        let shift = self.bits * u32::try_from(plane).expect("at most four planes");
        (pair * self.pair_bytes() + byte, shift)
    }

    fn factor(&self, row: usize, group: usize) -> usize {
        (row / TILE_ROWS * self.groups() + group) * TILE_ROWS + row % TILE_ROWS
    }

    pub(super) fn max_code(&self) -> u8 {
        u8::try_from((1_u32 << self.bits) - 1).expect("codes have at most 8 bits")
    }
}

impl Matrix {
    /// Quantizes row-major weights, group by group.
    pub(super) fn quantize(weights: &[f32], layout: Layout) -> Self {
        assert_eq!(weights.len(), layout.rows * layout.columns, "weights are [rows, columns]");
        let mut codes = vec![0; layout.code_bytes()];
        let mut scales = vec![f16::ZERO; layout.factors()];
        let mut minima = scales.clone();
        for (row, weights) in weights.chunks_exact(layout.columns).enumerate() {
            for (g, weights) in weights.chunks(layout.group).enumerate() {
                let group = Group::fit(weights, layout.max_code());
                scales[layout.factor(row, g)] = group.scale;
                minima[layout.factor(row, g)] = group.minimum;
                for i in 0..weights.len() {
                    let (byte, shift) = layout.place(row, g * layout.group + i);
                    codes[byte] |= group.code(i) << shift;
                }
            }
        }
        Self { layout, codes, scales, minima }
    }

    /// The code of one weight.
    pub(super) fn code(&self, row: usize, column: usize) -> u8 {
        let (byte, shift) = self.layout.place(row, column);
        (self.codes[byte] >> shift) & self.layout.max_code()
    }

    /// Scale and minimum of one weight.
    pub(super) fn scale_and_minimum(&self, row: usize, column: usize) -> (f16, f16) {
        let factor = self.layout.factor(row, column / self.layout.group);
        (self.scales[factor], self.minima[factor])
    }

    /// Decodes the codes of one row tile into `pairs`.
    pub(super) fn unpack_tile(&self, tile: usize, pairs: &mut [Pair]) {
        let bytes = pairs.len() * self.layout.pair_bytes();
        let codes = &self.codes[tile * bytes..(tile + 1) * bytes];
        match self.layout.bits {
            2 => unpack::<2, 8>(codes, pairs),
            4 => unpack::<4, 16>(codes, pairs),
            8 => unpack::<8, 32>(codes, pairs),
            bits => unreachable!("no layout has {bits}-bit codes"),
        }
    }

    /// Scales and minima of one row tile and all its groups.
    pub(super) fn tile_factors(&self, tile: usize) -> impl Iterator<Item = (Factors, Factors)> {
        let range =
            tile * self.layout.groups() * TILE_ROWS..(tile + 1) * self.layout.groups() * TILE_ROWS;
        let lanes = |factors: &[f16]| -> Factors {
            std::array::from_fn(|v| std::array::from_fn(|lane| factors[4 * v + lane].to_f32()))
        };
        let scales = self.scales[range.clone()].chunks_exact(TILE_ROWS);
        let minima = self.minima[range].chunks_exact(TILE_ROWS);
        scales.zip(minima).map(move |(s, m)| (lanes(s), lanes(m)))
    }
}

fn unpack<const BITS: usize, const BYTES: usize>(codes: &[u8], pairs: &mut [Pair]) {
    let (codes, rest) = codes.as_chunks::<BYTES>();
    assert!(rest.is_empty() && codes.len() == pairs.len(), "a tile has whole pairs of columns");
    for (bytes, pair) in codes.iter().zip(pairs) {
        let pair = pair.as_flattened_mut();
        for (plane, out) in pair.chunks_exact_mut(BYTES).enumerate() {
            for (out, byte) in out.iter_mut().zip(bytes) {
                *out = i16::from((byte >> (BITS * plane)) & (u8::MAX >> (8 - BITS)));
            }
        }
    }
}

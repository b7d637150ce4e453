//! A quantized matrix in the order in which the kernel reads it.
//!
//! Rows (outputs) come in tiles of [`TILE_ROWS`], columns (inputs) in pairs. A pair of columns of one
//! tile is 32 codes: code `c` belongs to row `c % 16` of the tile and column `c / 16` of the pair. It is
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

/// One value for each row of a tile.
pub(super) type Lanes = [f32; TILE_ROWS];

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
        let code = column % 2 * TILE_ROWS + row % TILE_ROWS;
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

    /// Replaces `weights` by the columns of one row tile, in f32.
    pub(super) fn decode_tile(&self, tile: usize, weights: &mut Vec<Lanes>) {
        let Layout { columns, bits, .. } = self.layout;
        weights.resize(2 * self.layout.pairs(), [0.0; TILE_ROWS]);
        match bits {
            2 => self.decode::<2, 8>(tile, weights),
            4 => self.decode::<4, 16>(tile, weights),
            8 => self.decode::<8, 32>(tile, weights),
            _ => unreachable!("no layout has {bits}-bit codes"),
        }
        weights.truncate(columns);
    }

    fn decode<const BITS: usize, const BYTES: usize>(&self, tile: usize, weights: &mut [Lanes]) {
        let Layout { group, .. } = self.layout;
        let (pairs, groups) = (self.layout.pairs(), self.layout.groups());
        let codes = self.codes.as_chunks::<BYTES>().0[tile * pairs..].chunks(group / 2);
        let factors = tile * groups..(tile + 1) * groups;
        let scales = &self.scales.as_chunks::<TILE_ROWS>().0[factors.clone()];
        let minima = &self.minima.as_chunks::<TILE_ROWS>().0[factors];
        let factors = scales.iter().zip(minima);
        for ((weights, codes), (scales, minima)) in
            weights.chunks_mut(group).zip(codes).zip(factors)
        {
            let (scales, minima) = (scales.map(f16::to_f32), minima.map(f16::to_f32));
            for (columns, bytes) in weights.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                let codes = unpack::<BITS, BYTES>(bytes);
                for (column, codes) in columns.iter_mut().zip(codes.as_chunks::<TILE_ROWS>().0) {
                    for lane in 0..TILE_ROWS {
                        column[lane] = scales[lane] * f32::from(codes[lane]) + minima[lane];
                    }
                }
            }
        }
    }
}

/// The codes of one pair of columns.
#[inline(always)]
fn unpack<const BITS: usize, const BYTES: usize>(bytes: &[u8; BYTES]) -> [u8; PAIR_CODES] {
    let mut codes = [0; PAIR_CODES];
    for (plane, codes) in codes.as_chunks_mut::<BYTES>().0.iter_mut().enumerate() {
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = (byte >> (BITS * plane)) & (u8::MAX >> (8 - BITS));
        }
    }
    codes
}

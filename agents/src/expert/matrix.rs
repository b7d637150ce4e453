//! A quantized matrix in the order in which the kernels read it.
//!
//! Rows (outputs) come in tiles of [`TILE_ROWS`], columns (inputs) in groups, and groups in blocks of
//! [`BLOCK_COLUMNS`]. A matrix is its tiles one after another; a tile is its groups; a group is a
//! line of 32 f16 scales, a line of 32 f16 minima, one for each row, and its blocks. So a product
//! reads one stream of lines of 64 bytes from end to end.
//!
//! A block is two halves of 16 rows. A half is eight quads, each of 16 rows × 4 columns, and takes as
//! many lines as a code has bits; lines of the halves alternate. Byte `4 · row + column` of a line
//! carries bits of that code of several quads: at 2 bits, line `l` has quads `4l ..` from the lowest bits on; at 4 bits, quads
//! `2l` and `2l + 1`; at 8 bits, quad `l`. At 3 bits, line `l` has quad `l` in its bits 0 to 2 and
//! quad `3 + l` in bits 3 to 5; quads 6 and 7 have their upper two bits in bits 6 and 7 of lines 0
//! and 1, and their lowest bit in bit 6 and bit 7 of line 2. So quads unpack with one mask, without
//! a shift where the product may be a power of two too large.
//!
//! Missing rows and columns have code 0, missing rows factors of 0.

use super::group::Group;
use half::f16;

/// Rows of a tile: what one call of a kernel computes.
pub(super) const TILE_ROWS: usize = 32;

/// Rows of half a tile: of a line and of a vector.
pub(super) const LANES: usize = 16;

/// Columns of a block.
pub(super) const BLOCK_COLUMNS: usize = 32;

/// Fours of columns of a block.
pub(super) const BLOCK_QUADS: usize = BLOCK_COLUMNS / 4;

/// Lines of the scales and minima of a group.
pub(super) const FACTOR_LINES: usize = 2;

/// Bytes of a [`Line`].
pub(super) const LINE_BYTES: usize = 64;

/// One value for each row of half a tile.
pub(super) type Lanes = [f32; LANES];

/// Codes or factors, aligned to a cache line and a vector.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; LINE_BYTES]);

/// The codes of a block: each line of both halves of the rows.
pub(super) type Block<const BITS: usize> = [[Line; 2]; BITS];

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
    pub(super) lines: Vec<Line>,
}

/// Some bits of a code: `bits` of them, from the code's bit `of_code` on, in the bits of a byte of a
/// line from `of_byte` on.
struct Piece {
    line: usize,
    of_byte: u32,
    of_code: u32,
    bits: u32,
}

/// Where the code of a quad stands in the lines of half a block; there are one or two pieces.
fn pieces(bits: u32, quad: usize) -> impl Iterator<Item = Piece> {
    let whole = |line, of_byte| Piece { line, of_byte, of_code: 0, bits };
    let (first, second) = match (bits, quad) {
        (3, 0..3) => (whole(quad, 0), None),
        (3, 3..6) => (whole(quad - 3, 3), None),
        (3, _) => {
            let of_byte = if quad == 6 { 6 } else { 7 };
            let upper = Piece { line: quad - 6, of_byte: 6, of_code: 1, bits: 2 };
            (upper, Some(Piece { line: 2, of_byte, of_code: 0, bits: 1 }))
        }
        _ => {
            let at = bits * u32::try_from(quad).expect("a block has eight quads");
            (whole((at / 8) as usize, at % 8), None)
        }
    };
    std::iter::once(first).chain(second)
}

impl Piece {
    fn mask(&self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }
}

impl Layout {
    pub(super) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    pub(super) fn groups(&self) -> usize {
        groups(self.columns, self.group)
    }

    fn blocks(&self) -> usize {
        self.columns.div_ceil(BLOCK_COLUMNS)
    }

    /// Lines of the codes of a block.
    fn block_lines(&self) -> usize {
        2 * self.bits as usize
    }

    /// Lines of a group that is not the last.
    pub(super) fn group_lines(&self) -> usize {
        FACTOR_LINES + self.group / BLOCK_COLUMNS * self.block_lines()
    }

    /// Lines of a tile.
    pub(super) fn tile_lines(&self) -> usize {
        FACTOR_LINES * self.groups() + self.blocks() * self.block_lines()
    }

    pub(super) fn lines(&self) -> usize {
        self.tiles() * self.tile_lines()
    }

    /// Weights, without padding.
    pub(super) fn weights(&self) -> usize {
        self.rows * self.columns
    }

    /// Bytes of codes, scales and minima.
    pub(super) fn bytes(&self) -> usize {
        LINE_BYTES * self.lines()
    }

    /// The first line of a group of a row's tile.
    fn group_start(&self, row: usize, group: usize) -> usize {
        row / TILE_ROWS * self.tile_lines() + group * self.group_lines()
    }

    /// The first line of half a block, whose others are two apart, and the byte of a weight in them.
    fn place(&self, row: usize, column: usize) -> (usize, usize) {
        let block = column % self.group / BLOCK_COLUMNS;
        let half = row % TILE_ROWS / LANES;
        let start = self.group_start(row, column / self.group) + FACTOR_LINES;
        (start + block * self.block_lines() + half, row % LANES * 4 + column % 4)
    }

    pub(super) fn max_code(&self) -> u8 {
        u8::try_from((1_u32 << self.bits) - 1).expect("codes have at most 8 bits")
    }
}

impl Matrix {
    /// Quantizes row-major weights, group by group.
    pub(super) fn quantize(weights: &[f32], layout: Layout) -> Self {
        let Layout { rows, columns, group, .. } = layout;
        assert_eq!(weights.len(), rows * columns, "weights are [rows, columns]");
        Self::from_groups(layout, |row, g| {
            let row = &weights[row * columns..][..columns];
            let from = g * group;
            Group::fit(&row[from..columns.min(from + group)], layout.max_code())
        })
    }

    /// The matrix whose row `r` has the codes and factors of `group(r, g)` in its columns
    /// `g · layout.group ..`, for every row and group in ascending order.
    pub(super) fn from_groups(
        layout: Layout,
        mut group: impl FnMut(usize, usize) -> Group,
    ) -> Self {
        let mut lines = vec![Line([0; LINE_BYTES]); layout.lines()];
        for row in 0..layout.rows {
            for g in 0..layout.groups() {
                let group = group(row, g);
                let start = layout.group_start(row, g);
                set_factor(&mut lines[start], row, group.scale);
                set_factor(&mut lines[start + 1], row, group.minimum);
                let from = g * layout.group;
                for column in from..layout.columns.min(from + layout.group) {
                    let code = group.code(column - from);
                    assert!(code <= layout.max_code(), "codes have the width of their matrix");
                    let (line, byte) = layout.place(row, column);
                    for piece in pieces(layout.bits, column % BLOCK_COLUMNS / 4) {
                        let bits = (code >> piece.of_code) & piece.mask();
                        lines[line + 2 * piece.line].0[byte] |= bits << piece.of_byte;
                    }
                }
            }
        }
        Self { layout, lines }
    }

    /// The lines of a tile.
    ///
    /// # Panics
    /// When there is no such tile.
    pub(super) fn tile(&self, tile: usize) -> &[Line] {
        let lines = self.layout.tile_lines();
        &self.lines[tile * lines..][..lines]
    }

    /// The lines of a tile, or none beyond the last.
    pub(super) fn tile_if_any(&self, tile: usize) -> &[Line] {
        if tile < self.layout.tiles() { self.tile(tile) } else { &[] }
    }

    /// The lines of scales and minima, in their order.
    pub(super) fn factor_lines(&self) -> impl Iterator<Item = &Line> {
        let tiles = self.lines.chunks_exact(self.layout.tile_lines());
        let groups = tiles.flat_map(|tile| tile.chunks(self.layout.group_lines()));
        groups.flat_map(|group| &group[..FACTOR_LINES])
    }

    /// The code of one weight.
    pub(super) fn code(&self, row: usize, column: usize) -> u8 {
        let (line, byte) = self.layout.place(row, column);
        pieces(self.layout.bits, column % BLOCK_COLUMNS / 4).fold(0, |code, piece| {
            let bits = self.lines[line + 2 * piece.line].0[byte] >> piece.of_byte;
            code | (bits & piece.mask()) << piece.of_code
        })
    }

    /// Scale and minimum of one weight.
    pub(super) fn scale_and_minimum(&self, row: usize, column: usize) -> (f16, f16) {
        let start = self.layout.group_start(row, column / self.layout.group);
        let factor = |line: usize| self.lines[line].factor(row % TILE_ROWS);
        (factor(start), factor(start + 1))
    }
}

impl Line {
    /// Factor `row` of a line of them.
    pub(super) fn factor(&self, row: usize) -> f16 {
        f16::from_le_bytes([self.0[2 * row], self.0[2 * row + 1]])
    }
}

/// Groups of a row. Their lengths are powers of two, so that small products do not wait for a division.
pub(super) fn groups(columns: usize, group: usize) -> usize {
    debug_assert!(group.is_power_of_two(), "see `GROUP_LENGTHS`");
    (columns + group - 1) >> group.trailing_zeros()
}

fn set_factor(line: &mut Line, row: usize, factor: f16) {
    let row = row % TILE_ROWS;
    line.0[2 * row..2 * row + 2].copy_from_slice(&factor.to_le_bytes());
}

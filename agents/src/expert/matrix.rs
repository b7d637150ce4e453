//! A quantized matrix in the order in which the kernels read it.
//!
//! Rows (outputs) come in tiles of [`TILE_ROWS`], columns (inputs) in blocks of [`BLOCK_COLUMNS`]. A
//! block of one tile is four quads, each of 16 rows × 4 columns: code `4 · row + column` of a quad.
//! Its codes fill `bits / 2` lines of 64 bytes. A line holds `8 / bits` quads of the block one after
//! another, the next in higher bits: byte `i` carries code `i` of each, so that a quad unpacks with
//! one shift and mask to the 64 bytes that an integer product takes. Blocks follow each other within
//! a tile, tiles within the matrix. Missing rows and columns have code 0.
//!
//! Scales and minima are f16, 16 scales and then 16 minima for each tile and group; those of missing
//! rows are 0.

use super::group::Group;
use half::f16;

/// Rows that one kernel step computes.
pub(super) const TILE_ROWS: usize = 16;

/// Columns whose codes fill whole lines at every width.
pub(super) const BLOCK_COLUMNS: usize = 16;

/// Bytes of a [`Line`] and of [`Factors`].
pub(super) const LINE_BYTES: usize = 64;

/// One value for each row of a tile.
pub(super) type Lanes = [f32; TILE_ROWS];

/// Codes, aligned to a cache line and a vector.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; LINE_BYTES]);

/// What turns the codes of a group into weights, for each row of a tile.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Factors {
    pub(super) scales: [f16; TILE_ROWS],
    pub(super) minima: [f16; TILE_ROWS],
}

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
    pub(super) factors: Vec<Factors>,
}

/// One tile of rows.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) lines: &'a [Line],
    pub(super) factors: &'a [Factors],
}

impl Layout {
    pub(super) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    pub(super) fn groups(&self) -> usize {
        self.columns.div_ceil(self.group)
    }

    /// Columns with the padding to whole blocks.
    pub(super) fn padded_columns(&self) -> usize {
        self.columns.next_multiple_of(BLOCK_COLUMNS)
    }

    /// Lines of a block.
    fn block_lines(&self) -> usize {
        self.bits as usize / 2
    }

    fn tile_lines(&self) -> usize {
        self.padded_columns() / BLOCK_COLUMNS * self.block_lines()
    }

    pub(super) fn lines(&self) -> usize {
        self.tiles() * self.tile_lines()
    }

    pub(super) fn factors(&self) -> usize {
        self.tiles() * self.groups()
    }

    /// Bytes of codes, scales and minima.
    pub(super) fn bytes(&self) -> usize {
        LINE_BYTES * (self.lines() + self.factors())
    }

    /// Line, byte and shift of a weight's code.
    fn place(&self, row: usize, column: usize) -> (usize, usize, u32) {
        let quad = column % BLOCK_COLUMNS / 4;
        let quads_per_line = 4 / self.block_lines();
        let block = column / BLOCK_COLUMNS * self.block_lines();
        let line = row / TILE_ROWS * self.tile_lines() + block + quad / quads_per_line;
        let shift = self.bits * u32::try_from(quad % quads_per_line).expect("at most four quads");
        (line, row % TILE_ROWS * 4 + column % 4, shift)
    }

    fn factor(&self, row: usize, group: usize) -> (usize, usize) {
        (row / TILE_ROWS * self.groups() + group, row % TILE_ROWS)
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
        let none = Factors { scales: [f16::ZERO; TILE_ROWS], minima: [f16::ZERO; TILE_ROWS] };
        let mut factors = vec![none; layout.factors()];
        for row in 0..layout.rows {
            for g in 0..layout.groups() {
                let (at, lane) = layout.factor(row, g);
                let group = group(row, g);
                factors[at].scales[lane] = group.scale;
                factors[at].minima[lane] = group.minimum;
                let from = g * layout.group;
                for column in from..layout.columns.min(from + layout.group) {
                    let (line, byte, shift) = layout.place(row, column);
                    lines[line].0[byte] |= group.code(column - from) << shift;
                }
            }
        }
        Self { layout, lines, factors }
    }

    /// Lines and factors of a tile; none of a tile beyond the last.
    pub(super) fn tile(&self, tile: usize) -> Option<Tile<'_>> {
        let (lines, groups) = (self.layout.tile_lines(), self.layout.groups());
        (tile < self.layout.tiles()).then(|| Tile {
            lines: &self.lines[tile * lines..][..lines],
            factors: &self.factors[tile * groups..][..groups],
        })
    }

    /// The code of one weight.
    pub(super) fn code(&self, row: usize, column: usize) -> u8 {
        let (line, byte, shift) = self.layout.place(row, column);
        (self.lines[line].0[byte] >> shift) & self.layout.max_code()
    }

    /// Scale and minimum of one weight.
    pub(super) fn scale_and_minimum(&self, row: usize, column: usize) -> (f16, f16) {
        let (at, lane) = self.layout.factor(row, column / self.layout.group);
        (self.factors[at].scales[lane], self.factors[at].minima[lane])
    }
}

//! A quantized matrix at rest: what quantizers give, files hold and kernels are packed from.
//!
//! The encoding, version 1, little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, `NFQM` |
//! | 4 | 2 | version, 1 |
//! | 6 | 1 | bits of a code, 1 to 8 |
//! | 7 | 1 | 0 |
//! | 8 | 4 | rows |
//! | 12 | 4 | columns |
//! | 16 | 4 | columns that share a scale and a minimum |
//! | 20 | | for each row: f16 scales, f16 minima, codes |
//!
//! Codes fill bytes from the lowest bit, each row a whole number of bytes. A weight is
//! `scale · code + minimum`.

use super::Format;
use crate::expert::{Group, MAX_GROUP};
use half::f16;
use rayon::prelude::*;

/// Codes with a scale and a minimum per group of columns.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedMatrix {
    rows: usize,
    columns: usize,
    format: Format,
    /// `[rows, columns]`, one a byte.
    codes: Vec<u8>,
    /// Scale and minimum, `[rows, groups]`.
    factors: Factors,
}

type Factors = Vec<(f16, f16)>;

/// Why bytes are no matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    /// Another kind of data.
    #[error("these bytes are no quantized matrix: they do not begin with `NFQM`")]
    Magic,
    /// An encoding from a later release.
    #[error("the matrix has version {0}, this release reads version {VERSION}")]
    Version(u16),
    /// A field that no matrix has.
    #[error("the matrix's {field} is {value}, which no matrix has")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// Another length than the header says.
    #[error("the header describes {expected} bytes, these are {actual}")]
    Length {
        /// Bytes described, saturated.
        expected: u64,
        /// Bytes given.
        actual: usize,
    },
    /// A scale or minimum that is NaN or infinite.
    #[error("a scale or minimum of row {0} is not finite")]
    NotFinite(usize),
}

const MAGIC: [u8; 4] = *b"NFQM";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 20;

impl QuantizedMatrix {
    /// A matrix whose row `r` has the codes and factors of `group(r, c)` from column `c` on, for
    /// every row and the first column of every group. Rows run on the current rayon pool.
    #[must_use]
    pub fn from_groups(
        (rows, columns): (usize, usize),
        format: Format,
        group: impl Fn(usize, usize) -> Group + Sync,
    ) -> Self {
        assert!((1..=MAX_GROUP).contains(&format.group), "groups have 1 to {MAX_GROUP} columns");
        let row = |row: usize| -> (Vec<u8>, Factors) {
            let starts = (0..columns).step_by(format.group);
            let groups: Vec<Group> = starts.map(|from| group(row, from)).collect();
            let code = |column: usize| groups[column / format.group].code(column % format.group);
            let codes: Vec<u8> = (0..columns).map(code).collect();
            (codes, groups.iter().map(|g| (g.scale, g.minimum)).collect())
        };
        let all: Vec<(Vec<u8>, Factors)> = (0..rows).into_par_iter().map(row).collect();
        let (mut codes, mut factors) = (Vec::with_capacity(rows * columns), Vec::new());
        for (row_codes, row_factors) in all {
            codes.extend(row_codes);
            factors.extend(row_factors);
        }
        Self { rows, columns, format, codes, factors }
    }

    /// Rows (outputs) and columns (inputs).
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Width of codes and length of groups.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of codes, scales and minima: [`Format::bytes`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.format.bytes(self.rows, self.columns)
    }

    /// One group of one row, as kernels are packed from it.
    #[must_use]
    pub fn group(&self, row: usize, group: usize) -> Group {
        let (scale, minimum) = self.factors[row * self.groups() + group];
        let from = group * self.format.group;
        let to = self.columns.min(from + self.format.group);
        Group::with_codes(scale, minimum, &self.codes[row * self.columns..][from..to])
    }

    /// The weights that the codes stand for, `[rows, columns]`.
    #[must_use]
    pub fn weights(&self) -> Vec<f32> {
        let mut weights = Vec::with_capacity(self.codes.len());
        let rows = self.codes.chunks_exact(self.columns).zip(self.factors.chunks(self.groups()));
        for (codes, factors) in rows {
            for (codes, (scale, minimum)) in codes.chunks(self.format.group).zip(factors) {
                let (scale, minimum) = (scale.to_f32(), minimum.to_f32());
                weights.extend(codes.iter().map(|code| scale * f32::from(*code) + minimum));
            }
        }
        weights
    }

    fn groups(&self) -> usize {
        self.columns.div_ceil(self.format.group)
    }

    /// The documented encoding.
    ///
    /// # Panics
    /// When a size does not fit 32 bits.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let word = |n: usize| u32::try_from(n).expect("sizes fit 32 bits").to_le_bytes();
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let bits = u8::try_from(self.format.bits).expect("at most 8");
        bytes.extend_from_slice(&[bits, 0]);
        for size in [self.rows, self.columns, self.format.group] {
            bytes.extend_from_slice(&word(size));
        }
        let rows = self.codes.chunks_exact(self.columns).zip(self.factors.chunks(self.groups()));
        for (codes, factors) in rows {
            bytes.extend(factors.iter().flat_map(|(scale, _)| scale.to_le_bytes()));
            bytes.extend(factors.iter().flat_map(|(_, minimum)| minimum.to_le_bytes()));
            pack(codes, self.format.bits, &mut bytes);
        }
        bytes
    }

    /// Rows, columns and format of an encoding, whose length is checked.
    ///
    /// # Errors
    /// When the header or the length is wrong.
    pub fn read_header(bytes: &[u8]) -> Result<((usize, usize), Format), EncodingError> {
        let header: &[u8; HEADER_BYTES] =
            bytes.first_chunk().filter(|h| h[..4] == MAGIC).ok_or(EncodingError::Magic)?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let version = u16::from_le_bytes([header[4], header[5]]);
        if version != VERSION {
            return Err(EncodingError::Version(version));
        }
        let (bits, reserved) = (u32::from(header[6]), u32::from(header[7]));
        let [rows, columns, group] = [8, 12, 16].map(word);
        let wrong = |field, value| Err(EncodingError::Field { field, value });
        match (bits, reserved, rows, columns, group as usize) {
            (0 | 9.., ..) => wrong("bits", bits),
            (_, 1.., ..) => wrong("reserved byte", reserved),
            (_, _, 0, ..) => wrong("rows", rows),
            (_, _, _, 0, _) => wrong("columns", columns),
            (.., group) if !(1..=MAX_GROUP).contains(&group) => wrong("group", word(16)),
            _ => {
                let columns_u64 = u64::from(columns);
                let codes = (columns_u64 * u64::from(bits)).div_ceil(8);
                let row = codes + 4 * columns_u64.div_ceil(u64::from(group));
                let expected = u64::from(rows).saturating_mul(row) + HEADER_BYTES as u64;
                if expected != bytes.len() as u64 {
                    return Err(EncodingError::Length { expected, actual: bytes.len() });
                }
                let format = Format { bits, group: group as usize };
                Ok(((rows as usize, columns as usize), format))
            }
        }
    }

    /// Decodes [`Self::to_bytes`]. Allocates nothing before the length is known to be right.
    ///
    /// # Errors
    /// When the header, the length or a factor is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EncodingError> {
        let ((rows, columns), format) = Self::read_header(bytes)?;
        let groups = columns.div_ceil(format.group);
        let row_bytes = (columns * format.bits as usize).div_ceil(8) + 4 * groups;
        let mut codes = Vec::with_capacity(rows * columns);
        let mut factors = Vec::with_capacity(rows * groups);
        for (row, bytes) in bytes[HEADER_BYTES..].chunks_exact(row_bytes).enumerate() {
            let (halves, _) = bytes[..4 * groups].as_chunks::<2>();
            let value = |at: usize| f16::from_le_bytes(halves[at]);
            for group in 0..groups {
                let (scale, minimum) = (value(group), value(groups + group));
                if !(scale.is_finite() && minimum.is_finite()) {
                    return Err(EncodingError::NotFinite(row));
                }
                factors.push((scale, minimum));
            }
            unpack(&bytes[4 * groups..], format.bits, columns, &mut codes);
        }
        Ok(Self { rows, columns, format, codes, factors })
    }
}

/// Appends codes, the first in the lowest bits, to a whole number of bytes.
fn pack(codes: &[u8], bits: u32, bytes: &mut Vec<u8>) {
    let (mut buffer, mut filled) = (0_u32, 0);
    for code in codes {
        buffer |= u32::from(*code) << filled;
        filled += bits;
        while filled >= 8 {
            bytes.push(buffer.to_le_bytes()[0]);
            buffer >>= 8;
            filled -= 8;
        }
    }
    if filled > 0 {
        bytes.push(buffer.to_le_bytes()[0]);
    }
}

fn unpack(bytes: &[u8], bits: u32, count: usize, codes: &mut Vec<u8>) {
    let (mut buffer, mut filled, mut bytes) = (0_u32, 0, bytes.iter());
    for _ in 0..count {
        if filled < bits {
            buffer |= u32::from(*bytes.next().expect("as many bytes as the codes need")) << filled;
            filled += 8;
        }
        codes.push(buffer.to_le_bytes()[0] & (u8::MAX >> (8 - bits)));
        buffer >>= bits;
        filled -= bits;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, nearest};
    use super::{EncodingError, QuantizedMatrix};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_encoded_matrix_reads_back_with_every_width_and_ragged_size(
            bits in 1_u32..=8, rows in 1_usize..6, columns in 1_usize..70, group in 1_usize..70,
            seed in 0_usize..1000,
        ) {
            let at = |i: usize| ((i.wrapping_mul(2_654_435_761) ^ seed) % 1000) as f32 / 500.0 - 1.0;
            let weights: Vec<f32> = (0..rows * columns).map(at).collect();
            let format = Format { bits, group };
            let matrix = nearest(&weights, &vec![1.0; columns], format);
            let bytes = matrix.to_bytes();
            prop_assert_eq!(bytes.len() as u64, matrix.bytes() + 20);
            prop_assert_eq!(&QuantizedMatrix::from_bytes(&bytes), &Ok(matrix));
            let short = QuantizedMatrix::from_bytes(&bytes[..bytes.len() - 1]);
            let is_length = matches!(short, Err(EncodingError::Length { .. }));
            prop_assert!(is_length);
        }

        #[test]
        fn bytes_of_any_kind_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
            let mut bytes = bytes;
            if magic && bytes.len() > 8 {
                bytes[..8].copy_from_slice(b"NFQM\x01\x00\x03\x00");
            }
            let _ = QuantizedMatrix::from_bytes(&bytes);
        }
    }
}

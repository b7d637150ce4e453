//! Weight quantizers: codes, scales and minima for a matrix, chosen for the inputs that it meets.
//!
//! All of them give the same thing, a [`QuantizedMatrix`]; they differ in what they are told.
//! [`nearest`] is told nothing but how much each input counts; [`gptq()`] is told the inputs' second
//! moments and lets later weights make up for the rounding of earlier ones.

mod gptq;
mod matrix;
mod moments;
mod packed;

pub use gptq::{Gptq, gptq};
pub use matrix::{EncodingError, QuantizedMatrix};
pub use moments::InputMoments;
pub use packed::{FormatError, expert};

use crate::expert::Group;

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of a code, 1 to 8.
    pub bits: u32,
    /// Inputs that share a scale and a minimum, 1 to [`crate::expert::MAX_GROUP`].
    pub group: usize,
}

impl Format {
    /// Bytes of a matrix: codes, packed row by row to whole bytes, and two f16 a group.
    #[must_use]
    pub fn bytes(self, rows: usize, columns: usize) -> u64 {
        let codes = (columns * self.bits as usize).div_ceil(8);
        (rows * (codes + 4 * columns.div_ceil(self.group))) as u64
    }

    fn max_code(self) -> u8 {
        u8::try_from((1_u32 << self.bits) - 1).expect("codes have at most 8 bits")
    }
}

/// Rounds every group by itself to the factors of least squared error, weighted by `importance`,
/// one value for each input, which does not have to be normed.
///
/// # Panics
/// When lengths do not match or a weight is not finite.
#[must_use]
pub fn nearest(weights: &[f32], importance: &[f64], format: Format) -> QuantizedMatrix {
    let columns = importance.len();
    assert!(columns > 0 && weights.len().is_multiple_of(columns), "weights are [rows, inputs]");
    let rows = weights.len() / columns;
    QuantizedMatrix::from_groups((rows, columns), format, |row, from| {
        let to = columns.min(from + format.group);
        let weights = &weights[row * columns..][from..to];
        Group::fit_weighted(weights, &importance[from..to], format.max_code())
    })
}

//! Matrices at rest, packed into an expert that computes from their codes.

use super::{Format, QuantizedMatrix};
use crate::expert::{BitWidth, Expert, ExpertShape, GROUP_LENGTHS};

/// Why matrices are no expert. `part` is `gate`, `up` or `down`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Codes of a width that the kernels lack.
    #[error("codes of {part} have {bits} bits, experts are computed with 2, 3, 4 or 8")]
    Bits {
        /// The matrix.
        part: &'static str,
        /// Bits of its codes.
        bits: u32,
    },
    /// Groups of a length that the kernels lack.
    #[error(
        "groups of {part} have {group} weights, experts are computed with one of {GROUP_LENGTHS:?}"
    )]
    Group {
        /// The matrix.
        part: &'static str,
        /// Weights that share a scale.
        group: usize,
    },
    /// A matrix of other sizes than the expert's.
    #[error("{part} has rows and columns {actual:?}, the expert's are {expected:?}")]
    Sizes {
        /// The matrix.
        part: &'static str,
        /// Rows and columns of the expert's.
        expected: (usize, usize),
        /// Its own.
        actual: (usize, usize),
    },
}

/// The expert whose gate and up, `[hidden, width]`, and down, `[width, hidden]`, are `parts`: it has
/// their codes, scales and minima as they are.
///
/// # Errors
/// When a part has other sizes, or a format that experts are not computed in.
///
/// # Panics
/// When a size of `shape` is 0.
pub fn expert(shape: ExpertShape, parts: [&QuantizedMatrix; 3]) -> Result<Expert, FormatError> {
    let ExpertShape { width, hidden } = shape;
    let [gate, up, down] = parts;
    let formats = [
        kernel_format("gate", gate, (hidden, width))?,
        kernel_format("up", up, (hidden, width))?,
        kernel_format("down", down, (width, hidden))?,
    ];
    Ok(Expert::from_groups(shape, formats, |part, row, group| parts[part].group(row, group)))
}

fn kernel_format(
    part: &'static str,
    matrix: &QuantizedMatrix,
    expected: (usize, usize),
) -> Result<(BitWidth, usize), FormatError> {
    let (Format { bits, group }, actual) = (matrix.format(), matrix.shape());
    if actual != expected {
        return Err(FormatError::Sizes { part, expected, actual });
    }
    let width = BitWidth::from_code_bits(bits).ok_or(FormatError::Bits { part, bits })?;
    if !GROUP_LENGTHS.contains(&group) {
        return Err(FormatError::Group { part, group });
    }
    Ok((width, group))
}

#[cfg(test)]
mod tests {
    use super::super::{Format, QuantizedMatrix, nearest};
    use super::{FormatError, expert};
    use crate::expert::{BitWidth, ExpertShape, GROUP_LENGTHS, reference};
    use crate::rng::stream;
    use rand::RngExt as _;

    const SHAPE: ExpertShape = ExpertShape { width: 300, hidden: 45 };

    fn matrix((rows, columns): (usize, usize), bits: u32, group: usize) -> QuantizedMatrix {
        let mut rng = stream(4, "matrix");
        let weights: Vec<f32> = (0..rows * columns).map(|_| rng.random::<f32>() - 0.5).collect();
        nearest(&weights, &vec![1.0; columns], Format { bits, group })
    }

    /// Gate, up and down.
    fn parts(formats: [(u32, usize); 3]) -> [QuantizedMatrix; 3] {
        let sizes = [(45, 300), (45, 300), (300, 45)];
        [0, 1, 2].map(|i| matrix(sizes[i], formats[i].0, formats[i].1))
    }

    #[test]
    fn a_packed_expert_has_the_weights_of_its_matrices() {
        let mut formats: Vec<[(u32, usize); 3]> = Vec::new();
        for bits in BitWidth::QUANTIZED {
            formats.extend(GROUP_LENGTHS.map(|group| [(bits.code_bits(), group); 3]));
        }
        formats.extend([[(2, 256), (3, 32), (8, 128)], [(3, 128), (3, 128), (4, 256)]]);
        for formats in formats {
            let [gate, up, down] = parts(formats);
            let expert = expert(SHAPE, [&gate, &up, &down]).expect("a format of the kernels");
            assert_eq!(expert.widths().map(BitWidth::code_bits), formats.map(|(bits, _)| bits));
            assert_eq!(expert.groups(), Some(formats.map(|(_, group)| group)));
            for (packed, matrix) in reference::weights(&expert).iter().zip([gate, up, down]) {
                #[expect(clippy::cast_possible_truncation, reason = "rounded as the others are")]
                let packed: Vec<f32> = packed.iter().map(|w| *w as f32).collect();
                assert_eq!(packed, matrix.weights(), "{formats:?}");
            }
        }
    }

    #[test]
    fn a_part_that_no_kernel_computes_is_named_with_the_reason() {
        let good = || parts([(4, 64); 3]);
        for (at, wrong, message) in [
            (
                0,
                matrix((45, 300), 5, 64),
                "codes of gate have 5 bits, experts are computed with 2, 3, 4 or 8",
            ),
            (
                1,
                matrix((45, 300), 4, 48),
                "groups of up have 48 weights, experts are computed with one of [32, 64, 128, 256]",
            ),
            (
                2,
                matrix((45, 300), 4, 64),
                "down has rows and columns (45, 300), the expert's are (300, 45)",
            ),
        ] {
            let mut parts = good();
            parts[at] = wrong;
            let error = expert(SHAPE, parts.each_ref()).expect_err("one part is wrong");
            assert_eq!(error.to_string(), message);
        }
        let [gate, up, down] = parts([(1, 64), (8, 7), (4, 64)]);
        let error = expert(SHAPE, [&gate, &up, &down]).expect_err("two parts are wrong");
        assert_eq!(error, FormatError::Bits { part: "gate", bits: 1 });
    }
}

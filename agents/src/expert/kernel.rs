//! Products of quantized matrices with rows of activations.
//!
//! Weights are decoded to f32, one row tile at a time, and used for every token of the call.
//! Activations stay f32: 8-bit activations double the output's error at 8-bit weights, and without
//! instructions beyond the baseline integer products are no faster than these. Sixteen rows of the
//! matrix are the lanes of a vector and columns are added in ascending order, multiplication and
//! addition rounded apart. So a token's bits depend neither on the tokens beside it nor on how wide
//! the machine's vectors are.

use super::matrix::{Lanes, Matrix, TILE_ROWS};

/// Tokens that share one pass over a decoded tile. No part of the result's definition.
const TOKENS: usize = 2;

/// `out = x · wᵀ` for row-major `x` of `[m, w's columns]`; `out` is `[m, w's rows]`.
pub(super) fn product(x: &[f32], w: &Matrix, out: &mut [f32]) {
    let (rows, columns) = (w.layout.rows, w.layout.columns);
    assert_eq!(x.len() / columns * rows, out.len(), "out is [m, rows]");
    let mut weights = Vec::new();
    for tile in 0..w.layout.tiles() {
        w.decode_tile(tile, &mut weights);
        let first = tile * TILE_ROWS;
        let range = first..rows.min(first + TILE_ROWS);
        let blocks = x.chunks(TOKENS * columns).zip(out.chunks_mut(TOKENS * rows));
        for (x, out) in blocks {
            if x.len() == TOKENS * columns {
                let tokens = std::array::from_fn(|t| &x[t * columns..(t + 1) * columns]);
                let sums = tile_product::<TOKENS>(&weights, tokens);
                for (out, sums) in out.chunks_exact_mut(rows).zip(&sums) {
                    out[range.clone()].copy_from_slice(&sums[..range.len()]);
                }
            } else {
                for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(rows)) {
                    let [sums] = tile_product::<1>(&weights, [x]);
                    out[range.clone()].copy_from_slice(&sums[..range.len()]);
                }
            }
        }
    }
}

/// One decoded tile times `M` tokens.
#[inline(never)]
fn tile_product<const M: usize>(weights: &[Lanes], tokens: [&[f32]; M]) -> [Lanes; M] {
    let tokens = tokens.map(|token| &token[..weights.len()]);
    let mut sums = [[0.0; TILE_ROWS]; M];
    for (column, w) in weights.iter().enumerate() {
        for t in 0..M {
            let x = tokens[t][column];
            for lane in 0..TILE_ROWS {
                sums[t][lane] += w[lane] * x;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::product;
    use crate::expert::matrix::{Layout, Matrix};
    use crate::rng::stream;
    use rand::RngExt as _;

    fn random(name: &str, len: usize) -> Vec<f32> {
        let mut rng = stream(5, name);
        (0..len).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
    }

    #[test]
    fn the_vectorised_product_has_the_bits_of_the_scalar_one() {
        for bits in [2, 4, 8] {
            for group in [32, 64] {
                for (m, rows, columns) in
                    [(1, 16, 64), (3, 64, 256), (5, 7, 33), (2, 17, 1), (9, 1, 130)]
                {
                    let layout = Layout { rows, columns, bits, group };
                    let w = Matrix::quantize(&random("weights", rows * columns), layout);
                    let x = random("x", m * columns);
                    let mut out = vec![0.0; m * rows];
                    product(&x, &w, &mut out);
                    for (i, value) in out.iter().enumerate() {
                        let (row, token) = (i % rows, i / rows);
                        let mut scalar = 0.0_f32;
                        for k in 0..columns {
                            let (scale, minimum) = w.scale_and_minimum(row, k);
                            let code = f32::from(w.code(row, k));
                            let weight = scale.to_f32() * code + minimum.to_f32();
                            scalar += weight * x[token * columns + k];
                        }
                        assert_eq!(value.to_bits(), scalar.to_bits(), "{layout:?} at {i}");
                    }
                }
            }
        }
    }
}

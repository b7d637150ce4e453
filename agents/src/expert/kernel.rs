//! Products of quantized matrices with rows of activations.
//!
//! Activations are quantized per group to 16-bit integers. With s and m the scale and minimum of a
//! weight group, q its codes, a the activation codes and t their scale, a group adds
//! `s·t·Σ(q·a) + m·t·Σa`: the sums are exact integers, the rest is f32 in ascending group order. Each
//! token goes through the same operations alone or among others, so its bits never depend on them.
//!
//! 16 bits instead of the usual 8 cost nothing here: the multiply-add of the baseline instruction
//! set takes 16-bit operands, and 64 · 255 · 32 767 fits 32 bits.

use super::matrix::{Factors, Matrix, Pair, TILE_ROWS};

/// The largest activation code.
pub(super) const ACTIVATION_MAX: f32 = 32_767.0;

/// Quantized rows of activations.
pub(super) struct Activations {
    /// Codes `[row, pair of columns]`, 0 beyond the last column.
    codes: Vec<[i16; 2]>,
    /// Scale and scaled sum of the codes, `[row, group]`.
    factors: Vec<[f32; 2]>,
    pairs: usize,
    groups: usize,
    /// Pairs of columns in a whole group.
    group_pairs: usize,
}

impl Activations {
    /// Quantizes row-major rows of `columns` values, each group by its largest magnitude.
    ///
    /// A group with a value that is not finite makes its row's products NaN. A group below 1e-30 is 0.
    pub(super) fn quantize(x: &[f32], columns: usize, group: usize) -> Self {
        let (pairs, groups) = (columns.div_ceil(2), columns.div_ceil(group));
        let rows = x.len() / columns;
        let mut codes = Vec::with_capacity(rows * pairs);
        let mut factors = Vec::with_capacity(rows * groups);
        for row in x.chunks_exact(columns) {
            for values in row.chunks(group) {
                factors.push(quantize_group(values, &mut codes));
            }
        }
        Self { codes, factors, pairs, groups, group_pairs: group / 2 }
    }
}

/// Appends a group's codes; returns its scale and scaled sum.
fn quantize_group(values: &[f32], codes: &mut Vec<[i16; 2]>) -> [f32; 2] {
    const SMALLEST: f32 = 1e-30;
    // As integers, magnitudes of floats order like the floats, and NaN is above infinity.
    let magnitude = |v: &f32| v.to_bits() & 0x7fff_ffff;
    let largest = f32::from_bits(values.iter().map(magnitude).fold(0, u32::max));
    let (scale, inverse) = if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest < SMALLEST {
        (0.0, 0.0)
    } else {
        (largest / ACTIVATION_MAX, ACTIVATION_MAX / largest)
    };
    let start = codes.len();
    let (whole, last) = values.as_chunks::<2>();
    codes.extend(whole.iter().map(|pair| pair.map(|v| nearest(v * inverse))));
    codes.extend(last.iter().map(|v| [nearest(v * inverse), 0]));
    let sum: i32 = codes[start..].iter().map(|&[a, b]| i32::from(a) + i32::from(b)).sum();
    [scale, scale * sum as f32]
}

/// The nearest integer of a number within the activation codes.
#[expect(clippy::cast_possible_truncation, reason = "the caller's values are within 16 bits")]
fn nearest(v: f32) -> i16 {
    // Adding 1.5 · 2^23 leaves the rounded value in the low bits, without a library call.
    const ROUNDER: f32 = 12_582_912.0;
    (v + ROUNDER).to_bits() as i16
}

/// `out = x · wᵀ`: `out` is `[x's rows, w's rows]`.
///
/// Each row tile is decoded once and used for every row of `x`.
pub(super) fn product(x: &Activations, w: &Matrix, out: &mut [f32]) {
    let (pairs, rows) = (x.pairs, w.layout.rows);
    assert!(pairs == w.layout.pairs() && x.group_pairs * 2 == w.layout.group, "groups agree");
    assert_eq!(out.len() * pairs, x.codes.len() * rows, "out is [m, rows]");
    let mut tile_codes = vec![Pair::default(); pairs];
    let mut tile_factors = Vec::with_capacity(x.groups);
    for tile in 0..w.layout.tiles() {
        w.unpack_tile(tile, &mut tile_codes);
        tile_factors.clear();
        tile_factors.extend(w.tile_factors(tile));
        let first = tile * TILE_ROWS;
        let count = TILE_ROWS.min(rows - first);
        let tokens = x.codes.chunks_exact(pairs).zip(x.factors.chunks_exact(x.groups));
        for (out, (codes, factors)) in out.chunks_exact_mut(rows).zip(tokens) {
            let lanes = tile_product(&tile_codes, &tile_factors, codes, factors, x.group_pairs);
            out[first..first + count].copy_from_slice(&lanes.as_flattened()[..count]);
        }
    }
}

/// One row tile times one token.
fn tile_product(
    weights: &[Pair],
    weight_factors: &[(Factors, Factors)],
    token: &[[i16; 2]],
    token_factors: &[[f32; 2]],
    group_pairs: usize,
) -> Factors {
    let mut out = Factors::default();
    let groups = weights.chunks(group_pairs).zip(token.chunks(group_pairs));
    let factors = weight_factors.iter().zip(token_factors);
    for ((weights, token), ((scales, minima), [scale, scaled_sum])) in groups.zip(factors) {
        let sums = group_sums(weights, token);
        for v in 0..out.len() {
            for lane in 0..4 {
                out[v][lane] += sums[v][lane] as f32 * (scales[v][lane] * scale)
                    + minima[v][lane] * scaled_sum;
            }
        }
    }
    out
}

/// The integer stage: Σ code · activation over one group, for each row of a tile.
///
/// Written so that four lanes become one vector: the compiler turns the pair of products and their
/// sum into multiply-adds of 16-bit operands. Nothing can wrap, since 64 · 255 · 32 767 fits; the
/// wrapping operations keep overflow checks, where they are on, out of the loop.
#[inline(always)]
fn group_sums(weights: &[Pair], token: &[[i16; 2]]) -> [[i32; 4]; TILE_ROWS / 4] {
    let mut sums = [[0_i32; 4]; TILE_ROWS / 4];
    for (weights, &[a, b]) in weights.iter().zip(token) {
        let (a, b) = (i32::from(a), i32::from(b));
        for (sums, w) in sums.iter_mut().zip(weights) {
            *sums = std::array::from_fn(|lane| {
                let products = (i32::from(w[2 * lane]) * a).wrapping_add(i32::from(w[2 * lane + 1]) * b);
                sums[lane].wrapping_add(products)
            });
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::{ACTIVATION_MAX, Activations, product};
    use crate::expert::matrix::{Layout, Matrix};
    use crate::rng::stream;
    use rand::RngExt as _;

    fn random(name: &str, len: usize) -> Vec<f32> {
        let mut rng = stream(5, name);
        (0..len).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
    }

    /// The product by definition, one weight at a time, integers in 64 bits.
    fn scalar_product(x: &Activations, w: &Matrix, row: usize, token: usize) -> f32 {
        let Layout { columns, group, .. } = w.layout;
        let mut out = 0.0_f32;
        for (g, start) in (0..columns).step_by(group).enumerate() {
            let sum: i64 = (start..columns.min(start + group))
                .map(|k| {
                    let a = x.codes[token * x.pairs + k / 2][k % 2];
                    i64::from(w.code(row, k)) * i64::from(a)
                })
                .sum();
            let sum = i32::try_from(sum).expect("a group's sum fits 32 bits") as f32;
            let (s, m) = w.scale_and_minimum(row, start);
            let [scale, scaled_sum] = x.factors[token * x.groups + g];
            out += sum * (s.to_f32() * scale) + m.to_f32() * scaled_sum;
        }
        out
    }

    #[test]
    fn the_vectorised_product_has_the_bits_of_the_scalar_one() {
        for bits in [2, 4, 8] {
            for group in [32, 64] {
                for (m, rows, columns) in [(1, 16, 64), (3, 64, 256), (5, 7, 33), (2, 17, 1), (9, 1, 130)] {
                    let layout = Layout { rows, columns, bits, group };
                    let w = Matrix::quantize(&random("weights", rows * columns), layout);
                    let x = Activations::quantize(&random("x", m * columns), columns, group);
                    let mut out = vec![0.0; m * rows];
                    product(&x, &w, &mut out);
                    for (i, value) in out.iter().enumerate() {
                        let scalar = scalar_product(&x, &w, i % rows, i / rows);
                        assert_eq!(value.to_bits(), scalar.to_bits(), "{layout:?} at {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn extreme_codes_do_not_overflow_the_integer_sums() {
        let layout = Layout { rows: 1, columns: 64, bits: 8, group: 64 };
        let mut w = Matrix::quantize(&[1.0; 64], layout);
        w.codes.fill(255);
        for sign in [1.0, -1.0] {
            let x = Activations::quantize(&[sign; 64], 64, 64);
            let sums = super::group_sums(
                &{
                    let mut pairs = vec![super::Pair::default(); 32];
                    w.unpack_tile(0, &mut pairs);
                    pairs
                },
                &x.codes,
            );
            assert_eq!(f64::from(sums[0][0]), f64::from(sign) * 64.0 * 255.0 * f64::from(ACTIVATION_MAX));
        }
    }

    #[test]
    fn activation_codes_are_within_half_a_step_and_faults_show() {
        let values: Vec<f32> = random("activations", 64);
        let x = Activations::quantize(&values, 64, 32);
        for (k, v) in values.iter().enumerate() {
            let scale = x.factors[k / 32][0];
            let back = f32::from(x.codes[k / 2][k % 2]) * scale;
            assert!((back - v).abs() <= 0.501 * scale, "{v} became {back}");
        }
        for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = values.clone();
            values[3] = fault;
            let x = Activations::quantize(&values, 64, 32);
            assert!(x.factors[0][0].is_nan() && x.factors[1][0].is_finite());
        }
        let tiny = Activations::quantize(&[1e-38; 32], 32, 32);
        assert_eq!(tiny.factors, [[0.0, 0.0]]);
    }
}

//! GPTQ: rounding whose errors later weights make up for.

use super::{Format, InputMoments, QuantizedMatrix, whole};
use crate::expert::{Group, MAX_GROUP};
use half::f16;
use nalgebra::{Cholesky, DMatrix};
use rayon::prelude::*;

/// Share of the mean diagonal of H that is added to its diagonal.
const DAMPING: f64 = 0.01;

/// The same for as many tokens as inputs; more tokens need less of it. H and C of few tokens tell
/// more of these tokens than of others.
const FEW_TOKENS_DAMPING: f64 = 0.3;

/// Quantizes weights, row-major `[rows, columns]`, for inputs with the given moments. Also gives the
/// error that is left, `tr((W' − Ŵ) H (W' − Ŵ)ᵀ)` for the target W'.
///
/// The target is not W itself but `W' = W C H⁻¹`, which comes closest to the exact output from the
/// inputs that the quantized layers before it give (least squares of `W x − W' x̂`, the asymmetric
/// calibration of Li et al. 2025, arXiv:2504.02692). Then, for each row, columns are rounded in the order
/// of falling H_jj, and the error of each is spread over those still to come along the Cholesky
/// factor of H⁻¹ (Frantar et al. 2023, arXiv:2210.17323, with its options `act_order` and
/// `static_groups`). Scales and minima are fitted before, each error weighted by H_jj.
///
/// Without a token, or with inputs that are all 0, every weight counts the same and is rounded by
/// itself.
///
/// # Panics
/// When lengths do not match or a weight is not finite.
#[must_use]
pub fn gptq(weights: &[f32], moments: &InputMoments, format: Format) -> (QuantizedMatrix, f64) {
    Gptq::new(moments).quantize(weights, format)
}

/// [`gptq`] of several matrices, or formats, for the same inputs.
pub struct Gptq {
    columns: usize,
    plan: Option<Plan>,
}

impl Gptq {
    /// Factors the moments.
    #[must_use]
    pub fn new(moments: &InputMoments) -> Self {
        Self { columns: moments.columns(), plan: Plan::new(moments) }
    }

    /// Inputs of the matrices.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The second moment of each input, the diagonal of H; none where no input was seen.
    #[must_use]
    pub fn importance(&self) -> Option<&[f64]> {
        self.plan.as_ref().map(|plan| plan.importance.as_slice())
    }

    /// As [`gptq`] does.
    ///
    /// # Panics
    /// As [`gptq`] does.
    #[must_use]
    pub fn quantize(&self, weights: &[f32], format: Format) -> (QuantizedMatrix, f64) {
        let columns = self.columns;
        assert!(weights.len().is_multiple_of(columns), "weights are [rows, inputs]");
        let Some(plan) = &self.plan else {
            return (super::nearest(weights, &vec![1.0; columns], format), 0.0);
        };
        let rows: Vec<(Vec<Group>, f64)> = plan
            .targets(weights)
            .par_chunks_exact(columns)
            .map(|target| plan.round_row(target, format))
            .collect();
        let error = rows.iter().map(|(_, error)| error).sum();
        let matrix = QuantizedMatrix::from_groups((rows.len(), columns), format, |row, from| {
            rows[row].0[from / format.group]
        });
        (matrix, error)
    }
}

/// What all rows share.
struct Plan {
    /// The diagonal of H without damping.
    importance: Vec<f64>,
    /// What is added to it.
    damping: f64,
    /// C, damped as much so that C = H leaves W as it is, its columns in `order`; none where it is H.
    cross: Option<DMatrix<f64>>,
    /// Columns by falling H_jj, the lowest first among equals.
    order: Vec<usize>,
    /// In that order, row-major: the upper Cholesky factor U of H⁻¹ = UᵀU.
    upper: Vec<f64>,
}

/// Rows of W whose targets are found together.
const TARGET_ROWS: usize = 32;

impl Plan {
    /// None where H is 0 or has no factor.
    fn new(moments: &InputMoments) -> Option<Self> {
        let (scale, columns) = (moments.scale(), moments.columns());
        if !(scale > 0.0 && scale.is_finite()) {
            return None;
        }
        let few = columns as f64 / moments.tokens().max(1) as f64;
        let damping = scale * (DAMPING + FEW_TOKENS_DAMPING * few.min(1.0));
        let own = moments.served();
        let mut order: Vec<usize> = (0..columns).collect();
        order.sort_by(|a, b| own[(*b, *b)].total_cmp(&own[(*a, *a)]).then(a.cmp(b)));
        let damped = |i: usize, j: usize, value: f64| if i == j { value + damping } else { value };
        // With H reversed, J H J = L Lᵀ, the factor of H⁻¹ is U = J L⁻¹ J.
        let reversed = DMatrix::from_fn(columns, columns, |i, j| {
            let (i, j) = (order[columns - 1 - i], order[columns - 1 - j]);
            damped(i, j, own[(i, j)])
        });
        let lower = Cholesky::new(reversed)?.unpack();
        let cross = moments.cross().map(|cross| {
            DMatrix::from_fn(columns, columns, |i, j| damped(i, order[j], cross[(i, order[j])]))
        });
        let importance = own.diagonal().as_slice().to_vec();
        Some(Self { importance, damping, cross, order, upper: upper_inverse(&lower) })
    }

    /// `W C H⁻¹`, row-major.
    fn targets(&self, weights: &[f32]) -> Vec<f64> {
        let columns = self.order.len();
        let Some(cross) = &self.cross else {
            return weights.iter().map(|weight| f64::from(*weight)).collect();
        };
        // Read by columns this is Uᵀ.
        let upper_transposed = DMatrix::from_column_slice(columns, columns, &self.upper);
        let blocks = weights.par_chunks(TARGET_ROWS * columns).flat_map_iter(|rows| {
            let count = rows.len() / columns;
            let rows = rows.iter().map(|weight| f64::from(*weight));
            let products = DMatrix::from_row_iterator(count, columns, rows) * cross;
            // H⁻¹ = UᵀU.
            let solved = (products * &upper_transposed) * upper_transposed.transpose();
            let mut targets = vec![0.0; count * columns];
            for (place, column) in self.order.iter().enumerate() {
                for row in 0..count {
                    targets[row * columns + column] = solved[(row, place)];
                }
            }
            targets
        });
        blocks.collect()
    }

    fn round_row(&self, target: &[f64], format: Format) -> (Vec<Group>, f64) {
        let columns = target.len();
        #[expect(clippy::cast_possible_truncation, reason = "factors are f16 in the end")]
        let narrow: Vec<f32> = target.iter().map(|w| *w as f32).collect();
        let fitted: Vec<(f16, f16)> = (0..columns)
            .step_by(format.group)
            .map(|from| {
                let range = from..columns.min(from + format.group);
                let (weights, importance) = (&narrow[range.clone()], &self.importance[range]);
                let group = Group::fit_weighted(weights, importance, format.max_code());
                (group.scale, group.minimum)
            })
            .collect();
        let (levels, group) = (f64::from(format.max_code()), format.group);
        let mut left: Vec<f64> = self.order.iter().map(|column| target[*column]).collect();
        let (mut codes, mut error) = (vec![0; columns], 0.0);
        for (place, column) in self.order.iter().enumerate() {
            let (scale, minimum) = fitted[column / group];
            let (scale, minimum) = (scale.to_f64(), minimum.to_f64());
            let steps = if scale > 0.0 { (left[place] - minimum) / scale } else { 0.0 };
            let code = steps.round_ties_even().clamp(0.0, levels);
            let rounded = scale * code + minimum;
            codes[*column] = whole(code);
            let row = &self.upper[place * columns..][place..columns];
            let step = (left[place] - rounded) / row[0];
            left[place..].iter_mut().zip(row).for_each(|(left, u)| *left -= step * u);
            // The squares of the steps are the error under the damped H.
            error += step * step - self.damping * (target[*column] - rounded).powi(2);
        }
        let groups = codes.chunks(group).zip(fitted);
        let groups = groups.map(|(codes, (scale, minimum))| {
            debug_assert!(codes.len() <= MAX_GROUP, "groups are short");
            Group::with_codes(scale, minimum, codes)
        });
        (groups.collect(), error.max(0.0))
    }
}

/// `J L⁻¹ J`, row-major, for a lower triangular L, where J reverses the order.
fn upper_inverse(lower: &DMatrix<f64>) -> Vec<f64> {
    let n = lower.nrows();
    // Read by columns this is L by rows.
    let rows = lower.transpose();
    let row_of = |at: usize| &rows.as_slice()[at * n..][..at];
    let mut upper = vec![0.0; n * n];
    upper.par_chunks_exact_mut(n).enumerate().for_each(|(place, upper)| {
        // Row `at` of L⁻¹ solves x L = e_at.
        let at = n - 1 - place;
        let mut x = vec![0.0; at + 1];
        x[at] = 1.0;
        for k in (0..=at).rev() {
            x[k] /= rows[(k, k)];
            let (before, from) = x.split_at_mut(k);
            before.iter_mut().zip(row_of(k)).for_each(|(x, l)| *x -= from[0] * l);
        }
        upper.iter_mut().rev().zip(&x).for_each(|(to, x)| *to = *x);
    });
    upper
}

#[cfg(test)]
mod tests {
    use super::super::{Format, InputMoments, QuantizedMatrix, nearest};
    use super::gptq;
    use crate::rng::stream;
    use rand::RngExt as _;

    /// Inputs of which a few directions carry most of the energy, as hidden states do.
    fn inputs(tokens: usize, columns: usize) -> Vec<f32> {
        let mut rng = stream(3, "gptq inputs");
        let directions: Vec<f32> = (0..4 * columns).map(|_| rng.random::<f32>() - 0.5).collect();
        let mut rows = Vec::with_capacity(tokens * columns);
        for _ in 0..tokens {
            let along: [f32; 4] = std::array::from_fn(|_| 4.0 * (rng.random::<f32>() - 0.5));
            rows.extend((0..columns).map(|c| {
                let sum: f32 = (0..4).map(|d| along[d] * directions[d * columns + c]).sum();
                sum + 0.3 * (rng.random::<f32>() - 0.5)
            }));
        }
        rows
    }

    /// `Σ_t ‖W x_t − Ŵ x̂_t‖²`, straight from its definition.
    fn output_error(w: &[f32], quantized: &QuantizedMatrix, x: &[f32], served: &[f32]) -> f64 {
        let columns = quantized.shape().1;
        let q = quantized.weights();
        let dot = |w: &[f32], x: &[f32]| -> f64 {
            w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
        };
        let mut sum = 0.0;
        for (x, served) in x.chunks(columns).zip(served.chunks(columns)) {
            for (w, q) in w.chunks(columns).zip(q.chunks(columns)) {
                sum += (dot(w, x) - dot(q, served)).powi(2);
            }
        }
        sum
    }

    fn weights(rows: usize, columns: usize) -> Vec<f32> {
        let mut rng = stream(4, "gptq weights");
        (0..rows * columns).map(|_| rng.random::<f32>() - 0.5).collect()
    }

    #[test]
    fn it_beats_rounding_on_the_output_and_reports_the_error_that_is_left() {
        let (rows, columns, tokens) = (24, 96, 500);
        let (w, x) = (weights(rows, columns), inputs(tokens, columns));
        let mut moments = InputMoments::new(columns);
        moments.add(&x, &x, &vec![1.0; tokens]);
        for (bits, share) in [(2, 0.5), (3, 0.4), (4, 0.4), (8, 0.5)] {
            let format = Format { bits, group: 32 };
            let (quantized, left) = gptq(&w, &moments, format);
            let own = output_error(&w, &quantized, &x, &x);
            let plain = output_error(&w, &nearest(&w, &vec![1.0; columns], format), &x, &x);
            assert!(own < share * plain, "{bits} bits: {own} of {plain}");
            // Moments are summed in f32 blocks.
            assert!((left - own).abs() < 1e-3 * own, "{bits} bits: {left} for {own}");
        }
    }

    #[test]
    fn its_target_makes_up_for_inputs_that_are_off_already() {
        let (rows, columns, tokens) = (16, 64, 400);
        let (w, x) = (weights(rows, columns), inputs(tokens, columns));
        let served: Vec<f32> = x.iter().map(|x| 0.9 * x).collect();
        let (mut told, mut untold) = (InputMoments::new(columns), InputMoments::new(columns));
        told.add(&x, &served, &vec![1.0; tokens]);
        untold.add(&served, &served, &vec![1.0; tokens]);
        let format = Format { bits: 4, group: 64 };
        let error = |moments| output_error(&w, &gptq(&w, moments, format).0, &x, &served);
        assert!(error(&told) < 0.3 * error(&untold), "{} {}", error(&told), error(&untold));
    }

    #[test]
    fn without_a_token_weights_are_rounded_by_themselves() {
        let w = weights(4, 40);
        let format = Format { bits: 3, group: 32 };
        let (quantized, _) = gptq(&w, &InputMoments::new(40), format);
        assert_eq!(quantized, nearest(&w, &[1.0; 40], format));
    }

    #[test]
    fn the_same_bits_come_out_at_any_number_of_threads() {
        let (w, x) = (weights(40, 64), inputs(700, 64));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a pool").install(|| {
                let mut moments = InputMoments::new(64);
                moments.add(&x, &x, &vec![0.5; 700]);
                gptq(&w, &moments, Format { bits: 2, group: 64 })
            })
        };
        let (one, four) = (run(1), run(4));
        assert_eq!((one.0, one.1.to_bits()), (four.0, four.1.to_bits()));
    }
}

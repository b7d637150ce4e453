//! HQQ: minima without data, by half-quadratic splitting.

use super::{Format, QuantizedMatrix};
use crate::expert::Group;
use half::f16;

/// p of the norm `Σ|w − ŵ|^p`. Below 1 it hardly counts the few weights that are far off.
const NORM: f64 = 0.7;
/// β at first, and what it is multiplied with.
const BETA: f64 = 10.0;
const KAPPA: f64 = 1.01;
const ITERATIONS: usize = 20;

/// Rounds every group by itself, told nothing of its inputs: half-quadratic quantization (Badri and
/// Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"). The scale s is that
/// of the group's range. The minimum m starts at its lowest weight and is found with codes q and an
/// extra matrix E that takes the outliers, by turns:
///
/// ```text
/// q ← clamp(round((w − m) / s)),   d ← (w − m) / s − q
/// E ← sign(d) · max(0, |d| − |d|^(p−1) / β)
/// m ← mean(w − s (q + E)),   β ← κ β
/// ```
///
/// with p = 0.7, β = 10, κ = 1.01 and at most 20 turns, ended when the error does not fall. Errors d
/// are in steps of the codes here, where the authors have them in weights, so a matrix times a power
/// of two has the same codes. Of all turns the one of least `Σ|w − ŵ|^p` is kept, with factors in f16
/// as they are stored; it is never more than that of plain rounding between the least and the largest weight.
///
/// `weights` is `[rows, columns]`.
///
/// # Panics
/// When lengths do not match or a weight is not finite.
#[must_use]
pub fn hqq(weights: &[f32], columns: usize, format: Format) -> QuantizedMatrix {
    assert!(columns > 0 && weights.len().is_multiple_of(columns), "weights are [rows, inputs]");
    assert!(weights.iter().all(|weight| weight.is_finite()), "weights are finite");
    let rows = weights.len() / columns;
    QuantizedMatrix::from_groups((rows, columns), format, |row, from| {
        let to = columns.min(from + format.group);
        let turns = turns(&weights[row * columns..][from..to], format.max_code());
        let least = |best: Turn, turn: Turn| if turn.error < best.error { turn } else { best };
        let best = turns.into_iter().reduce(least).expect("plain rounding is the first");
        Group::with_codes(best.scale, best.minimum, &best.codes)
    })
}

/// A group's codes, and `Σ|w − ŵ|^p` in steps.
struct Turn {
    scale: f16,
    minimum: f16,
    codes: Vec<u8>,
    error: f64,
}

/// Plain rounding and what the turns make of it.
fn turns(weights: &[f32], max_code: u8) -> Vec<Turn> {
    let levels = f64::from(max_code);
    let low = f64::from(weights.iter().copied().fold(f32::INFINITY, f32::min));
    let high = f64::from(weights.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let scale = narrow((high - low) / levels);
    let step = scale.to_f64();
    let mut turns = vec![Turn::new(weights, scale, low, levels)];
    if step == 0.0 {
        return turns;
    }
    let mut beta = BETA;
    for _ in 0..ITERATIONS {
        let last = turns.last().expect("plain rounding is the first");
        let minimum = last.minimum.to_f64();
        let rest = weights.iter().zip(&last.codes).map(|(weight, code)| {
            let (weight, code) = (f64::from(*weight), f64::from(*code));
            let off = (weight - minimum) / step - code;
            weight - step * (code + shrunk(off, beta))
        });
        let next = Turn::new(weights, scale, rest.sum::<f64>() / weights.len() as f64, levels);
        beta *= KAPPA;
        let falls = next.error < last.error;
        turns.push(next);
        if !falls {
            break;
        }
    }
    turns
}

impl Turn {
    fn new(weights: &[f32], scale: f16, minimum: f64, levels: f64) -> Self {
        let minimum = narrow(minimum);
        let (step, from) = (scale.to_f64(), minimum.to_f64());
        let (mut codes, mut error) = (Vec::with_capacity(weights.len()), 0.0);
        for weight in weights {
            let off = f64::from(*weight) - from;
            let steps = if step > 0.0 { off / step } else { 0.0 };
            let code = steps.round_ties_even().clamp(0.0, levels);
            codes.push(super::whole(code));
            error += (steps - code).abs().powf(NORM);
        }
        Self { scale, minimum, codes, error }
    }
}

/// The shrinkage of the norm, `sign(d) · max(0, |d| − |d|^(p−1) / β)`.
fn shrunk(off: f64, beta: f64) -> f64 {
    let size = off.abs();
    if size == 0.0 { 0.0 } else { off.signum() * (size - size.powf(NORM - 1.0) / beta).max(0.0) }
}

/// The nearest finite f16.
fn narrow(value: f64) -> f16 {
    let largest = f16::MAX.to_f64();
    f16::from_f64(value.clamp(-largest, largest))
}

#[cfg(test)]
mod tests {
    use super::super::{Format, QuantizedMatrix};
    use super::hqq;
    use crate::rng::stream;
    use half::f16;
    use proptest::prelude::*;

    /// `Σ|w − ŵ|^0.7`.
    fn norm(weights: &[f32], rounded: &[f32]) -> f64 {
        weights.iter().zip(rounded).map(|(a, b)| f64::from(a - b).abs().powf(0.7)).sum()
    }

    /// Codes between the least and the largest weight of a group, written anew: factors in f16.
    fn min_max(weights: &[f32], columns: usize, format: Format) -> Vec<f32> {
        let levels = f32::from(format.max_code());
        let group = |group: &[f32]| {
            let low = group.iter().copied().fold(f32::INFINITY, f32::min);
            let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exact = (f64::from(high) - f64::from(low)) / f64::from(levels);
            let (scale, low) = (f16::from_f64(exact).to_f32(), f16::from_f32(low).to_f32());
            let code = |w: &f32| {
                if scale > 0.0 {
                    ((w - low) / scale).round_ties_even().clamp(0.0, levels)
                } else {
                    0.0
                }
            };
            group.iter().map(|w| scale * code(w) + low).collect::<Vec<_>>()
        };
        weights.chunks(columns).flat_map(|row| row.chunks(format.group)).flat_map(group).collect()
    }

    proptest! {
        #[test]
        fn its_error_in_the_norm_is_no_more_than_that_of_plain_rounding(
            bits in 1_u32..=8, columns in 1_usize..40, group in 1_usize..40,
            weights in prop::collection::vec(-2.0_f32..2.0, 120), outlier in -20.0_f32..20.0,
        ) {
            let mut weights = weights;
            weights.truncate(120 / columns * columns);
            weights[0] = outlier;
            let format = Format { bits, group };
            let (own, plain) = (hqq(&weights, columns, format).weights(), min_max(&weights, columns, format));
            let (own, plain) = (norm(&weights, &own), norm(&weights, &plain));
            // The last codes of f32 and f64 arithmetic may differ in a tie.
            prop_assert!(own <= plain * (1.0 + 1e-3) + 1e-4, "{} {}", own, plain);
        }
    }

    /// Drawn, because a regular sequence leaves groups that rounding happens to suit.
    fn bell(count: usize) -> Vec<f32> {
        let mut rng = stream(1, "hqq test");
        (0..count).map(|_| (0..6).map(|_| rng.random_range(-0.5_f32..0.5)).sum()).collect()
    }

    #[test]
    fn on_bell_shaped_weights_it_gains_on_plain_rounding() {
        let weights = bell(64 * 64);
        for bits in [2, 3, 4] {
            let format = Format { bits, group: 64 };
            let own = norm(&weights, &hqq(&weights, 64, format).weights());
            let plain = norm(&weights, &min_max(&weights, 64, format));
            assert!(own < 0.99 * plain, "{bits} bits: {own} of {plain}");
        }
    }

    #[test]
    fn a_matrix_times_a_power_of_two_has_the_same_codes() {
        let format = Format { bits: 3, group: 32 };
        let (weights, codes) = (bell(8 * 64), |matrix: &QuantizedMatrix| -> Vec<u8> {
            let groups = (0..8).flat_map(|row| [(row, 0), (row, 1)]);
            let groups = groups.map(|(row, group)| matrix.group(row, group));
            groups.flat_map(|group| (0..32).map(move |at| group.code(at))).collect()
        });
        let quarter: Vec<f32> = weights.iter().map(|weight| weight / 4.0).collect();
        assert_eq!(codes(&hqq(&weights, 64, format)), codes(&hqq(&quarter, 64, format)));
    }

    #[test]
    fn weights_that_are_all_alike_come_back() {
        let matrix = hqq(&[0.5; 12], 6, Format { bits: 2, group: 4 });
        assert_eq!(matrix.weights(), [0.5; 12]);
    }
}

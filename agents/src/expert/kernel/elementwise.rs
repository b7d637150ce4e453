//! What happens to values one by one: written once, inlined into a function for each kind of
//! instructions. Multiplications and additions are rounded apart, so every kind gives the same bits.

use super::{PANEL_TOKENS, Sums};
use crate::expert::matrix::{LANES, Lanes};

/// Adding 1.5 · 2²³ rounds to a whole number, which then stands in the low bits.
pub(super) const ROUNDER: f32 = 12_582_912.0;

/// Groups below this are zero; above it, 127 ÷ the largest value is finite.
const SMALLEST: f32 = 7.888_609e-31;

#[inline(always)]
pub(super) fn quantize(values: &[f32], codes: &mut [i32]) -> (f32, f32) {
    let (values, rest) = values.as_chunks::<LANES>();
    let (codes, rest_codes) = codes.as_chunks_mut::<4>();
    assert!(rest.is_empty() && rest_codes.is_empty() && values.len() == codes.len());
    // Bits of magnitudes are ordered like the magnitudes, with NaN last.
    let mut largest = [0; LANES];
    for values in values {
        for (largest, value) in largest.iter_mut().zip(values) {
            *largest = value.abs().to_bits().max(*largest);
        }
    }
    let largest = f32::from_bits(largest.into_iter().fold(0, u32::max));
    let (scale, inverse) = match scale(largest) {
        Ok(scale) => scale,
        Err(factors) => {
            codes.as_flattened_mut().fill(0);
            return factors;
        }
    };
    let mut sums = [0_i32; LANES];
    for (values, codes) in values.iter().zip(codes) {
        let mut bytes = [0; LANES];
        for lane in 0..LANES {
            let code = (values[lane] * inverse + ROUNDER).to_bits().cast_signed();
            let code = code - ROUNDER.to_bits().cast_signed();
            sums[lane] += code;
            [bytes[lane], ..] = code.to_le_bytes();
        }
        for (code, bytes) in codes.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *code = i32::from_le_bytes(*bytes);
        }
    }
    (scale, scale * whole(sums.iter().sum()))
}

/// Scale and inverse scale of a group of this largest magnitude; or, where its codes are zeros, its
/// factors.
#[inline(always)]
pub(super) fn scale(largest: f32) -> Result<(f32, f32), (f32, f32)> {
    if (SMALLEST..f32::INFINITY).contains(&largest) {
        Ok((largest / 127.0, 127.0 / largest))
    } else if largest < SMALLEST {
        Err((0.0, 0.0))
    } else {
        Err((f32::NAN, f32::NAN))
    }
}

#[inline(always)]
pub(super) fn swiglu(sums: [&Sums; 2], tokens: usize, values: &mut [f32], stride: usize) {
    let [gates, ups] = sums;
    for (half, (gates, ups)) in gates.iter().zip(ups).enumerate() {
        let sums = gates[..tokens].iter().zip(ups);
        for (values, (gate, up)) in values.chunks_mut(stride).zip(sums) {
            let values = &mut values.as_chunks_mut::<LANES>().0[half];
            for lane in 0..LANES {
                values[lane] = gate[lane] / (1.0 + exp(-gate[lane])) * up[lane];
            }
        }
    }
}

/// The quads of each row, one after another and of each the rows side by side.
pub(super) fn interleave(rows: &[&[i32]; PANEL_TOKENS], to: &mut [i32]) {
    let to = to.as_chunks_mut::<PANEL_TOKENS>().0;
    for (t, row) in rows.iter().enumerate() {
        assert_eq!(row.len(), to.len(), "a quad of every row");
        to.iter_mut().zip(*row).for_each(|(to, code)| to[t] = *code);
    }
}

/// `e^x` to two units in the last place, for x in −87 to 88 and the nearer end beyond; of NaN,
/// any number. Coefficients: Cephes, `expf`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = if x < 88.0 { x } else { 88.0 };
    let x = if x > -87.0 { x } else { -87.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = (x - n * (355.0 / 512.0)) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        p = p * r + coefficient;
    }
    let power = rounded.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127) << 23;
    (p * (r * r) + r + 1.0) * f32::from_bits(power)
}

/// Adds a group's part to the outputs of a tile.
#[inline(always)]
pub(super) fn add_group(
    sums: &mut Lanes,
    dots: &[i32; LANES],
    (scales, minima): (&Lanes, &Lanes),
    (scale, offset): (f32, f32),
) {
    for lane in 0..LANES {
        sums[lane] += whole(dots[lane]) * scales[lane] * scale + minima[lane] * offset;
    }
}

/// A whole number below 2²⁴ in magnitude, exactly.
#[expect(clippy::cast_precision_loss, reason = "f32 holds every whole number below 2^24")]
#[inline(always)]
pub(super) fn whole(number: i32) -> f32 {
    number as f32
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_agrees_with_f64_to_two_units_in_the_last_place() {
        let mut worst: f64 = 0.0;
        for i in -87_000..88_000_i32 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(1e30).is_finite() && exp(-1e30) > 0.0 && exp(f32::NAN).is_finite());
    }
}

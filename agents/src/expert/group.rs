//! Codes, scale and minimum of one group of weights.
//!
//! A weight is `scale · code + minimum` with both factors in f16. Several clip ranges are tried, each
//! is refitted by least squares for its codes, and the smallest squared error wins. The error is that
//! of the rounded factors. The search is the idea of ggml's `make_qkx2_quants`; unlike there, both
//! ends of the range are clipped and the minimum may be positive.
//!
//! f16 reaches 65 504 and its smallest step is 2⁻²⁴. Factors beyond saturate and factors below vanish,
//! so a weight above 65 504 in magnitude is clipped towards it, and a group whose whole range is far
//! below 2⁻²⁴ becomes constant.

use half::f16;

/// The longest group.
pub const MAX_GROUP: usize = 256;

/// One clip step, as a share of the distance between codes.
const CLIP_SHARE: f64 = 0.15;

/// Clip steps tried at each end of a group's range: fewer codes are worth more clipping.
fn clip_steps(levels: f64) -> u8 {
    if levels < 4.0 { 8 } else { 5 }
}

/// Refits of the best candidate, at most.
const REFITS: usize = 4;

/// One quantized group.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Distance between codes, not negative.
    pub scale: f16,
    /// The weight of code 0.
    pub minimum: f16,
    /// Sum of squared differences to the weights, times the importance of each.
    pub squared_error: f64,
    codes: [f64; MAX_GROUP],
}

impl Group {
    /// The code of the group's weight `i`.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "codes are whole numbers in 0..=255"
    )]
    pub fn code(&self, i: usize) -> u8 {
        self.codes[i] as u8
    }

    /// A group with given codes and factors; its error is not known and left at 0.
    pub(crate) fn with_codes(scale: f16, minimum: f16, given: &[u8]) -> Self {
        let mut codes = [0.0; MAX_GROUP];
        codes.iter_mut().zip(given).for_each(|(code, given)| *code = f64::from(*given));
        Self { scale, minimum, squared_error: 0.0, codes }
    }

    /// Quantizes at most [`MAX_GROUP`] weights to codes in `0..=max_code`.
    ///
    /// # Panics
    /// When `weights` is empty, too long or has a value that is not finite.
    #[must_use]
    pub fn fit(weights: &[f32], max_code: u8) -> Self {
        Self::fit_weighted(weights, &[1.0; MAX_GROUP][..weights.len().min(MAX_GROUP)], max_code)
    }

    /// The same for errors that count as much as `importance` says, one value of at least 0 for
    /// each weight: the mean square of the input that it multiplies, say.
    ///
    /// # Panics
    /// As [`Self::fit`], and when there is not one importance a weight.
    #[must_use]
    pub fn fit_weighted(weights: &[f32], importance: &[f64], max_code: u8) -> Self {
        assert_eq!(weights.len(), importance.len(), "one importance a weight");
        assert!((1..=MAX_GROUP).contains(&weights.len()), "a group has 1 to {MAX_GROUP} weights");
        assert!(weights.iter().all(|w| w.is_finite()), "weights are finite");
        let levels = f64::from(max_code);
        let low = f64::from(weights.iter().copied().fold(f32::INFINITY, f32::min));
        let high = f64::from(weights.iter().copied().fold(f32::NEG_INFINITY, f32::max));

        let mut best = Self::coded(
            weights,
            importance,
            levels,
            saturate((high - low) / levels),
            saturate(low),
        );
        let floor = at_most(low);
        best.replace_if_better(
            weights,
            importance,
            levels,
            at_least((high - floor.to_f64()) / levels),
            floor,
        );
        if high == low {
            return best;
        }
        let clip = CLIP_SHARE * (high - low) / levels;
        for from_low in 0..clip_steps(levels) {
            for from_high in 0..clip_steps(levels) {
                let low = low + clip * f64::from(from_low);
                let high = high - clip * f64::from(from_high);
                let codes = codes(weights, levels, (high - low) / levels, low);
                if let Some((scale, minimum)) = refit(weights, importance, &codes) {
                    best.replace_if_better(
                        weights,
                        importance,
                        levels,
                        saturate(scale),
                        saturate(minimum),
                    );
                }
            }
        }
        for _ in 0..REFITS {
            let before = best.squared_error;
            if let Some((scale, minimum)) = refit(weights, importance, &best.codes) {
                best.replace_if_better(
                    weights,
                    importance,
                    levels,
                    saturate(scale),
                    saturate(minimum),
                );
            }
            if best.squared_error >= before {
                break;
            }
        }
        best
    }

    fn replace_if_better(
        &mut self,
        weights: &[f32],
        importance: &[f64],
        levels: f64,
        scale: f16,
        minimum: f16,
    ) {
        let other = Self::coded(weights, importance, levels, scale, minimum);
        if other.squared_error < self.squared_error {
            *self = other;
        }
    }

    /// The nearest codes under given factors.
    fn coded(weights: &[f32], importance: &[f64], levels: f64, scale: f16, minimum: f16) -> Self {
        let (s, m) = (scale.to_f64(), minimum.to_f64());
        let codes = codes(weights, levels, s, m);
        let [squared_error] =
            sums(weights, importance, &codes, |h, w, q| [h * (s * q + m - w).powi(2)]);
        Self { scale, minimum, squared_error, codes }
    }
}

fn codes(weights: &[f32], levels: f64, scale: f64, minimum: f64) -> [f64; MAX_GROUP] {
    // Adding and subtracting 1.5 · 2^52 rounds to a whole number without a library call.
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut codes = [0.0; MAX_GROUP];
    for (code, w) in codes.iter_mut().zip(weights) {
        let exact = ((f64::from(*w) - minimum) * inverse).clamp(0.0, levels);
        *code = (exact + ROUNDER) - ROUNDER;
    }
    codes
}

/// Scale and minimum of least squared error for given codes, or nothing when all codes are equal.
fn refit(weights: &[f32], importance: &[f64], codes: &[f64; MAX_GROUP]) -> Option<(f64, f64)> {
    // Sums of distances to the first weight, so that a large common offset cancels nothing.
    let offset = f64::from(weights[0]);
    let [n, q, qq, x, qx] = sums(weights, importance, codes, |h, w, q| {
        [h, h * q, h * q * q, h * (w - offset), h * q * (w - offset)]
    });
    let determinant = n * qq - q * q;
    (determinant > 0.0)
        .then(|| ((n * qx - q * x) / determinant, (qq * x - q * qx) / determinant + offset))
}

/// Sums of terms over a group's weights and codes, in four lanes, so that additions need not wait for
/// each other.
fn sums<const N: usize>(
    weights: &[f32],
    importance: &[f64],
    codes: &[f64; MAX_GROUP],
    terms: impl Fn(f64, f64, f64) -> [f64; N],
) -> [f64; N] {
    let mut lanes = [[0.0; 4]; N];
    let mut add = |lane: usize, h: f64, w: f32, q: f64| {
        for (sum, term) in lanes.iter_mut().zip(terms(h, f64::from(w), q)) {
            sum[lane] += term;
        }
    };
    let (whole, rest) = weights.as_chunks::<4>();
    let (whole_h, rest_h) = importance.as_chunks::<4>();
    for ((w, h), q) in whole.iter().zip(whole_h).zip(codes.as_chunks::<4>().0) {
        for lane in 0..4 {
            add(lane, h[lane], w[lane], q[lane]);
        }
    }
    for ((w, h), q) in rest.iter().zip(rest_h).zip(&codes[4 * whole.len()..]) {
        add(0, *h, *w, *q);
    }
    lanes.map(|[a, b, c, d]| (a + b) + (c + d))
}

fn saturate(x: f64) -> f16 {
    f16::from_f64(x.clamp(f16::MIN.to_f64(), f16::MAX.to_f64()))
}

/// The largest f16 that is not above `x`, or the lowest of all.
fn at_most(x: f64) -> f16 {
    let near = saturate(x);
    if near.to_f64() <= x || near == f16::MIN {
        return near;
    }
    match near.to_bits() {
        0 | 0x8000 => f16::from_bits(0x8001),
        bits if near.is_sign_negative() => f16::from_bits(bits + 1),
        bits => f16::from_bits(bits - 1),
    }
}

/// The smallest f16 that is not below `x`, or the highest of all.
fn at_least(x: f64) -> f16 {
    -at_most(-x)
}

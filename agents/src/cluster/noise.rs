//! How a time varies about its mean.

use super::stream::Stream;
use rand_distr::{Distribution as _, Exp1, StandardNormal};
use std::sync::Arc;

/// A random factor of mean 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Noise {
    /// Always 1.
    #[default]
    Constant,
    /// Exponential.
    Exponential,
    /// Log-normal with this standard deviation, which is above 0.
    LogNormal(f64),
    /// As measured: equally likely values, ascending; between two of them it is uniform.
    Empirical(Arc<[f64]>),
}

impl Noise {
    /// Variance of the factors: their squared coefficient of variation, since their mean is 1.
    #[must_use]
    pub fn squared_variation(&self) -> f64 {
        match self {
            Self::Constant => 0.0,
            Self::Exponential => 1.0,
            Self::LogNormal(deviation) => deviation * deviation,
            Self::Empirical(values) => {
                let n = values.len().max(1) as f64;
                let mean = values.iter().sum::<f64>() / n;
                values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / n
            }
        }
    }

    /// One factor.
    #[must_use]
    pub fn draw(&self, stream: &mut Stream) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Exponential => Exp1.sample(stream),
            Self::LogNormal(deviation) => {
                // The mean of exp(N(−s²/2, s²)) is 1, its variance exp(s²) − 1.
                let variance = (1.0 + deviation * deviation).ln();
                let normal: f64 = StandardNormal.sample(stream);
                (variance.sqrt() * normal - variance / 2.0).exp()
            }
            Self::Empirical(values) => {
                let Some(last) = values.len().checked_sub(1) else { return 1.0 };
                let place = (1.0 - stream.above_zero()) * last as f64;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "from 0 to the last index"
                )]
                let at = (place as usize).min(last.saturating_sub(1));
                let share = place - at as f64;
                values[at] + share * (values[(at + 1).min(last)] - values[at])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Noise;
    use crate::cluster::StreamKey;

    #[test]
    fn factors_have_mean_one_and_the_deviation_that_is_asked_for() {
        let evenly: Vec<f64> = (0..=100).map(|i| f64::from(i) / 50.0).collect();
        let cases = [
            (Noise::Constant, 0.0),
            (Noise::Exponential, 1.0),
            (Noise::LogNormal(0.3), 0.3),
            (Noise::LogNormal(2.0), 2.0),
            (Noise::Empirical(evenly.into()), (1.0_f64 / 3.0).sqrt()),
        ];
        for (noise, deviation) in cases {
            let mut stream = StreamKey::new(7, "noise").stream(0, 0);
            let n = 2_000_000;
            let (mut sum, mut squares) = (0.0, 0.0);
            for _ in 0..n {
                let value = noise.draw(&mut stream);
                sum += value;
                squares += value * value;
            }
            let mean = sum / f64::from(n);
            let found = (squares / f64::from(n) - mean * mean).max(0.0).sqrt();
            assert!((mean - 1.0).abs() < 0.006, "{noise:?}: mean {mean}");
            assert!((found - deviation).abs() <= 0.05 * deviation + 1e-6, "{noise:?}: {found}");
        }
    }
}

//! Means over seeds with their confidence intervals (MODEL.md section 10). Distributions are those of `statrs`.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF as _, StudentsT};

/// Probability that an interval holds the mean, each by itself.
pub const LEVEL: f64 = 0.95;

/// A mean, or a difference of means, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// The interval reaches so far to both sides; none of a single value.
    pub half_width: Option<f64>,
    /// Values that it is of.
    pub count: u64,
}

impl Interval {
    /// Whether zero lies outside.
    #[must_use]
    pub fn excludes_zero(&self) -> bool {
        self.half_width.is_some_and(|half| self.mean.abs() > half)
    }
}

/// Mean of independent values, by Student's t; none of no values.
#[must_use]
pub fn mean(values: &[f64]) -> Option<Interval> {
    let of = Moments::of(values)?;
    let half_width =
        of.variance.and_then(|variance| half_width((variance / of.count).sqrt(), of.count - 1.0));
    Some(Interval { mean: of.mean, half_width, count: values.len() as u64 })
}

/// Mean of b − a over pairs, which take out what both have in common.
#[must_use]
pub fn paired(pairs: &[(f64, f64)]) -> Option<Interval> {
    mean(&pairs.iter().map(|(a, b)| b - a).collect::<Vec<_>>())
}

/// Mean of b less that of a, of independent values whose variances may differ (Welch 1947).
#[must_use]
pub fn unpaired(a: &[f64], b: &[f64]) -> Option<Interval> {
    sum(&[(-1.0, a), (1.0, b)])
}

/// Mean of the means of independent groups, whose variances may differ: each group counts once.
#[must_use]
pub fn mean_of_groups(groups: &[&[f64]]) -> Option<Interval> {
    let weight = 1.0 / groups.len().max(1) as f64;
    sum(&groups.iter().map(|group| (weight, *group)).collect::<Vec<_>>())
}

/// Σ w · mean, with the degrees of freedom of Welch and Satterthwaite.
fn sum(groups: &[(f64, &[f64])]) -> Option<Interval> {
    let (mut mean, mut variance, mut shares) = (0.0, Some(0.0), 0.0);
    for (weight, values) in groups {
        let of = Moments::of(values)?;
        mean += weight * of.mean;
        let part = of.variance.map(|variance| weight * weight * variance / of.count);
        shares += part.map_or(0.0, |part| part * part / (of.count - 1.0));
        variance = variance.zip(part).map(|(all, part)| all + part);
    }
    let count = groups.iter().map(|(_, values)| values.len() as u64).sum();
    (count > 0).then_some(())?;
    let half_width = variance.and_then(|variance: f64| {
        // Without any spread there is no doubt, and no number of degrees of freedom.
        let freedom = if shares > 0.0 { variance * variance / shares } else { 1.0 };
        half_width(variance.sqrt(), freedom)
    });
    Some(Interval { mean, half_width, count })
}

fn half_width(standard_error: f64, freedom: f64) -> Option<f64> {
    if standard_error == 0.0 {
        return Some(0.0);
    }
    let student = StudentsT::new(0.0, 1.0, freedom).ok()?;
    Some(standard_error * student.inverse_cdf(f64::midpoint(1.0, LEVEL)))
}

struct Moments {
    count: f64,
    mean: f64,
    /// Of the values about their mean, over one less than their number; none of a single value.
    variance: Option<f64>,
}

impl Moments {
    fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let first = *values.first()?;
        // About the first value: equal values have exactly themselves as their mean, and no variance.
        let mean = first + values.iter().map(|value| value - first).sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self { count, mean, variance: (values.len() > 1).then(|| squares / (count - 1.0)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Student (1908): hours of sleep gained by ten patients under each of two drugs. Intervals as R's `t.test` gives
    /// them for its data set `sleep`.
    const FIRST: [f64; 10] = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0];
    const SECOND: [f64; 10] = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4];

    fn is(interval: Option<Interval>, low: f64, high: f64) {
        let of = interval.expect("there are values");
        let half = of.half_width.expect("there is an interval");
        let found = (of.mean - half, of.mean + half);
        assert!((found.0 - low).abs() < 1e-6 && (found.1 - high).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn intervals_are_those_of_the_textbook() {
        let pairs: Vec<(f64, f64)> = FIRST.into_iter().zip(SECOND).collect();
        is(paired(&pairs), 0.700_114_2, 2.459_885_8);
        is(unpaired(&FIRST, &SECOND), -0.205_483_2, 3.365_483_2);
        // t of 4 degrees of freedom at 97.5 %: 2.776445.
        is(mean(&[1.0, 2.0, 3.0, 4.0, 5.0]), 3.0 - 1.963_243_2, 3.0 + 1.963_243_2);
    }

    #[test]
    fn groups_count_alike_and_one_group_is_its_mean() {
        let same = (mean(&FIRST), mean_of_groups(&[&FIRST]));
        let (Some(a), Some(b)) = same else { panic!("there are values") };
        let halves = a.half_width.zip(b.half_width).expect("there are intervals");
        assert!((a.mean - b.mean).abs() < 1e-12 && (halves.0 - halves.1).abs() < 1e-9, "{same:?}");
        let of = mean_of_groups(&[&[1.0, 1.0, 1.0], &[3.0, 3.0]]).expect("values");
        assert_eq!((of.mean, of.half_width, of.count), (2.0, Some(0.0), 5));
    }

    #[test]
    fn one_value_has_no_interval_and_equal_ones_have_one_of_no_width() {
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[0.1]).map(|of| (of.mean, of.half_width)), Some((0.1, None)));
        assert_eq!(mean(&[0.1; 7]).map(|of| (of.mean, of.half_width)), Some((0.1, Some(0.0))));
        assert_eq!(unpaired(&[1.0], &[2.0, 2.0]).map(|of| of.half_width), Some(None));
        assert!(!mean(&[0.1]).expect("a value").excludes_zero());
    }

    /// Of many samples of a normal distribution 95 in a hundred intervals hold its mean: one that is too narrow fails.
    #[test]
    fn intervals_hold_the_mean_as_often_as_they_say() {
        use rand::RngExt as _;
        let mut rng = agents::rng::stream(7, "coverage");
        let normal = rand_distr::StandardNormal;
        const SAMPLES: u32 = 20_000;
        let mut held = 0;
        for _ in 0..SAMPLES {
            let values: [f64; 4] = std::array::from_fn(|_| rng.sample(normal));
            let of = mean(&values).expect("values");
            held += u32::from(of.mean.abs() <= of.half_width.expect("an interval"));
        }
        let share = f64::from(held) / f64::from(SAMPLES);
        // Four standard errors.
        assert!(
            (share - LEVEL).abs() < 4.0 * (LEVEL * (1.0 - LEVEL) / f64::from(SAMPLES)).sqrt(),
            "{share}"
        );
    }
}

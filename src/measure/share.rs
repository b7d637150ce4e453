//! How sure a share is: exact bounds on the probability of a success (Clopper and Pearson 1934).

use statrs::distribution::{Beta, ContinuousCDF as _};

/// What the requests within a goal say of the share in the long run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShareBounds {
    /// The share is below this with at most the probability that was asked for.
    pub lower: f64,
    /// The share is above this with at most that probability.
    pub upper: f64,
}

impl ShareBounds {
    /// Bounds after `successes` of `trials` independent ones, each wrong with probability `error`.
    ///
    /// # Panics
    /// When there are more successes than trials, or `error` is not inside 0 to 1.
    #[must_use]
    pub fn of(successes: u64, trials: u64, error: f64) -> Self {
        assert!(successes <= trials && error > 0.0 && error < 1.0, "a share and a probability");
        let (hits, misses) = (successes as f64, (trials - successes) as f64);
        let quantile = |a, b, p| Beta::new(a, b).expect("counts are not negative").inverse_cdf(p);
        Self {
            lower: if successes == 0 { 0.0 } else { quantile(hits, misses + 1.0, error) },
            upper: if successes == trials {
                1.0
            } else {
                quantile(hits + 1.0, misses, 1.0 - error)
            },
        }
    }
}

/// Misses among `trials` with which the upper bound still reaches `share`; none where it never does.
#[must_use]
pub fn misses_allowed(trials: u64, share: f64, error: f64) -> Option<u64> {
    let reaches = |misses: u64| ShareBounds::of(trials - misses, trials, error).upper >= share;
    if !reaches(0) {
        return None;
    }
    let (mut yes, mut no) = (0, trials + 1);
    while no - yes > 1 {
        let middle = u64::midpoint(yes, no);
        *(if reaches(middle) { &mut yes } else { &mut no }) = middle;
    }
    Some(yes)
}

#[cfg(test)]
mod tests {
    use super::{ShareBounds, misses_allowed};

    fn choose(n: u64, k: u64) -> f64 {
        (0..k).map(|i| (n - i) as f64 / (i + 1) as f64).product()
    }

    /// P(at least `successes` of `trials`) at probability p.
    fn at_least(successes: u64, trials: u64, p: f64) -> f64 {
        let exactly =
            |k: u64| choose(trials, k) * p.powf(k as f64) * (1.0 - p).powf((trials - k) as f64);
        (successes..=trials).map(exactly).sum()
    }

    #[test]
    fn bounds_are_where_the_binomial_tail_is_the_error() {
        for (successes, trials) in [(1, 10), (7, 10), (10, 10), (0, 10), (95, 100), (100, 100)] {
            for error in [0.05, 0.0125] {
                let bounds = ShareBounds::of(successes, trials, error);
                if successes > 0 {
                    let tail = at_least(successes, trials, bounds.lower);
                    assert!((tail - error).abs() < 1e-6, "{successes} {trials}: {tail}");
                }
                if successes < trials {
                    let tail = 1.0 - at_least(successes + 1, trials, bounds.upper);
                    assert!((tail - error).abs() < 1e-6, "{successes} {trials}: {tail}");
                }
            }
        }
        let none_missed = ShareBounds::of(299, 299, 0.05);
        assert!(none_missed.lower >= 0.99 && none_missed.upper >= 1.0, "0.99^299 is below 0.05");
        assert!(ShareBounds::of(298, 298, 0.05).lower < 0.99);
    }

    #[test]
    fn the_last_allowed_miss_is_the_one_before_the_bound_falls_short() {
        let allowed = misses_allowed(1000, 0.99, 0.0125).expect("a thousand may miss some");
        let upper = |misses| ShareBounds::of(1000 - misses, 1000, 0.0125).upper;
        assert!(upper(allowed) >= 0.99 && upper(allowed + 1) < 0.99, "{allowed}");
    }
}

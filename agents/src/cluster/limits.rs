//! What queueing theory says of clusters, as bounds and as oracles of the engine. See [`crate::queueing`] for
//! single queues.

/// Mean time in the system under the power of two choices, in service times, exponential service, many nodes:
/// `Σ_{i≥1} ρ^(2^i − 2)` (Vvedenskaya, Dobrushin and Karpelevich 1996; Mitzenmacher 2001). None under overload.
#[must_use]
pub fn two_choices_time(utilisation: f64) -> Option<f64> {
    (utilisation < 1.0).then_some(())?;
    let terms = (1..64).map(|i: i32| utilisation.powf(f64::from(i).exp2() - 2.0));
    Some(terms.take_while(|term| *term > 1e-18).sum())
}

/// Mean time in the system of M/M/1, in service times. None under overload.
#[must_use]
pub fn exponential_time(utilisation: f64) -> Option<f64> {
    (utilisation < 1.0).then(|| 1.0 / (1.0 - utilisation))
}

/// The same of M/D/1: the wait is half of that of M/M/1.
#[must_use]
pub fn constant_time(utilisation: f64) -> Option<f64> {
    (utilisation < 1.0).then(|| 1.0 + utilisation / (2.0 * (1.0 - utilisation)))
}

/// Mean of the slowest of k independent exponential times of mean 1: `1 + 1/2 + … + 1/k`.
#[must_use]
pub fn slowest_exponential_mean(legs: u32) -> f64 {
    (1..=legs).map(|leg| 1.0 / f64::from(leg)).sum()
}

/// What a share q of the slowest of k independent exponential times of mean 1 do not exceed: F(t)^k = q.
#[must_use]
pub fn slowest_exponential_quantile(legs: u32, q: f64) -> f64 {
    -(1.0 - q.powf(1.0 / f64::from(legs))).ln()
}

/// The largest of the loads of `nodes` to which `pairs` fall at random, about: `m + √(2 m ln n)` with m the
/// mean (Raab and Steger 1998, for m far above ln n).
#[must_use]
pub fn largest_random_load(pairs: f64, nodes: f64) -> f64 {
    let mean = pairs / nodes;
    mean + (2.0 * mean * nodes.ln().max(0.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::{
        constant_time, exponential_time, largest_random_load, slowest_exponential_mean,
        slowest_exponential_quantile, two_choices_time,
    };

    #[test]
    fn closed_forms_have_their_known_values() {
        // ρ, M/M/1, M/D/1, two choices: published tables.
        for (busy, one, constant, two) in [
            (0.5, 2.0, 1.5, 1.27),
            (0.7, 3.333, 2.167, 1.61),
            (0.9, 10.0, 5.5, 2.61),
            (0.95, 20.0, 10.5, 3.38),
            (0.99, 100.0, 50.5, 5.43),
        ] {
            let close = |found: Option<f64>, expected: f64| {
                let found = found.expect("no overload");
                assert!((found / expected - 1.0).abs() < 0.005, "{found} for {expected}");
            };
            close(exponential_time(busy), one);
            close(constant_time(busy), constant);
            close(two_choices_time(busy), two);
        }
        assert_eq!(two_choices_time(1.0), None);
        assert!((slowest_exponential_mean(8) - 761.0 / 280.0).abs() < 1e-12);
        let leg = 1.0 - (-slowest_exponential_quantile(8, 0.99)).exp();
        assert!((leg - 0.998_74).abs() < 1e-5, "{leg}");
        assert!((largest_random_load(64_000.0, 64.0) - 1091.2).abs() < 0.1);
    }
}

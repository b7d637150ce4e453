//! Arrivals: when requests mean to come, and which of them share a batch.
//!
//! Both follow from the seed alone. A batch's make-up never depends on how fast the machine is, so
//! the game is the same on every machine; only latencies differ.

use crate::ids::{RequestId, StepId};
use crate::rng::stream;
use rand::RngExt as _;
use rand_distr::{Distribution as _, Gamma};
use std::ops::Range;

/// How requests arrive, open loop: they come whether or not earlier ones were answered.
#[derive(Clone, Debug, PartialEq)]
pub enum ArrivalProcess {
    /// Independent exponential gaps.
    Poisson,
    /// Equal gaps.
    Constant,
    /// Independent gamma gaps whose standard deviation is `variation` times their mean; 1 is
    /// Poisson.
    Gamma {
        /// Coefficient of variation, above 0.
        variation: f64,
    },
    /// `requests` at a time, at exponential gaps.
    Burst {
        /// Requests that arrive together, ≥ 1.
        requests: u32,
    },
    /// Recorded instants in ns, ascending. They are stretched alike so that those that are used have
    /// the rate that is asked for: the shape of the load is the record's.
    Trace(Vec<u64>),
}

/// When a batch closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Requests that fill a batch; ≥ 1.
    pub requests_max: usize,
    /// Time after its first arrival at which a batch closes though it is not full, ns.
    pub window_ns: u64,
}

/// Consecutive requests that are served together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedBatch {
    /// Its id.
    pub step: StepId,
    /// Its requests.
    pub requests: Range<u32>,
    /// When it closes: no work on it starts earlier, ns since the run's start.
    pub closes_ns: u64,
}

impl PlannedBatch {
    /// The ids of its requests.
    pub fn request_ids(&self) -> impl Iterator<Item = RequestId> + use<> {
        self.requests.clone().map(RequestId)
    }
}

/// Intended arrival times of `requests` requests in ns since the run's start, ascending.
///
/// # Panics
/// When the rate or a setting is not positive, or a trace has fewer instants.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times are positive and far below 2^63 ns"
)]
pub fn intended_ns(
    process: &ArrivalProcess,
    rate_per_s: f64,
    requests: u32,
    seed: u64,
) -> Vec<u64> {
    assert!(rate_per_s > 0.0, "requests arrive at a positive rate");
    let mut rng = stream(seed, "arrivals");
    // 1 − u lies in (0, 1], so the logarithm is finite.
    let mut exponential = move || -(1.0 - rng.random::<f64>()).ln();
    let mut draws = stream(seed, "gamma gaps");
    let mut time_s = 0.0;
    let mut after = |gap_s: f64| {
        time_s += gap_s;
        (time_s * 1e9) as u64
    };
    match process {
        ArrivalProcess::Poisson => {
            (0..requests).map(|_| after(exponential() / rate_per_s)).collect()
        }
        ArrivalProcess::Constant => (0..requests).map(|_| after(1.0 / rate_per_s)).collect(),
        ArrivalProcess::Gamma { variation } => {
            let shape = variation.powi(-2);
            let gap = Gamma::new(shape, 1.0 / (shape * rate_per_s)).expect("positive parameters");
            (0..requests).map(|_| after(gap.sample(&mut draws))).collect()
        }
        ArrivalProcess::Burst { requests: together } => {
            assert!(*together > 0, "a burst has requests");
            let mut gap = |at: u32| match at % together {
                0 => exponential() * f64::from(*together) / rate_per_s,
                _ => 0.0,
            };
            (0..requests).map(|at| after(gap(at))).collect()
        }
        ArrivalProcess::Trace(recorded) => stretched(&recorded[..requests as usize], rate_per_s),
    }
}

/// Instants from 0 on whose mean gap is that of the rate; all 0 where they coincide.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times are positive and far below 2^63 ns"
)]
fn stretched(recorded_ns: &[u64], rate_per_s: f64) -> Vec<u64> {
    let (Some(first), Some(last)) = (recorded_ns.first(), recorded_ns.last()) else {
        return Vec::new();
    };
    let span_ns = (recorded_ns.len() - 1) as f64 / rate_per_s * 1e9;
    let stretch = if last > first { span_ns / (last - first) as f64 } else { 0.0 };
    recorded_ns.iter().map(|at| ((at - first) as f64 * stretch) as u64).collect()
}

/// Cuts arrivals into batches: one closes when it is full or when its window has passed.
///
/// # Panics
/// When a batch may hold no request.
#[must_use]
pub fn batches(intended_ns: &[u64], limits: BatchLimits) -> Vec<PlannedBatch> {
    assert!(limits.requests_max > 0, "a batch holds at least one request");
    let mut planned: Vec<PlannedBatch> = Vec::new();
    let mut first = 0;
    while first < intended_ns.len() {
        let window_end = intended_ns[first].saturating_add(limits.window_ns);
        let waiting = intended_ns[first..].iter().take(limits.requests_max);
        let count = waiting.take_while(|arrival| **arrival <= window_end).count();
        let last = first + count - 1;
        let full = count == limits.requests_max;
        let id = |index: usize| u32::try_from(index).expect("requests fit 32 bits");
        planned.push(PlannedBatch {
            step: StepId::from_index(planned.len()),
            requests: id(first)..id(last + 1),
            closes_ns: if full { intended_ns[last] } else { window_end },
        });
        first = last + 1;
    }
    planned
}

#[cfg(test)]
mod tests {
    use super::{ArrivalProcess, BatchLimits, batches, intended_ns};

    /// Mean gap in s, and the gaps' coefficient of variation.
    fn gaps(arrivals: &[u64]) -> (f64, f64) {
        let gaps: Vec<f64> = arrivals.windows(2).map(|w| (w[1] - w[0]) as f64 / 1e9).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() {
        let (mean, variation) = gaps(&intended_ns(&ArrivalProcess::Poisson, 200.0, 20_000, 1));
        // Four standard errors of the mean and of the coefficient of variation at n = 20 000.
        assert!((mean * 200.0 - 1.0).abs() < 0.029, "mean gap {mean}");
        assert!((variation - 1.0).abs() < 0.029);
    }

    #[test]
    fn gamma_gaps_have_the_mean_and_the_spread_that_are_asked_for() {
        for asked in [0.1, 0.5, 1.0, 2.0] {
            let process = ArrivalProcess::Gamma { variation: asked };
            let (mean, variation) = gaps(&intended_ns(&process, 200.0, 40_000, 1));
            // Four standard errors of a mean, and eight of a deviation: the tails are heavy.
            assert!((mean * 200.0 - 1.0).abs() < 4.0 * asked / 200.0, "{asked}: mean gap {mean}");
            assert!((variation / asked - 1.0).abs() < 0.08, "{asked}: {variation}");
        }
    }

    #[test]
    fn a_bursts_requests_arrive_together_and_the_rate_stays() {
        let arrivals = intended_ns(&ArrivalProcess::Burst { requests: 8 }, 200.0, 80_000, 3);
        assert!(arrivals.chunks(8).all(|burst| burst.iter().all(|at| *at == burst[0])));
        let starts: Vec<u64> = arrivals.iter().step_by(8).copied().collect();
        let (mean, variation) = gaps(&starts);
        assert!((mean * 200.0 / 8.0 - 1.0).abs() < 0.04 && (variation - 1.0).abs() < 0.04);
    }

    #[test]
    fn a_trace_keeps_its_shape_at_another_rate() {
        let recorded = vec![1_000, 1_000, 4_000, 9_000, 99_000];
        let process = ArrivalProcess::Trace(recorded);
        // Three gaps of 8 µs in all become 30 ms at 100 a second.
        let expected = [0, 0, 11_250_000, 30_000_000];
        assert_eq!(intended_ns(&process, 100.0, 4, 1), expected);
        let together = ArrivalProcess::Trace(vec![5, 5]);
        assert_eq!(intended_ns(&together, 100.0, 2, 1), [0, 0]);
    }

    #[test]
    fn constant_arrivals_are_equally_spaced() {
        assert_eq!(
            intended_ns(&ArrivalProcess::Constant, 4.0, 3, 9),
            [250_000_000, 500_000_000, 750_000_000]
        );
    }

    #[test]
    fn a_batch_closes_when_full_or_when_its_window_has_passed() {
        let limits = BatchLimits { requests_max: 3, window_ns: 10 };
        let planned = batches(&[0, 1, 2, 3, 20, 31], limits);
        let cut: Vec<_> = planned.iter().map(|b| (b.requests.clone(), b.closes_ns)).collect();
        assert_eq!(cut, [(0..3, 2), (3..4, 13), (4..5, 30), (5..6, 41)]);
    }

    #[test]
    fn every_request_is_in_exactly_one_batch() {
        let arrivals = intended_ns(&ArrivalProcess::Poisson, 100.0, 999, 3);
        let limits = BatchLimits { requests_max: 7, window_ns: 50_000_000 };
        let served: Vec<u32> =
            batches(&arrivals, limits).into_iter().flat_map(|b| b.requests).collect();
        assert_eq!(served, (0..999).collect::<Vec<_>>());
    }
}

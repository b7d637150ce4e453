//! What the summary says of the load generator and of answers that were decoded.

use crate::measure::{Latency, LatencyQuantiles};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Time from when a batch could have started, closed and with the one before ended, to when it did:
/// the generator's own delay, which is in every latency and is not the system's. Waiting for the batch
/// before is the system's and is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GeneratorLag {
    /// Batches released.
    pub count: u64,
    /// Median, ns.
    pub p50: Option<u64>,
    /// 99th percentile, ns.
    pub p99: Option<u64>,
    /// Largest, ns.
    pub max: Option<u64>,
    /// What `p99` may be: a hundredth of the median latency, ns; absent where nothing was answered.
    pub p99_limit: Option<u64>,
    /// Whether `p99` is above that: latencies are those of the generator too, then.
    pub lagged: bool,
}

impl GeneratorLag {
    /// The figures of a lag beside the latencies that it is in.
    #[must_use]
    pub fn of(lag: &Latency, latency: &Latency) -> Self {
        /// The generator may add this part of a median latency.
        const LIMIT: u64 = 100;
        let p99 = lag.quantile(0.99);
        let p99_limit = latency.quantile(0.5).map(|median| median / LIMIT);
        Self {
            count: lag.count(),
            p50: lag.quantile(0.5),
            p99,
            max: lag.quantile(1.0),
            p99_limit,
            lagged: p99.zip(p99_limit).is_some_and(|(p99, limit)| p99 > limit),
        }
    }
}

/// Steps of continuous batching, and what they computed. Which tokens a step computes follows from a
/// virtual clock: no step starts before its time on that clock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GenerationFigures {
    /// Tokens of a prompt and its answer, at most.
    pub context: u64,
    /// Requests that were cut to that.
    pub cut_requests: u64,
    /// Of answered requests.
    pub prompt_tokens: u64,
    /// Of answered requests.
    pub generated_tokens: u64,
    /// Steps done.
    pub steps: u64,
    /// Rows of a step, mean.
    pub tokens_per_step: Option<f64>,
    /// Time that steps took.
    pub step_ns: LatencyQuantiles,
    /// Time that the virtual clock gives a step, mean: the control. Steps that take longer make the
    /// schedule that of a faster machine, and requests wait.
    pub virtual_step_ns: Option<u64>,
    /// Share of steps that started more than a millisecond after their virtual time.
    pub behind_share: Option<f64>,
    /// The longest such delay, ns.
    pub behind_ns_max: u64,
    /// Keys and values held after a step, at most.
    pub cache_bytes_max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_lags_when_its_p99_is_above_a_hundredth_of_the_median_latency() {
        let (mut latency, mut lag) = (Latency::new(), Latency::new());
        (0..200).for_each(|_| latency.record(100_000));
        (0..199).for_each(|_| lag.record(500));
        assert!(!GeneratorLag::of(&lag, &latency).lagged);
        assert!(!GeneratorLag::of(&lag, &Latency::new()).lagged, "there is nothing to spoil");
        (0..4).for_each(|_| lag.record(1_500));
        let found = GeneratorLag::of(&lag, &latency);
        assert!(found.lagged && found.count == 203 && found.max >= Some(1_500), "{found:?}");
    }
}

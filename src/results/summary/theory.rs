//! What `summary.json` says of the tail beside queueing theory: each measured value with its bound, and
//! whether the bound's condition holds.

use agents::queueing::{
    ForkJoin, Queue, Times, exponential_response_quantile_ns, hottest_expert_rate_per_ns,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The quantile that bounds are of.
const P99: f64 = 0.99;

/// Gaps whose squared variation lies this far from 1 are no longer those of random arrivals.
const POISSON_TOLERANCE: f64 = 0.25;

/// Fewer batches or steps than this have no p99 of their own.
const COUNT_MIN: u64 = 100;

/// Measured tails beside their bounds. A bound whose condition does not hold is given all the same: then it
/// says what randomness alone would come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TailTheory {
    /// The queue of batches; absent where answers are decoded in steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueTheory>,
    /// Layers that wait for the slowest of their nodes; absent where experts are in this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<StepTheory>,
    /// What the expert that most tokens want lets through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hottest_expert: Option<HottestExpert>,
}

/// Batches, one after the other, as a queue M/G/1: from when a batch closes to its last answer, without the
/// load generator's lag, which `generator_lag_ns` has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueueTheory {
    /// Batches served.
    pub batches: u64,
    /// Batches that close in a second.
    pub rate_per_s: Option<f64>,
    /// Variance over squared mean of the gaps between them: 1 where they are random.
    pub gap_squared_variation: Option<f64>,
    /// Time that a batch takes, mean, ns.
    pub service_mean_ns: Option<f64>,
    /// Variance over squared mean of these times.
    pub service_squared_variation: Option<f64>,
    /// Share of time in which a batch is served: rate times mean.
    pub utilisation: Option<f64>,
    /// Wait of a closed batch for those before it, mean, ns: without the load generator's lag.
    pub wait_mean_ns: Option<f64>,
    /// The same by Pollaczek and Khinchine, from the measured rate and service times; null under overload.
    pub wait_mean_mg1_ns: Option<f64>,
    /// That wait and the batch's own time, 99th percentile, ns, to 3 %.
    pub response_p99_ns: Option<u64>,
    /// Its lower 95 % confidence limit, ns: one run's p99 lies around the expected one, and (1 − utilisation)²
    /// of the batches are taken for independent, as each finds the queue that others left.
    pub response_p99_lower_ns: Option<u64>,
    /// The same by M/G/1 with the measured service times, rounded up; null under overload.
    pub response_p99_mg1_ns: Option<f64>,
    /// The same had service times been exponential with the same mean; null under overload.
    pub response_p99_mm1_ns: Option<f64>,
    /// Times that a share of the batches do not exceed, up to the largest share that leaves one batch above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response: Vec<ResponseQuantile>,
    /// Whether `response_p99_lower_ns` is within `response_p99_mg1_ns`.
    pub within: Option<bool>,
    /// Whether that had to be so.
    pub condition_holds: bool,
    /// Why it had to, or had not.
    pub condition: String,
}

/// A time from a batch's closing to its end that a share of the batches do not exceed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResponseQuantile {
    /// The share.
    pub quantile: f64,
    /// As measured, ns, to 3 %.
    pub measured_ns: u64,
    /// By M/G/1 with the measured service times, rounded up, ns; null under overload.
    pub mg1_ns: Option<f64>,
}

/// Layers that wait for the slowest of the nodes that they ask, from their orders to the last reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepTheory {
    /// Layers of batches, of which the time of every node asked is known.
    pub steps: u64,
    /// The others: a node failed, or another answered for it.
    pub incomplete: u64,
    /// Nodes asked.
    pub nodes: u64,
    /// The slowest node, 99th percentile, ns, to 3 %.
    pub slowest_p99_ns: Option<u64>,
    /// Its lower 95 % confidence limit, ns.
    pub slowest_p99_lower_ns: Option<u64>,
    /// The same were the nodes' times independent: where the product of their distributions, F(t)^k for k
    /// equal nodes, reaches 99 %.
    pub independent_p99_ns: Option<u64>,
    /// The largest p99 of one node: no lower value is possible.
    pub leg_p99_ns: Option<u64>,
    /// Whether `slowest_p99_lower_ns` is within `independent_p99_ns`.
    pub within: Option<bool>,
    /// Whether that had to be so.
    pub condition_holds: bool,
    /// Why it had to, or had not.
    pub condition: String,
}

/// The cap that the hottest expert of each layer sets: 1 / Σ p s over the layers, p its share of the tokens
/// and s the time of a token–expert pair on its node, mean.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HottestExpert {
    /// Sum over layers of the largest share of tokens that one expert got.
    pub shares: f64,
    /// The same were all experts equally loaded.
    pub shares_even: f64,
    /// Time that nodes report for a pair, mean, ns.
    pub pair_ns: Option<f64>,
    /// Tokens a second that were answered.
    pub tokens_per_s: Option<f64>,
    /// No more could be.
    pub tokens_per_s_cap: Option<f64>,
    /// The cap were all experts equally loaded: what balance is worth.
    pub tokens_per_s_cap_even: Option<f64>,
    /// Whether `tokens_per_s` is within `tokens_per_s_cap`.
    pub within: Option<bool>,
    /// Whether that had to be so.
    pub condition_holds: bool,
    /// Why it had to, or had not.
    pub condition: String,
}

/// Batches as they closed and were served.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BatchTimes {
    service: Times,
    response: Times,
    gaps: Times,
    waits_ns: f64,
    last_close_ns: Option<u64>,
}

impl BatchTimes {
    /// A batch, in order: when it closed, and from when to when it was served. It could have started `lag_ns`
    /// earlier: that is the load generator's time and not the queue's.
    pub fn record(&mut self, close_ns: u64, served_ns: Range<u64>, lag_ns: u64) {
        let wait_ns = served_ns.start.saturating_sub(close_ns).saturating_sub(lag_ns);
        let service_ns = served_ns.end.saturating_sub(served_ns.start);
        self.service.record(service_ns);
        self.response.record(wait_ns + service_ns);
        self.waits_ns += wait_ns as f64;
        if let Some(last_ns) = self.last_close_ns.replace(close_ns) {
            self.gaps.record(close_ns.saturating_sub(last_ns));
        }
    }

    fn response(&self, queue: Option<Queue<'_>>) -> Vec<ResponseQuantile> {
        // Four to each further nine.
        let nines = (1..).map(|at| f64::from(at) * 0.25).map(|nines| 1.0 - 10_f64.powf(-nines));
        let count = self.response.count() as f64;
        let shares: Vec<f64> = nines.take_while(|share| count * (1.0 - share) >= 1.0).collect();
        let by_theory = queue.and_then(|queue| queue.response_quantiles_ns(&shares));
        let quantile = |(at, share): (usize, &f64)| {
            let mg1_ns = by_theory.as_ref().map(|times| times[at]);
            let measured_ns = self.response.quantile_ns(*share)?;
            Some(ResponseQuantile { quantile: *share, measured_ns, mg1_ns })
        };
        shares.iter().enumerate().filter_map(quantile).collect()
    }

    /// The figures. `whole` is false where requests were refused or the run did not complete.
    #[must_use]
    pub fn theory(&self, whole: bool) -> QueueTheory {
        let batches = self.service.count();
        let rate_per_ns = self.gaps.mean_ns().filter(|gap| *gap > 0.0).map(|gap| 1.0 / gap);
        let queue = rate_per_ns.map(|rate_per_ns| Queue { rate_per_ns, service: &self.service });
        let utilisation = queue.map(|queue| queue.utilisation());
        let service_mean_ns = self.service.mean_ns();
        let response_p99_ns = self.response.quantile_ns(P99);
        let idle = 1.0 - utilisation.unwrap_or(0.0).min(1.0);
        let independent = batches as f64 * idle * idle;
        let response_p99_lower_ns = self.response.quantile_lower_ns(P99, independent);
        let response_p99_mg1_ns = queue.and_then(|queue| queue.response_quantile_ns(P99));
        let gap_squared_variation = self.gaps.squared_variation();
        let is_random =
            gap_squared_variation.is_some_and(|gap| (gap - 1.0).abs() <= POISSON_TOLERANCE);
        let (condition_holds, condition) = if !whole {
            (false, "requests were refused, or the run did not complete".to_owned())
        } else if batches < COUNT_MIN {
            (false, format!("fewer than {COUNT_MIN} batches have no p99 of their own"))
        } else if utilisation.is_some_and(|busy| busy >= 1.0) {
            (false, "overload: more closes than can be served, so there is no bound".to_owned())
        } else if !is_random {
            let gap = gap_squared_variation.unwrap_or(0.0);
            (
                false,
                format!(
                    "batches do not close at random: their gaps' squared variation is {gap:.2}, not 1"
                ),
            )
        } else {
            (true, "batches close at random and are served one after the other; holds where service times do not depend on each other".to_owned())
        };
        QueueTheory {
            batches,
            rate_per_s: rate_per_ns.map(|rate| rate * 1e9),
            gap_squared_variation,
            service_mean_ns,
            service_squared_variation: self.service.squared_variation(),
            utilisation,
            wait_mean_ns: (batches > 0).then(|| self.waits_ns / batches as f64),
            wait_mean_mg1_ns: queue.and_then(|queue| queue.mean_wait_ns()),
            response_p99_ns,
            response_p99_lower_ns,
            response_p99_mg1_ns,
            response_p99_mm1_ns: service_mean_ns
                .zip(utilisation)
                .and_then(|(mean, busy)| exponential_response_quantile_ns(mean, busy, P99)),
            response: self.response(queue),
            within: response_p99_lower_ns
                .zip(response_p99_mg1_ns)
                .map(|(measured, bound)| measured as f64 <= bound),
            condition_holds,
            condition,
        }
    }
}

impl StepTheory {
    /// The figures of what was measured.
    #[must_use]
    pub fn of(found: &ForkJoin) -> Self {
        let (steps, incomplete) = (found.steps(), found.incomplete());
        let slowest_p99_lower_ns = found.slowest_quantile_lower_ns(P99);
        let independent_p99_ns = found.independent_quantile_ns(P99);
        let (condition_holds, condition) = if steps < COUNT_MIN {
            (false, format!("fewer than {COUNT_MIN} steps have no p99 of their own"))
        } else if incomplete > 0 {
            (
                false,
                format!(
                    "{incomplete} steps are left out: a node's own time is not known, and it was long"
                ),
            )
        } else {
            (true, "an upper bound where the nodes' times are independent or slow together; a p99 above it says that something slows them in turn".to_owned())
        };
        Self {
            steps,
            incomplete,
            nodes: found.nodes() as u64,
            slowest_p99_ns: found.slowest_quantile_ns(P99),
            slowest_p99_lower_ns,
            independent_p99_ns,
            leg_p99_ns: found.leg_quantile_ns(P99),
            within: slowest_p99_lower_ns
                .zip(independent_p99_ns)
                .map(|(found, bound)| found <= bound),
            condition_holds,
            condition,
        }
    }
}

impl HottestExpert {
    /// The figures: sums over layers of the hottest expert's share of the tokens and of an even one, the
    /// time of a pair, and the rate reached.
    #[must_use]
    pub fn new(
        (shares, shares_even): (f64, f64),
        pair_ns: Option<f64>,
        tokens_per_s: Option<f64>,
        has_copies: bool,
    ) -> Self {
        let cap = |shares: f64| {
            let per_ns = hottest_expert_rate_per_ns([shares], pair_ns?)?;
            Some(per_ns * 1e9)
        };
        let tokens_per_s_cap = cap(shares);
        let condition = if has_copies {
            "experts had copies, which share their tokens: the cap is that of one copy"
        } else {
            "an expert is on one node, which computes its tokens one order after the other; pairs are \
             taken to cost the same on all"
        };
        Self {
            shares,
            shares_even,
            pair_ns,
            tokens_per_s,
            tokens_per_s_cap,
            tokens_per_s_cap_even: cap(shares_even),
            within: tokens_per_s.zip(tokens_per_s_cap).map(|(rate, cap)| rate <= cap),
            condition_holds: !has_copies,
            condition: condition.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agents::rng::stream;
    use rand::RngExt as _;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "times are not negative and far below 2^53"
    )]
    /// Batches of equal service at random and at equal gaps, by the queue's own rule.
    fn batches(gap: impl FnMut() -> f64) -> BatchTimes {
        let (mut gap, mut times) = (gap, BatchTimes::default());
        let (mut close, mut free) = (0.0, 0.0_f64);
        for _ in 0..20_000 {
            close += gap();
            let start = free.max(close);
            free = start + 600_000.0;
            times.record(close as u64, start as u64..free as u64, 0);
        }
        times
    }

    #[test]
    fn random_batches_have_a_condition_that_holds_and_are_within_the_bound() {
        let mut rng = stream(3, "batches");
        let found = batches(|| -1e6 * (1.0 - rng.random::<f64>()).ln()).theory(true);
        assert!(found.condition_holds, "{found:?}");
        assert_eq!(found.within, Some(true), "{found:?}");
        let (wait, bound) = (found.wait_mean_ns, found.wait_mean_mg1_ns);
        let ratio = wait.zip(bound).map(|(wait, bound)| wait / bound).expect("both are there");
        assert!((0.9..1.1).contains(&ratio), "{ratio}: {found:?}");
        assert!(found.response_p99_mg1_ns < found.response_p99_mm1_ns, "{found:?}");
    }

    #[test]
    fn where_the_condition_does_not_hold_it_is_said() {
        for (times, whole, says) in [
            (batches(|| 1e6), true, "do not close at random"),
            (batches(|| 5e5), true, "overload"),
            (batches(|| 1e6), false, "refused"),
            (BatchTimes::default(), true, "fewer than 100"),
        ] {
            let found = times.theory(whole);
            assert!(!found.condition_holds && found.condition.contains(says), "{found:?}");
            let overload = says == "overload";
            assert_eq!(found.response_p99_mg1_ns.is_none(), overload || found.batches == 0);
        }
    }
}

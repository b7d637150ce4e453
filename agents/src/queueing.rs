//! What queueing theory says of a tail: a queue with one server, a step that waits for several nodes, an
//! expert that everybody wants. Times are in nanoseconds.
//!
//! Pollaczek (1930), Khinchine (1932): the M/G/1 queue; its waiting time is a geometric sum of residual
//! service times (Beneš 1957), summed here by Panjer's recursion (1981). Slowest of k: independent legs
//! are a stochastic upper bound of legs in queues that random fans reach (Wang, Harchol-Balter, Jiang,
//! Scheller-Wolf, Srikant, Queueing Systems 2019).

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "cells and times are not negative and far below 2^53; buckets end at 2^64 - 1"
)]

use crate::ids::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Buckets of a factor of two: values of one bucket differ by 1/32 at most.
const PARTS: u64 = 32;
const PARTS_LOG2: u32 = PARTS.ilog2();
const BUCKETS: usize = (64 - PARTS_LOG2 as usize + 1) * PARTS as usize;

/// Cells that a waiting time is summed over.
const CELLS: usize = 4096;

/// Measured times: their exact moments, and how many lie in which of buckets that are 3 % wide (15 KiB).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    counts: Vec<u64>,
    count: u64,
    sum: f64,
    sum_of_squares: f64,
}

impl Default for Times {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], count: 0, sum: 0.0, sum_of_squares: 0.0 }
    }
}

impl Times {
    /// One more.
    pub fn record(&mut self, time_ns: u64) {
        self.counts[bucket(time_ns)] += 1;
        self.count += 1;
        let time = time_ns as f64;
        self.sum += time;
        self.sum_of_squares += time * time;
    }

    /// Adds all times of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.count += other.count;
        self.sum += other.sum;
        self.sum_of_squares += other.sum_of_squares;
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; none without times.
    #[must_use]
    pub fn mean_ns(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// The mean of their squares, ns²; none without times.
    #[must_use]
    pub fn second_moment(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum_of_squares / self.count as f64)
    }

    /// Variance over squared mean: 1 for exponential times, 0 for equal ones.
    #[must_use]
    pub fn squared_variation(&self) -> Option<f64> {
        let (mean, square) = (self.mean_ns()?, self.second_moment()?);
        (mean > 0.0).then(|| (square / (mean * mean) - 1.0).max(0.0))
    }

    /// The smallest time, rounded up to its bucket's end, that a share `q` does not exceed.
    #[must_use]
    pub fn quantile_ns(&self, q: f64) -> Option<u64> {
        self.quantile_bucket(q).map(bucket_end_ns)
    }

    /// The 95 % confidence limit below the quantile, rounded down, where so many of the times count as
    /// independent.
    #[must_use]
    pub fn quantile_lower_ns(&self, q: f64, independent: f64) -> Option<u64> {
        const ONE_SIDED_95: f64 = 1.645;
        let deviation = (q * (1.0 - q) / independent.max(1.0)).sqrt();
        let at = self.quantile_bucket(q - ONE_SIDED_95 * deviation)?;
        Some(if at == 0 { 0 } else { bucket_end_ns(at - 1) + 1 })
    }

    fn quantile_bucket(&self, q: f64) -> Option<usize> {
        let mut below = 0;
        let needed = (q.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0);
        self.counts.iter().position(|count| {
            below += count;
            below as f64 >= needed
        })
    }

    /// Buckets with times: the middle of each, scaled so that the mean is exact, and its share.
    fn shares(&self) -> Vec<(f64, f64)> {
        let middle = |at: usize| {
            let before = if at == 0 { 0 } else { bucket_end_ns(at - 1) };
            (before as f64 + bucket_end_ns(at) as f64) / 2.0
        };
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let mut shares: Vec<(f64, f64)> =
            filled.map(|(at, count)| (middle(at), *count as f64 / self.count as f64)).collect();
        let mean: f64 = shares.iter().map(|(time, share)| time * share).sum();
        let scale = self.mean_ns().map_or(1.0, |exact| if mean > 0.0 { exact / mean } else { 1.0 });
        shares.iter_mut().for_each(|(time, _)| *time *= scale);
        shares
    }
}

fn bucket(time: u64) -> usize {
    let place = if time < PARTS {
        time
    } else {
        let shift = time.ilog2() - PARTS_LOG2;
        u64::from(shift + 1) * PARTS + ((time >> shift) & (PARTS - 1))
    };
    usize::try_from(place).expect("there are two thousand buckets")
}

fn bucket_end_ns(at: usize) -> u64 {
    let (octave, part) = (at as u64 / PARTS, at as u64 % PARTS);
    if octave == 0 {
        return part;
    }
    let shift = u32::try_from(octave - 1).expect("64 octaves");
    // The last bucket ends with the largest number.
    (((PARTS + part + 1) as u128) << shift).wrapping_sub(1).min(u128::from(u64::MAX)) as u64
}

/// A queue with one server that is reached at random: M/G/1.
#[derive(Clone, Copy, Debug)]
pub struct Queue<'a> {
    /// Arrivals in a nanosecond.
    pub rate_per_ns: f64,
    /// How long the server takes for each.
    pub service: &'a Times,
}

impl Queue<'_> {
    /// The share of time in which the server is busy: overload from 1 on.
    #[must_use]
    pub fn utilisation(&self) -> f64 {
        self.rate_per_ns * self.service.mean_ns().unwrap_or(0.0)
    }

    /// Pollaczek–Khinchine: `λ E[S²] / 2(1 − ρ)`, the mean wait. None under overload.
    #[must_use]
    pub fn mean_wait_ns(&self) -> Option<f64> {
        let left = 1.0 - self.utilisation();
        (left > 0.0).then_some(())?;
        Some(self.rate_per_ns * self.service.second_moment()? / (2.0 * left))
    }

    /// What a share `q` of the times from arrival to end do not exceed; rounded up, by some percent at
    /// the highest utilisations. None under overload, so near to it that cells of the longest service time do not reach far
    /// enough (from a utilisation of about 0.998 on, for the 99th percentile), and without service times.
    #[must_use]
    pub fn response_quantile_ns(&self, q: f64) -> Option<f64> {
        self.response_quantiles_ns(&[q])?.pop()
    }

    /// The same of several shares, with cells as wide as the largest needs them.
    #[must_use]
    pub fn response_quantiles_ns(&self, shares_below: &[f64]) -> Option<Vec<f64>> {
        let busy = self.utilisation();
        let shares = self.service.shares();
        let mean = self.service.mean_ns().filter(|mean| *mean > 0.0)?;
        if busy >= 1.0 || !shares_below.iter().all(|q| (0.0..1.0).contains(q)) {
            return None;
        }
        let largest = shares_below.iter().copied().fold(0.0, f64::max);
        let longest = shares.last()?.0;
        // Doubled until the cells reach far enough.
        let mut cell = longest.max(mean) / 256.0;
        loop {
            let wait = wait_distribution(busy, &shares, mean, cell);
            let response = |at: usize| -> f64 {
                let below = |&(time, share): &(f64, f64)| {
                    let left = at as f64 - (time / cell).ceil();
                    if left < 0.0 { 0.0 } else { share * wait[left as usize] }
                };
                shares.iter().map(below).sum()
            };
            if response(CELLS - 1) >= largest {
                let cells: Vec<usize> = (0..CELLS).collect();
                let at = |q: &f64| cells.partition_point(|at| response(*at) < *q) as f64 * cell;
                return Some(shares_below.iter().map(at).collect());
            }
            if cell > longest {
                // All service times are in one cell by now: wider ones do not reach further in cells.
                return None;
            }
            cell *= 2.0;
        }
    }
}

/// P(W ≤ j cells) of an M/G/1 queue's waiting time, each residual service time rounded up to a cell.
fn wait_distribution(busy: f64, shares: &[(f64, f64)], mean: f64, cell: f64) -> Vec<f64> {
    // The residual time has density P(S > x) / E[S].
    let residual_below =
        |x: f64| shares.iter().map(|(time, share)| share * time.min(x)).sum::<f64>() / mean;
    let ends: Vec<f64> = (0..CELLS).map(|j| residual_below(j as f64 * cell)).collect();
    let mut residual: Vec<f64> = ends.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // No residual time is longer than the longest service.
    let cells = residual.iter().rposition(|share| *share != 0.0).map_or(0, |last| last + 1);
    residual.truncate(cells);
    let mut exactly = vec![0.0; CELLS];
    exactly[0] = 1.0 - busy;
    for j in 1..CELLS {
        let sum: f64 = (1..=j.min(cells)).map(|i| residual[i - 1] * exactly[j - i]).sum();
        exactly[j] = busy * sum;
    }
    let mut below = 0.0;
    for share in &mut exactly {
        below += *share;
        *share = below;
    }
    exactly
}

/// ln(1/(1 − q)) S / (1 − ρ): the response quantile where service times are exponential (M/M/1). None
/// under overload.
#[must_use]
pub fn exponential_response_quantile_ns(mean_ns: f64, utilisation: f64, q: f64) -> Option<f64> {
    (utilisation < 1.0).then(|| mean_ns * -(1.0 - q).ln() / (1.0 - utilisation))
}

/// Steps that wait for the slowest of several nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ForkJoin {
    /// Of whole steps.
    slowest: Times,
    /// By node, of the steps that asked it.
    legs: BTreeMap<NodeId, Times>,
    /// Steps in which not every node's own time is known.
    incomplete: u64,
}

impl ForkJoin {
    /// A step in which these nodes took these times.
    pub fn record(&mut self, legs: impl IntoIterator<Item = (NodeId, u64)>) {
        let mut slowest_ns = 0;
        for (node, time_ns) in legs {
            self.legs.entry(node).or_default().record(time_ns);
            slowest_ns = slowest_ns.max(time_ns);
        }
        self.slowest.record(slowest_ns);
    }

    /// A step in which a node's own time is not known: another answered for it.
    pub fn record_incomplete(&mut self) {
        self.incomplete += 1;
    }

    /// Adds all steps of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.slowest.merge(&other.slowest);
        for (node, times) in &other.legs {
            self.legs.entry(*node).or_default().merge(times);
        }
        self.incomplete += other.incomplete;
    }

    /// Steps of which every time is known.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.slowest.count()
    }

    /// The others.
    #[must_use]
    pub fn incomplete(&self) -> u64 {
        self.incomplete
    }

    /// Nodes that were asked at all.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.legs.len()
    }

    /// What a share `q` of the steps took at most, as measured.
    #[must_use]
    pub fn slowest_quantile_ns(&self, q: f64) -> Option<u64> {
        self.slowest.quantile_ns(q)
    }

    /// The 95 % confidence limit below that, rounded down.
    #[must_use]
    pub fn slowest_quantile_lower_ns(&self, q: f64) -> Option<u64> {
        self.slowest.quantile_lower_ns(q, self.steps() as f64)
    }

    /// The largest of the nodes' own quantiles: no step's can be below it.
    #[must_use]
    pub fn leg_quantile_ns(&self, q: f64) -> Option<u64> {
        let of_all = |times: &Times| {
            // In steps that did not ask it a node takes no time.
            let steps = self.steps() as f64;
            let share = 1.0 - (1.0 - q) * steps / times.count() as f64;
            if share <= 0.0 { Some(0) } else { times.quantile_ns(share) }
        };
        self.legs.values().filter_map(of_all).max()
    }

    /// The time at which the product of the nodes' distributions reaches `q`: what a share `q` of the
    /// steps would take at most if the nodes' times were independent. An upper bound where they are
    /// positively associated; measured times above it say that something slows nodes in turn. For k
    /// nodes of one distribution F it is that of F(t)^k.
    #[must_use]
    pub fn independent_quantile_ns(&self, q: f64) -> Option<u64> {
        let steps = self.steps();
        let mut below: Vec<u64> = self.legs.values().map(|leg| steps - leg.count()).collect();
        (steps > 0).then_some(())?;
        let found = (0..BUCKETS).find(|at| {
            let product: f64 = self
                .legs
                .values()
                .zip(&mut below)
                .map(|(leg, below)| {
                    *below += leg.counts[*at];
                    *below as f64 / steps as f64
                })
                .product();
            product >= q
        });
        found.map(bucket_end_ns)
    }
}

/// The highest rate of tokens when in each layer a share `hottest` of them goes to one expert, which takes
/// `service_ns` for each on one thread: 1 / Σ p s. None where that takes no time.
#[must_use]
pub fn hottest_expert_rate_per_ns(
    hottest: impl IntoIterator<Item = f64>,
    service_ns: f64,
) -> Option<f64> {
    let time: f64 = hottest.into_iter().map(|share| share * service_ns).sum();
    (time > 0.0).then(|| 1.0 / time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use rand::RngExt as _;

    const MEAN_NS: f64 = 1e6;

    /// Exponential times by their quantiles.
    fn exponential() -> Times {
        let mut times = Times::default();
        let n = 100_000;
        for i in 0..n {
            let u = (f64::from(i) + 0.5) / f64::from(n);
            times.record((-(1.0 - u).ln() * MEAN_NS).round() as u64);
        }
        times
    }

    fn constant() -> Times {
        let mut times = Times::default();
        (0..1000).for_each(|_| times.record(MEAN_NS as u64));
        times
    }

    fn queue(service: &Times, utilisation: f64) -> Queue<'_> {
        Queue { rate_per_ns: utilisation / service.mean_ns().expect("times"), service }
    }

    fn close(found: f64, expected: f64, tolerance: f64) {
        let error = (found / expected - 1.0).abs();
        assert!(error <= tolerance, "{found} for {expected}: off by {error}");
    }

    #[test]
    fn buckets_are_in_order_without_gaps_and_no_wider_than_a_thirty_second() {
        let mut start = 0_u64;
        for at in 0..BUCKETS {
            let end = bucket_end_ns(at);
            assert_eq!((bucket(start), bucket(end)), (at, at), "from {start} to {end}");
            assert!((end - start) as f64 <= start as f64 / PARTS as f64, "{start} to {end}");
            if at + 1 < BUCKETS {
                start = end + 1;
            } else {
                assert_eq!(end, u64::MAX);
            }
        }
    }

    #[test]
    fn mean_waits_are_those_of_the_closed_formulas() {
        let (exponential, constant) = (exponential(), constant());
        for busy in [0.1, 0.5, 0.7, 0.9, 0.95, 0.99] {
            let mm1 = busy / (1.0 - busy) * MEAN_NS;
            close(queue(&exponential, busy).mean_wait_ns().expect("no overload"), mm1, 1e-3);
            close(queue(&constant, busy).mean_wait_ns().expect("no overload"), mm1 / 2.0, 1e-9);
        }
        assert_eq!(queue(&constant, 1.0).mean_wait_ns(), None);
        assert_eq!(queue(&constant, 1.5).response_quantile_ns(0.99), None);
        // So near to overload that no number of cells is enough: the search for one ends.
        for busy in [0.9995, 0.999_999, 1.0 - 1e-12] {
            assert_eq!(queue(&constant, busy).response_quantile_ns(0.99), None, "{busy}");
        }
        assert!(queue(&constant, 0.995).response_quantile_ns(0.99).is_some());
        let nothing = Queue { rate_per_ns: 1.0, service: &Times::default() };
        assert_eq!(nothing.response_quantile_ns(0.99), None);
    }

    #[test]
    fn the_p99_of_exponential_service_is_that_of_m_m_1() {
        let times = exponential();
        // Table of `exponential_response_quantile_ns`: 9.2, 15.4, 46.1, 92.1 service times.
        for (busy, expected) in [(0.5, 9.2), (0.7, 15.4), (0.9, 46.1), (0.95, 92.1)] {
            let mm1 = exponential_response_quantile_ns(1.0, busy, 0.99).expect("no overload");
            close(mm1, expected, 4e-3);
            let found = queue(&times, busy).response_quantile_ns(0.99).expect("no overload");
            close(found, mm1 * MEAN_NS, 0.03);
            assert!(found >= 0.995 * mm1 * MEAN_NS, "a bound: {found}");
        }
    }

    /// P(W ≤ x) of M/D/1, for service times of 1 (Erlang, Crommelin).
    fn md1_wait_below(busy: f64, x: f64) -> f64 {
        let mut sum = 0.0;
        let mut k = 0;
        while f64::from(k) <= x {
            let u = busy * (x - f64::from(k));
            let factorial: f64 = (1..=k).map(f64::from).product();
            sum += (-u).powi(k) / factorial * u.exp();
            k += 1;
        }
        (1.0 - busy) * sum
    }

    #[test]
    fn the_p99_of_constant_service_is_that_of_m_d_1() {
        let times = constant();
        for busy in [0.3, 0.5, 0.7, 0.8] {
            let found = queue(&times, busy).response_quantile_ns(0.99).expect("no overload");
            let mut at = 1.0;
            while md1_wait_below(busy, at - 1.0) < 0.99 {
                at += 1e-3;
            }
            close(found, at * MEAN_NS, 0.02);
            assert!(found >= 0.999 * at * MEAN_NS, "a bound: {found} for {at}");
        }
    }

    #[test]
    fn a_simulated_queue_stays_below_the_bound_and_close_to_it() {
        let mut rng = stream(1, "queue");
        let mut exponential = |mean: f64| -mean * (1.0 - rng.random::<f64>()).ln();
        let (mut service, mut response) = (Times::default(), Times::default());
        let (mut now, mut free) = (0.0_f64, 0.0_f64);
        let mut kinds = stream(1, "kinds");
        for _ in 0..300_000 {
            now += exponential(MEAN_NS / 0.7);
            // Two kinds of work: squared variation above 1.
            let is_long = kinds.random_bool(0.1);
            let took = exponential(if is_long { 4.0 } else { 0.667 }) * MEAN_NS;
            free = free.max(now) + took;
            service.record(took as u64);
            response.record((free - now) as u64);
        }
        let queue = Queue { rate_per_ns: 300_000.0 / now, service: &service };
        let bound = queue.response_quantile_ns(0.99).expect("no overload");
        let measured = response.quantile_ns(0.99).expect("times") as f64;
        close(measured, bound, 0.1);
        assert!(measured <= 1.05 * bound, "{measured} above {bound}");
    }

    #[test]
    fn the_slowest_of_k_independent_legs_follows_the_power_of_their_distribution() {
        let mut rng = stream(2, "legs");
        for (k, leg_quantile) in [(2_u32, 0.99499), (4, 0.99749), (8, 0.99874), (16, 0.99937)] {
            let mut found = ForkJoin::default();
            for _ in 0..100_000 {
                let times = (0..k).map(|node| {
                    let time = -MEAN_NS * (1.0 - rng.random::<f64>()).ln();
                    (NodeId(node), time as u64)
                });
                found.record(times.collect::<Vec<_>>());
            }
            let expected = -MEAN_NS * (1.0_f64 - leg_quantile).ln();
            let bound = found.independent_quantile_ns(0.99).expect("steps") as f64;
            close(bound, expected, 0.06);
            let measured = found.slowest_quantile_ns(0.99).expect("steps") as f64;
            close(measured, bound, 0.06);
        }
    }

    #[test]
    fn legs_that_are_slow_together_stay_below_the_bound_and_those_that_take_turns_do_not() {
        let (mut together, mut in_turn) = (ForkJoin::default(), ForkJoin::default());
        for step in 0..10_000_u64 {
            let slow = |is_slow: bool| if is_slow { 1_000_000 } else { 1_000 };
            together.record((0..4).map(|node| (NodeId(node), slow(step % 250 == 0))));
            in_turn.record((0..4).map(|node| (NodeId(node), slow(step % 250 == u64::from(node)))));
        }
        let quantiles = |of: &ForkJoin| {
            (
                of.slowest_quantile_ns(0.99),
                of.independent_quantile_ns(0.99),
                of.leg_quantile_ns(0.99),
            )
        };
        let (measured, bound, leg) = quantiles(&together);
        assert!(measured <= bound && leg <= measured, "{measured:?} {bound:?} {leg:?}");
        let (measured, bound, _) = quantiles(&in_turn);
        assert!(measured >= bound, "{measured:?} {bound:?}");
    }

    #[test]
    fn a_node_that_few_steps_ask_takes_no_time_in_the_others() {
        let mut found = ForkJoin::default();
        for step in 0..1000_u64 {
            let rare = (step % 500 == 0).then_some((NodeId(1), 9_000_000));
            found.record([(NodeId(0), 1_000)].into_iter().chain(rare));
        }
        assert!(found.independent_quantile_ns(0.99) < Some(1_100), "two of a thousand steps");
        assert!(found.independent_quantile_ns(0.9985) > Some(8_000_000));
        assert!(found.leg_quantile_ns(0.99) < Some(1_100));
        assert_eq!((found.nodes(), found.steps(), found.incomplete()), (2, 1000, 0));
    }

    #[test]
    fn the_hottest_expert_caps_the_rate() {
        let rate = hottest_expert_rate_per_ns([0.5, 0.25], 1000.0).expect("it takes time");
        close(rate, 1.0 / 750.0, 1e-12);
        assert_eq!(hottest_expert_rate_per_ns([], 1000.0), None);
    }
}

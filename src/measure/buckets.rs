//! Durations counted in fixed buckets, for whoever looks on while they are counted. Latencies of results are in
//! [`super::Latency`], which is finer and is not shared between threads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts durations by their upper bounds. Many threads may count while others read.
#[derive(Debug)]
pub struct Buckets {
    bounds_ns: &'static [u64],
    counts: Vec<AtomicU64>,
    sum_ns: AtomicU64,
}

/// What was counted up to a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketCounts {
    /// Durations up to a bound, ns, and above the bound before; ascending.
    pub up_to: Vec<(u64, u64)>,
    /// Durations above the last bound.
    pub above: u64,
    /// All durations together, ns.
    pub sum_ns: u64,
}

impl Buckets {
    /// Nothing is counted yet.
    ///
    /// # Panics
    /// Bounds that do not ascend.
    #[must_use]
    pub fn new(bounds_ns: &'static [u64]) -> Self {
        assert!(bounds_ns.is_sorted_by(|a, b| a < b), "bounds ascend");
        let counts = (0..=bounds_ns.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds_ns, counts, sum_ns: AtomicU64::new(0) }
    }

    /// Counts one duration.
    pub fn count(&self, ns: u64) {
        let at = self.bounds_ns.partition_point(|bound_ns| *bound_ns < ns);
        self.counts[at].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(ns, Relaxed);
    }

    /// All durations together, ns.
    #[must_use]
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.load(Relaxed)
    }

    /// What is counted so far.
    #[must_use]
    pub fn now(&self) -> BucketCounts {
        let mut counts = self.counts.iter().map(|count| count.load(Relaxed));
        let up_to = self.bounds_ns.iter().copied().zip(&mut counts).collect();
        BucketCounts { up_to, above: counts.next().unwrap_or_default(), sum_ns: self.sum_ns() }
    }
}

impl BucketCounts {
    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.up_to.iter().map(|(_, count)| count).sum::<u64>() + self.above
    }
}

#[cfg(test)]
mod tests {
    use super::Buckets;

    #[test]
    fn a_duration_counts_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let buckets = Buckets::new(&[10, 100]);
        for ns in [0, 10, 11, 100, 101, 5_000] {
            buckets.count(ns);
        }
        let now = buckets.now();
        assert_eq!(now.up_to, [(10, 2), (100, 2)]);
        assert_eq!((now.above, now.count(), now.sum_ns), (2, 6, 5_222));
    }
}

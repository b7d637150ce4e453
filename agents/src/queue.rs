//! A bounded queue whose waiting time is kept short, when more is asked than can be served.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What a [`Queue`] may hold, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueLimits {
    /// Requests that have arrived and wait, ≥ 1; more are refused.
    pub requests_max: usize,
    /// What a batch may wait after it closed while the queue stands, ns.
    pub target_ns: u64,
    /// What it may wait otherwise; and how long the queue must not have been empty to count as
    /// standing, ns.
    pub interval_ns: u64,
}

/// Gives up batches that have waited too long, so that those that are served are fresh.
///
/// The rule is CoDel's idea (Nichols and Jacobson, ACM Queue 10(5), 2012) in the form that servers use
/// (Maurer, "Fail at Scale", ACM Queue 13(8), 2015): a queue that was empty within the last interval takes a
/// burst, and its batches may wait an interval; one that was not is standing, and its batches may
/// wait only the target. It needs no service times and no deadline. Batches are given up whole, because
/// what is left of one would take as long as all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Queue {
    limits: QueueLimits,
    /// When the batches before left the queue, and with how many requests: as far back as requests of the
    /// next batch may have arrived.
    left: VecDeque<(u64, usize)>,
    /// When the queue was last empty.
    empty_ns: u64,
}

/// What becomes of a batch's requests, each in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed<I> {
    /// Served.
    pub admitted: Vec<I>,
    /// Refused when they arrived: the queue was full.
    pub shed: Vec<I>,
    /// Given up after they had waited.
    pub timed_out: Vec<I>,
}

impl Queue {
    /// An empty queue.
    ///
    /// # Panics
    /// When it may hold no request.
    #[must_use]
    pub fn new(limits: QueueLimits) -> Self {
        assert!(limits.requests_max > 0, "a queue holds a request");
        Self { limits, left: VecDeque::new(), empty_ns: 0 }
    }

    /// Decides on the next batch, which closed at `closed_ns` and could start at `now_ns`. A request is an id
    /// and its intended arrival, ns, ascending.
    pub fn pass<I: Copy>(
        &mut self,
        requests: &[(I, u64)],
        closed_ns: u64,
        now_ns: u64,
    ) -> Passed<I> {
        /// A batch that starts this soon after it closed found no queue.
        const AT_ONCE_NS: u64 = 1_000_000;
        let QueueLimits { requests_max, target_ns, interval_ns } = self.limits;
        let waited_ns = now_ns.saturating_sub(closed_ns);
        if waited_ns <= AT_ONCE_NS {
            self.empty_ns = now_ns;
        }
        let (mut waiting, mut shed) = (Vec::new(), Vec::new());
        for (request, arrived_ns) in requests {
            while self.left.front().is_some_and(|(left_ns, _)| left_ns <= arrived_ns) {
                self.left.pop_front();
            }
            let before: usize = self.left.iter().map(|(_, requests)| requests).sum();
            let list = if before + waiting.len() < requests_max { &mut waiting } else { &mut shed };
            list.push(*request);
        }
        let is_standing = now_ns.saturating_sub(self.empty_ns) > interval_ns;
        let patience_ns = if is_standing { target_ns } else { interval_ns };
        if !waiting.is_empty() {
            self.left.push_back((now_ns, waiting.len()));
        }
        let (admitted, timed_out) =
            if waited_ns > patience_ns { (Vec::new(), waiting) } else { (waiting, Vec::new()) };
        Passed { admitted, shed, timed_out }
    }
}

#[cfg(test)]
mod tests {
    use super::{Passed, Queue, QueueLimits};

    const MS: u64 = 1_000_000;

    fn queue(requests_max: usize) -> Queue {
        Queue::new(QueueLimits { requests_max, target_ns: 5 * MS, interval_ns: 100 * MS })
    }

    #[test]
    fn a_burst_may_wait_an_interval_and_a_standing_queue_only_the_target() {
        let mut queue = queue(100);
        let at = |queue: &mut Queue, closed: u64, now: u64| {
            let passed = queue.pass(&[((), closed * MS)], closed * MS, now * MS);
            (passed.admitted.len(), passed.timed_out.len())
        };
        assert_eq!(at(&mut queue, 10, 10), (1, 0), "the queue is empty");
        assert_eq!(at(&mut queue, 20, 110), (1, 0), "a burst waits");
        assert_eq!(at(&mut queue, 100, 111), (0, 1), "the queue stands since 10");
        assert_eq!(at(&mut queue, 108, 113), (1, 0), "within the target");
        assert_eq!(at(&mut queue, 200, 200), (1, 0), "it is empty again");
        assert_eq!(at(&mut queue, 210, 299), (1, 0), "and takes a burst");
    }

    #[test]
    fn requests_that_find_the_queue_full_are_refused_when_they_arrive() {
        let mut queue = queue(3);
        let batch = |from: u32, at: u64| (from..from + 2).map(|id| (id, at)).collect::<Vec<_>>();
        let pass = queue.pass(&batch(0, 0), 0, 10);
        assert_eq!(pass, Passed { admitted: vec![0, 1], shed: vec![], timed_out: vec![] });
        // The first two left at 10: these two arrived before and find room for one.
        let pass = queue.pass(&batch(2, 5), 5, 20);
        assert_eq!(pass, Passed { admitted: vec![2], shed: vec![3], timed_out: vec![] });
        // One waits until 20 when they arrive at 15.
        let pass = queue.pass(&batch(4, 15), 15, 30);
        assert_eq!(pass, Passed { admitted: vec![4, 5], shed: vec![], timed_out: vec![] });
    }

    /// Requests answered within 60 ms a second, of a single server in virtual time whose batch takes 10 ms, at a
    /// load that is `loads` times what it can serve, a second each; by second.
    fn goodput(loads: &[f64], mut queue: Option<Queue>) -> Vec<u64> {
        const PER_BATCH: u64 = 8;
        let (service_ns, second_ns) = (10 * MS, 1_000 * MS);
        let mut arrivals = Vec::new();
        for (second, load) in (0..).zip(loads) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
            let count = (load * (PER_BATCH * second_ns / service_ns) as f64) as u64;
            arrivals.extend((0..count).map(|i| second * second_ns + i * second_ns / count));
        }
        let (mut now_ns, mut in_time) = (0, vec![0; loads.len()]);
        for batch in arrivals.chunks_exact(8) {
            let requests: Vec<_> = batch.iter().map(|at| (*at, *at)).collect();
            let closed_ns = *batch.last().expect("eight");
            now_ns = closed_ns.max(now_ns);
            let admitted = match &mut queue {
                Some(queue) => queue.pass(&requests, closed_ns, now_ns).admitted,
                None => batch.to_vec(),
            };
            if admitted.is_empty() {
                continue;
            }
            now_ns += service_ns;
            for at in admitted.iter().filter(|at| now_ns - **at <= 60 * MS) {
                in_time[usize::try_from(at / second_ns).expect("small")] += 1;
            }
        }
        in_time
    }

    #[test]
    fn at_twice_its_capacity_a_server_keeps_its_goodput_and_recovers_at_once() {
        let loads = [0.9, 2.0, 2.0, 0.9, 0.9];
        let kept = goodput(&loads, Some(queue(1_000)));
        let peak = 800;
        assert!(kept[1] * 10 >= peak * 8 && kept[2] * 10 >= peak * 9, "{kept:?}");
        assert!(kept[3] >= 700 && kept[4] == kept[0], "{kept:?}");
        let without = goodput(&loads, None);
        assert!(without[2] == 0 && without[4] == 0, "the queue never drains: {without:?}");
    }
}

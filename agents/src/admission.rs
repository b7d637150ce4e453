//! Which requests are worth starting, when not all of them can be served in time.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Service times that are remembered.
const REMEMBERED: usize = 64;

/// The share of a batch's requests that must be in time for the batch to start.
const IN_TIME_SHARE: (usize, usize) = (9, 10);

/// Admits requests only where they can still be answered by their deadline, so that under overload the
/// time goes to requests that are answered in time, not to those that are late anyway.
///
/// It expects of the next batch the 95th percentile of the service times of the latest 64. A batch of
/// which less than nine tenths would be in time is shed as a whole: what is left of it would take as
/// long as a full one. Requests that could not have been in time even when their batch closed do not
/// count for that. Where none could have been, the oldest service time is forgotten, so that a machine that
/// was slow for a while is tried again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Admission {
    deadline_ns: u64,
    service_ns: VecDeque<u64>,
}

impl Admission {
    /// Knows no service time and admits all; a request is to be answered `deadline_ns` after its
    /// intended arrival.
    #[must_use]
    pub fn new(deadline_ns: u64) -> Self {
        Self { deadline_ns, service_ns: VecDeque::with_capacity(REMEMBERED) }
    }

    /// Splits a batch that closed at `closed_ns` and could start at `now_ns` into the requests that are
    /// admitted and those that are shed, both in their order. A request is an id and its intended
    /// arrival, ns.
    pub fn split<I: Copy>(
        &mut self,
        requests: &[(I, u64)],
        closed_ns: u64,
        now_ns: u64,
    ) -> (Vec<I>, Vec<I>) {
        let expected_ns = self.expected_ns();
        let in_time = |(_, intended_ns): &(I, u64), starts_ns: u64| {
            starts_ns.saturating_add(expected_ns) <= intended_ns.saturating_add(self.deadline_ns)
        };
        let at_best = requests.iter().filter(|request| in_time(request, closed_ns)).count();
        let now = requests.iter().filter(|request| in_time(request, now_ns)).count();
        let (share, of) = IN_TIME_SHARE;
        let ids = |of: Vec<&(I, u64)>| of.into_iter().map(|(id, _)| *id).collect();
        if at_best == 0 {
            self.service_ns.pop_front();
        }
        if now == 0 || now * of < at_best * share {
            return (Vec::new(), ids(requests.iter().collect()));
        }
        let (admitted, shed) = requests.iter().partition(|request| in_time(request, now_ns));
        (ids(admitted), ids(shed))
    }

    /// A batch took this long.
    pub fn served(&mut self, service_ns: u64) {
        if self.service_ns.len() == REMEMBERED {
            self.service_ns.pop_front();
        }
        self.service_ns.push_back(service_ns);
    }

    fn expected_ns(&self) -> u64 {
        let mut ascending: Vec<u64> = self.service_ns.iter().copied().collect();
        ascending.sort_unstable();
        let rank = (ascending.len() * 95).div_ceil(100);
        rank.checked_sub(1).map_or(0, |at| ascending[at])
    }
}

#[cfg(test)]
mod tests {
    use super::Admission;

    #[test]
    fn a_request_is_admitted_as_long_as_it_can_be_answered_in_time() {
        let mut admission = Admission::new(100);
        let requests = [(1, 0), (2, 40), (3, 90)];
        let all = (vec![1, 2, 3], vec![]);
        assert_eq!(admission.split(&requests, 90, 100), all, "nothing is known");
        assert_eq!(admission.split(&requests, 90, 101), (vec![], vec![1, 2, 3]), "one is late");
        // The first could not have been answered in time by a batch that closed at 101.
        assert_eq!(admission.split(&requests, 101, 140), (vec![2, 3], vec![1]));
        (1..=20).for_each(|service| admission.served(service));
        // 19 of 20 take at most 19.
        assert_eq!(admission.split(&requests, 70, 82), (vec![], vec![1, 2, 3]));
        assert_eq!(admission.split(&requests, 70, 81), all);
        assert_eq!(admission.split(&requests, 82, 83), (vec![2, 3], vec![1]));
    }

    #[test]
    fn a_slow_time_is_forgotten() {
        let mut admission = Admission::new(100);
        (0..1000).for_each(|_| admission.served(200));
        let mut refused = 0;
        while admission.split(&[((), 0)], 0, 0).0.is_empty() {
            refused += 1;
        }
        assert_eq!(refused, 64);
    }

    /// A single server in virtual time, fed at a multiple of what it can serve.
    fn goodput(overload: f64, admission: Option<Admission>) -> f64 {
        let (service_ns, deadline_ns, per_batch) = (1_000_000_u64, 20_000_000_u64, 8_u32);
        let mut admission = admission;
        let gap_ns = service_ns as f64 / (overload * f64::from(per_batch));
        let (mut now_ns, mut in_time) = (0, 0_u64);
        let batches = 5_000;
        for batch in 0..batches {
            let ids = batch * per_batch..(batch + 1) * per_batch;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
            let requests: Vec<_> = ids.map(|id| (id, (f64::from(id) * gap_ns) as u64)).collect();
            now_ns = now_ns.max(requests[7].1);
            let admitted = match &mut admission {
                Some(admission) => admission.split(&requests, requests[7].1, now_ns).0,
                None => requests.iter().map(|(id, _)| *id).collect(),
            };
            if admitted.is_empty() {
                continue;
            }
            now_ns += service_ns;
            if let Some(admission) = &mut admission {
                admission.served(service_ns);
            }
            let answered = requests.iter().filter(|(id, _)| admitted.contains(id));
            in_time += answered.filter(|(_, at)| now_ns <= at + deadline_ns).count() as u64;
        }
        in_time as f64 * 1e9 / now_ns as f64
    }

    #[test]
    fn at_twice_its_capacity_a_server_keeps_nine_tenths_of_its_goodput() {
        let deadline_ns = 20_000_000;
        let peak = goodput(0.95, Some(Admission::new(deadline_ns)));
        for overload in [1.5, 2.0, 4.0] {
            let kept = goodput(overload, Some(Admission::new(deadline_ns))) / peak;
            let all = goodput(overload, None) / peak;
            assert!(kept >= 0.9, "{overload}: {kept}");
            assert!(all < 0.1, "{overload}: without admission {all} is in time");
        }
    }
}

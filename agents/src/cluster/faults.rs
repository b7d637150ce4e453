//! What goes wrong and when. All of it is known before the first event, so that who asks about a node's future
//! needs no further events, and memory is taken by faulty nodes alone.

use super::stream::StreamKey;
use super::whole_ns;
use crate::ids::NodeId;
use rand_distr::{Distribution as _, Exp1};
use std::collections::BTreeMap;
use std::ops::Range;

/// One fault of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// A node loses what it has in hand and answers nothing for a time, then starts anew.
    Crash {
        /// Which.
        node: NodeId,
        /// From when on until when, ns.
        when_ns: Range<u64>,
    },
    /// All nodes of a rack crash at once.
    RackLoss {
        /// Which.
        rack: u32,
        /// Likewise.
        when_ns: Range<u64>,
    },
    /// A node computes more slowly.
    Slow {
        /// Which.
        node: NodeId,
        /// Likewise.
        when_ns: Range<u64>,
        /// How many times as long it takes, above 0.
        factor: f64,
    },
    /// A node stands still again and again, keeps what it has in hand and goes on.
    Pause {
        /// Which.
        node: NodeId,
        /// Likewise.
        when_ns: Range<u64>,
        /// From the start of a pause to the next, above `stopped_ns`.
        every_ns: u64,
        /// How long it stands.
        stopped_ns: u64,
    },
    /// No message passes between a rack and any other.
    Partition {
        /// Which.
        rack: u32,
        /// Likewise.
        when_ns: Range<u64>,
    },
    /// Messages to and from a node are lost with a probability.
    Flaky {
        /// Which.
        node: NodeId,
        /// Likewise.
        when_ns: Range<u64>,
        /// From 0 to 1.
        lost: f64,
    },
}

/// Faults that come at random, each node by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrashRate {
    /// Crashes of a node in a ns.
    pub per_node_ns: f64,
    /// Mean time until it starts anew, exponential, ns.
    pub down_ns: f64,
    /// They come before this time, ns.
    pub until_ns: u64,
}

/// Answers what is wrong with a node or a way at any time.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    /// By node: when it is down, ascending and apart.
    down_ns: BTreeMap<u32, Vec<Range<u64>>>,
    slow: BTreeMap<u32, Vec<(Range<u64>, f64)>>,
    pauses: BTreeMap<u32, Vec<Stops>>,
    flaky: BTreeMap<u32, Vec<(Range<u64>, f64)>>,
    /// By rack.
    cut_ns: BTreeMap<u32, Vec<Range<u64>>>,
    /// One bit a node: whether any of the above knows it.
    faulty: Vec<u64>,
}

/// Pauses of a node, as in [`Fault::Pause`].
#[derive(Clone, Debug)]
struct Stops {
    when_ns: Range<u64>,
    every_ns: u64,
    stopped_ns: u64,
}

impl Stops {
    /// When the pause of this time ends.
    fn until_ns(&self, now_ns: u64) -> Option<u64> {
        let since_ns = now_ns.checked_sub(self.when_ns.start)?;
        let began_ns = now_ns - since_ns % self.every_ns;
        let until_ns = (began_ns + self.stopped_ns).min(self.when_ns.end);
        (now_ns < until_ns).then_some(until_ns)
    }

    /// When the first pause from this time on begins.
    fn next_ns(&self, now_ns: u64) -> Option<u64> {
        let since_ns = now_ns.saturating_sub(self.when_ns.start);
        let next_ns = self.when_ns.start + since_ns.div_ceil(self.every_ns) * self.every_ns;
        (self.stopped_ns > 0 && next_ns < self.when_ns.end).then_some(next_ns)
    }
}

impl FaultPlan {
    /// Of a schedule, for nodes `0..nodes` and the rack of each.
    #[must_use]
    pub fn new(faults: &[Fault], nodes: u32, rack: impl Fn(u32) -> u32) -> Self {
        let mut plan = Self { faulty: vec![0; nodes.div_ceil(64) as usize], ..Self::default() };
        for fault in faults {
            match fault {
                Fault::Crash { node, when_ns } => plan.crash(node.0, when_ns.clone()),
                Fault::RackLoss { rack: lost, when_ns } => (0..nodes)
                    .filter(|node| rack(*node) == *lost)
                    .for_each(|node| plan.crash(node, when_ns.clone())),
                Fault::Slow { node, when_ns, factor } => {
                    plan.note(node.0);
                    plan.slow.entry(node.0).or_default().push((when_ns.clone(), *factor));
                }
                Fault::Pause { node, when_ns, every_ns, stopped_ns } => {
                    assert!(stopped_ns < every_ns, "a node that pauses goes on at times");
                    plan.note(node.0);
                    let pauses = plan.pauses.entry(node.0).or_default();
                    pauses.push(Stops {
                        when_ns: when_ns.clone(),
                        every_ns: *every_ns,
                        stopped_ns: *stopped_ns,
                    });
                }
                Fault::Partition { rack, when_ns } => {
                    plan.cut_ns.entry(*rack).or_default().push(when_ns.clone());
                }
                Fault::Flaky { node, when_ns, lost } => {
                    plan.note(node.0);
                    plan.flaky.entry(node.0).or_default().push((when_ns.clone(), *lost));
                }
            }
        }
        plan.down_ns.values_mut().for_each(join);
        plan
    }

    /// Adds crashes of nodes `0..nodes` at random: a Poisson process over all of them.
    #[must_use]
    pub fn with_crashes(mut self, rate: CrashRate, nodes: u32, seed: u64) -> Self {
        let mut stream = StreamKey::new(seed, "cluster crashes").stream(0, 0);
        let all = rate.per_node_ns * f64::from(nodes);
        let mut at = 0.0;
        loop {
            // Without crashes the first comes after an endless time.
            let gap: f64 = Exp1.sample(&mut stream);
            at += gap / all;
            if at.is_nan() || at >= rate.until_ns as f64 {
                break;
            }
            let node = u32::try_from(stream.below(nodes as usize)).expect("a node");
            let down: f64 = Exp1.sample(&mut stream);
            let from_ns = whole_ns(at);
            self.crash(node, from_ns..from_ns + whole_ns(down * rate.down_ns).max(1));
        }
        self.down_ns.values_mut().for_each(join);
        self
    }

    fn note(&mut self, node: u32) {
        self.faulty[node as usize / 64] |= 1 << (node % 64);
    }

    fn crash(&mut self, node: u32, when_ns: Range<u64>) {
        self.note(node);
        self.down_ns.entry(node).or_default().push(when_ns);
    }

    /// Whether nothing ever goes wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // Asked for every message: the bits of all nodes would take time with their number.
        self.cut_ns.is_empty()
            && self.down_ns.is_empty()
            && self.slow.is_empty()
            && self.flaky.is_empty()
    }

    /// Nodes that crash at any time.
    #[must_use]
    pub fn crashing(&self) -> usize {
        self.down_ns.len()
    }

    fn is_faulty(&self, node: u32) -> bool {
        self.faulty.get(node as usize / 64).is_some_and(|bits| bits >> (node % 64) & 1 == 1)
    }

    /// How often a node has crashed until `now_ns`, and whether it is down.
    #[must_use]
    pub(super) fn crashes(&self, node: u32, now_ns: u64) -> (u32, bool) {
        if !self.is_faulty(node) {
            return (0, false);
        }
        let Some(down) = self.down_ns.get(&node) else { return (0, false) };
        let before = down.partition_point(|down| down.start <= now_ns);
        let is_down = before > 0 && down[before - 1].contains(&now_ns);
        (u32::try_from(before).unwrap_or(u32::MAX), is_down)
    }

    /// Whether a node is down.
    #[must_use]
    pub fn is_down(&self, node: NodeId, now_ns: u64) -> bool {
        self.crashes(node.0, now_ns).1
    }

    /// The first crash of a node after `from_ns` and up to `until_ns`.
    #[must_use]
    pub(super) fn crash_within(&self, node: u32, from_ns: u64, until_ns: u64) -> Option<u64> {
        if !self.is_faulty(node) {
            return None;
        }
        let down = self.down_ns.get(&node)?;
        let next = down.get(down.partition_point(|down| down.start <= from_ns))?;
        (next.start <= until_ns).then_some(next.start)
    }

    /// How many times as long a node takes for what it starts at `now_ns`.
    #[must_use]
    pub(super) fn slowness(&self, node: u32, now_ns: u64) -> f64 {
        if !self.is_faulty(node) {
            return 1.0;
        }
        let slow = self.slow.get(&node).into_iter().flatten();
        slow.filter(|(when, _)| when.contains(&now_ns)).map(|(_, factor)| factor).product()
    }

    /// When a node that stands still at `now_ns` goes on; `now_ns` where it does not.
    #[must_use]
    pub(super) fn resumed(&self, node: u32, now_ns: u64) -> u64 {
        let mut at_ns = now_ns;
        while let Some(on_ns) = self.stops(node).find_map(|stop| stop.until_ns(at_ns)) {
            at_ns = on_ns;
        }
        at_ns
    }

    /// When a node has computed for so long that begins at a time at which it does not stand still.
    #[must_use]
    pub(super) fn ended(&self, node: u32, start_ns: u64, service_ns: u64) -> u64 {
        let (mut at_ns, mut left_ns) = (start_ns, service_ns);
        while let Some(stop_ns) = self.stops(node).filter_map(|stop| stop.next_ns(at_ns)).min() {
            if at_ns + left_ns <= stop_ns {
                break;
            }
            left_ns -= stop_ns - at_ns;
            at_ns = self.resumed(node, stop_ns);
        }
        at_ns + left_ns
    }

    fn stops(&self, node: u32) -> impl Iterator<Item = &Stops> {
        let known = self.is_faulty(node).then(|| self.pauses.get(&node)).flatten();
        known.into_iter().flatten()
    }

    /// The probability that a message between a node and somebody in `other_rack` is lost at `now_ns`.
    #[must_use]
    pub(super) fn loss(&self, (node, rack): (u32, u32), other_rack: u32, now_ns: u64) -> f64 {
        let is_cut = |rack: u32| {
            let cuts = self.cut_ns.get(&rack).into_iter().flatten();
            cuts.into_iter().any(|when| when.contains(&now_ns))
        };
        if !self.cut_ns.is_empty() && rack != other_rack && (is_cut(rack) || is_cut(other_rack)) {
            return 1.0;
        }
        if !self.is_faulty(node) {
            return 0.0;
        }
        let flaky = self.flaky.get(&node).into_iter().flatten();
        let kept = flaky.filter(|(when, _)| when.contains(&now_ns)).map(|(_, lost)| 1.0 - lost);
        1.0 - kept.product::<f64>()
    }
}

/// Puts times in order and joins those that overlap.
fn join(times: &mut Vec<Range<u64>>) {
    times.sort_unstable_by_key(|time| time.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(times.len());
    for time in times.drain(..) {
        match joined.last_mut() {
            Some(last) if time.start <= last.end => last.end = last.end.max(time.end),
            _ => joined.push(time),
        }
    }
    *times = joined;
}

#[cfg(test)]
mod tests {
    use super::{CrashRate, Fault, FaultPlan};
    use crate::ids::NodeId;

    #[test]
    fn a_schedule_says_what_is_wrong_where_and_when() {
        let faults = [
            Fault::RackLoss { rack: 1, when_ns: 100..200 },
            Fault::Crash { node: NodeId(5), when_ns: 150..300 },
            Fault::Crash { node: NodeId(5), when_ns: 400..500 },
            Fault::Slow { node: NodeId(0), when_ns: 10..20, factor: 3.0 },
            Fault::Partition { rack: 0, when_ns: 50..60 },
            Fault::Flaky { node: NodeId(9), when_ns: 0..100, lost: 0.25 },
        ];
        let plan = FaultPlan::new(&faults, 12, |node| node / 4);
        assert_eq!(plan.crashing(), 4);
        assert_eq!(plan.crashes(4, 99), (0, false));
        assert_eq!(plan.crashes(4, 100), (1, true));
        assert_eq!(plan.crashes(4, 200), (1, false));
        assert_eq!(plan.crashes(5, 299), (1, true), "two that overlap are one");
        assert_eq!(plan.crashes(5, 450), (2, true));
        assert_eq!(plan.crash_within(5, 100, 399), None);
        assert_eq!(plan.crash_within(5, 100, 400), Some(400));
        assert_eq!((plan.slowness(0, 15), plan.slowness(0, 20)), (3.0, 1.0));
        assert_eq!(plan.loss((0, 0), 1, 55), 1.0);
        assert_eq!(plan.loss((4, 1), 0, 55), 1.0);
        assert_eq!(plan.loss((4, 1), 2, 55), 0.0);
        assert_eq!(plan.loss((0, 0), 0, 55), 0.0, "within the rack all is well");
        assert!((plan.loss((9, 2), 0, 20) - 0.25).abs() < 1e-12);
        assert!(FaultPlan::new(&[], 12, |_| 0).is_empty() && !plan.is_empty());
    }

    #[test]
    fn crashes_at_random_come_at_their_rate_and_last_as_long_as_stated() {
        let rate = CrashRate { per_node_ns: 1e-9, down_ns: 1e7, until_ns: 10_000_000_000 };
        let plan = FaultPlan::new(&[], 1000, |_| 0).with_crashes(rate, 1000, 3);
        let (mut crashes, mut down_ns) = (0, 0);
        for down in plan.down_ns.values().flatten() {
            crashes += 1;
            down_ns += down.end - down.start;
        }
        // 10 000 expected, deviation 100.
        assert!((9_500..=10_500).contains(&crashes), "{crashes}");
        let mean_ns = down_ns as f64 / f64::from(crashes);
        assert!((0.95e7..=1.1e7).contains(&mean_ns), "{mean_ns}");
    }
}

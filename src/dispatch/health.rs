//! Which nodes should get work, and when an order is worth asking twice. Pure: it is told the time.

use agents::ids::NodeId;

/// How much later than the typical answer of a round one may be before it is hedged: three times as
/// late, and this on top, ns.
const HEDGE_FACTOR: u64 = 3;
const HEDGE_FLOOR_NS: u64 = 1_000_000;

/// While a round has no typical answer of its own, ten times that of earlier rounds, and this on top.
const HEDGE_FACTOR_EARLIER: u64 = 10;
const HEDGE_FLOOR_EARLIER_NS: u64 = 5_000_000;

/// Rounds' worth of extra pairs that can be saved up.
const CREDIT_ROUNDS: f64 = 100.0;

/// A node is set aside for this long when a hedge first beats it, and twice as long each time after.
const ASIDE_NS: u64 = 500_000_000;
const ASIDE_NS_MAX: u64 = 30_000_000_000;

/// In-time answers in a row after which a node's record is clean.
const CLEAN_AFTER: u32 = 50;

/// Nodes and the budget of hedges.
///
/// A node is lost for good when its connection broke or it answered wrongly. It is set aside for a
/// while when a hedge beat it or it missed a deadline, as outlier ejection does: at most a third of the
/// nodes at a time, each time twice as long. Hedges are paid for with a share of
/// the pairs sent (Dean and Barroso 2013, "The Tail at Scale").
#[derive(Clone, Debug)]
pub(super) struct Health {
    nodes: Vec<NodeHealth>,
    /// Extra pairs for each pair sent.
    budget: f64,
    /// Extra pairs that may be sent now.
    credit: f64,
    /// Moving average of the time of a round's typical answer, ns.
    typical_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct NodeHealth {
    lost: bool,
    aside_until_ns: u64,
    /// Times that it was set aside since its record was clean.
    strikes: u32,
    in_time: u32,
}

impl Health {
    /// All healthy; `budget` is the extra pairs that hedges may cost for each pair sent.
    pub(super) fn new(nodes: usize, budget: f64) -> Self {
        let nodes = vec![NodeHealth::default(); nodes];
        Self { nodes, budget, credit: 0.0, typical_ns: None }
    }

    /// Whether a node can be asked at all.
    pub(super) fn is_lost(&self, node: NodeId) -> bool {
        self.nodes[node.index()].lost
    }

    /// Whether a node should get work.
    pub(super) fn is_available(&self, node: NodeId, now_ns: u64) -> bool {
        let node = &self.nodes[node.index()];
        !node.lost && node.aside_until_ns <= now_ns
    }

    /// A node that is not to be asked again.
    pub(super) fn lose(&mut self, node: NodeId) {
        self.nodes[node.index()].lost = true;
    }

    /// Another node has the place of one that was lost: nothing is held against it.
    pub(super) fn revive(&mut self, node: NodeId) {
        self.nodes[node.index()] = NodeHealth::default();
    }

    /// The pairs of a round are sent.
    pub(super) fn sent(&mut self, pairs: usize) {
        let earned = self.budget * pairs as f64;
        self.credit = (self.credit + earned).min(CREDIT_ROUNDS * earned);
    }

    /// Whether a hedge of so many pairs is within the budget, which then pays for it.
    pub(super) fn pay(&mut self, pairs: usize) -> bool {
        let affordable = pairs as f64 <= self.credit;
        if affordable {
            self.credit -= pairs as f64;
        }
        affordable
    }

    /// How long after its start a round of `orders` hedges those without an answer, when the answers
    /// so far came `answered_ns` after it, ascending; none while that cannot be said.
    pub(super) fn hedge_after_ns(&self, orders: usize, answered_ns: &[u64]) -> Option<u64> {
        match median(orders, answered_ns) {
            Some(typical) => Some(HEDGE_FACTOR * typical + HEDGE_FLOOR_NS),
            None => self.typical_ns.map(|typical| {
                HEDGE_FACTOR_EARLIER.saturating_mul(typical) + HEDGE_FLOOR_EARLIER_NS
            }),
        }
    }

    /// A round of `orders` ended; its answers as for [`Self::hedge_after_ns`].
    pub(super) fn ended(&mut self, orders: usize, answered_ns: &[u64]) {
        if let Some(latest) = median(orders, answered_ns) {
            self.typical_ns = Some(self.typical_ns.map_or(latest, |old| (7 * old + latest) / 8));
        }
    }

    /// A node's own answer was in time.
    pub(super) fn in_time(&mut self, node: NodeId) {
        let node = &mut self.nodes[node.index()];
        node.in_time += 1;
        if node.in_time >= CLEAN_AFTER {
            (node.in_time, node.strikes) = (0, 0);
        }
    }

    /// Gives back what was paid for a hedge that was not sent.
    pub(super) fn repay(&mut self, pairs: usize) {
        self.credit += pairs as f64;
    }

    /// A hedge beat a node, or a deadline did. Says whether it is set aside for that.
    pub(super) fn beaten(&mut self, node: NodeId, now_ns: u64) -> bool {
        let others = self.nodes.iter().filter(|node| node.aside_until_ns > now_ns).count();
        let (at, room) = (node.index(), (self.nodes.len() / 3).max(1));
        let node = &mut self.nodes[at];
        node.in_time = 0;
        if others >= room || node.aside_until_ns > now_ns {
            return false;
        }
        let length_ns = ASIDE_NS.saturating_mul(1 << node.strikes.min(16)).min(ASIDE_NS_MAX);
        node.strikes += 1;
        node.aside_until_ns = now_ns + length_ns;
        true
    }
}

/// The answer by which half of the orders were answered; none before that.
fn median(orders: usize, answered_ns: &[u64]) -> Option<u64> {
    answered_ns.get(orders.div_ceil(2).checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::{ASIDE_NS, ASIDE_NS_MAX, CLEAN_AFTER, Health};
    use agents::ids::NodeId;

    #[test]
    fn extra_pairs_stay_within_their_share_of_the_pairs_sent() {
        let mut health = Health::new(4, 0.05);
        let (mut sent, mut extra) = (0, 0);
        for round in 0..10_000_usize {
            let pairs = 64 + round % 5;
            health.sent(pairs);
            sent += pairs;
            while health.pay(16) {
                extra += 16;
            }
        }
        let share = f64::from(extra) / sent as f64;
        assert!((0.0499..=0.05).contains(&share), "{share}");
        assert!(!Health::new(4, 0.0).pay(1), "no budget, no hedge");
    }

    #[test]
    fn what_was_saved_up_over_a_quiet_time_is_bounded() {
        let mut health = Health::new(4, 0.05);
        (0..100_000).for_each(|_| health.sent(100));
        let mut burst = 0;
        while health.pay(1) {
            burst += 1;
        }
        assert_eq!(burst, 500);
    }

    #[test]
    fn a_hedge_waits_for_half_of_the_round_or_long_by_the_rounds_before() {
        let mut health = Health::new(4, 0.05);
        assert_eq!(health.hedge_after_ns(4, &[]), None, "nothing is known yet");
        assert_eq!(health.hedge_after_ns(4, &[1_000_000]), None);
        assert_eq!(health.hedge_after_ns(4, &[1_000_000, 2_000_000]), Some(7_000_000));
        assert_eq!(health.hedge_after_ns(3, &[1_000_000, 2_000_000]), Some(7_000_000));
        health.ended(4, &[1_000_000, 2_000_000, 3_000_000, 9_000_000]);
        assert_eq!(health.hedge_after_ns(4, &[1_000_000]), Some(25_000_000));
        assert_eq!(health.hedge_after_ns(1, &[]), Some(25_000_000));
    }

    #[test]
    fn a_beaten_node_is_set_aside_longer_each_time_until_its_record_is_clean() {
        let (mut health, node) = (Health::new(4, 0.05), NodeId(2));
        let mut now = 1;
        for strike in 0..10 {
            assert!(health.beaten(node, now) && !health.is_available(node, now));
            assert!(!health.beaten(NodeId(1), now), "a third of four nodes is one");
            let length = (ASIDE_NS << strike).min(ASIDE_NS_MAX);
            assert!(!health.is_available(node, now + length - 1));
            now += length;
            assert!(health.is_available(node, now) && !health.is_lost(node));
        }
        (0..CLEAN_AFTER).for_each(|_| health.in_time(node));
        assert!(health.beaten(node, now) && health.is_available(node, now + ASIDE_NS));
        health.lose(node);
        assert!(!health.is_available(node, u64::MAX) && health.is_lost(node));
    }
}

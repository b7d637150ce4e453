//! What nodes have to answer and how long they took lately, for the choice between replicas. Pure: it is
//! told the time.

use agents::ids::NodeId;
use agents::placement::{NodeLoad, ORDER_COST_PAIRS};
use std::collections::BTreeMap;

/// Weight of the latest answer in a node's moving average.
const LATEST: f64 = 0.25;

/// What was measured of a node that is not asked any more goes towards the mean of all nodes, to 1/e of the
/// difference in this time: a node that was slow is tried again.
const FADE_NS: u64 = 10_000_000_000;

/// All nodes of a dispatcher.
#[derive(Clone, Debug)]
pub(super) struct Loads {
    nodes: Vec<Measured>,
    /// Messages that were not answered, by sequence.
    open: BTreeMap<u64, Sent>,
    /// A message is not waited for longer, ns.
    patience_ns: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// For each pair and each of [`ORDER_COST_PAIRS`]; none before the first answer.
    ns_per_pair: Option<f64>,
    at_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    node: NodeId,
    pairs: usize,
    at_ns: u64,
}

impl Sent {
    /// What an answer at that time says of its node.
    fn ns_per_pair(&self, now_ns: u64) -> f64 {
        now_ns.saturating_sub(self.at_ns).max(1) as f64 / (self.pairs as f64 + ORDER_COST_PAIRS)
    }
}

impl Loads {
    /// Nothing is known of so many nodes.
    pub(super) fn new(nodes: usize, patience_ns: u64) -> Self {
        Self { nodes: vec![Measured::default(); nodes], open: BTreeMap::new(), patience_ns }
    }

    /// A message is on its way; sequences ascend.
    pub(super) fn sent(&mut self, sequence: u64, node: NodeId, pairs: usize, now_ns: u64) {
        while let Some(oldest) = self.open.first_entry()
            && oldest.get().at_ns.saturating_add(self.patience_ns) < now_ns
        {
            let sent = oldest.remove();
            self.learn(&sent, now_ns);
        }
        self.open.insert(sequence, Sent { node, pairs, at_ns: now_ns });
    }

    /// The whole answer to a message is here, late or not.
    pub(super) fn answered(&mut self, sequence: u64, now_ns: u64) {
        if let Some(sent) = self.open.remove(&sequence) {
            self.learn(&sent, now_ns);
        }
    }

    /// A node that will answer nothing more, or another one in its place: nothing is known of it.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.nodes[node.index()] = Measured::default();
        self.open.retain(|_, sent| sent.node != node);
    }

    /// What is known of a node. One that was never measured is as quick as the mean of the others; one that
    /// leaves a message unanswered is at least as slow as that shows by now.
    pub(super) fn of(&self, node: NodeId, now_ns: u64) -> NodeLoad {
        let known = || self.nodes.iter().filter_map(|node| node.ns_per_pair);
        let mean = known().sum::<f64>() / (known().count().max(1) as f64);
        let mean = if mean > 0.0 { mean } else { NodeLoad::default().ns_per_pair };
        let Measured { ns_per_pair, at_ns } = self.nodes[node.index()];
        let idle_ns = now_ns.saturating_sub(at_ns) as f64;
        let faded = |found: f64| mean + (found - mean) * (-idle_ns / FADE_NS as f64).exp();
        let of_node = || self.open.values().filter(|sent| sent.node == node);
        let at_least = of_node().map(|sent| sent.ns_per_pair(now_ns)).fold(0.0, f64::max);
        NodeLoad {
            pending_pairs: of_node().map(|sent| sent.pairs as f64).sum(),
            ns_per_pair: ns_per_pair.map_or(mean, faded).max(at_least),
        }
    }

    fn learn(&mut self, sent: &Sent, now_ns: u64) {
        let found = sent.ns_per_pair(now_ns);
        let node = &mut self.nodes[sent.node.index()];
        let old = node.ns_per_pair.unwrap_or(found);
        *node = Measured { ns_per_pair: Some(old + LATEST * (found - old)), at_ns: now_ns };
    }
}

#[cfg(test)]
mod tests {
    use super::{FADE_NS, Loads};
    use agents::ids::NodeId;

    const MS: u64 = 1_000_000;
    const A: NodeId = NodeId(0);
    const B: NodeId = NodeId(1);
    const C: NodeId = NodeId(2);

    #[test]
    fn a_node_is_as_slow_as_its_answers_and_as_what_it_leaves_unanswered() {
        let mut loads = Loads::new(3, 1000 * MS);
        assert_eq!(loads.of(A, 5), loads.of(B, 5), "nothing is known");
        for round in 0..20 {
            let now = round * 100 * MS;
            loads.sent(2 * round, A, 84, now);
            loads.sent(2 * round + 1, B, 84, now);
            loads.answered(2 * round, now + MS);
            loads.answered(2 * round + 1, now + 10 * MS);
        }
        let now = 1910 * MS;
        let [a, b, c] = [A, B, C].map(|node| loads.of(node, now));
        // 100 units of work in 1 and in 10 ms.
        assert!(
            (a.ns_per_pair - 1e4).abs() < 1e3 && (b.ns_per_pair - 1e5).abs() < 1e3,
            "{a:?} {b:?}"
        );
        assert_eq!(c.ns_per_pair, 5.5e4, "who is not known is as the others are");
        assert_eq!((a.pending_pairs, b.pending_pairs), (0.0, 0.0));

        loads.sent(100, A, 84, now);
        assert_eq!(loads.of(A, now).pending_pairs, 84.0);
        assert!(loads.of(A, now + 50 * MS).ns_per_pair >= 5e5, "it has been silent for 50 ms");
        loads.forget(A);
        assert_eq!(loads.of(A, now), loads.of(C, now));
    }

    #[test]
    fn what_a_node_that_was_slow_once_took_fades_and_what_never_comes_is_given_up() {
        let mut loads = Loads::new(2, 100 * MS);
        loads.sent(1, A, 84, 0);
        loads.sent(2, B, 84, 0);
        loads.answered(1, MS);
        loads.sent(3, A, 84, 200 * MS);
        loads.answered(3, 201 * MS);
        let slow = loads.of(B, 201 * MS);
        assert_eq!(slow.pending_pairs, 0.0, "given up after 100 ms");
        assert!(slow.ns_per_pair > 1.9e6, "{slow:?}");
        let later = 201 * MS + 5 * FADE_NS;
        let (quick, slow) = (loads.of(A, later), loads.of(B, later));
        assert!((slow.ns_per_pair / quick.ns_per_pair) < 1.1, "{slow:?} {quick:?}");
    }
}

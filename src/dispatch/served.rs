//! What nodes did over a run that went on with another dispatcher.

use super::{Faults, MembershipCounts, NodeStats, Served};
use agents::cluster::Passed;
use std::collections::BTreeMap;

impl Served {
    /// What nodes did for one dispatcher and, before it, for others: work, faults and times are summed;
    /// what a node holds and whether it was lost is as the last one says.
    #[must_use]
    pub fn after(mut self, earlier: &Self) -> Self {
        let mut nodes: BTreeMap<_, _> = self.nodes.iter().map(|node| (node.node, *node)).collect();
        for before in &earlier.nodes {
            let gone = NodeStats { shards: 0, shard_bytes: 0, ..NodeStats::default() };
            let node = nodes.entry(before.node).or_insert(NodeStats { node: before.node, ..gone });
            node.requests += before.requests;
            node.token_experts += before.token_experts;
            node.compute_ns = node.compute_ns.saturating_add(before.compute_ns);
            node.sent_bytes += before.sent_bytes;
            node.received_bytes += before.received_bytes;
        }
        self.nodes = nodes.into_values().collect();
        if self.links.len() < earlier.links.len() {
            self.links.resize(earlier.links.len(), Passed::default());
        }
        self.links.iter_mut().zip(&earlier.links).for_each(|(sum, before)| sum.add(before));
        self.faults = self.faults.plus(&earlier.faults);
        match (&mut self.fork_join, &earlier.fork_join) {
            (Some(times), Some(before)) => times.merge(before),
            (times, before) => *times = times.take().or_else(|| before.clone()),
        }
        self.membership = match (self.membership, earlier.membership) {
            (Some(counts), Some(before)) => Some(counts.plus(&before)),
            (counts, before) => counts.or(before),
        };
        self
    }
}

impl Faults {
    fn plus(&self, other: &Self) -> Self {
        Self {
            lost: self.lost + other.lost,
            set_aside: self.set_aside + other.set_aside,
            pairs: self.pairs + other.pairs,
            rerouted_pairs: self.rerouted_pairs + other.rerouted_pairs,
            hedged_pairs: self.hedged_pairs + other.hedged_pairs,
            hedges: self.hedges + other.hedges,
            hedges_won: self.hedges_won + other.hedges_won,
            spot_checks: self.spot_checks + other.spot_checks,
            spot_checks_skipped: self.spot_checks_skipped + other.spot_checks_skipped,
            quarantined: self.quarantined + other.quarantined,
            stale_replies: self.stale_replies + other.stale_replies,
            late_replies: self.late_replies + other.late_replies,
            duplicate_replies: self.duplicate_replies + other.duplicate_replies,
            redelivered: self.redelivered + other.redelivered,
            recovery_ns_max: self.recovery_ns_max.max(other.recovery_ns_max),
        }
    }
}

impl MembershipCounts {
    fn plus(&self, other: &Self) -> Self {
        Self {
            epoch: self.epoch + other.epoch,
            joined: self.joined + other.joined,
            left: self.left + other.left,
            expired: self.expired + other.expired,
            dropped: self.dropped + other.dropped,
            refused: self.refused + other.refused,
            copies_dropped: self.copies_dropped + other.copies_dropped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agents::ids::NodeId;

    #[test]
    fn work_is_summed_and_what_a_node_holds_is_the_last_ones() {
        let node = |node, shards, tokens, lost| NodeStats {
            node: NodeId(node),
            shards,
            token_experts: tokens,
            lost,
            ..NodeStats::default()
        };
        let earlier = Served {
            nodes: vec![node(0, 4, 100, true), node(2, 4, 7, false)],
            faults: Faults { lost: 1, recovery_ns_max: 9, ..Faults::default() },
            ..Served::default()
        };
        let last = Served {
            nodes: vec![node(0, 6, 20, false), node(1, 6, 30, false)],
            faults: Faults { lost: 1, recovery_ns_max: 5, ..Faults::default() },
            ..Served::default()
        };
        let all = last.after(&earlier);
        let expected =
            [node(0, 6, 120, false), node(1, 6, 30, false), node(2, 0, 7, false)].to_vec();
        assert_eq!(all.nodes, expected);
        assert_eq!((all.faults.lost, all.faults.recovery_ns_max), (2, 9));
    }
}

//! `timeline.json`: how busy each node was in time, and where it did not answer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SCHEMA_VERSION;

/// Slices of time that are told apart. When a run is longer they become twice as long.
const SLICES_MAX: usize = 240;
/// The length of a slice at first, ns.
const SLICE_NS: u64 = 1_000_000;
/// Nodes that are told apart; of the others nothing is kept.
pub const TIMELINE_NODES_MAX: u32 = 64;

/// What nodes did, by slices of time from when serving starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timeline {
    /// Version of this layout.
    pub schema_version: u32,
    /// The length of a slice, ns.
    pub slice_ns: u64,
    /// In the order of their ids, the first 64.
    pub nodes: Vec<NodeTimeline>,
}

/// What one node did. Each list has an entry for each slice up to the last in which it was asked something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeTimeline {
    /// The node.
    pub node: u32,
    /// Time that it computed what it answered, as it says, drawn up to the answer's arrival, ns.
    pub busy_ns: Vec<u64>,
    /// Orders sent to it.
    pub orders: Vec<u32>,
    /// Of them, those that another node answered, or that were sent again: it was lost, too late or beaten by a hedge.
    pub unanswered: Vec<u32>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { schema_version: SCHEMA_VERSION, slice_ns: SLICE_NS, nodes: Vec::new() }
    }
}

impl Timeline {
    /// Notes an order that was sent to a node, and whether that node answered it.
    pub fn asked(&mut self, node: u32, at_ns: u64, has_answered: bool) {
        let Some((node, slice)) = self.reach(node, at_ns) else { return };
        node.orders[slice] = node.orders[slice].saturating_add(1);
        let unanswered = &mut node.unanswered[slice];
        *unanswered = unanswered.saturating_add(u32::from(!has_answered));
    }

    /// Notes that a node computed from one time to another, of at most as many slices as there are.
    pub fn computed(&mut self, node: u32, (from_ns, to_ns): (u64, u64)) {
        if from_ns >= to_ns || self.reach(node, to_ns - 1).is_none() {
            return;
        }
        let slice_ns = self.slice_ns;
        let (first, last) = (self.slice(from_ns), self.slice(to_ns - 1));
        let node = &mut self.nodes[node as usize];
        for (at, busy_ns) in (first..).zip(&mut node.busy_ns[first..=last]) {
            let begin_ns = at as u64 * slice_ns;
            *busy_ns += to_ns.min(begin_ns + slice_ns).saturating_sub(from_ns.max(begin_ns));
        }
    }

    /// The share of each slice in which a node computed; none where it was asked nothing.
    #[must_use]
    pub fn busy(&self, node: &NodeTimeline) -> Vec<Option<f64>> {
        let share = |(busy_ns, orders): (&u64, &u32)| {
            let share = *busy_ns as f64 / self.slice_ns as f64;
            (*orders > 0 || *busy_ns > 0).then(|| share.min(1.0))
        };
        node.busy_ns.iter().zip(&node.orders).map(share).collect()
    }

    fn slice(&self, at_ns: u64) -> usize {
        usize::try_from(at_ns / self.slice_ns).unwrap_or(usize::MAX)
    }

    /// The node and the slice of a time, with room up to there; none of a node too many.
    fn reach(&mut self, node: u32, at_ns: u64) -> Option<(&mut NodeTimeline, usize)> {
        if node >= TIMELINE_NODES_MAX {
            return None;
        }
        while self.slice(at_ns) >= SLICES_MAX {
            self.slice_ns = self.slice_ns.saturating_mul(2);
            self.nodes.iter_mut().for_each(NodeTimeline::halve);
        }
        let slice = self.slice(at_ns);
        let known = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.extend((known..=node).map(|node| NodeTimeline { node, ..Default::default() }));
        let node = &mut self.nodes[node as usize];
        if node.busy_ns.len() <= slice {
            node.busy_ns.resize(slice + 1, 0);
            node.orders.resize(slice + 1, 0);
            node.unanswered.resize(slice + 1, 0);
        }
        Some((node, slice))
    }
}

impl NodeTimeline {
    /// Two slices become one.
    fn halve(&mut self) {
        self.busy_ns = self.busy_ns.chunks(2).map(|pair| pair.iter().sum()).collect();
        for counts in [&mut self.orders, &mut self.unanswered] {
            let sum = |pair: &[u32]| pair.iter().fold(0, |sum: u32, of| sum.saturating_add(*of));
            *counts = counts.chunks(2).map(sum).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agents::rng::stream;
    use rand::RngExt as _;

    #[test]
    fn a_time_of_any_length_is_kept_in_as_many_slices_and_no_nanosecond_is_lost() {
        let mut rng = stream(5, "timeline");
        let mut timeline = Timeline::default();
        let (mut now_ns, mut busy_ns, mut orders, mut unanswered) = (0, [0; 3], [0; 3], [0; 3]);
        for _ in 0..20_000 {
            now_ns += rng.random_range(0..3_000_000);
            let node = rng.random_range(0..3);
            let (took_ns, answers) = (rng.random_range(0..9_000_000), rng.random_range(0..10) > 0);
            timeline.asked(node, now_ns, answers);
            timeline.computed(node, (now_ns, now_ns + took_ns));
            let at = node as usize;
            busy_ns[at] += took_ns;
            orders[at] += 1;
            unanswered[at] += u32::from(!answers);
        }
        for (at, node) in timeline.nodes.iter().enumerate() {
            assert!(node.busy_ns.len() <= SLICES_MAX && node.busy_ns.len() > SLICES_MAX / 2 - 2);
            assert_eq!(node.busy_ns.iter().sum::<u64>(), busy_ns[at]);
            assert_eq!(node.orders.iter().sum::<u32>(), orders[at]);
            assert_eq!(node.unanswered.iter().sum::<u32>(), unanswered[at]);
        }
        assert!(timeline.slice_ns > SLICE_NS, "the run was longer than the slices at first");
    }

    #[test]
    fn a_slice_without_orders_is_empty_and_one_that_was_computed_through_is_full() {
        let mut timeline = Timeline::default();
        timeline.asked(1, 500_000, true);
        timeline.computed(1, (500_000, 2_000_000));
        timeline.asked(1, 4_000_000, false);
        assert_eq!(timeline.nodes[0], NodeTimeline { node: 0, ..Default::default() });
        let busy = timeline.busy(&timeline.nodes[1]);
        assert_eq!(busy, [Some(0.5), Some(1.0), None, None, Some(0.0)]);
        assert_eq!(timeline.nodes[1].unanswered, [0, 0, 0, 0, 1]);
        timeline.asked(TIMELINE_NODES_MAX, 0, true);
        assert_eq!(timeline.nodes.len(), 2);
    }
}

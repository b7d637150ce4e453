//! The replies that count, put together as the round's orders asked.

use super::{Attempt, AttemptId, RoundTrip};
use agents::ids::NodeId;
use agents::orders::{Combine, NodeOrder, NodeReply, Replies};

impl RoundTrip<'_> {
    /// The nodes whose replies count, for each order and each of its groups.
    ///
    /// # Panics
    /// When a token is not answered.
    pub(in crate::dispatch) fn answerers(&self) -> Vec<Vec<NodeId>> {
        let mut by_order = vec![Vec::new(); self.orders.nodes.len()];
        for group in &self.groups {
            let (attempt, _) = group.answer.expect("every group is answered");
            by_order[group.place.0].push(self.attempts[attempt.0].node);
        }
        by_order
    }

    /// The replies to the orders, each under the name of the order's own node.
    ///
    /// # Panics
    /// When a token is not answered, or not exactly once.
    pub(in crate::dispatch) fn into_replies(mut self, width: usize) -> Replies {
        let mut groups = self.groups.iter().peekable();
        let mut nodes = Vec::with_capacity(self.orders.nodes.len());
        for (at, order) in self.orders.nodes.iter().enumerate() {
            let mut parts = Vec::with_capacity(order.groups.len());
            while let Some(group) = groups.next_if(|group| group.place.0 == at) {
                parts.push(group.answer.expect("every group is answered"));
            }
            let first = AttemptId(at);
            if parts.iter().all(|(attempt, _)| *attempt == first) {
                nodes.push(self.attempts[at].reply.take().expect("it answered"));
                continue;
            }
            let mut outputs = Vec::new();
            if self.combine == Combine::Exact {
                outputs.reserve_exact(order.pairs() * width);
                for (group, (attempt, row)) in order.groups.iter().zip(&parts) {
                    let reply = self.attempts[attempt.0].reply.as_ref().expect("it answered");
                    let rows = row * width..(row + group.tokens.len()) * width;
                    outputs.extend_from_slice(&reply.outputs[rows]);
                }
            }
            parts.sort_unstable();
            parts.dedup_by_key(|(attempt, _)| *attempt);
            if self.combine == Combine::AtWorker {
                outputs = self.sum_of_parts(order, &parts, width);
            }
            let spent = |(attempt, _): &(AttemptId, usize)| {
                self.attempts[attempt.0].reply.as_ref().map_or(0, |reply| reply.compute_ns)
            };
            // Peers state the times: whatever they say, the sum does not overflow.
            let compute_ns = parts.iter().map(spent).fold(0, u64::saturating_add);
            nodes.push(NodeReply { node: order.node, outputs, compute_ns });
        }
        if self.combine == Combine::Exact {
            for (order, reply) in self.orders.nodes.iter().zip(&nodes) {
                let asked = order.pairs() * width;
                assert_eq!(reply.outputs.len(), asked, "each pair of {} counts once", order.node);
            }
        }
        Replies { nodes }
    }

    /// What several attempts summed of one order, in their order.
    ///
    /// # Panics
    /// When a group is in the sums of none of them, or of two.
    fn sum_of_parts(
        &self,
        order: &NodeOrder,
        parts: &[(AttemptId, usize)],
        width: usize,
    ) -> Vec<f32> {
        let tokens = order.tokens();
        let mut sums = vec![0.0; tokens.len() * width];
        let mut pairs = 0;
        for (attempt, _) in parts {
            let Attempt { order, reply, .. } = &self.attempts[attempt.0];
            pairs += order.pairs();
            let rows = reply.as_ref().expect("it answered").outputs.chunks_exact(width);
            for (token, row) in order.tokens().iter().zip(rows) {
                let place = tokens.binary_search(token).expect("a part of the order");
                let sum = &mut sums[place * width..][..width];
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        assert_eq!(pairs, order.pairs(), "each pair of {} counts once", order.node);
        sums
    }
}

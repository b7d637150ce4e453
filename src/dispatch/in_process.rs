//! The experts in this process: the baseline of every distributed run, and its oracle.

use super::{Dispatch, DispatchError, Faults, Ledger, Served, ShardAssignment};
use crate::measure::Clock;
use crate::{wire, worker::compute};
use agents::{
    expert::Expert,
    ids::{ExpertId, LayerId, NodeId},
    orders::{NodeOrder, NodeReply, Orders, Replies},
};
use std::{collections::BTreeMap, sync::Arc};

/// Computes on the rayon pool of the thread that polls [`Dispatch::send`]; it never waits. A node
/// exists as soon as it has a shard, and computes only what it was given.
#[derive(Debug, Default)]
pub struct InProcess {
    nodes: BTreeMap<NodeId, Node>,
    pairs: u64,
}

#[derive(Debug, Default)]
struct Node {
    experts: BTreeMap<(LayerId, ExpertId), Arc<Expert>>,
    ledger: Ledger,
}

impl InProcess {
    /// No node, no shard.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn answer(
        &mut self,
        layer: LayerId,
        order: &NodeOrder,
        hidden: &[f32],
        width: usize,
    ) -> Result<NodeReply, String> {
        let text = |error: wire::WireError| error.detail;
        let pairs =
            wire::check_order(&order.groups, hidden.len(), width, usize::MAX).map_err(text)?;
        let node = self.nodes.get_mut(&order.node).ok_or("it has no shards")?;
        let mut groups = Vec::with_capacity(order.groups.len());
        for group in &order.groups {
            let expert = node
                .experts
                .get(&(layer, group.expert))
                .ok_or_else(|| format!("expert {} of layer {layer} is not here", group.expert))?;
            wire::check_width(expert, width).map_err(text)?;
            for token in &group.tokens {
                wire::finite_row(hidden, token.index(), width).map_err(text)?;
            }
            groups.push((expert.clone(), group.tokens.as_slice()));
        }
        let clock = Clock::start();
        let outputs = compute::outputs(&groups, bytemuck::cast_slice(hidden), width);
        let compute_ns = clock.now_ns();
        wire::check_finite("output", bytemuck::cast_slice(&outputs), width).map_err(text)?;
        let reply = NodeReply { node: order.node, outputs, compute_ns };
        node.ledger.answered(pairs, &reply);
        self.pairs += pairs as u64;
        Ok(reply)
    }
}

impl Dispatch for InProcess {
    async fn load(&mut self, shards: Vec<ShardAssignment>) -> Result<(), DispatchError> {
        for ShardAssignment { node, layer, expert, expert_weights } in shards {
            let node = self.nodes.entry(node).or_default();
            let bytes = usize::try_from(expert_weights.encoded_bytes());
            node.ledger.loaded(layer, expert, bytes.expect("an expert in memory has a length"));
            node.experts.insert((layer, expert), expert_weights);
        }
        Ok(())
    }

    async fn send(
        &mut self,
        orders: &Orders,
        hidden: &[f32],
        width: usize,
    ) -> Result<Replies, DispatchError> {
        let mut nodes = Vec::with_capacity(orders.nodes.len());
        for order in &orders.nodes {
            let refused = |detail| DispatchError::Refused { node: order.node, detail };
            nodes.push(self.answer(orders.layer, order, hidden, width).map_err(refused)?);
        }
        Ok(Replies { nodes })
    }

    fn is_available(&self, _: NodeId) -> bool {
        true
    }

    async fn close(self) -> Served {
        let nodes = self.nodes.iter().map(|(id, node)| node.ledger.stats(*id, false)).collect();
        Served {
            nodes,
            faults: Faults { pairs: self.pairs, ..Faults::default() },
            membership: None,
        }
    }
}

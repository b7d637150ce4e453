//! The experts in this process: the baseline of every distributed run, and its oracle.

use super::{
    Dispatch, DispatchError, Faults, Ledger, Rehosted, Rehosting, Served, ShardAssignment,
};
use crate::measure::Clock;
use crate::{wire, worker::compute};
use agents::{
    expert::Expert,
    ids::{ExpertId, LayerId, NodeId, TokenId},
    orders::{ExpertGroup, NodeOrder, NodeReply, Orders, PairGates, Replies, weighted_sums},
};
use std::{collections::BTreeMap, sync::Arc};

/// Computes on the rayon pool of the thread that polls [`Dispatch::send`]; it never waits. A node
/// exists as soon as it has a shard, and computes only what it was given.
#[derive(Debug, Default)]
pub struct InProcess {
    nodes: BTreeMap<NodeId, Node>,
    pairs: u64,
    /// Experts that shall have other hosts.
    rehosting: Vec<Rehosting>,
    /// Experts that have, and nobody was told.
    moved: BTreeMap<(LayerId, ExpertId), Vec<NodeId>>,
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
        gates: Option<&PairGates>,
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
        let mut outputs = compute::outputs(&groups, bytemuck::cast_slice(hidden), width);
        if let Some(gates) = gates {
            outputs = summed(order, gates, &outputs, width)?;
        }
        let compute_ns = clock.now_ns();
        wire::check_finite("output", bytemuck::cast_slice(&outputs), width).map_err(text)?;
        let reply = NodeReply { node: order.node, outputs, compute_ns };
        node.ledger.answered(pairs, &reply);
        self.pairs += pairs as u64;
        Ok(reply)
    }
}

/// What a worker would sum: the outputs of each of the order's tokens.
fn summed(
    order: &NodeOrder,
    gates: &PairGates,
    outputs: &[f32],
    width: usize,
) -> Result<Vec<f32>, String> {
    let tokens = order.tokens();
    let mut groups = Vec::with_capacity(order.groups.len());
    for ExpertGroup { expert, tokens: of_expert } in &order.groups {
        let row = |token| tokens.binary_search(token).expect("the order names it");
        let rows: Vec<TokenId> = of_expert.iter().map(row).map(TokenId::from_index).collect();
        let gate = |token: &TokenId| {
            gates
                .of(*token, *expert)
                .ok_or_else(|| format!("token {token} of expert {expert} has no gate"))
        };
        let gates = of_expert.iter().map(gate).collect::<Result<Vec<f32>, _>>()?;
        groups.push((rows, gates));
    }
    let groups = groups.iter().map(|(rows, gates)| (rows.as_slice(), gates.as_slice()));
    Ok(weighted_sums(groups, outputs, tokens.len(), width))
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

    async fn replace(&mut self, shards: Vec<ShardAssignment>) -> Result<u64, DispatchError> {
        self.load(shards).await?;
        Ok(0)
    }

    async fn rehost(&mut self, changes: Vec<Rehosting>) -> Result<(), DispatchError> {
        self.rehosting = changes;
        Ok(())
    }

    /// Copies of one process share their weights, so nothing is sent.
    async fn rehosted(&mut self) -> Result<Rehosted, DispatchError> {
        for change in std::mem::take(&mut self.rehosting) {
            let name = (change.layer, change.expert);
            for (id, node) in &mut self.nodes {
                if !change.hosts.contains(id) && node.experts.remove(&name).is_some() {
                    node.ledger.dropped(change.layer, change.expert);
                }
            }
            self.moved.insert(name, change.hosts.clone());
            self.load(change.assignments().collect()).await?;
        }
        Ok(Rehosted::default())
    }

    async fn deliver(
        &mut self,
        orders: &Orders,
        gates: Option<&PairGates>,
        hidden: &[f32],
        width: usize,
    ) -> Result<Replies, DispatchError> {
        let mut nodes = Vec::with_capacity(orders.nodes.len());
        for order in &orders.nodes {
            let refused = |detail| DispatchError::Refused { node: order.node, detail };
            nodes.push(self.answer(orders.layer, order, gates, hidden, width).map_err(refused)?);
        }
        Ok(Replies { nodes })
    }

    fn is_available(&self, _: NodeId) -> bool {
        true
    }

    fn moved(&mut self) -> Option<BTreeMap<(LayerId, ExpertId), Vec<NodeId>>> {
        (!self.moved.is_empty()).then(|| std::mem::take(&mut self.moved))
    }

    fn so_far(&self) -> Served {
        let nodes = self.nodes.iter().map(|(id, node)| node.ledger.stats(*id, false)).collect();
        Served {
            nodes,
            faults: Faults { pairs: self.pairs, ..Faults::default() },
            ..Served::default()
        }
    }

    async fn close(self) -> Served {
        self.so_far()
    }
}

//! Sends orders to experts, in process or over gRPC.

mod in_process;
mod link;
mod local;
mod node_spec;
pub mod placement;
mod remote;

pub use in_process::InProcess;
pub use link::{Deadlines, endpoint};
pub use local::{Local, LocalSettings};
pub(crate) use node_spec::is_host_and_port;
pub use node_spec::{NodeSpec, NodeSpecError};
pub use remote::Remote;

use agents::{
    expert::Expert,
    ids::{ExpertId, LayerId, NodeId},
    orders::{NodeReply, Orders, Replies},
};
use std::{collections::BTreeMap, sync::Arc};

/// Where experts compute. The replies are the same bits for every implementation.
pub trait Dispatch {
    /// Brings shards to their nodes. A shard that a node already holds is replaced.
    ///
    /// # Errors
    /// The first node that is lost, too slow, refuses, or stored something else.
    fn load(
        &mut self,
        shards: Vec<ShardAssignment>,
    ) -> impl Future<Output = Result<(), DispatchError>> + Send;

    /// Has the experts compute the orders on `hidden`, f32 `[T, width]`. The replies come in the
    /// order of the orders' nodes.
    ///
    /// After an error the other nodes go on: orders that avoid the failed node can be sent.
    ///
    /// # Errors
    /// The first node, in that order, that is lost, too slow, refuses or answers wrongly.
    fn send(
        &mut self,
        orders: &Orders,
        hidden: &[f32],
        width: usize,
    ) -> impl Future<Output = Result<Replies, DispatchError>> + Send;

    /// Ends what this dispatcher started, and says what each node did for it, lost ones too.
    fn close(self) -> impl Future<Output = Vec<NodeStats>> + Send;
}

/// A shard and the node that shall hold it. For replicas there is one of these each.
#[derive(Clone, Debug)]
pub struct ShardAssignment {
    /// The host.
    pub node: NodeId,
    /// The expert's layer.
    pub layer: LayerId,
    /// The expert.
    pub expert: ExpertId,
    /// What it computes with.
    pub expert_weights: Arc<Expert>,
}

/// What one node did for one dispatcher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeStats {
    /// The node.
    pub node: NodeId,
    /// Shards it holds.
    pub shards: usize,
    /// Their encoded bytes.
    pub shard_bytes: usize,
    /// Orders it answered.
    pub requests: u64,
    /// Token–expert pairs it answered.
    pub token_experts: u64,
    /// Time it spent computing them, without queue and transport.
    pub compute_ns: u64,
}

/// Why orders were not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DispatchError {
    /// A worker could not be started or reached.
    #[error("node {node} did not start: {detail}{}", quoted(.log))]
    Start {
        /// The node.
        node: NodeId,
        /// What happened.
        detail: String,
        /// The last lines of its log, where it is a child of this process.
        log: Vec<String>,
    },
    /// A node died, or the way to it broke.
    #[error("node {node} was lost: {detail}{}", quoted(.log))]
    NodeLost {
        /// The node.
        node: NodeId,
        /// What happened.
        detail: String,
        /// The last lines of its log, where it is a child of this process.
        log: Vec<String>,
    },
    /// A node is there but did not answer in time.
    #[error("node {node} did not answer within {deadline_ms} ms: raise the deadline or send less")]
    Timeout {
        /// The node.
        node: NodeId,
        /// The time it had.
        deadline_ms: u64,
    },
    /// An order or a shard was refused, by the node or before it was sent.
    #[error("node {node} refuses: {detail}")]
    Refused {
        /// The node.
        node: NodeId,
        /// The rule that was broken.
        detail: String,
    },
    /// A reply does not fit its order. It is not used.
    #[error("node {node} answered wrongly: {detail}")]
    BadReply {
        /// The node.
        node: NodeId,
        /// What is wrong with it.
        detail: String,
    },
}

impl DispatchError {
    /// The node that failed.
    #[must_use]
    pub fn node(&self) -> NodeId {
        match self {
            Self::Start { node, .. }
            | Self::NodeLost { node, .. }
            | Self::Timeout { node, .. }
            | Self::Refused { node, .. }
            | Self::BadReply { node, .. } => *node,
        }
    }
}

fn quoted(log: &[String]) -> String {
    if log.is_empty() {
        return String::new();
    }
    log.iter().fold("; its last log lines:".to_owned(), |text, line| text + "\n  " + line)
}

/// What one node holds and has done.
#[derive(Clone, Debug, Default)]
struct Ledger {
    shard_bytes: BTreeMap<(LayerId, ExpertId), usize>,
    requests: u64,
    token_experts: u64,
    compute_ns: u64,
}

impl Ledger {
    fn loaded(&mut self, layer: LayerId, expert: ExpertId, bytes: usize) {
        self.shard_bytes.insert((layer, expert), bytes);
    }

    fn answered(&mut self, pairs: usize, reply: &NodeReply) {
        self.requests += 1;
        self.token_experts += pairs as u64;
        // A peer states the time: whatever it says, the sum does not overflow.
        self.compute_ns = self.compute_ns.saturating_add(reply.compute_ns);
    }

    fn stats(&self, node: NodeId) -> NodeStats {
        NodeStats {
            node,
            shards: self.shard_bytes.len(),
            shard_bytes: self.shard_bytes.values().sum(),
            requests: self.requests,
            token_experts: self.token_experts,
            compute_ns: self.compute_ns,
        }
    }
}

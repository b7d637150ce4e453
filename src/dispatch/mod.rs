//! Sends orders to experts, in process or over gRPC.

mod course;
mod deliver;
mod departures;
mod health;
mod identity;
mod in_process;
mod joined;
mod link;
mod load;
mod local;
mod node_spec;
pub mod placement;
mod rehost;
mod remote;
mod round_trip;
mod served;
mod settings;
mod spot_check;
mod virtual_nodes;
mod work;

pub use crate::transport::endpoint;
pub use in_process::InProcess;
pub use joined::{Joined, JoinedSettings, MembershipCounts, OwnWorker};
pub use link::Deadlines;
pub use local::{Local, LocalSettings, SocketKind};
pub use node_spec::{NodeSpec, NodeSpecError};
pub(crate) use node_spec::{is_host_and_port, is_ip_and_port};
pub use rehost::{Rehosted, Rehosting};
pub use remote::Remote;
pub use settings::RemoteSettings;
pub use virtual_nodes::{Coordinator, Virtual, VirtualSettings};
pub(crate) use work::work_of;

use agents::{
    cluster::Passed,
    expert::Expert,
    ids::{ExpertId, LayerId, NodeId},
    orders::{NodeReply, Orders, PairGates, Replies},
    placement::NodeLoad,
    queueing::ForkJoin,
};
use serde::{Deserialize, Serialize};
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

    /// Brings nodes other weights for shards that they hold, between rounds: what is ordered from then on is
    /// computed with these. A node that cannot be brought them is lost. Gives the encoded bytes that went
    /// to other processes.
    ///
    /// # Errors
    /// When what a lost node held is not brought to others in time.
    fn replace(
        &mut self,
        shards: Vec<ShardAssignment>,
    ) -> impl Future<Output = Result<u64, DispatchError>> + Send;

    /// Begins to bring experts to other nodes, between rounds: rounds go on with the hosts that are there while
    /// it is under way. [`Self::rehosted`] has to be awaited before this is called again.
    ///
    /// # Errors
    /// Where experts cannot move between nodes.
    fn rehost(
        &mut self,
        changes: Vec<Rehosting>,
    ) -> impl Future<Output = Result<(), DispatchError>> + Send {
        let node = changes.first().and_then(|change| change.hosts.first()).copied();
        let (node, detail) = (node.unwrap_or_default(), "experts stay on these nodes".to_owned());
        std::future::ready(Err(DispatchError::Refused { node, detail }))
    }

    /// Waits, between rounds, until what [`Self::rehost`] began is there. Experts whose new hosts all have their
    /// copies are hosted there from now on, as [`Self::moved`] will say, and the others drop theirs; an
    /// expert that a host did not get stays where it was too. A node that fails meanwhile is lost.
    ///
    /// # Errors
    /// When what a lost node held is not brought to others in time.
    fn rehosted(&mut self) -> impl Future<Output = Result<Rehosted, DispatchError>> + Send {
        std::future::ready(Ok(Rehosted::default()))
    }

    /// Has the experts compute the orders on `hidden`, f32 `[T, width]`. The replies come in the
    /// order of the orders' nodes.
    ///
    /// What a node does not do because it is lost, too slow or answers wrongly is asked of other nodes
    /// that hold the same experts. After an error the other nodes go on: orders that avoid the failed
    /// node can be sent.
    ///
    /// With `gates`, which have to have one for each pair, nodes answer sums instead of outputs.
    ///
    /// # Errors
    /// A node that refuses; or one that is lost, too slow or answers wrongly while nobody else can
    /// compute its order.
    fn deliver(
        &mut self,
        orders: &Orders,
        gates: Option<&PairGates>,
        hidden: &[f32],
        width: usize,
    ) -> impl Future<Output = Result<Replies, DispatchError>> + Send;

    /// The same without gates: the replies hold the outputs.
    ///
    /// # Errors
    /// See [`Self::deliver`].
    fn send(
        &mut self,
        orders: &Orders,
        hidden: &[f32],
        width: usize,
    ) -> impl Future<Output = Result<Replies, DispatchError>> + Send {
        self.deliver(orders, None, hidden, width)
    }

    /// Whether a node should get work: not when it was lost, and not while it is set aside for being
    /// slow. Orders to such a node are sent all the same, if only for want of another.
    fn is_available(&self, node: NodeId) -> bool;

    /// What was measured of a node: what it has to answer, and how long it took lately. All are alike where
    /// nothing is measured.
    fn node_load(&self, node: NodeId) -> NodeLoad {
        let _ = node;
        NodeLoad::default()
    }

    /// How long each node took to answer in the latest round, from its start, ns, in the order of the answers. Empty
    /// where all experts are in this process.
    fn legs(&self) -> &[(NodeId, u64)] {
        &[]
    }

    /// The nodes that host each expert, where that changed since it was last asked for; never where
    /// neither nodes nor experts come and go. Orders to other nodes are carried out all the same.
    fn moved(&mut self) -> Option<BTreeMap<(LayerId, ExpertId), Vec<NodeId>>> {
        None
    }

    /// What [`Self::close`] would say if it were asked now.
    fn so_far(&self) -> Served;

    /// Ends what this dispatcher started, and says what each node did for it, lost ones too.
    fn close(self) -> impl Future<Output = Served> + Send;
}

/// What nodes did for one dispatcher, and what went wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// By node.
    pub nodes: Vec<NodeStats>,
    /// Over all rounds.
    pub faults: Faults,
    /// How long nodes took, round by round; absent where all experts are in this process.
    pub fork_join: Option<ForkJoin>,
    /// Who came and went, where nodes do.
    pub membership: Option<MembershipCounts>,
    /// What passed links between racks and pods, by their numbers; empty where there are none.
    #[serde(default)]
    pub links: Vec<Passed>,
}

/// Faults that were survived, and what that cost. Pairs are token–expert pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Nodes that were lost.
    pub lost: u64,
    /// Times that a node was set aside because it was slow.
    pub set_aside: u64,
    /// Pairs that were ordered.
    pub pairs: u64,
    /// Pairs that were asked of another node because the first failed.
    pub rerouted_pairs: u64,
    /// Pairs that were asked of another node because the first was slow.
    pub hedged_pairs: u64,
    /// Orders that were hedged.
    pub hedges: u64,
    /// Hedges that answered for the node they were to spare.
    pub hedges_won: u64,
    /// Orders whose outputs were compared with those of other nodes.
    pub spot_checks: u64,
    /// Orders that were to be compared while no other node could compute them.
    pub spot_checks_skipped: u64,
    /// Nodes that were lost because they answered wrong outputs.
    pub quarantined: u64,
    /// Replies of nodes that were lost before they came: dropped.
    pub stale_replies: u64,
    /// Replies to messages that were given up, or beaten by a hedge: dropped.
    pub late_replies: u64,
    /// Second replies to messages that were answered: dropped.
    pub duplicate_replies: u64,
    /// Messages that were sent again because their stream broke.
    pub redelivered: u64,
    /// The longest round in which something was rerouted, from its orders to its last reply.
    pub recovery_ns_max: u64,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Bytes of the messages that asked it, without what carries them.
    pub sent_bytes: u64,
    /// Bytes of its messages, in the same way.
    pub received_bytes: u64,
    /// Whether it was lost.
    pub lost: bool,
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
    sent_bytes: u64,
    received_bytes: u64,
}

impl Ledger {
    fn loaded(&mut self, layer: LayerId, expert: ExpertId, bytes: usize) {
        self.shard_bytes.insert((layer, expert), bytes);
    }

    fn dropped(&mut self, layer: LayerId, expert: ExpertId) {
        self.shard_bytes.remove(&(layer, expert));
    }

    /// The bill of a seat when its next holder, with what `next` holds and did, takes it.
    fn succeeded_by(&self, next: &Self) -> Self {
        Self {
            shard_bytes: next.shard_bytes.clone(),
            requests: self.requests + next.requests,
            token_experts: self.token_experts + next.token_experts,
            compute_ns: self.compute_ns.saturating_add(next.compute_ns),
            sent_bytes: self.sent_bytes + next.sent_bytes,
            received_bytes: self.received_bytes + next.received_bytes,
        }
    }

    fn answered(&mut self, pairs: usize, reply: &NodeReply) {
        self.requests += 1;
        self.token_experts += pairs as u64;
        // A peer states the time: whatever it says, the sum does not overflow.
        self.compute_ns = self.compute_ns.saturating_add(reply.compute_ns);
    }

    fn stats(&self, node: NodeId, lost: bool) -> NodeStats {
        NodeStats {
            node,
            shards: self.shard_bytes.len(),
            shard_bytes: self.shard_bytes.values().sum(),
            requests: self.requests,
            token_experts: self.token_experts,
            compute_ns: self.compute_ns,
            sent_bytes: self.sent_bytes,
            received_bytes: self.received_bytes,
            lost,
        }
    }
}

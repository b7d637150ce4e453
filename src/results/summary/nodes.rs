//! What nodes did, which faults they had, and who came and went.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One node over the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeFigures {
    /// Its id.
    pub node: u32,
    /// Where it listens, or how it is reached.
    pub address: String,
    /// Expert replicas hosted at the end.
    pub experts: u64,
    /// Bytes of those as they are sent: 28 bytes of header a shard more than in `memory`.
    pub bytes: u64,
    /// Token–expert pairs computed.
    pub tokens: u64,
    /// Time that the node reports for computing over the time of serving.
    pub busy_share: Option<f64>,
    /// Whether it answered to the end.
    pub alive: bool,
}

/// Faults of nodes that the run survived, and what that cost. Outputs are the same bits whatever
/// happens here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FaultFigures {
    /// Nodes that were lost for good.
    pub lost_nodes: u64,
    /// Times that a node was set aside for a while because it was slow.
    pub set_aside: u64,
    /// Orders whose outputs were compared bit by bit with those of other nodes.
    #[serde(default)]
    pub spot_checks: u64,
    /// Orders that were to be compared while no other node could compute them.
    #[serde(default)]
    pub spot_checks_skipped: u64,
    /// Nodes that were lost because a comparison found their outputs wrong.
    #[serde(default)]
    pub quarantined_nodes: u64,
    /// Replies that came from nodes after they were lost: dropped.
    #[serde(default)]
    pub stale_replies: u64,
    /// Replies to orders that were given up or beaten by a hedge: dropped.
    #[serde(default)]
    pub late_replies: u64,
    /// Second replies to orders that were answered: dropped.
    #[serde(default)]
    pub duplicate_replies: u64,
    /// Orders that were sent again because their stream broke.
    #[serde(default)]
    pub redelivered_orders: u64,
    /// Token–expert pairs that a replica was asked for because the first node failed.
    pub rerouted_pairs: u64,
    /// The longest round in which pairs were rerouted, from its orders to its last reply, ns.
    pub recovery_ns_max: Option<u64>,
    /// Orders that were asked of replicas too because the first node was slow.
    pub hedges: u64,
    /// Of these, those that were answered before the first node.
    pub hedges_won: u64,
    /// Their pairs over all pairs ordered: within `nodes.hedge_budget`.
    pub hedged_share: Option<f64>,
}

/// Workers that joined and left while the run went on. Outputs are the same bits whatever happens here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MembershipFigures {
    /// Changes of the membership: joined, got work, drained, out.
    pub epoch: u64,
    /// Times that a worker joined.
    pub joined: u64,
    /// Workers that drained and left once others held what they held.
    pub left: u64,
    /// Workers whose lease ran out.
    pub expired: u64,
    /// Workers whose connection broke, or that answered wrongly.
    pub dropped: u64,
    /// Requests to join that were of another run, or of a worker in quarantine.
    pub refused: u64,
    /// Copies of experts that were taken from nodes because others hold them as planned.
    #[serde(default)]
    pub copies_dropped: u64,
}

//! What leaves the core and what comes back: the only traffic between the game and the nodes.

use crate::ids::{ExpertId, LayerId, NodeId, StepId, TokenId};

/// The tokens that one node runs through one expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertGroup {
    /// The expert, hosted by the node that the group is sent to.
    pub expert: ExpertId,
    /// Rows of the hidden matrix, ascending, each once.
    pub tokens: Vec<TokenId>,
}

/// All the work of one node for one layer of one step: one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeOrder {
    /// The addressee.
    pub node: NodeId,
    /// Non-empty groups in ascending order of expert.
    pub groups: Vec<ExpertGroup>,
}

impl NodeOrder {
    /// Token–expert pairs in this order: the rows of its reply.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.groups.iter().map(|group| group.tokens.len()).sum()
    }
}

/// The orders of one layer of one step, in ascending order of node; nodes without work are absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orders {
    /// The batch.
    pub step: StepId,
    /// The layer.
    pub layer: LayerId,
    /// One entry a node that has work.
    pub nodes: Vec<NodeOrder>,
}

/// One node's answer to its [`NodeOrder`].
#[derive(Clone, Debug, PartialEq)]
pub struct NodeReply {
    /// The sender.
    pub node: NodeId,
    /// f32 `[pairs, width]`: unweighted expert outputs in the order of the groups and their tokens.
    pub outputs: Vec<f32>,
    /// Time the node spent computing, without queue and transport.
    pub compute_ns: u64,
}

/// The answers to [`Orders`], one for each of its nodes and in the same order.
#[derive(Clone, Debug, PartialEq)]
pub struct Replies {
    /// One entry a [`NodeOrder`].
    pub nodes: Vec<NodeReply>,
}

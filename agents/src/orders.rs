//! What leaves the core and what comes back: the only traffic between the game and the nodes.

use crate::game::Choices;
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

    /// The distinct tokens of this order, ascending.
    #[must_use]
    pub fn tokens(&self) -> Vec<TokenId> {
        let mut tokens: Vec<TokenId> =
            self.groups.iter().flat_map(|group| &group.tokens).copied().collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }
}

/// Where the outputs of a token's experts are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Combine {
    /// Where the orders come from, in ascending order of expert: the same bits on any placement.
    #[default]
    Exact,
    /// On each node those of its own experts, and the nodes' sums where the orders come from, in ascending
    /// order of node: the placement decides on the last bits.
    AtWorker,
}

/// The gate of each pair of a round.
#[derive(Clone, Debug, PartialEq)]
pub struct PairGates {
    choices: Choices,
    gates: Vec<f32>,
}

impl PairGates {
    /// `gates` has one value for each chosen pair, by token and ascending expert.
    ///
    /// # Panics
    /// When it has not.
    #[must_use]
    pub fn new(choices: Choices, gates: Vec<f32>) -> Self {
        assert_eq!(choices.experts().len(), gates.len(), "one gate a pair");
        Self { choices, gates }
    }

    /// What a pair's output is multiplied by; none where the token did not choose the expert.
    #[must_use]
    pub fn of(&self, token: TokenId, expert: ExpertId) -> Option<f32> {
        if token.index() >= self.choices.tokens() {
            return None;
        }
        let place = self.choices.row(token.index()).binary_search(&expert).ok()?;
        Some(self.gates[self.choices.pairs(token.index()).start + place])
    }
}

/// Sums the outputs of one order's pairs, f32 `[pairs, width]` in the order of its groups and their tokens, each
/// times its gate: f32 `[rows, width]`. A group is its tokens, here the rows of the sums, and their gates.
///
/// # Panics
/// When a token is not a row, or a length does not fit.
#[must_use]
pub fn weighted_sums<'a>(
    groups: impl Iterator<Item = (&'a [TokenId], &'a [f32])>,
    outputs: &[f32],
    rows: usize,
    width: usize,
) -> Vec<f32> {
    let mut sums = vec![0.0; rows * width];
    let mut outputs = outputs.chunks_exact(width);
    for (tokens, gates) in groups {
        assert_eq!(tokens.len(), gates.len(), "one gate a pair");
        for (token, gate) in tokens.iter().zip(gates) {
            let output = outputs.next().expect("one row a pair");
            let sum = &mut sums[token.index() * width..][..width];
            sum.iter_mut().zip(output).for_each(|(sum, value)| *sum += gate * value);
        }
    }
    assert!(outputs.next().is_none(), "one row a pair");
    sums
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
    /// f32 `[pairs, width]`: unweighted expert outputs in the order of the groups and their tokens. Or, where
    /// nodes sum, f32 `[tokens, width]`: for each of [`NodeOrder::tokens`] the sum of its experts' outputs here, each times
    /// its gate.
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

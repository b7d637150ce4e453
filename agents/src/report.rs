//! What a round came to, for those who record it.

use crate::game::{Certificate, SocialReport};

/// What one play came to.
#[derive(Clone, Debug)]
pub struct PlayReport {
    /// Both certificates and the score.
    pub certificate: Certificate,
    /// Passes over the T × E scores.
    pub passes: u32,
    /// Steps of the router's own kind.
    pub iterations: u32,
    /// n_e by expert.
    pub loads: Vec<u32>,
    /// n_e by expert had every token taken its plain top k: the control.
    pub loads_top_k: Vec<u32>,
    /// Smallest share of its top-k affinity that any token kept.
    pub kept_share_min: f32,
    /// The play against the social optimum, where the rules ask for it and the game has one to compare.
    pub social: Option<SocialReport>,
}

/// What the flock's prices would have led to in the same batch.
#[derive(Clone, Debug)]
pub struct FlockReport {
    /// Both certificates and the score of the play under flock prices.
    pub certificate: Certificate,
    /// Largest load over the fair share.
    pub max_over_mean: f64,
}

/// How the pairs of one round were spread over the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLoadReport {
    /// Pairs ordered of each node, `[N]`.
    pub loads: Vec<u64>,
    /// ⌈w(A) / |nodes(A)|⌉ of the dispatch's tight set A: no other split over the same copies has a
    /// lower maximum.
    pub lower_bound: u64,
    /// The largest load, rounded up, had each expert's load been split evenly over its nodes, as EPLB
    /// assumes: the control.
    pub max_even_split: u64,
}

impl NodeLoadReport {
    /// The largest load of a node.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.loads.iter().copied().max().unwrap_or(0)
    }
}

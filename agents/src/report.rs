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

//! Top-k with dropping: experts refuse what exceeds their capacity.

use rayon::prelude::*;

use super::super::{Choices, Game, Play, Router, TopK};
use crate::ids::ExpertId;

/// Whom a full expert refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropBy {
    /// Those with the lowest score, of equal ones the latest.
    Probability,
    /// The latest in the batch.
    Position,
}

/// Every token asks for its k best; expert e keeps `C = ⌈capacity_factor · Tk/E⌉` of those that
/// ask for it and drops the rest (GShard, Lepikhin et al. 2020; Switch, Fedus et al. 2021).
///
/// A dropped pair is the residual path at utility 0, so the play is certified among sets of at
/// most k. Price: the best score an expert refused, 0 if it refused none or if that is negative.
/// Guaranteed: `n_e ≤ C`. Causal within a batch only with [`DropBy::Position`] and a capacity
/// that is known beforehand. Passes: 1. Iterations: 0. Label: tested.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopKCapacity {
    /// Capacity in fair shares, finite and > 0.
    pub capacity_factor: f64,
    /// Whom a full expert refuses.
    pub drop: DropBy,
}

impl Router for TopKCapacity {
    fn route(&self, game: &Game<'_>, _: Option<&[f64]>) -> Play {
        let experts = game.scores.experts();
        let capacity = capacity(game, self.capacity_factor);
        let asked = TopK.route(game, None).choices;
        let mut askers = vec![Vec::new(); experts];
        for token in 0..asked.tokens() {
            for expert in asked.row(token).iter().map(|expert| expert.index()) {
                askers[expert].push((game.scores.row(token)[expert], token));
            }
        }
        let prices = askers
            .par_iter_mut()
            .map(|askers| {
                if self.drop == DropBy::Probability {
                    // Stable, so equal scores stay in token order.
                    askers.sort_by(|a, b| b.0.total_cmp(&a.0));
                }
                let refused = askers.drain(capacity.min(askers.len())..);
                f64::from(refused.map(|(score, _)| score).fold(0.0, f32::max))
            })
            .collect();
        let mut rows = vec![Vec::new(); game.scores.tokens()];
        for (expert, kept) in askers.iter().enumerate() {
            kept.iter().for_each(|(_, token)| rows[*token].push(ExpertId::from_index(expert)));
        }
        Play { choices: Choices::ragged(&rows), prices, passes: 1, iterations: 0 }
    }
}

/// `⌈factor · Tk/E⌉`, at most T.
pub(super) fn capacity(game: &Game<'_>, factor: f64) -> usize {
    let pairs = (game.scores.tokens() * game.top_k) as f64;
    let capacity = (factor * pairs / game.scores.experts() as f64).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 1..=T, which is a usize"
    )]
    let capacity = capacity.clamp(1.0, game.scores.tokens() as f64) as usize;
    capacity
}

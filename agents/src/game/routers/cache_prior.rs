//! A prior on cached experts: who worked lately is a little cheaper.

use super::super::{Game, Play, Router};
use super::answer::{answer, start};

/// Top-k of `a − p`, where an expert that worked in the latest batch has the price `−bonus`, and one that has not
/// keeps half of its own from batch to batch: what a device asks for that keeps few experts in memory and reads the
/// others when they are chosen (Skliar et al. 2024, arXiv 2412.00099, add a constant to the scores of cached
/// experts; halving stands for a cache that forgets the least recently used).
///
/// The prices are the router's state; cold, they are zero and it is top-k.
///
/// Guaranteed: a chosen expert's score is at most `bonus` below one that was left out. Causal. Passes: 1.
/// Iterations: 1. Label: tested.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CachePrior {
    /// In units of the scores, at least 0; 0 is top-k.
    pub bonus: f64,
}

impl Router for CachePrior {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        let mut prices = start(game, warm);
        let choices = answer(game, &prices).choices;
        for (price, load) in prices.iter_mut().zip(choices.loads(game.scores.experts())) {
            *price = if load > 0 { -self.bonus } else { *price / 2.0 };
        }
        Play { choices, prices, passes: 1, iterations: 1 }
    }
}

//! Hash routing: experts by position, whatever the scores.

use super::super::{Choices, Game, Play, Router};
use super::answer::coin;
use crate::ids::ExpertId;

/// Token t takes k distinct experts drawn by a hash of its row (Roller et al. 2021, who hash the
/// vocabulary id; a game has none, so tokens that repeat do not meet the same experts here).
///
/// Guaranteed: nothing but balance on average, with deviations of about `√(n_e)`. Causal. All
/// prices are zero. Passes: 0. Iterations: 0. Label: tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    /// Another seed is another hash.
    pub seed: u64,
}

impl Router for Hash {
    fn route(&self, game: &Game<'_>, _: Option<&[f64]>) -> Play {
        let (experts, k) = (game.scores.experts(), game.top_k);
        let mut chosen = Vec::with_capacity(game.scores.tokens() * k);
        let mut deck: Vec<ExpertId> = (0..experts).map(ExpertId::from_index).collect();
        for token in 0..game.scores.tokens() as u64 {
            deck.sort_unstable();
            for slot in 0..k {
                let left = (experts - slot) as u64;
                let draw = coin(self.seed, token, slot as u64) % left;
                deck.swap(slot, slot + usize::try_from(draw).expect("below E"));
            }
            deck[..k].sort_unstable();
            chosen.extend_from_slice(&deck[..k]);
        }
        let prices = vec![0.0; experts];
        Play { choices: Choices::uniform(chosen, k), prices, passes: 0, iterations: 0 }
    }
}

//! Migration under stale loads: smooth policies settle, switching at once does not.

use rayon::prelude::*;

use super::super::{Choices, Game, Play, Router, TOKEN_BLOCK};
use super::answer::{answer, coin, level, start, unit};
use super::toll::Toll;
use crate::ids::ExpertId;

/// Who moves when the board says that another expert is better.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Migration {
    /// A slot samples an expert uniformly and moves to it with probability `min(1, α · gain)`,
    /// with `α = smoothness / (4 · period · β)` and β the steepest slope of a cost in the load,
    /// all of T tokens as one.
    Smooth {
        /// Relative to the proven threshold, > 0; at most 1 keeps below it.
        smoothness: f64,
    },
    /// Every token moves to its best set by the board.
    Always,
}

/// Tokens that see loads on a bulletin board which is renewed every `period` rounds (Fischer and
/// Vöcking 2005, 2009).
///
/// Guaranteed for many small tokens: policies that migrate with probability at most α·gain
/// converge to the Wardrop equilibrium if `period ≤ 1/(4 D α β)`, here with path length D = 1;
/// policies that always switch oscillate at any period. With finitely many tokens the end is a
/// sample near the equilibrium: ε says how near. Where the cost bars loads, the tokens learn from
/// a linear toll of one score range a fair share; the certificate is in the game itself.
///
/// Prices: the tolls of the last loads. Not causal within a batch. Iterations: rounds. Passes:
/// those of `Always` read all scores; a smooth round reads 2k a token. Label: tested.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SmoothStale {
    /// Who moves.
    pub migration: Migration,
    /// Rounds between two renewals of the board, at least 1.
    pub period: u32,
    /// Rounds.
    pub rounds: u32,
    /// Of the draws.
    pub seed: u64,
}

impl Default for SmoothStale {
    /// At the threshold, renewed every 4 rounds, 2000 rounds.
    fn default() -> Self {
        let migration = Migration::Smooth { smoothness: 1.0 };
        Self { migration, period: 4, rounds: 2000, seed: 0 }
    }
}

impl Router for SmoothStale {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        let (tokens, experts, k) = (game.scores.tokens(), game.scores.experts(), game.top_k);
        let toll = Toll::new(game);
        let post = |loads: &[u32]| -> Vec<f64> {
            loads.iter().enumerate().map(|(e, load)| toll.at(e, f64::from(*load))).collect()
        };
        let mut choices = answer(game, &start(game, warm)).choices;
        let mut board = Vec::new();
        for round in 0..self.rounds {
            if round % self.period.max(1) == 0 {
                board = post(&choices.loads(experts));
            }
            choices = match self.migration {
                Migration::Always => answer(game, &board).choices,
                Migration::Smooth { smoothness } => {
                    let slope = toll.slope() * tokens as f64;
                    let rate = smoothness / (4.0 * f64::from(self.period.max(1)) * slope);
                    self.migrate(game, &choices, &board, rate, round)
                }
            };
        }
        let rows = match self.migration {
            Migration::Always => u64::from(self.rounds) + 1,
            Migration::Smooth { .. } => {
                (u64::from(self.rounds) * 2 * k as u64).div_ceil(experts as u64) + 1
            }
        };
        let prices = level(game, post(&choices.loads(experts)));
        let passes = u32::try_from(rows).unwrap_or(u32::MAX);
        Play { choices, prices, passes, iterations: self.rounds }
    }
}

impl SmoothStale {
    /// One round of sampling and moving. Tokens are apart from each other until the board changes.
    fn migrate(
        &self,
        game: &Game<'_>,
        choices: &Choices,
        board: &[f64],
        rate: f64,
        round: u32,
    ) -> Choices {
        let (experts, k) = (board.len(), game.top_k);
        let mut chosen = choices.experts().to_vec();
        chosen.par_chunks_mut(TOKEN_BLOCK * k).enumerate().for_each(|(block, chosen)| {
            for (token, set) in (block * TOKEN_BLOCK..).zip(chosen.chunks_exact_mut(k)) {
                let row = game.scores.row(token);
                let worth = |expert: usize| f64::from(row[expert]) - board[expert];
                let mut moved = false;
                for slot in 0..k {
                    let bits = coin(self.seed, u64::from(round), (token * k + slot) as u64);
                    let sample = (bits >> 32) % experts as u64;
                    let other = ExpertId::from_index(usize::try_from(sample).expect("below E"));
                    let gain = worth(other.index()) - worth(set[slot].index());
                    let moves = gain > 0.0 && unit(bits << 32) < rate * gain;
                    if moves && !set.contains(&other) {
                        (set[slot], moved) = (other, true);
                    }
                }
                if moved {
                    set.sort_unstable();
                }
            }
        });
        Choices::uniform(chosen, k)
    }
}

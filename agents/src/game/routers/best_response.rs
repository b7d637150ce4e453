//! Best response, one token at a time.

use super::super::{Choices, Game, Play, Router};
use super::answer::{answer, coin, prices_of_loads, start};
use super::grid::{Crowd, Grid, Scratch};
use crate::ids::ExpertId;

/// Tokens in turn move to their best set, the others staying, until a whole sweep moves nobody.
///
/// Scores and costs are rounded to a grid of 2^30 steps in the largest of them. On the grid every
/// move raises Φ by at least one step (Rosenthal 1973), so the end is an exact pure Nash
/// equilibrium of the rounded game, in any order of the tokens; of the game itself it is one up
/// to 2k steps, exactly if its numbers lie on the grid. Guaranteed at an equilibrium:
/// `Φ_max − Φ ≤ Tkδ` with `δ = max_e c_e(n_e+1) − c_e(n_e)`: take `p_e = c_e(n_e)` as prices,
/// which the play does. Under a quota δ is infinite and nothing is said about Φ.
///
/// Starts from top-k of `a − p` at warm prices. Not causal. Iterations: moves. Passes: sweeps and
/// one. Label: tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BestResponse {
    /// Sweeps at most. Beyond them the play is no equilibrium, and ε says by how much.
    pub most_sweeps: u32,
    /// The order of the tokens: theirs, or shuffled by a seed.
    pub shuffle: Option<u64>,
}

impl Default for BestResponse {
    /// 1000 sweeps in the order of the tokens.
    fn default() -> Self {
        Self { most_sweeps: 1000, shuffle: None }
    }
}

impl Router for BestResponse {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        let (tokens, k) = (game.scores.tokens(), game.top_k);
        let mut chosen = answer(game, &start(game, warm)).choices.experts().to_vec();
        let mut order: Vec<usize> = (0..tokens).collect();
        if let Some(seed) = self.shuffle {
            order.sort_by_key(|token| (coin(seed, 0, *token as u64), *token));
        }
        let loads = Choices::uniform(chosen.clone(), k).loads(game.scores.experts());
        let mut crowd = Crowd::new(Grid::new(game), loads);
        let mut scratch = Scratch::default();
        let mut set = vec![ExpertId(0); k];
        let (mut sweeps, mut moves, mut quiet) = (0, 0_u32, 0);
        while sweeps < self.most_sweeps && quiet < tokens {
            sweeps += 1;
            for token in &order {
                let held = &mut chosen[token * k..(token + 1) * k];
                if crowd.improve(*token, held, &mut scratch, &mut set) {
                    crowd.shift(held, &set);
                    held.copy_from_slice(&set);
                    moves = moves.saturating_add(1);
                    quiet = 0;
                } else {
                    quiet += 1;
                }
                if quiet == tokens {
                    break;
                }
            }
        }
        let prices = prices_of_loads(game, &crowd.loads);
        let choices = Choices::uniform(chosen, k);
        Play { choices, prices, passes: sweeps.saturating_add(1), iterations: moves }
    }
}

//! Best response of all tokens at once, made safe by the potential.

use rayon::prelude::*;

use super::super::{Choices, Game, Play, Router, TOKEN_BLOCK};
use super::answer::{answer, coin, prices_of_loads, start};
use super::grid::{Crowd, Grid, Scratch};
use crate::ids::ExpertId;

/// All tokens find their best set against the same loads; their moves are made together if they
/// raise Φ, else each mover keeps its move with probability ½, until the rest raises Φ. The
/// check costs O(E) beyond the pass:
/// `ΔΦ = Σ_movers Δa − Σ_e [C_e(n_e + Δn_e) − C_e(n_e)]`.
///
/// Guaranteed: Φ rises with every round, for a round that would not raise it is not made, and a
/// single mover always raises it (Rosenthal 1973), so rounds end at an equilibrium of the game on
/// the grid (see [`BestResponse`](super::BestResponse)) unless `most_rounds` comes first. Not
/// causal. Iterations: rounds. Passes: as many and two. Label: tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BestResponseBatched {
    /// Rounds at most. Beyond them the play is no equilibrium, and ε says by how much.
    pub most_rounds: u32,
    /// Of the coins that thin out movers.
    pub seed: u64,
}

impl Default for BestResponseBatched {
    /// 200 rounds.
    fn default() -> Self {
        Self { most_rounds: 200, seed: 0 }
    }
}

/// A token and the set it would have.
type Move = (usize, Vec<ExpertId>);

impl Router for BestResponseBatched {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        let k = game.top_k;
        let mut choices = answer(game, &start(game, warm)).choices;
        let mut crowd = Crowd::new(Grid::new(game), choices.loads(game.scores.experts()));
        let mut rounds = 0;
        while rounds < self.most_rounds {
            let mut movers = movers(game, &crowd, &choices);
            if movers.is_empty() {
                break;
            }
            let mut flips = 0;
            while !raises_potential(&crowd, &choices, &movers) {
                movers = self.thin(movers, rounds, flips);
                flips += 1;
            }
            let mut chosen = choices.experts().to_vec();
            for (token, set) in movers {
                crowd.shift(choices.row(token), &set);
                chosen[token * k..(token + 1) * k].copy_from_slice(&set);
            }
            choices = Choices::uniform(chosen, k);
            rounds += 1;
        }
        let prices = prices_of_loads(game, &crowd.loads);
        Play { choices, prices, passes: rounds.saturating_add(2), iterations: rounds }
    }
}

impl BestResponseBatched {
    /// About half of the movers, at least one.
    fn thin(&self, movers: Vec<Move>, round: u32, flip: u64) -> Vec<Move> {
        let toss = |token: usize| coin(self.seed ^ flip << 32, u64::from(round), token as u64);
        let chosen = movers.iter().map(|(token, _)| toss(*token)).min().unwrap_or(0);
        let kept = |(token, _): &Move| toss(*token) % 2 == 0 || toss(*token) == chosen;
        let before = movers.len();
        let mut left: Vec<Move> = movers.into_iter().filter(kept).collect();
        if left.len() == before {
            // All coins fell alike: halve by order, so that thinning ends.
            left.truncate(before.div_ceil(2));
        }
        left
    }
}

/// Everyone who gains by moving alone. One pass.
fn movers(game: &Game<'_>, crowd: &Crowd<'_>, choices: &Choices) -> Vec<Move> {
    let tokens = game.scores.tokens();
    let blocks: Vec<Vec<Move>> = (0..tokens.div_ceil(TOKEN_BLOCK))
        .into_par_iter()
        .map(|block| {
            let mut scratch = Scratch::default();
            let mut set = vec![ExpertId(0); game.top_k];
            let last = ((block + 1) * TOKEN_BLOCK).min(tokens);
            let mut gains = |token: usize| {
                let improves = crowd.improve(token, choices.row(token), &mut scratch, &mut set);
                improves.then(|| (token, set.clone()))
            };
            (block * TOKEN_BLOCK..last).filter_map(&mut gains).collect()
        })
        .collect();
    blocks.into_iter().flatten().collect()
}

fn raises_potential(crowd: &Crowd<'_>, choices: &Choices, movers: &[Move]) -> bool {
    let mut change = vec![0_i64; crowd.loads.len()];
    let mut scores = 0;
    for (token, set) in movers {
        let held = choices.row(*token);
        scores += crowd.score_change(*token, held, set);
        held.iter().for_each(|expert| change[expert.index()] -= 1);
        set.iter().for_each(|expert| change[expert.index()] += 1);
    }
    scores > crowd.congestion_change(&change)
}

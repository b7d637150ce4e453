//! Log-linear learning: noisy best response, one slot at a time.

use rand::RngExt as _;

use super::super::{Choices, Game, Play, Router};
use super::answer::{answer, prices_of_loads, start};
use crate::ids::ExpertId;
use crate::rng::stream;

/// Slot by slot, a token gives up one expert and draws another (or the same) with probability
/// `∝ exp((a[t,e] − c_e(n_e + 1))/τ)`, n without it: asynchronous logit revision (Blume 1993).
///
/// Guaranteed: each revision keeps the law `∝ exp(Φ/τ)`, so long runs end in a play drawn from
/// it; for τ → 0 it concentrates on the largest Φ. A finite run is a sample on the way there, no
/// equilibrium. A barred expert is drawn only if all are. Not causal. Iterations: revisions that
/// changed a slot. Passes: k a sweep, and one to start. Label: tested.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logit {
    /// τ in units of the scores, > 0.
    pub temperature: f64,
    /// Revisions of every slot.
    pub sweeps: u32,
    /// Of the draws.
    pub seed: u64,
}

impl Default for Logit {
    /// τ = 0.01 and 8 sweeps, for scores of unit range.
    fn default() -> Self {
        Self { temperature: 0.01, sweeps: 8, seed: 0 }
    }
}

impl Router for Logit {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        let (experts, k) = (game.scores.experts(), game.top_k);
        let mut rng = stream(self.seed, "logit router");
        let first = answer(game, &start(game, warm)).choices;
        let mut loads = first.loads(experts);
        let mut chosen = first.experts().to_vec();
        let cost = |expert: usize, load| game.cost.marginal(ExpertId::from_index(expert), load);
        let joined = |(expert, load): (usize, &u32)| cost(expert, load + 1);
        let mut join: Vec<f64> = loads.iter().enumerate().map(joined).collect();
        let mut weights = Vec::with_capacity(experts);
        let mut moves = 0_u32;
        for at in (0..self.sweeps).flat_map(|_| 0..game.scores.tokens() * k) {
            let (token, own) = (at / k, chosen[at].index());
            loads[own] -= 1;
            join[own] = cost(own, loads[own] + 1);
            weights.clear();
            let pairs = game.scores.row(token).iter().zip(&join);
            weights.extend(pairs.map(|(score, cost)| f64::from(*score) - cost));
            for other in chosen[token * k..(token + 1) * k].iter().map(|e| e.index()) {
                if other != own {
                    weights[other] = f64::NEG_INFINITY;
                }
            }
            let next = self.draw(&mut weights, rng.random()).unwrap_or(own);
            chosen[at] = ExpertId::from_index(next);
            moves = moves.saturating_add(u32::from(next != own));
            loads[next] += 1;
            join[next] = cost(next, loads[next] + 1);
        }
        chosen.chunks_exact_mut(k).for_each(<[ExpertId]>::sort_unstable);
        let passes = u32::try_from(k).unwrap_or(u32::MAX).saturating_mul(self.sweeps);
        let prices = prices_of_loads(game, &loads);
        let choices = Choices::uniform(chosen, k);
        Play { choices, prices, passes: passes.saturating_add(1), iterations: moves }
    }
}

impl Logit {
    /// Draws a position with probability `∝ exp(value/τ)`; none if all values are −inf.
    fn draw(&self, values: &mut [f64], uniform: f64) -> Option<usize> {
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if most == f64::NEG_INFINITY {
            return None;
        }
        values.iter_mut().for_each(|value| *value = ((*value - most) / self.temperature).exp());
        let mut left = uniform * values.iter().sum::<f64>();
        let mut last = None;
        for (at, weight) in values.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            last = Some(at);
            if left < *weight {
                break;
            }
            left -= weight;
        }
        last
    }
}

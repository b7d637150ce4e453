//! Multiplicative weights: every token learns a mixed play from what its experts cost.

use rayon::prelude::*;

use super::super::{Choices, Game, Play, Router, Scores, TOKEN_BLOCK, TopK};
use super::answer::level;
use super::toll::Toll;

/// How weights shrink with a loss ℓ in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightRule {
    /// `w ← w (1 − η ℓ)`, with 0 < η < 1.
    Linear,
    /// `w ← w exp(−η ℓ)`, with η > 0: Hedge.
    Exponential,
}

/// What a play of mixed rounds is rounded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Played {
    /// The mean of all rounds.
    Average,
    /// The last round.
    Last,
}

/// Multiplicative weights. Token t holds a weight for every expert and plays expert e with
/// probability `x[t,e] = min(1, θ_t w[t,e])`, `Σ_e x = k`. The loss is the expected cost less the
/// affinity, `c_e(n_e + 1 − x[t,e]) − a[t,e]` with `n_e = Σ_t x[t,e]`, scaled to [0, 1] between
/// the cheapest first token and a load of twice the fair share, and clamped to it.
///
/// Guaranteed at k = 1 while no loss is clamped: a token's mean regret is at most
/// `η + ln E/(η · rounds)` of the loss scale, so the rounds together are a coarse correlated
/// equilibrium up to that (Arora, Hazan and Kale 2012, for the linear rule). The linear rule
/// converges to Nash equilibria of congestion games for constant η; the exponential one may cycle
/// or be chaotic even for two tokens and two experts (Palaiopanos, Panageas and Piliouras 2017).
/// The result is rounded to the k likeliest experts, of which none of this is
/// guaranteed. Where the cost bars loads, the tokens learn from a linear toll of one score range
/// a fair share; the certificate is in the game itself. Prices: the costs that the played loads
/// lead to. Not causal. Iterations: rounds. Passes: as many. Label: lightly tested.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hedge {
    /// How weights shrink.
    pub rule: WeightRule,
    /// η.
    pub rate: f64,
    /// Rounds, at least 1.
    pub rounds: u32,
    /// What is rounded.
    pub played: Played,
}

impl Hedge {
    /// The linear variant: η = 0.5, the average of 64 rounds.
    #[must_use]
    pub fn linear() -> Self {
        Self { rule: WeightRule::Linear, rate: 0.5, rounds: 64, played: Played::Average }
    }
}

impl Router for Hedge {
    fn route(&self, game: &Game<'_>, _: Option<&[f64]>) -> Play {
        let (tokens, experts, k) = (game.scores.tokens(), game.scores.experts(), game.top_k);
        let toll = Toll::new(game);
        let scale = LossScale::new(game, &toll);
        let mut weights = vec![1.0; tokens * experts];
        let mut mixed = vec![0.0; tokens * experts];
        let mut average = vec![0.0; tokens * experts];
        let mut loads = vec![0.0; experts];
        for round in 0..self.rounds.max(1) {
            if round > 0 {
                let costs: Vec<(f64, f64)> = (0..experts)
                    .map(|e| (toll.at(e, loads[e]), toll.at(e, loads[e] + 1.0)))
                    .collect();
                self.learn(game, &mut weights, &mixed, &costs, &scale);
            }
            let rows = mixed.par_chunks_mut(experts).zip(weights.par_chunks(experts));
            rows.for_each(|(mixed, weights)| play_weights(weights, k, mixed));
            loads = column_sums(&mixed, experts);
            let rounds = f64::from(round + 1);
            let pairs = average.par_chunks_mut(TOKEN_BLOCK).zip(mixed.par_chunks(TOKEN_BLOCK));
            pairs.for_each(|(mean, now)| {
                mean.iter_mut().zip(now).for_each(|(mean, now)| *mean += (now - *mean) / rounds);
            });
        }
        let played = if self.played == Played::Average { &average } else { &mixed };
        let loads = column_sums(played, experts);
        let prices = loads.iter().enumerate().map(|(e, load)| toll.at(e, *load)).collect();
        let choices = most_likely(game, played);
        let rounds = self.rounds.max(1);
        Play { choices, prices: level(game, prices), passes: rounds, iterations: rounds }
    }
}

impl Hedge {
    /// One step of every token's weights. `costs` are those at the load and one beyond.
    fn learn(
        &self,
        game: &Game<'_>,
        weights: &mut [f64],
        mixed: &[f64],
        costs: &[(f64, f64)],
        scale: &LossScale,
    ) {
        let experts = costs.len();
        let rows = weights.par_chunks_mut(experts).zip(mixed.par_chunks(experts));
        rows.zip(game.scores.values().par_chunks(experts)).for_each(
            |((weights, mixed), scores)| {
                let cells = mixed.iter().zip(scores).zip(costs);
                for (weight, ((own, score), (here, beyond))) in weights.iter_mut().zip(cells) {
                    let cost = here + (1.0 - own) * (beyond - here);
                    let loss = scale.loss(cost - f64::from(*score));
                    *weight *= match self.rule {
                        WeightRule::Linear => 1.0 - self.rate * loss,
                        WeightRule::Exponential => (-self.rate * loss).exp(),
                    };
                }
                let most = weights.iter().copied().fold(0.0, f64::max).max(f64::MIN_POSITIVE);
                weights.iter_mut().for_each(|weight| *weight = (*weight / most).max(LEAST_WEIGHT));
            },
        );
    }
}

/// No weight vanishes for good.
const LEAST_WEIGHT: f64 = 1e-200;

/// Losses scaled to [0, 1].
struct LossScale {
    least: f64,
    width: f64,
}

impl LossScale {
    fn new(game: &Game<'_>, toll: &Toll<'_>) -> Self {
        let (tokens, experts) = (game.scores.tokens() as f64, game.scores.experts());
        let far = (2.0 * tokens * game.top_k as f64 / experts as f64).min(tokens);
        let costs = || (0..experts).map(|e| (toll.at(e, 0.0), toll.at(e, far)));
        let scores = || game.scores.values().iter().map(|score| f64::from(*score));
        let least = costs().map(|(first, _)| first).fold(f64::INFINITY, f64::min)
            - scores().fold(f64::NEG_INFINITY, f64::max);
        let most = costs().map(|(_, last)| last).fold(f64::NEG_INFINITY, f64::max)
            - scores().fold(f64::INFINITY, f64::min);
        Self { least, width: (most - least).max(f64::MIN_POSITIVE) }
    }

    fn loss(&self, value: f64) -> f64 {
        ((value - self.least) / self.width).clamp(0.0, 1.0)
    }
}

/// `min(1, θ w)` with the θ at which they sum to k: the largest weights are capped one after
/// another. Needs positive weights.
fn play_weights(weights: &[f64], k: usize, play: &mut [f64]) {
    play.fill(0.0);
    let mut left = k as f64;
    for _ in 0..=k {
        let open: f64 = weights.iter().zip(&*play).filter(|(_, x)| **x < 1.0).map(|(w, _)| w).sum();
        let theta = left / open;
        let mut capped = false;
        for (weight, x) in weights.iter().zip(&mut *play).filter(|(_, x)| **x < 1.0) {
            if theta * weight >= 1.0 {
                (*x, left, capped) = (1.0, left - 1.0, true);
            }
        }
        if !capped {
            let open = weights.iter().zip(play).filter(|(_, x)| **x < 1.0);
            open.for_each(|(weight, x)| *x = theta * weight);
            return;
        }
    }
}

/// Loads of a mixed play, blocks added in token order.
fn column_sums(mixed: &[f64], experts: usize) -> Vec<f64> {
    let sum = |mut sums: Vec<f64>, row: &[f64]| {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        sums
    };
    let block = |rows: &[f64]| rows.chunks_exact(experts).fold(vec![0.0; experts], sum);
    let blocks: Vec<Vec<f64>> = mixed.par_chunks(TOKEN_BLOCK * experts).map(block).collect();
    blocks.iter().map(Vec::as_slice).fold(vec![0.0; experts], sum)
}

/// Each token's k likeliest experts.
fn most_likely(game: &Game<'_>, mixed: &[f64]) -> Choices {
    #[expect(clippy::cast_possible_truncation, reason = "probabilities are rounded to rank them")]
    let values: Vec<f32> = mixed.iter().map(|x| *x as f32).collect();
    let scores = Scores::new(&values, game.scores.experts()).expect("probabilities are finite");
    TopK.route(&Game { scores, ..*game }, None).choices
}

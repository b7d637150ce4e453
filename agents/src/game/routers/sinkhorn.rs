//! Sinkhorn: a soft plan with balanced marginals, and the top k of it.

use rayon::prelude::*;

use super::super::{Game, Play, Router, TOKEN_BLOCK};
use super::answer::{answer, level, start};

/// The plan `P[t,e] = exp((a[t,e] − p_e)/τ) / Σ_f exp((a[t,f] − p_f)/τ)`, with prices such that
/// every column sums to T/E (Cuturi 2013; S-BASE, Clark et al. 2022); tokens take its top k,
/// which is the top k of `a − p`. In logarithms, so no score overflows.
///
/// Guaranteed: the plan is the unique equilibrium of logit responders at temperature τ, and rows
/// and columns of it converge to their marginals (Sinkhorn 1967). Its top k is another matter:
/// balance is not guaranteed. Not causal. Iterations: price updates. Passes: up to two more.
/// Label: tested.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sinkhorn {
    /// τ in units of the scores, > 0.
    pub temperature: f64,
    /// Stops when no column sum differs from T/E by more than this part of it.
    pub tolerance: f64,
    /// Iterations at most.
    pub most_iterations: u32,
}

impl Default for Sinkhorn {
    /// Unit temperature as in Megatron, 1e-4, 100 iterations.
    fn default() -> Self {
        Self { temperature: 1.0, tolerance: 1e-4, most_iterations: 100 }
    }
}

impl Router for Sinkhorn {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        let mut prices = start(game, warm);
        let share = game.scores.tokens() as f64 / prices.len() as f64;
        let mut iterations = 0;
        while iterations < self.most_iterations {
            let columns = plan_columns(game, &prices, self.temperature);
            if columns.iter().all(|sum| (sum / share - 1.0).abs() <= self.tolerance) {
                break;
            }
            for (price, sum) in prices.iter_mut().zip(columns) {
                *price += self.temperature * (sum.max(f64::MIN_POSITIVE) / share).ln();
            }
            iterations += 1;
        }
        let choices = answer(game, &prices).choices;
        Play { choices, prices: level(game, prices), passes: iterations + 2, iterations }
    }
}

/// Column sums of the plan at given prices. Blocks are added in token order.
fn plan_columns(game: &Game<'_>, prices: &[f64], temperature: f64) -> Vec<f64> {
    let experts = prices.len();
    let blocks: Vec<Vec<f64>> = game
        .scores
        .values()
        .par_chunks(TOKEN_BLOCK * experts)
        .map(|rows| {
            let mut columns = vec![0.0; experts];
            let mut plan = vec![0.0; experts];
            for row in rows.chunks_exact(experts) {
                let priced = row.iter().zip(prices).map(|(a, p)| (f64::from(*a) - p) / temperature);
                plan.iter_mut().zip(priced).for_each(|(plan, priced)| *plan = priced);
                let most = plan.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                plan.iter_mut().for_each(|plan| *plan = (*plan - most).exp());
                let sum: f64 = plan.iter().sum();
                columns.iter_mut().zip(&plan).for_each(|(column, plan)| *column += plan / sum);
            }
            columns
        })
        .collect();
    blocks.into_iter().fold(vec![0.0; experts], |mut sums, block| {
        sums.iter_mut().zip(block).for_each(|(sum, part)| *sum += part);
        sums
    })
}

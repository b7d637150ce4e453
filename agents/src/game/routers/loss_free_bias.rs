//! Loss-free balancing: a bias for each expert, corrected by its load after every batch.

use super::super::{Game, Play, Router};
use super::answer::{answer, level, start, usable};

/// How a bias is corrected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BiasUpdate {
    /// `p_e += γ · sign(n_e − q)`: DeepSeek-V3.
    Sign,
    /// `p_e += γ · (n_e/q − 1)`.
    Proportional,
}

/// Top-k of `a − p`, where the price (DeepSeek's bias with the opposite sign) is corrected once a
/// batch by the load it led to (Wang et al. 2024, arXiv 2408.15664).
///
/// The prices are the router's state. Warm, it routes under the prices it is given and returns
/// them corrected once, as in training: causal across batches. Cold, it makes `cold_steps`
/// corrections on the batch at hand first, which is not causal.
///
/// Guaranteed: it is the sign, or the value, of a subgradient of the dual. Fixed sign steps end in
/// a cycle whose width grows with γ; decaying ones (γ/√step) bring the best dual bound within
/// `O(1/√steps)` of the optimum (Polyak 1987, section 5.3). Iterations: corrections. Passes: one
/// more if cold. Label: tested.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossFreeBias {
    /// Sign or proportional.
    pub update: BiasUpdate,
    /// γ in units of the scores.
    pub rate: f64,
    /// Whether a cold run divides γ by the square root of the step.
    pub decays: bool,
    /// Corrections of a cold run.
    pub cold_steps: u32,
}

impl LossFreeBias {
    /// DeepSeek-V3: the sign rule at a fixed 1e-3.
    #[must_use]
    pub fn sign() -> Self {
        Self { update: BiasUpdate::Sign, rate: 1e-3, decays: false, cold_steps: 100 }
    }

    /// The proportional rule at 0.02, for scores of unit range.
    #[must_use]
    pub fn proportional() -> Self {
        Self { update: BiasUpdate::Proportional, rate: 0.02, decays: false, cold_steps: 100 }
    }

    fn correct(&self, prices: &mut [f64], loads: &[u32], fair_share: f64, rate: f64) {
        for (price, load) in prices.iter_mut().zip(loads) {
            let excess = f64::from(*load) / fair_share - 1.0;
            *price += rate
                * match self.update {
                    BiasUpdate::Sign if excess == 0.0 => 0.0,
                    BiasUpdate::Sign => excess.signum(),
                    BiasUpdate::Proportional => excess,
                };
        }
    }
}

impl Router for LossFreeBias {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        let experts = game.scores.experts();
        let fair_share = (game.scores.tokens() * game.top_k) as f64 / experts as f64;
        let mut prices = start(game, warm);
        if usable(game, warm).is_some() {
            let choices = answer(game, &prices).choices;
            self.correct(&mut prices, &choices.loads(experts), fair_share, self.rate);
            return Play { choices, prices: level(game, prices), passes: 1, iterations: 1 };
        }
        for step in 1..=self.cold_steps {
            let loads = answer(game, &prices).choices.loads(experts);
            let decay = if self.decays { f64::from(step).sqrt() } else { 1.0 };
            self.correct(&mut prices, &loads, fair_share, self.rate / decay);
        }
        let choices = answer(game, &prices).choices;
        let (passes, iterations) = (self.cold_steps.saturating_add(1), self.cold_steps);
        Play { choices, prices: level(game, prices), passes, iterations }
    }
}

//! Quantile balancing: every expert's price is the quantile that fills it.

use super::super::{Game, Play, Router};
use super::answer::{answer, capacities, level, start};
use super::column::{by_column, largest};

/// How the quantile is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantile {
    /// By selection.
    Exact,
    /// From a histogram over the range of the prices, widened by one on both sides, as Kimi K3's,
    /// with linear interpolation in the bin. For scores of unit range.
    Histogram {
        /// Bins, at least 1; Kimi K3 uses 1000.
        bins: usize,
    },
}

/// Alternately `r_t = (k+1)-th largest_e (a[t,e] − p_e)` and
/// `p_e = (C_e+1)-th largest_t (a[t,e] − r_t)`, the prices centred at 0; then top-k of `a − p`
/// (Su 2026, kexue.fm 11619 and 11626; Kimi K3; Megatron-LM).
///
/// Guaranteed: with exact quantiles no sweep raises the dual bound, for each half of a sweep
/// minimises it over its block (Bertsekas 1999, section 2.7). It stalls above the optimum and some
/// tokens over capacity, because the dual is not smooth. In training it makes one sweep a batch for
/// the next one, which is [`Information::Stale`](super::super::Information): causal. Within a batch
/// it is not. Iterations: sweeps. Passes: two a sweep and one. Label: tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantileBalancing {
    /// Sweeps.
    pub sweeps: u32,
    /// How the quantile is found.
    pub quantile: Quantile,
}

impl Router for QuantileBalancing {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        let (experts, tokens) = (game.scores.experts(), game.scores.tokens());
        let capacities = capacities(game);
        let mut prices = start(game, warm);
        // At k = E nothing is left over to compare with, and nothing to choose.
        let sweeps = if game.top_k == experts { 0 } else { self.sweeps };
        for _ in 0..sweeps {
            let runner_up = answer(game, &prices).runner_up;
            let low = prices.iter().copied().fold(f64::INFINITY, f64::min) - 1.0;
            let high = prices.iter().copied().fold(f64::NEG_INFINITY, f64::max) + 1.0;
            prices = by_column(game, &runner_up, |expert, margins| {
                let place = (capacities[expert] as usize + 1).min(tokens);
                match self.quantile {
                    Quantile::Exact => largest(margins, place),
                    Quantile::Histogram { bins } => histogram(margins, place, low, high, bins),
                }
            });
            let mean = prices.iter().sum::<f64>() / experts as f64;
            prices.iter_mut().for_each(|price| *price -= mean);
        }
        let choices = answer(game, &prices).choices;
        Play { choices, prices: level(game, prices), passes: 2 * sweeps + 1, iterations: sweeps }
    }
}

/// The `place`-th largest value as far as counts in equal bins tell. Values beyond the range
/// count in the bins at its ends.
fn histogram(values: &[f64], place: usize, low: f64, high: f64, bins: usize) -> f64 {
    let width = (high - low) / bins as f64;
    let mut counts = vec![0_usize; bins];
    for value in values {
        let bin = ((value - low) / width).clamp(0.0, (bins - 1) as f64);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to the bins"
        )]
        let bin = bin as usize;
        counts[bin] += 1;
    }
    let mut above = 0;
    for (bin, count) in counts.iter().enumerate().rev() {
        if above + count >= place {
            let part = (place - above) as f64 / *count as f64;
            return low + width * ((bin + 1) as f64 - part);
        }
        above += count;
    }
    low
}

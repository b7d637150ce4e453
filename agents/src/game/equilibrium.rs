//! The exact maximum of the potential, with prices that prove it.

use super::kernel::Instructions;
use super::marginal::settle_and_repair;
use super::prices::Supply;
use super::reference::sweep_and_repair;
use super::{Choices, Game, Play, Router};
use crate::ids::ExpertId;

/// The assignment of largest potential Φ: a pure Nash equilibrium, with prices whose dual bound
/// equals Φ but for rounding.
///
/// Guaranteed for any nondecreasing cost and any T, E and k: Φ is the maximum, because Φ is a
/// min-cost flow (Rosenthal 1973 for the potential) and successive shortest paths keep every
/// intermediate flow optimal (Ahuja, Magnanti and Orlin 1993, section 9.7). Sums and differences
/// are in f64: parts of the scores smaller than about 1e-16 of the largest price cannot be told
/// apart. Where the cost bars every assignment, the choices are valid and Φ is −inf.
///
/// The work is bounded by `most_repair_visits`. A game that would need more ends with valid
/// choices, without overload where that is possible, and a gap that the certificate shows. That
/// takes thousands of identical tokens: with them, prices alone balance nothing, and under a
/// strictly rising cost every unit of load is a path of its own.
///
/// Iterations are price sweeps plus paths of the repair. Passes are visits of a score divided by
/// TE, rounded up. Label: tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equilibrium {
    /// Sweeps of the price phase at most. Each is one pass over the scores and one over the
    /// tokens' margins. 0 leaves all work to the repair.
    pub most_sweeps: u32,
    /// Scores and arcs that the repair may visit.
    pub most_repair_visits: u64,
}

impl Default for Equilibrium {
    /// 16 sweeps, and 4·10⁹ visits: some seconds.
    fn default() -> Self {
        Self { most_sweeps: 16, most_repair_visits: 4_000_000_000 }
    }
}

impl Router for Equilibrium {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        let (experts, k) = (game.scores.experts(), game.top_k);
        let supply = Supply::new(game);
        if k == experts {
            return everyone_everywhere(game, supply);
        }
        let usable = |p: &&[f64]| p.len() == experts && p.iter().all(|price| price.is_finite());
        let start = warm.filter(usable).map_or_else(|| vec![0.0; experts], <[f64]>::to_vec);
        let warm = warm.is_some_and(|prices| usable(&prices));
        let play = || self.play(game, supply, start, warm, Instructions::best());
        if game.scores.values().len() < LEAST_POOL_SCORES {
            return play();
        }
        // One move to the pool's threads instead of one for every pass.
        rayon::scope(|_| play())
    }
}

/// Scores from which on passes run in parallel.
const LEAST_POOL_SCORES: usize = 1 << 15;

impl Equilibrium {
    fn play(
        &self,
        game: &Game<'_>,
        supply: Supply<'_>,
        start: Vec<f64>,
        warm: bool,
        kind: Instructions,
    ) -> Play {
        let sweeps = self.most_sweeps;
        let fast = (sweeps > 0).then(|| {
            settle_and_repair(game, supply, &start, warm, sweeps, kind)
        });
        fast.flatten().unwrap_or_else(|| {
            sweep_and_repair(game, supply, start, sweeps, self.most_repair_visits)
        })
    }
}

/// The only assignment when k = E. Any price that covers the last token's cost proves it.
fn everyone_everywhere(game: &Game<'_>, supply: Supply<'_>) -> Play {
    let (tokens, experts) = (game.scores.tokens(), game.scores.experts());
    let load = u32::try_from(tokens).expect("tokens fit 32 bits");
    let price = |expert| Some(supply.marginal(expert, load)).filter(|p| p.is_finite());
    let row = (0..experts).map(ExpertId::from_index);
    Play {
        choices: Choices::uniform(std::iter::repeat_n(row, tokens).flatten().collect(), experts),
        prices: (0..experts).map(|expert| price(expert).unwrap_or(0.0)).collect(),
        passes: 0,
        iterations: 0,
    }
}

//! The plain way to the optimum: price sweeps over all scores, then the repair on all tokens.
//!
//! Slower than the way in `equilibrium` but without its assumptions, so it is what that one is
//! tested against, and where games end that defeat it: many equal tokens, scores or prices near
//! the ends of f32, experts that dominate.

use super::prices::{Supply, balance};
use super::repair::Repair;
use super::{Choices, Game, Play};

/// Plays from `start` with at most so many sweeps and visits of the repair. Needs k < E.
pub(super) fn sweep_and_repair(
    game: &Game<'_>,
    supply: Supply<'_>,
    start: Vec<f64>,
    most_sweeps: u32,
    most_visits: u64,
) -> Play {
    let balanced = balance(game, supply, start, most_sweeps);
    let sweeps = balanced.sweeps;
    let mut repair = Repair::new(game, supply, balanced.prices, &balanced.demand);
    let paths = repair.run(most_visits);
    let scores = game.scores.values().len() as u64;
    let visits = 2 * u64::from(sweeps) * scores + scores + repair.score_visits();
    let (chosen, prices) = repair.finish();
    Play {
        choices: Choices::uniform(chosen, game.top_k),
        prices,
        passes: u32::try_from(visits.div_ceil(scores)).unwrap_or(u32::MAX),
        iterations: sweeps.saturating_add(paths),
    }
}

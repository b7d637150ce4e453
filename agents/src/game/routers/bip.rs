//! BIP: block-coordinate descent on the dual of the balanced assignment with inequalities.

use super::super::{Game, Play, Router};
use super::answer::{answer, capacities, start};
use super::column::{by_column, largest};

/// Of `max Σ a·x` with at most k experts a token and at most C_e tokens an expert, alternately
///
/// `r_t = max(0, (k+1)-th largest_e (a[t,e] − p_e))`, `p_e = max(0, (C_e+1)-th largest_t (a[t,e] − r_t))`
///
/// and at last top-k of `a − p` (Sun et al. 2025, arXiv 2502.15451).
///
/// Guaranteed: no sweep raises the dual of that program, for each half of a sweep minimises it over
/// its block (Bertsekas 1999, section 2.7). It may stall above the optimum, because the dual is not
/// smooth, and balance is not guaranteed. For scores that are at least 0: with negative ones the
/// program prefers empty slots. Not causal. Iterations: sweeps. Passes: two a sweep and one. Label:
/// lightly tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bip {
    /// Sweeps.
    pub sweeps: u32,
}

impl Router for Bip {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        let (tokens, capacities) = (game.scores.tokens(), capacities(game));
        let mut prices = start(game, warm);
        for _ in 0..self.sweeps {
            let mut rent = answer(game, &prices).runner_up;
            rent.iter_mut().for_each(|rent| *rent = rent.max(0.0));
            prices = by_column(game, &rent, |expert, margins| match capacities[expert] as usize {
                capacity if capacity >= tokens => 0.0,
                capacity => largest(margins, capacity + 1).max(0.0),
            });
        }
        let choices = answer(game, &prices).choices;
        Play { choices, prices, passes: 2 * self.sweeps + 1, iterations: self.sweeps }
    }
}

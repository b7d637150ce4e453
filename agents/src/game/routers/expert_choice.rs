//! Expert choice: experts pick tokens.

use super::super::{Choices, Game, Play, Router};
use super::capacity::capacity;
use super::column::by_column;
use crate::ids::ExpertId;

/// Expert e takes its `C = ⌈capacity_factor · Tk/E⌉` tokens of largest score, of equal ones the
/// earliest (Zhou et al. 2022). Tokens get 0 to E experts.
///
/// Guaranteed: every load is C. With non-negative scores it is the exact optimum of the game in
/// which tokens may have any number of experts and experts at most C tokens, and its prices, the
/// best score refused, prove it: each expert's problem is apart from the others'. Not causal.
/// Passes: 1. Iterations: 0. Label: tested.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertChoice {
    /// Capacity in fair shares, finite and > 0.
    pub capacity_factor: f64,
}

impl Router for ExpertChoice {
    fn route(&self, game: &Game<'_>, _: Option<&[f64]>) -> Play {
        let tokens = game.scores.tokens();
        let capacity = capacity(game, self.capacity_factor);
        let columns = by_column(game, &vec![0.0; tokens], |_, scores| {
            let mut order: Vec<usize> = (0..tokens).collect();
            let best_first =
                |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
            let mut price = 0.0;
            if capacity < tokens {
                let (_, refused, _) = order.select_nth_unstable_by(capacity, best_first);
                price = scores[*refused].max(0.0);
                order.truncate(capacity);
            }
            (order, price)
        });
        let mut rows = vec![Vec::new(); tokens];
        for (expert, (taken, _)) in columns.iter().enumerate() {
            taken.iter().for_each(|token| rows[*token].push(ExpertId::from_index(expert)));
        }
        let prices = columns.into_iter().map(|(_, price)| price).collect();
        Play { choices: Choices::ragged(&rows), prices, passes: 1, iterations: 0 }
    }
}

//! Passes over the columns of the scores: what each expert sees of all tokens.

use rayon::prelude::*;

use super::super::Game;

/// Experts taken together: their scores share a cache line.
const EXPERT_GROUP: usize = 16;

/// For each expert, `of` its margins `a[t,e] − level[t]` in token order. One pass.
pub(super) fn by_column<R: Send>(
    game: &Game<'_>,
    level: &[f64],
    of: impl Fn(usize, &mut [f64]) -> R + Sync,
) -> Vec<R> {
    let (tokens, experts) = (game.scores.tokens(), game.scores.experts());
    let groups: Vec<Vec<R>> = (0..experts.div_ceil(EXPERT_GROUP))
        .into_par_iter()
        .map(|group| {
            let first = group * EXPERT_GROUP;
            let last = (first + EXPERT_GROUP).min(experts);
            let mut margins = vec![0.0; tokens * (last - first)];
            let rows = game.scores.values().chunks_exact(experts);
            for (token, (row, level)) in rows.zip(level).enumerate() {
                for (column, score) in row[first..last].iter().enumerate() {
                    margins[column * tokens + token] = f64::from(*score) - level;
                }
            }
            let columns = (first..last).zip(margins.chunks_exact_mut(tokens));
            columns.map(|(expert, margins)| of(expert, margins)).collect()
        })
        .collect();
    groups.into_iter().flatten().collect()
}

/// The `place`-th largest value, counted from 1; the smallest where there are fewer.
pub(super) fn largest(values: &mut [f64], place: usize) -> f64 {
    let at = place.clamp(1, values.len()) - 1;
    *values.select_nth_unstable_by(at, |a, b| b.total_cmp(a)).1
}

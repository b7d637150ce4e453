//! The control: every token takes its k best experts, whatever the crowd.

use rayon::prelude::*;

use super::kernel::{Instructions, Prices, visit_rows};
use super::{Choices, Game, Play, Router, TOKEN_BLOCK};
use crate::ids::ExpertId;

/// Plain top-k by score; of equal scores the lowest expert first. All prices are zero.
///
/// Guaranteed: the largest score any assignment has, by definition. Nothing is guaranteed about
/// balance. Causal: no token minds another. Label: tested.
#[derive(Clone, Copy, Debug, Default)]
pub struct TopK;

impl Router for TopK {
    fn route(&self, game: &Game<'_>, _: Option<&[f64]>) -> Play {
        Play {
            choices: Choices::uniform(best_experts(game, Instructions::best()), game.top_k),
            prices: vec![0.0; game.scores.experts()],
            passes: 1,
            iterations: 0,
        }
    }
}

fn best_experts(game: &Game<'_>, kind: Instructions) -> Vec<ExpertId> {
    let (tokens, top_k) = (game.scores.tokens(), game.top_k);
    let mut experts = vec![ExpertId(0); tokens * top_k];
    if top_k == game.scores.experts() {
        let row = |chosen: &mut [ExpertId]| chosen.iter_mut().zip(0..).for_each(|(e, n)| e.0 = n);
        experts.chunks_exact_mut(top_k).for_each(row);
        return experts;
    }
    let prices = Prices::new(&vec![0.0; game.scores.experts()]);
    for_blocks(&mut experts, TOKEN_BLOCK * top_k, |block, chosen| {
        let mut best = vec![(0.0_f32, 0_u32); top_k];
        let first = block * TOKEN_BLOCK;
        let tokens = position(first)..position(first + chosen.len() / top_k);
        let mut rows = chosen.chunks_exact_mut(top_k);
        visit_rows(kind, game.scores, tokens, &prices, top_k, None, |seen| {
            let row = rows.next().expect("one row a token");
            if seen.tied {
                select_top(game.scores.row(seen.token as usize), &mut best);
                row.iter_mut().zip(&best).for_each(|(slot, (_, at))| slot.0 = *at);
                row.sort_unstable();
            } else {
                row.iter_mut().zip(seen.chosen).for_each(|(slot, expert)| slot.0 = *expert);
            }
        });
    });
    experts
}

/// Runs `work` on blocks, in parallel when there are several.
fn for_blocks<V: Send>(values: &mut [V], size: usize, work: impl Fn(usize, &mut [V]) + Sync) {
    if values.len() <= size {
        work(0, values);
    } else {
        values.par_chunks_mut(size).enumerate().for_each(|(block, values)| work(block, values));
    }
}

/// Fills `best` with the largest values and their positions, descending; of equal values the
/// lowest position first. Values are not NaN.
///
/// Keeps a sorted list of the best so far: most values fail one comparison with its last entry.
/// Long lists, where the shifting would dominate, are selected by partition.
///
/// # Panics
/// When `best` is empty or longer than `values`.
pub fn select_top<V: PartialOrd + Copy>(values: &[V], best: &mut [(V, u32)]) {
    let k = best.len();
    assert!(1 <= k && k <= values.len(), "selects 1 to all of the values");
    if k > LONGEST_INSERTION_LIST {
        return select_by_partition(values, best);
    }
    let (head, tail) = values.split_at(k);
    for (filled, value) in head.iter().enumerate() {
        best[filled] = (*value, position(filled));
        sift_up(best, filled);
    }
    let mut least = best[k - 1].0;
    for (block, chunk) in tail.chunks(LANES).enumerate() {
        if !chunk.iter().fold(false, |any, value| any | (*value > least)) {
            continue;
        }
        for (lane, value) in chunk.iter().enumerate() {
            if *value > least {
                best[k - 1] = (*value, position(k + block * LANES + lane));
                sift_up(best, k - 1);
                least = best[k - 1].0;
            }
        }
    }
}

const LONGEST_INSERTION_LIST: usize = 64;

/// Values tested together, so that the compiler uses vector comparisons.
const LANES: usize = 8;

fn position(at: usize) -> u32 {
    u32::try_from(at).expect("experts fit 32 bits")
}

/// Moves the entry at `from` before all smaller ones.
fn sift_up<V: PartialOrd + Copy>(best: &mut [(V, u32)], from: usize) {
    let entry = best[from];
    let mut to = from;
    while to > 0 && best[to - 1].0 < entry.0 {
        best[to] = best[to - 1];
        to -= 1;
    }
    best[to] = entry;
}

fn select_by_partition<V: PartialOrd + Copy>(values: &[V], best: &mut [(V, u32)]) {
    let mut all: Vec<(V, u32)> = values.iter().copied().zip(0..).collect();
    let descending = |a: &(V, u32), b: &(V, u32)| {
        b.0.partial_cmp(&a.0).expect("values are not NaN").then(a.1.cmp(&b.1))
    };
    all.select_nth_unstable_by(best.len() - 1, descending);
    all.truncate(best.len());
    all.sort_unstable_by(descending);
    best.copy_from_slice(&all);
}

#[cfg(test)]
mod tests {
    use super::{best_experts, select_top};
    use crate::game::kernel::Instructions;
    use crate::game::{CostSettings, Game, Scores};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn selection_equals_a_stable_sort_at_every_length(
            values in prop::collection::vec(-6_i16..6, 1..150),
        ) {
            let values: Vec<f32> = values.into_iter().map(f32::from).collect();
            let mut sorted: Vec<(f32, u32)> = values.iter().copied().zip(0..).collect();
            sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
            for k in 1..=values.len() {
                let mut best = vec![(0.0, 0); k];
                select_top(&values, &mut best);
                prop_assert_eq!(&best[..], &sorted[..k]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_kind_of_instructions_takes_the_lowest_of_equal_experts(
            cells in prop::collection::vec(-40_i16..40, 1200),
            experts in 1_usize..70,
            scale in prop::sample::select(vec![0.5_f32, 1e-44, 8e36]),
        ) {
            let values: Vec<f32> = cells.iter().map(|cell| f32::from(*cell) * scale).collect();
            let values = &values[..values.len() / experts * experts];
            let scores = Scores::new(values, experts).expect("finite");
            for top_k in [1, 2, 8, 14, 15, experts - 1, experts] {
                if top_k == 0 || top_k > experts {
                    continue;
                }
                let cost = CostSettings::Quota { capacity_factor: 1.0 };
                let cost = cost.build(scores.tokens(), experts, top_k);
                let game = Game { scores, top_k, cost: cost.as_ref() };
                let expected: Vec<u32> = (0..scores.tokens()).flat_map(|token| {
                    let mut row: Vec<(f32, u32)> = scores.row(token).iter().copied().zip(0..).collect();
                    row.sort_by(|a, b| b.0.partial_cmp(&a.0).expect("not NaN"));
                    let mut best: Vec<u32> = row[..top_k].iter().map(|(_, at)| *at).collect();
                    best.sort_unstable();
                    best
                }).collect();
                for kind in Instructions::available() {
                    let found: Vec<u32> = best_experts(&game, kind).iter().map(|e| e.0).collect();
                    prop_assert_eq!(&found, &expected);
                }
            }
        }
    }
}

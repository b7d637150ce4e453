//! What every router knows under each kind of information, and what it says of itself.

use agents::game::{CostSettings, Dynamics, Information, Play, RouterRegistry, TopK, certify};
use agents::ids::ExpertId;

use crate::game::{QUOTA, Table};
use crate::routers::{LINEAR, router, skewed};

/// T, E, k.
const SHAPE: (usize, usize, usize) = (200, 16, 3);

/// The first of these tokens keep their scores, the others get new ones.
const KEPT: usize = 120;

/// Those whose tokens mind no later token of their batch, as their docs say and the page
/// docs/routers.md measures. `top_k_capacity_position` knows its capacity beforehand here: both
/// batches have as many tokens.
const CAUSAL: [&str; 5] =
    ["cache_prior", "group_limited", "hash", "top_k", "top_k_capacity_position"];

fn batch(seed: u64, cost: &CostSettings) -> Table {
    let (tokens, experts, k) = SHAPE;
    Table::new(skewed(tokens, experts, seed, false), experts, k, cost)
}

/// The batch with other tokens from [`KEPT`] on, all of which like the first experts.
fn with_other_ends(seed: u64, cost: &CostSettings) -> Table {
    let (_, experts, k) = SHAPE;
    let mut values = batch(seed, cost).values;
    for row in values[KEPT * experts..].chunks_mut(experts) {
        row.iter_mut().enumerate().for_each(|(at, v)| *v = 0.9 - *v / 10.0 - at as f32 / 20.0);
    }
    Table::new(values, experts, k, cost)
}

fn rows(play: &Play, tokens: std::ops::Range<usize>) -> Vec<&[ExpertId]> {
    tokens.map(|token| play.choices.row(token)).collect()
}

#[test]
fn later_tokens_of_a_batch_matter_to_all_routers_but_those_that_are_causal() {
    for name in RouterRegistry::standard().names() {
        for cost in [QUOTA, LINEAR] {
            let play = |table: &Table| table.play(router(name).as_ref(), None).0;
            let (one, other) = (play(&batch(1, &cost)), play(&with_other_ends(1, &cost)));
            let same = rows(&one, 0..KEPT) == rows(&other, 0..KEPT);
            assert_eq!(same, CAUSAL.contains(&name), "{name} under {cost:?}");
        }
    }
}

#[test]
fn under_stale_prices_each_token_answers_what_the_router_learnt_so_many_batches_ago() {
    for name in RouterRegistry::standard().names() {
        for batches in [1, 2] {
            let information = Information::Stale { batches };
            let mut dynamics = Dynamics::new(router(name), information);
            // What a router of its own learns, warm from the prices in force.
            let mut learnt: Vec<Vec<f64>> = Vec::new();
            for seed in 0..5 {
                let table = batch(seed, &LINEAR);
                let due = usize::try_from(seed).expect("few").checked_sub(batches);
                let in_force = due.map_or_else(|| vec![0.0; SHAPE.1], |at| learnt[at].clone());
                learnt.push(router(name).route(&table.game(), Some(&in_force)).prices);
                let play = dynamics.play(&table.game());
                assert_eq!(play.prices, in_force, "{name}, {batches} old, batch {seed}");
                // Top k of a − p, found by plain top-k on the priced scores.
                let priced = table.values.iter().enumerate();
                #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
                let priced = priced
                    .map(|(at, score)| (f64::from(*score) - in_force[at % SHAPE.1]) as f32)
                    .collect();
                let priced = Table::new(priced, SHAPE.1, SHAPE.2, &LINEAR);
                let best = priced.play(&TopK, None).0;
                let all = 0..SHAPE.0;
                let differ = rows(&play, all.clone()).into_iter().zip(rows(&best, all));
                let differ = differ.filter(|(own, best)| own != best).count();
                // Rounding to f32 may tie two priced scores.
                assert!(differ <= 1, "{name}, batch {seed}: {differ} rows");
            }
            // A later token of the same batch changes nothing.
            let mut again = Dynamics::new(router(name), information);
            (0..4).for_each(|seed| drop(again.play(&batch(seed, &LINEAR).game())));
            let last = again.play(&with_other_ends(4, &LINEAR).game());
            let mut plain = Dynamics::new(router(name), information);
            let plays: Vec<Play> =
                (0..5).map(|seed| plain.play(&batch(seed, &LINEAR).game())).collect();
            assert!(rows(&last, 0..KEPT) == rows(&plays[4], 0..KEPT), "{name}");
        }
    }
}

#[test]
fn dispatchers_of_any_router_know_nothing_of_each_others_tokens() {
    // Shares of 40 tokens: those of the first three keep their scores.
    let information = Information::Partial { dispatchers: 5 };
    for name in RouterRegistry::standard().names() {
        let (mut one, mut other) =
            (Dynamics::new(router(name), information), Dynamics::new(router(name), information));
        // In the second batch each is warm from its own prices.
        for seed in 0..2 {
            let (table, changed) = (batch(seed, &LINEAR), with_other_ends(seed, &LINEAR));
            let (play, there) = (one.play(&table.game()), other.play(&changed.game()));
            let same = |tokens: std::ops::Range<usize>| {
                rows(&play, tokens.clone()) == rows(&there, tokens)
            };
            assert!(same(0..KEPT), "{name}, batch {seed}");
            // A hash of the row minds no score.
            assert_eq!(same(KEPT..SHAPE.0), name == "hash", "{name}, batch {seed}");
            let union = certify(&table.game(), &play.choices, &play.prices);
            assert!(union.dual_bound >= union.potential - 1e-9, "{name}: {union:?}");
        }
    }
}

#[test]
fn every_router_has_one_of_three_labels() {
    let registry = RouterRegistry::standard();
    for name in registry.names() {
        let summary = registry.summary(name).expect("listed");
        let labels = ["(tested)", "(lightly tested)", "(experimental)"];
        assert!(labels.iter().any(|label| summary.ends_with(label)), "{name}: {summary}");
    }
}

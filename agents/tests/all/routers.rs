//! What every router and every certificate has to keep, and what each rule guarantees.

use agents::game::routers::{
    Auction, BestResponse, BestResponseBatched, DropBy, ExpertChoice, GroupLimited, Hash,
    TopKCapacity,
};
use agents::game::{
    Choices, CongestionCost, CostSettings, Dynamics, Equilibrium, Game, Information, Play, Router,
    RouterRegistry, Scores, TokenSets, TopK, certify,
};
use agents::ids::ExpertId;
use agents::rng::stream;
use proptest::prelude::*;

use crate::game::{KINDS, QUOTA, Table, rows, subsets};

const LINEAR: CostSettings = CostSettings::Linear { price_per_fair_share: 0.4 };

/// T, E, k: one expert, k = E, one token, Tk not divisible by E, more than one block.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (6, 1, 1),
    (4, 3, 3),
    (1, 4, 2),
    (8, 4, 1),
    (7, 3, 2),
    (9, 4, 3),
    (33, 8, 3),
    (300, 7, 2),
];

/// Routers that may give a token fewer or more than k experts.
const RAGGED: [&str; 4] =
    ["top_k_capacity", "top_k_capacity_position", "expert_choice", "group_limited_equilibrium"];

fn router(name: &str) -> Box<dyn Router> {
    RouterRegistry::standard().get(name).expect("a standard router")
}

/// `sigmoid(N(0,1) + 0.5·N_e)`, the scores of the published figures; without the sigmoid, logits.
pub(crate) fn skewed(tokens: usize, experts: usize, seed: u64, logits: bool) -> Vec<f32> {
    let mut rng = stream(seed, "skewed scores");
    let mut normal = || {
        let (u, v): (f32, f32) = (rng.random(), rng.random());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    };
    let lean: Vec<f32> = (0..experts).map(|_| 0.5 * normal()).collect();
    let cell = |at: usize| {
        let logit = normal() + lean[at % experts];
        if logits { logit } else { 1.0 / (1.0 + (-logit).exp()) }
    };
    (0..tokens * experts).map(cell).collect()
}

/// Multiples of 1/1024 below 1, without ties in a row more often than by chance.
fn on_grid(tokens: usize, experts: usize, seed: u64) -> Vec<f32> {
    skewed(tokens, experts, seed, false)
        .into_iter()
        .map(|v| (v * 1024.0).floor() / 1024.0)
        .collect()
}

fn costs(experts: usize) -> Vec<CostSettings> {
    vec![
        QUOTA,
        CostSettings::Quota { capacity_factor: 1.3 },
        LINEAR,
        CostSettings::Polynomial { price_per_fair_share: 0.2, degree: 3.0 },
        CostSettings::Latency {
            service_ms: (0..experts).map(|e| 1.0 + e as f64 % 3.0).collect(),
            window_ms: 200.0,
            variation: 1.0,
            price_per_ms: 0.1,
        },
    ]
}

#[test]
fn every_router_plays_every_shape_and_is_certified() {
    let registry = RouterRegistry::standard();
    assert!(registry.names().count() >= 20);
    for (tokens, experts, k) in SHAPES {
        for (seed, kind) in (0..).zip(KINDS) {
            for cost in costs(experts) {
                let table = Table::new(rows(kind, tokens, experts, seed), experts, k, &cost);
                let (_, exact) = table.play(&Equilibrium::default(), None);
                for name in registry.names() {
                    let what = format!("{name}: {kind} {tokens}x{experts} k {k} {cost:?}");
                    check_play(&table, name, exact.potential, &what);
                }
            }
        }
    }
}

fn check_play(table: &Table, name: &str, best: f64, what: &str) {
    let (play, certificate) = table.play(router(name).as_ref(), None);
    let counts = (0..play.choices.tokens()).map(|token| play.choices.row(token).len());
    let counts: Vec<usize> = counts.collect();
    let k = table.top_k;
    assert!(play.prices.iter().all(|price| price.is_finite()), "{what}");
    assert!(RAGGED.contains(&name) || counts.iter().all(|count| *count == k), "{what}");
    let dropped: usize = counts.iter().map(|count| k.saturating_sub(*count)).sum();
    let extra: usize = counts.iter().map(|count| count.saturating_sub(k)).sum();
    assert_eq!((certificate.dropped, certificate.extra), (dropped, extra), "{what}");
    let slack = 8.0 * table.rounding() + 1e-11 * best.abs();
    assert!(certificate.dual_bound >= best - slack, "{what}: {certificate:?} below {best}");
    assert!(certificate.dual_bound.is_finite() && certificate.score.is_finite(), "{what}");
    assert!(certificate.epsilon_nash >= 0.0, "{what}: {certificate:?}");
    assert!(certificate.potential <= certificate.dual_bound + slack, "{what}: {certificate:?}");
    let (potential, gap) = (certificate.potential, certificate.relative_gap);
    assert!(!potential.is_nan() && !gap.is_nan() && !certificate.epsilon_nash.is_nan(), "{what}");
    let bounded = potential.is_finite() && certificate.dual_bound != 0.0;
    assert!(gap.is_finite() == bounded || gap == 0.0, "{what}: {certificate:?}");
}

#[test]
fn every_router_has_the_same_bits_at_one_thread_and_two() {
    let table = Table::new(skewed(900, 12, 8, false), 12, 3, &LINEAR);
    let registry = RouterRegistry::standard();
    for name in registry.names() {
        let on = |threads| {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let (play, _) = pool.install(|| table.play(router(name).as_ref(), None));
            let prices: Vec<u64> = play.prices.iter().map(|price| price.to_bits()).collect();
            (play.choices, prices, play.iterations, play.passes)
        };
        assert_eq!(on(1), on(2), "{name}");
    }
}

// Not `bip` and `quantile_balancing`: a price of theirs is the margin of one token, which ties.
#[test]
fn permuted_experts_have_permuted_loads_under_every_rule_without_draws() {
    let (tokens, experts) = (400, 7);
    let values = skewed(tokens, experts, 5, false);
    let order = [3, 0, 6, 2, 5, 1, 4];
    let permuted: Vec<f32> = (0..tokens * experts)
        .map(|at| values[at / experts * experts + order[at % experts]])
        .collect();
    for name in [
        "top_k",
        "top_k_capacity",
        "top_k_capacity_position",
        "sinkhorn",
        "auction",
        "expert_choice",
        "loss_free_bias",
        "loss_free_bias_proportional",
        "quantile_balancing_histogram",
        "best_response",
        "best_response_batched",
        "hedge_linear",
    ] {
        let loads = |values: &[f32]| {
            let table = Table::new(values.to_vec(), experts, 3, &LINEAR);
            table.play(router(name).as_ref(), None).0.choices.loads(experts)
        };
        let (plain, moved) = (loads(&values), loads(&permuted));
        assert_eq!(moved, order.map(|expert| plain[expert]), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn a_ragged_play_is_certified_in_the_smallest_game_that_holds_it(
        (tokens, experts, k) in (1_usize..5, 1_usize..5).prop_flat_map(|(t, e)| (Just(t), Just(e), 1..=e)),
        cells in prop::collection::vec(-3_i8..6, 20),
        picks in prop::collection::vec(0_u32..1000, 5),
        linear in prop::option::of(0.0_f64..3.0),
    ) {
        let values: Vec<f32> = cells[..tokens * experts].iter().map(|c| f32::from(*c) / 2.0).collect();
        let cost = linear.map_or(QUOTA, |price_per_fair_share| CostSettings::Linear { price_per_fair_share });
        let table = Table::new(values, experts, k, &cost);
        let any: Vec<Vec<usize>> = (0..=experts).flat_map(|size| subsets(experts, size)).collect();
        let chosen: Vec<&Vec<usize>> = (0..tokens).map(|t| &any[picks[t] as usize % any.len()]).collect();
        let rows: Vec<Vec<ExpertId>> =
            chosen.iter().map(|set| set.iter().map(|e| ExpertId::from_index(*e)).collect()).collect();
        let choices = Choices::ragged(&rows);
        let prices: Vec<f64> = (0..experts).map(|e| f64::from(cells[e]) / 3.0).collect();
        let certificate = certify(&table.game(), &choices, &prices);

        let sets: Vec<Vec<usize>> = match certificate.sets {
            TokenSets::ExactlyK => subsets(experts, k),
            TokenSets::AtMostK => any.iter().filter(|set| set.len() <= k).cloned().collect(),
            TokenSets::AnyNumber => any.clone(),
        };
        prop_assert_eq!(certificate.sets == TokenSets::ExactlyK, chosen.iter().all(|set| set.len() == k));
        prop_assert_eq!(certificate.extra > 0, chosen.iter().any(|set| set.len() > k));
        prop_assert!(chosen.iter().all(|set| sets.contains(set)));
        let loads = choices.loads(experts);
        let epsilon = brute_force_epsilon(&table, &chosen, &sets, &loads);
        let given = certificate.epsilon_nash;
        prop_assert!(given == epsilon || (given - epsilon).abs() < 1e-12, "{} {}", given, epsilon);
        prop_assert!(certificate.dual_bound >= table.best_potential_over(&sets) - 1e-12);
        prop_assert!(certificate.dual_bound >= table.best_potential_over(&subsets(experts, k)) - 1e-12);
        prop_assert!(!certificate.relative_gap.is_nan() && certificate.relative_gap >= -1e-12);
    }
}

fn brute_force_epsilon(
    table: &Table,
    chosen: &[&Vec<usize>],
    sets: &[Vec<usize>],
    loads: &[u32],
) -> f64 {
    let mut epsilon = 0.0_f64;
    for (token, own) in chosen.iter().enumerate() {
        let utility = |set: &[usize], loads: &[u32]| -> f64 {
            let row = &table.values[token * table.experts..];
            let worth = |e: &usize| {
                f64::from(row[*e]) - table.cost.marginal(ExpertId::from_index(*e), loads[*e])
            };
            set.iter().map(worth).sum()
        };
        let now = utility(own, loads);
        for set in sets {
            let mut moved = loads.to_vec();
            own.iter().for_each(|e| moved[*e] -= 1);
            set.iter().for_each(|e| moved[*e] += 1);
            let then = utility(set, &moved);
            if then > now {
                epsilon = epsilon.max(then - now);
            }
        }
    }
    epsilon
}

#[test]
fn best_response_ends_in_an_exact_equilibrium_close_to_the_optimum() {
    // A slope of λ/q = 1/64 keeps costs on the grid of the scores.
    let (tokens, experts, k) = (512, 16, 4);
    let slope = 1.0 / 64.0;
    let fair_share = (tokens * k / experts) as f64;
    let cost = CostSettings::Linear { price_per_fair_share: slope * fair_share };
    let table = Table::new(on_grid(tokens, experts, 1), experts, k, &cost);
    let (_, exact) = table.play(&Equilibrium::default(), None);
    let (_, start) = table.play(&TopK, None);
    for shuffle in [None, Some(1), Some(2)] {
        let mut before = start.potential;
        for most_sweeps in 1.. {
            let (play, certificate) = table.play(&BestResponse { most_sweeps, shuffle }, None);
            assert!(certificate.potential >= before, "sweep {most_sweeps} lowered the potential");
            before = certificate.potential;
            let (ended, _) = table.play(&BestResponse { most_sweeps: 1000, shuffle }, None);
            if ended.iterations == play.iterations && ended.passes == play.passes {
                assert_eq!(certificate.epsilon_nash.to_bits(), 0.0_f64.to_bits(), "{shuffle:?}");
                let most = (tokens * k) as f64 * slope;
                assert!(exact.potential - certificate.potential <= most);
                assert!(certificate.dual_bound - certificate.potential <= most + 1e-9);
                break;
            }
            assert!(most_sweeps < 1000, "the moves end");
        }
        assert!(before > start.potential);
    }
}

#[test]
fn batched_moves_never_lower_the_potential_and_end_in_an_equilibrium() {
    let (tokens, experts, k) = (512, 16, 4);
    let cost = CostSettings::Linear { price_per_fair_share: (tokens * k / experts) as f64 / 64.0 };
    for seed in 0..3 {
        let table = Table::new(on_grid(tokens, experts, seed), experts, k, &cost);
        let mut before = table.play(&TopK, None).1.potential;
        for most_rounds in 1..=40 {
            let (play, now) = table.play(&BestResponseBatched { most_rounds, seed }, None);
            let rose = now.potential > before || play.iterations < most_rounds;
            assert!(rose, "round {most_rounds}: {} after {before}", now.potential);
            before = now.potential;
        }
        let (play, end) = table.play(&BestResponseBatched { most_rounds: 5000, seed }, None);
        assert!(play.iterations < 5000);
        assert_eq!(end.epsilon_nash.to_bits(), 0.0_f64.to_bits());
    }
}

#[test]
fn the_auction_is_within_its_increments_of_the_optimum() {
    for (tokens, experts, k) in [(512, 8, 1), (1001, 13, 3), (600, 16, 4), (64, 40, 7), (60, 8, 5)]
    {
        for (seed, factor) in [(0, 1.0), (1, 1.0), (2, 1.2)] {
            let cost = CostSettings::Quota { capacity_factor: factor };
            let table = Table::new(skewed(tokens, experts, seed, false), experts, k, &cost);
            for epsilon in [1e-2, 1e-3] {
                let auction = Auction { epsilon, ..Auction::default() };
                let (play, certificate) = table.play(&auction, None);
                let turns = u64::from(auction.most_turns_per_token) * tokens as u64;
                assert!(u64::from(play.iterations) < turns, "ended by itself");
                let most = (tokens * k) as f64 * auction.increment(&table.game());
                let gap = certificate.dual_bound - certificate.potential;
                assert!(gap <= most + 1e-9, "{tokens}x{experts} k {k}: {gap} > {most}");
                let (_, exact) = table.play(&Equilibrium::default(), None);
                assert!(exact.potential - certificate.potential <= most + 1e-9);
            }
        }
    }
}

#[test]
fn an_auction_out_of_turns_still_fills_every_slot() {
    let auction = Auction { epsilon: 1e-9, most_turns_per_token: 1 };
    for kind in KINDS {
        let table = Table::new(rows(kind, 90, 10, 4), 10, 4, &QUOTA);
        let (play, _) = table.play(&auction, None);
        assert_eq!(play.choices.experts().len(), 360);
    }
}

#[test]
fn expert_choice_fills_every_expert_alike_and_is_the_optimum_of_its_own_game() {
    let table = Table::new(skewed(512, 16, 3, false), 16, 4, &QUOTA);
    let (play, certificate) = table.play(&ExpertChoice { capacity_factor: 1.0 }, None);
    assert_eq!(play.choices.loads(16), [128; 16]);
    assert_eq!(certificate.sets, TokenSets::AnyNumber);
    assert_eq!(certificate.dropped, certificate.extra);
    assert!(certificate.extra > 0 && certificate.relative_gap.abs() < 1e-12, "{certificate:?}");
    let (_, exact) = table.play(&Equilibrium::default(), None);
    assert!(certificate.potential > exact.potential, "it has fewer constraints");
}

#[test]
fn capacity_bounds_every_load_and_drops_are_counted() {
    for (factor, capacity) in [(0.5, 63), (1.0, 125), (1.25, 157)] {
        let cost = CostSettings::Quota { capacity_factor: 1.25 };
        let table = Table::new(skewed(500, 12, 3, false), 12, 3, &cost);
        let play = |drop| table.play(&TopKCapacity { capacity_factor: factor, drop }, None);
        let (by_score, best) = play(DropBy::Probability);
        let (by_position, first) = play(DropBy::Position);
        let asked = TopK.route(&table.game(), None).choices.loads(12);
        let kept: Vec<u32> = asked.iter().map(|load| (*load).min(capacity)).collect();
        assert_eq!(by_score.choices.loads(12), kept);
        assert_eq!(by_position.choices.loads(12), kept);
        let total: u32 = kept.iter().sum();
        assert_eq!(best.dropped, 1500 - total as usize);
        assert!(best.dropped > 0 && best.sets == TokenSets::AtMostK && best.score > first.score);
        assert!(best.relative_gap > 0.0 && best.relative_gap < 1.0, "{best:?}");
    }
}

#[test]
fn hash_is_balanced_on_average_and_another_seed_is_another_hash() {
    let table = Table::new(vec![0.5; 6400 * 16], 16, 4, &LINEAR);
    let loads = |seed| table.play(&Hash { seed }, None).0.choices.loads(16);
    let (one, two) = (loads(1), loads(2));
    assert_ne!(one, two);
    // A share of 1600 has a standard deviation of √(6400 · ¼ · ¾) = 35.
    assert!(one.iter().chain(&two).all(|load| load.abs_diff(1600) < 5 * 35), "{one:?} {two:?}");
}

#[test]
fn group_limited_tokens_stay_in_their_groups() {
    // Groups are popular: a quota without slack cannot be met inside them.
    let slack = CostSettings::Quota { capacity_factor: 2.0 };
    let cases = [
        ("top_k", QUOTA),
        ("equilibrium", slack.clone()),
        ("quantile_balancing", slack),
        ("logit", LINEAR),
    ];
    for (inner, cost) in cases {
        let table = Table::new(skewed(400, 32, 3, false), 32, 6, &cost);
        let limited = GroupLimited::new(router(inner), 8, 3);
        let (play, certificate) = table.play(&limited, None);
        for token in 0..400 {
            let mut groups: Vec<usize> =
                play.choices.row(token).iter().map(|e| limited.group(*e, 32).0).collect();
            groups.dedup();
            assert!(groups.len() <= 3, "{inner} token {token}: {groups:?}");
        }
        assert_eq!(certificate.dropped, 0, "{inner}");
        assert!(certificate.relative_gap > 0.0, "the restriction costs something");
    }
    // One group is closed to everybody and the quota needs it: what is forced there is dropped.
    let mut values = vec![0.5; 40 * 4];
    values.chunks_mut(4).for_each(|row| row[2..].fill(0.1));
    let forced = Table::new(values, 4, 1, &QUOTA);
    let limited = GroupLimited::new(Box::new(Equilibrium::default()), 2, 1);
    let (_, certificate) = forced.play(&limited, None);
    assert_eq!((certificate.dropped, certificate.sets), (20, TokenSets::AtMostK));
    // Two groups kept hold 4 experts: more open until k = 6 fit.
    let narrow = GroupLimited::new(Box::new(TopK), 16, 2);
    let table = Table::new(skewed(400, 32, 3, false), 32, 6, &QUOTA);
    assert_eq!(table.play(&narrow, None).1.dropped, 0);
}

#[test]
fn stale_prices_are_causal_and_the_batch_itself_is_not() {
    let (experts, k) = (8, 2);
    let play = |information, last_row: f32| {
        let mut dynamics = Dynamics::new(router("quantile_balancing"), information);
        let mut plays = Vec::new();
        for batch in 0..4 {
            let mut values = skewed(200, experts, batch, false);
            if batch == 3 {
                values[199 * experts..].fill(last_row);
                values[150 * experts..].chunks_mut(experts).for_each(|row| row[0] = last_row);
            }
            plays.push(dynamics.play(&Table::new(values, experts, k, &QUOTA).game()));
        }
        plays
    };
    let early = |plays: &[Play]| -> Vec<ExpertId> {
        (0..150).flat_map(|token| plays[3].choices.row(token).to_vec()).collect()
    };
    for batches in [1, 2, 3] {
        let stale = Information::Stale { batches };
        let (one, other) = (play(stale, 0.0), play(stale, 1.0));
        assert_eq!(early(&one), early(&other), "later tokens do not matter");
        for (batch, play) in one.iter().enumerate() {
            assert_eq!(play.prices.iter().any(|price| *price != 0.0), batch >= batches);
        }
    }
    let (one, other) = (play(Information::InBatch, 0.0), play(Information::InBatch, 1.0));
    assert_ne!(early(&one), early(&other));
}

#[test]
fn partial_information_costs_score_and_one_dispatcher_is_the_whole() {
    let table = Table::new(skewed(1024, 16, 4, false), 16, 4, &QUOTA);
    let play = |dispatchers| {
        let information = Information::Partial { dispatchers };
        let play = Dynamics::new(router("equilibrium"), information).play(&table.game());
        (certify(&table.game(), &play.choices, &play.prices), play)
    };
    let (_, whole) = table.play(&Equilibrium::default(), None);
    assert_eq!(play(1).0.potential.to_bits(), whole.potential.to_bits());
    let mut before = whole.potential;
    for dispatchers in [4, 16, 64] {
        let (certificate, play) = play(dispatchers);
        assert_eq!(play.choices.loads(16), [256; 16], "shares of the quota are whole here");
        assert!(certificate.potential < before, "{dispatchers} know less");
        before = certificate.potential;
    }
    // 1024 tokens among 5: shares round up, and the union may exceed by less than 5.
    let most = play(5).1.choices.loads(16).into_iter().max();
    assert!(most < Some(256 + 5), "{most:?}");
    let linear = Table::new(skewed(1024, 16, 4, false), 16, 4, &LINEAR);
    let information = Information::Partial { dispatchers: 4 };
    let mut dynamics = Dynamics::new(router("best_response"), information);
    for _ in 0..2 {
        let play = dynamics.play(&linear.game());
        let certificate = certify(&linear.game(), &play.choices, &play.prices);
        assert!(certificate.relative_gap < 0.01 && certificate.max_over_mean < 1.5);
    }
}

// Braess' paradox is not here: its strategies are paths, and sets of any k experts with additive
// scores cannot bar the sets of edges that are no path.

/// Pigou's two roads: one takes time 1, the other the share of travellers on it.
struct Pigou {
    travellers: u32,
}

impl CongestionCost for Pigou {
    fn marginal(&self, expert: ExpertId, load: u32) -> f64 {
        if expert.0 == 0 { 1.0 } else { f64::from(load) / f64::from(self.travellers) }
    }

    fn total(&self, expert: ExpertId, load: u32) -> f64 {
        (1..=load).map(|load| self.marginal(expert, load)).sum()
    }

    fn conjugate(&self, expert: ExpertId, price: f64) -> f64 {
        let gains = (1..=self.travellers).map(|load| price - self.marginal(expert, load));
        gains.take_while(|gain| *gain > 0.0).sum()
    }
}

#[test]
fn selfish_travellers_of_pigou_lose_a_third_to_the_optimum() {
    let travellers = 200;
    let cost = Pigou { travellers };
    let values = vec![0.0; 2 * travellers as usize];
    let scores = Scores::new(&values, 2).expect("zeros");
    let game = Game { scores, top_k: 1, cost: &cost };
    let time = |loads: &[u32]| -> f64 {
        let each = (0..).map(ExpertId).zip(loads);
        each.filter(|(_, n)| **n > 0).map(|(e, n)| f64::from(*n) * cost.marginal(e, *n)).sum()
    };
    let optimum = (0..=travellers).map(|n| time(&[travellers - n, n])).fold(f64::MAX, f64::min);
    assert!((optimum - 0.75 * f64::from(travellers)).abs() < 1e-9);
    for name in ["best_response", "best_response_batched", "equilibrium"] {
        let play = router(name).route(&game, None);
        let certificate = certify(&game, &play.choices, &play.prices);
        assert!(certificate.epsilon_nash < 1e-8, "{name}");
        let anarchy = time(&play.choices.loads(2)) / optimum;
        assert!((anarchy - 4.0 / 3.0).abs() < 2.0 / f64::from(travellers), "{name}: {anarchy}");
    }
}

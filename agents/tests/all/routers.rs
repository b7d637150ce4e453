//! What every router and every certificate has to keep.

use agents::game::{
    Choices, CostSettings, Equilibrium, Router, RouterRegistry, TokenSets, certify,
};
use agents::ids::ExpertId;
use agents::rng::stream;
use proptest::prelude::*;

use crate::game::{KINDS, QUOTA, Table, rows, subsets};

pub(crate) const LINEAR: CostSettings = CostSettings::Linear { price_per_fair_share: 0.4 };

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

pub(crate) fn router(name: &str) -> Box<dyn Router> {
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
        "cache_prior",
        "loss_free_bias",
        "loss_free_bias_proportional",
        "quantile_balancing_histogram",
        "best_response",
        "best_response_batched",
        "hedge_linear",
        "flock",
        "flock_excess",
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

pub(crate) fn brute_force_epsilon(
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

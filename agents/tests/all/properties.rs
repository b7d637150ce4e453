//! What theory says of every game, move and play, cost by cost, on random games.

use agents::game::routers::{BestResponse, BestResponseBatched};
use agents::game::{
    Choices, CostSettings, Equilibrium, Router, RouterRegistry, TokenSets, TopK, certify,
};
use agents::ids::ExpertId;
use agents::rng::stream;
use rand::RngExt as _;

use crate::game::{Table, rows, subsets};
use crate::optimum::{COSTS, cost, shape};
use crate::oracle::Exact;
use crate::routers::{brute_force_epsilon, router};

/// A random small game of a cost; every second one has many ties.
fn small(name: &str, seed: u64, tokens: usize, experts: usize) -> (Table, Exact, CostSettings) {
    let mut rng = stream(seed, name);
    let game @ [tokens, experts, top_k] = shape(&mut rng, tokens, experts);
    let cost = cost(name, &mut rng, game, 1.0);
    let kind = if seed.is_multiple_of(2) { "normal" } else { "grid" };
    let values = rows(kind, tokens, experts, seed);
    let exact = Exact::new(&values, experts, top_k, &cost);
    (Table::new(values, experts, top_k, &cost), exact, cost)
}

fn random_choices(table: &Table, rng: &mut impl rand::Rng) -> Vec<Vec<usize>> {
    let sets = subsets(table.experts, table.top_k);
    let tokens = table.values.len() / table.experts;
    (0..tokens).map(|_| sets[rng.random_range(0..sets.len())].clone()).collect()
}

fn choices(sets: &[Vec<usize>]) -> Choices {
    let ids = |set: &Vec<usize>| set.iter().map(|e| ExpertId::from_index(*e)).collect();
    Choices::ragged(&sets.iter().map(ids).collect::<Vec<Vec<ExpertId>>>())
}

/// `Σ_{e∈S} a − c_e(n_e)` of one token.
fn utility(table: &Table, sets: &[Vec<usize>], token: usize) -> f64 {
    let loads = choices(sets).loads(table.experts);
    let row = &table.values[token * table.experts..];
    let worth =
        |e: &usize| f64::from(row[*e]) - table.cost.marginal(ExpertId::from_index(*e), loads[*e]);
    sets[token].iter().map(worth).sum()
}

#[test]
fn a_moves_gain_is_the_rise_of_the_potential_and_improving_moves_end_in_equilibrium() {
    for name in COSTS {
        let mut moves = 0;
        for seed in 0..40 {
            let (table, ..) = small(name, seed, 8, 5);
            let mut rng = stream(seed, "improving moves");
            let mut sets = random_choices(&table, &mut rng);
            let all = subsets(table.experts, table.top_k);
            let zeros = vec![0.0; table.experts];
            let certified = |sets: &[Vec<usize>]| certify(&table.game(), &choices(sets), &zeros);
            let mut quiet = 0;
            for turn in 0.. {
                assert!(turn < 20_000, "improving moves end");
                let token = rng.random_range(0..sets.len());
                let (now, before) = (utility(&table, &sets, token), certified(&sets).potential);
                // Any better answer, not the best one: the first in a random order.
                let first = rng.random_range(0..all.len());
                let better = (0..all.len()).map(|at| &all[(first + at) % all.len()]).find(|set| {
                    let mut moved = sets.clone();
                    moved[token].clone_from(set);
                    utility(&table, &moved, token) > now + 1e-9
                });
                let Some(better) = better.cloned() else {
                    quiet += 1;
                    // ε is exact: it tells when to stop.
                    if quiet > 4 && certified(&sets).epsilon_nash <= 1e-9 {
                        break;
                    }
                    continue;
                };
                sets[token] = better;
                (moves, quiet) = (moves + 1, 0);
                let (then, after) = (utility(&table, &sets, token), certified(&sets).potential);
                assert!(after > before || before == f64::NEG_INFINITY, "{name} {seed}");
                if before > f64::NEG_INFINITY {
                    let off = (after - before) - (then - now);
                    assert!(off.abs() <= 1e-10 * (1.0 + before.abs()), "{name} {seed}: {off}");
                }
            }
        }
        assert!(moves > 60, "{name}: {moves}");
    }
}

#[test]
fn no_sweep_of_best_response_and_no_batched_round_lowers_the_potential() {
    for name in COSTS {
        let mut steps = 0;
        for seed in 0..40 {
            let (table, ..) = small(name, seed, 40, 8);
            let sweeps = |most_sweeps| -> Box<dyn Router> {
                Box::new(BestResponse { most_sweeps, shuffle: Some(seed) })
            };
            let rounds = |most_rounds| -> Box<dyn Router> {
                Box::new(BestResponseBatched { most_rounds, seed })
            };
            for after in [&sweeps as &dyn Fn(u32) -> Box<dyn Router>, &rounds] {
                let mut before = f64::NEG_INFINITY;
                for most in 0..12 {
                    let (_, now) = table.play(after(most).as_ref(), None);
                    // The grid of these routers has steps of 2⁻³⁰ of the largest number.
                    let slack = 1e-7 * (1.0 + now.potential.abs().min(1e9));
                    assert!(now.potential >= before - slack, "{name} {seed}, {most}: {now:?}");
                    steps += u32::from(now.potential > before);
                    before = now.potential;
                }
                let (_, end) = table.play(after(5000).as_ref(), None);
                assert!(end.epsilon_nash <= 1e-6, "{name} {seed}: {end:?}");
            }
        }
        assert!(steps > 80, "{name}: {steps}");
    }
}

#[test]
fn epsilon_of_every_routers_play_is_what_trying_every_deviation_finds() {
    let registry = RouterRegistry::standard();
    for name in COSTS {
        for seed in 0..12 {
            let (table, ..) = small(name, seed, 7, 5);
            let any: Vec<Vec<usize>> =
                (0..=table.experts).flat_map(|size| subsets(table.experts, size)).collect();
            for rule in registry.names() {
                let (play, certificate) = table.play(router(rule).as_ref(), None);
                let allowed = |set: &&Vec<usize>| match certificate.sets {
                    TokenSets::ExactlyK => set.len() == table.top_k,
                    TokenSets::AtMostK => set.len() <= table.top_k,
                    TokenSets::AnyNumber => true,
                };
                let sets: Vec<Vec<usize>> = any.iter().filter(allowed).cloned().collect();
                let own = |token| play.choices.row(token).iter().map(|e| e.index()).collect();
                let chosen: Vec<Vec<usize>> = (0..play.choices.tokens()).map(own).collect();
                let chosen: Vec<&Vec<usize>> = chosen.iter().collect();
                let loads = play.choices.loads(table.experts);
                let epsilon = brute_force_epsilon(&table, &chosen, &sets, &loads);
                let given = certificate.epsilon_nash;
                let same = given == epsilon || (given - epsilon).abs() <= 1e-9 * (1.0 + epsilon);
                assert!(same, "{name} {seed} {rule}: {given}, by trying {epsilon}");
            }
        }
    }
}

#[test]
fn the_dual_bound_of_any_prices_is_no_less_than_the_potential_of_any_play() {
    for name in COSTS {
        for seed in 0..80 {
            let (table, exact, _) = small(name, seed, 12, 6);
            let best = exact.real(exact.best_by_assignment());
            let mut rng = stream(seed, "any prices");
            for scale in [0.0, 0.3, 5.0, 1e6] {
                let prices: Vec<f64> =
                    (0..table.experts).map(|_| scale * (rng.random::<f64>() - 0.3)).collect();
                let sets = random_choices(&table, &mut rng);
                let certificate = certify(&table.game(), &choices(&sets), &prices);
                let slack = 1e-11 * (1.0 + best.abs() + scale * table.values.len() as f64);
                let what = format!("{name} {seed} {prices:?} {certificate:?}, {best} is possible");
                assert!(certificate.dual_bound >= best - slack, "{what}");
                assert!(certificate.potential <= best + slack, "{what}");
                assert!(certificate.dual_bound - certificate.potential >= -slack, "{what}");
                // A part of a bound that is 0 but for rounding says nothing.
                let told = certificate.dual_bound.abs() > 1e-6;
                assert!(!told || certificate.relative_gap >= -1e6 * slack, "{what}");
            }
        }
    }
}

/// Scores and cost with token `i` in row `tokens[i]` and expert `e` in column `experts[e]`.
fn reordered(table: &Table, cost: &CostSettings, tokens: &[usize], experts: &[usize]) -> Table {
    let mut values = vec![0.0; table.values.len()];
    for (at, value) in table.values.iter().enumerate() {
        let (token, expert) = (at / table.experts, at % table.experts);
        values[tokens[token] * table.experts + experts[expert]] = *value;
    }
    let mut cost = cost.clone();
    if let CostSettings::Latency { service_ms, .. } = &mut cost
        && service_ms.len() > 1
    {
        let old = service_ms.clone();
        old.iter().enumerate().for_each(|(expert, ms)| service_ms[experts[expert]] = *ms);
    }
    Table::new(values, table.experts, table.top_k, &cost)
}

/// Where the optimum is unique, as it is almost surely with scores from a continuum, the play
/// moves with its tokens and experts. Under ties Φ, the bound and ε do; which of several optima
/// is found, and so its loads, may depend on the order.
#[test]
fn tokens_and_experts_in_another_order_have_the_same_play_in_that_order() {
    for name in COSTS {
        for (seed, game) in (0..).zip([[9, 4, 2], [40, 7, 3], [200, 16, 1], [600, 12, 4]]) {
            for kind in ["normal", "grid", "duplicated", "equal"] {
                let [count, experts, top_k] = game;
                let mut rng = stream(seed, "another order");
                let cost = cost(name, &mut rng, game, 1.0);
                let table = Table::new(rows(kind, count, experts, seed), experts, top_k, &cost);
                let mut order = |count: usize| -> Vec<usize> {
                    let mut left: Vec<usize> = (0..count).collect();
                    (0..count).map(|_| left.swap_remove(rng.random_range(0..left.len()))).collect()
                };
                let (tokens, columns) = (order(count), order(experts));
                let moved = reordered(&table, &cost, &tokens, &columns);
                let what = format!("{kind} {game:?} {cost:?}");
                let (play, before) = table.play(&Equilibrium::default(), None);
                let (other, after) = moved.play(&Equilibrium::default(), None);
                let slack = 1e-11 * (1.0 + before.potential.abs());
                for (a, b) in
                    [(before.potential, after.potential), (before.dual_bound, after.dual_bound)]
                {
                    assert!((a - b).abs() <= slack, "{what}: {before:?} {after:?}");
                }
                assert!(before.epsilon_nash <= slack && after.epsilon_nash <= slack, "{what}");
                if kind != "normal" {
                    continue;
                }
                for (token, moved_to) in tokens.iter().enumerate() {
                    let mut row: Vec<usize> =
                        play.choices.row(token).iter().map(|e| columns[e.index()]).collect();
                    row.sort_unstable();
                    let there: Vec<usize> =
                        other.choices.row(*moved_to).iter().map(|e| e.index()).collect();
                    assert_eq!(row, there, "{what}, token {token}");
                }
            }
        }
    }
}

/// Scores are multiples of 2⁻¹⁶ and shifts whole numbers, so that nothing rounds.
#[test]
fn a_constant_added_to_a_row_adds_k_times_it_to_the_potential_and_changes_no_choice() {
    for name in COSTS {
        for (seed, game) in (0..).zip([[7, 3, 2], [60, 6, 2], [300, 12, 4]]) {
            let [tokens, experts, top_k] = game;
            let mut rng = stream(seed, "constants");
            let cost = cost(name, &mut rng, game, 1.0);
            let values: Vec<f32> = (0..tokens * experts)
                .map(|_| f32::from(rng.random_range(-30_000_i16..30_000)) / 65_536.0)
                .collect();
            let constants: Vec<f32> =
                (0..tokens).map(|_| f32::from(rng.random_range(-3_i8..4))).collect();
            let shifted: Vec<f32> =
                values.iter().enumerate().map(|(at, v)| v + constants[at / experts]).collect();
            let raised: f64 = constants.iter().map(|c| top_k as f64 * f64::from(*c)).sum();
            let rules: [&dyn Router; 3] =
                [&TopK, &Equilibrium::default(), &BestResponse::default()];
            for rule in rules {
                let play = |values: &[f32]| {
                    Table::new(values.to_vec(), experts, top_k, &cost).play(rule, None)
                };
                let ((play, before), (other, after)) = (play(&values), play(&shifted));
                assert_eq!(play.choices, other.choices, "{game:?} {cost:?}");
                let slack = 1e-10 * (1.0 + before.potential.abs());
                let off = after.potential - before.potential - raised;
                assert!(before.potential == after.potential || off.abs() <= slack, "{off}");
                let (was, is) = (before.epsilon_nash, after.epsilon_nash);
                assert!(was == is || (was - is).abs() <= slack, "{was} {is}");
            }
        }
    }
}

/// δ is the steepest step of a cost at the equilibrium's loads, `max_e c_e(n_e+1) − c_e(n_e)`.
#[test]
fn best_response_ends_within_tk_delta_of_the_largest_potential() {
    for name in &COSTS[1..] {
        let (mut bounded, mut behind) = (0, 0);
        for seed in 0..150 {
            let (table, exact, cost) = small(name, seed, 16, 6);
            let best = exact.best_by_assignment();
            let rule = BestResponse { most_sweeps: 1000, shuffle: Some(seed) };
            let (play, certificate) = table.play(&rule, None);
            let (potential, _) = exact.potential(&play.choices).expect("an equilibrium is open");
            let step = |(expert, load): (usize, u32)| {
                let at = |load| match load {
                    0 => 0.0,
                    load => table.cost.marginal(ExpertId::from_index(expert), load),
                };
                at(load + 1) - at(load)
            };
            let loads = play.choices.loads(table.experts);
            let delta = loads.into_iter().enumerate().map(step).fold(0.0, f64::max);
            let pairs = play.choices.experts().len() as f64;
            let most = pairs * (delta + certificate.epsilon_nash);
            let short = exact.real(best - potential);
            assert!(
                short >= 0.0 && short <= most + 1e-11,
                "{name} {seed} {cost:?}: {short} {most}"
            );
            assert!(certificate.epsilon_nash <= 1e-6, "{name} {seed} {cost:?}: {certificate:?}");
            bounded += u32::from(delta.is_finite());
            behind += u32::from(short > 1e-6);
        }
        assert!(bounded > 75 && behind > 5, "{name}: {bounded} bounded, {behind} not the optimum");
    }
}

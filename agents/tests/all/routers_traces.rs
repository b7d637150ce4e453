//! Known behaviour of the rules over time: what settles, what cycles, and how far from balance.
//! Published figures are for `sigmoid(N(0,1) + 0.5·N_e)`, T = 4096, E = 64, k = 8, quota 1.

use agents::game::routers::{
    BiasUpdate, Bip, Hedge, Logit, LossFreeBias, Migration, Played, Quantile, QuantileBalancing,
    Sinkhorn, SmoothStale, WeightRule,
};
use agents::game::{CostSettings, Dynamics, Equilibrium, Information, Play, Router, TopK};

use crate::game::{QUOTA, Table};
use crate::routers::skewed;

fn published(seed: u64) -> Table {
    Table::new(skewed(4096, 64, seed, false), 64, 8, &QUOTA)
}

/// max-over-mean minus 1.
fn violation(table: &Table, play: &Play) -> f64 {
    let most = play.choices.loads(table.experts).into_iter().max().unwrap_or(0);
    f64::from(most) * table.experts as f64 / play.choices.experts().len() as f64 - 1.0
}

/// max-over-mean minus 1 of each of `batches` warm plays of the same batch.
fn violations(table: &Table, router: &dyn Router, batches: usize) -> Vec<f64> {
    let mut prices = vec![0.0; table.experts];
    let mut play = || {
        let play = router.route(&table.game(), Some(&prices));
        let violation = violation(table, &play);
        prices = play.prices;
        violation
    };
    (0..batches).map(|_| play()).collect()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

#[test]
fn fixed_sign_steps_cycle_as_wide_as_they_are_long() {
    let table = published(0);
    let trace = violations(&table, &LossFreeBias::sign(), 400);
    let reached = trace.iter().position(|violation| *violation < 0.1);
    assert!(reached.is_some_and(|step| (80..250).contains(&step)), "119 to 182, {reached:?}");
    let end = &trace[300..];
    assert!(largest(end) > 0.015 && largest(end) < 0.1, "2.5 to 6.3 %: {}", largest(end));
    let long = LossFreeBias { rate: 1e-2, ..LossFreeBias::sign() };
    let trace = violations(&table, &long, 400);
    assert!(least(&trace) > 0.1, "never below 10 %: {}", least(&trace));
    // Every second batch has the same loads: a cycle, for good.
    let end = &trace[300..];
    assert!(end.windows(3).all(|w| w[0] == w[2] && w[0] != w[1]), "{end:?}");
}

#[test]
fn decaying_and_proportional_steps_settle() {
    let table = published(1);
    let proportional = violations(&table, &LossFreeBias::proportional(), 400);
    let end = &proportional[350..];
    assert!(largest(end) < 0.02, "{end:?}");
    let cold =
        |decays| LossFreeBias { rate: 1e-2, decays, cold_steps: 800, ..LossFreeBias::sign() };
    let ends_at = |decays| violation(&table, &cold(decays).route(&table.game(), None));
    let (fixed, decaying) = (ends_at(false), ends_at(true));
    assert!(decaying < fixed / 4.0, "{decaying} against {fixed}");
    assert_eq!(cold(true).update, BiasUpdate::Sign);
}

#[test]
fn sweeps_of_quantile_balancing_follow_the_published_row() {
    // The published violations after 1, 2, 4, 8 sweeps; from then on they stall, at E = 256 at 3 %.
    let table = published(2);
    let row = [(1, 0.125), (2, 0.076), (4, 0.027), (8, 0.010), (16, 0.012)];
    for quantile in [Quantile::Exact, Quantile::Histogram { bins: 1000 }] {
        let mut bound = f64::INFINITY;
        for (sweeps, violation) in row {
            let router = QuantileBalancing { sweeps, quantile };
            let (_, certificate) = table.play(&router, None);
            let found = certificate.max_over_mean - 1.0;
            assert!(found > violation / 3.0 && found < violation * 3.0, "{sweeps}: {found}");
            if quantile == Quantile::Exact {
                assert!(certificate.dual_bound <= bound + 1e-9, "no sweep raises the dual bound");
                bound = certificate.dual_bound;
            }
        }
    }
}

#[test]
fn sweeps_of_bip_balance_more_slowly() {
    let table = published(2);
    let ends_at = |sweeps| violation(&table, &Bip { sweeps }.route(&table.game(), None));
    let found: Vec<f64> = [0, 1, 4, 16, 64].map(ends_at).into();
    assert!(found.is_sorted_by(|a, b| a > b) && found[4] < 0.05, "{found:?}");
}

#[test]
fn quantile_balancing_with_stale_prices_leaves_the_noise_of_a_batch() {
    // About 12.4 % at q = 512, and more sweeps do not help. The lean of the experts is common.
    for sweeps in [1, 7] {
        let router = QuantileBalancing { sweeps, quantile: Quantile::Exact };
        let mut stale = Dynamics::new(Box::new(router), Information::Stale { batches: 1 });
        let whole = skewed(8 * 4096, 64, 3, false);
        let mut violations = Vec::new();
        for values in whole.chunks(4096 * 64) {
            let table = Table::new(values.to_vec(), 64, 8, &QUOTA);
            let play = stale.play(&table.game());
            violations.push(violation(&table, &play));
        }
        let end = &violations[4..];
        let mean = end.iter().sum::<f64>() / end.len() as f64;
        assert!(mean > 0.06 && mean < 0.25, "{sweeps} sweeps: {violations:?}");
    }
}

#[test]
fn a_balanced_plan_is_no_balanced_assignment() {
    let table = Table::new(skewed(4096, 64, 4, true), 64, 8, &QUOTA);
    let (play, certificate) = table.play(&Sinkhorn::default(), None);
    assert!(play.iterations <= 8, "{}", play.iterations);
    // The plan's own marginals, from the prices: rows are exact, so columns have to be T/E.
    let mut columns = vec![0.0; 64];
    for row in table.values.chunks(64) {
        let weights: Vec<f64> =
            row.iter().zip(&play.prices).map(|(a, p)| (f64::from(*a) - p).exp()).collect();
        let sum: f64 = weights.iter().sum();
        columns.iter_mut().zip(weights).for_each(|(column, weight)| *column += weight / sum);
    }
    let error = columns.iter().map(|column| (column / 64.0 - 1.0).abs()).fold(0.0, f64::max);
    assert!(error <= 1e-4, "{error}");
    let violation = certificate.max_over_mean - 1.0;
    assert!(violation > 0.03 && violation < 0.3, "6.5 to 20 %: {violation}");
    // Scale-free: the same plan, whatever the unit of scores and temperature.
    let scaled: Vec<f32> = table.values.iter().map(|a| a * 1024.0).collect();
    let hot = Sinkhorn { temperature: 1024.0, ..Sinkhorn::default() };
    let again = Table::new(scaled, 64, 8, &QUOTA).play(&hot, None).0;
    assert_eq!((again.iterations, again.choices), (play.iterations, play.choices));
}

/// Two tokens, two experts, cost 1 for each token on an expert, the first expert a little worse.
fn duel() -> Table {
    let cost = CostSettings::Linear { price_per_fair_share: 1.0 };
    Table::new(vec![0.0, 0.1, 0.0, 0.1], 2, 1, &cost)
}

#[test]
fn exponential_weights_cycle_where_linear_ones_settle() {
    let table = duel();
    let trace = |rule, rate| -> Vec<f64> {
        let last = |rounds| Hedge { rule, rate, rounds, played: Played::Last };
        let difference = |rounds| {
            let prices = last(rounds).route(&table.game(), None).prices;
            prices[1] - prices[0]
        };
        (150..200).map(difference).collect()
    };
    let wild = trace(WeightRule::Exponential, 20.0);
    let calm = trace(WeightRule::Linear, 0.5);
    assert!(largest(&wild) - least(&wild) > 0.5, "{wild:?}");
    assert!(wild.windows(2).all(|w| (w[0] - w[1]).abs() > 0.5), "every round swings: {wild:?}");
    assert!(largest(&calm) - least(&calm) < 1e-3, "{calm:?}");
}

/// Four tokens alike, of which each plays the first of two experts with probability x. To a token it
/// costs c(1 + 3x) less the affinity 0.3, the other c(4 − 3x), for it does not add itself to itself:
/// with c(n) = n/2 both are alike at x = 0.6, loads of 2.4 and 1.6. Tokens that took their own share
/// for another's would end at x = 0.575.
#[test]
fn linear_weights_settle_where_no_token_gains_by_another_mixture() {
    let cost = CostSettings::Linear { price_per_fair_share: 1.0 };
    let table = Table::new([0.3, 0.0].repeat(4), 2, 1, &cost);
    let rule = WeightRule::Linear;
    let last = Hedge { rule, rate: 0.5, rounds: 3000, played: Played::Last };
    let prices = last.route(&table.game(), None).prices;
    assert!((prices[0] - prices[1] - 0.4).abs() < 1e-3, "{prices:?}");
}

#[test]
fn switching_at_once_oscillates_and_smooth_migration_settles() {
    let cost = CostSettings::Linear { price_per_fair_share: 1.0 };
    let table = Table::new(skewed(1024, 16, 6, false), 16, 2, &cost);
    let (_, exact) = table.play(&Equilibrium::default(), None);
    let (_, start) = table.play(&TopK, None);
    for period in [1, 8] {
        let play = |migration, rounds| {
            table.play(&SmoothStale { migration, period, rounds, seed: 1 }, None).1
        };
        let boards = |rounds: u32| rounds * period;
        // Always: experts are crowded on every other board, for good.
        let always = |rounds| play(Migration::Always, boards(rounds)).max_over_mean;
        let (even, odd): (Vec<f64>, Vec<f64>) =
            (10..15).map(|n| (always(2 * n), always(2 * n + 1))).unzip();
        assert!(least(&even) > 2.0 && least(&odd) > 2.0, "{even:?} {odd:?}");
        let potential = play(Migration::Always, boards(20)).potential;
        assert!(potential < start.potential, "worse than no routing at all");
        // Smooth at the threshold: near the largest potential, and it stays.
        let smooth = Migration::Smooth { smoothness: 1.0 };
        let share = |rounds| {
            let certificate = play(smooth, rounds);
            (exact.potential - certificate.potential) / (exact.potential - start.potential)
        };
        let settled: Vec<f64> = [3000, 3001, 3500].map(|n| share(n * period)).into();
        assert!(largest(&settled) < 0.08, "{settled:?}");
        assert!(largest(&settled) - least(&settled) < 0.01, "{settled:?}");
        // Far beyond the threshold, tokens that see old boards overshoot together again.
        let rash = Migration::Smooth { smoothness: 400.0 };
        let rash: Vec<f64> = (30..36).map(|n| play(rash, boards(n)).max_over_mean).collect();
        let calm = play(smooth, 3000 * period).max_over_mean;
        assert!((calm - exact.max_over_mean).abs() < 0.05, "{calm} {}", exact.max_over_mean);
        assert!(least(&rash) > exact.max_over_mean + 0.1 * f64::from(period), "{rash:?}");
    }
}

#[test]
fn log_linear_learning_draws_plays_by_their_potential() {
    // Two tokens, two experts, k = 1: four plays with probabilities ∝ exp(Φ/τ).
    let cost = CostSettings::Linear { price_per_fair_share: 0.3 };
    let table = Table::new(vec![0.2, 0.0, 0.1, 0.4], 2, 1, &cost);
    let temperature = 0.3;
    let weight = |first: usize, second: usize| {
        let scores = f64::from(table.values[first]) + f64::from(table.values[2 + second]);
        let congestion = if first == second { 0.9 } else { 0.6 };
        ((scores - congestion) / temperature).exp()
    };
    let weights = [weight(0, 0), weight(0, 1), weight(1, 0), weight(1, 1)];
    let total: f64 = weights.iter().sum();
    let mut counts = [0.0; 4];
    let draws = 4000;
    for seed in 0..draws {
        let choices = Logit { temperature, sweeps: 12, seed }.route(&table.game(), None).choices;
        counts[2 * choices.row(0)[0].index() + choices.row(1)[0].index()] += 1.0;
    }
    let draws = draws as f64;
    // Chi squared with 3 degrees of freedom: 16.3 is exceeded once in 1000.
    let deviation = |(count, weight): (&f64, &f64)| {
        let expected = draws * weight / total;
        (count - expected).powi(2) / expected
    };
    let chi_squared: f64 = counts.iter().zip(&weights).map(deviation).sum();
    assert!(chi_squared < 16.3, "{chi_squared}: {counts:?} {weights:?}");
}

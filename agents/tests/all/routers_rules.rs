//! What each rule and each kind of information guarantees.

use agents::game::routers::{
    Auction, BestResponse, BestResponseBatched, CachePrior, DropBy, ExpertChoice, GroupLimited,
    Hash, TopKCapacity,
};
use agents::game::{
    CostSettings, Dynamics, Equilibrium, Information, Play, Router as _, TokenSets, TopK, certify,
};
use agents::ids::ExpertId;

use crate::game::{KINDS, QUOTA, Table, rows};
use crate::routers::{LINEAR, router, skewed};

/// Multiples of 1/1024 below 1, without ties in a row more often than by chance.
fn on_grid(tokens: usize, experts: usize, seed: u64) -> Vec<f32> {
    skewed(tokens, experts, seed, false)
        .into_iter()
        .map(|v| (v * 1024.0).floor() / 1024.0)
        .collect()
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

/// One token a step, through a cache of the experts used last in each.
#[test]
fn a_prior_on_cached_experts_saves_misses_and_costs_at_most_its_bonus() {
    let (experts, k, cached) = (32, 4, 8);
    let values = skewed(600, experts, 11, false);
    let run = |bonus: f64| {
        let mut dynamics = Dynamics::new(Box::new(CachePrior { bonus }), Information::InBatch);
        let (mut recent, mut misses): (Vec<ExpertId>, usize) = (Vec::new(), 0);
        let mut chosen = Vec::new();
        for row in values.chunks(experts) {
            let table = Table::new(row.to_vec(), experts, k, &QUOTA);
            let play = dynamics.play(&table.game());
            let set = play.choices.row(0).to_vec();
            let least = set.iter().map(|e| row[e.index()]).fold(f32::INFINITY, f32::min);
            let left = (0..experts).filter(|e| !set.contains(&ExpertId::from_index(*e)));
            let best_left = left.map(|e| row[e]).fold(f32::NEG_INFINITY, f32::max);
            assert!(f64::from(best_left) <= f64::from(least) + bonus + 1e-7);
            misses += set.iter().filter(|expert| !recent.contains(expert)).count();
            recent.retain(|expert| !set.contains(expert));
            recent.splice(0..0, set.iter().copied());
            recent.truncate(cached);
            chosen.push(set);
        }
        (misses, chosen)
    };
    let (without, plain) = run(0.0);
    let top_k = values.chunks(experts).map(|row| {
        let table = Table::new(row.to_vec(), experts, k, &QUOTA);
        table.play(&TopK, None).0.choices.row(0).to_vec()
    });
    assert!(plain.into_iter().eq(top_k), "without a bonus it is top-k");
    let (some, _) = run(0.05);
    let (more, _) = run(0.2);
    assert!(some < without && more < some, "{without} {some} {more}");
}

//! The flock in a batch: what it must do whatever the tokens, and what it does on skewed ones.

use agents::flock::graph::Graph;
use agents::flock::rule::Clearing;
use agents::game::routers::{Flight, FlockPrices};
use agents::game::{Choices, CostSettings, Equilibrium, Game, Router, Scores, TopK, certify};

use crate::game::QUOTA;
use crate::routers::{LINEAR, skewed};

const SHAPE: (usize, usize, usize) = (1024, 32, 4);

fn fly(flock: &FlockPrices, values: &[f32], cost: &CostSettings) -> Flight {
    let (tokens, experts, top_k) = SHAPE;
    let cost = cost.build(tokens, experts, top_k);
    let scores = Scores::new(values, experts).expect("finite");
    flock.fly(&Game { scores, top_k, cost: cost.as_ref() }, None)
}

fn values(seed: u64) -> Vec<f32> {
    skewed(SHAPE.0, SHAPE.1, seed, false)
}

fn plain(values: &[f32]) -> Choices {
    let cost = QUOTA.build(SHAPE.0, SHAPE.1, SHAPE.2);
    let scores = Scores::new(values, SHAPE.1).expect("finite");
    TopK.route(&Game { scores, top_k: SHAPE.2, cost: cost.as_ref() }, None).choices
}

#[test]
fn the_flock_evens_out_skewed_loads_in_few_rounds_on_every_graph() {
    for (graph, seed) in Graph::ALL.into_iter().flat_map(|graph| [1, 2, 3].map(|s| (graph, s))) {
        let flight = fly(&FlockPrices { graph, ..FlockPrices::default() }, &values(seed), &QUOTA);
        assert!(flight.rounds[0].max_over_mean > 2.0, "there is something to balance");
        let even = flight.rounds.iter().position(|round| round.max_over_mean <= 1.05);
        assert!(even.is_some_and(|round| round < 20), "{graph:?} {:?}", flight.rounds);
        assert!(flight.rounds[30].max_over_mean <= 1.05, "{graph:?} {:?}", flight.rounds);
    }
}

#[test]
fn the_flock_comes_near_the_exact_optimum_under_a_rising_cost() {
    let values = values(4);
    let play = fly(&FlockPrices::default(), &values, &LINEAR).play;
    let cost = LINEAR.build(SHAPE.0, SHAPE.1, SHAPE.2);
    let scores = Scores::new(&values, SHAPE.1).expect("finite");
    let game = Game { scores, top_k: SHAPE.2, cost: cost.as_ref() };
    let exact = Equilibrium::default().route(&game, None);
    let [own, best] = [&play, &exact].map(|p| certify(&game, &p.choices, &p.prices));
    assert!(own.potential <= best.potential + 1e-9 * best.potential.abs());
    assert!(own.relative_gap < 1e-3 && own.relative_gap > 0.0, "{own:?}");
}

#[test]
fn late_and_lost_messages_leave_loads_within_a_tenth_of_even() {
    let flight = fly(&FlockPrices::late(), &values(5), &QUOTA);
    let start = flight.rounds[0].max_over_mean.to_bits();
    let before = flight.rounds[..=4].iter().all(|round| round.max_over_mean.to_bits() == start);
    assert!(before, "nothing is answered before the delay is over");
    let worst = flight.rounds[40..].iter().map(|round| round.max_over_mean);
    assert!(worst.fold(0.0, f64::max) <= 1.1, "{:?}", flight.rounds);
}

#[test]
fn a_flock_that_hears_nothing_or_does_not_move_plays_plain_top_k() {
    let values = values(6);
    let deaf = FlockPrices { lost_share: 1.0, ..FlockPrices::default() };
    let still = FlockPrices {
        rule: Box::new(Clearing { step: 0.0, alignment: 0.0 }),
        ..FlockPrices::default()
    };
    for flock in [deaf, still] {
        assert_eq!(fly(&flock, &values, &QUOTA).play.choices, plain(&values));
    }
}

#[test]
fn without_alignment_the_graph_changes_nothing_but_the_messages() {
    let values = values(7);
    let on = |graph| {
        let rule = Box::new(Clearing { step: 0.8, alignment: 0.0 });
        fly(&FlockPrices { rule, graph, ..FlockPrices::default() }, &values, &QUOTA)
    };
    let (near, complete) = (on(Graph::Nearest), on(Graph::Complete));
    assert_eq!(near.play.choices, complete.play.choices);
    // 32 experts, 30 rounds: 7 or 31 neighbours, 8 front ends there and back.
    let messages = |flight: &Flight| flight.rounds[30].messages;
    assert_eq!((messages(&near), messages(&complete)), (30 * 32 * 23, 30 * 32 * 47));
}

#[test]
fn considering_all_experts_as_candidates_is_considering_all_experts() {
    let values = values(8);
    let flight = |candidates| {
        let flock = FlockPrices { candidates, ..FlockPrices::default() };
        fly(&flock, &values, &QUOTA).play
    };
    let (all, listed, few) = (flight(None), flight(Some(SHAPE.1)), flight(Some(1)));
    assert_eq!((&all.choices, &all.prices), (&listed.choices, &listed.prices));
    let top = plain(&values);
    // One candidate more than k: each token gives up at most one of its best.
    let kept = |token: usize| {
        let row = top.row(token);
        few.choices.row(token).iter().filter(|expert| row.contains(expert)).count()
    };
    assert!((0..SHAPE.0).all(|token| kept(token) >= SHAPE.2 - 1));
    assert_ne!(few.choices, top);
}

//! Flock migration: what holds for any loads, and what it does when loads shift.

use agents::flock::migration::{Coactivation, MigrationSettings, Move, migrate};
use agents::ids::{ExpertId, NodeId};
use agents::placement::{EplbShape, Placement, dispatch, eplb};
use agents::rng::stream;
use proptest::prelude::*;

fn planned(loads: &[f64], nodes: usize, spare: usize) -> Placement {
    let replicas = loads.len() + nodes * spare;
    let shape = EplbShape { replicas, groups: 1, servers: 1, gpus: nodes };
    eplb(loads, shape).expect("a plan").placement()
}

fn max_over_mean(placement: &Placement, loads: &[f64]) -> f64 {
    let mean = loads.iter().sum::<f64>() / placement.nodes() as f64;
    dispatch(placement, loads, None).expect("loads").max_load() / mean
}

/// Loads that favour some experts, others for each seed.
fn loads(experts: usize, seed: u64) -> Vec<f64> {
    let mut rng = stream(seed, "migration loads");
    (0..experts).map(|_| (1.2 * (rng.random::<f64>() + rng.random::<f64>())).exp()).collect()
}

#[test]
fn after_a_shift_of_loads_nodes_are_even_again_for_a_quarter_of_a_fresh_plans_bytes() {
    for seed in 0..12 {
        let (before, after) = (loads(64, seed), loads(64, seed + 100));
        let (start, slots) = (planned(&before, 8, 1), [9; 8]);
        let bytes = [1; 64];
        let fresh = planned(&after, 8, 1).moved_bytes(&start, &bytes);
        let (mut placement, mut moved) = (start, 0);
        for round in 0..24 {
            let settings = MigrationSettings::default();
            let next = migrate(&placement, &after, &slots, round, None, &settings).expect("loads");
            assert_eq!(
                next.placement.moved_bytes(&placement, &bytes),
                next.moves.len() as u64,
                "every copy that is new was sent"
            );
            moved += next.moves.len() as u64;
            placement = next.placement;
        }
        assert!(max_over_mean(&placement, &after) <= 1.1, "seed {seed}");
        assert!(4 * moved <= fresh, "seed {seed}: {moved} of {fresh}");
    }
}

#[test]
fn even_nodes_and_content_ones_send_nothing() {
    let loads = loads(32, 3);
    let placement = planned(&loads, 4, 2);
    let content = MigrationSettings { tolerance: 10.0, ..MigrationSettings::default() };
    for settings in [MigrationSettings::default(), content] {
        let next = migrate(&placement, &loads, &[10; 4], 0, None, &settings).expect("loads");
        assert!(next.moves.is_empty());
        assert_eq!(next.placement, placement);
    }
}

#[test]
fn cohesion_of_zero_weighs_nothing_and_some_sends_an_expert_to_its_company() {
    // Node 0 has four equal experts and too much load; the last of them serves with expert 6.
    let loads = [2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0];
    let hosts = [0, 0, 0, 0, 1, 1, 2, 2].map(|node| vec![NodeId(node)]);
    let start = Placement::new(3, &hosts).expect("hosts");
    let mut together = [0.0; 64];
    (together[3 * 8 + 6], together[6 * 8 + 3]) = (1.0, 1.0);
    let first = |cohesion, together: Option<Coactivation<'_>>| {
        let settings =
            MigrationSettings { cohesion, neighbours: 2, ..MigrationSettings::default() };
        migrate(&start, &loads, &[5; 3], 0, together, &settings).expect("loads").moves
    };
    let known = Some(Coactivation(&together));
    assert_eq!(first(0.0, known), first(0.5, None));
    let sent = Move { expert: ExpertId(3), from: NodeId(0), to: NodeId(2) };
    assert!(!first(0.0, known).contains(&sent));
    assert!(first(0.5, known).contains(&sent));
}

proptest! {
    #[test]
    fn whatever_the_loads_every_expert_keeps_a_host_and_every_node_its_slots(
        experts in 2..24_usize, nodes in 2..6_usize, spare in 0..3_usize, seed in 0..1000_u64,
    ) {
        let (before, after) = (loads(experts, seed), loads(experts, seed + 5000));
        let slots = vec![experts.div_ceil(nodes) + spare; nodes];
        let hosts: Vec<Vec<NodeId>> =
            (0..experts).map(|e| vec![NodeId::from_index(e % nodes)]).collect();
        let mut placement = Placement::new(nodes, &hosts).expect("hosts");
        for (round, loads) in (0..).zip([&before, &after, &before, &after]) {
            let settings = MigrationSettings { seed, ..MigrationSettings::default() };
            let next = migrate(&placement, loads, &slots, round, None, &settings).expect("loads");
            let again = migrate(&placement, loads, &slots, round, None, &settings).expect("loads");
            prop_assert_eq!(&next, &again, "the same round again");
            let sent = next.moves.len() as u64;
            prop_assert!(sent <= nodes as u64, "two copies for two nodes at most");
            placement = next.placement;
            for (held, slots) in placement.held().iter().zip(&slots) {
                prop_assert!(held.len() <= *slots);
            }
        }
    }
}

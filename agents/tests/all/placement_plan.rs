//! Plans of copies and nodes against all placements of tiny layers, EPLB and published loads.

use crate::placement::{assert_close, nodes};
use agents::ids::{ExpertId, NodeId};
use agents::placement::{
    EplbShape, LoadError, Placement, Plan, PlanError, PlanSettings, Previous, certify_dispatch,
    dispatch, eplb, placement_lower_bound, plan,
};
use agents::rng::stream;
use rand::RngExt as _;

fn settings(slots: &[usize]) -> PlanSettings<'_> {
    PlanSettings { slots, evaluations_max: 2000, previous: None }
}

/// A plan, checked: slots kept, loads served, bound below, numbers consistent.
fn checked_plan(loads: &[f64], settings: &PlanSettings<'_>) -> Plan {
    let found = plan(loads, settings).expect("experts fit the slots");
    for (held, slots) in found.placement.held().iter().zip(settings.slots) {
        assert!(held.len() <= *slots, "{held:?} in {slots} slots");
    }
    let certificate = certify_dispatch(&found.placement, loads, &found.dispatch).expect("valid");
    assert!(certificate.relative_gap.abs() <= 1e-9);
    assert!(found.lower_bound <= certificate.max_load * (1.0 + 1e-12));
    let gap = (certificate.max_load - found.lower_bound) / certificate.max_load.max(1e-300);
    assert_close(found.relative_gap, gap, 1.0, "relative gap");
    let starts = 1 + usize::from(settings.previous.is_some());
    assert!(found.evaluations <= starts * settings.evaluations_max.max(1));
    found
}

/// The lowest maximum over every placement of the experts in the slots.
fn best_of_all_placements(loads: &[f64], slots: &[usize]) -> f64 {
    fn visit(node: usize, slots: &[usize], hosts: &mut Vec<Vec<NodeId>>, loads: &[f64]) -> f64 {
        if node == slots.len() {
            let Ok(placement) = Placement::new(slots.len(), hosts) else { return f64::INFINITY };
            return dispatch(&placement, loads, None).expect("amounts").max_load();
        }
        let mut best = f64::INFINITY;
        // More copies never hurt, so only full nodes are worth a look.
        let full = slots[node].min(loads.len());
        for chosen in (0_u32..1 << loads.len()).filter(|set| set.count_ones() as usize == full) {
            let of = |expert: &usize| chosen >> expert & 1 == 1;
            let experts: Vec<usize> = (0..loads.len()).filter(of).collect();
            experts.iter().for_each(|expert| hosts[*expert].push(NodeId::from_index(node)));
            best = best.min(visit(node + 1, slots, hosts, loads));
            experts.iter().for_each(|expert| {
                hosts[*expert].pop();
            });
        }
        best
    }
    visit(0, slots, &mut vec![Vec::new(); loads.len()], loads)
}

#[test]
fn plans_of_tiny_layers_come_close_to_the_best_of_all_placements() {
    let mut optimal = 0;
    for seed in 0..60 {
        let mut rng = stream(seed, "tiny layer");
        let slots: Vec<usize> = (0..3).map(|_| rng.random_range(1..4)).collect();
        let room = slots.iter().sum::<usize>().min(5);
        let experts = rng.random_range(1..=room);
        let loads: Vec<f64> = (0..experts).map(|_| 30.0_f64.powf(rng.random()).round()).collect();
        let best = best_of_all_placements(&loads, &slots);
        let bound = placement_lower_bound(&loads, &slots).expect("fits");
        assert!(bound <= best * (1.0 + 1e-12), "{loads:?} {slots:?}: {bound} above {best}");
        let found = checked_plan(&loads, &settings(&slots)).dispatch.max_load();
        assert!(found >= best * (1.0 - 1e-12), "{loads:?} {slots:?}: {found} below {best}");
        optimal += usize::from(found <= best * (1.0 + 1e-9));
    }
    assert!(optimal >= 54, "only {optimal} of 60 plans are optimal");
}

#[test]
fn plans_are_at_least_as_good_as_eplb_under_the_same_dispatch() {
    for seed in 0..20 {
        let mut rng = stream(seed, "skewed layer");
        let loads: Vec<f64> = (0..64).map(|_| 200.0_f64.powf(rng.random()).round()).collect();
        let shape = EplbShape { replicas: 72, groups: 1, servers: 1, gpus: 12 };
        let published = eplb(&loads, shape).expect("divides").placement();
        let published = dispatch(&published, &loads, None).expect("amounts").max_load();
        let found = checked_plan(&loads, &settings(&[6; 12]));
        assert!(found.dispatch.max_load() <= published * (1.0 + 1e-9), "seed {seed}");
        assert_eq!(found, checked_plan(&loads, &settings(&[6; 12])), "a plan repeats");
    }
}

/// The pull request reports 205 for its own placement.
#[test]
fn the_flashlb_loads_are_placed_with_no_gap() {
    let loads = [600.0, 560.0, 120.0, 120.0, 20.0, 10.0, 10.0, 10.0];
    let found = checked_plan(&loads, &settings(&[2; 8]));
    assert_close(found.lower_bound, 181.25, 1.0, "the mean is the bound");
    assert_close(found.dispatch.max_load(), 181.25, 1.0, "and it is reached");
}

#[test]
fn uneven_slots_and_dead_nodes_need_no_divisibility() {
    let loads: Vec<f64> = (1..=11).map(f64::from).collect();
    let slots = [3, 0, 7, 4, 1];
    let found = checked_plan(&loads, &settings(&slots));
    assert!(found.placement.held()[1].is_empty());
    let everywhere = checked_plan(&loads, &settings(&[11; 5]));
    assert_close(everywhere.relative_gap, 0.0, 1.0, "every expert on every node");
}

#[test]
fn moving_is_weighed_against_balance_and_counted_in_bytes() {
    let loads: Vec<f64> = (0..12).map(|at| f64::from(1 << (at / 2))).collect();
    let slots = [4; 4];
    let mut even = vec![1.0; 12];
    even[0] = 1.5;
    let before = checked_plan(&even, &settings(&slots)).placement;
    let shard_bytes: Vec<u64> = (0..12).map(|at| 100 + at).collect();
    let stay = dispatch(&before, &loads, None).expect("amounts").max_load();
    let moved = [0.0, 1e-4, 1e-2, 1e6].map(|load_per_byte| {
        let previous = Previous { placement: &before, shard_bytes: &shard_bytes, load_per_byte };
        let settings = PlanSettings { previous: Some(previous), ..settings(&slots) };
        let found = checked_plan(&loads, &settings);
        let arrived = (0..12).map(ExpertId).map(|expert| {
            let hosts = found.placement.hosts(expert).iter();
            let new = hosts.filter(|node| !before.hosts(expert).contains(node)).count() as u64;
            new * shard_bytes[expert.index()]
        });
        assert_eq!(found.moved_bytes, arrived.sum::<u64>());
        let objective = found.dispatch.max_load() + load_per_byte * found.moved_bytes as f64;
        assert!(objective <= stay, "moving must pay: {objective} against {stay}");
        found.moved_bytes
    });
    assert!(moved[0] > 0, "free moves balance better than none");
    assert_eq!(moved[3], 0, "nothing moves when a byte costs more than all loads");
}

/// Loads drift after placement. A shard costs a thousandth of the mean load, so staying is not
/// worth it, and neither is placing everything anew.
#[test]
fn drifted_loads_are_rebalanced_by_moving_few_shards() {
    for seed in 0..10 {
        let mut rng = stream(seed, "drift");
        let planned: Vec<f64> = (0..128).map(|_| 40.0_f64.powf(rng.random())).collect();
        let loads: Vec<f64> =
            planned.iter().map(|load| load * 4.0_f64.powf(rng.random())).collect();
        let shape = EplbShape { replicas: 160, groups: 1, servers: 1, gpus: 32 };
        let before = eplb(&planned, shape).expect("divides").placement();
        let mean = loads.iter().sum::<f64>() / 32.0;
        let previous =
            Previous { placement: &before, shard_bytes: &[1; 128], load_per_byte: 1e-3 * mean };
        let settings = PlanSettings { previous: Some(previous), ..settings(&[5; 32]) };
        let found = checked_plan(&loads, &settings);
        let stay = dispatch(&before, &loads, None).expect("amounts").max_load() / mean;
        let rebalanced = found.dispatch.max_load() / mean;
        assert!(stay > 1.15, "seed {seed}: {stay} needs no plan");
        assert!(rebalanced < 1.05, "seed {seed}: {stay} to {rebalanced}");
        assert!((1..64).contains(&found.moved_bytes), "seed {seed}: {} moved", found.moved_bytes);
    }
}

#[test]
fn experts_of_a_node_that_died_are_placed_on_the_others() {
    let loads: Vec<f64> = (1..=8).map(f64::from).collect();
    let before = checked_plan(&loads, &settings(&[3; 4])).placement;
    let slots = [3, 3, 0, 3];
    let previous = Previous { placement: &before, shard_bytes: &[10; 8], load_per_byte: 1e6 };
    let found =
        checked_plan(&loads, &PlanSettings { previous: Some(previous), ..settings(&slots) });
    let lost = (0..8).map(ExpertId).filter(|e| before.hosts(*e) == [NodeId(2)]).count() as u64;
    assert!(lost > 0, "the dead node held the only copy of something");
    assert_eq!(found.moved_bytes, 10 * lost, "only what was lost is sent");
}

#[test]
fn plans_that_cannot_be_are_refused_by_name() {
    let refused = |loads: &[f64], slots: &[usize], previous| {
        plan(loads, &PlanSettings { previous, ..settings(slots) }).expect_err("refused")
    };
    assert_eq!(refused(&[1.0; 4], &[2, 1], None), PlanError::Slots { experts: 4, slots: 3 });
    assert_eq!(refused(&[1.0; 4], &[0, 0], None), PlanError::Slots { experts: 4, slots: 0 });
    assert_eq!(refused(&[], &[], None), PlanError::Slots { experts: 0, slots: 0 });
    assert!(matches!(refused(&[-1.0], &[1], None), PlanError::Loads(LoadError::Load { .. })));
    let placement = Placement::new(1, &[nodes(&[0])]).expect("valid");
    let previous = |shard_bytes, load_per_byte| {
        Some(Previous { placement: &placement, shard_bytes, load_per_byte })
    };
    let other = PlanError::Previous { given: 1, sizes: 1, experts: 2 };
    assert_eq!(refused(&[1.0; 2], &[2], previous(&[1], 0.0)), other);
    assert_eq!(refused(&[1.0], &[1], previous(&[1], -1.0)), PlanError::LoadPerByte(-1.0));
}

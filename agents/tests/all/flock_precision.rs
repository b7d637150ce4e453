//! Precision by nodes: local budgets, companions, and the distance to allocators that see all.

use agents::flock::precision::{FlockPrecision, Holdings, bytes_by_node, vouched};
use agents::ids::NodeId;
use agents::precision::{Allocator as _, Exact, Problem, Unit, allocate, evaluate};
use agents::rng::stream;
use proptest::prelude::*;

const SIZES: [u64; 3] = [2_000, 4_000, 8_000];

fn units(loads: &[f64]) -> Vec<Unit> {
    let unit = |load: &f64| Unit {
        costs: [1.0, 1.0 / 16.0, 1.0 / 4096.0].map(|error| error * load).to_vec(),
        bytes: SIZES.to_vec(),
    };
    loads.iter().map(unit).collect()
}

fn draw(experts: usize, seed: u64) -> Vec<f64> {
    let mut rng = stream(seed, "flock precision test");
    (0..experts).map(|_| 1.0 + 99.0 * rng.random::<f64>().powi(3)).collect()
}

fn apply(options: &mut [usize], moves: &[agents::precision::BitsMove]) {
    for step in moves {
        assert_eq!(options[step.unit], step.from);
        options[step.unit] = step.to;
    }
}

const EAGER: FlockPrecision =
    FlockPrecision { vouching: 0.0, node_bytes_max: u64::MAX, cost_per_byte: 0.0 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_node_ever_exceeds_its_bytes_or_loads_more_than_it_may(
        seed in 0..1000_u64,
        node_count in 1..5_usize,
        vouching in 0.0..1.0_f64,
        most in 0..20_000_u64,
    ) {
        let experts = 16;
        let calibrated = draw(experts, seed);
        let units = units(&calibrated);
        let nodes: Vec<NodeId> = (0..experts).map(|e| NodeId::from_index(e % node_count)).collect();
        let mut options = vec![1; experts];
        let budgets = bytes_by_node(&units, &options, &nodes, node_count);
        let companions: Vec<Vec<usize>> = (0..experts).map(|e| vec![(e + 1) % experts]).collect();
        let holdings = Holdings { units: &units, calibrated: &calibrated, nodes: &nodes, budgets: &budgets, companions: &companions };
        let rule = FlockPrecision { vouching, node_bytes_max: most, cost_per_byte: 0.0 };
        for round in 0..6 {
            let moves = rule.round(&holdings, &draw(experts, seed + round), &options).expect("feasible");
            for step in &moves {
                apply(&mut options, std::slice::from_ref(step));
                let held = bytes_by_node(&units, &options, &nodes, node_count);
                prop_assert!(held.iter().zip(&budgets).all(|(held, budget)| held <= budget), "after every move");
            }
            for node in 0..node_count {
                let loaded: u64 = moves.iter().filter(|step| nodes[step.unit].index() == node).map(|step| step.bytes).sum();
                prop_assert!(loaded <= most);
            }
        }
    }
}

#[test]
fn nodes_alone_come_near_to_the_exact_allocation_of_their_own_bytes() {
    for seed in 0..20 {
        let calibrated = draw(24, seed);
        let units = units(&calibrated);
        let nodes: Vec<NodeId> = (0..24).map(|e| NodeId::from_index(e / 8)).collect();
        let mut options = vec![1; 24];
        let budgets = bytes_by_node(&units, &options, &nodes, 3);
        let holdings = Holdings {
            units: &units,
            calibrated: &calibrated,
            nodes: &nodes,
            budgets: &budgets,
            companions: &vec![vec![]; 24],
        };
        for _ in 0..3 {
            let moves = EAGER.round(&holdings, &calibrated, &options).expect("feasible");
            apply(&mut options, &moves);
        }
        let cost = evaluate(&units, options, u64::MAX).cost;
        let optimum: f64 = (0..3)
            .map(|node| {
                let problem = Problem {
                    units: &units[8 * node..][..8],
                    budget: budgets[node],
                    widths: &[],
                    neighbours: &[],
                    seed: 0,
                };
                Exact.allocate(&problem).expect("feasible").cost
            })
            .sum();
        let uniform = evaluate(&units, vec![1; 24], u64::MAX).cost;
        assert!(optimum <= cost + 1e-9 && cost <= uniform + 1e-9);
        assert!(
            cost - optimum <= 0.4 * (uniform - optimum) + 1e-9,
            "{seed}: {cost} {optimum} {uniform}"
        );
        let whole = allocate(&units, budgets.iter().sum()).expect("feasible").cost;
        assert!(whole <= optimum + 1e-9, "who sees all does no worse");
    }
}

#[test]
fn companions_vouch_for_an_expert_that_has_not_been_asked_for_yet() {
    let companions = [vec![1], vec![0], vec![], vec![0, 1]];
    assert_eq!(vouched(&[0.0, 8.0, 3.0, 1.0], &companions, 0.25), [2.0, 6.0, 3.0, 1.75]);
    assert_eq!(vouched(&[0.0, 8.0, 3.0, 1.0], &companions, 0.0), [0.0, 8.0, 3.0, 1.0]);
    // Expert 0 is a companion of the busy expert 2 of another node: it gains the bits, not expert 1.
    let calibrated = [1.0; 3];
    let units = units(&calibrated);
    let nodes = [0, 0, 1].map(NodeId);
    let budgets = [6_000, 2_000];
    let companions = [vec![2], vec![], vec![]];
    let holdings = Holdings {
        units: &units,
        calibrated: &calibrated,
        nodes: &nodes,
        budgets: &budgets,
        companions: &companions,
    };
    let alone = EAGER.round(&holdings, &[1.0, 1.1, 100.0], &[0, 0, 0]).expect("feasible");
    let widest = |moves: &[agents::precision::BitsMove]| {
        moves.iter().max_by_key(|step| step.to).map(|step| step.unit)
    };
    assert_eq!(widest(&alone), Some(1));
    let vouched = FlockPrecision { vouching: 0.3, ..EAGER };
    let together = vouched.round(&holdings, &[1.0, 1.1, 100.0], &[0, 0, 0]).expect("feasible");
    assert_eq!(widest(&together), Some(0));
}

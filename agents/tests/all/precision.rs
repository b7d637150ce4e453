//! Budgets, the exact allocator against brute force, and sensitivity against its formula.

use agents::expert::{BitWidth, Expert, ExpertShape, reference};
use agents::precision::{
    AllocationError, Budget, ExpertSample, ExpertWeights, Unit, allocate, evaluate, output_energy,
    sensitivity, uniform, unseen_share,
};
use agents::rng::stream;
use rand::RngExt as _;

#[test]
fn budgets_are_read_and_become_bytes() {
    for (text, budget, bytes) in [
        ("90.6%", Budget::SavedPercent(90.6), 376),
        (" 50 % ", Budget::SavedPercent(50.0), 2_000),
        ("2.5bpw", Budget::BitsPerWeight(2.5), 312),
        ("32 bpw", Budget::BitsPerWeight(32.0), 4_000),
        ("700kB", Budget::Bytes(700_000), 700_000),
        ("3MB", Budget::Bytes(3_000_000), 3_000_000),
        ("3MiB", Budget::Bytes(3 << 20), 3 << 20),
        ("0.75 MB", Budget::Bytes(750_000), 750_000),
        ("1.5KiB", Budget::Bytes(1536), 1536),
        ("2GB", Budget::Bytes(2_000_000_000), 2_000_000_000),
        ("1GiB", Budget::Bytes(1 << 30), 1 << 30),
        ("12B", Budget::Bytes(12), 12),
    ] {
        let read = Budget::parse(text).expect("a budget");
        assert_eq!(read, budget, "{text}");
        assert_eq!(read.bytes(1_000), bytes, "{text}");
        assert_eq!(Budget::parse(&read.to_string()), Ok(read), "{text}");
    }
}

#[test]
fn a_text_that_is_no_budget_is_answered_with_what_is_allowed() {
    for text in [
        "", "3", "MB", "%", "-3MB", "1e3MB", "nan%", "inf%", "3mb", "3 TB", "..%", "1.2.3%", "x3MB",
    ] {
        let error = Budget::parse(text).expect_err(text).to_string();
        assert!(error.contains("`90.6%`") && error.contains(&format!("`{text}`")), "{error}");
    }
    for (text, allowed) in [
        ("0%", "above 0% and below 100%"),
        ("100%", "above 0% and below 100%"),
        ("0bpw", "go up to 32"),
        ("33bpw", "go up to 32"),
        ("0B", "from 1 to 2^53"),
        ("99999999999GB", "from 1 to 2^53"),
    ] {
        let error = Budget::parse(text).expect_err(text).to_string();
        assert!(error.contains(allowed), "{error}");
    }
}

/// The best (cost, bytes) over all allocations within the budget.
fn brute_force(units: &[Unit], budget: u64) -> Option<(f64, u64)> {
    let mut reachable = vec![(0.0, 0)];
    for unit in units {
        let step = |(cost, bytes): &(f64, u64)| -> Vec<(f64, u64)> {
            unit.costs.iter().zip(&unit.bytes).map(|(c, b)| (cost + c, bytes + b)).collect()
        };
        reachable = reachable.iter().flat_map(step).collect();
    }
    reachable
        .into_iter()
        .filter(|(_, bytes)| *bytes <= budget)
        .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
}

#[test]
fn the_allocator_agrees_with_brute_force_on_random_instances() {
    let mut rng = stream(3, "knapsack");
    let (mut infeasible, mut tight) = (0, 0);
    for instance in 0..600 {
        let count = rng.random_range(1..=6);
        let unit_bytes = [1, 3, 64][instance % 3];
        let units: Vec<Unit> = (0..count)
            .map(|_| {
                let options = rng.random_range(1..=4);
                // Small whole costs: sums are exact, ties and free options are frequent.
                let costs = (0..options).map(|_| f64::from(rng.random_range(0..6_u8))).collect();
                let bytes = (0..options).map(|_| unit_bytes * rng.random_range(0..9_u64)).collect();
                Unit { costs, bytes }
            })
            .collect();
        let budget = rng.random_range(0..=5 * unit_bytes * count);
        match (allocate(&units, budget), brute_force(&units, budget)) {
            (Ok(found), Some((cost, bytes))) => {
                assert!(found.exact);
                assert_eq!((found.cost, found.bytes), (cost, bytes), "{units:?} within {budget}");
                assert_eq!(
                    found,
                    evaluate(&units, found.options.clone(), budget).with_step(&found)
                );
                assert!(found.dual_bound <= cost && found.bytes <= budget);
                let least: f64 = units
                    .iter()
                    .map(|unit| unit.costs.iter().copied().fold(f64::MAX, f64::min))
                    .sum();
                assert!(found.dual_bound >= least - 1e-9, "λ = 0 gives at least the free optimum");
                tight += usize::from(cost > least);
            }
            (Err(AllocationError::Infeasible { smallest, .. }), None) => {
                let at_smallest = allocate(&units, smallest).expect("the named size is feasible");
                assert_eq!(at_smallest.bytes, smallest);
                assert!(smallest == 0 || allocate(&units, smallest - 1).is_err());
                infeasible += 1;
            }
            (found, brute) => panic!("{found:?} against {brute:?} for {units:?} within {budget}"),
        }
    }
    assert!(infeasible > 20 && tight > 100, "{infeasible} infeasible, {tight} tight");
}

trait WithStep {
    fn with_step(self, other: &Self) -> Self;
}

impl WithStep for agents::precision::Allocation {
    fn with_step(self, other: &Self) -> Self {
        Self { step_bytes: other.step_bytes, ..self }
    }
}

/// Experts of equal size at 2, 4 and 8 bits whose error falls by 16 for each halving of the step.
fn experts(count: u64, rng_name: &str) -> Vec<Unit> {
    let mut rng = stream(4, rng_name);
    (0..count)
        .map(|_| {
            let weight = rng.random::<f64>().powi(3);
            Unit {
                costs: [1.0, 1.0 / 16.0, 1.0 / 4096.0].map(|error| error * weight).to_vec(),
                bytes: [15_360, 27_648, 52_224].to_vec(),
            }
        })
        .collect()
}

#[test]
fn the_dual_bound_is_nearly_tight_for_many_experts() {
    let units = experts(128, "experts");
    let mut last = f64::INFINITY;
    for budget in (128 * 15_360..=128 * 52_224).step_by(300_000) {
        let found = allocate(&units, budget).expect("feasible");
        assert!(found.exact && found.step_bytes == 12_288);
        assert!(found.dual_bound <= found.cost && found.cost <= last);
        // The gap of a knapsack is at most one unit's largest cost difference.
        assert!(found.cost - found.dual_bound <= 1.0);
        assert!(found.dual_bound >= 0.95 * found.cost, "{} of {}", found.dual_bound, found.cost);
        last = found.cost;
        let control = uniform(&units, budget).expect("feasible");
        assert!(found.cost <= control.cost && control.bytes <= budget);
        assert!(control.options.iter().all(|option| *option == control.options[0]));
    }
}

#[test]
fn rounded_tables_stay_within_the_budget_and_near_the_bound() {
    // Sizes without a common divisor and of gigabytes: an exact table would have 10^11 states.
    let mut units = experts(64, "unequal");
    for (unit, salt) in units.iter_mut().zip(1_u64..) {
        unit.bytes = unit.bytes.iter().map(|bytes| bytes * (100_003 + salt)).collect();
    }
    let budget = 64 * 25_000 * 100_003;
    let found = allocate(&units, budget).expect("feasible");
    assert!(!found.exact && found.step_bytes > 1);
    assert!(found.bytes <= budget && found.dual_bound <= found.cost);
    assert!(found.cost <= found.dual_bound * 1.05, "{} of {}", found.dual_bound, found.cost);
    assert!(found.cost < uniform(&units, budget).expect("feasible").cost);
}

#[test]
fn ties_are_broken_the_same_way_every_time() {
    let unit = Unit { costs: vec![1.0, 0.0, 0.0], bytes: vec![1, 2, 2] };
    let found = allocate(&[unit.clone(), unit.clone(), unit], 5).expect("feasible");
    assert_eq!((found.options, found.bytes), (vec![1, 1, 0], 5));
    let free = Unit { costs: vec![0.0; 3], bytes: vec![4, 2, 9] };
    assert_eq!(allocate(&[free.clone(), free], 100).expect("feasible").options, [1, 1]);
    assert_eq!(allocate(&[], 0).expect("nothing to place").options, [0_usize; 0]);
}

#[test]
fn a_budget_that_is_too_small_names_the_smallest_that_is_not() {
    let units = experts(3, "small");
    let error = allocate(&units, 46_079).expect_err("three experts take 46 080 bytes");
    assert_eq!(
        error.to_string(),
        "a budget of 46079 bytes is too small: the smallest feasible size is 46080 bytes"
    );
    assert_eq!(uniform(&units, 46_079), Err(error));
    for broken in [
        Unit { costs: vec![], bytes: vec![] },
        Unit { costs: vec![1.0], bytes: vec![1, 2] },
        Unit { costs: vec![f64::NAN], bytes: vec![1] },
    ] {
        let units = [units[0].clone(), broken];
        assert_eq!(allocate(&units, 1 << 40), Err(AllocationError::Unit(1)));
    }
}

const SHAPE: ExpertShape = ExpertShape { width: 64, hidden: 32 };

fn random(purpose: &str, len: usize) -> Vec<f32> {
    let mut rng = stream(8, purpose);
    (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
}

#[test]
fn sensitivity_is_the_gated_error_over_the_layers_energy() {
    let part = |purpose| random(purpose, SHAPE.weights() / 3);
    let (gate, up, down) = (part("gate"), part("up"), part("down"));
    let weights = ExpertWeights { shape: SHAPE, gate: &gate, up: &up, down: &down };
    let (x, gates) = (random("x", 5 * 64), [0.5, 0.25, 0.0, 0.125, 1.0]);
    let layer_energy = output_energy(&random("y", 9 * 64));
    let sample = ExpertSample { x: &x, gates: &gates, layer_energy, unseen_share: 0.0 };
    let costs = sensitivity(&weights, &sample, &BitWidth::ALL, 32);
    // The error is that of what is served, with its 8-bit activations.
    let expert = |bits| Expert::quantize(SHAPE, &gate, &up, &down, bits, 32);
    let outputs = |bits| {
        let mut out = vec![0.0; x.len()];
        expert(bits).forward(&x, &mut out);
        out
    };
    let exact = reference::forward(&expert(BitWidth::Full), &x);
    for (bits, cost) in BitWidth::QUANTIZED.into_iter().zip(&costs) {
        let error: f64 = outputs(bits)
            .iter()
            .zip(&exact)
            .enumerate()
            .map(|(i, (a, b))| f64::from(gates[i / 64]).powi(2) * (f64::from(*a) - b).powi(2))
            .sum();
        // f32 sums lose 1e-6 of an output, 1e-4 of the error that 8 bits leave.
        assert!((cost - error / layer_energy).abs() < 1e-3 * cost, "{bits} bits");
    }
    assert!(costs.is_sorted_by(|narrow, wide| narrow > wide) && costs[4] == 0.0, "{costs:?}");
    // Twice the gate weight is four times the cost; a larger layer makes it smaller.
    let twice = gates.map(|g| 2.0 * g);
    let sample = ExpertSample { gates: &twice, layer_energy: 2.0 * layer_energy, ..sample };
    let other = sensitivity(&weights, &sample, &BitWidth::ALL, 32);
    assert!(costs.iter().zip(&other).all(|(a, b)| (2.0 * a - b).abs() <= 1e-12 * b));
}

#[test]
fn an_expert_without_tokens_falls_back_to_its_weight_error() {
    let part = |purpose| random(purpose, SHAPE.weights() / 3);
    let (gate, up, down) = (part("gate"), part("up"), part("down"));
    let weights = ExpertWeights { shape: SHAPE, gate: &gate, up: &up, down: &down };
    let unseen_share = unseen_share(384 * 8, 64);
    let sample = ExpertSample { x: &[], gates: &[], layer_energy: 3.0, unseen_share };
    let costs = sensitivity(&weights, &sample, &BitWidth::ALL, 32);
    assert!(costs.is_sorted_by(|narrow, wide| narrow > wide) && costs[4] == 0.0, "{costs:?}");
    // Uniform weights at 2 bits: steps of a third of the range leave 1/9 of the variance, or less.
    assert!(
        costs[0] / unseen_share < 3.0 / 9.0 && costs[0] / unseen_share > 3.0 / 36.0,
        "{costs:?}"
    );
    let zeros = vec![0.0; gate.len()];
    let weights = ExpertWeights { gate: &zeros, up: &zeros, down: &zeros, ..weights };
    assert_eq!(sensitivity(&weights, &sample, &BitWidth::ALL, 32), [0.0; 5]);
}

//! Allocators by name: against brute force, the exact optimum, the dual bound and each other.

use agents::precision::{
    Allocation, AllocationError, Allocator, AllocatorRegistry, Flock, LocalSearch, Problem, Unit,
    allocate, chosen_together, evaluate, uniform,
};
use agents::registry::NameTaken;
use agents::rng::stream;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use rand::RngExt as _;
use rayon::ThreadPoolBuilder;

const WIDTHS: [u32; 3] = [2, 4, 8];

fn problem(units: &[Unit], budget: u64) -> Problem<'_> {
    Problem { units, budget, widths: &WIDTHS, neighbours: &[], seed: 7 }
}

fn by_name(name: &str) -> Box<dyn Allocator> {
    AllocatorRegistry::standard().build(name).expect("a standard allocator")
}

/// Experts at 2, 4 and 8 bits whose error falls by about 16 for each halving of the step, each by a
/// factor of its own; few of them matter: weights u^`skew`.
fn experts(count: u64, skew: i32, purpose: &str) -> Vec<Unit> {
    let mut rng = stream(4, purpose);
    (0..count)
        .map(|_| {
            let weight = rng.random::<f64>().powi(skew);
            let four = weight / rng.random_range(6.0..30.0);
            let costs = vec![weight, four, four / rng.random_range(80.0..300.0)];
            Unit { costs, bytes: vec![15_360, 27_648, 52_224] }
        })
        .collect()
}

/// The least cost over all allocations within the budget.
fn brute_force(units: &[Unit], budget: u64) -> f64 {
    let mut reachable = vec![(0.0, 0_u64)];
    for unit in units {
        let step = |(cost, bytes): &(f64, u64)| -> Vec<(f64, u64)> {
            unit.costs.iter().zip(&unit.bytes).map(|(c, b)| (cost + c, bytes + b)).collect()
        };
        reachable = reachable.iter().flat_map(step).collect();
    }
    let within = reachable.into_iter().filter(|(_, bytes)| *bytes <= budget);
    within.map(|(cost, _)| cost).fold(f64::INFINITY, f64::min)
}

/// What holds of every allocation, whoever made it.
fn holds(units: &[Unit], budget: u64, name: &str, found: &Allocation) {
    assert!(found.bytes <= budget, "{name}: {} bytes of {budget}", found.bytes);
    let again = evaluate(units, found.options.clone(), budget);
    assert_eq!((found.cost, found.bytes), (again.cost, again.bytes), "{name}: {units:?}");
    assert!(found.dual_bound <= found.cost, "{name}: {} above {}", found.dual_bound, found.cost);
}

/// The largest cost that one step between two options of a unit can save.
fn largest_saving(units: &[Unit]) -> f64 {
    let most = |unit: &Unit| {
        let (low, high) = unit
            .costs
            .iter()
            .fold((f64::MAX, f64::MIN), |(low, high), cost| (low.min(*cost), high.max(*cost)));
        high - low
    };
    units.iter().map(most).fold(0.0, f64::max)
}

#[test]
fn on_small_instances_the_optimum_of_brute_force_is_never_beaten_and_mostly_found() {
    let mut rng = stream(3, "small instances");
    let mut found_by = [0; 4];
    for _ in 0..150 {
        let units: Vec<Unit> = (0..rng.random_range(1..=6))
            .map(|_| {
                let options = rng.random_range(1..=4);
                let costs = (0..options).map(|_| f64::from(rng.random_range(0..9_u8))).collect();
                let bytes = (0..options).map(|_| rng.random_range(1..9_u64)).collect();
                Unit { costs, bytes }
            })
            .collect();
        let smallest: u64 =
            units.iter().map(|unit| unit.bytes.iter().min().expect("an option")).sum();
        let budget = smallest + rng.random_range(0..=2 * units.len() as u64);
        let least = brute_force(&units, budget);
        for (place, name) in ["exact", "hull", "flock", "local_search"].into_iter().enumerate() {
            let found = by_name(name).allocate(&problem(&units, budget)).expect("feasible");
            holds(&units, budget, name, &found);
            assert!(found.cost >= least, "{name}: {units:?} within {budget}");
            assert!(found.dual_bound <= least, "{name}: {units:?} within {budget}");
            found_by[place] += usize::from(found.cost.total_cmp(&least).is_eq());
        }
    }
    let [exact, hull, flock, local_search] = found_by;
    assert_eq!(exact, 150);
    assert!(hull >= 75, "the hull found {hull} optima");
    assert!(flock >= 135 && local_search >= 135, "{flock} and {local_search}");
}

#[test]
fn the_hull_is_within_one_step_of_the_bound_and_exact_where_it_meets_it() {
    for (instance, skew) in [(0, 1), (1, 3), (2, 6)] {
        let units = experts(256, skew, &format!("hull {instance}"));
        for bytes_each in (15_500..=52_000).step_by(1_500) {
            let budget = 256 * bytes_each;
            let hull = by_name("hull").allocate(&problem(&units, budget)).expect("feasible");
            let exact = allocate(&units, budget).expect("feasible");
            assert!(exact.exact);
            holds(&units, budget, "hull", &hull);
            assert!(hull.cost - hull.dual_bound <= largest_saving(&units));
            let gap = hull.gap_to(&exact).expect("the optimum costs something");
            assert!((0.0..=0.02).contains(&gap), "{gap} at {bytes_each} bytes, skew {skew}");
        }
    }
}

#[test]
fn where_a_price_on_bytes_spends_the_budget_exactly_the_hull_is_the_optimum() {
    let units = experts(256, 3, "prices");
    for price in [1e-4, 1e-5, 1e-6, 1e-7, 1e-8] {
        let worth =
            |unit: &Unit, option: usize| unit.costs[option] + price * unit.bytes[option] as f64;
        let best = |unit: &Unit| {
            let least = (0..3).min_by(|a, b| worth(unit, *a).total_cmp(&worth(unit, *b)));
            unit.bytes[least.expect("three options")]
        };
        let budget = units.iter().map(best).sum();
        let hull = by_name("hull").allocate(&problem(&units, budget)).expect("feasible");
        assert_eq!(hull.options, allocate(&units, budget).expect("feasible").options);
        assert!(hull.cost - hull.dual_bound <= 1e-9 * hull.cost, "{price}: no gap is left");
    }
}

#[test]
fn the_swarm_beats_uniform_widths_and_lies_between_the_optimum_and_its_control() {
    let (mut flock_gaps, mut control_gaps) = (Vec::new(), Vec::new());
    for skew in [1, 3, 6] {
        let units = experts(256, skew, &format!("skew {skew}"));
        for bytes_each in [18_000, 27_648, 40_000] {
            let budget = 256 * bytes_each;
            let exact = allocate(&units, budget).expect("feasible");
            let control = uniform(&units, budget).expect("feasible");
            let flock = by_name("flock").allocate(&problem(&units, budget)).expect("feasible");
            holds(&units, budget, "flock", &flock);
            assert!(flock.cost >= exact.cost && flock.cost <= control.cost);
            let gap = flock.gap_to(&exact).expect("the optimum costs something");
            let uniform_gap = control.gap_to(&exact).expect("the optimum costs something");
            assert!(gap < 0.5 * uniform_gap, "{gap} against {uniform_gap}, skew {skew}");
            let search = by_name("local_search").allocate(&problem(&units, budget));
            let search = search.expect("feasible");
            holds(&units, budget, "local_search", &search);
            assert!(search.cost >= exact.cost && search.cost <= control.cost);
            flock_gaps.push(gap);
            control_gaps.push(search.gap_to(&exact).expect("the optimum costs something"));
        }
    }
    eprintln!("flock {flock_gaps:.5?}\nlocal search {control_gaps:.5?}");
}

#[test]
fn the_swarm_gives_the_same_bits_at_any_thread_count_and_others_for_another_seed() {
    let units = experts(64, 3, "threads");
    let budget = 64 * 24_000;
    let at = |threads: usize, seed: u64| {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        // Few evaluations: seeds still differ.
        let flock = Flock { evaluations_max: 48, ..Flock::default() };
        let problem = Problem { seed, ..problem(&units, budget) };
        pool.install(|| flock.allocate(&problem)).expect("feasible")
    };
    let one = at(1, 7);
    assert_eq!(one, at(4, 7));
    assert_eq!(one, at(3, 7));
    assert_ne!(one.options, at(1, 8).options);
}

#[test]
fn evaluations_are_bounded_and_more_of_them_never_cost_more() {
    let units = experts(64, 3, "evaluations");
    let budget = 64 * 24_000;
    let start = uniform(&units, budget).expect("feasible").cost;
    type Make = fn(usize) -> Box<dyn Allocator>;
    let makes: [Make; 2] = [
        |evaluations_max| Box::new(Flock { particles: 8, evaluations_max, ..Flock::default() }),
        |evaluations_max| Box::new(LocalSearch { evaluations_max }),
    ];
    for make in makes {
        let cost = |max| make(max).allocate(&problem(&units, budget)).expect("feasible").cost;
        let costs: Vec<f64> = [0, 1, 8, 16, 64, 512].map(cost).to_vec();
        assert!(costs[0] <= start, "the first start is the best uniform width");
        assert!(costs.windows(2).all(|pair| pair[1] <= pair[0]), "{costs:?}");
        assert!(costs[5] < costs[0], "{costs:?}");
    }
}

#[test]
fn neighbours_steer_the_swarm_and_must_exist() {
    let units = experts(32, 3, "neighbours");
    let budget = 32 * 24_000;
    let flock = Flock { evaluations_max: 48, ..Flock::default() };
    let with = |neighbours: &[Vec<usize>]| {
        flock.allocate(&Problem { neighbours, ..problem(&units, budget) })
    };
    let beside = with(&[]).expect("feasible");
    let far: Vec<Vec<usize>> = (0..32).map(|unit| vec![(unit + 16) % 32]).collect();
    assert_ne!(with(&far).expect("feasible").options, beside.options);
    let alone = vec![Vec::new(); 32];
    assert!(with(&alone).expect("feasible").cost >= allocate(&units, budget).expect("fits").cost);
    assert_eq!(with(&far[1..]), Err(AllocationError::Neighbours));
    assert_eq!(with(&vec![vec![32]; 32]), Err(AllocationError::Neighbours));
}

#[test]
fn those_chosen_together_are_neighbours_most_first() {
    #[rustfmt::skip]
    let pairs = [
        9, 2, 5, 2,
        2, 9, 0, 0,
        5, 0, 9, 0,
        2, 0, 0, 0,
    ];
    let found = chosen_together(&pairs, 4, 2);
    assert_eq!(found, [vec![2, 1], vec![0], vec![0], vec![0]]);
}

#[test]
fn uniform_widths_by_number_are_refused_over_the_budget_and_where_not_allowed() {
    let units = experts(4, 3, "uniform");
    let four = by_name("uniform:4").allocate(&problem(&units, 4 * 27_648)).expect("fits");
    assert_eq!((four.options.as_slice(), four.bytes), (&[1; 4][..], 4 * 27_648));
    let refused = by_name("uniform:8").allocate(&problem(&units, 4 * 27_648)).expect_err("over");
    assert_eq!(
        refused.to_string(),
        "all at 8 bits take 208896 bytes, above the 110592 of the budget: allow more bytes, or \
         choose fewer bits"
    );
    let refused = by_name("uniform:3").allocate(&problem(&units, 1 << 30)).expect_err("no width");
    assert_eq!(refused, AllocationError::NoSuchWidth { bits: 3 });
    let short = [units[0].clone(), Unit { costs: vec![1.0], bytes: vec![1] }];
    let refused = by_name("uniform:4").allocate(&problem(&short, 1 << 30));
    assert_eq!(refused, Err(AllocationError::Unit(1)));
}

#[test]
fn names_are_unique_and_unknown_ones_are_answered_with_all_there_are() {
    let mut registry = AllocatorRegistry::standard();
    let names: Vec<&str> = registry.names().collect();
    assert_eq!(names, ["exact", "flock", "hull", "local_search", "uniform:N"]);
    for name in ["exakt", "", "hull:3", "uniform", "uniform:", "uniform:x", "uniform:-4", ":4"] {
        let refused = registry.build(name).err().expect(name).to_string();
        assert!(refused.contains(&format!("\"{name}\"")) && refused.contains("hull"), "{refused}");
    }
    let own = registry.insert("cheapest:N", "own", Box::new(|_| None));
    assert_eq!(own, Ok(()));
    let taken = registry.insert("hull", "own", Box::new(|_| None));
    assert_eq!(taken, Err(NameTaken { kind: "an allocator", name: "hull".into() }));
}

#[test]
fn a_gap_is_relative_and_absent_where_the_optimum_is_free() {
    let unit = Unit { costs: vec![2.0, 0.0, 3.0], bytes: vec![1, 2, 1] };
    let at = |option| evaluate(std::slice::from_ref(&unit), vec![option], 2);
    assert_eq!(at(2).gap_to(&at(0)), Some(0.5));
    assert_eq!(at(1).gap_to(&at(1)), Some(0.0));
    assert_eq!(at(0).gap_to(&at(1)), None);
}

/// Units with zero, equal and negative costs, one option, equal sizes, and sizes from bytes to
/// petabytes.
fn any_units() -> impl Strategy<Value = Vec<Unit>> {
    let cost = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0_f64, 1e-12..1e12_f64, -1.0..1.0_f64];
    let bytes = prop_oneof![Just(0_u64), Just(64), 1..100_u64, (1_u64 << 40)..(1 << 52)];
    let unit = proptest::collection::vec((cost, bytes), 1..5)
        .prop_map(|options| options.into_iter().unzip())
        .prop_map(|(costs, bytes)| Unit { costs, bytes });
    proptest::collection::vec(unit, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_allocator_keeps_the_budget_and_the_bound_whatever_the_units(
        units in any_units(),
        share in 0.0..1.2_f64,
    ) {
        let sum = |pick: fn(&Unit) -> u64| units.iter().map(pick).sum::<u64>();
        let smallest = sum(|unit| *unit.bytes.iter().min().expect("an option"));
        let largest = sum(|unit| *unit.bytes.iter().max().expect("an option"));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
        let budget = smallest + ((largest - smallest) as f64 * share) as u64;
        let exact = allocate(&units, budget).expect("feasible");
        let magnitude: f64 = units.iter().flat_map(|unit| &unit.costs).map(|cost| cost.abs()).sum();
        for name in ["exact", "hull", "flock", "local_search"] {
            let allocator: Box<dyn Allocator> = match name {
                "flock" => Box::new(Flock { evaluations_max: 240, ..Flock::default() }),
                "local_search" => Box::new(LocalSearch { evaluations_max: 240 }),
                _ => by_name(name),
            };
            let found = allocator.allocate(&problem(&units, budget)).expect("feasible");
            holds(&units, budget, name, &found);
            // Sums of the same costs in another order of magnitude round differently.
            prop_assert!(!exact.exact || found.cost >= exact.cost - 1e-9 * magnitude, "{name}");
            prop_assert!(found.dual_bound <= exact.cost + 1e-9 * magnitude, "{name}");
            if smallest > 0 {
                let refused = allocator.allocate(&problem(&units, smallest - 1));
                prop_assert_eq!(refused, Err(AllocationError::Infeasible { budget: smallest - 1, smallest }));
            }
            if let Ok(control) = uniform(&units, budget) && name != "hull" && exact.exact {
                prop_assert!(found.cost <= control.cost + 1e-9 * magnitude, "{name}");
            }
        }
    }
}

//! Re-allocation under routing that drifts: what it must keep, and what it is worth.

use agents::expert::BitWidth;
use agents::ids::LayerId;
use agents::precision::{
    Allocator as _, BitsMove, Follow, FollowSettings, FollowedUnits, Hull, Problem,
    ReallocateError, ReallocateLimits, RunningLoads, Unit, WidthPolicy, allocate, reallocate,
    reweigh,
};
use agents::rng::stream;
use rand::RngExt as _;

const EXPERTS: usize = 64;
const TOKENS: usize = 512;
const SIZES: [u64; 3] = [15_360, 27_648, 52_224];

/// What loading a byte must save: a change of width, some 43 kB, that of 17 pairs in the calibration.
const PRICE: f64 = 4e-4;

/// Loads of a batch: each pair draws an expert from 1/(1 + rank), ranks turned on by `turn` places.
fn batch(turn: usize, rng: &mut impl rand::Rng) -> Vec<u32> {
    let weights: Vec<f64> =
        (0..EXPERTS).map(|expert| 1.0 / (1 + (expert + EXPERTS - turn) % EXPERTS) as f64).collect();
    let sum: f64 = weights.iter().sum();
    let mut loads = vec![0; EXPERTS];
    for _ in 0..TOKENS {
        let mut at = rng.random::<f64>() * sum;
        let expert = weights.iter().position(|weight| {
            at -= weight;
            at < 0.0
        });
        loads[expert.unwrap_or(EXPERTS - 1)] += 1;
    }
    loads
}

/// Costs that a calibration with these loads measures: in proportion to them.
fn units(loads: &[f64]) -> Vec<Unit> {
    let unit = |load: &f64| Unit {
        costs: [1.0, 1.0 / 16.0, 1.0 / 4096.0].map(|error| error * (load + 1.0)).to_vec(),
        bytes: SIZES.to_vec(),
    };
    loads.iter().map(unit).collect()
}

fn hull(units: &[Unit], budget: u64) -> Vec<usize> {
    let problem = Problem { units, budget, widths: &[], neighbours: &[], seed: 0 };
    Hull.allocate(&problem).expect("feasible").options
}

fn cost(units: &[Unit], options: &[usize]) -> f64 {
    units.iter().zip(options).map(|(unit, option)| unit.costs[*option]).sum()
}

struct Trace {
    /// Summed over the batches: cost of the calibration's options, of the moved ones, of those that
    /// the hull would choose anew for the same running loads, and of the optimum for the true loads.
    fixed: f64,
    moved: f64,
    free: f64,
    optimum: f64,
    bytes_moved: u64,
    bytes_moved_free: u64,
    moves_by_batch: Vec<usize>,
}

/// Plays 120 batches whose hot experts turn on by one every `turn_every` batches.
fn play(turn_every: usize, cost_per_byte: f64, bytes_moved_max: u64) -> Trace {
    let budget = EXPERTS as u64 * 24_000;
    let mut rng = stream(5, "drifting loads");
    let mut calibrated = vec![0.0; EXPERTS];
    for _ in 0..8 {
        let loads = batch(0, &mut rng);
        calibrated.iter_mut().zip(loads).for_each(|(sum, load)| *sum += f64::from(load));
    }
    let measured = units(&calibrated);
    let fixed = hull(&measured, budget);
    let (mut options, mut free) = (fixed.clone(), fixed.clone());
    let mut running = RunningLoads::new(EXPERTS, 0.2);
    let mut trace = Trace {
        fixed: 0.0,
        moved: 0.0,
        free: 0.0,
        optimum: 0.0,
        bytes_moved: 0,
        bytes_moved_free: 0,
        moves_by_batch: Vec::new(),
    };
    for step in 0..120 {
        let turn = step / turn_every;
        running.absorb(&batch(turn, &mut rng));
        let now = reweigh(&measured, &calibrated, running.loads());
        let limits = ReallocateLimits { budget, bytes_moved_max, cost_per_byte };
        let found = reallocate(&now, &options, limits).expect("it fits together");
        check(&now, &options, limits, &found);
        options = found.options;
        trace.bytes_moved += found.bytes_moved;
        trace.moves_by_batch.push(found.moves.len());
        let anew = hull(&now, budget);
        let changed = anew.iter().zip(&free).filter(|(new, old)| new != old);
        trace.bytes_moved_free += changed.map(|(new, _)| SIZES[*new]).sum::<u64>();
        free = anew;
        // The costs that the loads to come have on average.
        let expected: Vec<f64> = (0..EXPERTS)
            .map(|expert| 1.0 / (1 + (expert + EXPERTS - turn % EXPERTS) % EXPERTS) as f64)
            .collect();
        let truth = reweigh(&measured, &calibrated, &expected);
        trace.fixed += cost(&truth, &fixed);
        trace.moved += cost(&truth, &options);
        trace.free += cost(&truth, &free);
        trace.optimum += allocate(&truth, budget).expect("feasible").cost;
    }
    trace
}

/// What is guaranteed of every re-allocation.
fn check(
    units: &[Unit],
    before: &[usize],
    limits: ReallocateLimits,
    found: &agents::precision::Reallocation,
) {
    let bytes =
        |options: &[usize]| options.iter().zip(units).map(|(o, unit)| unit.bytes[*o]).sum::<u64>();
    let mut options = before.to_vec();
    let mut moved = 0;
    for BitsMove { unit, from, to, bytes: loaded } in &found.moves {
        assert_eq!(options[*unit], *from);
        assert_eq!(units[*unit].bytes[*to], *loaded);
        options[*unit] = *to;
        moved += loaded;
        assert!(bytes(&options) <= limits.budget, "the budget holds after every move");
    }
    assert_eq!((&options, moved), (&found.options, found.bytes_moved));
    assert!(moved <= limits.bytes_moved_max);
    let paid = found.cost_after + limits.cost_per_byte * moved as f64;
    assert!(paid <= found.cost_before * (1.0 + 1e-12), "{paid} for {}", found.cost_before);
    assert!(found.dual_bound <= found.cost_after && found.dual_bound <= found.cost_hull);
}

#[test]
fn following_a_drift_costs_less_than_staying_and_moves_less_than_solving_anew() {
    let bytes_moved_max = 6 * SIZES[2];
    let trace = play(4, PRICE, bytes_moved_max);
    let Trace { fixed, moved, free, optimum, bytes_moved, bytes_moved_free, .. } = trace;
    eprintln!(
        "fixed {:.3}, moved {:.3}, anew {:.3} times the optimum; {bytes_moved} bytes against {bytes_moved_free}",
        fixed / optimum,
        moved / optimum,
        free / optimum
    );
    assert!(moved < 0.85 * fixed, "{moved} against {fixed}");
    assert!(moved >= optimum && free >= optimum);
    assert!(bytes_moved < bytes_moved_free / 5, "{bytes_moved} against {bytes_moved_free}");
}

#[test]
fn noise_alone_moves_next_to_nothing_and_a_high_price_nothing_at_all() {
    let still = play(1_000, PRICE, u64::MAX);
    let late: usize = still.moves_by_batch[20..].iter().sum();
    assert!(still.bytes_moved < still.bytes_moved_free / 15, "{late} late moves");
    assert!(still.moved <= still.free, "chasing noise costs more than it brings");
    let dear = play(4, 1.0, u64::MAX);
    assert_eq!(dear.bytes_moved, 0);
    assert_eq!(dear.moved.to_bits(), dear.fixed.to_bits());
    let barred = play(4, 0.0, 0);
    assert_eq!(barred.bytes_moved, 0);
}

#[test]
fn where_moving_is_free_the_hull_allocation_is_reached() {
    let mut rng = stream(5, "free moves");
    for _ in 0..20 {
        let loads: Vec<f64> = (0..EXPERTS).map(|_| 100.0 * rng.random::<f64>().powi(3)).collect();
        let units = units(&loads);
        let budget = EXPERTS as u64 * rng.random_range(16_000..50_000);
        let limits = ReallocateLimits { budget, bytes_moved_max: u64::MAX, cost_per_byte: 0.0 };
        let found = reallocate(&units, &vec![0; EXPERTS], limits).expect("feasible");
        assert_eq!(found.options, hull(&units, budget));
        assert_eq!(found.cost_after.to_bits(), found.cost_hull.to_bits());
    }
}

#[test]
fn costs_follow_the_share_of_the_loads_whatever_their_unit() {
    let calibrated = [30.0, 10.0, 0.0, 20.0];
    let measured = units(&calibrated);
    let same = reweigh(&measured, &calibrated, &calibrated.map(|load| 0.01 * load));
    for (a, b) in same.iter().zip(&measured) {
        assert!(a.costs.iter().zip(&b.costs).all(|(a, b)| (a - b).abs() <= 1e-12 * b));
    }
    // (n + 1)/(N + E) as Laplace has it: from 31/64 to 1/64, and from 1/64 to 31/64.
    let swapped = reweigh(&measured, &calibrated, &[0.0, 10.0, 30.0, 20.0]);
    for (unit, factor) in [(0, 1.0 / 31.0), (1, 1.0), (2, 31.0), (3, 1.0)] {
        let (found, before) = (swapped[unit].costs[0], measured[unit].costs[0]);
        assert!((found / before - factor).abs() < 1e-12, "{found} from {before}");
    }
    assert_eq!(reweigh(&measured, &[0.0; 4], &calibrated), measured, "nothing was calibrated");
    assert_eq!(reweigh(&measured, &calibrated, &[0.0; 4]), measured, "nothing runs");
}

#[test]
fn running_loads_start_at_the_first_batch_and_forget_by_steps() {
    let mut running = RunningLoads::new(2, 0.25);
    running.absorb(&[8, 0]);
    assert_eq!(running.loads(), [8.0, 0.0]);
    running.absorb(&[0, 4]);
    assert_eq!(running.loads(), [6.0, 1.0]);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let units = units(&[1.0, 2.0]);
    let limits = ReallocateLimits { budget: 60_000, bytes_moved_max: 9, cost_per_byte: 0.0 };
    let refused = |options: &[usize], limits| reallocate(&units, options, limits).expect_err("bad");
    assert_eq!(refused(&[0], limits), ReallocateError::Options);
    assert_eq!(refused(&[0, 3], limits), ReallocateError::Options);
    let over = ReallocateError::OverBudget { bytes: 104_448, budget: 60_000 };
    assert_eq!(refused(&[2, 2], limits), over);
    for cost_per_byte in [-1.0, f64::INFINITY] {
        let refused = refused(&[0, 0], ReallocateLimits { cost_per_byte, ..limits });
        assert_eq!(refused, ReallocateError::CostPerByte(cost_per_byte));
    }
    let small = refused(&[0, 0], ReallocateLimits { budget: 30_000, ..limits });
    assert!(small.to_string().contains("smallest feasible size is 30720"), "{small}");
}

#[test]
fn widths_are_decided_after_the_last_layer_of_every_nth_step_as_the_rule_says() {
    let mut rng = stream(5, "followed loads");
    let calibrated: Vec<f64> = (0..2 * EXPERTS).map(|_| 90.0 * rng.random::<f64>()).collect();
    let measured: Vec<Unit> = calibrated.chunks(EXPERTS).flat_map(units).collect();
    let budget = 2 * EXPERTS as u64 * 24_000;
    let start = hull(&measured, budget);
    let limits = ReallocateLimits { budget, bytes_moved_max: u64::MAX, cost_per_byte: 0.0 };
    let settings = FollowSettings { every_steps: 3, load_step: 0.5, limits };
    let of = FollowedUnits {
        units: measured.clone(),
        widths: vec![BitWidth::Two, BitWidth::Four, BitWidth::Eight],
        calibrated: calibrated.clone(),
        experts: EXPERTS,
        options: start.clone(),
    };
    let mut follow =
        Follow::new(settings, of.clone(), WidthPolicy::Exact).expect("it fits together");
    let mut running = [RunningLoads::new(EXPERTS, 0.5), RunningLoads::new(EXPERTS, 0.5)];
    let mut options = start.clone();
    for step in 1..=9 {
        for layer in 0..2 {
            let loads = batch(7 * layer + step, &mut rng);
            running[layer].absorb(&loads);
            let decision = follow.absorb(LayerId::from_index(layer), &loads);
            assert_eq!(decision.is_some(), layer == 1 && step % 3 == 0, "{step} {layer}");
            let Some(decision) = decision else { continue };
            let of_layer = |at: usize| {
                let part = EXPERTS * at..EXPERTS * (at + 1);
                reweigh(&measured[part.clone()], &calibrated[part], running[at].loads())
            };
            let now = [of_layer(0), of_layer(1)].concat();
            let expected = reallocate(&now, &options, limits).expect("it fits together");
            assert_eq!(decision.reallocation, expected);
            assert!(!decision.moves.is_empty() && expected.cost_after < cost(&now, &start));
            assert!((decision.cost_kept - cost(&now, &start)).abs() < 1e-9);
            for (moved, step) in decision.moves.iter().zip(&expected.moves) {
                assert_eq!(moved.layer.index() * EXPERTS + moved.expert.index(), step.unit);
                assert_eq!(moved.to, of.widths[step.to]);
                assert_eq!(moved.bytes, SIZES[step.to]);
            }
            assert!(decision.bytes <= budget);
            options = expected.options;
        }
    }
    let over = FollowedUnits { options: vec![2; 2 * EXPERTS], ..of };
    assert!(matches!(
        Follow::new(settings, over, WidthPolicy::Exact),
        Err(ReallocateError::OverBudget { .. })
    ));
}

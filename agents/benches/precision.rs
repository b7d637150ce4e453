//! Allocators on 256 experts at 2, 4 and 8 bits, few of which matter. Run with
//! `cargo bench -p agents --bench precision`.

use agents::precision::{AllocatorRegistry, Problem, ReallocateLimits, Unit, evaluate, reallocate};
use agents::rng::stream;
use divan::Bencher;
use rand::RngExt as _;

const EXPERTS: u64 = 256;
const BUDGET: u64 = EXPERTS * 24_000;

fn main() {
    divan::main();
}

fn units(purpose: &str) -> Vec<Unit> {
    let mut rng = stream(4, purpose);
    (0..EXPERTS)
        .map(|_| {
            let weight = rng.random::<f64>().powi(3);
            let four = weight / rng.random_range(6.0..30.0);
            let costs = vec![weight, four, four / rng.random_range(80.0..300.0)];
            Unit { costs, bytes: vec![15_360, 27_648, 52_224] }
        })
        .collect()
}

/// The flock and its control evaluate 2400 vectors.
#[divan::bench(args = ["exact", "hull", "flock", "local_search", "uniform:2"])]
fn allocator(bencher: Bencher, name: &str) {
    let units = units("bench experts");
    let allocator = AllocatorRegistry::standard().build(name).expect("a standard allocator");
    let widths = [2, 4, 8];
    let problem =
        Problem { units: &units, budget: BUDGET, widths: &widths, neighbours: &[], seed: 7 };
    bencher.bench_local(|| allocator.allocate(&problem).expect("feasible"));
}

/// The certificate alone: cost, bytes and dual bound of given options.
#[divan::bench]
fn certificate(bencher: Bencher) {
    let units = units("bench experts");
    bencher.bench_local(|| evaluate(&units, vec![0; units.len()], BUDGET));
}

/// From the hull allocation of other costs, at most 16 large experts moved.
#[divan::bench]
fn reallocation(bencher: Bencher) {
    let (before, units) = (units("bench experts before"), units("bench experts"));
    let hull = AllocatorRegistry::standard().build("hull").expect("a standard allocator");
    let problem = Problem { units: &before, budget: BUDGET, widths: &[], neighbours: &[], seed: 7 };
    let current = hull.allocate(&problem).expect("feasible").options;
    let limits =
        ReallocateLimits { budget: BUDGET, bytes_moved_max: 16 * 52_224, cost_per_byte: 1e-6 };
    bencher.bench_local(|| reallocate(&units, &current, limits).expect("it fits together"));
}

//! Replica dispatch and placement on log-normal expert loads: 256 experts, the hottest about six
//! times the mean. Run with `cargo bench -p agents --bench placement`.
//!
//! `fresh` dispatches the loads that the copies were placed for, `stale` others of the same source:
//! each load times a log-normal factor with σ = 0.5.

use agents::placement::{
    Dispatch, EplbShape, Placement, PlanSettings, Previous, certify_dispatch, dispatch,
    dispatch_tokens, eplb, plan,
};
use agents::rng::stream;
use divan::Bencher;
use rand::RngExt as _;

const EXPERTS: usize = 256;

/// (replicas, nodes).
const SHAPES: [(usize, usize); 3] = [(288, 32), (320, 64), (288, 144)];

fn main() {
    divan::main();
}

struct Case {
    placement: Placement,
    fresh: Vec<f64>,
    stale: Vec<f64>,
}

impl Case {
    fn new((replicas, nodes): (usize, usize)) -> Self {
        let mut rng = stream(11, "bench loads");
        let mut log_normal = |sigma: f64| {
            let (u, v): (f64, f64) = (rng.random(), rng.random());
            let normal = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
            (sigma * normal).exp()
        };
        let fresh: Vec<f64> = (0..EXPERTS).map(|_| (1000.0 * log_normal(0.7)).round()).collect();
        let stale = fresh.iter().map(|load| (load * log_normal(0.5)).round()).collect();
        let shape = EplbShape { replicas, groups: 1, servers: 2, gpus: nodes };
        let placement = eplb(&fresh, shape).expect("replicas divide over nodes").placement();
        Self { placement, fresh, stale }
    }

    fn solve(&self, loads: &[f64], warm: Option<&Dispatch>) -> Dispatch {
        dispatch(&self.placement, loads, warm).expect("loads are finite")
    }
}

#[divan::bench(args = SHAPES)]
fn dispatch_fresh(bencher: Bencher, shape: (usize, usize)) {
    let case = Case::new(shape);
    bencher.bench_local(|| case.solve(&case.fresh, None));
}

#[divan::bench(args = SHAPES)]
fn dispatch_stale(bencher: Bencher, shape: (usize, usize)) {
    let case = Case::new(shape);
    bencher.bench_local(|| case.solve(&case.stale, None));
}

#[divan::bench(args = SHAPES)]
fn dispatch_stale_warm(bencher: Bencher, shape: (usize, usize)) {
    let case = Case::new(shape);
    let warm = case.solve(&case.fresh, None);
    bencher.bench_local(|| case.solve(&case.stale, Some(&warm)));
}

#[divan::bench(args = SHAPES)]
fn dispatch_tokens_stale(bencher: Bencher, shape: (usize, usize)) {
    let case = Case::new(shape);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounded, below 1e6"
    )]
    let tokens: Vec<u32> = case.stale.iter().map(|load| *load as u32).collect();
    bencher.bench_local(|| dispatch_tokens(&case.placement, &tokens));
}

#[divan::bench(args = SHAPES)]
fn certificate(bencher: Bencher, shape: (usize, usize)) {
    let case = Case::new(shape);
    let split = case.solve(&case.stale, None);
    bencher.bench_local(|| certify_dispatch(&case.placement, &case.stale, &split));
}

#[divan::bench(args = SHAPES)]
fn eplb_baseline(bencher: Bencher, (replicas, nodes): (usize, usize)) {
    let case = Case::new((replicas, nodes));
    let shape = EplbShape { replicas, groups: 1, servers: 2, gpus: nodes };
    bencher.bench_local(|| eplb(&case.fresh, shape));
}

/// From nothing.
#[divan::bench(args = SHAPES)]
fn plan_fresh(bencher: Bencher, (replicas, nodes): (usize, usize)) {
    let case = Case::new((replicas, nodes));
    let slots = vec![replicas / nodes; nodes];
    let settings = PlanSettings { slots: &slots, evaluations_max: 500, previous: None };
    bencher.bench_local(|| plan(&case.fresh, &settings));
}

/// New loads on the old copies, a moved shard worth a thousandth of the mean node load.
#[divan::bench(args = SHAPES)]
fn plan_from_previous(bencher: Bencher, (replicas, nodes): (usize, usize)) {
    let case = Case::new((replicas, nodes));
    let slots = vec![replicas / nodes; nodes];
    let mean = case.stale.iter().sum::<f64>() / nodes as f64;
    let previous = Previous {
        placement: &case.placement,
        shard_bytes: &[1; EXPERTS],
        load_per_byte: 1e-3 * mean,
    };
    let settings = PlanSettings { slots: &slots, evaluations_max: 500, previous: Some(previous) };
    bencher.bench_local(|| plan(&case.stale, &settings));
}

//! Routers and the certificate on skewed synthetic scores: `sigmoid(N(0,1) + 0.5·N_e)`, quota at
//! the fair share. Run with `cargo bench -p agents --bench game`.

use agents::game::{
    CongestionCost, CostSettings, Equilibrium, Game, Router, Scores, TopK, certify,
};
use agents::rng::stream;
use divan::Bencher;
use rand::RngExt as _;

/// (T, E, k).
const SHAPES: [(usize, usize, usize); 2] = [(4096, 64, 8), (8192, 256, 8)];

fn main() {
    divan::main();
}

struct Case {
    values: Vec<f32>,
    experts: usize,
    top_k: usize,
    cost: Box<dyn CongestionCost>,
}

impl Case {
    fn new((tokens, experts, top_k): (usize, usize, usize)) -> Self {
        let mut rng = stream(7, "bench scores");
        let mut normal = || {
            let (u, v): (f64, f64) = (rng.random(), rng.random());
            (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
        };
        let lean: Vec<f64> = (0..experts).map(|_| 0.5 * normal()).collect();
        let logits = (0..tokens * experts).map(|at| normal() + lean[at % experts]);
        #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
        let values = logits.map(|logit| (1.0 / (1.0 + (-logit).exp())) as f32).collect();
        let cost = CostSettings::Quota { capacity_factor: 1.0 }.build(tokens, experts, top_k);
        Self { values, experts, top_k, cost }
    }

    fn game(&self) -> Game<'_> {
        let scores = Scores::new(&self.values, self.experts).expect("finite scores");
        Game { scores, top_k: self.top_k, cost: self.cost.as_ref() }
    }
}

#[divan::bench(args = SHAPES)]
fn top_k(bencher: Bencher, shape: (usize, usize, usize)) {
    let case = Case::new(shape);
    bencher.bench_local(|| TopK.route(&case.game(), None));
}

#[divan::bench(args = SHAPES)]
fn equilibrium_cold(bencher: Bencher, shape: (usize, usize, usize)) {
    let case = Case::new(shape);
    bencher.bench_local(|| Equilibrium::default().route(&case.game(), None));
}

#[divan::bench(args = SHAPES)]
fn equilibrium_warm(bencher: Bencher, shape: (usize, usize, usize)) {
    let case = Case::new(shape);
    let prices = Equilibrium::default().route(&case.game(), None).prices;
    bencher.bench_local(|| Equilibrium::default().route(&case.game(), Some(&prices)));
}

#[divan::bench(args = SHAPES)]
fn certificate(bencher: Bencher, shape: (usize, usize, usize)) {
    let case = Case::new(shape);
    let play = Equilibrium::default().route(&case.game(), None);
    bencher.bench_local(|| certify(&case.game(), &play.choices, &play.prices));
}

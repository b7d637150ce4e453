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
    /// Batch number `batch` of a source: the experts' leanings are the same in all of them.
    fn new((tokens, experts, top_k): (usize, usize, usize), batch: u64) -> Self {
        let normals = |seed, name| {
            let mut rng = stream(seed, name);
            std::iter::repeat_with(move || {
                let (u, v): (f64, f64) = (rng.random(), rng.random());
                (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
            })
        };
        let lean: Vec<f64> = normals(7, "bench leanings").take(experts).collect();
        let logits = normals(batch, "bench scores").take(tokens * experts).enumerate();
        let logits = logits.map(|(at, normal)| normal + 0.5 * lean[at % experts]);
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
    let case = Case::new(shape, 1);
    bencher.bench_local(|| TopK.route(&case.game(), None));
}

#[divan::bench(args = SHAPES)]
fn equilibrium_cold(bencher: Bencher, shape: (usize, usize, usize)) {
    let case = Case::new(shape, 1);
    bencher.bench_local(|| Equilibrium::default().route(&case.game(), None));
}

/// Fresh tokens of the same source, with the prices of the batch before.
#[divan::bench(args = SHAPES)]
fn equilibrium_warm(bencher: Bencher, shape: (usize, usize, usize)) {
    let prices = Equilibrium::default().route(&Case::new(shape, 0).game(), None).prices;
    let case = Case::new(shape, 1);
    bencher.bench_local(|| Equilibrium::default().route(&case.game(), Some(&prices)));
}

#[divan::bench(args = [(64, 64, 8), (64, 256, 8), (256, 64, 8), (256, 256, 8)])]
fn equilibrium_small(bencher: Bencher, shape: (usize, usize, usize)) {
    let case = Case::new(shape, 1);
    bencher.bench_local(|| Equilibrium::default().route(&case.game(), None));
}

/// Other costs than the tight quota, cold.
#[divan::bench(args = ["quota 1.25", "linear 0.3"])]
fn equilibrium_costs(bencher: Bencher, cost: &str) {
    let mut case = Case::new(SHAPES[0], 1);
    let settings = match cost {
        "quota 1.25" => CostSettings::Quota { capacity_factor: 1.25 },
        _ => CostSettings::Linear { price_per_fair_share: 0.3 },
    };
    case.cost = settings.build(SHAPES[0].0, SHAPES[0].1, SHAPES[0].2);
    bencher.bench_local(|| Equilibrium::default().route(&case.game(), None));
}

/// Cold, by tokens: the time per token is the throughput's inverse.
#[divan::bench(args = [4096, 32_768, 262_144, 1_048_576], sample_count = 15)]
fn equilibrium_growth(bencher: Bencher, tokens: usize) {
    let case = Case::new((tokens, 64, 8), 1);
    let bencher = bencher.counter(divan::counter::ItemsCount::new(tokens));
    bencher.bench_local(|| Equilibrium::default().route(&case.game(), None));
}

#[divan::bench(args = SHAPES)]
fn certificate(bencher: Bencher, shape: (usize, usize, usize)) {
    let case = Case::new(shape, 1);
    let play = Equilibrium::default().route(&case.game(), None);
    bencher.bench_local(|| certify(&case.game(), &play.choices, &play.prices));
}

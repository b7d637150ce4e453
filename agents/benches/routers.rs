//! Every standard router on skewed synthetic scores, `sigmoid(N(0,1) + 0.5·N_e)`, quota at the
//! fair share: first a table of what each reaches, then times. Run with
//! `cargo bench -p agents --bench routers`.
#![allow(clippy::print_stdout, reason = "the table is what this program is for")]

use agents::game::{CongestionCost, CostSettings, Game, RouterRegistry, Scores, certify};
use agents::rng::stream;
use divan::Bencher;
use rand::RngExt as _;

/// T, E, k.
const SHAPE: (usize, usize, usize) = (4096, 64, 8);

fn main() {
    let case = Case::new();
    let registry = RouterRegistry::standard();
    println!(
        "router max_over_mean relative_gap epsilon score_loss dropped extra passes iterations"
    );
    for name in registry.names() {
        let play = registry.get(name).expect("listed").route(&case.game(), None);
        let certificate = certify(&case.game(), &play.choices, &play.prices);
        println!(
            "{name} {:.4} {:.3e} {:.3e} {:.4} {} {} {} {}",
            certificate.max_over_mean,
            certificate.relative_gap,
            certificate.epsilon_nash,
            certificate.score_loss,
            certificate.dropped,
            certificate.extra,
            play.passes,
            play.iterations
        );
    }
    divan::main();
}

struct Case {
    values: Vec<f32>,
    cost: Box<dyn CongestionCost>,
}

impl Case {
    fn new() -> Self {
        let (tokens, experts, top_k) = SHAPE;
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
        Self { values, cost }
    }

    fn game(&self) -> Game<'_> {
        let scores = Scores::new(&self.values, SHAPE.1).expect("finite scores");
        Game { scores, top_k: SHAPE.2, cost: self.cost.as_ref() }
    }
}

#[divan::bench(args = names(), sample_count = 15, sample_size = 1)]
fn cold(bencher: Bencher, name: &str) {
    let case = Case::new();
    let router = RouterRegistry::standard().get(name).expect("listed");
    bencher.bench_local(|| router.route(&case.game(), None));
}

#[divan::bench(args = names(), sample_count = 15, sample_size = 1)]
fn warm(bencher: Bencher, name: &str) {
    let case = Case::new();
    let router = RouterRegistry::standard().get(name).expect("listed");
    let prices = router.route(&case.game(), None).prices;
    bencher.bench_local(|| router.route(&case.game(), Some(&prices)));
}

fn names() -> Vec<String> {
    RouterRegistry::standard().names().map(str::to_owned).collect()
}

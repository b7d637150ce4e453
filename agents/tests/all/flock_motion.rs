//! Router rows in motion: geometry, the guard, balance, and the controls against their formulas.

use agents::flock::motion::{
    AuxiliaryLoss, Boids, KMeans, LayerMotion, MotionRegistry, MotionSettings, RowRule, Seen,
    SphereConsensus,
};
use agents::game::{Choices, CostSettings, Game, Router as _, Scores, TopK};
use agents::rng::stream;
use agents::routing::Routing;
use nalgebra::DMatrix;
use rand_distr::{Distribution as _, StandardNormal};

const EXPERTS: usize = 6;
const WIDTH: usize = 5;
const TOKENS: usize = 240;
const TOP_K: usize = 2;
const ROUTING: Routing = Routing::softmax(false);

fn normal(seed: u64, purpose: &str, count: usize) -> Vec<f32> {
    let mut rng = stream(seed, purpose);
    (0..count).map(|_| StandardNormal.sample(&mut rng)).collect()
}

/// Tokens with a common part, so that some rows are everybody's favourites.
fn hidden(seed: u64) -> Vec<f32> {
    let common = normal(1, "common", WIDTH);
    let own = normal(seed, "tokens", TOKENS * WIDTH);
    own.chunks(WIDTH).flat_map(|row| row.iter().zip(&common).map(|(x, c)| x + 0.7 * c)).collect()
}

fn top_k(logits: &[f32]) -> Choices {
    let scores = Scores::new(logits, EXPERTS).expect("finite");
    let cost =
        CostSettings::Linear { price_per_fair_share: 0.0 }.build(scores.tokens(), EXPERTS, TOP_K);
    TopK.route(&Game { scores, top_k: TOP_K, cost: cost.as_ref() }, None).choices
}

fn motion(router: &[f32], settings: MotionSettings, rule: Box<dyn RowRule>) -> LayerMotion {
    LayerMotion::new(router, WIDTH, (ROUTING, TOP_K), settings, rule)
}

fn observe(motion: &mut LayerMotion, hidden: &[f32]) {
    let logits = motion.logits(hidden);
    let choices = top_k(&logits);
    motion.observe(hidden, &logits, &choices);
}

fn length(row: &[f32]) -> f64 {
    row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

const FREE: MotionSettings = MotionSettings { neighbours: 3, turn_max: 0.05, score_loss_max: 1.0 };

#[test]
fn rows_keep_their_length_and_turn_no_further_than_allowed() {
    let registry = MotionRegistry::standard();
    for rule in registry.names() {
        let router = normal(3, "router", EXPERTS * WIDTH);
        let mut motion = motion(&router, FREE, registry.build(rule, 5).expect("named"));
        let mut before = motion.router();
        assert_eq!(before, router, "it begins at the trained rows");
        let mut moved = false;
        for seed in 0..10 {
            observe(&mut motion, &hidden(seed));
            let after = motion.router();
            for ((a, b), trained) in
                before.chunks(WIDTH).zip(after.chunks(WIDTH)).zip(router.chunks(WIDTH))
            {
                let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let angle = (dot / length(a) / length(b)).min(1.0).acos();
                assert!(angle <= 0.05 + 1e-3, "{rule}: {angle}");
                assert!((length(b) / length(trained) - 1.0).abs() < 1e-5, "{rule}");
                moved |= angle > 1e-3;
            }
            before = after;
        }
        assert!(moved, "{rule} moves");
        assert_eq!(motion.counts(), (10, 0));
        assert!(motion.turned().iter().any(|angle| *angle > 1e-3), "{rule}");
    }
}

#[test]
fn a_space_turned_as_a_whole_is_moved_in_the_same_way() {
    let turn = DMatrix::from_row_slice(WIDTH, WIDTH, &normal(9, "turn", WIDTH * WIDTH)).qr().q();
    let turned = |rows: &[f32]| -> Vec<f32> {
        let rows = DMatrix::from_row_slice(rows.len() / WIDTH, WIDTH, rows) * turn.transpose();
        rows.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>()).collect()
    };
    let rules: [fn() -> Box<dyn RowRule>; 3] = [
        || Box::new(Boids { cohesion: 0.01, separation: 0.01, ..Boids::default() }),
        || Box::new(KMeans::default()),
        || Box::new(AuxiliaryLoss::default()),
    ];
    for rule in rules {
        let router = normal(3, "router", EXPERTS * WIDTH);
        let mut straight = motion(&router, FREE, rule());
        let mut other = motion(&turned(&router), FREE, rule());
        for seed in 0..4 {
            let tokens = hidden(seed);
            let choices = top_k(&straight.logits(&tokens));
            straight.observe(&tokens, &straight.logits(&tokens), &choices);
            let tokens = turned(&tokens);
            other.observe(&tokens, &other.logits(&tokens), &choices);
        }
        let difference = turned(&straight.router())
            .iter()
            .zip(other.router())
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(difference < 1e-4, "{difference}");
    }
}

#[test]
fn a_move_that_loses_more_than_allowed_is_undone_and_counted() {
    /// Sends every row to the opposite side.
    struct Flee;
    impl RowRule for Flee {
        fn velocities(&mut self, seen: &Seen<'_>) -> Vec<f32> {
            seen.means.iter().map(|x| -10.0 * x).collect()
        }
    }
    let router = normal(3, "router", EXPERTS * WIDTH);
    let settings = MotionSettings { turn_max: 1.0, score_loss_max: 0.02, ..FREE };
    let mut guarded = motion(&router, settings, Box::new(Flee));
    let mut free =
        motion(&router, MotionSettings { score_loss_max: 1.0, ..settings }, Box::new(Flee));
    for motion in [&mut guarded, &mut free] {
        observe(motion, &hidden(1));
    }
    assert_eq!((guarded.counts(), free.counts()), ((1, 1), (1, 0)));
    assert_eq!(guarded.router(), router, "as it was, to the bit");
    assert_ne!(free.router(), router);
    guarded.observe(&[], &[], &Choices::ragged(&[]));
    assert_eq!(guarded.counts(), (1, 1), "without tokens nothing moves");
}

/// Largest load over the mean on tokens that no rule has seen.
fn balance(motion: &LayerMotion) -> f64 {
    let loads = top_k(&motion.logits(&hidden(1000))).loads(EXPERTS);
    f64::from(loads.into_iter().max().unwrap_or(0)) / (TOKENS * TOP_K / EXPERTS) as f64
}

#[test]
fn boids_even_out_loads_of_tokens_to_come_and_rows_that_stand_do_not() {
    let router = normal(3, "router", EXPERTS * WIDTH);
    let settings = MotionSettings { score_loss_max: 0.5, ..FREE };
    let after = |rule: Box<dyn RowRule>| {
        let mut motion = motion(&router, settings, rule);
        (0..60).for_each(|seed| observe(&mut motion, &hidden(seed)));
        balance(&motion)
    };
    let frozen = balance(&motion(&router, settings, Box::new(KMeans { step: 0.0 })));
    let boids = after(Box::new(Boids { push: 0.05, ..Boids::default() }));
    assert!(frozen > 1.5 && boids < 1.0 + 0.5 * (frozen - 1.0), "{frozen} {boids}");
    let auxiliary = after(Box::new(AuxiliaryLoss { step: 0.05 }));
    assert!(auxiliary < 1.0 + 0.5 * (frozen - 1.0), "{frozen} {auxiliary}");
}

#[test]
fn the_auxiliary_rule_goes_down_the_gradient_of_its_loss() {
    let unit = |rows: Vec<f32>| -> Vec<f32> {
        rows.chunks(WIDTH)
            .flat_map(|row| {
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                row.iter().map(move |x| x / norm).collect::<Vec<_>>()
            })
            .collect()
    };
    let router = unit(normal(3, "router", EXPERTS * WIDTH));
    let tokens = unit(hidden(2));
    let mut motion = motion(
        &router,
        MotionSettings { turn_max: 10.0, ..FREE },
        Box::new(AuxiliaryLoss { step: 1e-3 }),
    );
    let logits = motion.logits(&tokens);
    let choices = top_k(&logits);
    let loads = choices.loads(EXPERTS);
    // E Σ_e f_e P_e with loads that stand still.
    let loss = |rows: &[f64]| -> f64 {
        let mut sum = 0.0;
        for token in tokens.chunks(WIDTH) {
            let logit = |e: usize| {
                rows[e * WIDTH..][..WIDTH]
                    .iter()
                    .zip(token)
                    .map(|(u, x)| u * f64::from(*x))
                    .sum::<f64>()
                    .exp()
            };
            let total: f64 = (0..EXPERTS).map(logit).sum();
            let over = |e: usize| f64::from(loads[e]) * EXPERTS as f64 / (TOKENS * TOP_K) as f64;
            sum += (0..EXPERTS).map(|e| over(e) * logit(e) / total).sum::<f64>();
        }
        EXPERTS as f64 * sum / TOKENS as f64
    };
    let rows: Vec<f64> = router.iter().map(|x| f64::from(*x)).collect();
    motion.observe(&tokens, &logits, &choices);
    let moved = motion.router();
    for (e, row) in router.chunks(WIDTH).enumerate() {
        let gradient: Vec<f64> = (0..WIDTH)
            .map(|d| {
                let at = |by: f64| {
                    let mut rows = rows.clone();
                    rows[e * WIDTH + d] += by;
                    loss(&rows)
                };
                (at(1e-4) - at(-1e-4)) / 2e-4
            })
            .collect();
        let along: f64 = gradient.iter().zip(row).map(|(g, u)| g * f64::from(*u)).sum();
        for (d, g) in gradient.iter().enumerate() {
            let expected = -1e-3 * (g - along * f64::from(row[d]));
            let got = f64::from(moved[e * WIDTH + d]) - f64::from(row[d]);
            assert!(
                (got - expected).abs() < 2e-6 + 0.01 * expected.abs(),
                "{e} {d}: {got} {expected}"
            );
        }
    }
}

#[test]
fn consensus_on_spheres_finds_evener_rows_for_a_batch_that_stands_still() {
    let router = normal(3, "router", EXPERTS * WIDTH);
    let tokens = hidden(1);
    let imbalance = |motion: &LayerMotion| {
        let fair = (TOKENS * TOP_K / EXPERTS) as f64;
        let loads = top_k(&motion.logits(&tokens)).loads(EXPERTS);
        loads.iter().map(|n| (f64::from(*n) / fair - 1.0).powi(2)).sum::<f64>()
    };
    let mut rule = SphereConsensus::new(60, 3);
    (rule.spread, rule.weight) = (0.3, 0.5);
    let mut motion = motion(&router, MotionSettings { turn_max: 1.0, ..FREE }, Box::new(rule));
    let first = imbalance(&motion);
    (0..60).for_each(|_| observe(&mut motion, &tokens));
    assert!(imbalance(&motion) < 0.6 * first, "{first} {}", imbalance(&motion));
}

#[test]
fn motion_has_the_same_bits_at_any_number_of_threads() {
    let registry = MotionRegistry::standard();
    for rule in registry.names() {
        let fly = |threads| {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| {
                let router = normal(3, "router", EXPERTS * WIDTH);
                let mut motion = motion(&router, FREE, registry.build(rule, 5).expect("named"));
                (0..5).for_each(|seed| observe(&mut motion, &hidden(seed)));
                motion.router().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            })
        };
        assert_eq!(fly(1), fly(3), "{rule}");
    }
}

#[test]
fn rules_have_names_and_an_own_rule_joins_them_once() {
    let mut registry = MotionRegistry::standard();
    assert!(registry.build("boids", 0).is_some() && registry.build("geese", 0).is_none());
    registry
        .insert("geese", "in a line (experimental)", Box::new(|_| Box::new(KMeans::default())))
        .expect("a new name");
    assert!(registry.build("geese", 0).is_some());
    let taken = registry.insert("boids", "again", Box::new(|_| Box::new(KMeans::default())));
    let taken = taken.expect_err("a name in use").to_string();
    assert_eq!(taken, "a rule of motion called 'boids' is registered already: choose another name");
    assert!(
        registry.summaries().all(|(_, summary)| summary.contains('(')),
        "each says how sure it is"
    );
}

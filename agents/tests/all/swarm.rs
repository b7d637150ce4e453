//! The optimisers: what holds for any function, and against closed formulas.

use agents::rng::stream;
use agents::swarm::landscape::{Landscape, Shape};
use agents::swarm::{
    Bounds, BoundsError, Consensus, ConsensusSettings, Constriction, ConstrictionSettings, Kind,
    Noise, Optimizer, Spso2011, SpsoSettings, advance, is_order_two_stable,
};
use proptest::prelude::*;

fn cube(dimensions: usize, low: f64, high: f64) -> Bounds {
    Bounds::new(vec![(low, high); dimensions]).expect("bounds in order")
}

/// The least cost found with at most `evaluations`.
fn search(kind: Kind, landscape: &Landscape, evaluations: usize, seed: u64) -> f64 {
    let mut optimizer = kind.build(cube(landscape.least().len(), -100.0, 100.0), seed);
    let mut spent = 0;
    while spent < evaluations {
        spent += advance(optimizer.as_mut(), |x| landscape.at(x));
    }
    optimizer.best().expect("told").cost
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn published_weights_lie_in_the_stable_region_and_its_edge_is_where_the_formula_puts_it() {
    let phi: f64 = 4.1;
    let chi = 2.0 / (2.0 - phi - (phi * phi - 4.0 * phi).sqrt()).abs();
    assert!((chi - 0.729_843_8).abs() < 1e-7);
    assert!(is_order_two_stable(chi, chi * phi));
    let SpsoSettings { inertia, pull, .. } = SpsoSettings::default();
    assert!((inertia - 0.721_347_520_4).abs() < 1e-9 && (pull - 1.193_147_180_6).abs() < 1e-9);
    assert!(is_order_two_stable(inertia, 2.0 * pull));
    // 24 (1 − w²) / (7 − 5w) at w = 0.7298.
    assert!(is_order_two_stable(0.7298, 3.346) && !is_order_two_stable(0.7298, 3.349));
    assert!(!is_order_two_stable(1.0, 1.0) && !is_order_two_stable(0.5, -0.1));
}

#[test]
fn swarms_find_a_shifted_rotated_least_where_drawing_at_random_does_not() {
    for (shape, limit) in
        [(Shape::Sphere, 1e-4), (Shape::Ellipsoid, 1e6), (Shape::Rastrigin, 100.0)]
    {
        let found = |kind, evaluations| {
            median(
                (0..3)
                    .map(|seed| {
                        let landscape = Landscape::new(shape, 10, 80.0, seed);
                        search(kind, &landscape, evaluations, seed)
                    })
                    .collect(),
            )
        };
        let control = found(Kind::Random, 15_000);
        for kind in [Kind::Spso2011, Kind::Constriction] {
            let cost = found(kind, 15_000);
            assert!(cost < limit && cost < control / 20.0, "{kind:?} {shape:?}: {cost} {control}");
        }
        let cost = found(Kind::Consensus, 15_000);
        assert!(cost < control / 2.0, "consensus, {shape:?}: {cost} {control}");
    }
}

#[test]
fn a_swarm_finds_a_far_least_as_well_as_one_in_the_middle() {
    for kind in [Kind::Spso2011, Kind::Constriction] {
        let at = |reach| {
            median(
                (0..3)
                    .map(|seed| {
                        search(kind, &Landscape::new(Shape::Sphere, 10, reach, seed), 15_000, seed)
                    })
                    .collect(),
            )
        };
        let (middle, far) = (at(1e-3), at(90.0));
        assert!(far < 1e-4 && middle < 1e-4, "{kind:?}: {middle} {far}");
    }
}

/// All asked points of some rounds.
fn points(
    optimizer: &mut dyn Optimizer,
    rounds: usize,
    f: impl Fn(&[f64]) -> f64,
) -> Vec<Vec<f64>> {
    let mut all = Vec::new();
    for _ in 0..rounds {
        let asked = optimizer.ask();
        let costs: Vec<f64> = asked.iter().map(|x| f(x)).collect();
        optimizer.tell(&asked, &costs);
        all.extend(asked);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn points_stay_within_bounds_and_repeat_by_seed(
        seed in 0..1000_u64,
        dimensions in 1..6_usize,
        low in -50.0..50.0_f64,
        span in 0.1..100.0_f64,
    ) {
        let bounds = cube(dimensions, low, low + span);
        let landscape = Landscape::new(Shape::Rastrigin, dimensions, 5.0, seed);
        for kind in Kind::ALL {
            let fly = || points(kind.build(bounds.clone(), seed).as_mut(), 12, |x| landscape.at(x));
            let all = fly();
            prop_assert!(all.iter().all(|point| bounds.contain(point)), "{:?}", kind);
            prop_assert_eq!(all, fly());
        }
    }

    #[test]
    fn particle_swarms_mind_the_order_of_costs_and_not_their_size(seed in 0..1000_u64) {
        let landscape = Landscape::new(Shape::Ackley, 4, 3.0, seed);
        for kind in [Kind::Spso2011, Kind::Constriction] {
            let fly = |f: &dyn Fn(f64) -> f64| {
                let mut optimizer = kind.build(cube(4, -5.0, 5.0), seed);
                points(optimizer.as_mut(), 20, |x| f(landscape.at(x)))
            };
            prop_assert_eq!(fly(&|cost| cost), fly(&|cost| 8.0 * cost - 3.0));
        }
    }

    #[test]
    fn a_space_twice_as_wide_is_searched_the_same_way(seed in 0..1000_u64) {
        // Doubling is exact in floating point, so that points are equal to the bit.
        let landscape = Landscape::new(Shape::Rastrigin, 3, 3.0, seed);
        for kind in Kind::ALL {
            let near = points(kind.build(cube(3, -5.0, 5.0), seed).as_mut(), 15, |x| landscape.at(x));
            let wide = points(kind.build(cube(3, -10.0, 10.0), seed).as_mut(), 15, |x| {
                landscape.at(&x.iter().map(|x| x / 2.0).collect::<Vec<_>>())
            });
            let doubled: Vec<Vec<f64>> =
                near.iter().map(|point| point.iter().map(|x| 2.0 * x).collect()).collect();
            prop_assert_eq!(doubled, wide, "{:?}", kind);
        }
    }
}

#[test]
fn on_a_flat_function_consensus_contracts_at_the_rate_of_the_formula() {
    let (steps, dimensions, count) = (20, 5, 4000);
    for (shape, noise) in
        [(Noise::Anisotropic, 0.9), (Noise::Isotropic, 0.4), (Noise::Anisotropic, 0.0)]
    {
        let settings = ConsensusSettings {
            particles: count,
            noise,
            shape,
            step: 0.05,
            ..ConsensusSettings::default()
        };
        assert!(settings.contracts(dimensions));
        let mut swarm = Consensus::new(cube(dimensions, -1e3, 1e3), settings, stream(1, "flat"))
            .starting_in(&cube(dimensions, -1.0, 1.0));
        let variance = |points: &[Vec<f64>]| {
            let mean = |d: usize| points.iter().map(|x| x[d]).sum::<f64>() / points.len() as f64;
            let each = |d| points.iter().map(|x| (x[d] - mean(d)).powi(2)).sum::<f64>();
            (0..dimensions).map(each).sum::<f64>() / points.len() as f64
        };
        let first = variance(&swarm.ask());
        let costs = vec![3.0; count];
        let mut last = first;
        for _ in 0..steps {
            swarm.tell(&vec![vec![0.0; dimensions]; count], &costs);
            last = variance(&swarm.ask());
        }
        let c = if shape == Noise::Isotropic { dimensions as f64 } else { 1.0 };
        let factor = (1.0_f64 - 0.05).powi(2) + c * noise * noise * 0.05;
        let expected = first * factor.powi(steps);
        assert!((last / expected - 1.0).abs() < 0.05, "{shape:?} {noise}: {last} {expected}");
    }
    let wild =
        ConsensusSettings { shape: Noise::Isotropic, noise: 0.7, ..ConsensusSettings::default() };
    assert!(!wild.contracts(5) && wild.contracts(4), "5 · 0.49 is above 2, 4 · 0.49 below");
}

#[test]
fn a_cost_that_is_no_number_is_the_worst_and_hides_nothing() {
    for kind in Kind::ALL {
        let mut optimizer = kind.build(cube(2, -1.0, 1.0), 3);
        assert_eq!(optimizer.best(), None);
        for _ in 0..100 {
            advance(optimizer.as_mut(), |x| if x[0] < 0.0 { f64::NAN } else { 1.0 + x[1] });
        }
        let best = optimizer.best().expect("told");
        assert!(best.point[0] >= 0.0 && best.cost < 0.2, "{kind:?}: {best:?}");
        let mut lost = kind.build(cube(2, -1.0, 1.0), 3);
        (0..5).for_each(|_| {
            advance(lost.as_mut(), |_| f64::NAN);
        });
        assert_eq!(lost.best().map(|best| best.cost), Some(f64::INFINITY), "{kind:?}");
    }
}

#[test]
fn a_swarm_begins_where_it_is_told_and_remembers_what_a_caller_made_of_its_points() {
    let settings = ConstrictionSettings { particles: 4, ..ConstrictionSettings::default() };
    let mut swarm = Constriction::new(cube(2, 0.0, 3.0), settings, stream(1, "start"))
        .starting_at(vec![1.0, 2.0]);
    let asked = swarm.ask();
    assert_eq!(asked[0], [1.0, 2.0]);
    let rounded: Vec<Vec<f64>> =
        asked.iter().map(|point| point.iter().map(|x| x.round()).collect()).collect();
    swarm.tell(&rounded, &[0.5, 1.0, 1.0, 1.0]);
    assert_eq!(swarm.best().expect("told").point, rounded[0]);
    let mut alone = Spso2011::new(
        cube(1, 0.0, 1.0),
        SpsoSettings { particles: 1, ..SpsoSettings::default() },
        stream(1, "alone"),
    );
    assert_eq!(points(&mut alone, 5, |x| x[0]).len(), 5, "a lone particle flies by itself");
}

#[test]
fn dimensions_that_mind_each_other_turn_together() {
    let fly = |alignment| {
        let neighbours = vec![vec![1], vec![0], vec![]];
        let settings =
            ConstrictionSettings { alignment, neighbours, ..ConstrictionSettings::default() };
        let mut swarm = Constriction::new(cube(3, -9.0, 9.0), settings, stream(5, "together"));
        let before = points(&mut swarm, 1, |x| x[0] * x[0]);
        let after = swarm.ask();
        // A bound stops one of the two.
        let is_free = |point: &[f64]| point[..2].iter().all(|x| x.abs() < 9.0);
        let pairs = before.iter().zip(&after).filter(|(_, after)| is_free(after));
        pairs.map(|(a, b)| (b[0] - a[0], b[1] - a[1])).collect::<Vec<_>>()
    };
    let alike = fly(0.5);
    assert!(alike.len() > 10 && alike.iter().all(|(a, b)| (a - b).abs() < 1e-9));
    assert!(fly(0.0).iter().any(|(a, b)| (a - b).abs() > 1.0), "alone they differ");
}

#[test]
fn bounds_that_are_none_are_refused() {
    assert_eq!(Bounds::new(vec![]), Err(BoundsError::Empty));
    for (low, high) in
        [(1.0, 1.0), (2.0, 1.0), (f64::NAN, 1.0), (0.0, f64::INFINITY), (f64::MIN, f64::MAX)]
    {
        assert!(matches!(
            Bounds::new(vec![(0.0, 1.0), (low, high)]),
            Err(BoundsError::Order { dimension: 1, .. })
        ));
    }
}

#[test]
fn landscapes_have_their_least_where_they_say_and_shapes_the_textbook_values() {
    for shape in Shape::ALL {
        for seed in 0..20 {
            let landscape = Landscape::new(shape, 5, 4.0, seed);
            assert!(landscape.at(landscape.least()).abs() < 1e-9, "{shape:?}");
            let aside: Vec<f64> = landscape.least().iter().map(|x| x + 0.3).collect();
            assert!(landscape.at(&aside) > 1e-3, "{shape:?}");
        }
    }
    assert!((Shape::Sphere.at(&[3.0, 4.0]) - 25.0).abs() < 1e-12);
    assert!((Shape::Ellipsoid.at(&[1.0, 1.0]) - 1_000_001.0).abs() < 1e-6);
    assert!((Shape::Rosenbrock.at(&[-1.0, -1.0]) - 1.0).abs() < 1e-12, "1 at the origin of y");
    assert!((Shape::Rastrigin.at(&[1.0, 1.0]) - 2.0).abs() < 1e-9);
    assert!((Shape::Ackley.at(&[1.0, 1.0]) - 3.625_384_938).abs() < 1e-6, "the textbook's value");
}

//! The routing game against independent exact solvers.

use std::collections::BTreeMap;

use agents::game::{
    Certificate, Choices, ChoicesError, CongestionCost, CostSettings, Equilibrium, Game, Play,
    Router, RouterRegistry, Scores, TopK, certify, check_choices,
};
use agents::ids::ExpertId;
use agents::rng::stream;
use proptest::prelude::*;

pub(crate) const QUOTA: CostSettings = CostSettings::Quota { capacity_factor: 1.0 };

/// A game that owns its parts.
pub(crate) struct Table {
    pub(crate) values: Vec<f32>,
    pub(crate) experts: usize,
    pub(crate) top_k: usize,
    pub(crate) cost: Box<dyn CongestionCost>,
}

impl Table {
    pub(crate) fn new(values: Vec<f32>, experts: usize, top_k: usize, cost: &CostSettings) -> Self {
        let cost = cost.build(values.len() / experts, experts, top_k);
        Self { values, experts, top_k, cost }
    }

    pub(crate) fn game(&self) -> Game<'_> {
        let scores = Scores::new(&self.values, self.experts).expect("finite scores");
        Game { scores, top_k: self.top_k, cost: self.cost.as_ref() }
    }

    pub(crate) fn play(&self, router: &dyn Router, warm: Option<&[f64]>) -> (Play, Certificate) {
        let play = router.route(&self.game(), warm);
        assert_eq!(check_choices(&self.game(), &play.choices), Ok(()));
        let certificate = certify(&self.game(), &play.choices, &play.prices);
        (play, certificate)
    }

    /// The largest potential, by dynamic programming over all load vectors: tokens one by one,
    /// every k-subset, the best score for each vector of loads, congestion at the end.
    fn best_potential(&self) -> f64 {
        self.best_potential_over(&subsets(self.experts, self.top_k))
    }

    /// The same when tokens may choose any of the given sets.
    pub(crate) fn best_potential_over(&self, subsets: &[Vec<usize>]) -> f64 {
        let mut best = BTreeMap::from([(vec![0_u32; self.experts], 0.0_f64)]);
        for row in self.values.chunks(self.experts) {
            let mut next: BTreeMap<Vec<u32>, f64> = BTreeMap::new();
            for (loads, score) in &best {
                for subset in subsets {
                    let mut loads = loads.clone();
                    let mut score = *score;
                    for expert in subset {
                        loads[*expert] += 1;
                        score += f64::from(row[*expert]);
                    }
                    let entry = next.entry(loads).or_insert(f64::NEG_INFINITY);
                    *entry = entry.max(score);
                }
            }
            best = next;
        }
        let congestion = |loads: &[u32]| -> f64 {
            let each = (0..).map(ExpertId).zip(loads);
            each.map(|(e, load)| (1..=*load).map(|l| self.cost.marginal(e, l)).sum::<f64>()).sum()
        };
        best.iter().map(|(loads, score)| score - congestion(loads)).fold(f64::MIN, f64::max)
    }

    /// The tolerance that rounding explains: sums of Tk scores in f64.
    pub(crate) fn rounding(&self) -> f64 {
        let largest = self.values.iter().fold(0.0_f64, |most, v| most.max(f64::from(v.abs())));
        1e-12 * largest.max(f64::MIN_POSITIVE) * self.values.len() as f64
    }

    fn assert_exact(&self, router: &dyn Router, what: &str) {
        let (play, certificate) = self.play(router, None);
        let best = self.best_potential();
        let cost = self.rounding() + 1e-12 * best.abs();
        assert!(
            (certificate.potential - best).abs() <= cost,
            "{what}: potential {} but {best} is possible, {:?}",
            certificate.potential,
            play.choices
        );
        assert!((certificate.dual_bound - best).abs() <= 4.0 * cost, "{what}: {certificate:?}");
        assert!(certificate.epsilon_nash <= 4.0 * cost, "{what}: {certificate:?}");
    }
}

pub(crate) fn subsets(experts: usize, k: usize) -> Vec<Vec<usize>> {
    (0_u32..1 << experts)
        .filter(|bits| bits.count_ones() as usize == k)
        .map(|bits| (0..experts).filter(|e| bits & (1 << e) != 0).collect())
        .collect()
}

fn normal(rng: &mut impl rand::Rng) -> f32 {
    let sum: f32 = (0..12).map(|_| rng.random::<f32>()).sum();
    sum - 6.0
}

/// Rows of the given kind: how the tests reach ties, dominance and extreme magnitudes.
pub(crate) fn rows(kind: &str, tokens: usize, experts: usize, seed: u64) -> Vec<f32> {
    let mut rng = stream(seed, kind);
    let mut values: Vec<f32> = (0..tokens * experts).map(|_| normal(&mut rng)).collect();
    let copies = values[..experts].to_vec();
    for (at, value) in values.iter_mut().enumerate() {
        let column = at % experts;
        *value = match kind {
            "normal" => *value,
            "equal" => 0.25,
            "zero" => 0.0,
            "grid" => value.round(),
            "duplicated" if !(at / experts).is_multiple_of(3) => copies[column],
            "duplicated" => *value,
            "dominated" if column == experts - 1 => *value + 50.0,
            "dominated" => *value,
            "large" => *value * 1e28,
            "huge" => value.signum() * 1e30,
            "masked" if column == 0 => -1e30,
            "masked" => *value,
            "mixed" if at % 3 == 1 => value.signum() * 1e30,
            "mixed" => *value,
            "subnormal" => *value * 1e-41,
            "largest" => f32::MAX * value.signum(),
            _ => unreachable!("kinds are listed here"),
        };
    }
    values
}

pub(crate) const KINDS: [&str; 11] = [
    "normal",
    "equal",
    "zero",
    "grid",
    "duplicated",
    "dominated",
    "huge",
    "masked",
    "subnormal",
    "largest",
    "normal",
];

/// T, E, k: with E = 1, k = E, one token, and Tk not divisible by E.
const SMALL: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (6, 1, 1),
    (4, 3, 3),
    (1, 4, 2),
    (8, 4, 1),
    (7, 3, 2),
    (6, 5, 2),
    (9, 4, 3),
    (5, 2, 1),
];

#[test]
fn equilibrium_finds_the_exact_optimum_of_every_small_game() {
    let costs = [
        QUOTA,
        CostSettings::Quota { capacity_factor: 1.3 },
        CostSettings::Linear { price_per_fair_share: 0.0 },
        CostSettings::Linear { price_per_fair_share: 0.4 },
        CostSettings::Linear { price_per_fair_share: 20.0 },
    ];
    let unaided = Equilibrium { most_sweeps: 0, ..Equilibrium::default() };
    let mut games = 0;
    for (tokens, experts, top_k) in SMALL {
        for kind in KINDS {
            for (seed, cost) in (0..).zip(&costs) {
                let values = rows(kind, tokens, experts, seed);
                let table = Table::new(values, experts, top_k, cost);
                let what = format!("{kind} {tokens}x{experts} k {top_k} {cost:?}");
                table.assert_exact(&Equilibrium::default(), &what);
                table.assert_exact(&unaided, &format!("{what}, repair alone"));
                games += 1;
            }
        }
    }
    assert!(games >= 2 * 150);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn equilibrium_is_exact_on_games_with_many_ties(
        (tokens, experts, top_k) in (1_usize..8, 1_usize..5).prop_flat_map(|(t, e)| (Just(t), Just(e), 1..=e)),
        cells in prop::collection::vec(-3_i8..4, 40),
        linear in prop::option::of(0.0_f64..3.0),
    ) {
        let values = cells[..tokens * experts].iter().map(|cell| f32::from(*cell) / 2.0).collect();
        let cost = linear.map_or(QUOTA, |price_per_fair_share| CostSettings::Linear { price_per_fair_share });
        Table::new(values, experts, top_k, &cost).assert_exact(&Equilibrium::default(), "ties");
    }

    #[test]
    fn epsilon_is_the_best_gain_over_all_subsets(
        (tokens, experts, top_k) in (1_usize..6, 1_usize..6).prop_flat_map(|(t, e)| (Just(t), Just(e), 1..=e)),
        cells in prop::collection::vec(-3_i8..4, 40),
        picks in prop::collection::vec(0_usize..1000, 8),
        linear in prop::option::of(0.0_f64..3.0),
    ) {
        let values: Vec<f32> = cells[..tokens * experts].iter().map(|cell| f32::from(*cell) / 2.0).collect();
        let cost = linear.map_or(QUOTA, |price_per_fair_share| CostSettings::Linear { price_per_fair_share });
        let table = Table::new(values, experts, top_k, &cost);
        let sets = subsets(experts, top_k);
        let chosen: Vec<&Vec<usize>> = (0..tokens).map(|t| &sets[picks[t] % sets.len()]).collect();
        let choices = Choices::uniform(
            chosen.iter().flat_map(|set| set.iter().map(|e| ExpertId::from_index(*e))).collect(),
            top_k,
        );
        let loads = choices.loads(experts);
        let utility = |token: usize, set: &[usize], loads: &[u32]| -> f64 {
            let row = &table.values[token * experts..];
            set.iter().map(|e| f64::from(row[*e]) - table.cost.marginal(ExpertId::from_index(*e), loads[*e])).sum()
        };
        let mut epsilon = 0.0_f64;
        for (token, own) in chosen.iter().enumerate() {
            let now = utility(token, own, &loads);
            for set in &sets {
                let mut moved = loads.clone();
                own.iter().for_each(|e| moved[*e] -= 1);
                set.iter().for_each(|e| moved[*e] += 1);
                let then = utility(token, set, &moved);
                if then > now {
                    epsilon = epsilon.max(then - now);
                }
            }
        }
        let prices: Vec<f64> = (0..experts).map(|e| f64::from(cells[e]) / 3.0).collect();
        let certificate = certify(&table.game(), &choices, &prices);
        let given = certificate.epsilon_nash;
        prop_assert!(given == epsilon || (given - epsilon).abs() < 1e-12, "{given} {epsilon}");
        prop_assert!(certificate.dual_bound >= table.best_potential() - 1e-12);
        prop_assert!(certificate.relative_gap >= -1e-12);
        prop_assert!(certificate.score_loss >= -1e-12 && certificate.max_over_mean >= 1.0 - 1e-12);
    }
}

#[test]
fn a_warm_start_reaches_the_same_potential() {
    let linear = CostSettings::Linear { price_per_fair_share: 0.3 };
    for cost in [QUOTA, CostSettings::Quota { capacity_factor: 1.25 }, linear] {
        let table = Table::new(rows("normal", 500, 16, 1), 16, 4, &cost);
        let (cold, certificate) = table.play(&Equilibrium::default(), None);
        assert!(certificate.relative_gap < 1e-12, "{certificate:?}");
        let far: Vec<f64> = (0..16).map(|e| f64::from(e) * 1e6 - 4e6).collect();
        for prices in [&cold.prices, &far, &vec![f64::NAN; 16], &vec![1.0; 3]] {
            let (_, warm) = table.play(&Equilibrium::default(), Some(prices));
            let difference = (warm.potential - certificate.potential).abs();
            assert!(difference < 1e-9 && warm.relative_gap < 1e-9, "{cost:?} {warm:?}");
        }
    }
}

#[test]
fn larger_games_are_balanced_and_proven() {
    // Shapes and kinds where prices alone cannot balance, and a remainder of Tk/E.
    for (tokens, experts, top_k) in [(2000, 32, 4), (1001, 13, 3), (64, 200, 5), (200, 80, 70)] {
        for kind in KINDS {
            let table = Table::new(rows(kind, tokens, experts, 2), experts, top_k, &QUOTA);
            let (_, certificate) = table.play(&Equilibrium::default(), None);
            let most = 1.0 + experts as f64 / (tokens * top_k) as f64;
            let what = format!("{kind} {tokens}x{experts} k {top_k} {certificate:?}");
            assert!(certificate.max_over_mean <= most + 1e-12, "{what}");
            assert!(certificate.relative_gap.abs() < 1e-9, "{what}");
        }
    }
}

#[test]
fn a_game_beyond_its_work_limit_ends_feasible_with_its_true_gap() {
    let hurried = Equilibrium { most_sweeps: 0, most_repair_visits: 0 };
    for (tokens, experts, top_k) in [(400, 8, 3), (90, 10, 9), (33, 7, 6)] {
        for kind in KINDS {
            let table = Table::new(rows(kind, tokens, experts, 4), experts, top_k, &QUOTA);
            let (play, certificate) = table.play(&hurried, None);
            let (_, exact) = table.play(&Equilibrium::default(), None);
            let capacity = (tokens * top_k).div_ceil(experts);
            let largest = play.choices.loads(experts).into_iter().max();
            assert!(largest <= u32::try_from(capacity).ok(), "{kind} {largest:?} {capacity}");
            let slack = table.rounding();
            assert!(certificate.potential <= exact.potential + slack, "{kind}");
            assert!(certificate.dual_bound >= exact.potential - slack, "{kind}");
        }
    }
}

#[test]
fn an_overloaded_play_has_no_potential_and_an_infinite_gap() {
    let table = Table::new(vec![1.0, 0.0, 1.0, 0.0], 2, 1, &QUOTA);
    let (_, certificate) = table.play(&TopK, None);
    assert_eq!(certificate.potential, f64::NEG_INFINITY);
    assert_eq!(certificate.relative_gap, f64::INFINITY);
    assert_eq!(certificate.epsilon_nash, f64::INFINITY);
    let (_, balanced) = table.play(&Equilibrium::default(), None);
    assert!(balanced.max_over_mean < 1.0 + 1e-12 && balanced.score_loss > 0.49);
}

#[test]
fn the_same_bits_come_from_one_thread_and_from_two() {
    let table = Table::new(rows("normal", 1500, 24, 8), 24, 4, &QUOTA);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let (play, certificate) = table.play(&Equilibrium::default(), None);
            let prices: Vec<u64> = play.prices.iter().map(|price| price.to_bits()).collect();
            let sums = [certificate.potential, certificate.dual_bound, certificate.epsilon_nash];
            (play.choices, prices, play.iterations, play.passes, sums.map(f64::to_bits))
        })
    };
    assert_eq!(on(1), on(2));
}

#[test]
fn choices_that_are_no_assignment_are_named() {
    let table = Table::new(vec![0.0; 6], 3, 2, &QUOTA);
    let check = |experts: &[u32], top_k| {
        let experts = experts.iter().copied().map(ExpertId).collect();
        check_choices(&table.game(), &Choices::uniform(experts, top_k))
    };
    assert_eq!(check(&[0, 1, 1, 2], 2), Ok(()));
    assert_eq!(check(&[0, 1, 2, 1], 2), Err(ChoicesError::Order { token: 1 }));
    assert_eq!(check(&[1, 1, 1, 2], 2), Err(ChoicesError::Order { token: 0 }));
    let beyond = ChoicesError::NoSuchExpert { token: 1, expert: ExpertId(3), experts: 3 };
    assert_eq!(check(&[0, 1, 1, 3], 2), Err(beyond));
    assert_eq!(check(&[0, 1, 2], 1), Err(ChoicesError::Tokens { rows: 3, tokens: 2 }));
    assert_eq!(check(&[0, 1], 1), Ok(()), "the certificate counts dropped pairs");
}

/// A user's router: experts in turn, whatever the scores.
struct InTurn;

impl Router for InTurn {
    fn route(&self, game: &Game<'_>, _: Option<&[f64]>) -> Play {
        let (experts, k) = (game.scores.experts(), game.top_k);
        let mut chosen = Vec::new();
        for token in 0..game.scores.tokens() {
            let mut row: Vec<ExpertId> =
                (0..k).map(|i| ExpertId::from_index((token * k + i) % experts)).collect();
            row.sort_unstable();
            chosen.extend(row);
        }
        let choices = Choices::uniform(chosen, k);
        Play { choices, prices: vec![0.0; experts], passes: 0, iterations: 0 }
    }
}

#[test]
fn a_router_of_another_crate_plays_by_name() {
    let mut registry = RouterRegistry::standard();
    registry.insert("in_turn", "experts in turn", Box::new(|| Box::new(InTurn))).expect("new");
    assert!(registry.insert("top_k", "mine", Box::new(|| Box::new(InTurn))).is_err());
    assert!(registry.names().any(|name| name == "in_turn") && registry.names().is_sorted());
    assert!(registry.get("nobody").is_none());
    let table = Table::new(rows("normal", 50, 6, 9), 6, 2, &QUOTA);
    let potential = |name: &str| {
        let router = registry.get(name).expect("registered");
        table.play(router.as_ref(), None).1
    };
    let (own, best) = (potential("in_turn"), potential("equilibrium"));
    assert!(own.potential.is_finite() && own.potential < best.potential);
    assert!(own.dual_bound >= best.potential - 1e-12);
}

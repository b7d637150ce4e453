//! The equilibrium router against three exact solvers, cost by cost.

use agents::game::{CostSettings, Equilibrium, GameError, Play, Scores};
use agents::rng::stream;
use rand::RngExt as _;

use crate::game::{Table, rows};
use crate::oracle::Exact;

pub(crate) const COSTS: [&str; 4] = ["quota", "linear", "polynomial", "latency"];

/// Instances of each cost.
const INSTANCES: u64 = 320;

/// T, E, k with E = 1 and k = E more often than by chance.
pub(crate) fn shape(
    rng: &mut impl rand::Rng,
    most_tokens: usize,
    most_experts: usize,
) -> [usize; 3] {
    let tokens = rng.random_range(1..=most_tokens);
    let experts = if rng.random_bool(0.1) { 1 } else { rng.random_range(2..=most_experts) };
    let most = experts.min(4);
    let top_k = if rng.random_bool(0.1) { most } else { rng.random_range(1..=most) };
    [tokens, experts, top_k]
}

/// A cost of that name with random parameters, under which every token finds k experts.
/// `scale` is the size of the scores.
pub(crate) fn cost(
    name: &str,
    rng: &mut impl rand::Rng,
    game: [usize; 3],
    scale: f64,
) -> CostSettings {
    let [tokens, experts, top_k] = game;
    let fair_share = (tokens * top_k) as f64 / experts as f64;
    let price_per_fair_share = scale * [0.0, 0.1, 0.5, 3.0, 40.0][rng.random_range(0..5)];
    match name {
        "quota" => {
            CostSettings::Quota { capacity_factor: [1.0, 1.0, 1.3, 2.5][rng.random_range(0..4)] }
        }
        "linear" => CostSettings::Linear { price_per_fair_share },
        "polynomial" => CostSettings::Polynomial {
            price_per_fair_share,
            degree: [0.0, 0.5, 2.0, 4.0][rng.random_range(0..4)],
        },
        "latency" => {
            let one = rng.random_bool(0.2);
            let service_ms = (0..if one { 1 } else { experts })
                .map(|_| f64::from(rng.random_range(0..5_u8)) / 2.0)
                .collect();
            // Each of up to 2.5 ms, and one token more than the fair share.
            let window_ms = 2.5 * (fair_share.ceil() + 1.0) * (1.0 + rng.random::<f64>());
            let variation = [0.0, 1.0, 1.7][rng.random_range(0..3)];
            CostSettings::Latency {
                service_ms,
                window_ms,
                variation,
                price_per_ms: price_per_fair_share,
            }
        }
        _ => unreachable!("costs are listed above"),
    }
}

/// Ties, dominance, and the ends of f32; none but the first five have a linear program that
/// tolerances of a solver in f64 do not spoil.
const ROWS: [&str; 12] = [
    "normal",
    "equal",
    "grid",
    "duplicated",
    "dominated",
    "zero",
    "huge",
    "masked",
    "mixed",
    "subnormal",
    "largest",
    "large",
];

/// The size of the scores of a kind of rows, where a cost of that size matters.
fn scale(kind: &str) -> f64 {
    match kind {
        "subnormal" => 1e-41,
        "large" => 1e28,
        _ => 1.0,
    }
}

/// A game, its exact optimum, and what the router is held to.
struct Case {
    table: Table,
    exact: Exact,
    best: i128,
    what: String,
}

impl Case {
    fn new(
        values: Vec<f32>,
        experts: usize,
        top_k: usize,
        cost: &CostSettings,
        what: &str,
    ) -> Self {
        let exact = Exact::new(&values, experts, top_k, cost);
        assert!(exact.is_feasible(), "{what}");
        let best = exact.best_by_assignment();
        let what = format!("{what}: {}x{experts} k {top_k} {cost:?}", exact.tokens);
        Self { table: Table::new(values, experts, top_k, cost), exact, best, what }
    }

    /// Plays both ways and warm, and compares with the optimum in whole numbers.
    fn hold(&self) {
        let plain = Equilibrium { most_sweeps: 0, ..Equilibrium::default() };
        let cold = self.hold_play(&Equilibrium::default(), None);
        self.hold_play(&plain, None);
        self.hold_play(&Equilibrium::default(), Some(&cold.prices));
    }

    fn hold_play(&self, router: &Equilibrium, warm: Option<&[f64]>) -> Play {
        let Self { table, exact, best, what } = self;
        let (play, certificate) = table.play(router, warm);
        let what = format!("{what}, {router:?}, warm {}: {certificate:?}", warm.is_some());
        assert_eq!((certificate.dropped, certificate.extra), (0, 0), "{what}");
        let reached = exact.potential(&play.choices);
        let (potential, magnitude) = reached.unwrap_or_else(|| panic!("barred: {what}"));
        let rounding = exact.rounding(magnitude);
        let lost = best - potential;
        assert!(lost >= 0, "no assignment is better than the best: {what}");
        assert!(lost <= rounding, "{} is lost: {what}", exact.real(lost));
        assert!(exact.no_chain_of_moves_gains(&play.choices, rounding), "{what}");
        let (potential, best) = (exact.real(potential), exact.real(*best));
        let off = (certificate.potential - potential).abs();
        let slack = 4.0 * exact.slack(magnitude);
        assert!(off <= slack, "off by {off} from {potential}: {what}");
        // The certificate may use scores that the optimum avoids.
        let slack = slack + table.rounding();
        let gap = certificate.dual_bound - best;
        assert!(gap >= -slack && gap <= slack, "dual bound off by {gap}: {what}");
        assert!(certificate.epsilon_nash <= slack, "{what}");
        play
    }

    fn hold_against_linear_program(&self) {
        let found = self.exact.best_by_linear_program();
        let best = self.exact.real(self.best);
        assert!((found - best).abs() <= 1e-9 * (1.0 + best.abs()), "{found} {best}: {}", self.what);
    }
}

fn hold_random_instances(name: &str) {
    let (mut one_expert, mut all_experts, mut remainders, mut programs) = (0, 0, 0, 0);
    for seed in 0..INSTANCES {
        let mut rng = stream(seed, name);
        let game @ [tokens, experts, top_k] = shape(&mut rng, 24, 8);
        let kind = ROWS[usize::try_from(seed).expect("few") % ROWS.len()];
        let cost = cost(name, &mut rng, game, scale(kind));
        let values = rows(kind, tokens, experts, seed);
        let case = Case::new(values, experts, top_k, &cost, &format!("{name} {seed} {kind}"));
        case.hold();
        one_expert += u32::from(experts == 1);
        all_experts += u32::from(top_k == experts && experts > 1);
        remainders += u32::from(!(tokens * top_k).is_multiple_of(experts));
        if ROWS[..5].contains(&kind) {
            case.hold_against_linear_program();
            programs += 1;
        }
    }
    assert!(one_expert >= 15 && all_experts >= 15 && remainders >= 150 && programs >= 120);
}

#[test]
fn the_optimum_under_a_quota_is_that_of_exact_solvers_on_320_instances() {
    hold_random_instances("quota");
}

#[test]
fn the_optimum_under_a_linear_cost_is_that_of_exact_solvers_on_320_instances() {
    hold_random_instances("linear");
}

#[test]
fn the_optimum_under_a_polynomial_cost_is_that_of_exact_solvers_on_320_instances() {
    hold_random_instances("polynomial");
}

#[test]
fn the_optimum_under_a_latency_cost_is_that_of_exact_solvers_on_320_instances() {
    hold_random_instances("latency");
}

#[test]
fn every_edge_case_under_every_cost_has_the_optimum_of_the_exact_solver() {
    // E = 1, k = E, one token, Tk over E with and without remainder, more experts than tokens.
    let shapes = [
        [1, 1, 1],
        [6, 1, 1],
        [1, 5, 2],
        [1, 4, 4],
        [5, 3, 3],
        [8, 4, 2],
        [9, 4, 2],
        [7, 5, 4],
        [3, 8, 3],
    ];
    for game @ [tokens, experts, top_k] in shapes {
        for (seed, kind) in (0..).zip(ROWS) {
            for name in COSTS {
                let cost = cost(name, &mut stream(seed, "edge cases"), game, scale(kind));
                let values = rows(kind, tokens, experts, seed);
                Case::new(values, experts, top_k, &cost, kind).hold();
            }
        }
    }
}

/// Sizes at which the fast way takes samples, settles tokens and repairs few of them. Warm prices
/// are those of another batch.
fn hold_large(name: &str) {
    let all: &[&str] = &ROWS;
    for (game, kinds) in [
        ([200, 16, 4], all),
        ([40, 100, 5], all),
        ([700, 16, 15], &ROWS[..5]),
        ([1500, 32, 4], &ROWS[..5]),
        ([4099, 33, 3], &ROWS[..1]),
    ] {
        for (seed, kind) in (0..).zip(kinds) {
            let cost = cost(name, &mut stream(seed, name), game, scale(kind));
            let [tokens, experts, top_k] = game;
            let mut warm = None;
            for batch in [seed, seed + 100] {
                let what = format!("{name} {kind} {game:?} {cost:?} batch {batch}");
                let values = rows(kind, tokens, experts, batch);
                let exact = Exact::new(&values, experts, top_k, &cost);
                let table = Table::new(values, experts, top_k, &cost);
                let (play, certificate) = table.play(&Equilibrium::default(), warm.as_deref());
                let (potential, magnitude) = exact.potential(&play.choices).expect("not barred");
                let least = exact.rounding(magnitude);
                assert!(exact.no_chain_of_moves_gains(&play.choices, least), "{what}");
                let slack = 8.0 * exact.slack(magnitude) + table.rounding();
                let gap = certificate.dual_bound - exact.real(potential);
                assert!(gap.abs() <= slack, "{what}: {certificate:?}");
                warm = Some(play.prices);
            }
        }
    }
}

#[test]
fn no_chain_of_moves_improves_a_large_game_under_a_quota() {
    hold_large("quota");
}

#[test]
fn no_chain_of_moves_improves_a_large_game_under_a_linear_cost() {
    hold_large("linear");
}

#[test]
fn no_chain_of_moves_improves_a_large_game_under_a_polynomial_cost() {
    hold_large("polynomial");
}

#[test]
fn no_chain_of_moves_improves_a_large_game_under_a_latency_cost() {
    hold_large("latency");
}

#[test]
fn games_of_200_tokens_and_16_experts_have_the_optimum_of_a_linear_program() {
    for (seed, name) in (0..).zip(COSTS) {
        let game = [200, 16, 4];
        let cost = cost(name, &mut stream(seed + 9, name), game, 1.0);
        let values = rows("normal", 200, 16, seed);
        let best = Exact::new(&values, 16, 4, &cost).best_by_linear_program();
        let table = Table::new(values, 16, 4, &cost);
        let (_, certificate) = table.play(&Equilibrium::default(), None);
        for found in [certificate.potential, certificate.dual_bound] {
            assert!((found - best).abs() <= 1e-9 * best.abs(), "{cost:?} {best} {certificate:?}");
        }
    }
}

#[test]
fn a_game_that_bars_some_token_everywhere_ends_valid_with_an_infinite_gap() {
    // Three places on each of three experts for ten tokens.
    let cost = CostSettings::Latency {
        service_ms: vec![1.0],
        window_ms: 4.0,
        variation: 1.0,
        price_per_ms: 1.0,
    };
    for kind in ROWS {
        let table = Table::new(rows(kind, 10, 3, 1), 3, 1, &cost);
        assert!(!Exact::new(&table.values, 3, 1, &cost).is_feasible());
        let (play, certificate) = table.play(&Equilibrium::default(), None);
        assert_eq!(play.choices.experts().len(), 10);
        assert_eq!(certificate.potential, f64::NEG_INFINITY, "{kind}");
        assert_eq!(certificate.relative_gap, f64::INFINITY, "{kind}");
    }
}

#[test]
fn the_first_score_that_is_no_number_is_refused_by_row_and_column() {
    // More scores than are tested together, and fewer.
    for (tokens, experts) in [(1, 1), (5, 3), (300, 7)] {
        let finite = rows("mixed", tokens, experts, 1);
        assert!(Scores::new(&finite, experts).is_ok());
        for at in (0..finite.len()).step_by(1 + finite.len() / 97).chain([finite.len() - 1]) {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = finite.clone();
                values[at] = bad;
                *values.last_mut().expect("a score") = f32::NAN;
                let refused = Scores::new(&values, experts).expect_err("refused");
                let place = format!("at row {}, column {}", at / experts, at % experts);
                assert!(refused.to_string().contains(&place), "{refused}, not {place}");
                let GameError::NotFinite { row, column, value } = refused else {
                    panic!("{refused}");
                };
                assert_eq!((row, column), (at / experts, at % experts));
                assert_eq!(value.to_bits(), values[at].to_bits());
            }
        }
    }
}

/// The prices of such an expert must not fall to its score, in which all others would be lost.
#[test]
fn an_expert_at_minus_1e30_that_may_stay_empty_spoils_no_other_choice() {
    for [tokens, experts, top_k] in [[1, 6, 4], [2, 6, 4], [12, 7, 1], [20, 64, 8], [50, 64, 6]] {
        for name in COSTS {
            for seed in 0..6 {
                let mut rng = stream(seed, "may stay empty");
                let cost = cost(name, &mut rng, [tokens, experts, top_k], 1.0);
                let values = rows("masked", tokens, experts, seed);
                let exact = Exact::new(&values, experts, top_k, &cost);
                let table = Table::new(values, experts, top_k, &cost);
                let (play, certificate) = table.play(&Equilibrium::default(), None);
                let what = format!("{tokens}x{experts} k {top_k} {cost:?} {seed}");
                assert_eq!(play.choices.loads(experts)[0], 0, "{what}");
                let (_, magnitude) = exact.potential(&play.choices).expect("not barred");
                let least = exact.rounding(magnitude);
                assert!(exact.no_chain_of_moves_gains(&play.choices, least), "{what}");
                assert!(certificate.epsilon_nash < 1e-9, "{what}: {certificate:?}");
                assert!(certificate.relative_gap.abs() < 1e-9, "{what}: {certificate:?}");
            }
        }
    }
}

//! Games whose equilibria are in the textbooks: roads, and two links under old information.

use agents::game::routers::{Migration, SmoothStale};
use agents::game::{
    Certificate, Choices, CongestionCost, CostSettings, Game, Play, Scores, certify,
};
use agents::ids::ExpertId;

use crate::game::Table;
use crate::routers::router;

/// Roads that take `fixed + slope · n` minutes under n travellers.
struct Roads {
    travellers: u32,
    minutes: Vec<(f64, f64)>,
}

impl Roads {
    /// All travellers alike, each on `top_k` roads, by the rule of that name.
    fn play(&self, name: &str, top_k: usize) -> (Play, Certificate) {
        let values = vec![0.0; self.minutes.len() * self.travellers as usize];
        let scores = Scores::new(&values, self.minutes.len()).expect("zeros");
        let game = Game { scores, top_k, cost: self };
        let play = router(name).route(&game, None);
        let certificate = certify(&game, &play.choices, &play.prices);
        (play, certificate)
    }

    /// Minutes that all travellers spend on all roads.
    fn spent(&self, loads: &[u32]) -> f64 {
        let each = (0..).map(ExpertId).zip(loads).filter(|(_, load)| **load > 0);
        each.map(|(road, load)| f64::from(*load) * self.marginal(road, *load)).sum()
    }
}

impl CongestionCost for Roads {
    fn marginal(&self, expert: ExpertId, load: u32) -> f64 {
        let (fixed, slope) = self.minutes[expert.index()];
        fixed + slope * f64::from(load)
    }

    fn total(&self, expert: ExpertId, load: u32) -> f64 {
        (1..=load).map(|load| self.marginal(expert, load)).sum()
    }

    fn conjugate(&self, expert: ExpertId, price: f64) -> f64 {
        let gains = (1..=self.travellers).map(|load| price - self.marginal(expert, load));
        gains.take_while(|gain| *gain > 0.0).sum()
    }
}

const RULES: [&str; 3] = ["best_response", "best_response_batched", "equilibrium"];

/// Pigou's two roads: one takes time 1, the other the share of travellers on it. The price of
/// anarchy of all affine roads, 4/3, is attained here.
#[test]
fn selfish_travellers_of_pigou_lose_a_third_to_the_optimum() {
    let travellers = 200;
    let share = 1.0 / f64::from(travellers);
    let roads = Roads { travellers, minutes: vec![(1.0, 0.0), (0.0, share)] };
    let optimum =
        (0..=travellers).map(|n| roads.spent(&[travellers - n, n])).fold(f64::MAX, f64::min);
    assert!((optimum - 0.75 * f64::from(travellers)).abs() < 1e-9);
    for name in RULES {
        let (play, certificate) = roads.play(name, 1);
        assert!(certificate.epsilon_nash < 1e-8, "{name}");
        let anarchy = roads.spent(&play.choices.loads(2)) / optimum;
        assert!((anarchy - 4.0 / 3.0).abs() < 2.0 * share, "{name}: {anarchy}");
    }
}

/// Braess: from S over A or over B to T. S–A and B–T take a minute for every hundred travellers,
/// A–T and S–B 45 minutes. 4000 travellers, in groups of a hundred, need 65 minutes on either
/// way. A bridge from A to B that takes no time makes it 80 for everyone.
///
/// A way is two roads; the bridge lets S–A go with B–T. Two roads that are no way, S–A with S–B
/// or A–T with B–T or A–T with S–B, may be chosen too, and nobody does: an equilibrium of the
/// larger game that uses only ways is one of the ways alone.
#[test]
fn the_bridge_of_braess_costs_every_traveller_a_quarter_of_an_hour() {
    let travellers = 40;
    let closed = Roads { travellers, minutes: vec![(45.0, 1.0), (45.0, 1.0)] };
    let open =
        Roads { travellers, minutes: vec![(0.0, 1.0), (0.0, 1.0), (45.0, 0.0), (45.0, 0.0)] };
    for name in RULES {
        let (play, certificate) = closed.play(name, 1);
        assert_eq!(play.choices.loads(2), [20, 20], "{name}");
        assert_eq!(closed.spent(&[20, 20]) / 40.0, 65.0);
        assert!(certificate.epsilon_nash <= 1e-12 && certificate.dual_bound.is_finite(), "{name}");

        let (play, certificate) = open.play(name, 2);
        assert_eq!(play.choices.loads(4), [40, 40, 0, 0], "{name}: all take the bridge");
        assert_eq!(open.spent(&[40, 40, 0, 0]) / 40.0, 80.0);
        assert!(certificate.epsilon_nash <= 1e-12, "{name}");
    }
    // Without the bridge in use, half on each way: the open roads allow it and nobody stays.
    let halves: Vec<ExpertId> =
        (0..40).flat_map(|t| if t % 2 == 0 { [0, 2] } else { [1, 3] }).map(ExpertId).collect();
    let values = vec![0.0; 160];
    let scores = Scores::new(&values, 4).expect("zeros");
    let halves = Choices::uniform(halves, 2);
    let certificate = certify(&Game { scores, top_k: 2, cost: &open }, &halves, &[0.0; 4]);
    assert_eq!(open.spent(&halves.loads(4)) / 40.0, 65.0);
    assert_eq!(certificate.epsilon_nash, 24.0, "45 minutes saved for 21 instead");
}

/// Two equal links (Fischer and Vöcking 2005): who always takes the better link by the board
/// takes it with all others.
#[test]
fn two_links_are_swapped_for_ever_by_switching_at_once_and_shared_by_smooth_migration() {
    let tokens = 1000;
    let cost = CostSettings::Linear { price_per_fair_share: 1.0 };
    let table = Table::new(vec![0.0; 2 * tokens], 2, 1, &cost);
    for period in [1, 2, 5] {
        let first = |migration, rounds| {
            let rule = SmoothStale { migration, period, rounds, seed: 3 };
            table.play(&rule, None).0.choices.loads(2)[0]
        };
        // Everyone starts on the first link, and sees that the second is empty.
        for board in 0..20 {
            for round in 0..period {
                let expected = if board % 2 == 0 { 0 } else { 1000 };
                let found = first(Migration::Always, board * period + round + 1);
                assert_eq!(found, expected, "board {board} of period {period}");
            }
        }
        let smooth = Migration::Smooth { smoothness: 1.0 };
        let boards = [0, 1, 2, 4, 8, 16, 100, 101, 102, 200];
        let trace: Vec<u32> = boards.map(|n| first(smooth, n * period)).into();
        assert_eq!(trace[0], 1000);
        assert!(trace[..5].is_sorted_by(|a, b| a > b), "no overshoot: {trace:?}");
        // It ends at the half, but for the last few tokens, and stays.
        assert!(trace[6..].iter().all(|load| load.abs_diff(500) < 10), "{trace:?}");
    }
}

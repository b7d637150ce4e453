//! The game on a grid: scores and costs as whole numbers, so that gains are exact and no move can
//! gain less than one.

use super::super::{Game, select_top};
use crate::ids::ExpertId;

/// A cost that bars a load. Twice of it and a score fit 64 bits.
const BARRED: i64 = 1 << 60;

/// Scores and costs beyond this are as one; the grid is fine enough for 2^30 steps in the largest
/// score or the cost of a fair share.
const MOST: i64 = 1 << 57;

const STEPS: f64 = (1_u64 << 30) as f64;

/// Rounding of a game to multiples of `1/per_unit`, a power of two.
#[derive(Clone, Copy)]
pub(super) struct Grid<'g> {
    game: &'g Game<'g>,
    per_unit: f64,
}

impl<'g> Grid<'g> {
    pub(super) fn new(game: &'g Game<'g>) -> Self {
        let experts = game.scores.experts();
        let fair_share = (game.scores.tokens() * game.top_k).div_ceil(experts);
        let fair_share = u32::try_from(fair_share).expect("at most T");
        let costs = (0..experts).map(|e| game.cost.marginal(ExpertId::from_index(e), fair_share));
        let scores = game.scores.values().iter().map(|score| f64::from(score.abs()));
        let scale = costs.filter(|cost| cost.is_finite()).chain(scores).fold(0.0, f64::max);
        let scale = scale.max(f64::from(f32::MIN_POSITIVE));
        Self { game, per_unit: STEPS / scale.log2().ceil().exp2() }
    }

    pub(super) fn score(&self, score: f32) -> i64 {
        self.round(f64::from(score))
    }

    fn cost(&self, expert: usize, load: u32) -> i64 {
        let cost = self.game.cost.marginal(ExpertId::from_index(expert), load);
        if cost.is_finite() { self.round(cost) } else { BARRED }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the conversion saturates, then clamps")]
    fn round(&self, value: f64) -> i64 {
        let steps = value * self.per_unit;
        // Half away from zero, as `round` does, which is a call where the target has no rounding.
        ((steps + 0.5_f64.copysign(steps)) as i64).clamp(-MOST, MOST)
    }
}

/// Loads, and what they cost those who stay and those who join.
#[derive(Clone)]
pub(super) struct Crowd<'g> {
    grid: Grid<'g>,
    pub(super) loads: Vec<u32>,
    stay: Vec<i64>,
    join: Vec<i64>,
}

impl<'g> Crowd<'g> {
    pub(super) fn new(grid: Grid<'g>, loads: Vec<u32>) -> Self {
        let zeros = vec![0; loads.len()];
        let mut crowd = Self { grid, stay: zeros.clone(), join: zeros, loads };
        (0..crowd.loads.len()).for_each(|expert| crowd.price(expert));
        crowd
    }

    fn price(&mut self, expert: usize) {
        let load = self.loads[expert];
        self.stay[expert] = self.grid.cost(expert, load.max(1));
        self.join[expert] = self.grid.cost(expert, load + 1);
    }

    /// A token goes from `old` to `new` experts.
    pub(super) fn shift(&mut self, old: &[ExpertId], new: &[ExpertId]) {
        for expert in old.iter().filter(|e| !new.contains(e)).map(|e| e.index()) {
            self.loads[expert] -= 1;
            self.price(expert);
        }
        for expert in new.iter().filter(|e| !old.contains(e)).map(|e| e.index()) {
            self.loads[expert] += 1;
            self.price(expert);
        }
    }

    /// Writes the token's best set to `set`, ascending, and says whether it differs from `held`,
    /// which means that it is better by at least one: of equal values those held are preferred.
    pub(super) fn improve(
        &self,
        token: usize,
        held: &[ExpertId],
        scratch: &mut Scratch,
        set: &mut [ExpertId],
    ) -> bool {
        let row = self.grid.game.scores.row(token);
        let Scratch { values, best } = scratch;
        values.clear();
        let pairs = row.iter().zip(&self.join);
        values.extend(pairs.map(|(score, cost)| 2 * (self.grid.score(*score) - cost)));
        for expert in held.iter().map(|expert| expert.index()) {
            values[expert] = 2 * (self.grid.score(row[expert]) - self.stay[expert]) + 1;
        }
        best.resize(held.len(), (0, 0));
        select_top(values, best);
        set.iter_mut().zip(best).for_each(|(slot, (_, at))| *slot = ExpertId(*at));
        set.sort_unstable();
        *set != *held
    }

    /// What a token's scores change by.
    pub(super) fn score_change(&self, token: usize, old: &[ExpertId], new: &[ExpertId]) -> i128 {
        let row = self.grid.game.scores.row(token);
        let sum = |set: &[ExpertId]| -> i128 {
            set.iter().map(|expert| i128::from(self.grid.score(row[expert.index()]))).sum()
        };
        sum(new) - sum(old)
    }

    /// `Σ_e C_e(n_e + change_e) − C_e(n_e)`.
    pub(super) fn congestion_change(&self, change: &[i64]) -> i128 {
        let mut sum = 0;
        for (expert, change) in change.iter().enumerate() {
            let load = self.loads[expert];
            let by = u32::try_from(change.unsigned_abs()).expect("at most T tokens move");
            let units = |from: u32, to: u32| -> i128 {
                (from + 1..=to).map(|load| i128::from(self.grid.cost(expert, load))).sum()
            };
            sum += if *change > 0 { units(load, load + by) } else { -units(load - by, load) };
        }
        sum
    }
}

/// Room to work in.
#[derive(Default)]
pub(super) struct Scratch {
    values: Vec<i64>,
    best: Vec<(i64, u32)>,
}

//! Exact solvers for the routing game that share no code with the engine: not the costs, not the
//! sums, not the search. Scores and costs become whole numbers, so nothing here rounds.

use agents::game::{Choices, CostSettings};
use good_lp::{
    Expression, ProblemVariables, Solution as _, SolverModel as _, constraint, microlp, variable,
};
use pathfinding::prelude::{Matrix, kuhn_munkres};

/// Bits of the largest number: sums over a game's pairs and the solver's penalties still fit 128.
const BITS: f64 = 88.0;

/// Scores from here on stand for "always" and "never": all of a game have the same size.
const HUGE: f64 = 1e29;

/// How many times the largest of the other numbers a huge one is worth here, as a power of two:
/// more than all others together, so that the best assignment is the same.
const HUGE_BITS: u32 = 20;

/// A game in multiples of `1/per_unit`, a power of two.
pub(crate) struct Exact {
    pub(crate) tokens: usize,
    pub(crate) experts: usize,
    top_k: usize,
    per_unit: f64,
    /// What a huge score is worth here, and what it is.
    huge: (i128, f64),
    /// Row-major `[T, E]`.
    scores: Vec<i128>,
    /// What the n-th token on an expert costs, at n − 1, up to the first that is barred.
    units: Vec<Vec<i128>>,
}

/// The cost of the n-th token from its formula in the documentation of [`CostSettings`].
fn unit_cost(cost: &CostSettings, fair_share: f64, expert: usize, load: f64) -> f64 {
    match cost {
        CostSettings::Quota { capacity_factor } => {
            if load <= (capacity_factor * fair_share).ceil() { 0.0 } else { f64::INFINITY }
        }
        CostSettings::Linear { price_per_fair_share } => price_per_fair_share * load / fair_share,
        CostSettings::Polynomial { price_per_fair_share, degree } => {
            price_per_fair_share * (load / fair_share).powf(*degree)
        }
        CostSettings::Latency { service_ms, window_ms, variation, price_per_ms } => {
            let service_ms = service_ms[if service_ms.len() == 1 { 0 } else { expert }];
            let busy = load * service_ms / window_ms;
            if busy >= 1.0 {
                return f64::INFINITY;
            }
            price_per_ms * service_ms * busy / (1.0 - busy) * (1.0 + variation * variation) / 2.0
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most 2^BITS, and rounding is meant")]
fn whole(value: f64, per_unit: f64) -> i128 {
    (value * per_unit).round() as i128
}

/// Below the least f32.
const LEAST_SIZE: f64 = 1e-46;

impl Exact {
    pub(crate) fn new(values: &[f32], experts: usize, top_k: usize, cost: &CostSettings) -> Self {
        let tokens = values.len() / experts;
        let fair_share = (tokens * top_k) as f64 / experts as f64;
        let of_expert = |expert: usize| -> Vec<f64> {
            let costs = (1..=tokens).map(|n| unit_cost(cost, fair_share, expert, n as f64));
            costs.take_while(|cost| cost.is_finite()).collect()
        };
        let units: Vec<Vec<f64>> = (0..experts).map(of_expert).collect();
        let scores = values.iter().map(|value| f64::from(*value));
        let is_huge = |size: &f64| *size >= HUGE;
        let sizes = scores.clone().chain(units.iter().flatten().copied()).map(f64::abs);
        let largest = sizes.filter(|size| !is_huge(size)).fold(LEAST_SIZE, f64::max);
        let per_unit = (BITS - f64::from(HUGE_BITS) - largest.log2().ceil()).exp2();
        let sizes = scores.clone().map(f64::abs).filter(is_huge);
        let (least, most) = sizes.fold((f64::MAX, HUGE), |(a, b), size| (a.min(size), b.max(size)));
        assert!(least >= most, "huge scores are alike");
        let huge = whole(2.0_f64.powf(BITS), 1.0);
        let exact = |score: f64| match is_huge(&score.abs()) {
            true => huge * whole(score.signum(), 1.0),
            false => whole(score, per_unit),
        };
        Self {
            tokens,
            experts,
            top_k,
            per_unit,
            huge: (huge, most),
            scores: scores.map(exact).collect(),
            units: units
                .iter()
                .map(|costs| costs.iter().map(|cost| whole(*cost, per_unit)).collect())
                .collect(),
        }
    }

    /// Back in the unit of the scores.
    pub(crate) fn real(&self, whole: i128) -> f64 {
        let (huge, score) = self.huge;
        let count = (whole + (huge >> 1)).div_euclid(huge);
        count as f64 * score + (whole - count * huge) as f64 / self.per_unit
    }

    /// What arithmetic in f64 may lose in a sum whose parts have that size together. Where huge
    /// scores are chosen, their number counts and the rest is lost in them.
    pub(crate) fn rounding(&self, magnitude: i128) -> i128 {
        if magnitude >= self.huge.0 / 2 { self.huge.0 >> 10 } else { magnitude >> 43 }
    }

    /// The same as a number, with what the grid of this solver loses.
    pub(crate) fn slack(&self, magnitude: i128) -> f64 {
        let resolution = (self.tokens * self.top_k) as f64 / self.per_unit;
        1e-13 * self.real(magnitude) + resolution
    }

    /// Whether the experts take Tk tokens together.
    pub(crate) fn is_feasible(&self) -> bool {
        self.units.iter().map(Vec::len).sum::<usize>() >= self.tokens * self.top_k
    }

    /// Φ, and the sum of the absolute values it is made of; none where a token is barred.
    pub(crate) fn potential(&self, choices: &Choices) -> Option<(i128, i128)> {
        let mut loads = vec![0; self.experts];
        let (mut potential, mut magnitude) = (0, 0);
        for token in 0..self.tokens {
            for expert in choices.row(token).iter().map(|expert| expert.index()) {
                let score = self.scores[token * self.experts + expert];
                let unit = *self.units[expert].get(loads[expert])?;
                loads[expert] += 1;
                potential += score - unit;
                magnitude += score.abs() + unit;
            }
        }
        Some((potential, magnitude))
    }

    /// The largest Φ, by the Hungarian method in whole numbers.
    ///
    /// Row (t, e) is a pair. It takes one of the E − k columns "token t does without", or one of
    /// the columns "n-th token on e", worth the score minus that unit's cost. Units cost more and
    /// more, so the best assignment fills each expert from its first unit on. A bonus fills the
    /// columns of doing without, which leaves each token exactly k units.
    pub(crate) fn best_by_assignment(&self) -> i128 {
        let (tokens, experts) = (self.tokens, self.experts);
        let without = experts - self.top_k;
        let columns: Vec<(usize, i128)> = (0..experts)
            .flat_map(|expert| self.units[expert].iter().map(move |unit| (expert, *unit)))
            .collect();
        let costs = self.units.iter().flatten();
        let largest = self.scores.iter().chain(costs).map(|value| value.abs()).max().unwrap_or(0);
        let pairs = (tokens * experts) as i128;
        let bonus = 2 * (largest + 1) * (pairs + 1);
        let forbidden = -2 * bonus * (pairs + 1);
        let weight = |(row, column): (usize, usize)| {
            let (token, expert) = (row / experts, row % experts);
            match column.checked_sub(tokens * without) {
                None if column / without == token => bonus,
                Some(unit) if columns[unit].0 == expert => self.scores[row] - columns[unit].1,
                _ => forbidden,
            }
        };
        let width = tokens * without + columns.len();
        let (best, _) = kuhn_munkres(&Matrix::from_fn(tokens * experts, width, weight));
        best - bonus * (tokens * without) as i128
    }

    /// The largest Φ as a linear program: how much of each pair and of each unit is used. Its
    /// matrix is totally unimodular, so the value is that of the best whole assignment.
    pub(crate) fn best_by_linear_program(&self) -> f64 {
        let mut variables = ProblemVariables::new();
        let mut worth = Expression::default();
        let mut of_token = vec![Expression::default(); self.tokens];
        let mut of_expert = vec![Expression::default(); self.experts];
        for (at, score) in self.scores.iter().enumerate() {
            let pair = variables.add(variable().min(0.0).max(1.0));
            worth += self.real(*score) * pair;
            of_token[at / self.experts] += pair;
            of_expert[at % self.experts] += pair;
        }
        for (expert, units) in self.units.iter().enumerate() {
            // Units of one price are one variable.
            for same in units.chunk_by(|a, b| a == b) {
                let used = variables.add(variable().min(0.0).max(same.len() as f64));
                worth -= self.real(same[0]) * used;
                of_expert[expert] -= used;
            }
        }
        let mut program = variables.maximise(worth.clone()).using(microlp);
        for chosen in of_token {
            program = program.with(constraint::eq(chosen, self.top_k as f64));
        }
        for unpaid in of_expert {
            program = program.with(constraint::eq(unpaid, 0.0));
        }
        program.solve().expect("a feasible game").eval(worth)
    }

    /// Whether no chain of moves, each an arc from expert to expert, gains more than `least`
    /// a move: no cycle of negative cost in the residual network, which a flow has exactly if it
    /// is optimal (Klein 1967). Node E stands for delivery: leaving it takes the last unit off an
    /// expert, entering it adds one.
    pub(crate) fn no_chain_of_moves_gains(&self, choices: &Choices, least: i128) -> bool {
        let nodes = self.experts + 1;
        let loads = choices.loads(self.experts);
        let mut length: Vec<Option<i128>> = vec![None; nodes * nodes];
        let mut shorten = |from: usize, to: usize, cost: i128| {
            let arc = &mut length[from * nodes + to];
            *arc = Some(arc.map_or(cost, |best| best.min(cost)));
        };
        for token in 0..self.tokens {
            let row = &self.scores[token * self.experts..][..self.experts];
            let mut on = vec![false; self.experts];
            choices.row(token).iter().for_each(|expert| on[expert.index()] = true);
            for from in (0..self.experts).filter(|expert| on[*expert]) {
                for to in (0..self.experts).filter(|expert| !on[*expert]) {
                    shorten(from, to, row[from] - row[to] + least);
                }
            }
        }
        for (expert, load) in loads.iter().map(|load| *load as usize).enumerate() {
            if load > 0 {
                shorten(self.experts, expert, -self.units[expert][load - 1] + least);
            }
            if let Some(next) = self.units[expert].get(load) {
                shorten(expert, self.experts, next + least);
            }
        }
        // Floyd and Warshall: a cycle of negative length shows on the diagonal. It is looked for
        // at every turn, because from then on lengths would double.
        for middle in 0..nodes {
            for from in 0..nodes {
                let Some(first) = length[from * nodes + middle] else { continue };
                for to in 0..nodes {
                    let Some(second) = length[middle * nodes + to] else { continue };
                    let arc = &mut length[from * nodes + to];
                    *arc = Some(arc.map_or(first + second, |best| best.min(first + second)));
                }
                if length[from * nodes + from].is_some_and(|cycle| cycle < 0) {
                    return false;
                }
            }
        }
        true
    }
}

//! The routing that a model was trained with: from router logits to scores, from scores to what
//! selects experts, and from a selection to gates.
//!
//! Scores and selection differ where a model adds a bias to balance its load (Wang et al. 2024,
//! arXiv:2408.15664) or lets a token use few groups of experts only (DeepSeek-V2,
//! arXiv:2405.04434, section 2.2.2; DeepSeek-V3, arXiv:2412.19437, section 2.1.2). Gates are made of the scores alone.

use crate::game::{Choices, select_top};
use crate::transformer::softmax;
use rayon::prelude::*;

/// How logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreFunction {
    /// Softmax over all experts.
    Softmax,
    /// `1 / (1 + exp(−logit))`, each expert by itself.
    Sigmoid,
}

/// What a group of experts is worth to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupWorth {
    /// Its largest value (DeepSeek-V2).
    Best,
    /// The sum of its two largest values (DeepSeek-V3).
    BestTwo,
}

/// A token may use experts of its best groups only. Groups are contiguous and of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimit {
    /// Groups; divides the number of experts.
    pub groups: usize,
    /// Groups that stay open to a token, 1 to `groups`; they hold k experts at least.
    pub kept: usize,
    /// By what the best groups are found.
    pub worth: GroupWorth,
}

/// The routing that a model was trained with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// How logits become scores.
    pub score: ScoreFunction,
    /// Which groups are open to a token; all without it.
    pub groups: Option<GroupLimit>,
    /// Whether the gates of a token's experts are divided by their sum.
    pub normalise: bool,
    /// What gates are multiplied by at last; positive.
    pub scale: f32,
}

impl Routing {
    /// Softmax over all experts, gates as they are or divided by their sum.
    #[must_use]
    pub const fn softmax(normalise: bool) -> Self {
        Self { score: ScoreFunction::Softmax, groups: None, normalise, scale: 1.0 }
    }

    /// Turns logits `[T, E]` into scores of 0 to 1, in place.
    ///
    /// # Panics
    /// When `rows` has no whole rows.
    pub fn score(&self, rows: &mut [f32], experts: usize) {
        match self.score {
            ScoreFunction::Softmax => softmax(rows, experts),
            ScoreFunction::Sigmoid => {
                assert!(experts > 0 && rows.len().is_multiple_of(experts), "whole rows");
                let row = |row: &mut [f32]| row.iter_mut().for_each(|x| *x = sigmoid(*x));
                rows.par_chunks_mut(experts).for_each(row);
            }
        }
    }

    /// What experts are selected by, `[T, E]`: scores plus `bias` `[E]` (empty for none), in which
    /// every expert of a closed group stands one below the token's least value. Scores lie in 0 to
    /// 1, so no open expert can be worth less. `None` where the scores themselves select.
    ///
    /// # Panics
    /// When rows are not whole, `bias` is neither empty nor one value an expert, or the groups do
    /// not divide the experts.
    #[must_use]
    pub fn selection(&self, scores: &[f32], bias: &[f32], experts: usize) -> Option<Vec<f32>> {
        if bias.is_empty() && self.groups.is_none() {
            return None;
        }
        assert!(experts > 0 && scores.len().is_multiple_of(experts), "whole rows");
        assert!(bias.is_empty() || bias.len() == experts, "one bias an expert");
        let mut values = scores.to_vec();
        values.par_chunks_mut(experts).for_each(|row| {
            row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            if let Some(limit) = self.groups {
                limit.close(row);
            }
        });
        Some(values)
    }
}

impl GroupLimit {
    fn close(&self, row: &mut [f32]) {
        assert!(self.groups > 0 && row.len().is_multiple_of(self.groups), "groups of one size");
        let size = row.len() / self.groups;
        let counted = match self.worth {
            GroupWorth::Best => 1,
            GroupWorth::BestTwo => size.min(2),
        };
        let mut best = vec![(0.0, 0); counted];
        let worth = |group: &[f32]| {
            select_top(group, &mut best);
            best.iter().map(|(value, _)| value).sum::<f32>()
        };
        let worth: Vec<f32> = row.chunks_exact(size).map(worth).collect();
        let mut open = vec![(0.0, 0); self.kept.clamp(1, self.groups)];
        select_top(&worth, &mut open);
        let closed = row.iter().copied().fold(f32::INFINITY, f32::min) - 1.0;
        for (group, values) in (0_u32..).zip(row.chunks_exact_mut(size)) {
            if open.iter().all(|(_, kept)| *kept != group) {
                values.fill(closed);
            }
        }
    }
}

/// The gate of every chosen pair, by token and ascending expert: its score of `[T, E]`, divided by
/// the sum over the token's pairs and scaled as `routing` says. Where play leaves a token only
/// experts whose score is zero in f32, they share its gate equally.
///
/// # Panics
/// When there is not one row of scores a token.
#[must_use]
pub fn gates(scores: &[f32], choices: &Choices, routing: &Routing) -> Vec<f32> {
    let experts = scores.len() / choices.tokens().max(1);
    assert_eq!(scores.len(), choices.tokens() * experts, "one row a token");
    let mut gates = Vec::with_capacity(choices.experts().len());
    for (token, row) in scores.chunks_exact(experts.max(1)).enumerate() {
        let start = gates.len();
        gates.extend(choices.row(token).iter().map(|expert| row[expert.index()]));
        let chosen = &mut gates[start..];
        if routing.normalise {
            let sum: f32 = chosen.iter().sum();
            let equal = 1.0 / chosen.len() as f32;
            chosen.iter_mut().for_each(|gate| *gate = if sum > 0.0 { *gate / sum } else { equal });
        }
        if routing.scale != 1.0 {
            chosen.iter_mut().for_each(|gate| *gate *= routing.scale);
        }
    }
    gates
}

/// `1 / (1 + exp(−x))`.
#[must_use]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ExpertId;

    fn limited(worth: GroupWorth) -> Routing {
        let groups = Some(GroupLimit { groups: 3, kept: 1, worth });
        Routing { score: ScoreFunction::Sigmoid, groups, normalise: true, scale: 2.5 }
    }

    #[test]
    fn a_group_is_worth_its_best_or_its_best_two_and_closed_ones_stand_below_all() {
        let scores = [0.9, 0.0, 0.6, 0.5, 0.1, 0.2];
        let best = limited(GroupWorth::Best).selection(&scores, &[], 6);
        assert_eq!(best.expect("limited"), [0.9, 0.0, -1.0, -1.0, -1.0, -1.0]);
        let two = limited(GroupWorth::BestTwo).selection(&scores, &[], 6);
        assert_eq!(two.expect("limited"), [-1.0, -1.0, 0.6, 0.5, -1.0, -1.0]);
    }

    #[test]
    fn of_equal_groups_the_first_stays_open() {
        let open = limited(GroupWorth::Best).selection(&[0.5; 6], &[], 6).expect("limited");
        assert_eq!(open, [0.5, 0.5, -0.5, -0.5, -0.5, -0.5]);
    }

    #[test]
    fn a_bias_moves_the_selection_and_never_the_gates() {
        let mut scores = [0.0, 1.0, -1.0, 0.5];
        let routing = Routing { groups: None, ..limited(GroupWorth::Best) };
        routing.score(&mut scores, 4);
        assert_eq!(scores[0], 0.5);
        let selection = routing.selection(&scores, &[0.0, 0.0, 5.0, 0.0], 4).expect("biased");
        assert!(selection[2] > selection[1] && selection[1] == scores[1]);
        let choices = Choices::uniform([1, 2].map(ExpertId).to_vec(), 2);
        let sum = scores[1] + scores[2];
        assert_eq!(gates(&scores, &choices, &routing), [1, 2].map(|e| scores[e] / sum * 2.5));
        assert_eq!(Routing::softmax(true).selection(&scores, &[], 4), None);
    }
}

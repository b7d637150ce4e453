//! Group-limited routing: a restriction that any router can play under.

use rayon::prelude::*;

use super::super::{Choices, Game, Play, Router, Scores, select_top};
use crate::ids::ExpertId;

/// Each token may use the experts of its best groups only (node-limited routing: DeepSeek-V3,
/// arXiv 2412.19437).
///
/// Experts stand in `groups` contiguous groups. A group's worth to a token is the sum of its
/// `max(1, k/kept)` best scores; the best `kept` groups stay open, more if they hold less than k
/// experts. The router inside plays scores in which all others are four score ranges below the
/// least. A pair that it puts there nevertheless (a quota may force it to) is dropped.
///
/// Guaranteed: no token uses more than `kept` groups, where those hold k experts. The choice of
/// groups is greedy and the sets are no matroid, so nothing more is: the certificate is in the
/// game without the restriction, and its gap includes what the restriction costs. Passes: two
/// more than the router's. Causal as the router inside is. Label: tested.
pub struct GroupLimited {
    router: Box<dyn Router>,
    groups: usize,
    kept: usize,
}

impl GroupLimited {
    /// `router` inside the best `kept` of `groups` groups. Both are limited to what the game has.
    #[must_use]
    pub fn new(router: Box<dyn Router>, groups: usize, kept: usize) -> Self {
        Self { router, groups, kept }
    }

    /// The group of an expert in a game of `experts`, and how many groups there are.
    #[must_use]
    pub fn group(&self, expert: ExpertId, experts: usize) -> (usize, usize) {
        let groups = self.groups.clamp(1, experts);
        (expert.index() * groups / experts, groups)
    }

    /// The groups that stay open to a token, best first.
    fn open(&self, row: &[f32], k: usize) -> Vec<usize> {
        let (_, groups) = self.group(ExpertId(0), row.len());
        let each = (k / self.kept.clamp(1, groups)).max(1);
        let mut members = vec![Vec::new(); groups];
        for (expert, score) in (0..).map(ExpertId).zip(row) {
            members[self.group(expert, row.len()).0].push(*score);
        }
        let worth = |scores: &Vec<f32>| {
            let mut best = vec![(0.0, 0); each.min(scores.len())];
            select_top(scores, &mut best);
            best.iter().map(|(score, _)| f64::from(*score)).sum::<f64>()
        };
        let worth: Vec<f64> = members.iter().map(worth).collect();
        let mut order: Vec<usize> = (0..groups).collect();
        order.sort_by(|a, b| worth[*b].total_cmp(&worth[*a]));
        let mut held = 0;
        let needed = |(rank, group): &(usize, usize)| {
            let open = *rank < self.kept || held < k;
            held += members[*group].len();
            open
        };
        order.into_iter().enumerate().take_while(needed).map(|(_, group)| group).collect()
    }
}

impl Router for GroupLimited {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        let (tokens, experts) = (game.scores.tokens(), game.scores.experts());
        let (_, groups) = self.group(ExpertId(0), experts);
        let values = game.scores.values();
        let least = values.iter().copied().fold(f32::INFINITY, f32::min);
        let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let closed = (least - 4.0 * (most - least)).max(f32::MIN);
        let mut masked = values.to_vec();
        let mut is_open = vec![false; tokens * groups];
        let rows = masked.par_chunks_mut(experts).zip(is_open.par_chunks_mut(groups));
        rows.for_each(|(row, is_open)| {
            self.open(row, game.top_k).into_iter().for_each(|group| is_open[group] = true);
            for (expert, score) in (0..).map(ExpertId).zip(&mut *row) {
                if !is_open[self.group(expert, experts).0] {
                    *score = closed;
                }
            }
        });
        let scores = Scores::new(&masked, experts).expect("scores and their least are finite");
        let play = self.router.route(&Game { scores, ..*game }, warm);
        let allowed = |token: usize, expert: &ExpertId| {
            is_open[token * groups + self.group(*expert, experts).0]
        };
        let keep = |token: usize| -> Vec<ExpertId> {
            let row = play.choices.row(token).iter().copied();
            row.filter(|expert| allowed(token, expert)).collect()
        };
        let rows: Vec<Vec<ExpertId>> = (0..tokens).map(keep).collect();
        Play { choices: Choices::ragged(&rows), passes: play.passes.saturating_add(2), ..play }
    }
}

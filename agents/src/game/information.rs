//! What a router may know when it plays: the batch, older prices, or a share of the tokens.

use std::collections::VecDeque;
use std::sync::Arc;

use super::routers::answer::answer;
use super::{Choices, CongestionCost, Game, Play, Router, Scores};
use crate::ids::ExpertId;

/// What is known when a batch is routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Information {
    /// All tokens of the batch. Not causal: a token's experts depend on later tokens.
    InBatch,
    /// Prices of `batches` batches ago and the token itself: it takes its top k of `a − p`.
    /// Causal across batches. Afterwards the router takes the batch, warm from the prices that
    /// were in force, and the prices it ends with come into force `batches` batches later.
    /// The first prices are 0. Only the router's prices play here: one that posts none leaves
    /// plain top-k.
    Stale {
        /// Age of the prices in batches, at least 1. 1 is what training uses.
        batches: usize,
    },
    /// Each of several dispatchers sees its own contiguous share of the batch and plays its own
    /// game, as if the others' tokens were like its own: its n-th token on an expert costs what
    /// the `(⌊(n − 1)·T/T_d⌋ + 1)`-th of all would. So shares of a quota round up, and where they
    /// are not whole the union may exceed it by less than one token a dispatcher: the certificate
    /// is that of the union. Not causal within a share, no exchange between shares.
    Partial {
        /// Number of dispatchers, at least 1; at most T take part.
        dispatchers: usize,
    },
}

/// A router that plays batch after batch under some information, with the prices it remembers.
pub struct Dynamics {
    router: Arc<dyn Router>,
    information: Information,
    /// Prices, the oldest first: the last ones, those not yet in force, or one set a dispatcher.
    prices: VecDeque<Vec<f64>>,
}

impl Dynamics {
    /// Remembers nothing yet.
    #[must_use]
    pub fn new(router: Box<dyn Router>, information: Information) -> Self {
        Self::sharing(router.into(), information)
    }

    /// The same with a router that other layers play with too: a router keeps no state, the
    /// dynamics does.
    #[must_use]
    pub fn sharing(router: Arc<dyn Router>, information: Information) -> Self {
        Self { router, information, prices: VecDeque::new() }
    }

    /// What it remembers: prices, the oldest first. Later plays depend on nothing else that earlier ones
    /// left.
    #[must_use]
    pub fn memory(&self) -> &VecDeque<Vec<f64>> {
        &self.prices
    }

    /// Remembers this instead.
    pub fn recall(&mut self, memory: VecDeque<Vec<f64>>) {
        self.prices = memory;
    }

    /// Plays the next batch of the same layer, any number of tokens.
    pub fn play(&mut self, game: &Game<'_>) -> Play {
        match self.information {
            Information::InBatch => {
                let play = self.router.route(game, self.prices.front().map(Vec::as_slice));
                self.prices = VecDeque::from([play.prices.clone()]);
                play
            }
            Information::Stale { batches } => self.play_stale(game, batches.max(1)),
            Information::Partial { dispatchers } => {
                self.play_partial(game, dispatchers.clamp(1, game.scores.tokens()))
            }
        }
    }

    /// Certified with the prices in force: they are what the tokens answered.
    fn play_stale(&mut self, game: &Game<'_>, batches: usize) -> Play {
        let due = if self.prices.len() == batches { self.prices.pop_front() } else { None };
        let fits = |prices: &Vec<f64>| prices.len() == game.scores.experts();
        let prices = due.filter(fits).unwrap_or_else(|| vec![0.0; game.scores.experts()]);
        let learnt = self.router.route(game, Some(&prices));
        self.prices.push_back(learnt.prices);
        let choices = answer(game, &prices).choices;
        let passes = learnt.passes.saturating_add(1);
        Play { choices, prices, passes, iterations: learnt.iterations }
    }

    /// Prices of the union: the mean of the dispatchers', by tokens. Passes and iterations: the
    /// most that one dispatcher made, for they play side by side.
    fn play_partial(&mut self, game: &Game<'_>, dispatchers: usize) -> Play {
        let (tokens, experts) = (game.scores.tokens(), game.scores.experts());
        self.prices.resize(dispatchers, Vec::new());
        let mut rows: Vec<Vec<ExpertId>> = Vec::with_capacity(tokens);
        let mut prices = vec![0.0; experts];
        let (mut passes, mut iterations) = (0, 0);
        for (dispatcher, remembered) in self.prices.iter_mut().enumerate() {
            let own = dispatcher * tokens / dispatchers..(dispatcher + 1) * tokens / dispatchers;
            let values = &game.scores.values()[own.start * experts..own.end * experts];
            let scores = Scores::new(values, experts).expect("whole rows of checked scores");
            let cost = ShareOfCost { whole: game.cost, tokens, own: own.len() };
            let share = Game { scores, cost: &cost, ..*game };
            let warm = Some(remembered.as_slice()).filter(|prices| !prices.is_empty());
            let play = self.router.route(&share, warm);
            rows.extend((0..own.len()).map(|token| play.choices.row(token).to_vec()));
            let weight = own.len() as f64 / tokens as f64;
            prices.iter_mut().zip(&play.prices).for_each(|(sum, price)| *sum += weight * price);
            passes = passes.max(play.passes);
            iterations = iterations.max(play.iterations);
            *remembered = play.prices;
        }
        Play { choices: Choices::ragged(&rows), prices, passes, iterations }
    }
}

/// The cost as a dispatcher of `own` of `tokens` tokens takes it to be.
struct ShareOfCost<'g> {
    whole: &'g dyn CongestionCost,
    tokens: usize,
    own: usize,
}

impl CongestionCost for ShareOfCost<'_> {
    fn marginal(&self, expert: ExpertId, load: u32) -> f64 {
        let before = load.saturating_sub(1) as usize * self.tokens / self.own;
        self.whole.marginal(expert, u32::try_from(before + 1).unwrap_or(u32::MAX))
    }

    fn total(&self, expert: ExpertId, load: u32) -> f64 {
        (1..=load).map(|load| self.marginal(expert, load)).sum()
    }

    fn conjugate(&self, expert: ExpertId, price: f64) -> f64 {
        let gains = (1..).take(self.own).map(|load| price - self.marginal(expert, load));
        gains.take_while(|gain| *gain > 0.0).sum()
    }
}

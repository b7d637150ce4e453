//! The auction: tokens bid for places on experts.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::super::{Choices, Game, Play, Router, select_top};
use super::answer::{capacities, passes, score_range, start};
use crate::ids::ExpertId;

/// Bertsekas' auction for places of equal capacity (BASE, Lewis et al. 2021, uses it at k = 1,
/// with experts as bidders), for any k and any remainder.
///
/// A token with m empty slots bids for its m best experts that it is not on, each time down to
/// the value of the next best: `bid_e = a[t,e] − (a[t,f] − p_f) + ε`, f the best one left over. A
/// full expert gives its place of lowest bid to a higher one; its price is its lowest bid, and 0
/// while a place is free. A token's value of what is left over only falls, so at the end no place
/// it holds is worth less than ε below any that it does not hold.
///
/// Guaranteed under a quota below T when the turns sufficed: `Φ_max − Φ ≤ Tkε` (Bertsekas and Castañón
/// 1989), loads within capacity. Beyond them the empty slots take the best expert with a
/// free place, or any. Under a cost that bars no load up to T, capacity is the fair share. Not causal.
/// Warm prices are not used, for an unfilled expert has to start at 0. Iterations: tokens that
/// bid. Passes: rows read for it, over T. Label: tested.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Auction {
    /// ε as a part of the range of the scores, > 0.
    pub epsilon: f64,
    /// Turns a token has on average, at most.
    pub most_turns_per_token: u32,
}

impl Default for Auction {
    /// A thousandth of the range, 400 turns.
    fn default() -> Self {
        Self { epsilon: 1e-3, most_turns_per_token: 400 }
    }
}

impl Auction {
    /// ε of a game, in units of the scores.
    #[must_use]
    pub fn increment(&self, game: &Game<'_>) -> f64 {
        (self.epsilon * score_range(game)).max(f64::from(f32::MIN_POSITIVE) * self.epsilon)
    }
}

impl Router for Auction {
    fn route(&self, game: &Game<'_>, _: Option<&[f64]>) -> Play {
        let tokens = game.scores.tokens();
        let mut room = Room::new(game);
        if game.top_k == game.scores.experts() {
            (0..tokens).for_each(|token| room.fill(game, token));
            return room.into_play(game, 0);
        }
        let increment = self.increment(game);
        let mut waiting: VecDeque<usize> = (0..tokens).collect();
        let most_turns = u64::from(self.most_turns_per_token).saturating_mul(tokens as u64);
        let mut turns = 0;
        while turns < most_turns {
            let Some(token) = waiting.pop_front() else { break };
            room.bid(game, token, increment, &mut waiting);
            turns += 1;
        }
        waiting.into_iter().for_each(|token| room.fill(game, token));
        room.into_play(game, turns)
    }
}

/// A bid's order is that of its amount, then of its token.
#[derive(PartialEq)]
struct Bid(f64, usize);

impl Eq for Bid {}

impl PartialOrd for Bid {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bid {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(other.1.cmp(&self.1))
    }
}

struct Room {
    capacity: Vec<usize>,
    held: Vec<BinaryHeap<Reverse<Bid>>>,
    prices: Vec<f64>,
    rows: Vec<Vec<ExpertId>>,
}

impl Room {
    fn new(game: &Game<'_>) -> Self {
        let prices = start(game, None);
        Self {
            capacity: capacities(game).into_iter().map(|c| c.max(1) as usize).collect(),
            held: prices.iter().map(|_| BinaryHeap::new()).collect(),
            prices,
            rows: vec![Vec::new(); game.scores.tokens()],
        }
    }

    /// The token bids for all its empty slots; whoever loses a place waits.
    fn bid(
        &mut self,
        game: &Game<'_>,
        token: usize,
        increment: f64,
        waiting: &mut VecDeque<usize>,
    ) {
        let row = game.scores.row(token);
        let missing = game.top_k - self.rows[token].len();
        let pairs = row.iter().zip(&self.prices);
        let mut values: Vec<f64> = pairs.map(|(score, price)| f64::from(*score) - price).collect();
        self.rows[token].iter().for_each(|expert| values[expert.index()] = f64::NEG_INFINITY);
        let mut best = vec![(0.0, 0); missing + 1];
        select_top(&values, &mut best);
        let left_over = best[missing].0;
        for (value, expert) in best.iter().take(missing).map(|(value, at)| (*value, *at as usize)) {
            // Rounding may swallow the increment of extreme scores, never the price.
            let bid = (self.prices[expert] + ((value - left_over) + increment)).min(f64::MAX);
            let held = &mut self.held[expert];
            held.push(Reverse(Bid(bid, token)));
            self.rows[token].push(ExpertId::from_index(expert));
            if held.len() > self.capacity[expert] {
                let Reverse(Bid(_, loser)) = held.pop().expect("it holds more than its capacity");
                self.rows[loser].retain(|held| held.index() != expert);
                if loser != token && self.rows[loser].len() + 1 == game.top_k {
                    waiting.push_back(loser);
                }
            }
            if held.len() == self.capacity[expert] {
                self.prices[expert] = held.peek().map_or(0.0, |Reverse(bid)| bid.0);
            }
        }
        if self.rows[token].len() < game.top_k {
            waiting.push_back(token);
        }
    }

    /// Without bids: the best experts with a free place, then any others.
    fn fill(&mut self, game: &Game<'_>, token: usize) {
        let row = game.scores.row(token);
        let mut order: Vec<usize> = (0..row.len()).collect();
        let full = |e: &usize| self.held[*e].len() >= self.capacity[*e];
        order.sort_by(|a, b| full(a).cmp(&full(b)).then(row[*b].total_cmp(&row[*a])));
        for expert in order.into_iter().map(ExpertId::from_index) {
            if self.rows[token].len() < game.top_k && !self.rows[token].contains(&expert) {
                self.held[expert.index()].push(Reverse(Bid(f64::MAX, token)));
                self.rows[token].push(expert);
            }
        }
    }

    fn into_play(mut self, game: &Game<'_>, turns: u64) -> Play {
        self.rows.iter_mut().for_each(|row| row.sort_unstable());
        let choices = Choices::uniform(self.rows.concat(), game.top_k);
        let iterations = u32::try_from(turns).unwrap_or(u32::MAX);
        Play { choices, prices: self.prices, passes: passes(game, turns), iterations }
    }
}

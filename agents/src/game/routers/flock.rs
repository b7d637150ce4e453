//! The flock in a batch: experts find prices by local rules, round by round.

use rayon::prelude::*;

use super::super::prices::{Supply, clearing_price, price_for_load};
use super::super::{Choices, Game, Play, Router, TOKEN_BLOCK, select_top};
use super::answer::{coin, level, unit, usable};
use crate::flock::graph::Graph;
use crate::flock::rule::{Clearing, Excess, Heard, PriceRule, Seen};
use crate::ids::ExpertId;

/// Experts that see their own bids and what a few neighbours tell, and no more.
///
/// In each round every front end holds the prices that it heard last; its tokens take their best k
/// of `a − p` among their candidates and bid: a token's bid for an expert is the price at which it
/// would join or leave it. Each expert then moves its price by the [`PriceRule`] and tells its
/// neighbours and all front ends. Prices and messages are `delay_rounds` old when they are heard,
/// and each message is lost with probability `lost_share`: then the last one stays in force.
///
/// Guaranteed: nothing, the certificate tells how far the end is from the equilibrium. Under a
/// quota without slack the loads are left a few tokens off, so that Φ is −inf; the dual bound still
/// holds. `Nearest` neighbours are experts whose scores go up and down with the own ones over the
/// first tokens of the batch.
///
/// Prices are levelled for the certificate; the tokens answer the unlevelled ones. Iterations:
/// rounds. Not causal in a batch. Label: experimental.
pub struct FlockPrices {
    /// How a price moves.
    pub rule: Box<dyn PriceRule>,
    /// Who hears whom.
    pub graph: Graph,
    /// Neighbours an expert hears; of `Complete` all.
    pub neighbours: usize,
    /// Rounds.
    pub rounds: u32,
    /// Age of what is heard, in rounds.
    pub delay_rounds: u32,
    /// Probability that a message is lost, 0 to 1.
    pub lost_share: f64,
    /// Equal parts of the batch that hear prices apart from each other, at least 1.
    pub front_ends: usize,
    /// Experts that a token considers, its best by score; all when absent, k + 1 at least.
    pub candidates: Option<usize>,
    /// Of the graph and of what is lost.
    pub seed: u64,
}

impl Default for FlockPrices {
    /// Bids, seven nearest neighbours, 30 rounds, nothing late or lost, 8 front ends.
    fn default() -> Self {
        Self {
            rule: Box::new(Clearing { step: 0.8, alignment: 0.1 }),
            graph: Graph::Nearest,
            neighbours: 7,
            rounds: 30,
            delay_rounds: 0,
            lost_share: 0.0,
            front_ends: 8,
            candidates: None,
            seed: 0,
        }
    }
}

impl FlockPrices {
    /// Moves by the excess load alone: the control of the default.
    #[must_use]
    pub fn by_excess() -> Self {
        let rule = Box::new(Excess { step: 0.001, alignment: 0.1 });
        Self { rule, ..Self::default() }
    }

    /// Hears what is 4 rounds old, and nine messages of ten; 60 rounds.
    #[must_use]
    pub fn late() -> Self {
        Self { delay_rounds: 4, lost_share: 0.1, rounds: 60, ..Self::default() }
    }

    /// Tokens know their 15 best experts of all: 7 beside the 8 that the field's models take.
    #[must_use]
    pub fn near() -> Self {
        Self { candidates: Some(15), ..Self::default() }
    }

    /// Plays, and tells of each round.
    #[must_use]
    pub fn fly(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Flight {
        let experts = game.scores.experts();
        let near = self.neighbourhoods(game);
        let mut flock = Birds::new(self, game, warm, &near);
        let mut tokens = Flockers::new(game, self.candidates);
        let mut rounds = Vec::new();
        let fair_share = (game.scores.tokens() * game.top_k) as f64 / experts as f64;
        loop {
            tokens.ask(&flock.views);
            let loads = tokens.loads(experts);
            let largest = loads.iter().max().map_or(0.0, |load| f64::from(*load));
            rounds
                .push(FlockRound { max_over_mean: largest / fair_share, messages: flock.messages });
            if flock.round == self.rounds {
                break;
            }
            flock.fly(self, game, &tokens, &loads, fair_share);
        }
        let visited = (u64::from(self.rounds) + 1) * tokens.each as u64;
        let play = Play {
            choices: tokens.choices(),
            prices: level(game, flock.prices),
            passes: u32::try_from(visited.div_ceil(experts as u64)).unwrap_or(u32::MAX),
            iterations: self.rounds,
        };
        Flight { play, rounds }
    }

    /// Positions are the scores of some tokens less their means: the angle between two experts is
    /// then the correlation of their scores.
    fn neighbourhoods(&self, game: &Game<'_>) -> Vec<Vec<ExpertId>> {
        let experts = game.scores.experts();
        let rows = game.scores.tokens().min(POSITION_TOKENS);
        let mut positions =
            vec![0.0; if self.graph == Graph::Nearest { experts * rows } else { 0 }];
        for (expert, position) in positions.chunks_exact_mut(rows).enumerate() {
            let score = |row: usize| game.scores.row(row)[expert];
            let mean = (0..rows).map(|row| f64::from(score(row))).sum::<f64>() / rows as f64;
            for (row, place) in position.iter_mut().enumerate() {
                *place = narrow(f64::from(score(row)) - mean);
            }
        }
        self.graph.neighbourhoods(&positions, experts, self.neighbours, self.seed)
    }
}

impl Router for FlockPrices {
    fn route(&self, game: &Game<'_>, warm: Option<&[f64]>) -> Play {
        self.fly(game, warm).play
    }
}

/// A play and how it came about.
#[derive(Clone, Debug)]
pub struct Flight {
    /// The end.
    pub play: Play,
    /// Before each move, and the end.
    pub rounds: Vec<FlockRound>,
}

/// One round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlockRound {
    /// Largest load over the mean.
    pub max_over_mean: f64,
    /// Messages so far: from experts to neighbours and front ends, and the bids of each front end
    /// to each expert, lost ones among them.
    pub messages: u64,
}

/// Tokens over whose scores neighbours are found.
const POSITION_TOKENS: usize = 512;

/// The experts.
struct Birds<'n> {
    near: &'n [Vec<ExpertId>],
    round: u32,
    prices: Vec<f64>,
    /// Prices and messages of the last rounds, the oldest first, as many as are under way.
    sent: Vec<(Vec<f64>, Vec<Heard>)>,
    /// `[front ends, E]`: the prices heard.
    views: Vec<Vec<f64>>,
    /// By expert: what was heard from each neighbour.
    heard: Vec<Vec<Heard>>,
    messages: u64,
}

impl<'n> Birds<'n> {
    fn new(
        flock: &FlockPrices,
        game: &Game<'_>,
        warm: Option<&[f64]>,
        near: &'n [Vec<ExpertId>],
    ) -> Self {
        let experts = game.scores.experts();
        let fair = (game.scores.tokens() * game.top_k).div_ceil(experts);
        let fair = u32::try_from(fair).expect("at most T");
        // A fair price to begin with: what the cost asks at the fair share, where it says so.
        let cost = |e: usize| game.cost.marginal(ExpertId::from_index(e), fair);
        let fair_price = |e: usize| Some(cost(e)).filter(|c| c.is_finite()).unwrap_or(0.0);
        let prices: Vec<f64> = usable(game, warm)
            .map_or_else(|| (0..experts).map(fair_price).collect(), <[f64]>::to_vec);
        let still = vec![Heard::default(); experts];
        Self {
            near,
            round: 0,
            sent: vec![(prices.clone(), still); flock.delay_rounds as usize],
            views: vec![prices.clone(); flock.front_ends.max(1)],
            heard: near.iter().map(|near| vec![Heard::default(); near.len()]).collect(),
            prices,
            messages: 0,
        }
    }

    /// Moves all prices at once, then delivers what arrives.
    fn fly(
        &mut self,
        flock: &FlockPrices,
        game: &Game<'_>,
        tokens: &Flockers<'_>,
        loads: &[u32],
        fair_share: f64,
    ) {
        let clearing = tokens.clearing_prices(game, &self.prices);
        let mut sent = Vec::with_capacity(self.prices.len());
        for (expert, price) in self.prices.iter_mut().enumerate() {
            let load = f64::from(loads[expert]);
            let velocity = flock.rule.velocity(&Seen {
                price: *price,
                clearing: clearing[expert],
                load,
                fair_share,
                delay_rounds: flock.delay_rounds,
                neighbours: &self.heard[expert],
            });
            *price += velocity;
            sent.push(Heard { velocity, excess: load / fair_share - 1.0 });
        }
        self.sent.push((self.prices.clone(), sent));
        let (prices, told) = self.sent.remove(0);
        self.round += 1;
        self.deliver(flock, &prices, &told);
    }

    /// Hears what was sent some rounds ago, or in this one.
    fn deliver(&mut self, flock: &FlockPrices, prices: &[f64], told: &[Heard]) {
        let experts = prices.len();
        let mut message = 0_u64;
        let mut arrives = || {
            message += 1;
            unit(coin(flock.seed, u64::from(self.round), message)) >= flock.lost_share
        };
        for view in &mut self.views {
            for (seen, price) in view.iter_mut().zip(prices) {
                if arrives() {
                    *seen = *price;
                }
            }
        }
        for (heard, near) in self.heard.iter_mut().zip(self.near) {
            for (heard, expert) in heard.iter_mut().zip(near) {
                if arrives() {
                    *heard = told[expert.index()];
                }
            }
        }
        // What front ends report to the experts: one message of bids each.
        self.messages += message + (self.views.len() * experts) as u64;
    }
}

/// The tokens.
struct Flockers<'g> {
    game: Game<'g>,
    /// Candidates of a token, at least k + 1 but for k = E.
    each: usize,
    /// Row-major `[T, each]`, ascending; empty when all experts are candidates.
    candidates: Vec<u32>,
    /// Their scores, so that a round reads nothing else.
    scores: Vec<f32>,
    /// Row-major `[T, k]`.
    chosen: Vec<ExpertId>,
    /// Row-major `[T, each]`: the price at which the token joins or leaves.
    bids: Vec<f32>,
    /// Bids by expert: where each expert's begin in `places`, and their places in `bids`.
    starts: Vec<usize>,
    places: Vec<u32>,
}

impl<'g> Flockers<'g> {
    fn new(game: &Game<'g>, candidates: Option<usize>) -> Self {
        let (tokens, experts, k) = (game.scores.tokens(), game.scores.experts(), game.top_k);
        let each = candidates.map_or(experts, |each| each.max(k + 1)).min(experts);
        let mut listed = vec![0; if each == experts { 0 } else { tokens * each }];
        listed.par_chunks_mut(TOKEN_BLOCK * each).enumerate().for_each(|(block, listed)| {
            let mut best = vec![(0.0, 0); each];
            for (token, row) in (block * TOKEN_BLOCK..).zip(listed.chunks_exact_mut(each)) {
                select_top(game.scores.row(token), &mut best);
                row.iter_mut().zip(&best).for_each(|(slot, (_, expert))| *slot = *expert);
                row.sort_unstable();
            }
        });
        let rows = listed.chunks_exact(each).enumerate();
        let scores = rows.flat_map(|(token, row)| {
            let scores = game.scores.row(token);
            row.iter().map(|expert| scores[*expert as usize])
        });
        let scores = scores.collect();
        let (mut starts, mut places) = (vec![0; experts + 1], Vec::new());
        if !listed.is_empty() {
            listed.iter().for_each(|expert| starts[*expert as usize + 1] += 1);
            (0..experts).for_each(|expert| starts[expert + 1] += starts[expert]);
            let mut next = starts.clone();
            places = vec![0; listed.len()];
            for (place, expert) in (0..).zip(&listed) {
                places[next[*expert as usize]] = place;
                next[*expert as usize] += 1;
            }
        }
        Self {
            game: *game,
            each,
            candidates: listed,
            scores,
            chosen: vec![ExpertId(0); tokens * k],
            bids: vec![0.0; tokens * each],
            starts,
            places,
        }
    }

    /// All tokens choose and bid by the prices that their front end has heard.
    fn ask(&mut self, views: &[Vec<f64>]) {
        let Self { game, each, candidates, scores, chosen, bids, .. } = self;
        let (tokens, k, each) = (game.scores.tokens(), game.top_k, *each);
        let all: Vec<u32> = (0..).take(game.scores.experts()).collect();
        let blocks =
            chosen.par_chunks_mut(TOKEN_BLOCK * k).zip(bids.par_chunks_mut(TOKEN_BLOCK * each));
        blocks.enumerate().for_each(|(block, (chosen, bids))| {
            let mut best = vec![(0.0, 0); (k + 1).min(each)];
            let mut priced = vec![0.0; each];
            let rows = chosen.chunks_exact_mut(k).zip(bids.chunks_exact_mut(each));
            for (token, (chosen, bids)) in (block * TOKEN_BLOCK..).zip(rows) {
                let prices = &views[token * views.len() / tokens];
                let part = token * each..(token + 1) * each;
                let (listed, scores) = match candidates.get(part.clone()) {
                    Some(listed) => (listed, &scores[part]),
                    None => (&all[..], game.scores.row(token)),
                };
                for ((priced, score), expert) in priced.iter_mut().zip(scores).zip(listed) {
                    *priced = f64::from(*score) - prices[*expert as usize];
                }
                select_top(&priced, &mut best);
                chosen
                    .iter_mut()
                    .zip(&best)
                    .for_each(|(slot, (_, at))| slot.0 = listed[*at as usize]);
                chosen.sort_unstable();
                let last = best[k - 1].0;
                let next = best.get(k).map_or(f64::NEG_INFINITY, |next| next.0);
                for ((bid, priced), score) in bids.iter_mut().zip(&priced).zip(scores) {
                    let rival = if *priced >= last { next } else { last };
                    *bid = narrow(f64::from(*score) - rival);
                }
            }
        });
    }

    fn loads(&self, experts: usize) -> Vec<u32> {
        let mut loads = vec![0; experts];
        self.chosen.iter().for_each(|expert| loads[expert.index()] += 1);
        loads
    }

    /// For each expert the price at which its bids fill it.
    fn clearing_prices(&self, game: &Game<'_>, prices: &[f64]) -> Vec<f64> {
        let (tokens, experts, k) = (game.scores.tokens(), prices.len(), game.top_k);
        let supply = Supply::new(game);
        let tight = supply.is_tight(experts, (tokens * k) as u64);
        let fair = (tokens * k + experts / 2) / experts;
        let clear = |expert: usize| {
            let mut bids: Vec<f32> = if self.candidates.is_empty() {
                (0..tokens).map(|token| self.bids[token * experts + expert]).collect()
            } else {
                let places = &self.places[self.starts[expert]..self.starts[expert + 1]];
                places.iter().map(|place| self.bids[*place as usize]).collect()
            };
            if bids.is_empty() {
                return prices[expert];
            }
            let clearing = if tight {
                price_for_load(&mut bids, fair)
            } else {
                clearing_price(supply, expert, &mut bids)
            };
            if clearing.is_finite() { clearing } else { prices[expert] }
        };
        (0..experts).into_par_iter().map(clear).collect()
    }

    fn choices(self) -> Choices {
        Choices::uniform(self.chosen, self.game.top_k)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "bids are as exact as scores")]
fn narrow(value: f64) -> f32 {
    value as f32
}

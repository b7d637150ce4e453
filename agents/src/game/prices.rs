//! The price phase: prices at which the tokens' free choices come close to what experts supply.
//!
//! Each sweep asks every token for its choice, then lets every expert find the price at which,
//! the other prices staying, the tokens that would have it are as many as it supplies: the price
//! at which token t joins or leaves expert e is `a[t,e]` minus the priced score it competes with,
//! the k-th for a token outside, the (k+1)-th for one inside. (Quantile balancing, Su 2026, uses
//! the (k+1)-th for all, which is safe descent on the dual but several times slower.) No step
//! size has to be known and any nondecreasing cost works. Sweeps stall a few tokens an expert
//! short of the optimum, which is the repair's task to reach.

use rayon::prelude::*;

use super::top_k::select_top;
use super::{CongestionCost, Game, TOKEN_BLOCK};
use crate::ids::ExpertId;

/// What experts supply at a price: the loads whose marginal cost the price covers, at most T.
#[derive(Clone, Copy)]
pub(super) struct Supply<'g> {
    cost: &'g dyn CongestionCost,
    tokens: u32,
}

impl<'g> Supply<'g> {
    pub(super) fn new(game: &Game<'g>) -> Self {
        let tokens = u32::try_from(game.scores.tokens()).expect("tokens fit 32 bits");
        Self { cost: game.cost, tokens }
    }

    /// `c_e(n)`, with −inf at 0 and +inf beyond T, so that every price has a load between.
    pub(super) fn marginal(&self, expert: usize, load: u32) -> f64 {
        match load {
            0 => f64::NEG_INFINITY,
            load if load > self.tokens => f64::INFINITY,
            load => self.cost.marginal(ExpertId::from_index(expert), load),
        }
    }

    /// Raises all prices alike to where every expert, at most `most` on it, fills up: it does at any
    /// price from the cost of its last unit on.
    pub(super) fn cover(&self, prices: &mut [f64], most: &[u32]) {
        let raise = |(e, price): (usize, &f64)| self.marginal(e, most[e]) - price;
        let shift = prices.iter().enumerate().map(raise).fold(f64::NEG_INFINITY, f64::max);
        prices.iter_mut().for_each(|price| *price += shift);
    }

    /// [`Self::most`] of each expert.
    pub(super) fn most_each(&self, experts: usize, price: f64) -> Vec<u32> {
        let mut before = 0;
        let each = (0..experts).map(|expert| {
            before = self.first_load(before, |load| self.marginal(expert, load) > price);
            before
        });
        each.collect()
    }

    /// [`Self::nearest`] of each expert.
    pub(super) fn nearest_each(&self, prices: &[f64], loads: &[u32]) -> Vec<u32> {
        let (mut least, mut most) = (0, 0);
        let each = prices.iter().zip(loads).enumerate().map(|(expert, (price, load))| {
            least = self.first_load(least, |load| self.marginal(expert, load) >= *price);
            most = self.first_load(most.max(least), |load| self.marginal(expert, load) > *price);
            (*load).clamp(least, most)
        });
        each.collect()
    }

    /// The number of loads whose marginal cost is below `price`: the least load an expert that
    /// earns it wants.
    pub(super) fn least(&self, expert: usize, price: f64) -> u32 {
        self.first_load(0, |load| self.marginal(expert, load) >= price)
    }

    /// The largest load an expert that earns `price` accepts.
    pub(super) fn most(&self, expert: usize, price: f64) -> u32 {
        self.first_load(0, |load| self.marginal(expert, load) > price)
    }

    /// The supply at `price` nearest to `load`.
    pub(super) fn nearest(&self, expert: usize, price: f64, load: u32) -> u32 {
        let least = self.least(expert, price);
        if load <= least { least } else { load.min(self.most(expert, price)) }
    }

    /// The largest load n for which no load in `1..=n` meets the condition, which is monotone.
    /// Looks at `guess` first: experts are often alike.
    fn first_load(&self, guess: u32, met: impl Fn(u32) -> bool) -> u32 {
        let (mut low, mut high) = (0, self.tokens);
        if guess > 0 && guess <= high {
            if met(guess) {
                high = guess - 1;
            } else if guess == high || met(guess + 1) {
                return guess;
            } else {
                low = guess + 1;
            }
        }
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if met(middle) { high = middle - 1 } else { low = middle }
        }
        low
    }

    /// Whether all experts together take no more than `units`, but for a remainder that leaves no
    /// expert room to stay empty: then every expert takes part, whatever the price level. With a
    /// larger remainder the price of an expert that nobody wants would fall without end.
    pub(super) fn is_tight(&self, experts: usize, units: u64) -> bool {
        let most = self.most_each(experts, f64::MAX);
        let most = || most.iter().map(|most| u64::from(*most));
        let remainder = most().sum::<u64>().saturating_sub(units);
        remainder < experts as u64 && most().all(|most| remainder < most)
    }

    /// The prices relative to the sink's, which is the last, each within what its delivery costs.
    pub(super) fn settle(&self, prices: &[f64], delivered: &[u32]) -> Vec<f64> {
        let (sink, prices) = prices.split_last().expect("the sink has a price");
        let settled = |(expert, (price, load)): (usize, (&f64, &u32))| {
            let (least, most) = (self.marginal(expert, *load), self.marginal(expert, load + 1));
            (price - sink).max(least).min(most)
        };
        prices.iter().zip(delivered).enumerate().map(settled).collect()
    }

    /// The nearest price at which supply is neither pinned at 0 nor at T.
    pub(super) fn bounded(&self, expert: usize, price: f64) -> f64 {
        let (first, last) = (self.marginal(expert, 1), self.marginal(expert, self.tokens));
        if price < first && first.is_finite() {
            first
        } else if price > last {
            last
        } else {
            price
        }
    }
}

/// What tokens ask at given prices.
#[derive(Clone)]
pub(super) struct Demand {
    /// Row-major `[T, k]`, descending by priced score within a token.
    pub(super) chosen: Vec<u32>,
    /// The k-th and the (k+1)-th largest priced score of each token.
    edges: Vec<(f64, f64)>,
    /// n_e.
    pub(super) loads: Vec<u32>,
}

/// Where the price phase ended.
#[derive(Clone)]
pub(super) struct Balanced {
    pub(super) prices: Vec<f64>,
    pub(super) demand: Demand,
    /// Price sweeps made.
    pub(super) sweeps: u32,
}

/// Sweeps until demand meets supply, no sweep of the last few helped, or `most_sweeps`, and keeps
/// the prices with the least imbalance. Needs k < E.
pub(super) fn balance(
    game: &Game<'_>,
    supply: Supply<'_>,
    start: Vec<f64>,
    most_sweeps: u32,
) -> Balanced {
    let units = (game.scores.tokens() * game.top_k) as u64;
    let tight = supply.is_tight(start.len(), units);
    let mut prices = start;
    if !tight {
        let shift = level(supply, &prices, units);
        shift_all(&mut prices, shift);
    }
    let demand = ask(game, &prices);
    let mut least = imbalance(supply, &prices, &demand);
    let mut latest = Balanced { prices, demand, sweeps: 0 };
    let mut best = latest.clone();
    let (mut stalled, mut step) = (0, 1.0);
    let worthwhile = u64::from(supply.tokens) / TOKENS_PER_PATH;
    while least > 0 && stalled < PATIENCE && latest.sweeps < most_sweeps {
        latest.prices = sweep_prices(game, supply, &latest, step, tight);
        latest.demand = ask(game, &latest.prices);
        latest.sweeps += 1;
        let now = imbalance(supply, &latest.prices, &latest.demand);
        if now * 4 > least * 3 {
            step = SHORT_STEP;
        }
        stalled = if now + worthwhile < least { 0 } else { stalled + 1 };
        if now < least {
            least = now;
            best = latest.clone();
        }
    }
    Balanced { sweeps: latest.sweeps, ..best }
}

/// Sweeps in a row that are not worth their time, after which the phase ends.
const PATIENCE: u32 = 2;

/// A sweep costs as much as repairing one unit of imbalance for about this many tokens.
const TOKENS_PER_PATH: u64 = 128;

/// Steps go all the way to the clearing price until a sweep leaves more than three quarters of
/// the imbalance, then this part of it: experts that bid for the same tokens overshoot together.
const SHORT_STEP: f64 = 0.75;

/// Every token's best k and its runner-up at the given prices: one pass over the scores.
///
/// Equal priced scores are split on purpose: token t looks at experts from number tk on, so that
/// identical rows spread over identical experts instead of piling up on the first.
fn ask(game: &Game<'_>, prices: &[f64]) -> Demand {
    let (tokens, experts, k) = (game.scores.tokens(), prices.len(), game.top_k);
    let mut chosen = vec![0; tokens * k];
    let mut edges = vec![(0.0, 0.0); tokens];
    let blocks = chosen.par_chunks_mut(TOKEN_BLOCK * k).zip(edges.par_chunks_mut(TOKEN_BLOCK));
    blocks.enumerate().for_each(|(block, (chosen, edges))| {
        let mut best = vec![(0.0, 0); k + 1];
        let mut priced = Vec::with_capacity(experts);
        let rows = chosen.chunks_exact_mut(k).zip(edges);
        for (token, (chosen, edge)) in (block * TOKEN_BLOCK..).zip(rows) {
            let first = token * k % experts;
            let row = game.scores.row(token);
            priced.clear();
            for part in [first..experts, 0..first] {
                let pairs = row[part.clone()].iter().zip(&prices[part]);
                priced.extend(pairs.map(|(score, price)| f64::from(*score) - price));
            }
            select_top(&priced, &mut best);
            for (slot, (_, at)) in chosen.iter_mut().zip(&best) {
                let expert = first + *at as usize;
                *slot = index(if expert < experts { expert } else { expert - experts });
            }
            *edge = (best[k - 1].0, best[k].0);
        }
    });
    let mut loads = vec![0; experts];
    chosen.iter().for_each(|expert| loads[*expert as usize] += 1);
    Demand { chosen, edges, loads }
}

fn index(expert: usize) -> u32 {
    u32::try_from(expert).expect("experts fit 32 bits")
}

/// Units that the repair has to move: demand that supply at these prices does not meet, the
/// reverse, and what supply and demand differ by in all.
fn imbalance(supply: Supply<'_>, prices: &[f64], demand: &Demand) -> u64 {
    let mut between = 0;
    let mut total = 0_i64;
    for (expert, (price, load)) in prices.iter().zip(&demand.loads).enumerate() {
        let delivered = supply.nearest(expert, *price, *load);
        between += u64::from(load.abs_diff(delivered));
        total += i64::from(*load) - i64::from(delivered);
    }
    between + total.unsigned_abs()
}

/// Experts priced together: their scores share a cache line.
const EXPERT_GROUP: usize = 16;

/// Moves every expert's price by `step` of the way to where it alone would clear its demand, then
/// all prices alike to where total supply meets total demand.
fn sweep_prices(
    game: &Game<'_>,
    supply: Supply<'_>,
    latest: &Balanced,
    step: f64,
    tight: bool,
) -> Vec<f64> {
    let (tokens, experts) = (game.scores.tokens(), latest.prices.len());
    let mut next = latest.prices.clone();
    next.par_chunks_mut(EXPERT_GROUP).enumerate().for_each(|(group, next)| {
        let first = group * EXPERT_GROUP;
        let mut margins = vec![0.0_f32; tokens * next.len()];
        let rows = game.scores.values().chunks_exact(experts);
        for (token, (row, (last, runner_up))) in rows.zip(&latest.demand.edges).enumerate() {
            let scores = &row[first..first + next.len()];
            for (column, (score, price)) in scores.iter().zip(&*next).enumerate() {
                let score = f64::from(*score);
                let rival = if score - price >= *last { runner_up } else { last };
                margins[column * tokens + token] = narrow(score - rival);
            }
        }
        let columns = margins.chunks_exact_mut(tokens);
        for (expert, (price, margins)) in (first..).zip(next.iter_mut().zip(columns)) {
            let clearing = if tight {
                price_for_load(margins, supply.most(expert, f64::MAX) as usize)
            } else {
                clearing_price(supply, expert, margins)
            };
            let moved = *price + step * (clearing - *price);
            *price = if moved.is_finite() { moved } else { *price };
        }
    });
    let shift = if tight {
        // Every expert fills up at any price from the cost of its last unit on.
        let raise =
            |(e, price): (usize, &f64)| supply.marginal(e, supply.most(e, f64::MAX)) - price;
        next.iter().enumerate().map(raise).fold(f64::NEG_INFINITY, f64::max)
    } else {
        level(supply, &next, (tokens * game.top_k) as u64)
    };
    shift_all(&mut next, shift);
    next
}

fn shift_all(prices: &mut [f64], shift: f64) {
    if shift.is_finite() && prices.iter().all(|price| (price + shift).is_finite()) {
        prices.iter_mut().for_each(|price| *price += shift);
    }
}

/// The shift of all prices alike at which total supply is total demand. It changes no token's
/// choice, so this is the exact minimum of the dual along that line.
pub(super) fn level(supply: Supply<'_>, prices: &[f64], units: u64) -> f64 {
    let experts = || prices.iter().enumerate();
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for (expert, price) in experts() {
        low = low.min(supply.marginal(expert, 1) - price);
        high = high.max(supply.marginal(expert, supply.most(expert, f64::MAX)) - price);
    }
    let mut shift = 0.0;
    for _ in 0..LEVEL_STEPS {
        if experts().map(|(e, p)| u64::from(supply.least(e, p + shift))).sum::<u64>() > units {
            high = shift;
        } else if experts().map(|(e, p)| u64::from(supply.most(e, p + shift))).sum::<u64>() < units
        {
            low = shift;
        } else {
            break;
        }
        shift = low + (high - low) / 2.0;
    }
    shift
}

/// Halvings that find the common shift to about 1e-7 of its range.
const LEVEL_STEPS: u32 = 24;

#[expect(clippy::cast_possible_truncation, reason = "prices of this phase are approximate")]
fn narrow(value: f64) -> f32 {
    value as f32
}

/// The price between the margins of the last token within `load` and the first beyond.
pub(super) fn price_for_load(margins: &mut [f32], load: usize) -> f64 {
    let load = load.min(margins.len() - 1);
    let (above, beyond, _) = margins.select_nth_unstable_by(load, |a, b| b.total_cmp(a));
    let beyond = f64::from(*beyond);
    let within = above.iter().copied().min_by(f32::total_cmp).map_or(beyond, f64::from);
    beyond + (within - beyond) / 2.0
}

/// The price at which the margins above it are as many as the expert supplies.
///
/// With margins `r_1 ≥ r_2 ≥ …` the load is the largest n with `r_n ≥ c_e(n)`: one side falls,
/// the other rises, so a partition around the middle halves the search each time.
pub(super) fn clearing_price(supply: Supply<'_>, expert: usize, margins: &mut [f32]) -> f64 {
    let (mut low, mut high) = (0, margins.len());
    let (mut above, mut beyond) = (f64::INFINITY, f64::NEG_INFINITY);
    while low < high {
        let middle = low + (high - low) / 2;
        let part = &mut margins[low..high];
        let margin = f64::from(*part.select_nth_unstable_by(middle - low, |a, b| b.total_cmp(a)).1);
        if margin >= supply.marginal(expert, index(middle + 1)) {
            (low, above) = (middle + 1, margin);
        } else {
            (high, beyond) = (middle, margin);
        }
    }
    let load = index(low);
    let least = beyond.max(supply.marginal(expert, load));
    let most = above.min(supply.marginal(expert, load + 1));
    let price = match (least.is_finite(), most.is_finite()) {
        (true, true) => least + (most - least) / 2.0,
        (true, false) => least,
        (false, _) => most,
    };
    supply.bounded(expert, price)
}

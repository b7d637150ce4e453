//! The price phase: prices at which the tokens' free choices come close to what experts supply.
//!
//! Each sweep is one step of block coordinate descent on the dual (quantile balancing, Su 2026;
//! `MODEL.md` section 1): with `α_t` the (k+1)-th largest `a_t − p`, expert e takes the price at
//! which the tokens with `a[t,e] − α_t` above it are as many as it supplies. The dual never
//! rises, no step size is needed, and any nondecreasing cost works. Descent on a non-smooth
//! function stalls short of the optimum, which is the repair's task to reach.

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

    /// The number of loads whose marginal cost is below `price`: the least load an expert that
    /// earns it wants.
    pub(super) fn least(&self, expert: usize, price: f64) -> u32 {
        self.first_load(|load| self.marginal(expert, load) >= price)
    }

    /// The largest load an expert that earns `price` accepts.
    pub(super) fn most(&self, expert: usize, price: f64) -> u32 {
        self.first_load(|load| self.marginal(expert, load) > price)
    }

    /// The supply at `price` nearest to `load`.
    pub(super) fn nearest(&self, expert: usize, price: f64, load: u32) -> u32 {
        let least = self.least(expert, price);
        if load <= least { least } else { load.min(self.most(expert, price)) }
    }

    /// The largest load n for which no load in `1..=n` meets the condition, which is monotone.
    fn first_load(&self, met: impl Fn(u32) -> bool) -> u32 {
        let (mut low, mut high) = (0, self.tokens);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if met(middle) { high = middle - 1 } else { low = middle }
        }
        low
    }

    /// The nearest price at which supply is neither pinned at 0 nor at T.
    fn bounded(&self, expert: usize, price: f64) -> f64 {
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
    /// The (k+1)-th largest priced score of each token.
    runner_up: Vec<f64>,
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
    let demand = ask(game, &start);
    let mut least = imbalance(supply, &start, &demand);
    let mut latest = Balanced { prices: start, demand, sweeps: 0 };
    let mut best = latest.clone();
    let mut stalled = 0;
    while least > 0 && stalled < PATIENCE && latest.sweeps < most_sweeps {
        latest.prices = sweep_prices(game, supply, &latest.demand, &latest.prices);
        latest.demand = ask(game, &latest.prices);
        latest.sweeps += 1;
        let now = imbalance(supply, &latest.prices, &latest.demand);
        if std::env::var("DBG").is_ok() {
            eprintln!("sweep {} imbalance {now}", latest.sweeps);
        }
        stalled = if now * 10 <= least * 9 { 0 } else { stalled + 1 };
        if now < least {
            least = now;
            best = latest.clone();
        }
    }
    Balanced { sweeps: latest.sweeps, ..best }
}

/// Sweeps without a gain of a tenth after which the phase ends.
const PATIENCE: u32 = 2;

/// Every token's best k and its runner-up at the given prices: one pass over the scores.
///
/// Equal priced scores are split on purpose: token t looks at experts from number tk on, so that
/// identical rows spread over identical experts instead of piling up on the first.
fn ask(game: &Game<'_>, prices: &[f64]) -> Demand {
    let (tokens, experts, k) = (game.scores.tokens(), prices.len(), game.top_k);
    let mut chosen = vec![0; tokens * k];
    let mut runner_up = vec![0.0; tokens];
    let blocks = chosen.par_chunks_mut(TOKEN_BLOCK * k).zip(runner_up.par_chunks_mut(TOKEN_BLOCK));
    blocks.enumerate().for_each(|(block, (chosen, runner_up))| {
        let mut best = vec![(0.0, 0); k + 1];
        let mut priced = Vec::with_capacity(experts);
        let rows = chosen.chunks_exact_mut(k).zip(runner_up);
        for (token, (chosen, runner_up)) in (block * TOKEN_BLOCK..).zip(rows) {
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
            *runner_up = best[k].0;
        }
    });
    let mut loads = vec![0; experts];
    chosen.iter().for_each(|expert| loads[*expert as usize] += 1);
    Demand { chosen, runner_up, loads }
}

fn index(expert: usize) -> u32 {
    u32::try_from(expert).expect("experts fit 32 bits")
}

/// Units of demand that supply at these prices does not meet, and the reverse.
fn imbalance(supply: Supply<'_>, prices: &[f64], demand: &Demand) -> u64 {
    let experts = prices.iter().zip(&demand.loads).enumerate();
    experts
        .map(|(expert, (price, load))| {
            u64::from(load.abs_diff(supply.nearest(expert, *price, *load)))
        })
        .sum()
}

/// Experts priced together: their scores share a cache line.
const EXPERT_GROUP: usize = 16;

/// Every expert's best price given the tokens' runner-ups.
fn sweep_prices(game: &Game<'_>, supply: Supply<'_>, demand: &Demand, prices: &[f64]) -> Vec<f64> {
    let (tokens, experts) = (game.scores.tokens(), prices.len());
    let mut next = prices.to_vec();
    next.par_chunks_mut(EXPERT_GROUP).enumerate().for_each(|(group, next)| {
        let first = group * EXPERT_GROUP;
        let mut margins = vec![0.0_f32; tokens * next.len()];
        let rows = game.scores.values().chunks_exact(experts);
        for (token, (row, runner_up)) in rows.zip(&demand.runner_up).enumerate() {
            for (column, score) in row[first..first + next.len()].iter().enumerate() {
                margins[column * tokens + token] = narrow(f64::from(*score) - runner_up);
            }
        }
        for (offset, (price, column)) in
            next.iter_mut().zip(margins.chunks_exact_mut(tokens)).enumerate()
        {
            *price = clearing_price(supply, first + offset, column, *price);
        }
    });
    next
}

#[expect(clippy::cast_possible_truncation, reason = "prices of this phase are approximate")]
fn narrow(value: f64) -> f32 {
    value as f32
}

/// The price at which the margins above it are as many as the expert supplies.
///
/// With margins `r_1 ≥ r_2 ≥ …` the load is the largest n with `r_n ≥ c_e(n)`: one side falls,
/// the other rises, so a partition around the middle halves the search each time.
fn clearing_price(supply: Supply<'_>, expert: usize, margins: &mut [f32], old: f64) -> f64 {
    let (mut low, mut high) = (0, margins.len());
    let (mut above, mut below) = (f64::INFINITY, f64::NEG_INFINITY);
    while low < high {
        let middle = low + (high - low) / 2;
        let part = &mut margins[low..high];
        let margin = f64::from(*part.select_nth_unstable_by(middle - low, |a, b| b.total_cmp(a)).1);
        if margin >= supply.marginal(expert, index(middle + 1)) {
            (low, above) = (middle + 1, margin);
        } else {
            (high, below) = (middle, margin);
        }
    }
    let load = index(low);
    let least = below.max(supply.marginal(expert, load));
    let most = above.min(supply.marginal(expert, load + 1));
    let price = match (least.is_finite(), most.is_finite()) {
        (true, true) => least + (most - least) / 2.0,
        (true, false) => least,
        (false, true) => most,
        (false, false) => old,
    };
    let price = supply.bounded(expert, price);
    if price.is_finite() { price } else { old }
}

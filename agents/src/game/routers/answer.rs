//! What tokens ask for at given prices, and other steps that several routers share.

use rayon::prelude::*;

use super::super::{Choices, Game, TOKEN_BLOCK, select_top};
use crate::ids::ExpertId;

/// Every token's best k at some prices.
pub(in crate::game) struct Answer {
    pub(in crate::game) choices: Choices,
    /// The (k+1)-th largest priced score of each token; −inf when k = E.
    pub(super) runner_up: Vec<f64>,
}

/// The top k of `a − p`, of equal ones the lowest expert first. One pass over the scores.
pub(in crate::game) fn answer(game: &Game<'_>, prices: &[f64]) -> Answer {
    let (experts, k) = (prices.len(), game.top_k);
    let listed = (k + 1).min(experts);
    let mut chosen = vec![ExpertId(0); game.scores.tokens() * k];
    let mut runner_up = vec![f64::NEG_INFINITY; game.scores.tokens()];
    let blocks = chosen.par_chunks_mut(TOKEN_BLOCK * k).zip(runner_up.par_chunks_mut(TOKEN_BLOCK));
    blocks.enumerate().for_each(|(block, (chosen, runner_up))| {
        let mut best = vec![(0.0, 0); listed];
        let mut priced = Vec::with_capacity(experts);
        let rows = chosen.chunks_exact_mut(k).zip(runner_up);
        for (token, (chosen, runner_up)) in (block * TOKEN_BLOCK..).zip(rows) {
            priced.clear();
            let pairs = game.scores.row(token).iter().zip(prices);
            priced.extend(pairs.map(|(score, price)| f64::from(*score) - price));
            select_top(&priced, &mut best);
            chosen.iter_mut().zip(&best).for_each(|(slot, (_, at))| *slot = ExpertId(*at));
            chosen.sort_unstable();
            if listed > k {
                *runner_up = best[k].0;
            }
        }
    });
    Answer { choices: Choices::uniform(chosen, k), runner_up }
}

/// The warm prices if they fit the game, else none.
pub(super) fn usable<'p>(game: &Game<'_>, warm: Option<&'p [f64]>) -> Option<&'p [f64]> {
    let fits = |p: &&[f64]| p.len() == game.scores.experts() && p.iter().all(|p| p.is_finite());
    warm.filter(fits)
}

/// The prices to start from: usable warm ones, else zeros.
pub(super) fn start(game: &Game<'_>, warm: Option<&[f64]>) -> Vec<f64> {
    usable(game, warm).map_or_else(|| vec![0.0; game.scores.experts()], <[f64]>::to_vec)
}

/// Most tokens an expert takes, for rules with hard capacities: what the cost bars or, where it
/// bars nothing, the fair share `⌈Tk/E⌉`. Where the cost bars every assignment, the fair share
/// for all.
pub(super) fn capacities(game: &Game<'_>) -> Vec<u32> {
    let (tokens, experts) = (token_count(game), game.scores.experts());
    let pairs = game.scores.tokens() * game.top_k;
    let fair_share = u32::try_from(pairs.div_ceil(experts)).expect("at most T");
    let most = |expert| match last_finite_load(game, expert) {
        load if load == tokens => fair_share,
        load => load,
    };
    let capacities: Vec<u32> = (0..experts).map(most).collect();
    let total: usize = capacities.iter().map(|capacity| *capacity as usize).sum();
    if total < pairs { vec![fair_share; experts] } else { capacities }
}

/// T.
pub(super) fn token_count(game: &Game<'_>) -> u32 {
    u32::try_from(game.scores.tokens()).expect("tokens fit 32 bits")
}

/// The largest load up to T that the cost does not bar.
pub(super) fn last_finite_load(game: &Game<'_>, expert: usize) -> u32 {
    let (mut low, mut high) = (0, token_count(game));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let barred = game.cost.marginal(ExpertId::from_index(expert), middle).is_infinite();
        if barred { high = middle - 1 } else { low = middle }
    }
    low
}

/// What the last token on each expert pays, 0 where nobody is or the cost is infinite: the prices
/// of a play that posts none.
pub(super) fn prices_of_loads(game: &Game<'_>, loads: &[u32]) -> Vec<f64> {
    let price = |(expert, load): (usize, &u32)| match load {
        0 => 0.0,
        load => Some(game.cost.marginal(ExpertId::from_index(expert), *load))
            .filter(|price| price.is_finite())
            .unwrap_or(0.0),
    };
    loads.iter().enumerate().map(price).collect()
}

/// Shifts all prices alike to where the dual bound is least, which changes no token's choice.
///
/// Along that line the bound is `−Tk·s + Σ_e C*_e(p_e + s)` plus a constant: convex, with its
/// minimum between the smallest cost of a first and the largest of a last unit.
pub(super) fn level(game: &Game<'_>, prices: Vec<f64>) -> Vec<f64> {
    let pairs = (game.scores.tokens() * game.top_k) as f64;
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for (expert, price) in prices.iter().enumerate() {
        let last = last_finite_load(game, expert);
        if last > 0 {
            let marginal = |load| game.cost.marginal(ExpertId::from_index(expert), load);
            low = low.min(marginal(1) - price);
            high = high.max(marginal(last) - price);
        }
    }
    if !(low.is_finite() && high.is_finite()) {
        return prices;
    }
    let bound = |shift: f64| {
        let each = prices.iter().enumerate();
        let conjugate =
            |(e, p): (usize, &f64)| game.cost.conjugate(ExpertId::from_index(e), p + shift);
        each.map(conjugate).sum::<f64>() - pairs * shift
    };
    for _ in 0..LEVEL_STEPS {
        let third = (high - low) / 3.0;
        if bound(low + third) < bound(high - third) { high -= third } else { low += third }
    }
    prices.iter().map(|price| price + f64::midpoint(low, high)).collect()
}

/// Thirds cut off: the range shrinks to about 1e-12 of itself.
const LEVEL_STEPS: u32 = 68;

/// The range of the scores, `max − min`.
pub(super) fn score_range(game: &Game<'_>) -> f64 {
    let (low, high) = game
        .scores
        .values()
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)));
    f64::from(high) - f64::from(low)
}

/// Passes over the scores from `visits` of a whole row.
pub(super) fn passes(game: &Game<'_>, rows: u64) -> u32 {
    u32::try_from(rows.div_ceil(game.scores.tokens() as u64)).unwrap_or(u32::MAX)
}

/// Random bits of a few numbers (SplitMix64's finaliser): coins that need no order, so that
/// tokens can draw them in parallel.
pub(super) fn coin(seed: u64, round: u64, player: u64) -> u64 {
    let mix = |bits: u64| {
        let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    };
    let step = |state: u64, word: u64| mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(word));
    step(step(mix(seed), round), player)
}

/// Of random bits, a number in [0, 1).
pub(super) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

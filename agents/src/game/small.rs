//! The optimum of a small game: whole rows in the cache cost less than lists of what may still move,
//! and no bound on the drift of prices has to be kept.

use super::columns::clear_columns;
use super::demand::{Exact, unsure};
use super::kernel::{Instructions, Prices, visit_rows};
use super::marginal::{LARGEST_PRICE, typical_span};
use super::moves::{Moves, repair};
use super::prices::Supply;
use super::{Choices, Game, Play, Scores};
use crate::ids::ExpertId;

/// Whether whole rows are the faster way: 256 kB of scores, and few tokens on an expert.
pub(super) fn is_small(scores: Scores<'_>) -> bool {
    scores.tokens() <= MOST_TOKENS && scores.values().len() <= MOST_SCORES
}

const MOST_TOKENS: usize = 512;
const MOST_SCORES: usize = 1 << 16;

/// Plays a game with k < E in which every expert takes part, from `start`.
///
/// None where arithmetic in f32 on these prices would lose what scores differ by, or where the cost
/// bars some tokens everywhere.
pub(super) fn sweep_and_move(
    game: &Game<'_>,
    supply: Supply<'_>,
    start: &[f64],
    most_sweeps: u32,
    kind: Instructions,
) -> Option<Play> {
    let (tokens, experts) = (game.scores.tokens(), game.scores.experts());
    let scale = typical_span(game);
    let most = supply.most_each(experts, f64::MAX);
    let room: usize = most.iter().map(|most| *most as usize).sum();
    let spare = room.checked_sub(tokens * game.top_k)? as f32 / experts as f32;
    let targets: Vec<f32> = most.iter().map(|most| *most as f32 - spare).collect();
    let mut asked = Asked::new(game, kind, start);
    let (mut before, mut sweeps, mut width) = (u64::MAX, 0, FIRST_WIDTH * scale);
    loop {
        if !asked.prices.iter().all(|price| price.abs() <= scale * LARGEST_PRICE) {
            return None;
        }
        asked.ask();
        let pairs = asked.loads.iter().zip(&most);
        let off: u64 = pairs.map(|(load, most)| u64::from(load.saturating_sub(*most))).sum();
        let worth = tokens as u64 / TOKENS_PER_PATH;
        if off <= worth || off.saturating_add(worth) > before || sweeps >= most_sweeps {
            break;
        }
        before = off;
        let changes =
            clear_columns(kind, game.scores, &asked.edges, &asked.prices, &targets, width);
        let step = if sweeps < FULL_SWEEPS { 1.0 } else { SHORT_STEP };
        asked.prices.iter_mut().zip(&changes).for_each(|(price, change)| *price += step * change);
        let (low, high) =
            changes.iter().fold((0.0_f32, 0.0_f32), |(l, h), c| (l.min(*c), h.max(*c)));
        let clipped = low <= -0.99 * width || high >= 0.99 * width;
        width = if clipped { 4.0 * width } else { (high - low).max(f32::MIN_POSITIVE) };
        sweeps += 1;
    }
    let mut prices: Vec<f64> = asked.prices.iter().copied().map(f64::from).collect();
    supply.cover(&mut prices, &most);
    let mut moves = Moves::new(game, supply, prices, asked.chosen, &asked.loads);
    let paths = repair(kind, &mut moves)?;
    let prices = supply.settle(moves.prices(), &moves.delivered);
    let mut chosen = moves.into_chosen();
    chosen.chunks_exact_mut(game.top_k).for_each(<[u32]>::sort_unstable);
    let chosen = chosen.into_iter().map(ExpertId).collect();
    Some(Play {
        choices: Choices::uniform(chosen, game.top_k),
        prices,
        passes: 2 * sweeps + 1,
        iterations: sweeps.saturating_add(paths),
    })
}

/// How far the first sweep may move a price, in typical spans.
const FIRST_WIDTH: f32 = 0.5;

/// A sweep takes about as long as a path for each of so many tokens.
const TOKENS_PER_PATH: u64 = 10;

/// Sweeps that go all the way to the clearing prices. Later ones go part of it: experts that bid
/// for the same tokens overshoot together.
const FULL_SWEEPS: u32 = 2;
const SHORT_STEP: f32 = 0.75;

/// What all tokens ask at the present prices.
struct Asked<'g> {
    game: Game<'g>,
    kind: Instructions,
    prices: Vec<f32>,
    /// Row-major `[T, k]`.
    chosen: Vec<u32>,
    /// The k-th priced score of each token and the next.
    edges: Vec<(f32, f32)>,
    /// n_e.
    loads: Vec<u32>,
    exact: Exact,
}

impl<'g> Asked<'g> {
    #[expect(clippy::cast_possible_truncation, reason = "prices of the passes are f32 on purpose")]
    fn new(game: &Game<'g>, kind: Instructions, start: &[f64]) -> Self {
        let (tokens, experts) = (game.scores.tokens(), game.scores.experts());
        Self {
            game: *game,
            kind,
            prices: start.iter().map(|price| *price as f32).collect(),
            chosen: vec![0; tokens * game.top_k],
            edges: vec![(0.0, 0.0); tokens],
            loads: vec![0; experts],
            exact: Exact::new(game),
        }
    }

    fn ask(&mut self) {
        let Self { game, kind, prices, chosen, edges, loads, exact } = self;
        loads.fill(0);
        let prices = Prices::new(prices);
        let tokens = 0..u32::try_from(game.scores.tokens()).expect("tokens fit 32 bits");
        let mut rows = chosen.chunks_exact_mut(game.top_k).zip(edges);
        visit_rows(*kind, game.scores, tokens, &prices, game.top_k, None, |seen| {
            let (row, edge) = rows.next().expect("one row a token");
            if seen.tied || unsure(seen.edge) {
                exact.look(game, seen.token, prices.each(), (0.0, 0.0));
                row.copy_from_slice(&exact.chosen);
                *edge = exact.edge;
            } else {
                row.copy_from_slice(seen.chosen);
                *edge = seen.edge;
            }
            row.iter().for_each(|expert| loads[*expert as usize] += 1);
        });
    }
}

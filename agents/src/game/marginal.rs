//! The fast way to the optimum: prices from a sample, passes over ever fewer open tokens, and a
//! repair on those that are left.

use super::clearing::Curves;
use super::demand::{Block, Pass, Tally};
use super::kernel::{Instructions, Prices};
use super::prices::{Supply, level};
use super::swaps::{Ended, Swaps};
use super::{Choices, Game, Play};
use crate::ids::ExpertId;

/// Plays a game with k < E from `start`; `warm` says that these are prices of an earlier batch.
///
/// None where the game needs the plain way.
pub(super) fn settle_and_repair(
    game: &Game<'_>,
    supply: Supply<'_>,
    start: &[f64],
    warm: bool,
    most_sweeps: u32,
    kind: Instructions,
) -> Option<Play> {
    let (tokens, experts) = (game.scores.tokens(), game.scores.experts());
    let units = (tokens * game.top_k) as u64;
    let tight = supply.is_tight(experts, units);
    let mut market = Market {
        game: *game,
        supply,
        kind,
        tight,
        prices: start.iter().map(|price| narrow(*price)).collect(),
        scale: typical_span(game),
        loads: vec![0; experts],
        sweeps: 0,
        visits: 0,
    };
    if !tight {
        market.level();
    }
    let mut width = market.learn(warm)?;
    let mut chosen = vec![ExpertId(0); tokens * game.top_k];
    let mut blocks = Block::all(&mut chosen, game.top_k);
    let mut paths = 0;
    let mut closed = Closed { bounds: Vec::new() };
    for _ in 0..MOST_ROUNDS {
        market.close_in(&mut blocks, &mut closed, width, most_sweeps)?;
        let mut swaps = market.swaps();
        let (more, ended) = if swaps.imbalance() == 0 {
            (0, Ended::Balanced)
        } else {
            market.offer(&mut swaps, &blocks);
            swaps.run(MOST_RELAXED_PER_EXPERT * experts as u64)
        };
        paths += more;
        let reached = &swaps.prices[..experts];
        let broken = closed.first_broken(reached, 1.0);
        if ended == Ended::Balanced && broken.is_none() {
            if more > 0 {
                market.accept(&mut swaps, &mut blocks);
            }
            let prices = supply.settle(&swaps.prices, &swaps.delivered);
            drop(blocks);
            return Some(Play {
                choices: Choices::uniform(chosen, game.top_k),
                prices,
                passes: u32::try_from(market.visits.div_ceil(game.scores.values().len() as u64))
                    .unwrap_or(u32::MAX),
                iterations: market.sweeps.saturating_add(paths),
            });
        }
        if ended == Ended::Limit {
            return None;
        }
        let last = closed.bounds.last().expect("a pass was made");
        let moved = last.drift(reached).max(1.0) * last.width;
        width = narrow(2.0 * moved);
        market.prices = reached.iter().map(|price| narrow(*price)).collect();
        // The pass at which the new width would have been enough.
        let wide = closed.bounds.iter().rposition(|bound| bound.width > 2.0 * moved);
        let last = closed.bounds.len() - 1;
        let from = broken.unwrap_or(last).min(wide.map_or(0, |at| at + 1)).min(last);
        closed.reopen(&mut blocks, from);
    }
    None
}

/// Times that tokens are opened again before the plain way takes over.
const MOST_ROUNDS: u32 = 8;

/// Moves the repair may look at, for each expert.
const MOST_RELAXED_PER_EXPERT: u64 = 200_000;

struct Market<'g> {
    game: Game<'g>,
    supply: Supply<'g>,
    kind: Instructions,
    tight: bool,
    prices: Vec<f32>,
    /// What the scores of a typical row differ by.
    scale: f32,
    /// n_e of the choices so far.
    loads: Vec<i32>,
    sweeps: u32,
    /// Scores visited.
    visits: u64,
}

/// The passes so far in which tokens settled.
struct Closed {
    bounds: Vec<Bound>,
}

/// Why tokens that settled in one pass keep their choice.
struct Bound {
    prices: Vec<f32>,
    /// How far any two prices may drift apart from there.
    width: f64,
}

impl Bound {
    /// The drift of prices in parts of what is allowed.
    fn drift(&self, prices: &[f64]) -> f64 {
        let pairs = prices.iter().zip(&self.prices);
        let (low, high) = range(pairs.map(|(now, then)| now - f64::from(*then)));
        match high - low {
            0.0 => 0.0,
            drift if self.width > 0.0 => drift / self.width,
            _ => f64::INFINITY,
        }
    }
}

impl Closed {
    /// The first pass whose bound the prices exceed by that factor.
    fn first_broken(&self, prices: &[f64], factor: f64) -> Option<usize> {
        self.bounds.iter().position(|bound| bound.drift(prices) > factor)
    }

    /// Goes back to before pass number `from`.
    fn reopen(&mut self, blocks: &mut [Block<'_>], from: usize) {
        self.bounds.truncate(from);
        blocks.iter_mut().for_each(|block| block.reopen(from));
    }
}

/// What a sweep changed.
struct Changed {
    /// Of the absolute changes of prices.
    largest: f32,
    /// The largest change minus the least.
    spread: f32,
}

impl Changed {
    fn by(changes: &[f64]) -> Self {
        let (low, high) = range(changes.iter().copied());
        Self { largest: narrow(high.max(-low)), spread: narrow(high - low) }
    }

    /// A width for the change after this one.
    fn next_width(&self) -> f32 {
        (self.spread * SECOND_CHANGE).max(f32::MIN_POSITIVE)
    }
}

impl<'g> Market<'g> {
    /// Visits the open tokens; `rise` is how far above the boundary distances count, `width` how far
    /// below it and up to which margin tokens stay open.
    fn pass(&mut self, blocks: &mut [Block<'_>], rise: f32, width: f32, settle: bool) -> Tally {
        let prices = Prices::new(&self.prices);
        let pass = Pass { game: self.game, kind: self.kind, prices: &prices, width, rise, settle };
        let tally = pass.run(blocks);
        self.visits += tally.scores;
        tally
    }

    /// Moves prices to where the batch nearly clears. Returns the width within which it should;
    /// none when prices are still on the move or out of range.
    fn learn(&mut self, warm: bool) -> Option<f32> {
        let tokens = self.game.scores.tokens();
        let mut width = self.scale * if warm { 0.25 } else { 0.5 };
        if tokens <= 2 * FIRST_SAMPLE {
            return self.learn_from_sample(tokens, width);
        }
        if warm {
            // Prices of an earlier batch are off by the noise of both batches' loads, or useless.
            let fair = (tokens * self.game.top_k) as f32 / self.prices.len() as f32;
            let noise = self.scale * (WARM_WIDTH / fair.sqrt()).min(0.25);
            let changed = self.follow_batch(noise)?;
            if changed.largest < noise {
                return Some(changed.next_width());
            }
            width = width.max(2.0 * changed.largest);
        }
        let mut size = FIRST_SAMPLE;
        loop {
            width = self.learn_from_sample(size, width)?;
            if size * SAMPLE_GROWTH * 2 <= tokens {
                size *= SAMPLE_GROWTH;
            } else if size == FIRST_SAMPLE {
                // Few tokens of a batch settle within the noise of a small sample: then the
                // first pass over the batch is a sample too.
                return Some(self.follow_batch(width)?.next_width());
            } else {
                return Some(2.0 * width);
            }
        }
    }

    /// Moves prices once, by what all tokens say.
    fn follow_batch(&mut self, width: f32) -> Option<Changed> {
        let tokens = self.game.scores.tokens();
        let tally = self.pass(&mut Block::sample(tokens, tokens), width, width, false);
        if !self.in_range(&tally) {
            return None;
        }
        let loads: Vec<f64> = tally.loads.iter().map(|load| f64::from(*load)).collect();
        let changes = self.changes(&tally.curves, &loads, 1.0);
        self.apply(&changes);
        self.sweeps += 1;
        Some(Changed::by(&changes))
    }

    /// Moves prices until a sample clears but for its noise. Returns the width within which a
    /// larger sample should, or, where the sample is the whole batch, the next pass over it.
    fn learn_from_sample(&mut self, size: usize, mut width: f32) -> Option<f32> {
        let tokens = self.game.scores.tokens();
        let mut blocks = Block::sample(tokens, size);
        let scale = tokens as f64 / size as f64;
        let fair = self.game.top_k as f64 * size as f64 / self.prices.len() as f64;
        let (mut before, mut rise) = (f64::INFINITY, RISE * width);
        for turn in 0..MOST_SAMPLE_SWEEPS {
            let tally = self.pass(&mut blocks, rise, width, false);
            if !self.in_range(&tally) {
                return None;
            }
            let loads: Vec<f64> = tally.loads.iter().map(|load| f64::from(*load)).collect();
            let off = self.deviation(&loads, scale) / loads.len() as f64;
            if off == 0.0 && size == tokens {
                return Some(width * 1e-3);
            }
            let changes = self.changes(&tally.curves, &loads, scale);
            self.apply(&changes);
            let (fallen, risen) = range(changes.iter().copied());
            let (fallen, risen) = (narrow(-fallen), narrow(risen));
            let largest = fallen.max(risen);
            let far = fallen >= width * 0.99 || risen >= rise * 0.99;
            if !far && (off < 0.3 * fair.sqrt() || off > 0.8 * before || turn > 4) {
                return Some(if size == tokens {
                    (2.0 * largest).max(f32::MIN_POSITIVE)
                } else {
                    self.noise_width(&tally.curves, &loads, NOISE * fair.sqrt(), width)
                });
            }
            before = off;
            let floor = self.scale * (64.0 / size as f32).sqrt();
            let follows = 2.0 * fallen.max(SECOND_CHANGE * risen);
            width = if fallen >= width * 0.99 { width * 4.0 } else { follows.max(floor) };
            rise = (RISE * width).max(if risen >= rise * 0.99 { RISE * rise } else { 0.0 });
        }
        None
    }

    /// Passes over the open tokens at narrowing widths while that pays, None when prices leave the bounds on and on, or are out of range.
    fn close_in(
        &mut self,
        blocks: &mut [Block<'_>],
        closed: &mut Closed,
        first: f32,
        most_sweeps: u32,
    ) -> Option<()> {
        let experts = self.prices.len();
        let (mut width, mut before, mut reopened) = (first, u64::MAX, 0);
        loop {
            let tally = self.pass(blocks, width, width, true);
            if !self.in_range(&tally) {
                return None;
            }
            // Margins are f32: what their rounding may hide is taken off the bound.
            let rounding = f64::from(tally.largest_edge.max(width)) * ROUNDING;
            let width_left = f64::from(width) - rounding;
            closed.bounds.push(Bound { prices: self.prices.clone(), width: width_left });
            self.loads.iter_mut().zip(&tally.loads).for_each(|(load, change)| *load += change);
            let real: Vec<f64> = self.loads.iter().map(|load| f64::from(*load)).collect();
            let off = whole(self.deviation(&real, 1.0));
            let slow = u64::from(off) > before / 4 * 3;
            if off as usize <= experts * 3 / 4 || slow || self.sweeps >= most_sweeps {
                return Some(());
            }
            before = u64::from(off);
            let then: Vec<f64> = self.prices.iter().copied().map(f64::from).collect();
            let changes = self.changes(&tally.curves, &real, 1.0);
            self.apply(&changes);
            self.sweeps += 1;
            let now: Vec<f64> = self.prices.iter().copied().map(f64::from).collect();
            let (low, high) = range(now.iter().zip(&then).map(|(now, then)| now - then));
            let spread = narrow(high - low);
            let floor = (tally.largest_edge * LEAST_WIDTH).max(f32::MIN_POSITIVE);
            if let Some(from) = closed.first_broken(&now, MOST_DRIFT) {
                reopened += 1;
                if reopened > MOST_ROUNDS {
                    return None;
                }
                closed.reopen(blocks, from);
                before = u64::MAX;
                width = spread.max(floor);
            } else {
                width = width.min((spread * NARROWING).max(floor));
            }
        }
    }

    /// Whether arithmetic on these prices keeps what the scores of a typical row differ by.
    fn in_range(&self, tally: &Tally) -> bool {
        let most = self.scale * LARGEST_PRICE;
        tally.largest_edge.is_finite() && self.prices.iter().all(|price| price.abs() <= most)
    }

    /// What the expert supplies at a price that has changed: whether a load is over or under it.
    fn changes(&self, curves: &Curves, loads: &[f64], scale: f64) -> Vec<f64> {
        let fair = loads.iter().sum::<f64>() / loads.len() as f64;
        let change = |(expert, load): (usize, &f64)| {
            if self.tight {
                return curves.clearing_change(expert, *load, |n, _| n > fair, |n, _| n < fair);
            }
            let price = f64::from(self.prices[expert]);
            let marginal = |load: f64| self.supply.marginal(expert, whole(load));
            curves.clearing_change(
                expert,
                *load,
                |load, change| marginal(load * scale) > price + change,
                |load, change| marginal(load * scale + 1.0) < price + change,
            )
        };
        loads.iter().enumerate().map(change).collect()
    }

    /// The width that prices may need where loads are uncertain by `noise`.
    fn noise_width(&self, curves: &Curves, loads: &[f64], noise: f64, most: f32) -> f32 {
        let shift = |(expert, load): (usize, &f64)| {
            let rise = curves.clearing_change(expert, *load, |n, _| n > load - noise, |_, _| false);
            let fall = curves.clearing_change(expert, *load, |_, _| false, |n, _| n < load + noise);
            rise.max(-fall)
        };
        let widest = loads.iter().enumerate().map(shift).fold(0.0, f64::max);
        narrow(widest).min(most).max(f32::MIN_POSITIVE)
    }

    /// Units of demand that are not supplied.
    fn deviation(&self, loads: &[f64], scale: f64) -> f64 {
        let fair = loads.iter().sum::<f64>() / loads.len() as f64;
        let off = |(expert, load): (usize, &f64)| {
            if self.tight {
                return (load - fair).abs();
            }
            let load = whole(load * scale);
            let supplied = self.supply.nearest(expert, f64::from(self.prices[expert]), load);
            f64::from(load.abs_diff(supplied)) / scale
        };
        loads.iter().enumerate().map(off).sum()
    }

    fn apply(&mut self, changes: &[f64]) {
        for (expert, (price, change)) in self.prices.iter_mut().zip(changes).enumerate() {
            let mut moved = f64::from(*price) + change;
            if !self.tight {
                // An expert with room to spare costs exactly what its first unit does.
                moved = self.supply.bounded(expert, moved);
            }
            let moved = narrow(moved);
            *price = if moved.is_finite() { moved } else { *price };
        }
        if !self.tight {
            self.level();
        }
    }

    /// Shifts all prices to where total supply meets total demand.
    fn level(&mut self) {
        let units = (self.game.scores.tokens() * self.game.top_k) as u64;
        let prices: Vec<f64> = self.prices.iter().copied().map(f64::from).collect();
        let shift = level(self.supply, &prices, units);
        let shifted = || prices.iter().map(|price| narrow(price + shift));
        if shift != 0.0 && shifted().all(f32::is_finite) {
            self.prices = shifted().collect();
        }
    }

    /// The repair at the present prices, without moves so far.
    fn swaps(&self) -> Swaps<'g> {
        let mut prices: Vec<f64> = self.prices.iter().copied().map(f64::from).collect();
        if self.tight {
            let most = self.supply.most_each(prices.len(), f64::MAX);
            self.supply.cover(&mut prices, &most);
        }
        let loads = self.loads.iter();
        let loads: Vec<u32> =
            loads.map(|load| u32::try_from(*load).expect("loads are counts")).collect();
        Swaps::new(self.supply, prices, &loads)
    }

    /// Gives the repair the open tokens.
    fn offer(&self, swaps: &mut Swaps<'_>, blocks: &[Block<'_>]) {
        let tokens = blocks.iter().map(|block| block.open.len()).sum();
        swaps.reserve(tokens, blocks.iter().map(Block::listed).sum());
        for block in blocks {
            for list in block.lists() {
                let row = block.row(list.token, self.game.top_k);
                let pairs = list.experts.iter().zip(list.scores);
                swaps.add(pairs.map(|(expert, score)| {
                    let on = row.binary_search(&ExpertId(*expert)).is_ok();
                    (*expert, *score, on)
                }));
            }
        }
    }

    /// Gives the tokens the choices that the repair found.
    fn accept(&mut self, swaps: &mut Swaps<'_>, blocks: &mut [Block<'_>]) {
        let moved = swaps.moved().to_vec();
        let (mut first, mut moved) = (0, moved.into_iter().map(|token| token as usize).peekable());
        for block in blocks {
            let after = first + block.open.len();
            while let Some(number) = moved.next_if(|number| *number < after) {
                let on = swaps.experts(number).filter(|(_, on)| *on).map(|(expert, _)| expert);
                block.swap_listed(number - first, on, self.game.top_k, &mut self.loads);
            }
            first = after;
        }
    }
}

/// The distance of the best score from the median: the median of some rows.
pub(super) fn typical_span(game: &Game<'_>) -> f32 {
    let tokens = game.scores.tokens();
    let rows = tokens.min(SPAN_ROWS);
    let span = |at: usize| {
        let mut row = game.scores.row(at * tokens / rows).to_vec();
        let middle = row.len() / 2;
        let (_, median, above) = row.select_nth_unstable_by(middle, f32::total_cmp);
        above.iter().fold(*median, |most, score| most.max(*score)) - *median
    };
    let mut spans: Vec<f32> = (0..rows).map(span).collect();
    let middle = spans.len() / 2;
    spans.select_nth_unstable_by(middle, f32::total_cmp).1.clamp(f32::MIN_POSITIVE, 1e37)
}

/// Prices in typical spans, beyond which too few bits are left for the spans.
pub(super) const LARGEST_PRICE: f32 = 1e5;

/// Tokens of the first sample.
const FIRST_SAMPLE: usize = 512;

const SAMPLE_GROWTH: usize = 16;
const MOST_SAMPLE_SWEEPS: u32 = 12;
const SPAN_ROWS: usize = 15;

/// How far above the boundary a sample's distances count, in widths. There each token has k scores
/// at most, below it all others, and from a cold start the prices of crowded experts rise by far
/// more than those of others fall.
const RISE: f32 = 4.0;

/// Deviations of a load that a width allows for, in units of its standard error.
const NOISE: f64 = 2.0;

/// Width, in typical spans, within which an earlier batch's prices fit the next where experts
/// have one token each; more tokens are less noise.
const WARM_WIDTH: f32 = 2.0;

/// Spread of the second change of prices over that of the first, at most.
const SECOND_CHANGE: f32 = 0.2;

/// Each pass is this many times as wide as the last change of prices spreads.
const NARROWING: f32 = 1.5;

/// Part of a bound that sweeps may use up, so that the repair has room.
const MOST_DRIFT: f64 = 0.9;

/// Part of the largest priced score or width that rounding in f32 may hide: several times 2⁻²⁴.
const ROUNDING: f64 = 1e-6;

/// Least width in parts of the largest priced score.
const LEAST_WIDTH: f32 = 1e-5;

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

#[expect(clippy::cast_possible_truncation, reason = "prices of the passes are f32 on purpose")]
fn narrow(value: f64) -> f32 {
    value as f32
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "loads are between 0 and a little over T, which fits 32 bits"
)]
fn whole(load: f64) -> u32 {
    load.round() as u32
}

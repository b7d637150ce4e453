//! What tokens ask at given prices, visiting only those that may have changed their minds.
//!
//! A token whose margin, the k-th priced score minus the next, is at least w keeps its choice as
//! long as no two prices drift apart by more than w: it is settled, and later passes leave it out.

use rayon::prelude::*;

use super::clearing::Curves;
use super::kernel::{Instructions, Prices, Seen, visit_rows};
use super::top_k::select_top;
use super::{Game, TOKEN_BLOCK};
use crate::ids::ExpertId;

/// Consecutive tokens, those of them that are open, and their choices.
pub(super) struct Block<'c> {
    first: u32,
    /// Row-major `[tokens of the block, k]`; empty for a sample, which keeps no choices.
    chosen: &'c mut [ExpertId],
    /// Tokens to visit, ascending.
    pub(super) open: Vec<u32>,
    /// The tokens that earlier passes visited.
    visited: Vec<Vec<u32>>,
    /// For each open token, where its experts end in `near`.
    pub(super) near_ends: Vec<u32>,
    /// The experts that an open token may leave or join, ascending within a token.
    pub(super) near: Vec<u32>,
}

impl<'c> Block<'c> {
    /// All tokens of a game in blocks, all open.
    pub(super) fn all(chosen: &'c mut [ExpertId], top_k: usize) -> Vec<Self> {
        let blocks = chosen.chunks_mut(TOKEN_BLOCK * top_k).enumerate();
        let block = |(number, chosen): (usize, &'c mut [ExpertId])| {
            let first = index(number * TOKEN_BLOCK);
            let open = (first..first + index(chosen.len() / top_k)).collect();
            Self { first, chosen, open, visited: Vec::new(), near_ends: Vec::new(), near: Vec::new() }
        };
        blocks.map(block).collect()
    }

    /// Every so many tokens, in blocks without choices.
    pub(super) fn sample(tokens: usize, size: usize) -> Vec<Self> {
        let all: Vec<u32> = (0..size).map(|at| index(at * tokens / size)).collect();
        let block = |open: &[u32]| Self {
            first: 0,
            chosen: &mut [],
            open: open.to_vec(),
            visited: Vec::new(),
            near_ends: Vec::new(),
            near: Vec::new(),
        };
        all.chunks(SAMPLE_BLOCK).map(block).collect()
    }

    /// Opens the tokens that settling pass number `pass` visited, and forgets it and later ones.
    pub(super) fn reopen(&mut self, pass: usize) {
        self.visited.truncate(pass + 1);
        self.open = self.visited.pop().expect("the pass was made");
    }

    /// The choice of a token of this block.
    pub(super) fn row(&mut self, token: u32, top_k: usize) -> &mut [ExpertId] {
        &mut self.chosen[(token - self.first) as usize * top_k..][..top_k]
    }
}

const SAMPLE_BLOCK: usize = 64;

/// Sums over the tokens of a pass. They are whole numbers, so that their order does not matter.
pub(super) struct Tally {
    /// Loads by the tokens that settled in this pass.
    pub(super) settled: Vec<u32>,
    /// Loads by the tokens that stay open.
    pub(super) open: Vec<u32>,
    /// How loads follow prices, as far as open tokens tell.
    pub(super) curves: Curves,
    /// The largest absolute k-th priced score or next.
    pub(super) largest_edge: f32,
    /// Rows visited.
    pub(super) rows: u64,
}

impl Tally {
    fn new(experts: usize, width: f32) -> Self {
        Self {
            settled: vec![0; experts],
            open: vec![0; experts],
            curves: Curves::new(experts, width),
            largest_edge: 0.0,
            rows: 0,
        }
    }

    fn plus(mut self, other: Self) -> Self {
        self.settled.iter_mut().zip(other.settled).for_each(|(own, more)| *own += more);
        self.open.iter_mut().zip(other.open).for_each(|(own, more)| *own += more);
        self.curves.add(&other.curves);
        self.largest_edge = self.largest_edge.max(other.largest_edge);
        self.rows += other.rows;
        self
    }
}

/// A pass over open tokens.
pub(super) struct Pass<'g> {
    pub(super) game: Game<'g>,
    pub(super) kind: Instructions,
    pub(super) prices: &'g Prices,
    /// w: margins and distances from the boundary below it count.
    pub(super) width: f32,
    /// Whether tokens with a margin of `width` leave the open ones.
    pub(super) settle: bool,
}

impl Pass<'_> {
    /// Visits all open tokens.
    pub(super) fn run(&self, blocks: &mut [Block<'_>]) -> Tally {
        let new = || Tally::new(self.game.scores.experts(), self.width);
        let visit = |mut tally: Tally, block: &mut Block<'_>| {
            self.visit(block, &mut tally);
            tally
        };
        let open: usize = blocks.iter().map(|block| block.open.len()).sum();
        if open * self.game.scores.experts() <= MOST_SEQUENTIAL_SCORES {
            return blocks.iter_mut().fold(new(), visit);
        }
        let least = blocks.len() / MOST_PARTS;
        let parts = blocks.par_iter_mut().with_min_len(least.max(1));
        parts.fold(new, visit).reduce(new, Tally::plus)
    }

    fn visit(&self, block: &mut Block<'_>, tally: &mut Tally) {
        let k = self.game.top_k;
        let open = std::mem::take(&mut block.open);
        let mut kept = Vec::with_capacity(open.len());
        block.near.clear();
        block.near_ends.clear();
        tally.rows += open.len() as u64;
        let mut exact = Exact::new(&self.game);
        let band = Some(self.width);
        let tokens = open.iter().copied();
        visit_rows(self.kind, self.game.scores, tokens, self.prices, k, band, |found| {
            let token = found.token;
            let (last, next) = found.edge;
            let doubt = TWO_ROUNDINGS * last.abs().max(next.abs());
            let sure = !found.tied && last - next > doubt;
            #[cfg(test)]
            if !sure { eprintln!("EXACT {} {:?} {}", found.tied, found.edge, doubt); }
            let seen = match sure {
                true => found,
                false => exact.look(&self.game, token, self.prices.each(), self.width),
            };
            let (last, next) = seen.edge;
            tally.largest_edge = tally.largest_edge.max(last.abs()).max(next.abs());
            if !block.chosen.is_empty() {
                let row = block.row(token, k).iter_mut();
                row.zip(seen.chosen).for_each(|(slot, expert)| slot.0 = *expert);
            }
            if self.settle && last - next >= self.width {
                seen.chosen.iter().for_each(|expert| tally.settled[*expert as usize] += 1);
                return;
            }
            kept.push(token);
            seen.chosen.iter().for_each(|expert| tally.open[*expert as usize] += 1);
            let (experts, keys) = seen.near;
            if !sure {
                let on = |expert: &u32| seen.chosen.contains(expert);
                for (expert, key) in experts.iter().zip(keys) {
                    tally.curves.count(*expert, *key, seen.edge, on(expert));
                }
            } else {
                for (expert, key) in experts.iter().zip(keys) {
                    tally.curves.count(*expert, *key, seen.edge, *key >= last);
                }
            }
            if self.settle {
                block.near.extend_from_slice(experts);
                block.near_ends.push(index(block.near.len()));
            }
        });
        block.open = kept;
        if self.settle {
            block.visited.push(open);
        }
    }
}

/// Scores that one thread visits sooner than two start.
const MOST_SEQUENTIAL_SCORES: usize = 1 << 14;

/// Parts of a pass that are summed apart.
const MOST_PARTS: usize = 16;

/// Two priced scores closer than this part of the larger may be in the wrong order in f32.
const TWO_ROUNDINGS: f32 = 4.0 * f32::EPSILON;

/// The choice of one token in f64, for equal priced scores and those f32 cannot tell apart.
///
/// Equal ones are split on purpose: token t looks at experts from number tk on, so that identical
/// rows spread over identical experts instead of piling up on the first.
struct Exact {
    turned: Vec<f64>,
    best: Vec<(f64, u32)>,
    chosen: Vec<u32>,
    near: Vec<u32>,
    keys: Vec<f32>,
}

impl Exact {
    fn new(game: &Game<'_>) -> Self {
        Self {
            turned: Vec::new(),
            best: vec![(0.0, 0); game.top_k + 1],
            chosen: vec![0; game.top_k],
            near: Vec::new(),
            keys: Vec::new(),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "only to tell near from far")]
    fn look(&mut self, game: &Game<'_>, token: u32, prices: &[f32], width: f32) -> Seen<'_> {
        let (row, experts) = (game.scores.row(token as usize), prices.len());
        let key = |expert: usize| f64::from(row[expert]) - f64::from(prices[expert]);
        let first = token as usize * game.top_k % experts;
        self.turned.clear();
        self.turned.extend((first..experts).chain(0..first).map(key));
        select_top(&self.turned, &mut self.best);
        for (slot, (_, at)) in self.chosen.iter_mut().zip(&self.best) {
            let expert = first + *at as usize;
            *slot = index(if expert < experts { expert } else { expert - experts });
        }
        self.chosen.sort_unstable();
        let (last, next) = (self.best[game.top_k - 1].0, self.best[game.top_k].0);
        self.near.clear();
        self.keys.clear();
        for expert in 0..experts {
            let key = key(expert);
            if key > last - f64::from(width) && key < next + f64::from(width) {
                self.near.push(index(expert));
                self.keys.push(key as f32);
            }
        }
        Seen {
            token,
            tied: true,
            chosen: &self.chosen,
            edge: (last as f32, next as f32),
            near: (&self.near, &self.keys),
        }
    }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).expect("tokens and experts fit 32 bits")
}

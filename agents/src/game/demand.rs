//! What tokens ask at given prices, visiting only those that may have changed their minds.
//!
//! A token whose margin, the k-th priced score minus the next, is at least w keeps its choice as
//! long as no two prices drift apart by more than w: it is settled, and later passes leave it out.

use rayon::prelude::*;

use super::clearing::Curves;
use super::kernel::{Instructions, Prices, visit_rows};
use super::lanes::LANES;
use super::list_kernel::{List, visit_lists};
use super::top_k::select_top;
use super::{Game, TOKEN_BLOCK};
use crate::ids::ExpertId;

/// Consecutive tokens, those of them that are open, and their choices.
pub(super) struct Block<'c> {
    first: u32,
    /// Row-major `[tokens of the block, k]`; empty for a sample, which keeps no choices.
    chosen: &'c mut [ExpertId],
    /// Whether `chosen` holds choices yet.
    begun: bool,
    /// Tokens to visit.
    pub(super) open: Vec<u32>,
    /// The tokens that earlier passes visited.
    visited: Vec<Vec<u32>>,
    /// What the open tokens may leave or join; nothing before a first pass and after reopening.
    lists: Lists,
}

/// For each open token, the experts it may leave or join.
#[derive(Default)]
struct Lists {
    ends: Vec<u32>,
    /// The lanes of the experts it is on, where they fit a vector.
    on: Vec<u32>,
    experts: Vec<u32>,
    scores: Vec<f32>,
}

impl Lists {
    fn list(&self, at: usize, token: u32) -> List<'_> {
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        let range = start..self.ends[at] as usize;
        let (experts, scores) = (&self.experts[range.clone()], &self.scores[range]);
        List { token, experts, scores, on: self.on[at] }
    }

    /// Makes room for so many lists of common lengths.
    fn reserve(&mut self, lists: usize) {
        self.ends.reserve(lists);
        self.on.reserve(lists);
        self.experts.reserve(lists * COMMON_LIST);
        self.scores.reserve(lists * COMMON_LIST);
    }

    fn push(&mut self, experts: &[u32], scores: impl Iterator<Item = f32>, on: u32) {
        self.experts.extend_from_slice(experts);
        self.scores.extend(scores);
        self.end(on);
    }

    /// Ends the list of the experts and scores added since the last one.
    fn end(&mut self, on: u32) {
        self.on.push(on);
        self.ends.push(index(self.experts.len()));
    }
}

impl<'c> Block<'c> {
    fn new(first: u32, chosen: &'c mut [ExpertId], open: Vec<u32>) -> Self {
        let (visited, lists) = (Vec::new(), Lists::default());
        Self { first, chosen, begun: false, open, visited, lists }
    }

    /// All tokens of a game in blocks, all open.
    pub(super) fn all(chosen: &'c mut [ExpertId], top_k: usize) -> Vec<Self> {
        let blocks = chosen.chunks_mut(TOKEN_BLOCK * top_k).enumerate();
        let block = |(number, chosen): (usize, &'c mut [ExpertId])| {
            let first = index(number * TOKEN_BLOCK);
            let open = (first..first + index(chosen.len() / top_k)).collect();
            Self::new(first, chosen, open)
        };
        blocks.map(block).collect()
    }

    /// Scores that the next pass visits, at least.
    fn work(&self, experts: usize) -> usize {
        match self.lists.scores.len() {
            0 => self.open.len() * experts,
            listed => listed + self.open.len() * LIST_WORK,
        }
    }

    /// Every so many tokens, in blocks without choices.
    pub(super) fn sample(tokens: usize, size: usize) -> Vec<Self> {
        let all: Vec<u32> = (0..size).map(|at| index(at * tokens / size)).collect();
        all.chunks(SAMPLE_BLOCK).map(|open| Self::new(0, &mut [], open.to_vec())).collect()
    }

    /// Opens the tokens that settling pass number `pass` visited, and forgets it and later ones.
    pub(super) fn reopen(&mut self, pass: usize) {
        self.visited.truncate(pass + 1);
        self.open = self.visited.pop().expect("the pass was made");
        self.lists = Lists::default();
    }

    /// The open tokens with the experts they may leave or join, in the order of the last pass.
    pub(super) fn lists(&self) -> impl Iterator<Item = List<'_>> {
        let tokens = self.open.iter().enumerate();
        tokens.map(|(at, token)| self.lists.list(at, *token))
    }

    /// Lengths of these lists together.
    pub(super) fn listed(&self) -> usize {
        self.lists.experts.len()
    }

    /// The choice of a token of this block.
    pub(super) fn row(&self, token: u32, top_k: usize) -> &[ExpertId] {
        &self.chosen[(token - self.first) as usize * top_k..][..top_k]
    }

    /// Gives a token a choice, ascending, and counts the change of loads.
    pub(super) fn choose(&mut self, token: u32, choice: &[u32], loads: &mut [i32]) {
        if !self.chosen.is_empty() {
            let at = (token - self.first) as usize * choice.len();
            let row = &mut self.chosen[at..][..choice.len()];
            if self.begun {
                row.iter().for_each(|expert| loads[expert.index()] -= 1);
            }
            row.iter_mut().zip(choice).for_each(|(slot, expert)| slot.0 = *expert);
        }
        choice.iter().for_each(|expert| loads[*expert as usize] += 1);
    }

    /// As [`Self::swap`], of the open token at this place and the experts of its list.
    pub(super) fn swap_listed(
        &mut self,
        at: usize,
        on: impl Iterator<Item = u32>,
        top_k: usize,
        loads: &mut [i32],
    ) {
        let (token, lists) = (self.open[at], std::mem::take(&mut self.lists));
        self.swap(token, lists.list(at, token).experts, on, top_k, loads);
        self.lists = lists;
    }

    /// Replaces, in a token's choice, those of the listed experts it is on by others of them.
    pub(super) fn swap(
        &mut self,
        token: u32,
        listed: &[u32],
        on: impl Iterator<Item = u32>,
        top_k: usize,
        loads: &mut [i32],
    ) {
        let sure = self.row(token, top_k).iter().map(|expert| expert.0);
        let sure = sure.filter(|expert| !listed.contains(expert));
        let mut choice: Vec<u32> = sure.chain(on).collect();
        choice.sort_unstable();
        self.choose(token, &choice, loads);
    }
}

const SAMPLE_BLOCK: usize = 64;

/// Experts of a list in the mean, at most: most tokens of a first pass have none.
const COMMON_LIST: usize = LANES / 4;

/// Scores of a row that are visited in the time that one list takes.
const LIST_WORK: usize = 16;

/// Sums over the tokens of a pass. They are whole numbers, so that their order does not matter.
pub(super) struct Tally {
    /// What loads change by.
    pub(super) loads: Vec<i32>,
    /// How loads follow prices, as far as open tokens tell.
    pub(super) curves: Curves,
    /// The largest absolute k-th priced score or next.
    pub(super) largest_edge: f32,
    /// Scores visited.
    pub(super) scores: u64,
}

impl Tally {
    fn new(experts: usize, rise: f32, fall: f32) -> Self {
        let curves = Curves::new(experts, rise, fall);
        Self { loads: vec![0; experts], curves, largest_edge: 0.0, scores: 0 }
    }

    fn plus(mut self, other: Self) -> Self {
        self.loads.iter_mut().zip(other.loads).for_each(|(own, more)| *own += more);
        self.curves.add(&other.curves);
        self.largest_edge = self.largest_edge.max(other.largest_edge);
        self.scores += other.scores;
        self
    }
}

/// A pass over open tokens.
pub(super) struct Pass<'g> {
    pub(super) game: Game<'g>,
    pub(super) kind: Instructions,
    pub(super) prices: &'g Prices,
    /// w: margins below it, and distances below the boundary, count.
    pub(super) width: f32,
    /// Distances above the boundary count up to this; w where tokens settle.
    pub(super) rise: f32,
    /// Whether tokens with a margin of `width` leave the open ones.
    pub(super) settle: bool,
}

impl Pass<'_> {
    /// Visits all open tokens.
    pub(super) fn run(&self, blocks: &mut [Block<'_>]) -> Tally {
        let new = || Tally::new(self.game.scores.experts(), self.rise, self.width);
        let visit = |mut tally: Tally, block: &mut Block<'_>| {
            self.visit(block, &mut tally);
            tally
        };
        let experts = self.game.scores.experts();
        let work: usize = blocks.iter().map(|block| block.work(experts)).sum();
        if work <= MOST_SEQUENTIAL_SCORES {
            return blocks.iter_mut().fold(new(), visit);
        }
        // Few parts, for each has tables of its own to clear and to add up.
        let least = blocks.len() / rayon::current_num_threads();
        let parts = blocks.par_iter_mut().with_min_len(least.max(1));
        parts.fold(new, visit).reduce(new, Tally::plus)
    }

    /// By list where there is one that fits a vector, else by the whole row.
    fn visit(&self, block: &mut Block<'_>, tally: &mut Tally) {
        let open = std::mem::take(&mut block.open);
        let lists = std::mem::take(&mut block.lists);
        let mut exact = Exact::new(&self.game);
        let mut kept = Kept { open: Vec::with_capacity(open.len()), lists: Lists::default() };
        if self.settle {
            kept.lists.reserve(open.len());
        }
        if lists.ends.is_empty() {
            self.visit_rows(&open, block, tally, &mut exact, &mut kept);
        } else {
            let mut long = Vec::new();
            self.visit_lists(&open, &lists, &mut long, block, tally, &mut exact, &mut kept);
            self.visit_rows(&long, block, tally, &mut exact, &mut kept);
        }
        (block.open, block.begun) = (kept.open, true);
        if self.settle {
            block.lists = kept.lists;
            block.visited.push(open);
        }
    }

    fn visit_rows(
        &self,
        tokens: &[u32],
        block: &mut Block<'_>,
        tally: &mut Tally,
        exact: &mut Exact,
        kept: &mut Kept,
    ) {
        let (scores, prices, k) = (self.game.scores, self.prices, self.game.top_k);
        tally.scores += (tokens.len() * scores.experts()) as u64;
        let tokens = tokens.iter().copied();
        let band = Some((self.width, self.rise));
        visit_rows(self.kind, scores, tokens, prices, k, band, |found| {
            let token = found.token;
            let (last, next) = found.edge;
            if found.tied || unsure(found.edge) {
                return self.look_again(token, block, tally, exact, kept);
            }
            tally.largest_edge = tally.largest_edge.max(last.abs()).max(next.abs());
            block.choose(token, found.chosen, &mut tally.loads);
            if self.settle && last - next >= self.width {
                return;
            }
            let (experts, keys) = found.near;
            let mut on = 0_u32;
            for (lane, (expert, key)) in experts.iter().zip(keys).enumerate() {
                let is_on = *key >= last;
                on |= u32::from(is_on) << (lane & 31);
                tally.curves.count(*expert, *key, found.edge, is_on);
            }
            kept.open.push(token);
            if self.settle {
                let row = scores.row(token as usize);
                kept.lists.push(experts, experts.iter().map(|expert| row[*expert as usize]), on);
            }
        });
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one block, split for borrowing")]
    fn visit_lists(
        &self,
        tokens: &[u32],
        lists: &Lists,
        long: &mut Vec<u32>,
        block: &mut Block<'_>,
        tally: &mut Tally,
        exact: &mut Exact,
        kept: &mut Kept,
    ) {
        let short = |list: &List<'_>| {
            let fits = list.experts.len() <= LANES;
            if !fits {
                long.push(list.token);
            }
            fits
        };
        let all = tokens.iter().enumerate().map(|(at, token)| lists.list(at, *token));
        tally.scores += lists.scores.len() as u64;
        visit_lists(self.kind, all.filter(short), self.prices, |found| {
            let List { token, experts, scores, on } = found.list;
            let (last, next) = found.edge;
            if found.tied || unsure(found.edge) {
                return self.look_again(token, block, tally, exact, kept);
            }
            tally.largest_edge = tally.largest_edge.max(last.abs()).max(next.abs());
            if found.within != on {
                let on = (0..).zip(experts).filter(|(lane, _)| found.within >> lane & 1 == 1);
                let on = on.map(|(_, expert)| *expert);
                block.swap(token, experts, on, self.game.top_k, &mut tally.loads);
            }
            if self.settle && last - next >= self.width {
                return;
            }
            kept.open.push(token);
            let (low, high) = (last - self.width, next + self.width);
            let (mut on, mut lane) = (0, 0);
            for ((expert, key), score) in experts.iter().zip(found.keys).zip(scores) {
                if *key > low && *key < high {
                    let is_on = *key >= last;
                    tally.curves.count(*expert, *key, found.edge, is_on);
                    on |= u32::from(is_on) << lane;
                    lane += 1;
                    kept.lists.experts.push(*expert);
                    kept.lists.scores.push(*score);
                }
            }
            kept.lists.end(on);
        });
    }

    /// Visits one token in f64.
    fn look_again(
        &self,
        token: u32,
        block: &mut Block<'_>,
        tally: &mut Tally,
        exact: &mut Exact,
        kept: &mut Kept,
    ) {
        exact.look(&self.game, token, self.prices.each(), (self.width, self.rise));
        let (last, next) = exact.edge;
        tally.scores += self.game.scores.experts() as u64;
        tally.largest_edge = tally.largest_edge.max(last.abs()).max(next.abs());
        block.choose(token, &exact.chosen, &mut tally.loads);
        if self.settle && last - next >= self.width {
            return;
        }
        let mut on = 0_u32;
        for (lane, (expert, key)) in exact.near.iter().zip(&exact.keys).enumerate() {
            let is_on = exact.chosen.binary_search(expert).is_ok();
            on |= u32::from(is_on) << (lane & 31);
            tally.curves.count(*expert, *key, exact.edge, is_on);
        }
        kept.open.push(token);
        if self.settle {
            let row = self.game.scores.row(token as usize);
            let scores = exact.near.iter().map(|expert| row[*expert as usize]);
            kept.lists.push(&exact.near, scores, on);
        }
    }
}

/// The tokens that a pass leaves open.
struct Kept {
    open: Vec<u32>,
    lists: Lists,
}

/// Whether f32 cannot tell the k-th priced score from the next.
pub(super) fn unsure((last, next): (f32, f32)) -> bool {
    let clear = last - next > TWO_ROUNDINGS * last.abs().max(next.abs());
    !clear
}

/// Scores that one thread visits sooner than two start.
const MOST_SEQUENTIAL_SCORES: usize = 1 << 14;

/// Two priced scores closer than this part of the larger may be in the wrong order in f32.
const TWO_ROUNDINGS: f32 = 4.0 * f32::EPSILON;

/// The choice of one token in f64, for equal priced scores and those f32 cannot tell apart.
///
/// Equal ones are split on purpose: token t looks at experts from number tk on, so that identical
/// rows spread over identical experts instead of piling up on the first.
pub(super) struct Exact {
    turned: Vec<f64>,
    best: Vec<(f64, u32)>,
    pub(super) chosen: Vec<u32>,
    pub(super) edge: (f32, f32),
    near: Vec<u32>,
    keys: Vec<f32>,
}

impl Exact {
    pub(super) fn new(game: &Game<'_>) -> Self {
        Self {
            turned: Vec::new(),
            best: vec![(0.0, 0); game.top_k + 1],
            chosen: vec![0; game.top_k],
            edge: (0.0, 0.0),
            near: Vec::new(),
            keys: Vec::new(),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "only to tell near from far")]
    pub(super) fn look(&mut self, game: &Game<'_>, token: u32, prices: &[f32], band: (f32, f32)) {
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
            if key > last - f64::from(band.0) && key < next + f64::from(band.1) {
                self.near.push(index(expert));
                self.keys.push(key as f32);
            }
        }
        self.edge = (last as f32, next as f32);
    }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).expect("tokens and experts fit 32 bits")
}

//! Who is on which expert, and the cheapest token to move between any two.

use super::{Game, Scores};
use crate::ids::ExpertId;

/// The entry must be found again before it is read.
const STALE: u32 = u32::MAX;
/// No token can make this move.
const NOBODY: u32 = u32::MAX - 1;

/// The assignment, and for each expert a lazily kept row of cheapest moves. A move costs the
/// score it loses, `a[t,e] − a[t,f]`, which does not depend on prices: a row changes only when
/// the assignment does.
pub(super) struct Rows<'g> {
    scores: Scores<'g>,
    top_k: usize,
    chosen: Vec<u32>,
    /// Bit f of token t: whether t is on f.
    on: Vec<u64>,
    words: usize,
    members: Vec<Vec<u32>>,
    rows: Vec<Row>,
    visits: u64,
}

/// Cheapest moves away from one expert; empty until it is first asked for.
#[derive(Default)]
struct Row {
    losses: Vec<f64>,
    tokens: Vec<u32>,
    stale: usize,
}

impl<'g> Rows<'g> {
    pub(super) fn new(game: &Game<'g>, chosen: &[u32]) -> Self {
        let experts = game.scores.experts();
        let words = experts.div_ceil(64);
        let mut rows = Self {
            scores: game.scores,
            top_k: game.top_k,
            chosen: chosen.to_vec(),
            on: vec![0; words * game.scores.tokens()],
            words,
            members: vec![Vec::new(); experts],
            rows: (0..experts).map(|_| Row::default()).collect(),
            visits: 0,
        };
        for (token, set) in (0_u32..).zip(chosen.chunks_exact(game.top_k)) {
            for expert in set {
                rows.members[*expert as usize].push(token);
                rows.on[token as usize * words + *expert as usize / 64] |= 1 << (expert % 64);
            }
        }
        rows
    }

    /// Scores visited so far.
    pub(super) fn visits(&self) -> u64 {
        self.visits
    }

    /// n_e.
    pub(super) fn load(&self, expert: usize) -> u32 {
        u32::try_from(self.members[expert].len()).expect("tokens fit 32 bits")
    }

    /// The assignment, ascending within a token.
    pub(super) fn into_choices(mut self) -> Vec<ExpertId> {
        self.chosen.chunks_exact_mut(self.top_k).for_each(<[u32]>::sort_unstable);
        self.chosen.into_iter().map(ExpertId).collect()
    }

    /// The least score lost by moving a token from `expert` to each expert; +inf where none can.
    pub(super) fn losses(&mut self, expert: usize) -> &[f64] {
        let experts = self.members.len();
        if self.rows[expert].tokens.is_empty() {
            self.rows[expert].stale = experts;
        }
        let stale = self.rows[expert].stale;
        if stale * DENSE > experts {
            self.find_all(expert);
        } else if stale > 0 {
            self.find_stale(expert);
        }
        &self.rows[expert].losses
    }

    /// Up to `most` tokens that can move at exactly the least loss.
    pub(super) fn cheapest(&mut self, from: usize, to: usize, most: u32) -> Vec<u32> {
        let row = &self.rows[from];
        debug_assert!(row.tokens[to] < NOBODY, "the path uses an arc that exists");
        if most == 1 {
            return vec![row.tokens[to]];
        }
        let loss = row.losses[to];
        self.visits += self.members[from].len() as u64;
        let able = self.members[from]
            .iter()
            .copied()
            .filter(|token| !self.is_on(*token, to) && self.loss(*token, from, to) == loss);
        able.take(most as usize).collect()
    }

    /// Moves one token and keeps the rows true.
    pub(super) fn shift(&mut self, token: u32, from: usize, to: usize) {
        debug_assert!(self.is_on(token, from) && !self.is_on(token, to), "a token moves once");
        let at = token as usize * self.words;
        self.on[at + from / 64] &= !(1 << (from % 64));
        self.on[at + to / 64] |= 1 << (to % 64);
        let (new, old) = (index(to), index(from));
        let set = &mut self.chosen[token as usize * self.top_k..][..self.top_k];
        let slot = set.iter().position(|expert| *expert == old).expect("the token is on it");
        set[slot] = new;
        let members = &mut self.members[from];
        let place = members.iter().position(|member| *member == token).expect("the token is on it");
        members.swap_remove(place);
        self.members[to].push(token);

        for column in 0..self.members.len() {
            self.rows[from].forget(column, token);
        }
        let scores = self.scores.row(token as usize);
        let set = &self.chosen[token as usize * self.top_k..][..self.top_k];
        for expert in set.iter().map(|expert| *expert as usize) {
            if expert != to {
                self.rows[expert].forget(to, token);
                let loss = f64::from(scores[expert]) - f64::from(scores[from]);
                self.rows[expert].offer(from, loss, token);
            }
        }
        let base = f64::from(scores[to]);
        for (column, score) in scores.iter().enumerate() {
            if self.on[at + column / 64] & (1 << (column % 64)) == 0 {
                self.rows[to].offer(column, base - f64::from(*score), token);
            }
        }
        self.visits += 2 * self.members.len() as u64;
    }

    /// The tokens on `expert` that can move to one of `open`, least loss first.
    pub(super) fn by_best_move(&self, expert: usize, open: &[usize]) -> Vec<u32> {
        let best = |token: &u32| Some((self.best_move(*token, expert, open)?.0, *token));
        let mut offers: Vec<(f64, u32)> = self.members[expert].iter().filter_map(best).collect();
        offers.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        offers.into_iter().map(|(_, token)| token).collect()
    }

    /// The least loss of moving a token from `from` to one of `open`, and where that is.
    pub(super) fn best_move(
        &self,
        token: u32,
        from: usize,
        open: &[usize],
    ) -> Option<(f64, usize)> {
        let free = open.iter().copied().filter(|to| !self.is_on(token, *to));
        free.map(|to| (self.loss(token, from, to), to)).min_by(|a, b| a.0.total_cmp(&b.0))
    }

    fn is_on(&self, token: u32, expert: usize) -> bool {
        self.on[token as usize * self.words + expert / 64] & (1 << (expert % 64)) != 0
    }

    fn loss(&self, token: u32, from: usize, to: usize) -> f64 {
        let row = self.scores.row(token as usize);
        f64::from(row[from]) - f64::from(row[to])
    }

    fn find_all(&mut self, expert: usize) {
        let experts = self.members.len();
        let Row { losses, tokens, stale } = &mut self.rows[expert];
        losses.clear();
        losses.resize(experts, f64::INFINITY);
        tokens.clear();
        tokens.resize(experts, NOBODY);
        *stale = 0;
        let mut kept = Vec::with_capacity(self.top_k);
        for token in &self.members[expert] {
            let row = self.scores.row(*token as usize);
            let set = &self.chosen[*token as usize * self.top_k..][..self.top_k];
            // A token cannot move to where it is. Saving those few entries keeps the loop over
            // all experts free of branches.
            kept.clear();
            kept.extend(set.iter().map(|to| (losses[*to as usize], tokens[*to as usize])));
            let base = f64::from(row[expert]);
            for ((score, least), cheapest) in row.iter().zip(&mut *losses).zip(&mut *tokens) {
                let loss = base - f64::from(*score);
                let less = loss < *least;
                *least = if less { loss } else { *least };
                *cheapest = if less { *token } else { *cheapest };
            }
            for (to, (least, cheapest)) in set.iter().zip(&kept) {
                (losses[*to as usize], tokens[*to as usize]) = (*least, *cheapest);
            }
        }
        self.visits += (self.members[expert].len() * experts) as u64;
    }

    fn find_stale(&mut self, expert: usize) {
        let mut row = std::mem::take(&mut self.rows[expert]);
        let columns: Vec<usize> =
            (0..row.tokens.len()).filter(|to| row.tokens[*to] == STALE).collect();
        for to in &columns {
            (row.losses[*to], row.tokens[*to]) = (f64::INFINITY, NOBODY);
        }
        row.stale = 0;
        for token in &self.members[expert] {
            for to in &columns {
                let loss = self.loss(*token, expert, *to);
                if loss < row.losses[*to] && !self.is_on(*token, *to) {
                    (row.losses[*to], row.tokens[*to]) = (loss, *token);
                }
            }
        }
        self.visits += (self.members[expert].len() * columns.len()) as u64;
        self.rows[expert] = row;
    }
}

/// A row with more than one stale entry in this many is found anew as a whole.
const DENSE: usize = 6;

impl Row {
    /// `token` can no longer make the move to `column`.
    fn forget(&mut self, column: usize, token: u32) {
        if self.tokens.get(column) == Some(&token) {
            self.tokens[column] = STALE;
            self.stale += 1;
        }
    }

    /// `token` can now make the move to `column`.
    fn offer(&mut self, column: usize, loss: f64, token: u32) {
        if self
            .tokens
            .get(column)
            .is_some_and(|known| *known != STALE && loss < self.losses[column])
        {
            (self.losses[column], self.tokens[column]) = (loss, token);
        }
    }
}

fn index(expert: usize) -> u32 {
    u32::try_from(expert).expect("experts fit 32 bits")
}

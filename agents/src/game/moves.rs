//! The repair of a small game: successive shortest paths over all moves of all tokens.
//!
//! The same graph and the same argument as in the `repair` module. What a unit gains by moving from
//! one expert to another is a table `[E + 1, E + 1]`, the sink last, whose rows are found when a
//! search reaches their expert and kept until one of its tokens moves.

#![allow(unsafe_code, reason = "calls functions compiled for instructions found at run time")]

use super::Game;
use super::kernel::Instructions;
use super::prices::Supply;

/// Columns that are looked at together.
const LANES: usize = 8;

/// Tokens on their experts, and what moving them gains. Node E is the sink.
pub(super) struct Moves<'g> {
    game: Game<'g>,
    supply: Supply<'g>,
    /// One an expert, then the sink's, then zeros up to whole vectors.
    prices: Vec<f64>,
    pub(super) delivered: Vec<u32>,
    excess: Vec<i64>,
    /// Row-major `[T, k]`.
    chosen: Vec<u32>,
    /// Row-major `[T, E]`: the scores, -inf where the token is on the expert.
    off: Vec<f32>,
    /// The tokens on each expert: `counts[e]` of them from `starts[e]` on.
    members: Vec<u32>,
    starts: Vec<usize>,
    counts: Vec<usize>,
    /// Largest gain of a move, by node left and node joined.
    gains: Vec<[f64; LANES]>,
    known: Vec<bool>,
    /// Distance of nodes that wait, +inf of those not reached, -inf of those that are done.
    waiting: Vec<[f64; LANES]>,
    from: Vec<[u64; LANES]>,
    /// The nodes that are done and their distances.
    done: Vec<(usize, f64)>,
}

impl<'g> Moves<'g> {
    /// `prices` are such that all choices are best responses.
    pub(super) fn new(
        game: &Game<'g>,
        supply: Supply<'g>,
        mut prices: Vec<f64>,
        chosen: Vec<u32>,
        loads: &[u32],
    ) -> Self {
        let experts = game.scores.experts();
        let delivered = supply.nearest_each(&prices, loads);
        let pairs = loads.iter().zip(&delivered);
        let mut excess: Vec<i64> =
            pairs.map(|(load, flow)| i64::from(*load) - i64::from(*flow)).collect();
        excess.push(-excess.iter().sum::<i64>());
        let vectors = (experts + 1).div_ceil(LANES);
        prices.resize(vectors * LANES, 0.0);
        let most = supply.most_each(experts, f64::MAX);
        let mut starts = Vec::with_capacity(experts);
        let mut room = 0;
        for (load, most) in loads.iter().zip(&most) {
            starts.push(room);
            room += *load.max(most) as usize;
        }
        let (mut members, mut counts) = (vec![0; room], vec![0; experts]);
        let mut off = game.scores.values().to_vec();
        let rows = chosen.chunks_exact(game.top_k).zip(off.chunks_exact_mut(experts));
        for (token, (row, off)) in (0..).zip(rows) {
            for expert in row.iter().map(|expert| *expert as usize) {
                members[starts[expert] + counts[expert]] = token;
                counts[expert] += 1;
                off[expert] = f32::NEG_INFINITY;
            }
        }
        Self {
            game: *game,
            supply,
            prices,
            delivered,
            excess,
            chosen,
            off,
            members,
            starts,
            counts,
            gains: vec![[f64::NEG_INFINITY; LANES]; (experts + 1) * vectors],
            known: vec![false; experts + 1],
            waiting: vec![[f64::INFINITY; LANES]; vectors],
            from: vec![[0; LANES]; vectors],
            done: Vec::new(),
        }
    }

    /// The prices, the sink's last.
    pub(super) fn prices(&self) -> &[f64] {
        &self.prices[..=self.sink()]
    }

    pub(super) fn into_chosen(self) -> Vec<u32> {
        self.chosen
    }

    fn sink(&self) -> usize {
        self.delivered.len()
    }

    #[inline(always)]
    fn run(&mut self) -> Option<u32> {
        let mut paths = 0;
        for source in 0..self.excess.len() {
            while self.excess[source] > 0 {
                let target = self.shortest_path(source)?;
                self.push(source, target);
                paths += 1;
            }
        }
        Some(paths)
    }

    /// Dijkstra to the nearest deficit; moves prices so that the path costs nothing.
    #[inline(always)]
    fn shortest_path(&mut self, source: usize) -> Option<usize> {
        self.waiting.fill([f64::INFINITY; LANES]);
        self.done.clear();
        let (mut node, mut distance) = (source, 0.0);
        loop {
            self.waiting.as_flattened_mut()[node] = f64::NEG_INFINITY;
            self.done.push((node, distance));
            if self.excess[node] < 0 {
                break;
            }
            if !self.known[node] {
                self.find_gains(node);
            }
            (node, distance) = self.relax(node, distance)?;
        }
        for (other, reached) in &self.done {
            self.prices[*other] += distance - reached;
        }
        Some(node)
    }

    /// Reaches all nodes from one that is done; returns the nearest that waits.
    #[inline(always)]
    fn relax(&mut self, node: usize, start: f64) -> Option<(usize, f64)> {
        let vectors = self.waiting.len();
        let base = start - self.prices[node];
        let gains = self.gains[node * vectors..][..vectors].as_flattened();
        let arcs = gains.iter().zip(&self.prices);
        let nodes = self.waiting.as_flattened_mut().iter_mut().zip(self.from.as_flattened_mut());
        for ((gain, price), (waiting, from)) in arcs.zip(nodes) {
            let reach = base + (price - gain);
            // Rounding can leave an arc below 0 by a few units in the last place.
            let reach = if reach > start { reach } else { start };
            let nearer = reach < *waiting;
            *waiting = if nearer { reach } else { *waiting };
            *from = if nearer { node as u64 } else { *from };
        }
        let mut least = [f64::INFINITY; LANES];
        for waiting in &self.waiting {
            for (least, waiting) in least.iter_mut().zip(waiting) {
                let open = if *waiting > f64::NEG_INFINITY { *waiting } else { f64::INFINITY };
                *least = if open < *least { open } else { *least };
            }
        }
        let least = least.into_iter().fold(f64::INFINITY, f64::min);
        if least == f64::INFINITY {
            return None;
        }
        let has = |waiting: &[f64; LANES]| waiting.iter().fold(false, |has, w| has | (*w == least));
        let vector = self.waiting.iter().position(has)?;
        let lane = self.waiting[vector].iter().position(|waiting| *waiting == least)?;
        Some((vector * LANES + lane, least))
    }

    /// What units at a node gain by moving to each other one.
    #[inline(always)]
    fn find_gains(&mut self, node: usize) {
        let (sink, vectors) = (self.sink(), self.waiting.len());
        let gains = self.gains[node * vectors..][..vectors].as_flattened_mut();
        self.known[node] = true;
        if node == sink {
            for (expert, gain) in gains[..sink].iter_mut().enumerate() {
                *gain = self.supply.marginal(expert, self.delivered[expert]);
            }
            return;
        }
        gains.fill(f64::NEG_INFINITY);
        for token in &self.members[self.starts[node]..][..self.counts[node]] {
            let own = f64::from(self.game.scores.row(*token as usize)[node]);
            let off = &self.off[*token as usize * sink..][..sink];
            for (gain, score) in gains.iter_mut().zip(off) {
                let more = f64::from(*score) - own;
                *gain = if more > *gain { more } else { *gain };
            }
        }
        gains[sink] = -self.supply.marginal(node, self.delivered[node] + 1);
    }

    /// Moves one unit along the path to `target`.
    fn push(&mut self, source: usize, target: usize) {
        let sink = self.sink();
        let mut moves = Vec::new();
        let mut node = target;
        while node != source {
            let before = usize::try_from(self.from.as_flattened()[node]).expect("a node");
            if node == sink {
                self.delivered[before] += 1;
                self.forget(before);
                self.forget(sink);
            } else if before == sink {
                self.delivered[node] -= 1;
                self.forget(node);
                self.forget(sink);
            } else {
                moves.push((self.best_token(before, node), before, node));
            }
            node = before;
        }
        // All tokens are found before the first moves: it may stand on other nodes of the path.
        moves.into_iter().for_each(|(token, left, joined)| self.move_token(token, left, joined));
        self.excess[source] -= 1;
        self.excess[target] += 1;
    }

    fn forget(&mut self, node: usize) {
        self.known[node] = false;
    }

    /// The token that gains most by the move.
    fn best_token(&self, left: usize, joined: usize) -> u32 {
        let experts = self.sink();
        let mut best = (f64::NEG_INFINITY, None);
        for token in &self.members[self.starts[left]..][..self.counts[left]] {
            let own = self.game.scores.row(*token as usize)[left];
            let more = f64::from(self.off[*token as usize * experts + joined]) - f64::from(own);
            if more > best.0 {
                best = (more, Some(*token));
            }
        }
        best.1.expect("the path follows a move of some token")
    }

    fn move_token(&mut self, token: u32, left: usize, joined: usize) {
        let (at, k) = (token as usize, self.game.top_k);
        let row = &mut self.chosen[at * k..][..k];
        let slot = row.iter_mut().find(|expert| **expert as usize == left);
        *slot.expect("the token is on it") = u32::try_from(joined).expect("experts fit 32 bits");
        row.iter().for_each(|expert| self.known[*expert as usize] = false);
        self.known[left] = false;
        let off = &mut self.off[at * self.delivered.len()..][..self.delivered.len()];
        off[left] = self.game.scores.row(at)[left];
        off[joined] = f32::NEG_INFINITY;
        let members = &mut self.members[self.starts[left]..][..self.counts[left]];
        let place = members.iter().position(|member| *member == token).expect("a member");
        members.swap(place, self.counts[left] - 1);
        self.counts[left] -= 1;
        self.members[self.starts[joined] + self.counts[joined]] = token;
        self.counts[joined] += 1;
    }
}

/// Removes excesses one path and one unit at a time; the number of paths, none if no path is left.
pub(super) fn repair(kind: Instructions, moves: &mut Moves<'_>) -> Option<u32> {
    match kind {
        Instructions::Portable => moves.run(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the kind is made by `available` alone, which checked the processor.
        Instructions::Avx2 => unsafe { x86::avx2(moves) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Instructions::Avx512 => unsafe { x86::avx512(moves) },
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Moves;

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(moves: &mut Moves<'_>) -> Option<u32> {
        moves.run()
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(moves: &mut Moves<'_>) -> Option<u32> {
        moves.run()
    }
}

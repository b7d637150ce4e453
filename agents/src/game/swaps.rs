//! The repair on few tokens: successive shortest paths over the moves that open tokens can make.
//!
//! The same graph and the same argument as in the `repair` module, with one source at a time and
//! without the moves that a bound on the prices' drift rules out. Whether the bound held is for
//! the caller to check.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::prices::Supply;

/// Moves of the open tokens. Node E is the sink.
pub(super) struct Swaps<'g> {
    supply: Supply<'g>,
    /// One an expert, then the sink's.
    pub(super) prices: Vec<f64>,
    pub(super) delivered: Vec<u32>,
    excess: Vec<i64>,
    entries: Vec<Entry>,
    /// Where each token's entries start; one more at the end.
    starts: Vec<u32>,
    /// For each token, no less than its best priced score on an expert that it is not on: the
    /// one when its entries were last looked at, since prices only rise. +inf after it moved.
    best_off: Vec<f64>,
    /// For each expert, the entries of tokens on it.
    members: Vec<Vec<u32>>,
    distance: Vec<f64>,
    /// The node before, and the entries left and joined on the way (none at the sink).
    from: Vec<(usize, u32, u32)>,
    done: Vec<bool>,
    /// Nodes with a finite distance.
    reached: Vec<usize>,
    /// Distances, as bits, which order as they do, with their nodes; those since undercut too.
    queue: BinaryHeap<Reverse<(u64, usize)>>,
    pub(super) relaxed: u64,
    /// Distance of the nearest deficit so far: what lies no nearer is not looked at.
    nearest: f64,
    /// Nodes reached from the node that is looked at, to be queued if they are still near enough.
    fresh: Vec<usize>,
    /// Tokens that were moved, some of them more than once.
    moved: Vec<u32>,
}

/// A token may be on this expert.
#[derive(Clone, Copy)]
struct Entry {
    score: f32,
    expert: u32,
    token: u32,
    on: bool,
}

/// Why the repair ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Balanced,
    /// These moves are too few.
    Stuck,
    /// The work is more than allowed.
    Limit,
}

impl<'g> Swaps<'g> {
    pub(super) fn new(supply: Supply<'g>, mut prices: Vec<f64>, loads: &[u32]) -> Self {
        let experts = prices.len();
        let delivered = supply.nearest_each(&prices, loads);
        let pairs = loads.iter().zip(&delivered);
        let mut excess: Vec<i64> =
            pairs.map(|(load, flow)| i64::from(*load) - i64::from(*flow)).collect();
        excess.push(-excess.iter().sum::<i64>());
        prices.push(0.0);
        Self {
            supply,
            prices,
            delivered,
            excess,
            entries: Vec::new(),
            starts: vec![0],
            best_off: Vec::new(),
            members: vec![Vec::new(); experts],
            distance: vec![f64::INFINITY; experts + 1],
            from: vec![(0, 0, 0); experts + 1],
            done: vec![false; experts + 1],
            reached: Vec::new(),
            queue: BinaryHeap::new(),
            relaxed: 0,
            nearest: f64::INFINITY,
            fresh: Vec::new(),
            moved: Vec::new(),
        }
    }

    /// The tokens that were moved, by number, ascending.
    pub(super) fn moved(&mut self) -> &[u32] {
        self.moved.sort_unstable();
        self.moved.dedup();
        &self.moved
    }

    /// Units that are not where they can stay.
    pub(super) fn imbalance(&self) -> u64 {
        self.excess.iter().filter(|excess| **excess > 0).map(|excess| excess.unsigned_abs()).sum()
    }

    /// Makes room for so many tokens with so many experts in all.
    pub(super) fn reserve(&mut self, tokens: usize, entries: usize) {
        self.starts.reserve(tokens);
        self.best_off.reserve(tokens);
        self.entries.reserve(entries);
        let each = entries / self.members.len();
        self.members.iter_mut().for_each(|members| members.reserve(each));
    }

    /// Adds a token with the experts it may be on: number, score and whether it is on it.
    pub(super) fn add(&mut self, experts: impl Iterator<Item = (u32, f32, bool)>) {
        let token = index(self.starts.len() - 1);
        for (expert, score, on) in experts {
            if on {
                self.members[expert as usize].push(index(self.entries.len()));
            }
            self.entries.push(Entry { score, expert, token, on });
        }
        self.starts.push(index(self.entries.len()));
        self.best_off.push(f64::INFINITY);
    }

    /// The experts that the token added as number `token` is on, of those it was added with.
    pub(super) fn experts(&self, token: usize) -> impl Iterator<Item = (u32, bool)> {
        let range = self.starts[token] as usize..self.starts[token + 1] as usize;
        self.entries[range].iter().map(|entry| (entry.expert, entry.on))
    }

    /// Removes excesses one path and one unit at a time; the number of paths and how it ended.
    pub(super) fn run(&mut self, most_relaxed: u64) -> (u32, Ended) {
        let mut paths = 0;
        for source in 0..self.excess.len() {
            while self.excess[source] > 0 {
                if self.relaxed > most_relaxed {
                    return (paths, Ended::Limit);
                }
                let Some(target) = self.shortest_path(source) else {
                    return (paths, Ended::Stuck);
                };
                self.push(source, target);
                paths += 1;
            }
        }
        (paths, Ended::Balanced)
    }

    /// Makes all nodes unreached.
    fn forget(&mut self) {
        for node in self.reached.drain(..) {
            (self.distance[node], self.done[node]) = (f64::INFINITY, false);
        }
        self.queue.clear();
    }

    /// Dijkstra to the nearest deficit; moves prices so that the path costs nothing.
    fn shortest_path(&mut self, source: usize) -> Option<usize> {
        self.forget();
        self.distance[source] = 0.0;
        self.reached.push(source);
        self.queue.push(Reverse((0, source)));
        self.nearest = f64::INFINITY;
        let target = loop {
            let Reverse((_, node)) = self.queue.pop()?;
            if std::mem::replace(&mut self.done[node], true) {
                continue;
            }
            if self.excess[node] < 0 {
                break node;
            }
            self.relax_from(node);
        };
        let length = self.distance[target];
        for node in &self.reached {
            if self.done[*node] {
                self.prices[*node] += length - self.distance[*node];
            }
        }
        Some(target)
    }

    fn relax_from(&mut self, node: usize) {
        let sink = self.delivered.len();
        if node == sink {
            for expert in 0..sink {
                let freed = self.supply.marginal(expert, self.delivered[expert]);
                self.reach(expert, self.prices[expert] - self.prices[sink] - freed, node, (0, 0));
            }
            self.relaxed += sink as u64;
        } else {
            self.relax_moves(node);
            let added = self.supply.marginal(node, self.delivered[node] + 1);
            self.reach(sink, added - self.prices[node] + self.prices[sink], node, (0, 0));
        }
        // Most nodes are reached before the nearest deficit is known: only now is it known which
        // of them may lead to a nearer one.
        let Self { fresh, queue, distance, nearest, .. } = self;
        for to in fresh.drain(..) {
            if distance[to] <= *nearest {
                queue.push(Reverse((distance[to].to_bits(), to)));
            }
        }
    }

    /// Reaches the experts that tokens on this one may move to.
    fn relax_moves(&mut self, node: usize) {
        let Self { entries, starts, prices, distance, from, reached, excess, .. } = self;
        let (best_off, fresh) = (&mut self.best_off, &mut self.fresh);
        let (start, price) = (distance[node], prices[node]);
        let mut nearest = self.nearest;
        for left in &self.members[node] {
            let own = entries[*left as usize];
            let token = own.token as usize;
            let own_value = f64::from(own.score) - price;
            if start + (own_value - best_off[token]).max(0.0) >= nearest {
                continue;
            }
            let (first, last) = (starts[token], starts[token + 1]);
            let mut best = f64::NEG_INFINITY;
            for (joined, other) in (first..).zip(&entries[first as usize..last as usize]) {
                if other.on {
                    continue;
                }
                let to = other.expert as usize;
                let value = f64::from(other.score) - prices[to];
                best = best.max(value);
                // Rounding can leave an arc below 0 by a few units in the last place.
                let reach = start + (own_value - value).max(0.0);
                if reach >= nearest || reach >= distance[to] {
                    continue;
                }
                if excess[to] < 0 {
                    nearest = reach;
                }
                if distance[to] == f64::INFINITY {
                    reached.push(to);
                }
                (distance[to], from[to]) = (reach, (node, *left, joined));
                fresh.push(to);
            }
            best_off[token] = best;
            self.relaxed += u64::from(last - first);
        }
        self.nearest = nearest;
    }

    /// Reaches a node along an arc of that cost from another.
    fn reach(&mut self, to: usize, cost: f64, node: usize, (left, joined): (u32, u32)) {
        let reach = self.distance[node] + cost.max(0.0);
        if reach >= self.nearest || reach >= self.distance[to] {
            return;
        }
        if self.excess[to] < 0 {
            self.nearest = reach;
        }
        if self.distance[to] == f64::INFINITY {
            self.reached.push(to);
        }
        (self.distance[to], self.from[to]) = (reach, (node, left, joined));
        self.fresh.push(to);
    }

    fn push(&mut self, source: usize, target: usize) {
        let sink = self.delivered.len();
        let mut node = target;
        while node != source {
            let (before, left, joined) = self.from[node];
            if node == sink {
                self.delivered[before] += 1;
            } else if before == sink {
                self.delivered[node] -= 1;
            } else {
                let token = self.entries[left as usize].token;
                self.entries[left as usize].on = false;
                self.best_off[token as usize] = f64::INFINITY;
                self.moved.push(token);
                self.entries[joined as usize].on = true;
                let members = &mut self.members[before];
                let place = members.iter().position(|entry| *entry == left);
                members.swap_remove(place.expect("the token is on it"));
                self.members[node].push(joined);
            }
            node = before;
        }
        self.excess[source] -= 1;
        self.excess[target] += 1;
    }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).expect("entries fit 32 bits")
}

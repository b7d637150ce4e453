//! The repair: from near-balanced prices to the exact optimum by successive shortest paths.
//!
//! The graph has a node for every expert and one, the sink, that experts deliver to. An arc e→f
//! moves one token from e to f and costs the score it loses; e→sink and sink→e raise and lower
//! the load that e delivers. At prices p, with every token on its best k and every delivery a
//! load the price covers, all arcs cost at least 0 once prices are counted in (complementary
//! slackness). Loads and deliveries may still differ; each shortest path from an excess to a
//! deficit removes some of the difference and moves the prices so that no arc becomes negative.
//! No difference left means an optimal flow, and the prices prove it (Ahuja, Magnanti and Orlin,
//! Network Flows, 1993, section 9.7).

use super::Game;
use super::prices::{Demand, Supply};
use super::rows::Rows;
use crate::ids::ExpertId;

/// One repair in progress. Node E is the sink.
pub(super) struct Repair<'g> {
    supply: Supply<'g>,
    rows: Rows<'g>,
    /// One an expert, then the sink's.
    prices: Vec<f64>,
    delivered: Vec<u32>,
    /// Load minus delivery of each expert, then deliveries minus Tk at the sink: sums to 0.
    excess: Vec<i64>,
    search: Search,
    arc_visits: u64,
}

/// Dijkstra's tables.
struct Search {
    distance: Vec<f64>,
    from: Vec<usize>,
    done: Vec<bool>,
}

impl<'g> Repair<'g> {
    /// Starts from the tokens' demand at `prices`.
    pub(super) fn new(
        game: &Game<'g>,
        supply: Supply<'g>,
        mut prices: Vec<f64>,
        demand: &Demand,
    ) -> Self {
        let experts = prices.len();
        let delivered: Vec<u32> =
            (0..experts).map(|e| supply.nearest(e, prices[e], demand.loads[e])).collect();
        let pairs = demand.loads.iter().zip(&delivered);
        let mut excess: Vec<i64> =
            pairs.map(|(load, flow)| i64::from(*load) - i64::from(*flow)).collect();
        excess.push(-excess.iter().sum::<i64>());
        prices.push(0.0);
        let search = Search {
            distance: vec![0.0; experts + 1],
            from: vec![0; experts + 1],
            done: vec![false; experts + 1],
        };
        let rows = Rows::new(game, &demand.chosen);
        Self { supply, rows, prices, delivered, excess, search, arc_visits: 0 }
    }

    /// Pushes along shortest paths until loads and deliveries agree, then returns the number of
    /// paths. Each removes at least one unit of difference. Past `most_visits` only overloads
    /// are removed.
    pub(super) fn run(&mut self, most_visits: u64) -> u32 {
        let mut paths = 0;
        while self.excess.iter().any(|excess| *excess > 0) {
            if self.arc_visits + self.rows.visits() > most_visits {
                self.relieve_overloads();
                break;
            }
            let Some(target) = self.shortest_path() else { break };
            self.push(target);
            paths += 1;
        }
        paths
    }

    /// Visits of a score so far.
    pub(super) fn score_visits(&self) -> u64 {
        self.rows.visits()
    }

    /// The choices, ascending within a token, and the prices relative to the sink's.
    pub(super) fn finish(self) -> (Vec<ExpertId>, Vec<f64>) {
        let prices = self.supply.settle(&self.prices, &self.delivered);
        (self.rows.into_choices(), prices)
    }

    /// Dijkstra from all excesses to the nearest deficit, which it returns after moving prices;
    /// none when no deficit can be reached.
    fn shortest_path(&mut self) -> Option<usize> {
        let sink = self.delivered.len();
        let Search { distance, from, done } = &mut self.search;
        done.fill(false);
        for node in 0..=sink {
            distance[node] = if self.excess[node] > 0 { 0.0 } else { f64::INFINITY };
            from[node] = node;
        }
        let target = loop {
            let mut near = None;
            for node in 0..=sink {
                if !done[node] && near.is_none_or(|best: usize| distance[node] < distance[best]) {
                    near = Some(node);
                }
            }
            let node = near.filter(|node| distance[*node] < f64::INFINITY)?;
            done[node] = true;
            if self.excess[node] < 0 {
                break node;
            }
            self.arc_visits += 2 * sink as u64;
            let start = distance[node];
            let mut relax = |to: usize, cost: f64| {
                // Rounding can leave an arc below 0 by a few units in the last place.
                let reach = start + cost.max(0.0);
                if reach < distance[to] {
                    (distance[to], from[to]) = (reach, node);
                }
            };
            let price = self.prices[node];
            if node == sink {
                for expert in 0..sink {
                    let saved = self.supply.marginal(expert, self.delivered[expert]);
                    relax(expert, self.prices[expert] - price - saved);
                }
            } else {
                let losses = self.rows.losses(node);
                for (to, loss) in losses.iter().enumerate() {
                    relax(to, loss - price + self.prices[to]);
                }
                let added = self.supply.marginal(node, self.delivered[node] + 1);
                relax(sink, added - price + self.prices[sink]);
            }
        };
        let length = self.search.distance[target];
        for node in 0..=sink {
            if self.search.done[node] {
                self.prices[node] += length - self.search.distance[node];
            }
        }
        Some(target)
    }

    /// Pushes as many units along the path to `target` as its ends need and every arc offers at
    /// its present cost.
    fn push(&mut self, target: usize) {
        let sink = self.delivered.len();
        let mut path = vec![target];
        let mut node = target;
        while self.search.from[node] != node {
            node = self.search.from[node];
            path.push(node);
        }
        path.reverse();
        let wanted = self.excess[node].min(-self.excess[target]);
        let mut units = u32::try_from(wanted).expect("an excess is at most Tk, which fits 32 bits");

        // Tokens are picked for all arcs before any moves: the arcs of a path share no token.
        let mut moves = Vec::new();
        for arc in path.windows(2) {
            let (from, to) = (arc[0], arc[1]);
            units = if to == sink {
                let cost = self.supply.marginal(from, self.delivered[from] + 1);
                units.min(self.supply.most(from, cost).saturating_sub(self.delivered[from]))
            } else if from == sink {
                let cost = self.supply.marginal(to, self.delivered[to]);
                units.min(self.delivered[to].saturating_sub(self.supply.least(to, cost)))
            } else {
                let tokens = self.rows.cheapest(from, to, units);
                let offered = u32::try_from(tokens.len()).expect("at most the units asked for");
                moves.push((from, to, tokens));
                units.min(offered)
            };
        }
        assert!(units > 0, "a congestion cost falls with the load: it must be nondecreasing");
        for arc in path.windows(2) {
            if arc[1] == sink {
                self.delivered[arc[0]] += units;
            } else if arc[0] == sink {
                self.delivered[arc[1]] -= units;
            }
        }
        for (from, to, tokens) in moves {
            for token in tokens.into_iter().take(units as usize) {
                self.rows.shift(token, from, to);
            }
        }
        self.excess[node] -= i64::from(units);
        self.excess[target] += i64::from(units);
    }

    /// The greedy end of a game too large to finish: moves tokens off barred experts, cheapest
    /// first, to experts that still take one; what no single move can relieve goes along paths.
    /// The prices stay those reached before, which still bound the optimum.
    fn relieve_overloads(&mut self) {
        let experts = self.delivered.len();
        let most: Vec<u32> = (0..experts).map(|e| self.supply.most(e, f64::MAX)).collect();
        for (expert, limit) in most.iter().enumerate() {
            if self.rows.load(expert) <= *limit {
                continue;
            }
            let mut open: Vec<usize> =
                (0..experts).filter(|to| self.rows.load(*to) < most[*to]).collect();
            for token in self.rows.by_best_move(expert, &open) {
                if self.rows.load(expert) <= *limit {
                    break;
                }
                if let Some((_, to)) = self.rows.best_move(token, expert, &open) {
                    self.rows.shift(token, expert, to);
                    if self.rows.load(to) == most[to] {
                        open.retain(|other| *other != to);
                    }
                }
            }
        }
        let reached = (self.prices.clone(), self.delivered.clone());
        for (expert, limit) in most.iter().enumerate() {
            let load = self.rows.load(expert);
            self.excess[expert] = i64::from(load) - i64::from(*limit);
            self.delivered[expert] = load.min(*limit);
        }
        self.excess[experts] = 0;
        while self.excess.iter().any(|excess| *excess > 0) {
            let Some(target) = self.shortest_path() else { break };
            self.push(target);
        }
        (self.prices, self.delivered) = reached;
    }
}

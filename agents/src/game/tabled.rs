//! A cost from a list of its values.

use super::CongestionCost;
use crate::ids::ExpertId;

/// Any nondecreasing cost, listed for every load; loads beyond a list are barred.
pub(super) struct Tabled {
    lists: Vec<List>,
    /// The list of each expert; of all experts if there is one.
    of_expert: Vec<usize>,
}

struct List {
    /// Service time or whatever tells the lists apart.
    key: f64,
    /// `c(n)` at n − 1, all finite.
    marginal: Vec<f64>,
    /// `C(n)` at n.
    total: Vec<f64>,
}

impl Tabled {
    /// Lists `cost(key, n)` for n up to T or the first infinite cost, once for each distinct key.
    pub(super) fn new(tokens: usize, keys: &[f64], cost: impl Fn(f64, f64) -> f64) -> Self {
        let mut lists: Vec<List> = Vec::new();
        let mut of_expert = Vec::with_capacity(keys.len());
        for key in keys {
            let known = lists.iter().position(|list| list.key.to_bits() == key.to_bits());
            of_expert.push(known.unwrap_or(lists.len()));
            if known.is_some() {
                continue;
            }
            let costs = (1..=tokens).map(|load| cost(*key, load as f64));
            let marginal: Vec<f64> = costs.take_while(|cost| cost.is_finite()).collect();
            let mut total = vec![0.0];
            total.extend(marginal.iter().scan(0.0, |sum, cost| {
                *sum += cost;
                Some(*sum)
            }));
            lists.push(List { key: *key, marginal, total });
        }
        Self { lists, of_expert }
    }

    fn list(&self, expert: ExpertId) -> &List {
        let at = if self.of_expert.len() == 1 { 0 } else { expert.index() };
        &self.lists[self.of_expert[at]]
    }
}

impl CongestionCost for Tabled {
    fn marginal(&self, expert: ExpertId, load: u32) -> f64 {
        let listed = self.list(expert).marginal.get((load as usize).wrapping_sub(1));
        listed.copied().unwrap_or(f64::INFINITY)
    }

    fn total(&self, expert: ExpertId, load: u32) -> f64 {
        self.list(expert).total.get(load as usize).copied().unwrap_or(f64::INFINITY)
    }

    fn conjugate(&self, expert: ExpertId, price: f64) -> f64 {
        let List { marginal, total, .. } = self.list(expert);
        let load = marginal.partition_point(|cost| *cost <= price);
        price * load as f64 - total[load]
    }
}

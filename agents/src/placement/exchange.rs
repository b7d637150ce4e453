//! Changes of copies around the tight set and what they may bring.

use super::draft::Draft;
use super::search::LOWER;
use super::{Dispatch, Placement};
use crate::ids::{ExpertId, NodeId};

/// The hottest experts of the tight set that may get another copy in one round.
const HOT_EXPERTS: usize = 4;

/// A change of copies that keeps every expert served and every node within its slots.
#[derive(Clone, Copy, Debug)]
pub(super) enum Exchange {
    /// `hot` leaves `from` for `to`, `cold` goes the other way.
    Swap { hot: ExpertId, from: NodeId, cold: ExpertId, to: NodeId },
    /// `hot` leaves `from` for a free slot.
    Move { hot: ExpertId, from: NodeId, to: NodeId },
    /// `hot` gets a further copy in a free slot.
    Add { hot: ExpertId, to: NodeId },
    /// `hot` gets a further copy in the slot of `cold`, which has others.
    Replace { hot: ExpertId, cold: ExpertId, to: NodeId },
}

impl Exchange {
    pub(super) fn apply(self, draft: &mut Draft<'_>) {
        match self {
            Self::Swap { hot, from, cold, to } => {
                draft.remove(hot, from);
                draft.remove(cold, to);
                draft.add(hot, to);
                draft.add(cold, from);
            }
            Self::Move { hot, from, to } => {
                draft.remove(hot, from);
                draft.add(hot, to);
            }
            Self::Add { hot, to } => draft.add(hot, to),
            Self::Replace { hot, cold, to } => {
                draft.remove(cold, to);
                draft.add(hot, to);
            }
        }
    }

    pub(super) fn undo(self, draft: &mut Draft<'_>) {
        match self {
            Self::Swap { hot, from, cold, to } => {
                Self::Swap { hot: cold, from, cold: hot, to }.apply(draft);
            }
            Self::Move { hot, from, to } => Self::Move { hot, from: to, to: from }.apply(draft),
            Self::Add { hot, to } => draft.remove(hot, to),
            Self::Replace { hot, cold, to } => {
                Self::Replace { hot: cold, cold: hot, to }.apply(draft);
            }
        }
    }
}

/// What an exchange may bring, hopefully: an order in which to try, no bound.
pub(super) struct Estimate {
    /// The highest load around the exchange when all that can level out does.
    pub(super) level: f64,
    /// The higher load of the two nodes when nothing else changes.
    pub(super) pair: f64,
    pub(super) exchange: Exchange,
}

/// The present dispatch as the estimates see it.
pub(super) struct Sight<'a> {
    draft: &'a Draft<'a>,
    loads: &'a [f64],
    dispatch: &'a Dispatch,
    /// What each node serves of each expert it holds, in the order of the draft.
    served: Vec<Vec<f64>>,
    /// Nodes outside the tight set.
    outside: Vec<NodeId>,
    /// Estimates from here on are no improvement.
    limit: f64,
}

impl<'a> Sight<'a> {
    pub(super) fn new(
        draft: &'a Draft<'a>,
        loads: &'a [f64],
        dispatch: &'a Dispatch,
        placement: &Placement,
    ) -> Self {
        let nodes = || (0..draft.nodes()).map(NodeId::from_index);
        let share = |node: NodeId, expert: &ExpertId| {
            let at = placement.hosts(*expert).binary_search(&node).expect("the draft's placement");
            dispatch.shares[placement.copies_of(*expert).start + at]
        };
        let served = nodes()
            .map(|node| draft.held(node).iter().map(|expert| share(node, expert)).collect())
            .collect();
        let outside =
            nodes().filter(|node| dispatch.tight.nodes.binary_search(node).is_err()).collect();
        let limit = dispatch.max_load() * (1.0 - LOWER);
        Self { draft, loads, dispatch, served, outside, limit }
    }

    fn load(&self, node: NodeId) -> f64 {
        self.dispatch.node_loads[node.index()]
    }

    fn held(&self, node: NodeId) -> impl Iterator<Item = (ExpertId, f64)> {
        self.draft.held(node).iter().copied().zip(self.served[node.index()].iter().copied())
    }

    fn note(&self, found: &mut Vec<Estimate>, estimate: Estimate) {
        if estimate.level < self.limit {
            found.push(estimate);
        }
    }

    /// Swaps and moves out of the tight set, in the order of the ids.
    pub(super) fn relocations(&self) -> Vec<Estimate> {
        let mut found = Vec::new();
        for from in self.dispatch.tight.nodes.iter().copied() {
            for to in self.outside.iter().copied() {
                for (hot, leaving) in self.held(from) {
                    if self.draft.holds(to, hot) {
                        continue;
                    }
                    if self.draft.has_free_slot(to) {
                        let exchange = Exchange::Move { hot, from, to };
                        self.note_relocation(&mut found, leaving, 0.0, exchange, (hot, from, to));
                    }
                    for (cold, coming) in self.held(to) {
                        if coming < leaving && !self.draft.holds(from, cold) {
                            let exchange = Exchange::Swap { hot, from, cold, to };
                            self.note_relocation(
                                &mut found,
                                leaving,
                                coming,
                                exchange,
                                (hot, from, to),
                            );
                        }
                    }
                }
            }
        }
        found
    }

    fn note_relocation(
        &self,
        found: &mut Vec<Estimate>,
        leaving: f64,
        coming: f64,
        exchange: Exchange,
        (hot, from, to): (ExpertId, NodeId, NodeId),
    ) {
        let count = self.dispatch.tight.nodes.len() as f64;
        let total = self.dispatch.max_load() * count;
        let apart = ((total - leaving + coming) / count).max(self.load(to) + leaving - coming);
        // An expert with other copies connects the new node with the tight set: both level out.
        let connected = (total + self.load(to)) / (count + 1.0);
        let shared = self.draft.hosts(hot).len() > 1;
        let pair = (self.load(from) - leaving + coming).max(self.load(to) + leaving - coming);
        let level = if shared { connected.max(self.load(to) - coming) } else { apart };
        self.note(found, Estimate { level, pair, exchange });
    }

    /// Further copies of the hottest experts of the tight set outside it, hottest first.
    pub(super) fn further_copies(&self) -> Vec<Estimate> {
        let mut found = Vec::new();
        let tight = &self.dispatch.tight;
        let mut hottest = tight.experts.clone();
        hottest.sort_by(|a, b| self.loads[b.index()].total_cmp(&self.loads[a.index()]));
        hottest.truncate(HOT_EXPERTS);
        let count = tight.nodes.len() as f64;
        for hot in hottest {
            for to in self.outside.iter().copied() {
                // What flows out until the tight set and the node with the new copy are level.
                let estimate = |dropped: f64| {
                    let base = self.load(to) - dropped;
                    let level = self.dispatch.max_load();
                    let flow =
                        ((level - base) * count / (count + 1.0)).min(self.loads[hot.index()]);
                    (level - flow / count).max(base + flow)
                };
                if self.draft.has_free_slot(to) {
                    let level = estimate(0.0);
                    self.note(
                        &mut found,
                        Estimate { level, pair: level, exchange: Exchange::Add { hot, to } },
                    );
                    continue;
                }
                for (cold, dropped) in self.held(to) {
                    let others = self.draft.hosts(cold).iter().filter(|host| **host != to);
                    let least = others.map(|host| self.load(*host)).min_by(f64::total_cmp);
                    if let Some(least) = least {
                        let level = estimate(dropped).max(least + dropped);
                        let exchange = Exchange::Replace { hot, cold, to };
                        self.note(&mut found, Estimate { level, pair: level, exchange });
                    }
                }
            }
        }
        found
    }
}

//! Where the copies go: a greedy start and a local search under optimal dispatch.

use super::dispatch::check_loads;
use super::draft::{Draft, copies_for};
use super::{Dispatch, LoadError, Placement, dispatch};
use crate::ids::{ExpertId, NodeId};

/// Exchanges of one round that are dispatched exactly, the most promising first.
const TRIALS_PER_ROUND: usize = 64;

/// The hottest experts of the tight set that may get another copy in one round.
const HOT_EXPERTS: usize = 4;

/// An objective counts as lower when it is by this part.
const LOWER: f64 = 1e-9;

/// And as equal when it is higher by less than this part, which is rounding.
const EQUAL: f64 = 1e-12;

/// What a plan may use.
#[derive(Clone, Copy, Debug)]
pub struct PlanSettings<'a> {
    /// Copies that each node has room for: `[N]`. They may differ; 0 is a node out of service.
    pub slots: &'a [usize],
    /// Placements that the local search may dispatch, for each plan it starts from: its bound.
    pub evaluations_max: usize,
    /// The copies in service, if moving away from them costs something.
    pub previous: Option<Previous<'a>>,
}

/// A placement in service and what leaving it costs.
#[derive(Clone, Copy, Debug)]
pub struct Previous<'a> {
    /// The copies in service. May have other nodes than the plan; nodes are matched by id.
    pub placement: &'a Placement,
    /// The size of each expert's shard: `[E]`.
    pub shard_bytes: &'a [u64],
    /// How much lower the largest node load must become to be worth one moved byte: in load units
    /// a byte, at least 0.
    pub load_per_byte: f64,
}

/// Copies for given loads and how good they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The copies.
    pub placement: Placement,
    /// The optimal dispatch of the loads over them.
    pub dispatch: Dispatch,
    /// [`placement_lower_bound`] of the loads and slots.
    pub lower_bound: f64,
    /// `(max load − lower_bound) / max load`, with 0/0 = 0: no placement is better by more.
    pub relative_gap: f64,
    /// [`Placement::moved_bytes`] from the previous placement; 0 without one.
    pub moved_bytes: u64,
    /// Placements that were dispatched.
    pub evaluations: usize,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The loads are no loads.
    #[error(transparent)]
    Loads(#[from] LoadError),
    /// Some expert would have no copy.
    #[error("{experts} experts do not fit {slots} slots: add nodes or slots")]
    Slots {
        /// E.
        experts: usize,
        /// Slots that can be used; a node needs at most one an expert.
        slots: usize,
    },
    /// The previous placement is of another layer.
    #[error("the previous placement has {given} experts and {sizes} shard sizes for {experts}")]
    Previous {
        /// Its experts.
        given: usize,
        /// Shard sizes given.
        sizes: usize,
        /// E.
        experts: usize,
    },
    /// The price of moving is no price.
    #[error("load_per_byte is {0}: give a finite number of at least zero")]
    LoadPerByte(f64),
}

/// The least that the largest node load can be, whatever the placement: the larger of the mean over
/// nodes with slots and min over numbers of copies that fit of max_e w_e / copies_e.
///
/// # Errors
/// Loads that are no amounts, or fewer slots than experts.
pub fn placement_lower_bound(loads: &[f64], slots: &[usize]) -> Result<f64, PlanError> {
    check_loads(loads.len(), loads)?;
    let (experts, usable) = (loads.len(), slots.iter().map(|slots| (*slots).min(loads.len())));
    let usable = usable.sum();
    if usable < experts || slots.is_empty() {
        return Err(PlanError::Slots { experts, slots: usable });
    }
    let nodes = slots.iter().filter(|slots| **slots > 0).count().max(1);
    let copies = copies_for(loads, slots);
    let each = loads.iter().zip(copies).map(|(load, copies)| load / f64::from(copies));
    Ok(each.fold(loads.iter().sum::<f64>() / nodes as f64, f64::max))
}

/// Chooses copies so that the largest node load under optimal dispatch is low. The problem is
/// NP-hard (3-partition), so this is a heuristic with a printed gap: a greedy start and a local
/// search that swaps, moves, adds and replaces copies around the tight set as long as the
/// objective falls. The objective is max load + `load_per_byte` · moved bytes, then Σ L_g².
///
/// With a previous placement the search also starts from that, repaired where it does not fit the
/// slots, and the lower objective wins. Deterministic; at least one dispatch a start.
///
/// # Errors
/// Loads or settings that are refused by name.
pub fn plan(loads: &[f64], settings: &PlanSettings<'_>) -> Result<Plan, PlanError> {
    let lower_bound = placement_lower_bound(loads, settings.slots)?;
    let mut starts = Vec::with_capacity(2);
    if let Some(previous) = &settings.previous {
        let (given, sizes) = (previous.placement.experts(), previous.shard_bytes.len());
        let experts = loads.len();
        if given != experts || sizes != experts {
            return Err(PlanError::Previous { given, sizes, experts });
        }
        if !(previous.load_per_byte.is_finite() && previous.load_per_byte >= 0.0) {
            return Err(PlanError::LoadPerByte(previous.load_per_byte));
        }
        starts.push(Draft::from_previous(loads, settings.slots, previous.placement));
    }
    starts.push(Draft::greedy(loads, settings.slots));
    let mut evaluations = 0;
    let mut best: Option<Outcome> = None;
    for start in starts {
        let mut search = Search { loads, settings, draft: start, evaluations: 0 };
        let found = search.run(lower_bound)?;
        evaluations += search.evaluations;
        if best.as_ref().is_none_or(|best| found.beats(best)) {
            best = Some(found);
        }
    }
    let best = best.expect("the greedy start was searched");
    let max_load = best.dispatch.max_load();
    let gap = max_load - lower_bound;
    Ok(Plan {
        placement: best.placement,
        dispatch: best.dispatch,
        lower_bound,
        relative_gap: if gap == 0.0 { 0.0 } else { gap / max_load },
        moved_bytes: best.moved_bytes,
        evaluations,
    })
}

/// A placement with its dispatch and objective.
struct Outcome {
    placement: Placement,
    dispatch: Dispatch,
    moved_bytes: u64,
    objective: f64,
    squares: f64,
}

impl Outcome {
    fn beats(&self, other: &Self) -> bool {
        self.objective < other.objective * (1.0 - LOWER)
            || (self.objective <= other.objective * (1.0 + EQUAL)
                && self.squares < other.squares * (1.0 - LOWER))
    }
}

/// A change of copies that keeps every expert served and every node within its slots.
#[derive(Clone, Copy, Debug)]
enum Exchange {
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
    fn apply(self, draft: &mut Draft<'_>) {
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

    fn undo(self, draft: &mut Draft<'_>) {
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
struct Estimate {
    /// The highest load around the exchange when all that can level out does.
    level: f64,
    /// The higher load of the two nodes when nothing else changes.
    pair: f64,
    exchange: Exchange,
}

struct Search<'a> {
    loads: &'a [f64],
    settings: &'a PlanSettings<'a>,
    draft: Draft<'a>,
    evaluations: usize,
}

impl Search<'_> {
    fn run(&mut self, lower_bound: f64) -> Result<Outcome, LoadError> {
        let mut best = self.evaluate()?;
        loop {
            let done = best.objective <= lower_bound * (1.0 + LOWER);
            let trials = if done { Vec::new() } else { self.promising(&best) };
            let mut improved = false;
            for exchange in trials {
                if self.evaluations >= self.settings.evaluations_max {
                    return Ok(best);
                }
                exchange.apply(&mut self.draft);
                let found = self.evaluate()?;
                if found.beats(&best) {
                    (best, improved) = (found, true);
                    break;
                }
                exchange.undo(&mut self.draft);
            }
            if !improved {
                return Ok(best);
            }
        }
    }

    fn evaluate(&mut self) -> Result<Outcome, LoadError> {
        self.evaluations += 1;
        let placement = self.draft.placement();
        let dispatch = dispatch(&placement, self.loads, None)?;
        let (mut objective, mut moved_bytes) = (dispatch.max_load(), 0);
        if let Some(previous) = &self.settings.previous {
            moved_bytes = placement.moved_bytes(previous.placement, previous.shard_bytes);
            objective += previous.load_per_byte * moved_bytes as f64;
        }
        let squares = dispatch.node_loads.iter().map(|load| load * load).sum();
        Ok(Outcome { placement, dispatch, moved_bytes, objective, squares })
    }

    /// The exchanges with the lowest estimates, ascending.
    fn promising(&self, best: &Outcome) -> Vec<Exchange> {
        let sight = Sight::new(&self.draft, self.loads, &best.dispatch, &best.placement);
        let mut found = Vec::new();
        sight.relocations(&mut found);
        sight.further_copies(&mut found);
        // Stable, so equals are tried in the order of the ids.
        found.sort_by(|a, b| a.level.total_cmp(&b.level).then(a.pair.total_cmp(&b.pair)));
        found.truncate(TRIALS_PER_ROUND);
        found.into_iter().map(|estimate| estimate.exchange).collect()
    }
}

/// The present dispatch as the estimates see it.
struct Sight<'a> {
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
    fn new(
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

    /// Swaps and moves out of the tight set.
    fn relocations(&self, found: &mut Vec<Estimate>) {
        for from in self.dispatch.tight.nodes.iter().copied() {
            for to in self.outside.iter().copied() {
                for (hot, leaving) in self.held(from) {
                    if self.draft.holds(to, hot) {
                        continue;
                    }
                    if self.draft.has_free_slot(to) {
                        let exchange = Exchange::Move { hot, from, to };
                        self.note_relocation(found, leaving, 0.0, exchange, (hot, from, to));
                    }
                    for (cold, coming) in self.held(to) {
                        if coming < leaving && !self.draft.holds(from, cold) {
                            let exchange = Exchange::Swap { hot, from, cold, to };
                            self.note_relocation(found, leaving, coming, exchange, (hot, from, to));
                        }
                    }
                }
            }
        }
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

    /// Further copies of the hottest experts of the tight set outside it.
    fn further_copies(&self, found: &mut Vec<Estimate>) {
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
                        found,
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
                        self.note(found, Estimate { level, pair: level, exchange });
                    }
                }
            }
        }
    }
}

//! Where the copies go: a greedy start and a local search under optimal dispatch.

use super::dispatch::check_loads;
use super::draft::{Draft, copies_for};
use super::exchange::{Exchange, Sight};
use super::{Dispatch, LoadError, Placement, dispatch};

/// Exchanges of a kind that are dispatched exactly in one round, the most promising first.
const TRIALS_PER_KIND: usize = 64;

/// An objective counts as lower when it is by this part.
pub(super) const LOWER: f64 = 1e-9;

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
/// search that swaps, moves, adds and replaces copies around the tight set as long as the load
/// above the lower bound falls. Of the placements seen it returns the one with the lowest
/// max load + `load_per_byte` · moved bytes, then Σ L_g².
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
        let mut search = Search { loads, settings, lower_bound, draft: start, evaluations: 0 };
        let found = search.run()?;
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
#[derive(Clone)]
struct Outcome {
    placement: Placement,
    dispatch: Dispatch,
    moved_bytes: u64,
    objective: f64,
    /// Σ_g max(0, L_g − lower bound) plus the price of moving. It falls while one of several
    /// equally loaded sets after the other is relieved, where the objective stands still.
    overload: f64,
    squares: f64,
}

impl Outcome {
    fn beats(&self, other: &Self) -> bool {
        self.is_lower(other, self.objective, other.objective)
    }

    fn is_step_from(&self, other: &Self) -> bool {
        self.is_lower(other, self.overload, other.overload)
    }

    fn is_lower(&self, other: &Self, own: f64, others: f64) -> bool {
        own < others * (1.0 - LOWER)
            || (own <= others * (1.0 + EQUAL) && self.squares < other.squares * (1.0 - LOWER))
    }
}

struct Search<'a> {
    loads: &'a [f64],
    settings: &'a PlanSettings<'a>,
    lower_bound: f64,
    draft: Draft<'a>,
    evaluations: usize,
}

impl Search<'_> {
    /// Steps to neighbours with less overload and returns the best placement seen.
    fn run(&mut self) -> Result<Outcome, LoadError> {
        let mut here = self.evaluate()?;
        let mut best = here.clone();
        loop {
            let done = here.dispatch.max_load() <= self.lower_bound * (1.0 + LOWER);
            let trials = if done { Vec::new() } else { self.promising(&here) };
            let mut stepped = false;
            for exchange in trials {
                if self.evaluations >= self.settings.evaluations_max {
                    return Ok(best);
                }
                exchange.apply(&mut self.draft);
                let found = self.evaluate()?;
                if found.beats(&best) {
                    best.clone_from(&found);
                }
                if found.is_step_from(&here) {
                    (here, stepped) = (found, true);
                    break;
                }
                exchange.undo(&mut self.draft);
            }
            if !stepped {
                return Ok(best);
            }
        }
    }

    fn evaluate(&mut self) -> Result<Outcome, LoadError> {
        self.evaluations += 1;
        let placement = self.draft.placement();
        let dispatch = dispatch(&placement, self.loads, None)?;
        let (mut moved_bytes, mut price) = (0, 0.0);
        if let Some(previous) = &self.settings.previous {
            moved_bytes = placement.moved_bytes(previous.placement, previous.shard_bytes);
            price = previous.load_per_byte * moved_bytes as f64;
        }
        let objective = dispatch.max_load() + price;
        let over = dispatch.node_loads.iter().map(|load| (load - self.lower_bound).max(0.0));
        let overload = over.sum::<f64>() + price;
        let squares = dispatch.node_loads.iter().map(|load| load * load).sum();
        Ok(Outcome { placement, dispatch, moved_bytes, objective, overload, squares })
    }

    /// The exchanges with the lowest estimates, the two kinds in turn.
    fn promising(&self, best: &Outcome) -> Vec<Exchange> {
        let sight = Sight::new(&self.draft, self.loads, &best.dispatch, &best.placement);
        // The two kinds are estimated with different optimism, so neither may crowd the other out.
        let mut kinds = [sight.relocations(), sight.further_copies()];
        for kind in &mut kinds {
            // Stable, so equals are tried in the order of the ids.
            kind.sort_by(|a, b| a.level.total_cmp(&b.level).then(a.pair.total_cmp(&b.pair)));
            kind.truncate(TRIALS_PER_KIND);
        }
        let most = kinds.iter().map(Vec::len).max().unwrap_or(0);
        let by_rank =
            (0..most).flat_map(|rank| kinds.iter().filter_map(move |kind| kind.get(rank)));
        by_rank.map(|estimate| estimate.exchange).collect()
    }
}

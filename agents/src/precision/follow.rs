//! Widths that follow the loads while a run goes on: what was measured once, and what runs now.

use super::reallocate::{
    ReallocateError, ReallocateLimits, Reallocation, RunningLoads, reallocate, reweigh,
};
use super::{Unit, evaluate};
use crate::expert::BitWidth;
use crate::flock::precision::{FlockPrecision, Holdings, bytes_by_node};
use crate::ids::{ExpertId, LayerId, NodeId};
use serde::{Deserialize, Serialize};

/// When widths are decided anew, and what that may change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FollowSettings {
    /// Steps between two decisions, at least 1.
    pub every_steps: u64,
    /// s of [`RunningLoads`], above 0 and up to 1.
    pub load_step: f64,
    /// What a decision may do.
    pub limits: ReallocateLimits,
}

/// Who decides.
#[derive(Clone, Debug, PartialEq)]
pub enum WidthPolicy {
    /// One that sees all experts: [`reallocate`] under the budget of all.
    Exact,
    /// Each node for the experts that it holds ([`FlockPrecision`]), within the bytes that they take at the
    /// start; of the bytes that a decision may load each passes on what it leaves, around a ring that begins one node
    /// further each time.
    Flock(NodesOfUnits),
}

/// Who holds and who is chosen with whom, where nodes decide.
#[derive(Clone, Debug, PartialEq)]
pub struct NodesOfUnits {
    /// The node of each unit.
    pub nodes: Vec<NodeId>,
    /// Nodes.
    pub node_count: usize,
    /// The companions of each unit.
    pub companions: Vec<Vec<usize>>,
    /// σ of [`FlockPrecision`].
    pub vouching: f64,
}

/// Costs and options of all experts, by layer and id.
#[derive(Clone, Debug)]
pub struct FollowedUnits {
    /// Of all layers, one after the other; all have the options of `widths`.
    pub units: Vec<Unit>,
    /// Bits of each option.
    pub widths: Vec<BitWidth>,
    /// Pairs of each expert in the sample that the costs were measured on.
    pub calibrated: Vec<f64>,
    /// Experts of a layer.
    pub experts: usize,
    /// The options in force at the start.
    pub options: Vec<usize>,
}

/// Decides widths by the loads of the steps so far: [`reallocate`] on costs that [`reweigh`] corrects.
///
/// A decision falls at the end of every `every_steps`-th step; all it depends on are loads and what was
/// measured before the run, so that it is the same on any number of threads and nodes.
#[derive(Clone, Debug)]
pub struct Follow {
    settings: FollowSettings,
    of: FollowedUnits,
    /// By layer.
    running: Vec<RunningLoads>,
    options: Vec<usize>,
    /// What one that sees all would have in force, where nodes decide: the control.
    options_exact: Vec<usize>,
    nodes: Option<(NodesOfUnits, Vec<u64>)>,
    steps: u64,
}

/// An expert gets another width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WidthMove {
    /// Its layer.
    pub layer: LayerId,
    /// The expert.
    pub expert: ExpertId,
    /// The width it gets.
    pub to: BitWidth,
    /// Bytes of the expert at that width.
    pub bytes: u64,
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WidthDecision {
    /// What changes, in an order in which the budget holds after each.
    pub moves: Vec<WidthMove>,
    /// The decision in units and options, with its costs by today's loads.
    pub reallocation: Reallocation,
    /// Cost by today's loads of the options that were in force at the start: the control.
    pub cost_kept: f64,
    /// Cost by today's loads had one that sees all decided each time by the same loads, where nodes decide.
    pub cost_exact: Option<f64>,
    /// Bytes of all experts after it.
    pub bytes: u64,
}

/// What the steps so far have left: loads, and the options that were decided last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FollowMemory {
    running: Vec<RunningLoads>,
    options: Vec<usize>,
    options_exact: Vec<usize>,
    steps: u64,
}

const FEASIBLE: &str =
    "units, options and budget were checked at the start and hold after every move";

impl Follow {
    /// No step seen yet.
    ///
    /// # Errors
    /// When the options at the start do not fit the units or the budget.
    ///
    /// # Panics
    /// When lists differ in length, layers are not whole, or a setting is out of its range.
    pub fn new(
        settings: FollowSettings,
        of: FollowedUnits,
        policy: WidthPolicy,
    ) -> Result<Self, ReallocateError> {
        assert!(settings.every_steps > 0, "decisions fall every so many steps");
        let FollowedUnits { units, calibrated, experts, options, .. } = &of;
        assert!(*experts > 0 && units.len().is_multiple_of(*experts), "layers are whole");
        assert_eq!(units.len(), calibrated.len(), "a load a unit");
        // Nothing moves at the costs that the options were chosen by; what cannot be used shows here.
        reallocate(units, options, ReallocateLimits { bytes_moved_max: 0, ..settings.limits })?;
        let layers = units.len() / experts;
        let running = vec![RunningLoads::new(*experts, settings.load_step); layers];
        let nodes = match policy {
            WidthPolicy::Exact => None,
            WidthPolicy::Flock(of_units) => {
                let count = of_units.node_count;
                let budgets = bytes_by_node(units, options, &of_units.nodes, count);
                Some((of_units, budgets))
            }
        };
        let (options, options_exact) = (options.clone(), options.clone());
        Ok(Self { settings, options, options_exact, nodes, of, running, steps: 0 })
    }

    /// Takes a layer's loads in a step, `[experts]` pairs. After the last layer of a step in which a decision
    /// falls, the decision.
    ///
    /// # Panics
    /// When the layer is unknown or there is not one load an expert.
    pub fn absorb(&mut self, layer: LayerId, loads: &[u32]) -> Option<WidthDecision> {
        self.running[layer.index()].absorb(loads);
        if layer.index() + 1 < self.running.len() {
            return None;
        }
        self.steps += 1;
        self.steps.is_multiple_of(self.settings.every_steps).then(|| self.decide())
    }

    /// What the steps so far have left.
    #[must_use]
    pub fn memory(&self) -> FollowMemory {
        let Self { running, options, options_exact, steps, .. } = self;
        FollowMemory {
            running: running.clone(),
            options: options.clone(),
            options_exact: options_exact.clone(),
            steps: *steps,
        }
    }

    /// Whether a memory is that of as many layers, experts and options.
    pub(crate) fn fits(&self, memory: &FollowMemory) -> bool {
        let known = |options: &Vec<usize>| {
            let units = &self.of.units;
            let is_one = |(option, unit): (&usize, &Unit)| *option < unit.costs.len();
            options.len() == units.len() && options.iter().zip(units).all(is_one)
        };
        memory.running.len() == self.running.len()
            && memory.running.iter().all(|running| running.loads().len() == self.of.experts)
            && known(&memory.options)
            && known(&memory.options_exact)
    }

    /// Goes on from a memory that fits.
    pub(crate) fn recall(&mut self, memory: FollowMemory) {
        (self.running, self.steps) = (memory.running, memory.steps);
        (self.options, self.options_exact) = (memory.options, memory.options_exact);
    }

    fn decide(&mut self) -> WidthDecision {
        let FollowedUnits { units, widths, calibrated, experts, options: kept } = &self.of;
        let layers = units.chunks(*experts).zip(calibrated.chunks(*experts)).zip(&self.running);
        let now: Vec<Unit> = layers
            .flat_map(|((units, calibrated), running)| reweigh(units, calibrated, running.loads()))
            .collect();
        let limits = self.settings.limits;
        let exact = reallocate(&now, &self.options_exact, limits).expect(FEASIBLE);
        self.options_exact.clone_from(&exact.options);
        let cost_exact = self.nodes.is_some().then_some(exact.cost_after);
        let reallocation = match &self.nodes {
            None => exact,
            Some((of_units, budgets)) => self.by_nodes(&now, of_units, budgets, exact),
        };
        self.options.clone_from(&reallocation.options);
        let moves = reallocation.moves.iter().map(|step| WidthMove {
            layer: LayerId::from_index(step.unit / experts),
            expert: ExpertId::from_index(step.unit % experts),
            to: widths[step.to],
            bytes: step.bytes,
        });
        WidthDecision {
            moves: moves.collect(),
            cost_kept: evaluate(&now, kept.clone(), limits.budget).cost,
            cost_exact,
            bytes: evaluate(&now, self.options.clone(), limits.budget).bytes,
            reallocation,
        }
    }

    /// What the nodes decide, each for its own. `exact` has the controls of the same costs.
    fn by_nodes(
        &self,
        now: &[Unit],
        of_units: &NodesOfUnits,
        budgets: &[u64],
        exact: Reallocation,
    ) -> Reallocation {
        let FollowedUnits { units, calibrated, .. } = &self.of;
        let ReallocateLimits { bytes_moved_max, cost_per_byte, budget } = self.settings.limits;
        let rule = FlockPrecision {
            vouching: of_units.vouching,
            node_bytes_max: bytes_moved_max,
            cost_per_byte,
        };
        let NodesOfUnits { nodes, companions, .. } = of_units;
        let holdings = Holdings { units, calibrated, nodes, budgets, companions };
        let loads: Vec<f64> =
            self.running.iter().flat_map(|running| running.loads()).copied().collect();
        let decisions = self.steps / self.settings.every_steps;
        #[expect(clippy::cast_possible_truncation, reason = "below the number of nodes")]
        let first = (decisions % budgets.len() as u64) as usize;
        let limit = (first, bytes_moved_max);
        let moves = rule.round_passing_on(&holdings, &loads, &self.options, limit);
        let moves = moves.expect(FEASIBLE);
        let before = evaluate(now, self.options.clone(), budget);
        let mut options = self.options.clone();
        moves.iter().for_each(|step| options[step.unit] = step.to);
        let after = evaluate(now, options, budget);
        Reallocation {
            bytes_moved: moves.iter().map(|step| step.bytes).sum(),
            moves,
            options: after.options,
            cost_before: before.cost,
            cost_after: after.cost,
            ..exact
        }
    }
}

//! Widths that follow the loads while a run goes on: what was measured once, and what runs now.

use super::reallocate::{
    ReallocateError, ReallocateLimits, Reallocation, RunningLoads, reallocate, reweigh,
};
use super::{Unit, evaluate};
use crate::expert::BitWidth;
use crate::ids::{ExpertId, LayerId};
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
    /// Bytes of all experts after it.
    pub bytes: u64,
}

/// What the steps so far have left: loads, and the options that were decided last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FollowMemory {
    running: Vec<RunningLoads>,
    options: Vec<usize>,
    steps: u64,
}

impl Follow {
    /// No step seen yet.
    ///
    /// # Errors
    /// When the options at the start do not fit the units or the budget.
    ///
    /// # Panics
    /// When lists differ in length, layers are not whole, or a setting is out of its range.
    pub fn new(settings: FollowSettings, of: FollowedUnits) -> Result<Self, ReallocateError> {
        assert!(settings.every_steps > 0, "decisions fall every so many steps");
        let FollowedUnits { units, calibrated, experts, options, .. } = &of;
        assert!(*experts > 0 && units.len().is_multiple_of(*experts), "layers are whole");
        assert_eq!(units.len(), calibrated.len(), "a load a unit");
        // Nothing moves at the costs that the options were chosen by; what cannot be used shows here.
        reallocate(units, options, ReallocateLimits { bytes_moved_max: 0, ..settings.limits })?;
        let layers = units.len() / experts;
        let running = vec![RunningLoads::new(*experts, settings.load_step); layers];
        Ok(Self { settings, options: options.clone(), of, running, steps: 0 })
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
        let Self { running, options, steps, .. } = self;
        FollowMemory { running: running.clone(), options: options.clone(), steps: *steps }
    }

    /// Whether a memory is that of as many layers, experts and options.
    pub(crate) fn fits(&self, memory: &FollowMemory) -> bool {
        let options = self.of.units.iter().map(|unit| unit.costs.len());
        memory.running.len() == self.running.len()
            && memory.running.iter().all(|running| running.loads().len() == self.of.experts)
            && memory.options.len() == self.of.units.len()
            && memory.options.iter().zip(options).all(|(option, options)| *option < options)
    }

    /// Goes on from a memory that fits.
    pub(crate) fn recall(&mut self, memory: FollowMemory) {
        (self.running, self.options, self.steps) = (memory.running, memory.options, memory.steps);
    }

    fn decide(&mut self) -> WidthDecision {
        let FollowedUnits { units, widths, calibrated, experts, options: kept } = &self.of;
        let layers = units.chunks(*experts).zip(calibrated.chunks(*experts)).zip(&self.running);
        let now: Vec<Unit> = layers
            .flat_map(|((units, calibrated), running)| reweigh(units, calibrated, running.loads()))
            .collect();
        let limits = self.settings.limits;
        let reallocation = reallocate(&now, &self.options, limits).expect(
            "units, options and budget were checked at the start and hold after every move",
        );
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
            bytes: evaluate(&now, self.options.clone(), limits.budget).bytes,
            reallocation,
        }
    }
}

//! Fits the experts into the precision budget: prune, calibrate, measure, allocate, quantize.

use super::calibrate::{LayerSample, calibrate};
use super::materials::Materials;
use super::prune::{self, Pruned};
use super::read_when_used::expert_at;
use super::rounds::RoundError;
use crate::measure::Clock;
use crate::model::checkpoint::CheckpointError;
use crate::model::quantize::{ExpertCosts, QuantizeError};
use crate::scenario::file::{PrecisionUnit, Sensitivity};
use crate::scenario::{Budget, Scenario};
use crate::source::{KeptExperts, ScoreSource, SourceShape};
use agents::expert::{BitWidth, Expert};
use agents::game::Registries;
use agents::ids::{ExpertId, LayerId};
use agents::precision::{self, Allocation, AllocationError, ExpertSample, Problem, Unit};
use agents::quantize::Format;
use rayon::prelude::*;
use std::sync::Arc;

/// The experts of a run. Where some are pruned, ids are those among the experts that are kept, but
/// for `full`.
pub(super) struct FittedExperts {
    /// As they are served, by layer and id.
    pub served: Vec<Vec<Arc<Expert>>>,
    /// Of a layer, before pruning.
    pub experts: usize,
    /// Which are kept; none where nothing is pruned.
    pub pruned: Option<Pruned>,
    /// What the budget came to; none when the experts stay in f32.
    pub fit: Option<Fit>,
}

impl FittedExperts {
    /// The experts that are kept, if any are not.
    pub(super) fn kept(&self) -> Option<&KeptExperts> {
        self.pruned.as_ref().map(|pruned| &pruned.kept)
    }
}

/// How well the budget was used.
pub(super) struct Fit {
    /// The allocator that chose.
    pub allocator: String,

    /// Bytes that the budget allows.
    pub budget_bytes: u64,
    /// The chosen widths, their cost and the bound below it.
    pub allocation: Allocation,
    /// What the exact allocator chooses.
    pub exact: Allocation,
    /// The best uniform width within the same budget, the control; none when none fits.
    pub uniform: Option<Allocation>,
    /// Its bits.
    pub uniform_bits: Option<BitWidth>,
    /// What was allocated: cost and size of each width for every expert, by layer and id; of its gate, up and
    /// down one after the other where matrices are the units.
    pub units: Vec<Unit>,
    /// The widths that the options of a unit are.
    pub widths: Vec<BitWidth>,
    /// Pairs that the calibration gave each expert.
    pub calibrated: Vec<f64>,
    /// The units of the same layer that share most tokens with each; none where no text was played.
    pub companions: Vec<Vec<usize>>,
}

/// Why there are no experts to serve.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The budget.
    #[error("precision.budget {budget}, allocator {allocator}: {source}")]
    Budget {
        /// As the scenario states it.
        budget: Budget,
        /// The scenario's allocator.
        allocator: String,
        /// Why it cannot be met.
        source: AllocationError,
    },
    /// What widths cost in loss cannot be measured.
    #[error("precision.sensitivity: {0}")]
    Sensitivity(#[from] QuantizeError),
    /// The calibration text cannot be played.
    #[error("calibration: {0}")]
    Calibration(#[from] RoundError),
}

/// Loads all experts, prunes them, and quantizes the rest under the scenario's budget.
///
/// # Errors
/// When an expert cannot be read, the budget is too small, or calibration fails.
pub(super) async fn fit(
    materials: &Materials,
    scenario: &Scenario,
    registries: &Registries,
    clock: &Clock,
) -> Result<FittedExperts, FitError> {
    let group = scenario.precision.group as usize;
    let experts = materials.source(None).shape().experts;
    let pruned = prune::prune(materials, scenario, clock).await?;
    let kept = pruned.as_ref().map(|pruned| &pruned.kept);
    let source = materials.source(kept);
    let budget = match scenario.precision.budget {
        Budget::Limited(budget) => budget,
        unfitted @ (Budget::Full | Budget::Stored) => {
            let served = match unfitted {
                Budget::Stored => stored(source.as_ref())?,
                _ => quantized(source.as_ref(), group, &|_, _| [BitWidth::Full; 3])?,
            };
            drop(source);
            return Ok(FittedExperts { served, experts, pruned, fit: None });
        }
    };

    // Once more where some were pruned: their tokens went to others.
    let samples = calibrate(materials, scenario, kept, clock).await?;
    let weights_each = source.expert(LayerId(0), ExpertId(0))?.shape.weights() as u64;
    let shape = source.shape();
    let total_weights = weights_each * (shape.layers * experts) as u64;
    let precision = &scenario.precision;
    let codes = precision.widths.iter();
    let widths: Vec<BitWidth> = codes.filter_map(|bits| BitWidth::from_code_bits(*bits)).collect();
    let by_matrix = precision.unit == PrecisionUnit::Matrix;
    let units = match precision.sensitivity {
        Sensitivity::Output => units(source.as_ref(), &samples, &widths, group)?,
        Sensitivity::Loss => {
            let format = |bits: &BitWidth| Format { bits: bits.code_bits(), group };
            let formats: Vec<Format> = widths.iter().map(format).collect();
            let costs = materials.expert_costs(kept, &formats)?;
            units_by_loss(source.as_ref(), &costs, (&widths, group), by_matrix)?
        }
    };
    let bytes = budget.bytes(total_weights);
    let mut companions = neighbours(&samples, shape.experts, by_matrix);
    let problem = Problem {
        units: &units,
        budget: bytes,
        widths: &precision.widths,
        neighbours: &companions,
        seed: scenario.seed,
    };
    let name = &precision.allocator;
    let refused = |source| {
        let (budget, allocator) = (precision.budget, name.clone());
        FitError::Budget { budget, allocator, source }
    };
    let allocator =
        registries.allocators.build(name).expect("the scenario's checks know all names");
    let allocation = allocator.allocate(&problem).map_err(refused)?;
    let exact = precision::allocate(&units, bytes).map_err(refused)?;
    let uniform = precision::uniform(&units, bytes).ok();
    let served = quantized(source.as_ref(), group, &|l, e| {
        let expert = l * shape.experts + e;
        std::array::from_fn(|part| {
            let unit = if by_matrix { 3 * expert + part } else { expert };
            widths[allocation.options[unit]]
        })
    })?;
    let uniform_bits = uniform.as_ref().map(|uniform| widths[uniform.options[0]]);
    let allocator = name.clone();
    let pairs =
        |sample: &LayerSample| sample.gates.iter().map(|of| of.len() as f64).collect::<Vec<_>>();
    companions.resize(units.len(), Vec::new());
    let calibrated = samples.iter().flat_map(pairs).collect();
    let budget_bytes = bytes;
    let fit = Fit {
        allocator,
        budget_bytes,
        allocation,
        exact,
        uniform,
        uniform_bits,
        units,
        widths,
        calibrated,
        companions,
    };
    drop(source);
    Ok(FittedExperts { served, experts, pruned, fit: Some(fit) })
}

/// Every expert of a source, its gate, up and down at the bits that its layer and place have. Weights are read for one expert
/// at a time and thread, and let go.
///
/// # Errors
/// An expert that cannot be read.
pub(super) fn quantized(
    source: &dyn ScoreSource,
    group: usize,
    bits: &(dyn Fn(usize, usize) -> [BitWidth; 3] + Sync),
) -> Result<Vec<Vec<Arc<Expert>>>, CheckpointError> {
    each_expert(source, &|layer, expert| {
        expert_at(source, (layer, expert), bits(layer.index(), expert.index()), group)
    })
}

/// Every expert of a source with the codes that it is stored in.
///
/// # Errors
/// An expert that is not stored in codes that can be computed in.
fn stored(source: &dyn ScoreSource) -> Result<Vec<Vec<Arc<Expert>>>, CheckpointError> {
    each_expert(source, &|layer, expert| source.stored_expert(layer, expert))
}

/// What `load` gives for every expert of a source, by layer and id.
fn each_expert(
    source: &dyn ScoreSource,
    load: &(dyn Fn(LayerId, ExpertId) -> Result<Expert, CheckpointError> + Sync),
) -> Result<Vec<Vec<Arc<Expert>>>, CheckpointError> {
    let SourceShape { layers, experts, .. } = source.shape();
    let expert = |l, e| load(LayerId::from_index(l), ExpertId::from_index(e)).map(Arc::new);
    let layer = |l: usize| (0..experts).into_par_iter().map(|e| expert(l, e)).collect();
    (0..layers).map(layer).collect()
}

/// The experts of the same layer that share most tokens with each, as units; empty where no text was
/// played. A matrix minds the other two of its expert, and the same one of those experts.
fn neighbours(samples: &[LayerSample], experts: usize, by_matrix: bool) -> Vec<Vec<usize>> {
    /// As starlings keep.
    const NEIGHBOURS: usize = 7;
    if samples.iter().all(|sample| sample.pairs == 0) {
        return Vec::new();
    }
    let count = if by_matrix { NEIGHBOURS - 2 } else { NEIGHBOURS };
    let of_layer = |(layer, sample): (usize, &LayerSample)| {
        let near = precision::chosen_together(&sample.together, experts, count);
        let unit = move |expert: usize| layer * experts + expert;
        near.into_iter().map(move |list| list.into_iter().map(unit).collect()).collect::<Vec<_>>()
    };
    let by_expert: Vec<Vec<usize>> = samples.iter().enumerate().flat_map(of_layer).collect();
    if !by_matrix {
        return by_expert;
    }
    let of_matrix = |expert: usize, part: usize, near: &[usize]| {
        let own = (0..3).filter(|other| *other != part).map(|other| 3 * expert + other);
        own.chain(near.iter().map(|near| 3 * near + part)).collect()
    };
    let experts = by_expert.iter().enumerate();
    experts.flat_map(|(expert, near)| (0..3).map(move |p| of_matrix(expert, p, near))).collect()
}

/// Cost in expected loss and size of each width, likewise.
fn units_by_loss(
    source: &dyn ScoreSource,
    costs: &ExpertCosts,
    (widths, group): (&[BitWidth], usize),
    by_matrix: bool,
) -> Result<Vec<Unit>, CheckpointError> {
    let SourceShape { layers, experts, .. } = source.shape();
    let expert_shape = source.expert(LayerId(0), ExpertId(0))?.shape;
    let bytes = |part: usize| -> Vec<u64> {
        widths.iter().map(|bits| expert_shape.part_bytes(*bits, group)[part]).collect()
    };
    let of_expert = |unit: usize| {
        let costs = costs.of(unit / experts, unit % experts);
        let parts = [0, 1, 2].map(|p| Unit { costs: costs[p].to_vec(), bytes: bytes(p) });
        if by_matrix { parts.to_vec() } else { vec![whole(&parts)] }
    };
    Ok((0..layers * experts).flat_map(of_expert).collect())
}

/// One unit of several that have the same option each.
fn whole(parts: &[Unit]) -> Unit {
    let options = 0..parts[0].costs.len();
    Unit {
        costs: options.clone().map(|at| parts.iter().map(|part| part.costs[at]).sum()).collect(),
        bytes: options.map(|at| parts.iter().map(|part| part.bytes[at]).sum()).collect(),
    }
}

/// Cost and size of each width for every expert, by layer and id.
fn units(
    source: &dyn ScoreSource,
    samples: &[LayerSample],
    widths: &[BitWidth],
    group: usize,
) -> Result<Vec<Unit>, CheckpointError> {
    let SourceShape { layers, experts, .. } = source.shape();
    let unit = |unit: usize| {
        let (layer, expert) = (unit / experts, unit % experts);
        let sample = &samples[layer];
        let weights = source.expert(LayerId::from_index(layer), ExpertId::from_index(expert))?;
        let sample = ExpertSample {
            x: &sample.x(expert),
            gates: &sample.gates[expert],
            layer_energy: sample.energy,
            unseen_share: precision::unseen_share(sample.pairs, experts),
        };
        let borrowed = precision::ExpertWeights {
            shape: weights.shape,
            gate: &weights.gate,
            up: &weights.up,
            down: &weights.down,
        };
        Ok(Unit {
            costs: precision::sensitivity(&borrowed, &sample, widths, group),
            bytes: widths.iter().map(|bits| weights.shape.bytes(*bits, group)).collect(),
        })
    };
    (0..layers * experts).into_par_iter().map(unit).collect()
}

//! Fits the experts into the precision budget: prune, calibrate, measure, allocate, quantize.

use super::calibrate::{LayerSample, calibrate};
use super::materials::Materials;
use super::prune::{self, Pruned};
use super::read_when_used::expert_at;
use super::rounds::RoundError;
use super::shared::{Part, Resident, Sharing};
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
    pub served: Arc<Experts>,
    /// In which codes that is.
    pub codes: Codes,
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

/// By layer and id.
pub(super) type Experts = Vec<Vec<Arc<Expert>>>;

impl Resident for Experts {
    fn bytes(&self) -> u64 {
        self.iter().flatten().map(|expert| expert.encoded_bytes()).sum()
    }
}

/// The codes of all experts of a source.
#[derive(Clone, Debug)]
pub(super) enum Codes {
    /// Those that they are stored in.
    Stored,
    /// Of every matrix the same.
    All(BitWidth),
    /// Of gate, up and down of each expert, by layer and id.
    Each(Vec<[BitWidth; 3]>),
}

/// What is known of the experts before a budget is spent on them: no seed and no allocator enters it.
struct Measured {
    pruned: Option<Pruned>,
    /// None where the experts stay as they are.
    units: Option<MeasuredUnits>,
}

struct MeasuredUnits {
    /// Of all experts, the pruned ones too.
    weights: u64,
    units: Vec<Unit>,
    calibrated: Vec<f64>,
    companions: Vec<Vec<usize>>,
}

impl Resident for Measured {
    fn bytes(&self) -> u64 {
        let kept = |pruned: &Pruned| 2 * pruned.kept.iter().map(Vec::len).sum::<usize>();
        let numbers = |of: &MeasuredUnits| {
            let units = of.units.iter().map(|unit| 6 + 2 * unit.costs.len()).sum::<usize>();
            units + of.calibrated.len() + of.companions.iter().map(|of| 3 + of.len()).sum::<usize>()
        };
        let pruned = self.pruned.as_ref().map_or(0, kept);
        (8 * (pruned + self.units.as_ref().map_or(0, numbers))) as u64
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
    sharing: Sharing<'_>,
    registries: &Registries,
    clock: &Clock,
) -> Result<FittedExperts, FitError> {
    let scenario = sharing.scenario;
    let experts = materials.source(None).shape().experts;
    let is_limited = matches!(scenario.precision.budget, Budget::Limited(_));
    let measure = async || measure(materials, scenario, is_limited, clock).await;
    let measured = sharing.get(Part::Measured, &is_limited, measure).await?;
    let fit = measured.units.as_ref().map(|units| allocate(units, scenario, registries));
    let fit = fit.transpose()?;
    let codes = match (&fit, scenario.precision.budget) {
        (Some(fit), _) => {
            let by_matrix = scenario.precision.unit == PrecisionUnit::Matrix;
            let bits = |unit: &usize| fit.widths[*unit];
            let options = &fit.allocation.options;
            Codes::Each(match by_matrix {
                true => options.chunks_exact(3).map(|of| [0, 1, 2].map(|p| bits(&of[p]))).collect(),
                false => options.iter().map(|unit| [bits(unit); 3]).collect(),
            })
        }
        (None, Budget::Stored) => Codes::Stored,
        (None, _) => Codes::All(BitWidth::Full),
    };
    let pruned = measured.pruned.clone();
    let kept = pruned.as_ref().map(|pruned| &pruned.kept);
    let served = coded(materials, sharing, kept, &codes).await?;
    Ok(FittedExperts { served, codes, experts, pruned, fit })
}

/// Every expert that is kept, in these codes.
///
/// # Errors
/// An expert that cannot be read, or is not stored in codes that can be computed in.
pub(super) async fn coded(
    materials: &Materials,
    sharing: Sharing<'_>,
    kept: Option<&KeptExperts>,
    codes: &Codes,
) -> Result<Arc<Experts>, CheckpointError> {
    let group = sharing.scenario.precision.group as usize;
    let make = async || {
        let source = materials.source(kept);
        let experts = source.shape().experts;
        match codes {
            Codes::Stored => stored(source.as_ref()),
            Codes::All(bits) => quantized(source.as_ref(), group, &|_, _| [*bits; 3]),
            Codes::Each(bits) => quantized(source.as_ref(), group, &|l, e| bits[l * experts + e]),
        }
    };
    sharing.get(Part::Experts, &(kept, codes), make).await
}

/// Prunes, calibrates, and measures what widths cost.
async fn measure(
    materials: &Materials,
    scenario: &Scenario,
    is_limited: bool,
    clock: &Clock,
) -> Result<Measured, FitError> {
    let precision = &scenario.precision;
    let pruned = prune::prune(materials, scenario, clock).await?;
    if !is_limited {
        return Ok(Measured { pruned, units: None });
    }
    let experts = materials.source(None).shape().experts;
    let kept = pruned.as_ref().map(|pruned| &pruned.kept);
    // Once more where some were pruned: their tokens went to others.
    let samples = calibrate(materials, scenario, kept, clock).await?;
    let source = materials.source(kept);
    let (shape, group) = (source.shape(), precision.group as usize);
    let weights_each = source.expert(LayerId(0), ExpertId(0))?.shape.weights() as u64;
    let widths = widths(scenario);
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
    drop(source);
    let pairs =
        |sample: &LayerSample| sample.gates.iter().map(|of| of.len() as f64).collect::<Vec<_>>();
    let units = MeasuredUnits {
        weights: weights_each * (shape.layers * experts) as u64,
        units,
        calibrated: samples.iter().flat_map(pairs).collect(),
        companions: neighbours(&samples, shape.experts, by_matrix),
    };
    Ok(Measured { pruned, units: Some(units) })
}

/// Spends the budget.
fn allocate(
    measured: &MeasuredUnits,
    scenario: &Scenario,
    registries: &Registries,
) -> Result<Fit, FitError> {
    let precision = &scenario.precision;
    let Budget::Limited(budget) = precision.budget else {
        unreachable!("units are measured for a budget")
    };
    let MeasuredUnits { weights, units, calibrated, companions } = measured;
    let budget_bytes = budget.bytes(*weights);
    let problem = Problem {
        units,
        budget: budget_bytes,
        widths: &precision.widths,
        neighbours: companions,
        seed: scenario.seed,
    };
    let allocator = precision.allocator.clone();
    let refused = |source| {
        let allocator = allocator.clone();
        FitError::Budget { budget: precision.budget, allocator, source }
    };
    let known = registries.allocators.build(&allocator);
    let known = known.expect("the scenario's checks know all names");
    let allocation = known.allocate(&problem).map_err(refused)?;
    let exact = precision::allocate(units, budget_bytes).map_err(refused)?;
    let uniform = precision::uniform(units, budget_bytes).ok();
    let widths = widths(scenario);
    let uniform_bits = uniform.as_ref().map(|uniform| widths[uniform.options[0]]);
    let mut companions = companions.clone();
    companions.resize(units.len(), Vec::new());
    Ok(Fit {
        allocator,
        budget_bytes,
        allocation,
        exact,
        uniform,
        uniform_bits,
        units: units.clone(),
        widths,
        calibrated: calibrated.clone(),
        companions,
    })
}

fn widths(scenario: &Scenario) -> Vec<BitWidth> {
    let codes = scenario.precision.widths.iter();
    codes.filter_map(|bits| BitWidth::from_code_bits(*bits)).collect()
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
) -> Result<Experts, CheckpointError> {
    each_expert(source, &|layer, expert| {
        expert_at(source, (layer, expert), bits(layer.index(), expert.index()), group)
    })
}

/// Every expert of a source with the codes that it is stored in.
///
/// # Errors
/// An expert that is not stored in codes that can be computed in.
fn stored(source: &dyn ScoreSource) -> Result<Experts, CheckpointError> {
    each_expert(source, &|layer, expert| source.stored_expert(layer, expert))
}

/// What `load` gives for every expert of a source, by layer and id.
fn each_expert(
    source: &dyn ScoreSource,
    load: &(dyn Fn(LayerId, ExpertId) -> Result<Expert, CheckpointError> + Sync),
) -> Result<Experts, CheckpointError> {
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

//! Fits the experts into the precision budget: prune, calibrate, measure, allocate, quantize.

use super::calibrate::{LayerSample, calibrate};
use super::materials::Materials;
use super::prune::{self, Pruned};
use super::rounds::RoundError;
use crate::measure::Clock;
use crate::model::checkpoint::{CheckpointError, ExpertWeights};
use crate::scenario::{Budget, Scenario};
use crate::source::{KeptExperts, ScoreSource, SourceShape};
use agents::expert::{BitWidth, Expert};
use agents::game::Registries;
use agents::ids::{ExpertId, LayerId};
use agents::precision::{self, Allocation, AllocationError, ExpertSample, Problem, Unit};
use rayon::prelude::*;
use std::sync::Arc;

/// The experts of a run. Where some are pruned, ids are those among the experts that are kept, but
/// for `full`.
pub(super) struct FittedExperts {
    /// As they are served, by layer and id.
    pub served: Vec<Vec<Arc<Expert>>>,
    /// All, in f32: the control.
    pub full: Vec<Vec<Arc<Expert>>>,
    /// Which are kept; none where nothing is pruned.
    pub pruned: Option<Pruned>,
    /// All at the best uniform width within the same budget: the control; none without a budget or
    /// when no width fits.
    pub(super) uniform: Option<Vec<Vec<Arc<Expert>>>>,
    /// What the budget came to; none when the experts stay in f32.
    pub fit: Option<Fit>,
}

impl FittedExperts {
    /// The experts that are kept, if any are not.
    pub(super) fn kept(&self) -> Option<&KeptExperts> {
        self.pruned.as_ref().map(|pruned| &pruned.kept)
    }

    /// The f32 experts that are kept.
    pub(super) fn full_of(&self, kept: Option<&KeptExperts>) -> Vec<Vec<Arc<Expert>>> {
        prune::kept_of(&self.full, kept)
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
    let weights = load(materials.source(None).as_ref())?;
    let group = scenario.precision.group as usize;
    let full = quantized(&weights, group, &|_, _| BitWidth::Full);
    let pruned = prune::prune(materials, scenario, &full, clock).await?;
    let kept = pruned.as_ref().map(|pruned| &pruned.kept);
    let full_kept = prune::kept_of(&full, kept);
    let Budget::Limited(budget) = scenario.precision.budget else {
        return Ok(FittedExperts { served: full_kept, full, pruned, uniform: None, fit: None });
    };

    // Once more where some were pruned: their tokens went to others.
    let samples = calibrate(materials, scenario, (&full_kept, kept), clock).await?;
    let total_weights = weights.iter().flatten().map(|w| w.shape.weights() as u64).sum();
    let weights = prune::kept_of(&weights, kept);
    let precision = &scenario.precision;
    let codes = precision.widths.iter();
    let widths: Vec<BitWidth> = codes.filter_map(|bits| BitWidth::from_code_bits(*bits)).collect();
    let shape = materials.source(kept).shape();
    let units = units(&weights, &samples, &widths, group, shape);
    let bytes = budget.bytes(total_weights);
    let problem = Problem {
        units: &units,
        budget: bytes,
        widths: &precision.widths,
        neighbours: &neighbours(&samples, shape.experts),
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
    let served =
        quantized(&weights, group, &|l, e| widths[allocation.options[l * shape.experts + e]]);
    let uniform_bits = |uniform: &Allocation| widths[uniform.options[0]];
    let uniform_table =
        uniform.as_ref().map(|uniform| quantized(&weights, group, &|_, _| uniform_bits(uniform)));
    let allocator = name.clone();
    let fit = Fit { allocator, budget_bytes: bytes, allocation, exact, uniform };
    Ok(FittedExperts { served, full, pruned, uniform: uniform_table, fit: Some(fit) })
}

/// Every expert at the bits that its layer and place have.
fn quantized(
    weights: &[Vec<Arc<ExpertWeights>>],
    group: usize,
    bits: &(dyn Fn(usize, usize) -> BitWidth + Sync),
) -> Vec<Vec<Arc<Expert>>> {
    let expert = |layer: usize| {
        move |(place, w): (usize, &Arc<ExpertWeights>)| {
            let bits = bits(layer, place);
            Arc::new(Expert::quantize(w.shape, &w.gate, &w.up, &w.down, bits, group))
        }
    };
    let layers = weights.iter().enumerate();
    layers.map(|(l, experts)| experts.par_iter().enumerate().map(expert(l)).collect()).collect()
}

/// The experts of the same layer that share most tokens with each, as units; empty where no text was
/// played.
fn neighbours(samples: &[LayerSample], experts: usize) -> Vec<Vec<usize>> {
    /// As starlings keep.
    const NEIGHBOURS: usize = 7;
    if samples.iter().all(|sample| sample.pairs == 0) {
        return Vec::new();
    }
    let of_layer = |(layer, sample): (usize, &LayerSample)| {
        let near = precision::chosen_together(&sample.together, experts, NEIGHBOURS);
        let unit = move |expert: usize| layer * experts + expert;
        near.into_iter().map(move |list| list.into_iter().map(unit).collect()).collect::<Vec<_>>()
    };
    samples.iter().enumerate().flat_map(of_layer).collect()
}

fn load(source: &dyn ScoreSource) -> Result<Vec<Vec<Arc<ExpertWeights>>>, CheckpointError> {
    let SourceShape { layers, experts, .. } = source.shape();
    (0..layers)
        .map(LayerId::from_index)
        .map(|layer| {
            let experts = (0..experts).map(ExpertId::from_index);
            experts.map(|expert| source.expert(layer, expert).map(Arc::new)).collect()
        })
        .collect()
}

/// Cost and size of each width for every expert, by layer and id.
fn units(
    weights: &[Vec<Arc<ExpertWeights>>],
    samples: &[LayerSample],
    widths: &[BitWidth],
    group: usize,
    shape: SourceShape,
) -> Vec<Unit> {
    let pairs = weights.iter().zip(samples).flat_map(|(experts, sample)| {
        experts.iter().enumerate().map(move |(expert, weights)| (weights, sample, expert))
    });
    pairs
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|(weights, layer, expert)| {
            let sample = ExpertSample {
                x: &layer.x[expert],
                gates: &layer.gates[expert],
                layer_energy: layer.energy,
                unseen_share: precision::unseen_share(layer.pairs, shape.experts),
            };
            let borrowed = precision::ExpertWeights {
                shape: weights.shape,
                gate: &weights.gate,
                up: &weights.up,
                down: &weights.down,
            };
            Unit {
                costs: precision::sensitivity(&borrowed, &sample, widths, group),
                bytes: widths.iter().map(|bits| weights.shape.bytes(*bits, group)).collect(),
            }
        })
        .collect()
}

//! Fits the experts into the precision budget: calibrate, measure, allocate, quantize.

use super::controls::{in_turn, play_batches};
use super::materials::Materials;
use super::rounds::{Round, RoundError};
use super::rules;
use crate::measure::Clock;
use crate::model::checkpoint::{CheckpointError, ExpertWeights};
use crate::scenario::{Budget, Scenario};
use crate::source::{ScoreSource, SourceShape};
use agents::expert::{BitWidth, Expert};
use agents::ids::{ExpertId, LayerId};
use agents::precision::{self, Allocation, AllocationError, ExpertSample, Unit};
use agents::round::Arena;
use rayon::prelude::*;
use std::sync::Arc;

/// The experts of a run.
pub(super) struct FittedExperts {
    /// As they are served, by layer and id.
    pub served: Vec<Vec<Arc<Expert>>>,
    /// In f32: the control.
    pub full: Vec<Vec<Arc<Expert>>>,
    /// All at the best uniform width within the same budget: the control; none without a budget or
    /// when no width fits.
    pub(super) uniform: Option<Vec<Vec<Arc<Expert>>>>,
    /// What the budget came to; none when the experts stay in f32.
    pub fit: Option<Fit>,
}

/// How well the budget was used.
pub(super) struct Fit {
    /// Bytes that the budget allows.
    pub budget_bytes: u64,
    /// The chosen widths, their cost and the bound below it.
    pub allocation: Allocation,
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
    #[error("precision.budget {budget}: {source}")]
    Budget {
        /// As the scenario states it.
        budget: Budget,
        /// Why it cannot be met.
        source: AllocationError,
    },
    /// The calibration text cannot be played.
    #[error("calibration: {0}")]
    Calibration(#[from] RoundError),
}

/// Loads all experts and quantizes them under the scenario's budget.
///
/// # Errors
/// When an expert cannot be read, the budget is too small, or calibration fails.
pub(super) async fn fit(
    materials: &Materials,
    scenario: &Scenario,
    clock: &Clock,
) -> Result<FittedExperts, FitError> {
    let source = materials.source();
    let shape = source.shape();
    let weights = load(source.as_ref())?;
    let group = scenario.precision.group as usize;
    let at = |w: &ExpertWeights, bits| {
        Arc::new(Expert::quantize(w.shape, &w.gate, &w.up, &w.down, bits, group))
    };
    let table = |bits: &(dyn Fn(usize, usize) -> BitWidth + Sync)| -> Vec<Vec<Arc<Expert>>> {
        let layers = weights.iter().enumerate();
        let expert = |l: usize| move |(e, w): (usize, &ExpertWeights)| at(w, bits(l, e));
        layers.map(|(l, experts)| experts.par_iter().enumerate().map(expert(l)).collect()).collect()
    };
    let full = table(&|_, _| BitWidth::Full);
    let Budget::Limited(budget) = scenario.precision.budget else {
        return Ok(FittedExperts { served: full.clone(), full, uniform: None, fit: None });
    };

    let widths: Vec<BitWidth> = scenario
        .precision
        .widths
        .iter()
        .filter_map(|bits| BitWidth::from_code_bits(*bits))
        .collect();
    let samples = calibrate(materials, scenario, &full, clock).await?;
    let units = units(&weights, &samples, &widths, group, shape);
    let total_weights = weights.iter().flatten().map(|w| w.shape.weights() as u64).sum();
    let bytes = budget.bytes(total_weights);
    let refused = |source| FitError::Budget { budget: scenario.precision.budget, source };
    let allocation = precision::allocate(&units, bytes).map_err(refused)?;
    let uniform = precision::uniform(&units, bytes).ok();
    let served = table(&|l, e| widths[allocation.options[l * shape.experts + e]]);
    let uniform_table = uniform.as_ref().map(|uniform| table(&|_, _| widths[uniform.options[0]]));
    let fit = Fit { budget_bytes: bytes, allocation, uniform };
    Ok(FittedExperts { served, full, uniform: uniform_table, fit: Some(fit) })
}

fn load(source: &dyn ScoreSource) -> Result<Vec<Vec<ExpertWeights>>, CheckpointError> {
    let SourceShape { layers, experts, .. } = source.shape();
    (0..layers)
        .map(LayerId::from_index)
        .map(|layer| {
            let experts = (0..experts).map(ExpertId::from_index);
            experts.map(|expert| source.expert(layer, expert)).collect()
        })
        .collect()
}

/// What the calibration requests sent to each expert of a layer.
#[derive(Default)]
struct LayerSample {
    /// By expert: activations `[m, width]`.
    x: Vec<Vec<f32>>,
    /// By expert: gates `[m]`.
    gates: Vec<Vec<f32>>,
    energy: f64,
    pairs: usize,
}

/// Plays the calibration requests with plain top-k on f32 experts.
async fn calibrate(
    materials: &Materials,
    scenario: &Scenario,
    full: &[Vec<Arc<Expert>>],
    clock: &Clock,
) -> Result<Vec<LayerSample>, RoundError> {
    let SourceShape { layers, experts, width, .. } = materials.source().shape();
    let mut samples: Vec<LayerSample> = (0..layers)
        .map(|_| LayerSample {
            x: vec![Vec::new(); experts],
            gates: vec![Vec::new(); experts],
            ..LayerSample::default()
        })
        .collect();
    let Some((mut source, requests)) = materials.calibration_source() else { return Ok(samples) };
    let arena = rules::top_k_arena(source.as_ref(), scenario, full);
    let collect = |round: &Round<'_>, arena: &mut Arena| {
        let sample = &mut samples[round.layer.index()];
        let (choices, gates) = (arena.choices(), arena.gates());
        for (token, row) in round.input.hidden.chunks(width).enumerate() {
            for (expert, gate) in choices.row(token).iter().zip(&gates[choices.pairs(token)]) {
                sample.x[expert.index()].extend_from_slice(row);
                sample.gates[expert.index()].push(*gate);
            }
        }
        sample.energy += precision::output_energy(round.output);
        sample.pairs += choices.experts().len();
    };
    let batches = in_turn(requests, scenario.load.batch_requests_max as usize);
    play_batches(source.as_mut(), arena, full, batches, clock, collect).await?;
    Ok(samples)
}

/// Cost and size of each width for every expert, by layer and id.
fn units(
    weights: &[Vec<ExpertWeights>],
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

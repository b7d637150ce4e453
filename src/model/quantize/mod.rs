//! Quantizes a whole checkpoint within a budget: every matrix but the routers, each at a width of
//! its own.
//!
//! Three passes over calibration text. The first takes the second moments of every matrix's inputs
//! and measures what each width costs (`costs`). The knapsack then picks widths. The last quantizes
//! matrix by matrix in the order of the forward pass, each for the inputs that the matrices
//! quantized before it really give (`streams`). [`Measured`] holds what the first pass found, for
//! several allocations; [`quantize`] does all at once.

mod costs;
mod expert_costs;
mod file;
mod own_text;
mod parts;
mod prune;
mod streams;

pub use expert_costs::{ExpertCosts, expert_costs};
pub(super) use file::{FORMAT, VERSION};
pub use file::{QuantizedError, check_empty, write};
pub use own_text::{OWN_WINDOWS, own_text};
pub use parts::{ExpertPart, Part, Projection};
pub use prune::{Kept, Pruning};

use super::checkpoint::{Checkpoint, CheckpointError};
use super::config::ModelConfig;
use super::eval::WINDOW_TOKENS;
use super::experts::LocalExperts;
use super::trunk::Trunk;
use agents::precision::{Allocation, AllocationError, Allocator, Problem, Unit, allocate};
use agents::quantize::{Format, QuantizedMatrix};
use parts::Model;
use std::collections::BTreeMap;

/// How weights are rounded once their widths are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// For the inputs that they meet.
    Gptq,
    /// Each group by itself, for the least squared error weighted by the inputs' second moments.
    Search,
    /// Each group by itself, for the least error in the 0.7-norm, without data.
    Hqq,
    /// Each group by itself, for the least squared error: the control.
    Nearest,
}

/// What to quantize to, and by which text.
#[derive(Clone, Debug)]
pub struct QuantizeSettings {
    /// Bytes that the whole model may take, norms and routers in f32 included.
    pub budget_bytes: u64,
    /// Formats to choose from for each matrix, at least one.
    pub formats: Vec<Format>,
    /// How weights are rounded; an embedding, which has no inputs, always is by itself.
    pub rounding: Rounding,
    /// Calibration text as token ids.
    pub calibration: Vec<u32>,
    /// Windows that are taken from it, evenly spaced, of [`WINDOW_TOKENS`] tokens or as many as the model
    /// was made for.
    pub windows: usize,
    /// Experts that go before anything is measured; none where it is none.
    pub pruning: Option<Pruning>,
}

/// A quantized model.
#[derive(Debug)]
pub struct QuantizedModel {
    /// Every quantized matrix.
    pub matrices: BTreeMap<Part, QuantizedMatrix>,
    /// What the widths cost in expected loss, and the bound below.
    pub allocation: Allocation,
    /// The exact optimum of the same knapsack.
    pub optimum: Allocation,
    /// Bytes of the matrices and of everything that stays in f32.
    pub bytes: u64,
    /// Bytes of the model in f32, pruned experts included.
    pub bytes_f32: u64,
    /// Experts (layer, expert) that saw fewer tokens than they have inputs, and how many. Those with
    /// none have their layer's inputs alone, and their last matrix is rounded by itself.
    pub rarely_seen: Vec<(usize, usize, usize)>,
    /// Experts that are left, where some were pruned; everything above numbers them anew.
    pub kept: Option<Kept>,
}

/// Why a model cannot be quantized.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The budget.
    #[error("{0} (and {1} bytes of norms and routers, which stay in f32)")]
    Budget(AllocationError, u64),
    /// The calibration text is too short.
    #[error("the calibration text has {tokens} tokens; at least {} are needed", window + 1)]
    TooShort {
        /// Its tokens.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// Experts to prune where a router picks groups of them.
    #[error(
        "this model's router picks groups of experts, which would no longer be of one size: leave out --prune"
    )]
    PrunedGroups,
    /// A share to prune that leaves too little.
    #[error(
        "pruning {share} leaves {kept} of {experts} experts a layer, and a token is sent to {top_k}: prune less"
    )]
    Pruning {
        /// Asked for.
        share: f64,
        /// Experts a layer that would be left.
        kept: usize,
        /// Experts a layer.
        experts: usize,
        /// Experts a token is sent to.
        top_k: usize,
    },
    /// Experts to prune where there are none.
    #[error("this model is dense: it has no experts to prune")]
    NoExperts,
    /// Token ids outside the vocabulary.
    #[error(transparent)]
    Tokens(#[from] super::trunk::TokensError),
}

impl QuantizedModel {
    /// The model that the codes stand for, in f32: what surrounds the experts, and the experts.
    ///
    /// # Errors
    /// When the checkpoint, the one that was quantized, cannot be read again.
    pub fn decode(
        &self,
        checkpoint: &Checkpoint,
    ) -> Result<(Trunk, LocalExperts), CheckpointError> {
        let mut model = Model::load(checkpoint)?;
        if let Some(kept) = &self.kept {
            model.keep(kept);
        }
        self.matrices.iter().for_each(|(part, matrix)| model.set(*part, matrix.weights()));
        let experts = model.local_experts();
        Ok((model.trunk, experts))
    }
}

/// Quantizes a model: [`Measured::new`], [`Measured::allocate`] and [`Measured::quantize`].
///
/// `progress` is told what is done.
///
/// # Errors
/// When the checkpoint cannot be read, the budget cannot be met or the text is too short.
pub fn quantize(
    checkpoint: &Checkpoint,
    settings: &QuantizeSettings,
    allocator: &dyn Allocator,
    mut progress: impl FnMut(&str),
) -> Result<QuantizedModel, QuantizeError> {
    progress("measuring what each width costs");
    let QuantizeSettings { formats, calibration, windows, pruning, .. } = settings;
    let measured = Measured::new(checkpoint, formats, calibration, *windows, *pruning)?;
    progress("choosing widths");
    let allocated = measured.allocate(allocator, settings.budget_bytes)?;
    progress("quantizing");
    measured.quantize(allocated, settings.rounding)
}

/// A model, and what each format of each of its matrices costs.
pub struct Measured {
    exact: Model,
    /// Sampled calibration tokens.
    ids: Vec<u32>,
    formats: Vec<Format>,
    parts: Vec<Part>,
    /// One a part.
    units: Vec<Unit>,
    /// The parts that each part minds, by place.
    neighbours: Vec<Vec<usize>>,
    /// Bytes of norms and routers.
    rest: u64,
    bytes_f32: u64,
    kept: Option<Kept>,
}

/// Widths for all matrices.
#[derive(Clone, Debug)]
pub struct Allocated {
    /// By the allocator that was asked.
    pub allocation: Allocation,
    /// By the exact one.
    pub optimum: Allocation,
}

impl Measured {
    /// Reads a model, prunes it and measures the costs on `windows` windows of the calibration text.
    ///
    /// # Errors
    /// When the checkpoint cannot be read or cannot be pruned so far, or when the text is too short.
    pub fn new(
        checkpoint: &Checkpoint,
        formats: &[Format],
        calibration: &[u32],
        windows: usize,
        pruning: Option<Pruning>,
    ) -> Result<Self, QuantizeError> {
        if let Some(pruning) = pruning {
            pruning.check(&checkpoint.config)?;
        }
        let mut exact = Model::load(checkpoint)?;
        let ids = sample(calibration, windows, window_tokens(&checkpoint.config))?;
        let mut kept = None;
        let mut stored_f32 = 4 * checkpoint.weights_count();
        if let Some(pruning) = pruning {
            let chosen = prune::choose(&exact, &ids, pruning)?;
            stored_f32 -= 4 * exact.keep(&chosen);
            kept = Some(chosen);
        }
        let frequencies = frequencies(calibration, exact.trunk.config.vocab);
        let parts = exact.parts();
        let sizes = |(part, inputs): &(Part, usize)| (exact.weights(*part).len() / inputs, *inputs);
        let bytes_f32 = 4 * checkpoint.weights_count();
        let matrices_f32: u64 = parts.iter().map(sizes).map(|(r, c)| 4 * (r * c) as u64).sum();
        let by_gptq = costs::by_gptq(&frequencies, formats);
        let costs = costs::measure(&exact, &ids, formats.len() / 2, &by_gptq)?;
        let units = costs::units(&costs, &parts, sizes, formats);
        let rest = stored_f32 - matrices_f32;
        let neighbours = costs::neighbours(&costs, &parts);
        let parts = parts.into_iter().map(|(part, _)| part).collect();
        let formats = formats.to_vec();
        Ok(Self { exact, ids, formats, parts, units, neighbours, rest, bytes_f32, kept })
    }

    /// Chooses a format for every matrix. An allocator that draws does so from seed 0.
    ///
    /// # Errors
    /// When the budget for the whole model cannot be met.
    pub fn allocate(
        &self,
        allocator: &dyn Allocator,
        budget_bytes: u64,
    ) -> Result<Allocated, QuantizeError> {
        let budget = budget_bytes.saturating_sub(self.rest);
        let failed = |error| QuantizeError::Budget(error, self.rest);
        let widths: Vec<u32> = self.formats.iter().map(|format| format.bits).collect();
        let (units, neighbours) = (&self.units, &self.neighbours);
        let problem = Problem { units, budget, widths: &widths, neighbours, seed: 0 };
        Ok(Allocated {
            allocation: allocator.allocate(&problem).map_err(failed)?,
            optimum: allocate(units, budget).map_err(failed)?,
        })
    }

    /// Quantizes the matrices in the order of the forward pass.
    ///
    /// # Errors
    /// None for tokens that were measured before.
    pub fn quantize(
        &self,
        allocated: Allocated,
        rounding: Rounding,
    ) -> Result<QuantizedModel, QuantizeError> {
        let Allocated { allocation, optimum } = allocated;
        let options = self.parts.iter().zip(&allocation.options);
        let formats = options.map(|(part, option)| (*part, self.formats[*option])).collect();
        let done = streams::quantize_in_order(&self.exact, &self.ids, &formats, rounding)?;
        let bytes = self.rest + done.matrices.values().map(QuantizedMatrix::bytes).sum::<u64>();
        let (matrices, rarely_seen) = (done.matrices, done.rarely_seen);
        let bytes_f32 = self.bytes_f32;
        let kept = self.kept.clone();
        Ok(QuantizedModel { matrices, allocation, optimum, bytes, bytes_f32, rarely_seen, kept })
    }

    /// Bytes of the whole model in f32, pruned experts included.
    #[must_use]
    pub fn bytes_f32(&self) -> u64 {
        self.bytes_f32
    }

    /// Bytes of the whole model with every matrix at the given format, norms and routers in f32.
    #[must_use]
    pub fn bytes_at(&self, option: usize) -> u64 {
        self.rest + self.units.iter().map(|unit| unit.bytes[option]).sum::<u64>()
    }
}

/// Tokens of a window of calibration text: [`WINDOW_TOKENS`], or as many as the model was made for.
fn window_tokens(config: &ModelConfig) -> usize {
    WINDOW_TOKENS.min(config.max_positions)
}

/// Evenly spaced windows of a text.
fn sample(ids: &[u32], windows: usize, window: usize) -> Result<Vec<u32>, QuantizeError> {
    let all = ids.len().saturating_sub(1) / window;
    if all == 0 {
        return Err(QuantizeError::TooShort { tokens: ids.len(), window });
    }
    let taken = windows.clamp(1, all);
    let starts = (0..taken).map(|at| at * all / taken * window);
    Ok(starts.flat_map(|start| &ids[start..start + window]).copied().collect())
}

/// How often each symbol occurs, plus one.
fn frequencies(ids: &[u32], vocab: usize) -> Vec<f64> {
    let mut counts = vec![1.0; vocab];
    for id in ids {
        if let Some(count) = counts.get_mut(*id as usize) {
            *count += 1.0;
        }
    }
    counts
}

//! Quantizes a whole checkpoint within a budget: every matrix but the routers, each at a width of
//! its own.
//!
//! Three passes over calibration text. The first takes the second moments of every matrix's inputs
//! and measures what each width costs (`costs`). The knapsack then picks widths. The last quantizes
//! matrix by matrix in the order of the forward pass, each for the inputs that the matrices
//! quantized before it really give (`streams`). [`Measured`] holds what the first pass found, for
//! several allocations; [`quantize`] does all at once.

mod costs;
mod file;
mod streams;

pub(super) use file::{FORMAT, VERSION};
pub use file::{QuantizedError, check_empty, write};

use super::checkpoint::{Checkpoint, CheckpointError, ExpertWeights};
use super::eval::WINDOW_TOKENS;
use super::experts::LocalExperts;
use super::trunk::{FeedForwardWeights, Trunk};
use agents::precision::{Allocation, AllocationError, Allocator, Problem, Unit, allocate};
use agents::quantize::{Format, QuantizedMatrix};
use agents::routing::Routing;
use std::collections::BTreeMap;

/// A matrix of a model, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Token embedding.
    Embedding,
    /// A projection of attention.
    Attention(usize, Projection),
    /// A matrix of an expert: layer, expert. A dense network counts as expert 0.
    Expert(usize, usize, ExpertPart),
    /// Output head.
    Head,
}

/// Projections of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Projection {
    Query,
    Key,
    Value,
    Out,
}

/// Matrices of a SwiGLU network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ExpertPart {
    Gate,
    Up,
    Down,
}

/// How weights are rounded once their widths are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// For the inputs that they meet.
    Gptq,
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
    /// Windows of [`WINDOW_TOKENS`] tokens that are taken from it, evenly spaced.
    pub windows: usize,
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
    /// Bytes of the model in f32.
    pub bytes_f32: u64,
    /// Experts (layer, expert) that saw fewer tokens than they have inputs, and how many. Those with
    /// none have their layer's inputs alone, and their last matrix is rounded by itself.
    pub rarely_seen: Vec<(usize, usize, usize)>,
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
    #[error("the calibration text has {0} tokens; at least {min} are needed", min = WINDOW_TOKENS + 1)]
    TooShort(usize),
    /// A model with parts that have no quantizer yet.
    #[error("this model has {0}, which `quantize` does not handle")]
    Unsupported(&'static str),
    /// Token ids outside the vocabulary.
    #[error(transparent)]
    Tokens(#[from] super::trunk::TokensError),
}

/// The weights of a model in f32, experts included.
#[derive(Clone)]
struct Model {
    trunk: Trunk,
    /// By layer and expert; a dense layer has its network as its only one.
    experts: Vec<Vec<ExpertWeights>>,
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
        self.matrices.iter().for_each(|(part, matrix)| model.set(*part, matrix.weights()));
        let experts = model.local_experts();
        Ok((model.trunk, experts))
    }
}

impl Model {
    fn load(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        let config = &checkpoint.config;
        let trunk = checkpoint.trunk()?;
        let experts = (0..config.layers)
            .map(|layer| match (&trunk.layers[layer].feed_forward, config.moe) {
                (FeedForwardWeights::Dense(network), _) => {
                    let (gate, up) = (network.gate.rows(), network.up.rows());
                    let shape = agents::expert::ExpertShape {
                        width: config.width,
                        hidden: gate.len() / config.width,
                    };
                    Ok(vec![ExpertWeights { shape, gate, up, down: network.down.rows() }])
                }
                (FeedForwardWeights::Routed { .. }, moe) => {
                    let experts = moe.map_or(0, |moe| moe.experts);
                    (0..experts).map(|expert| checkpoint.expert(layer, expert)).collect()
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { trunk, experts })
    }

    /// Every matrix with its number of inputs, in the order of the forward pass.
    fn parts(&self) -> Vec<(Part, usize)> {
        let width = self.trunk.config.width;
        let mut parts = vec![(Part::Embedding, width)];
        for (layer, experts) in self.experts.iter().enumerate() {
            let attended = self.trunk.config.heads * self.trunk.config.head_dim;
            use Projection::{Key, Out, Query, Value};
            parts.extend([Query, Key, Value].map(|p| (Part::Attention(layer, p), width)));
            parts.push((Part::Attention(layer, Out), attended));
            for (e, expert) in experts.iter().enumerate() {
                let of = |part| Part::Expert(layer, e, part);
                parts.push((of(ExpertPart::Gate), width));
                parts.push((of(ExpertPart::Up), width));
                parts.push((of(ExpertPart::Down), expert.shape.hidden));
            }
        }
        if !self.trunk.config.tied_head {
            parts.push((Part::Head, width));
        }
        parts
    }

    /// The weights of a matrix, `[rows, inputs]`.
    fn weights(&self, part: Part) -> Vec<f32> {
        match part {
            Part::Embedding => self.trunk.embedding.clone(),
            Part::Head => self.trunk.head.rows(),
            Part::Attention(layer, projection) => {
                let layer = &self.trunk.layers[layer];
                match projection {
                    Projection::Query => layer.query.rows(),
                    Projection::Key => layer.key.rows(),
                    Projection::Value => layer.value.rows(),
                    Projection::Out => layer.attention_out.rows(),
                }
            }
            Part::Expert(layer, expert, part) => {
                let expert = &self.experts[layer][expert];
                match part {
                    ExpertPart::Gate => expert.gate.clone(),
                    ExpertPart::Up => expert.up.clone(),
                    ExpertPart::Down => expert.down.clone(),
                }
            }
        }
    }

    fn local_experts(&self) -> LocalExperts {
        LocalExperts::of(&self.experts, self.trunk.config.moe)
    }

    /// Replaces a matrix.
    fn set(&mut self, part: Part, weights: Vec<f32>) {
        let width = self.trunk.config.width;
        let matrix = |inputs| agents::linear::Weights::from_rows(&weights, inputs);
        match part {
            Part::Embedding => {
                if self.trunk.config.tied_head {
                    self.trunk.head = matrix(width);
                }
                self.trunk.embedding = weights;
            }
            Part::Head => self.trunk.head = matrix(width),
            Part::Attention(layer, projection) => {
                let layer = &mut self.trunk.layers[layer];
                let inputs = weights.len() / layer_outputs(layer, projection);
                let matrix = agents::linear::Weights::from_rows(&weights, inputs);
                match projection {
                    Projection::Query => layer.query = matrix,
                    Projection::Key => layer.key = matrix,
                    Projection::Value => layer.value = matrix,
                    Projection::Out => layer.attention_out = matrix,
                }
            }
            Part::Expert(layer, expert, part) => {
                let expert = &mut self.experts[layer][expert];
                if let FeedForwardWeights::Dense(network) =
                    &mut self.trunk.layers[layer].feed_forward
                {
                    let matrix = |inputs| agents::linear::Weights::from_rows(&weights, inputs);
                    match part {
                        ExpertPart::Gate => network.gate = matrix(expert.shape.width),
                        ExpertPart::Up => network.up = matrix(expert.shape.width),
                        ExpertPart::Down => network.down = matrix(expert.shape.hidden),
                    }
                }
                match part {
                    ExpertPart::Gate => expert.gate = weights,
                    ExpertPart::Up => expert.up = weights,
                    ExpertPart::Down => expert.down = weights,
                }
            }
        }
    }
}

fn layer_outputs(layer: &super::trunk::LayerWeights, projection: Projection) -> usize {
    match projection {
        Projection::Query => layer.query.outputs(),
        Projection::Key => layer.key.outputs(),
        Projection::Value => layer.value.outputs(),
        Projection::Out => layer.attention_out.outputs(),
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
    let QuantizeSettings { formats, calibration, windows, .. } = settings;
    let measured = Measured::new(checkpoint, formats, calibration, *windows)?;
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
    /// Bytes of norms and routers.
    rest: u64,
    bytes_f32: u64,
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
    /// Reads a model and measures the costs on `windows` windows of the calibration text.
    ///
    /// # Errors
    /// When the checkpoint cannot be read, has parts that are not handled, or the text is too short.
    pub fn new(
        checkpoint: &Checkpoint,
        formats: &[Format],
        calibration: &[u32],
        windows: usize,
    ) -> Result<Self, QuantizeError> {
        if let Some(part) = unsupported(checkpoint) {
            return Err(QuantizeError::Unsupported(part));
        }
        let exact = Model::load(checkpoint)?;
        let ids = sample(calibration, windows)?;
        let frequencies = frequencies(calibration, exact.trunk.config.vocab);
        let parts = exact.parts();
        let sizes = |(part, inputs): &(Part, usize)| (exact.weights(*part).len() / inputs, *inputs);
        let bytes_f32 = 4 * checkpoint.weights_count();
        let matrices_f32: u64 = parts.iter().map(sizes).map(|(r, c)| 4 * (r * c) as u64).sum();
        let costs = costs::measure(&exact, &ids, &frequencies, formats)?;
        let units = costs::units(&costs, &parts, sizes, formats);
        let rest = bytes_f32 - matrices_f32;
        let parts = parts.into_iter().map(|(part, _)| part).collect();
        Ok(Self { exact, ids, formats: formats.to_vec(), parts, units, rest, bytes_f32 })
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
        let units = &self.units;
        let problem = Problem { units, budget, widths: &widths, neighbours: &[], seed: 0 };
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
        Ok(QuantizedModel { matrices, allocation, optimum, bytes, bytes_f32, rarely_seen })
    }

    /// Bytes of the whole model in f32.
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

/// What keeps a model from being quantized here.
fn unsupported(checkpoint: &Checkpoint) -> Option<&'static str> {
    let config = &checkpoint.config;
    let routing = config.moe.map(|moe| moe.routing);
    let plain = |routing: Routing| {
        routing == Routing { groups: None, ..Routing::softmax(routing.normalise) }
    };
    if config.latent.is_some() {
        Some("latent attention")
    } else if config.attention_bias {
        Some("attention biases")
    } else if config.moe.is_some_and(|moe| moe.shared_hidden.is_some()) {
        Some("shared experts")
    } else if routing.is_some_and(|routing| !plain(routing)) {
        Some("a router that is no softmax over all experts")
    } else if !checkpoint.names_each_expert() {
        Some("the experts of a layer in one tensor, or is a GGUF file")
    } else {
        None
    }
}

/// Evenly spaced windows of a text.
fn sample(ids: &[u32], windows: usize) -> Result<Vec<u32>, QuantizeError> {
    let all = ids.len().saturating_sub(1) / WINDOW_TOKENS;
    if all == 0 {
        return Err(QuantizeError::TooShort(ids.len()));
    }
    let taken = windows.clamp(1, all);
    let starts = (0..taken).map(|at| at * all / taken * WINDOW_TOKENS);
    Ok(starts.flat_map(|start| &ids[start..start + WINDOW_TOKENS]).copied().collect())
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

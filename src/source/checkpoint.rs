//! A trained checkpoint that reads text: each request is one window of the text.

use super::{LayerInput, ScoreSource, SourceShape};
use crate::model::checkpoint::{Checkpoint, CheckpointError, ExpertWeights};
use crate::model::tokenizer;
use crate::model::trunk::{FeedForwardWeights, Pass, Trunk};
use agents::expert::Expert;
use agents::ids::{ExpertId, LayerId, RequestId};

/// A [`ScoreSource`] over a checkpoint and a tokenized text. Requests take the text's windows in
/// turn, from the start again when there are more requests than windows.
pub struct CheckpointSource<'a> {
    checkpoint: &'a Checkpoint,
    trunk: &'a Trunk,
    shape: SourceShape,
    /// `[windows, tokens_per_request]`.
    inputs: &'a [u32],
    /// The inputs one further.
    targets: &'a [u32],
    /// The model's layer of each layer of the game: dense layers are none.
    routed_layers: &'a [usize],
    /// By layer of the game.
    selection_bias: Vec<Vec<f32>>,
    batch: Option<Batch<'a>>,
}

struct Batch<'a> {
    pass: Pass<'a>,
    targets: Vec<u32>,
}

/// Why a checkpoint and a text cannot make a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A selection bias cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model has no experts.
    #[error("the checkpoint is dense: a game needs a Mixture-of-Experts model")]
    Dense,
    /// The text has no whole window.
    #[error(
        "the text has {tokens} tokens but a request takes {tokens_per_request} and the one after: \
         give more text or lower load.tokens_per_request"
    )]
    ShortText {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a request.
        tokens_per_request: usize,
    },
    /// The text is no longer than a prompt.
    #[error(
        "the text has {tokens} tokens but prompts may take {longest}: give more text, or lower \
         load.generation.context_max or prompt_tokens"
    )]
    ShortPrompts {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of the longest prompt.
        longest: usize,
    },
    /// Requests are longer than the model's positions.
    #[error(
        "a request of {tokens_per_request} tokens exceeds the {max_positions} positions of the \
         model: lower load.tokens_per_request"
    )]
    LongRequest {
        /// Tokens of a request.
        tokens_per_request: usize,
        /// Positions of the model.
        max_positions: usize,
    },
    /// An id of the text is not in the model's vocabulary.
    #[error("token id {id} of the text is outside the model's vocabulary of {vocab}")]
    Vocabulary {
        /// The id.
        id: u32,
        /// Symbols of the model.
        vocab: usize,
    },
}

impl<'a> CheckpointSource<'a> {
    /// Cuts `ids` into windows of `tokens_per_request`.
    ///
    /// # Errors
    /// When the model has no experts, or the text does not fit the model or has no whole window.
    pub fn new(
        checkpoint: &'a Checkpoint,
        trunk: &'a Trunk,
        ids: &'a [u32],
        tokens_per_request: usize,
    ) -> Result<Self, SourceError> {
        let config = &checkpoint.config;
        let moe = config.moe.ok_or(SourceError::Dense)?;
        if tokens_per_request > config.max_positions {
            let max_positions = config.max_positions;
            return Err(SourceError::LongRequest { tokens_per_request, max_positions });
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= config.vocab) {
            return Err(SourceError::Vocabulary { id: *id, vocab: config.vocab });
        }
        let windows = tokenizer::windows(ids, tokens_per_request);
        if windows.inputs.is_empty() {
            return Err(SourceError::ShortText { tokens: ids.len(), tokens_per_request });
        }
        let shape = SourceShape {
            layers: config.routed_layers.len(),
            experts: moe.experts,
            width: config.width,
            top_k: moe.top_k,
            routing: moe.routing,
            tokens_per_request,
        };
        let (inputs, targets) = (windows.inputs, windows.targets);
        let routed_layers = config.routed_layers.as_slice();
        let bias = |layer: &usize| checkpoint.selection_bias(*layer);
        let selection_bias = routed_layers.iter().map(bias).collect::<Result<_, _>>()?;
        let batch = None;
        Ok(Self { checkpoint, trunk, shape, inputs, targets, routed_layers, selection_bias, batch })
    }

    /// Windows of the text: requests beyond them start from the first again.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.inputs.len() / self.shape.tokens_per_request
    }

    /// The model's layer of a layer of the game.
    pub(super) fn routed_layer(&self, layer: LayerId) -> usize {
        self.routed_layers[layer.index()]
    }

    fn gather(&self, ids: &[u32], requests: &[RequestId]) -> Vec<u32> {
        let length = self.shape.tokens_per_request;
        let window = |request: &RequestId| request.index() % self.windows() * length;
        requests.iter().flat_map(|request| &ids[window(request)..][..length]).copied().collect()
    }

    fn pass(&mut self) -> &mut Pass<'a> {
        &mut self.batch.as_mut().expect("begin comes first").pass
    }
}

impl ScoreSource for CheckpointSource<'_> {
    fn shape(&self) -> SourceShape {
        self.shape
    }

    fn router_rows(&self, layer: LayerId) -> Vec<f32> {
        match &self.trunk.layers[self.routed_layers[layer.index()]].feed_forward {
            FeedForwardWeights::Routed { router, .. } => router.rows(),
            FeedForwardWeights::Dense(_) => unreachable!("the game is played on routed layers"),
        }
    }

    fn selection_bias(&self, layer: LayerId) -> Vec<f32> {
        self.selection_bias[layer.index()].clone()
    }

    fn expert(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights, CheckpointError> {
        self.checkpoint.expert(self.routed_layers[layer.index()], expert.index())
    }

    fn stored_expert(&self, layer: LayerId, expert: ExpertId) -> Result<Expert, CheckpointError> {
        self.checkpoint.stored_expert(self.routed_layers[layer.index()], expert.index())
    }

    fn begin(&mut self, requests: &[RequestId]) {
        let inputs = self.gather(self.inputs, requests);
        let targets = self.gather(self.targets, requests);
        let pass = self
            .trunk
            .begin(&inputs, self.shape.tokens_per_request)
            .expect("ids and window were checked when the source was made");
        self.batch = Some(Batch { pass, targets });
    }

    fn perceive(&mut self, layer: LayerId) -> LayerInput {
        let layer = self.routed_layers[layer.index()];
        let pass = self.pass();
        pass.run_dense(layer);
        pass.up_to_router(layer).expect("the game is played on routed layers");
        let (hidden, logits) = pass.take_input();
        LayerInput { hidden, logits }
    }

    fn absorb(&mut self, layer: LayerId, output: &[f32]) {
        let layer = self.routed_layers[layer.index()];
        self.pass().add_moe(layer, output);
    }

    fn finish(&mut self) -> Option<Vec<f64>> {
        let Batch { mut pass, targets } = self.batch.take().expect("begin comes first");
        pass.run_dense(self.trunk.layers.len());
        let losses = pass.losses(&targets);
        Some(losses.chunks(self.shape.tokens_per_request).map(|l| l.iter().sum()).collect())
    }
}

//! A batch on its way through the layers of a [`Trunk`].

use super::config::ModelConfig;
use super::context::{Context, SequenceCache};
use super::trunk::{FeedForwardWeights, LayerWeights, Trunk, add, add_bias};
use agents::linear;
use agents::transformer::{cross_entropy, rms_norm};
use rayon::prelude::*;
use std::mem;

/// A batch of windows, or of next positions of sequences, on its way through the layers. Its calls come in one order: for each layer
/// [`Pass::up_to_router`], then [`Pass::add_moe`] if that gave something; at last
/// [`Pass::logits`] or [`Pass::losses`].
#[derive(Debug)]
pub struct Pass<'a> {
    trunk: &'a Trunk,
    context: Context,
    /// Residual stream, `[tokens, width]`.
    hidden: Vec<f32>,
    moe_input: Vec<f32>,
    router_logits: Vec<f32>,
    shared: Vec<f32>,
    /// The layer to come, or the one that waits for its experts' output.
    layer: usize,
    awaits_experts: bool,
}

/// What a routed layer starts from.
#[derive(Clone, Copy, Debug)]
pub struct MoeInput<'a> {
    /// Normed hidden states, `[tokens, width]`: what the experts compute on.
    pub hidden: &'a [f32],
    /// Router logits, `[tokens, experts]`.
    pub router_logits: &'a [f32],
    /// What the shared expert gives, `[tokens, width]`, or empty where there is none.
    /// [`Pass::add_moe`] adds it.
    pub shared: &'a [f32],
}

impl<'a> Pass<'a> {
    /// Before the first layer; `hidden` are embeddings, `[tokens, width]`.
    pub(super) fn new(trunk: &'a Trunk, context: Context, hidden: Vec<f32>) -> Self {
        Self {
            trunk,
            context,
            hidden,
            moe_input: Vec::new(),
            router_logits: Vec::new(),
            shared: Vec::new(),
            layer: 0,
            awaits_experts: false,
        }
    }
}

impl Pass<'_> {
    /// Tokens of the batch.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.hidden.len() / self.trunk.config.width
    }

    /// Runs a layer up to its experts. A dense layer is run to its end and gives `None`.
    ///
    /// # Panics
    /// When `layer` is not the next one, or the one before still awaits its experts.
    pub fn up_to_router(&mut self, layer: usize) -> Option<MoeInput<'_>> {
        assert!(!self.awaits_experts, "layer {} awaits its experts", self.layer);
        assert_eq!(layer, self.layer, "layers run in order");
        let trunk = self.trunk;
        let weights = &trunk.layers[layer];
        let attended = self.attention(layer, weights);
        add(&mut self.hidden, &attended);
        let mut input = self.hidden.clone();
        rms_norm(&mut input, &weights.feed_forward_norm, trunk.config.rms_eps);
        match &weights.feed_forward {
            FeedForwardWeights::Dense(network) => {
                add(&mut self.hidden, &network.forward(&input));
                self.layer += 1;
                None
            }
            FeedForwardWeights::Routed { router, shared } => {
                self.router_logits = router.product(&input);
                self.shared = shared.as_ref().map_or_else(Vec::new, |it| it.forward(&input));
                self.moe_input = input;
                self.awaits_experts = true;
                Some(MoeInput {
                    hidden: &self.moe_input,
                    router_logits: &self.router_logits,
                    shared: &self.shared,
                })
            }
        }
    }

    /// Takes the hidden states and the router logits that [`Pass::up_to_router`] gave last: the pass
    /// needs them no longer.
    #[must_use]
    pub fn take_input(&mut self) -> (Vec<f32>, Vec<f32>) {
        (mem::take(&mut self.moe_input), mem::take(&mut self.router_logits))
    }

    /// Runs the layers before `end`, all of them dense.
    ///
    /// # Panics
    /// When one of them is routed, or the layer before still awaits its experts.
    pub fn run_dense(&mut self, end: usize) {
        while self.layer < end {
            assert!(self.up_to_router(self.layer).is_none(), "only dense layers run by themselves");
        }
    }

    /// Adds the output of a routed layer, `[tokens, width]`, to the residual stream, and what the
    /// shared expert gave.
    ///
    /// # Panics
    /// When `layer` does not await its experts, or `output` has another length.
    pub fn add_moe(&mut self, layer: usize, output: &[f32]) {
        assert!(self.awaits_experts && layer == self.layer, "layer {layer} awaits no experts");
        add(&mut self.hidden, output);
        if !self.shared.is_empty() {
            add(&mut self.hidden, &self.shared);
        }
        self.awaits_experts = false;
        self.layer += 1;
    }

    /// Logits of the next token, `[tokens, vocab]`.
    ///
    /// # Panics
    /// Before the last layer is done.
    #[must_use]
    pub fn logits(&self) -> Vec<f32> {
        self.trunk.head.product(&self.normed_output())
    }

    /// `−ln p(target)` of every token, in nats, without keeping the logits.
    ///
    /// # Panics
    /// Before the last layer is done, when there is not one target a token, and when a target is
    /// outside the vocabulary.
    #[must_use]
    pub fn losses(&self, targets: &[u32]) -> Vec<f64> {
        let ModelConfig { width, vocab, .. } = self.trunk.config;
        assert_eq!(targets.len(), self.tokens(), "one target a token");
        let output = self.normed_output();
        let rows = output.par_chunks(linear::ROW_BLOCK * width);
        rows.zip(targets.par_chunks(linear::ROW_BLOCK))
            .flat_map_iter(|(rows, targets)| {
                let mut logits = vec![0.0; targets.len() * vocab];
                self.trunk.head.product_serial(rows, &mut logits);
                let rows = logits.chunks_exact(vocab).zip(targets);
                rows.map(|(row, target)| cross_entropy(row, *target as usize)).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Logits of the token after some rows, `[rows, vocab]`.
    ///
    /// # Panics
    /// Before the last layer is done, and when a row is not there.
    #[must_use]
    pub fn logits_of(&self, rows: &[usize]) -> Vec<f32> {
        let width = self.trunk.config.width;
        let hidden = rows.iter().flat_map(|row| &self.hidden[row * width..][..width]);
        self.trunk.head.product(&self.normed(hidden.copied().collect()))
    }

    /// Ends a batch of next positions: the caches of its sequences, in their order; none for windows.
    ///
    /// # Panics
    /// Before the last layer is done.
    #[must_use]
    pub fn into_caches(self) -> Vec<SequenceCache> {
        assert!(self.layer == self.trunk.layers.len(), "layer {} has not run", self.layer);
        match self.context {
            Context::Windows { .. } => Vec::new(),
            Context::Sequences { caches, .. } => caches,
        }
    }

    fn normed_output(&self) -> Vec<f32> {
        self.normed(self.hidden.clone())
    }

    fn normed(&self, mut output: Vec<f32>) -> Vec<f32> {
        assert!(self.layer == self.trunk.layers.len(), "layer {} has not run", self.layer);
        rms_norm(&mut output, &self.trunk.final_norm, self.trunk.config.rms_eps);
        output
    }

    fn attention(&mut self, layer: usize, weights: &LayerWeights) -> Vec<f32> {
        let ModelConfig { heads, rms_eps, .. } = self.trunk.config;
        let mut input = self.hidden.clone();
        rms_norm(&mut input, &weights.attention_norm, rms_eps);
        let context = (layer, &mut self.context);
        if let (Some(config), Some(latent)) = (&self.trunk.config.latent, &weights.latent) {
            let attended = config.attended(weights, latent, &input, heads, context);
            return weights.attention_out.product(&attended);
        }
        let attended = self.trunk.attended(weights, &input, context);
        let mut out = weights.attention_out.product(&attended);
        if let Some(bias) = weights.biases.as_ref().and_then(|biases| biases.out.as_ref()) {
            add_bias(&mut out, bias);
        }
        out
    }
}

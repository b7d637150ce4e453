//! The f32 forward pass around the experts, one layer at a time, so that a caller can hand each
//! Mixture-of-Experts layer to the game and the nodes.
//!
//! A layer is `h += attention(norm(h)); h += feed_forward(norm(h))`. Dense feed-forward networks
//! run here; for a routed layer the caller gets its input and router logits and returns its output.

use super::config::ModelConfig;
use super::latent::LatentWeights;
use agents::linear::{self, Weights};
use agents::routing::sigmoid;
use agents::transformer::{
    AttentionShape, Rotary, causal_attention, cross_entropy, rms_norm, swiglu,
};
use rayon::prelude::*;

/// All weights of a model but its experts. Matrices are row-major `[outputs, inputs]`.
#[derive(Clone, Debug)]
pub struct Trunk {
    /// Sizes and switches.
    pub config: ModelConfig,
    /// `[vocab, width]`.
    pub embedding: Vec<f32>,
    /// First to last.
    pub layers: Vec<LayerWeights>,
    /// `[width]`.
    pub final_norm: Vec<f32>,
    /// `[vocab, width]`; the embedding again where the model ties them.
    pub head: Weights,
}

/// One layer without its experts.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// `[width]`.
    pub attention_norm: Vec<f32>,
    /// `[heads · head_dim, width]`. Where there are latents, this projects the queries', the next
    /// two the keys' and values', and heads have the sizes of [`super::latent::LatentConfig`].
    pub query: Weights,
    /// `[kv_heads · head_dim, width]`.
    pub key: Weights,
    /// `[kv_heads · head_dim, width]`.
    pub value: Weights,
    /// `[width, heads · head_dim]`.
    pub attention_out: Weights,
    /// What makes latents of a hidden state, where the family has them.
    pub latent: Option<LatentWeights>,
    /// Where the family has them.
    pub biases: Option<AttentionBiases>,
    /// `[heads · head_dim]`, or `[head_dim]` for each head by itself, where the family has one.
    pub query_norm: Option<Vec<f32>>,
    /// `[kv_heads · head_dim]`, or `[head_dim]` for each head by itself, where the family has one.
    pub key_norm: Option<Vec<f32>>,
    /// `[width]`.
    pub feed_forward_norm: Vec<f32>,
    /// What follows attention.
    pub feed_forward: FeedForwardWeights,
}

/// What is added to the projections of attention.
#[derive(Clone, Debug)]
pub struct AttentionBiases {
    /// `[heads · head_dim]`.
    pub query: Vec<f32>,
    /// `[kv_heads · head_dim]`.
    pub key: Vec<f32>,
    /// `[kv_heads · head_dim]`.
    pub value: Vec<f32>,
    /// `[width]`, where the family has one.
    pub out: Option<Vec<f32>>,
}

/// The feed-forward part of a layer.
#[derive(Clone, Debug)]
pub enum FeedForwardWeights {
    /// One network, run by the trunk.
    Dense(SwiGlu),
    /// A router; its experts are run by the caller.
    Routed {
        /// `[experts, width]`.
        router: Weights,
        /// What every token passes besides, run by the trunk.
        shared: Option<SharedExpert>,
    },
}

/// A network that every token passes besides its experts.
#[derive(Clone, Debug)]
pub struct SharedExpert {
    /// The network.
    pub network: SwiGlu,
    /// `[1, width]`: its output is multiplied by the sigmoid of this projection, where there is one.
    pub gate: Option<Weights>,
}

/// A dense feed-forward network, `W_down (silu(W_gate x) ⊙ W_up x)`.
#[derive(Clone, Debug)]
pub struct SwiGlu {
    /// `[hidden, width]`.
    pub gate: Weights,
    /// `[hidden, width]`.
    pub up: Weights,
    /// `[width, hidden]`.
    pub down: Weights,
}

/// Why tokens cannot be run through a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokensError {
    /// A token id that the embedding does not have.
    #[error(
        "token id {id} at position {position} is outside the vocabulary of {vocab}: \
             the tokenizer belongs to another model"
    )]
    Vocabulary {
        /// The id.
        id: u32,
        /// Where it stands.
        position: usize,
        /// Symbols of the model.
        vocab: usize,
    },
    /// A window longer than the model was made for.
    #[error("a window of {window} tokens exceeds the {max_positions} positions of the model")]
    Window {
        /// Tokens of a window.
        window: usize,
        /// The model's limit.
        max_positions: usize,
    },
}

/// A batch of windows on its way through the layers. Its calls come in one order: for each layer
/// [`Pass::up_to_router`], then [`Pass::add_moe`] if that gave something; at last
/// [`Pass::logits`] or [`Pass::losses`].
#[derive(Debug)]
pub struct Pass<'a> {
    trunk: &'a Trunk,
    rotary: Rotary,
    window: usize,
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

impl Trunk {
    /// Starts a batch of windows of one length, each with a context of its own.
    ///
    /// # Errors
    /// Ids outside the vocabulary, and windows longer than the model's positions.
    ///
    /// # Panics
    /// When `ids` is not a whole number of windows.
    pub fn begin(&self, ids: &[u32], window: usize) -> Result<Pass<'_>, TokensError> {
        let ModelConfig { width, vocab, max_positions, head_dim, .. } = self.config;
        assert!(window > 0 && ids.len().is_multiple_of(window), "whole windows");
        if window > max_positions {
            return Err(TokensError::Window { window, max_positions });
        }
        if let Some(position) = ids.iter().position(|id| *id as usize >= vocab) {
            return Err(TokensError::Vocabulary { id: ids[position], position, vocab });
        }
        let rows = ids.iter().flat_map(|id| &self.embedding[*id as usize * width..][..width]);
        Ok(Pass {
            trunk: self,
            rotary: match &self.config.latent {
                Some(latent) => latent.rotary(window),
                None => Rotary::new(window, head_dim, self.config.rope_theta),
            },
            window,
            hidden: rows.copied().collect(),
            moe_input: Vec::new(),
            router_logits: Vec::new(),
            shared: Vec::new(),
            layer: 0,
            awaits_experts: false,
        })
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
        let attended = self.attention(weights);
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

    fn normed_output(&self) -> Vec<f32> {
        assert!(self.layer == self.trunk.layers.len(), "layer {} has not run", self.layer);
        let mut output = self.hidden.clone();
        rms_norm(&mut output, &self.trunk.final_norm, self.trunk.config.rms_eps);
        output
    }

    fn attention(&self, weights: &LayerWeights) -> Vec<f32> {
        let ModelConfig { heads, rms_eps, .. } = self.trunk.config;
        let mut input = self.hidden.clone();
        rms_norm(&mut input, &weights.attention_norm, rms_eps);
        let window = (&self.rotary, self.window);
        if let (Some(config), Some(latent)) = (&self.trunk.config.latent, &weights.latent) {
            return config.attention(weights, latent, &input, heads, window);
        }
        let attended = self.trunk.attended(weights, &input, window);
        let mut out = weights.attention_out.product(&attended);
        if let Some(bias) = weights.biases.as_ref().and_then(|biases| biases.out.as_ref()) {
            add_bias(&mut out, bias);
        }
        out
    }
}

impl Trunk {
    /// What attention without latents gives its output projection, `[tokens, heads · head_dim]`,
    /// for normed inputs.
    pub(super) fn attended(
        &self,
        weights: &LayerWeights,
        input: &[f32],
        (rotary, window): (&Rotary, usize),
    ) -> Vec<f32> {
        let ModelConfig { heads, kv_heads, head_dim, rms_eps, clip_qkv, .. } = self.config;
        let mut q = weights.query.product(input);
        let mut k = weights.key.product(input);
        let mut v = weights.value.product(input);
        if let Some(biases) = &weights.biases {
            add_bias(&mut q, &biases.query);
            add_bias(&mut k, &biases.key);
            add_bias(&mut v, &biases.value);
        }
        if let (Some(query_norm), Some(key_norm)) = (&weights.query_norm, &weights.key_norm) {
            rms_norm(&mut q, query_norm, rms_eps);
            rms_norm(&mut k, key_norm, rms_eps);
        }
        if let Some(bound) = clip_qkv {
            for x in [&mut q, &mut k, &mut v].into_iter().flatten() {
                *x = x.clamp(-bound, bound);
            }
        }
        rotary.rotate(&mut q, heads);
        rotary.rotate(&mut k, kv_heads);
        let shape = AttentionShape { window, heads, kv_heads, head_dim };
        causal_attention(&q, &k, &v, shape)
    }
}

impl SwiGlu {
    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut gate = self.gate.product(x);
        swiglu(&mut gate, &self.up.product(x));
        self.down.product(&gate)
    }
}

impl SharedExpert {
    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut out = self.network.forward(x);
        if let Some(gate) = &self.gate {
            let gates = gate.product(x);
            let width = out.len() / gates.len();
            for (row, gate) in out.chunks_exact_mut(width).zip(gates) {
                let gate = sigmoid(gate);
                row.iter_mut().for_each(|y| *y *= gate);
            }
        }
        out
    }
}

fn add_bias(rows: &mut [f32], bias: &[f32]) {
    rows.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
}

fn add(hidden: &mut [f32], x: &[f32]) {
    agents::transformer::add_scaled(hidden, 1.0, x);
}

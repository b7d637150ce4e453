//! The f32 forward pass around the experts, one layer at a time, so that a caller can hand each
//! Mixture-of-Experts layer to the game and the nodes.
//!
//! A layer is `h += attention(norm(h)); h += feed_forward(norm(h))`. Dense feed-forward networks
//! run here; for a routed layer the caller gets its input and router logits and returns its output.

use super::config::ModelConfig;
use super::context::{Context, SequenceCache};
use super::latent::LatentWeights;
pub use super::pass::{MoeInput, Pass};
use agents::linear::Weights;
use agents::routing::sigmoid;
use agents::transformer::{Rotary, rms_norm, swiglu};
use std::sync::Arc;

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

impl Trunk {
    /// Starts a batch of windows of one length, each with a context of its own.
    ///
    /// # Errors
    /// Ids outside the vocabulary, and windows longer than the model's positions.
    ///
    /// # Panics
    /// When `ids` is not a whole number of windows.
    pub fn begin(&self, ids: &[u32], window: usize) -> Result<Pass<'_>, TokensError> {
        let max_positions = self.config.max_positions;
        assert!(window > 0 && ids.len().is_multiple_of(window), "whole windows");
        if window > max_positions {
            return Err(TokensError::Window { window, max_positions });
        }
        let rotary = self.rotary(window);
        self.pass(ids, Context::Windows { rotary, window })
    }

    /// Starts a batch of the next positions of sequences: `ids` are those of the first sequence, then of
    /// the next; `rows` says how many each has. [`Pass::into_caches`] gives the caches back. `rotary` is a
    /// table of [`Trunk::rotary`] that is long enough for all.
    ///
    /// # Errors
    /// Ids outside the vocabulary, and sequences longer than the model's positions or the table.
    ///
    /// # Panics
    /// When there is not one number of rows a sequence, or one id a row.
    pub fn begin_next(
        &self,
        ids: &[u32],
        rotary: &Arc<Rotary>,
        caches: Vec<SequenceCache>,
        rows: &[usize],
    ) -> Result<Pass<'_>, TokensError> {
        assert!(caches.len() == rows.len() && rows.iter().sum::<usize>() == ids.len(), "all rows");
        let ends = caches.iter().zip(rows).map(|(cache, rows)| cache.positions() + rows);
        let window = ends.max().unwrap_or(0);
        let max_positions = self.config.max_positions.min(rotary.positions());
        if window > max_positions {
            return Err(TokensError::Window { window, max_positions });
        }
        self.pass(ids, Context::sequences(Arc::clone(rotary), caches, rows))
    }

    /// The rotary table of windows of one length.
    ///
    /// # Panics
    /// When `window` is zero.
    #[must_use]
    pub fn rotary(&self, window: usize) -> Rotary {
        match &self.config.latent {
            Some(latent) => latent.rotary(window),
            None => Rotary::new(window, self.config.head_dim, self.config.rope_theta),
        }
    }

    /// A sequence without positions.
    #[must_use]
    pub fn empty_cache(&self) -> SequenceCache {
        SequenceCache::of_layers(self.layers.len())
    }

    fn pass(&self, ids: &[u32], context: Context) -> Result<Pass<'_>, TokensError> {
        let ModelConfig { width, vocab, .. } = self.config;
        if let Some(position) = ids.iter().position(|id| *id as usize >= vocab) {
            return Err(TokensError::Vocabulary { id: ids[position], position, vocab });
        }
        let rows = ids.iter().flat_map(|id| &self.embedding[*id as usize * width..][..width]);
        Ok(Pass::new(self, context, rows.copied().collect()))
    }
}

impl Trunk {
    /// What attention without latents gives its output projection, `[tokens, heads · head_dim]`,
    /// for normed inputs.
    pub(super) fn attended(
        &self,
        weights: &LayerWeights,
        input: &[f32],
        (layer, context): (usize, &mut Context),
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
        context.rotate(&mut q, heads);
        context.rotate(&mut k, kv_heads);
        context.attend(layer, (&q, &k, &v), (heads, kv_heads, head_dim))
    }
}

impl SwiGlu {
    pub(super) fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut gate = self.gate.product(x);
        swiglu(&mut gate, &self.up.product(x));
        self.down.product(&gate)
    }
}

impl SharedExpert {
    pub(super) fn forward(&self, x: &[f32]) -> Vec<f32> {
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

pub(super) fn add_bias(rows: &mut [f32], bias: &[f32]) {
    rows.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
}

pub(super) fn add(hidden: &mut [f32], x: &[f32]) {
    agents::transformer::add_scaled(hidden, 1.0, x);
}

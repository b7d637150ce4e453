//! Reads a layer's weights, in the order of rows that the trunk computes with.

use super::architecture::QueryKeyNorm;
use super::checkpoint::{Checkpoint, CheckpointError};
use super::config::ModelConfig;
use super::latent::{self, LatentConfig, LatentRows, LatentWeights};
use super::names::{self, Projections};
use super::trunk::{AttentionBiases, FeedForwardWeights, LayerWeights, SharedExpert, SwiGlu};
use agents::linear;

impl Checkpoint {
    /// The weights of one layer but its experts.
    ///
    /// # Errors
    /// A weight that is not finite.
    pub(super) fn layer(&self, layer: usize) -> Result<LayerWeights, CheckpointError> {
        if let Some(latent) = &self.config.latent {
            return self.latent_layer(latent, layer);
        }
        let ModelConfig { width, heads, kv_heads, head_dim, .. } = self.config;
        let names = &self.names;
        let read = |pattern: &str| self.weights.read(&names::layer_tensor(pattern, layer));
        let matrix = |pattern, inputs| Ok(linear::Weights::from_rows(&read(pattern)?, inputs));
        let rotated = |pattern: &str, heads, inputs| {
            let rows = read(pattern)?;
            Ok(if self.pairs_neighbours { halves(&rows, heads, head_dim, inputs) } else { rows })
        };
        let norm = |pattern| {
            let has_norm = self.family.query_key_norm != QueryKeyNorm::Absent;
            if has_norm { read(pattern).map(Some) } else { Ok(None) }
        };
        let biases = if self.config.attention_bias {
            let out = names::bias(names.attention_out);
            Some(AttentionBiases {
                query: rotated(&names::bias(names.query), heads, 1)?,
                key: rotated(&names::bias(names.key), kv_heads, 1)?,
                value: read(&names::bias(names.value))?,
                out: if self.family.attention_bias.output { Some(read(&out)?) } else { None },
            })
        } else {
            None
        };
        Ok(LayerWeights {
            attention_norm: read(names.attention_norm)?,
            query: linear::Weights::from_rows(&rotated(names.query, heads, width)?, width),
            key: linear::Weights::from_rows(&rotated(names.key, kv_heads, width)?, width),
            value: matrix(names.value, width)?,
            attention_out: matrix(names.attention_out, heads * head_dim)?,
            latent: None,
            biases,
            query_norm: norm(names.query_norm)?,
            key_norm: norm(names.key_norm)?,
            feed_forward_norm: read(names.feed_forward_norm)?,
            feed_forward: self.feed_forward(layer)?,
        })
    }

    fn feed_forward(&self, layer: usize) -> Result<FeedForwardWeights, CheckpointError> {
        let matrix = |pattern, inputs| -> Result<_, CheckpointError> {
            let rows = self.weights.read(&names::layer_tensor(pattern, layer))?;
            Ok(linear::Weights::from_rows(&rows, inputs))
        };
        let width = self.config.width;
        let network = |parts: Projections, hidden| -> Result<_, CheckpointError> {
            Ok(SwiGlu {
                gate: matrix(parts.gate, width)?,
                up: matrix(parts.up, width)?,
                down: matrix(parts.down, hidden)?,
            })
        };
        let moe = match self.config.moe {
            Some(moe) if self.is_routed(layer) => moe,
            _ => {
                return Ok(FeedForwardWeights::Dense(network(
                    self.names.dense,
                    self.config.hidden,
                )?));
            }
        };
        let shared = match moe.shared_hidden {
            None => None,
            Some(hidden) => {
                let gated = self.family.has_shared_gate();
                let gate = gated.then(|| matrix(self.names.shared_gate, width)).transpose()?;
                Some(SharedExpert { network: network(self.names.shared, hidden)?, gate })
            }
        };
        Ok(FeedForwardWeights::Routed { router: matrix(self.names.router, width)?, shared })
    }

    /// The matrices of a layer's latent attention.
    ///
    /// # Errors
    /// A weight that is not finite.
    pub(super) fn latent_rows(
        &self,
        latent: &LatentConfig,
        layer: usize,
    ) -> Result<LatentRows, CheckpointError> {
        let read = |pattern: &str| self.weights.read(&names::layer_tensor(pattern, layer));
        let has_latent = latent.query_rank.is_some();
        Ok(LatentRows {
            query_down: has_latent.then(|| read(latent::QUERY_DOWN)).transpose()?,
            query: read(if has_latent { latent::QUERY_UP } else { self.names.query })?,
            key_value_down: read(latent::KEY_VALUE_DOWN)?,
            key_value_up: read(latent::KEY_VALUE_UP)?,
        })
    }

    fn latent_layer(
        &self,
        latent: &LatentConfig,
        layer: usize,
    ) -> Result<LayerWeights, CheckpointError> {
        let ModelConfig { width, heads, .. } = self.config;
        let read = |pattern: &str| self.weights.read(&names::layer_tensor(pattern, layer));
        let rows = self.latent_rows(latent, layer)?;
        let latent::Arranged { query, key, value, key_value_down, rotated_key } =
            rows.arranged(latent, width);
        let query_down = match rows.query_down {
            None => None,
            Some(down) => {
                let norm = read(latent::QUERY_LATENT_NORM)?;
                Some((linear::Weights::from_rows(&down, width), norm))
            }
        };
        Ok(LayerWeights {
            attention_norm: read(self.names.attention_norm)?,
            query,
            key,
            value,
            attention_out: linear::Weights::from_rows(
                &read(self.names.attention_out)?,
                heads * latent.value_dim,
            ),
            latent: Some(LatentWeights {
                query_down,
                key_value_down,
                key_value_norm: read(latent::KEY_VALUE_NORM)?,
                rotated_key,
            }),
            biases: None,
            query_norm: None,
            key_norm: None,
            feed_forward_norm: read(self.names.feed_forward_norm)?,
            feed_forward: self.feed_forward(layer)?,
        })
    }
}

/// Puts the rows of each head (`[head_dim, inputs]`) from neighbouring pairs into the order of the
/// "rotate half" layout: first the first of every pair, then the second of every pair.
pub(super) fn halves(rows: &[f32], heads: usize, head_dim: usize, inputs: usize) -> Vec<f32> {
    assert_eq!(rows.len(), heads * head_dim * inputs, "whole heads");
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * inputs) {
        let of_pairs = |which| head.chunks_exact(inputs).skip(which).step_by(2);
        of_pairs(0).chain(of_pairs(1)).for_each(|row| out.extend_from_slice(row));
    }
    out
}

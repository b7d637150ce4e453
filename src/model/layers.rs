//! Reads a layer's weights, in the order of rows that the trunk computes with.

use super::architecture::QueryKeyNorm;
use super::checkpoint::{Checkpoint, CheckpointError};
use super::config::ModelConfig;
use super::latent::{self, LatentConfig, LatentWeights};
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

    fn latent_layer(
        &self,
        latent: &LatentConfig,
        layer: usize,
    ) -> Result<LayerWeights, CheckpointError> {
        let ModelConfig { width, heads, .. } = self.config;
        let read = |pattern: &str| self.weights.read(&names::layer_tensor(pattern, layer));
        let LatentConfig { kv_rank, unrotated, rotated, value_dim, .. } = *latent;
        let in_halves = |rows: &[f32], inputs| {
            if latent.interleaved { halves(rows, 1, rotated, inputs) } else { rows.to_vec() }
        };
        let (query_down, query_pattern, query_inputs) = match latent.query_rank {
            None => (None, self.names.query, width),
            Some(rank) => {
                let down = linear::Weights::from_rows(&read(latent::QUERY_DOWN)?, width);
                (Some((down, read(latent::QUERY_LATENT_NORM)?)), latent::QUERY_UP, rank)
            }
        };
        let mut query = Vec::new();
        for head in read(query_pattern)?.chunks_exact((unrotated + rotated) * query_inputs) {
            let (still, turned) = head.split_at(unrotated * query_inputs);
            query.extend_from_slice(still);
            query.extend(in_halves(turned, query_inputs));
        }
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for head in read(latent::KEY_VALUE_UP)?.chunks_exact((unrotated + value_dim) * kv_rank) {
            let (of_key, of_value) = head.split_at(unrotated * kv_rank);
            key.extend_from_slice(of_key);
            value.extend_from_slice(of_value);
        }
        let down = read(latent::KEY_VALUE_DOWN)?;
        let (compressed, turned) = down.split_at(kv_rank * width);
        Ok(LayerWeights {
            attention_norm: read(self.names.attention_norm)?,
            query: linear::Weights::from_rows(&query, query_inputs),
            key: linear::Weights::from_rows(&key, kv_rank),
            value: linear::Weights::from_rows(&value, kv_rank),
            attention_out: linear::Weights::from_rows(
                &read(self.names.attention_out)?,
                heads * value_dim,
            ),
            latent: Some(LatentWeights {
                query_down,
                key_value_down: linear::Weights::from_rows(compressed, width),
                key_value_norm: read(latent::KEY_VALUE_NORM)?,
                rotated_key: linear::Weights::from_rows(&in_halves(turned, width), width),
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
fn halves(rows: &[f32], heads: usize, head_dim: usize, inputs: usize) -> Vec<f32> {
    assert_eq!(rows.len(), heads * head_dim * inputs, "whole heads");
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * inputs) {
        let of_pairs = |which| head.chunks_exact(inputs).skip(which).step_by(2);
        of_pairs(0).chain(of_pairs(1)).for_each(|row| out.extend_from_slice(row));
    }
    out
}

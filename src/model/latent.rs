//! Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1) and the YaRN scaling of
//! its rotary frequencies (Peng et al. 2023, arXiv:2309.00071).
//!
//! Keys and values are projected from one normed latent of a token. A head has components that are
//! rotated and others that are not; the rotated ones of the keys are the same for all heads.

use super::config::ModelConfig;
use super::context::Context;
use super::expected::Named;
use super::keys::Keys;
use super::layers::halves;
use super::names::{TensorNames, layer_tensor};
use super::trunk::LayerWeights;
use agents::linear::Weights;
use agents::transformer::{Rotary, frequencies, rms_norm};
use serde_json::Value;

pub(super) const QUERY_DOWN: &str = "model.layers.{layer}.self_attn.q_a_proj.weight";
pub(super) const QUERY_LATENT_NORM: &str = "model.layers.{layer}.self_attn.q_a_layernorm.weight";
pub(super) const QUERY_UP: &str = "model.layers.{layer}.self_attn.q_b_proj.weight";
pub(super) const KEY_VALUE_DOWN: &str = "model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight";
pub(super) const KEY_VALUE_NORM: &str = "model.layers.{layer}.self_attn.kv_a_layernorm.weight";
pub(super) const KEY_VALUE_UP: &str = "model.layers.{layer}.self_attn.kv_b_proj.weight";

/// Added to the mean square in the norms of latents, whatever the configuration says of others.
const LATENT_EPS: f32 = 1e-6;

/// Sizes of latent attention.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentConfig {
    /// Components of a query's latent; queries are projected from the hidden state without one.
    pub query_rank: Option<usize>,
    /// Components of the latent of keys and values.
    pub kv_rank: usize,
    /// Components of a head of queries and keys that are not rotated.
    pub unrotated: usize,
    /// Components of a head of queries and keys that are rotated, even.
    pub rotated: usize,
    /// Components of a head of values.
    pub value_dim: usize,
    /// Whether the file pairs neighbouring components for the rotation.
    pub interleaved: bool,
    /// Rotary frequencies, one a pair of components.
    pub frequencies: Vec<f64>,
    /// What rotated components are multiplied by.
    pub rotary_factor: f64,
    /// What the product of a query and a key is multiplied by.
    pub score_factor: f64,
}

/// What makes latents of a hidden state.
#[derive(Clone, Debug)]
pub struct LatentWeights {
    /// `[query_rank, width]` and the norm `[query_rank]`.
    pub query_down: Option<(Weights, Vec<f32>)>,
    /// `[kv_rank, width]`.
    pub key_value_down: Weights,
    /// `[kv_rank]`.
    pub key_value_norm: Vec<f32>,
    /// The rotated components of the keys, `[rotated, width]`.
    pub rotated_key: Weights,
}

/// The matrices of a layer's latent attention as files hold them, row by row.
#[derive(Clone, Debug)]
pub(super) struct LatentRows {
    /// `[query_rank, width]`.
    pub(super) query_down: Option<Vec<f32>>,
    /// `[heads · (unrotated + rotated), query_rank or width]`.
    pub(super) query: Vec<f32>,
    /// `[kv_rank + rotated, width]`.
    pub(super) key_value_down: Vec<f32>,
    /// `[heads · (unrotated + value_dim), kv_rank]`.
    pub(super) key_value_up: Vec<f32>,
}

/// The same in the order that the trunk computes with, but for the latent of queries.
pub(super) struct Arranged {
    pub(super) query: Weights,
    pub(super) key: Weights,
    pub(super) value: Weights,
    pub(super) key_value_down: Weights,
    pub(super) rotated_key: Weights,
}

impl LatentRows {
    pub(super) fn arranged(&self, latent: &LatentConfig, width: usize) -> Arranged {
        let LatentConfig { kv_rank, unrotated, rotated, value_dim, .. } = *latent;
        let in_halves = |rows: &[f32], inputs| {
            if latent.interleaved { halves(rows, 1, rotated, inputs) } else { rows.to_vec() }
        };
        let query_inputs = latent.query_rank.unwrap_or(width);
        let mut query = Vec::with_capacity(self.query.len());
        for head in self.query.chunks_exact((unrotated + rotated) * query_inputs) {
            let (still, turned) = head.split_at(unrotated * query_inputs);
            query.extend_from_slice(still);
            query.extend(in_halves(turned, query_inputs));
        }
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for head in self.key_value_up.chunks_exact((unrotated + value_dim) * kv_rank) {
            let (of_key, of_value) = head.split_at(unrotated * kv_rank);
            key.extend_from_slice(of_key);
            value.extend_from_slice(of_value);
        }
        let (compressed, turned) = self.key_value_down.split_at(kv_rank * width);
        Arranged {
            query: Weights::from_rows(&query, query_inputs),
            key: Weights::from_rows(&key, kv_rank),
            value: Weights::from_rows(&value, kv_rank),
            key_value_down: Weights::from_rows(compressed, width),
            rotated_key: Weights::from_rows(&in_halves(turned, width), width),
        }
    }
}

impl LatentWeights {
    /// What queries are projected from; none where that is the hidden state itself.
    pub(super) fn query_latent(&self, input: &[f32]) -> Option<Vec<f32>> {
        self.query_down.as_ref().map(|(down, norm)| {
            let mut compressed = down.product(input);
            rms_norm(&mut compressed, norm, LATENT_EPS);
            compressed
        })
    }

    /// What keys and values are projected from.
    pub(super) fn key_value_latent(&self, input: &[f32]) -> Vec<f32> {
        let mut compressed = self.key_value_down.product(input);
        rms_norm(&mut compressed, &self.key_value_norm, LATENT_EPS);
        compressed
    }
}

impl LatentConfig {
    pub(super) fn read(keys: &mut Keys<'_>, rope_theta: f64) -> Self {
        let (unrotated, rotated) = (keys.size("qk_nope_head_dim"), keys.size("qk_rope_head_dim"));
        let mut latent = Self {
            query_rank: keys.optional_size("q_lora_rank"),
            kv_rank: keys.size("kv_lora_rank"),
            unrotated,
            rotated,
            value_dim: keys.size("v_head_dim"),
            interleaved: keys.flag("rope_interleave", true),
            frequencies: frequencies(rotated, rope_theta),
            rotary_factor: 1.0,
            score_factor: 1.0 / ((unrotated + rotated) as f64).sqrt(),
        };
        for place in ["rope_scaling", "rope_parameters"] {
            let Some(rope) = keys.present(place) else { continue };
            let kind = rope.get("rope_type").or_else(|| rope.get("type"));
            if kind.and_then(Value::as_str) == Some("yarn") {
                let mut inner = Keys { json: rope, problems: Vec::new() };
                latent.scale_by_yarn(&mut inner, rope_theta);
                keys.problems.extend(inner.problems);
                break;
            }
        }
        latent
    }

    /// Slow frequencies are divided by `factor`, fast ones stay, and a ramp lies between.
    fn scale_by_yarn(&mut self, keys: &mut Keys<'_>, theta: f64) {
        let factor = keys.positive("factor", None).max(1.0);
        let positions = keys.size("original_max_position_embeddings") as f64;
        let fast = keys.positive("beta_fast", Some(32.0));
        let slow = keys.positive("beta_slow", Some(1.0));
        if !keys.flag("truncate", true) || keys.present("attention_factor").is_some() {
            let problem = "`truncate` and `attention_factor` of \"yarn\" are not supported";
            keys.problems.push(problem.into());
        }
        let dim = self.rotated as f64;
        let pair_of = |turns: f64| {
            dim * (positions / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
        };
        let (low, high) = (pair_of(fast).floor().max(0.0), pair_of(slow).ceil().min(dim - 1.0));
        let high = if low == high { high + 0.001 } else { high };
        for (pair, frequency) in self.frequencies.iter_mut().enumerate() {
            let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            *frequency = *frequency / factor * ramp + *frequency * (1.0 - ramp);
        }
        let strength = |times: f64| 0.1 * times * factor.ln() + 1.0;
        let mut given = |key| keys.present(key).is_some().then(|| keys.positive(key, None));
        let (own, all) = (given("mscale"), given("mscale_all_dim"));
        self.rotary_factor = match (own, all) {
            (Some(own), Some(all)) => strength(own) / strength(all),
            _ => strength(1.0),
        };
        if let Some(all) = all {
            self.score_factor *= strength(all) * strength(all);
        }
    }

    /// The rotary table of windows of one length.
    #[must_use]
    pub fn rotary(&self, window: usize) -> Rotary {
        Rotary::with_frequencies(window, &self.frequencies, self.rotary_factor)
    }

    pub(super) fn expected_tensors(
        &self,
        config: &ModelConfig,
        names: &TensorNames,
        layer: usize,
    ) -> Vec<Named> {
        let (width, heads) = (config.width, config.heads);
        let q = heads * (self.unrotated + self.rotated);
        let mut tensors = vec![
            (names.attention_norm, vec![width]),
            (KEY_VALUE_DOWN, vec![self.kv_rank + self.rotated, width]),
            (KEY_VALUE_NORM, vec![self.kv_rank]),
            (KEY_VALUE_UP, vec![heads * (self.unrotated + self.value_dim), self.kv_rank]),
            (names.attention_out, vec![width, heads * self.value_dim]),
            (names.feed_forward_norm, vec![width]),
        ];
        match self.query_rank {
            None => tensors.push((names.query, vec![q, width])),
            Some(rank) => tensors.extend([
                (QUERY_DOWN, vec![rank, width]),
                (QUERY_LATENT_NORM, vec![rank]),
                (QUERY_UP, vec![q, rank]),
            ]),
        }
        tensors.into_iter().map(|(name, shape)| (layer_tensor(name, layer), shape)).collect()
    }

    /// Attention of normed hidden states `[tokens, width]`, before its output projection:
    /// `[tokens, heads · value_dim]`.
    pub(super) fn attended(
        &self,
        weights: &LayerWeights,
        latent: &LatentWeights,
        input: &[f32],
        heads: usize,
        (layer, context): (usize, &mut Context),
    ) -> Vec<f32> {
        let queried = latent.query_latent(input);
        let q = weights.query.product(queried.as_deref().unwrap_or(input));
        let compressed = latent.key_value_latent(input);
        let k = weights.key.product(&compressed);
        let v = weights.value.product(&compressed);
        let mut rotated_k = latent.rotated_key.product(input);
        context.rotate(&mut rotated_k, 1);
        let (still, turned, of_value) = (self.unrotated, self.rotated, self.value_dim);
        let mut rotated_q: Vec<f32> =
            q.chunks_exact(still + turned).flat_map(|head| &head[still..]).copied().collect();
        context.rotate(&mut rotated_q, heads);

        // One size of head for all three, filled up with zeros: they add nothing to a product.
        let head_dim = (still + turned).max(of_value);
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        let scale = (self.score_factor * (head_dim as f64).sqrt()) as f32;
        let mut queries = vec![0.0; q.len() / (still + turned) * head_dim];
        let (mut keys, mut values) = (vec![0.0; queries.len()], vec![0.0; queries.len()]);
        for (at, query) in queries.chunks_exact_mut(head_dim).enumerate() {
            let own = &q[at * (still + turned)..][..still];
            let parts = own.iter().chain(&rotated_q[at * turned..][..turned]);
            query.iter_mut().zip(parts).for_each(|(to, from)| *to = from * scale);
        }
        for (at, key) in keys.chunks_exact_mut(head_dim).enumerate() {
            key[..still].copy_from_slice(&k[at * still..][..still]);
            let shared = &rotated_k[at / heads * turned..][..turned];
            key[still..still + turned].copy_from_slice(shared);
        }
        for (value, own) in values.chunks_exact_mut(head_dim).zip(v.chunks_exact(of_value)) {
            value[..of_value].copy_from_slice(own);
        }
        let attended = context.attend(layer, (&queries, &keys, &values), (heads, heads, head_dim));
        let of_heads = attended.chunks_exact(head_dim).flat_map(|head| &head[..of_value]);
        of_heads.copied().collect()
    }
}

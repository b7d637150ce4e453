//! The model families that can be loaded: one row a family, with what sets it apart.
//!
//! Tensor names are patterns in which `{layer}` and `{expert}` stand for numbers.

/// Token embedding, `[vocab, width]`.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Norm before the head, `[width]`.
pub const FINAL_NORM: &str = "model.norm.weight";
/// Output head, `[vocab, width]`; absent when it is tied to the embedding.
pub const HEAD: &str = "lm_head.weight";
/// Norm before attention, `[width]`.
pub const ATTENTION_NORM: &str = "model.layers.{layer}.input_layernorm.weight";
/// Query projection, `[heads · head_dim, width]`.
pub const QUERY: &str = "model.layers.{layer}.self_attn.q_proj.weight";
/// Key projection, `[kv_heads · head_dim, width]`.
pub const KEY: &str = "model.layers.{layer}.self_attn.k_proj.weight";
/// Value projection, `[kv_heads · head_dim, width]`.
pub const VALUE: &str = "model.layers.{layer}.self_attn.v_proj.weight";
/// Projection of the attended values, `[width, heads · head_dim]`.
pub const ATTENTION_OUT: &str = "model.layers.{layer}.self_attn.o_proj.weight";
/// Norm of the queries, where the family has one.
pub const QUERY_NORM: &str = "model.layers.{layer}.self_attn.q_norm.weight";
/// Norm of the keys, where the family has one.
pub const KEY_NORM: &str = "model.layers.{layer}.self_attn.k_norm.weight";
/// Norm before the feed-forward part, `[width]`.
pub const FEED_FORWARD_NORM: &str = "model.layers.{layer}.post_attention_layernorm.weight";

/// A family of checkpoints: decoder layers of attention and feed-forward with RMS norms before both.
#[derive(Debug)]
pub struct Architecture {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// Whether queries and keys pass an RMS norm over the whole projection, all heads together,
    /// before the rotation.
    pub query_key_norm: bool,
    /// What follows attention.
    pub feed_forward: FeedForward,
}

/// The feed-forward part of every layer.
#[derive(Debug)]
pub enum FeedForward {
    /// One SwiGLU network.
    Dense(Projections),
    /// A router and SwiGLU experts.
    Experts {
        /// Router projection, `[experts, width]`.
        router: &'static str,
        /// The matrices of one expert.
        expert: Projections,
        /// Key of `config.json` with the number of experts.
        experts_key: &'static str,
        /// Key of `config.json` with the hidden size of one expert.
        hidden_key: &'static str,
        /// Whether gates are divided by their sum when `norm_topk_prob` is absent.
        norm_top_k_default: bool,
    },
}

/// Names of the matrices of a SwiGLU network.
#[derive(Clone, Copy, Debug)]
pub struct Projections {
    /// `[hidden, width]`.
    pub gate: &'static str,
    /// `[hidden, width]`.
    pub up: &'static str,
    /// `[width, hidden]`.
    pub down: &'static str,
}

/// Every family that can be loaded.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "llama",
        query_key_norm: false,
        feed_forward: FeedForward::Dense(Projections {
            gate: "model.layers.{layer}.mlp.gate_proj.weight",
            up: "model.layers.{layer}.mlp.up_proj.weight",
            down: "model.layers.{layer}.mlp.down_proj.weight",
        }),
    },
    Architecture {
        model_type: "olmoe",
        query_key_norm: true,
        feed_forward: FeedForward::Experts {
            router: "model.layers.{layer}.mlp.gate.weight",
            expert: Projections {
                gate: "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
                up: "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
                down: "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
            },
            experts_key: "num_experts",
            hidden_key: "intermediate_size",
            norm_top_k_default: false,
        },
    },
];

/// The row of a `model_type`.
#[must_use]
pub fn architecture(model_type: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|row| row.model_type == model_type)
}

/// The name of a layer's tensor.
#[must_use]
pub fn layer_tensor(pattern: &str, layer: usize) -> String {
    pattern.replace("{layer}", &layer.to_string())
}

/// The name of an expert's tensor.
#[must_use]
pub fn expert_tensor(pattern: &str, layer: usize, expert: usize) -> String {
    layer_tensor(pattern, layer).replace("{expert}", &expert.to_string())
}

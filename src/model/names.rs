//! What the tensors of a checkpoint are called.
//!
//! Names are patterns in which `{layer}` and `{expert}` stand for numbers. The bias of a
//! projection is called like its weight, with `bias` at the end.

/// The names of all tensors of a model. Which of them a model has is the family's matter.
#[derive(Clone, Copy, Debug)]
pub struct TensorNames {
    /// Token embedding, `[vocab, width]`.
    pub embedding: &'static str,
    /// Norm before the head, `[width]`.
    pub final_norm: &'static str,
    /// Output head, `[vocab, width]`; absent when it is tied to the embedding.
    pub head: &'static str,
    /// Norm before attention, `[width]`.
    pub attention_norm: &'static str,
    /// Query projection, `[heads · head_dim, width]`.
    pub query: &'static str,
    /// Key projection, `[kv_heads · head_dim, width]`.
    pub key: &'static str,
    /// Value projection, `[kv_heads · head_dim, width]`.
    pub value: &'static str,
    /// Projection of the attended values, `[width, heads · head_dim]`.
    pub attention_out: &'static str,
    /// Norm of the queries.
    pub query_norm: &'static str,
    /// Norm of the keys.
    pub key_norm: &'static str,
    /// Norm before the feed-forward part, `[width]`.
    pub feed_forward_norm: &'static str,
    /// The feed-forward network of a dense layer.
    pub dense: Projections,
    /// Router projection, `[experts, width]`.
    pub router: &'static str,
    /// Added to an expert's score for selection, `[experts]`.
    pub selection_bias: &'static str,
    /// The experts.
    pub experts: ExpertNames,
    /// The shared expert.
    pub shared: Projections,
    /// Gate of the shared expert, `[1, width]` or `[width]`.
    pub shared_gate: &'static str,
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

/// How the experts of a layer are stored.
#[derive(Clone, Copy, Debug)]
pub enum ExpertNames {
    /// Each matrix of each expert is a tensor.
    Each(Projections),
    /// The same matrix of all experts is one tensor, with a first dimension for the expert.
    Stacked(Projections),
    /// As [`Self::Stacked`], with the gate's rows before the up projection's in one tensor.
    Fused {
        /// `[experts, 2 · hidden, width]`.
        gate_up: &'static str,
        /// `[experts, width, hidden]`.
        down: &'static str,
    },
}

impl ExpertNames {
    /// The name that tells whether experts are stored in this way.
    #[must_use]
    pub fn first(&self) -> &'static str {
        match self {
            Self::Each(parts) | Self::Stacked(parts) => parts.gate,
            Self::Fused { gate_up, .. } => gate_up,
        }
    }
}

/// Names in the Hugging Face layout, each expert by itself.
pub const HUGGING_FACE: TensorNames = TensorNames {
    embedding: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
    attention_norm: "model.layers.{layer}.input_layernorm.weight",
    query: "model.layers.{layer}.self_attn.q_proj.weight",
    key: "model.layers.{layer}.self_attn.k_proj.weight",
    value: "model.layers.{layer}.self_attn.v_proj.weight",
    attention_out: "model.layers.{layer}.self_attn.o_proj.weight",
    query_norm: "model.layers.{layer}.self_attn.q_norm.weight",
    key_norm: "model.layers.{layer}.self_attn.k_norm.weight",
    feed_forward_norm: "model.layers.{layer}.post_attention_layernorm.weight",
    dense: Projections {
        gate: "model.layers.{layer}.mlp.gate_proj.weight",
        up: "model.layers.{layer}.mlp.up_proj.weight",
        down: "model.layers.{layer}.mlp.down_proj.weight",
    },
    router: "model.layers.{layer}.mlp.gate.weight",
    selection_bias: "model.layers.{layer}.mlp.gate.e_score_correction_bias",
    experts: ExpertNames::Each(Projections {
        gate: "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
        up: "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
        down: "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
    }),
    shared: Projections {
        gate: "model.layers.{layer}.mlp.shared_expert.gate_proj.weight",
        up: "model.layers.{layer}.mlp.shared_expert.up_proj.weight",
        down: "model.layers.{layer}.mlp.shared_expert.down_proj.weight",
    },
    shared_gate: "model.layers.{layer}.mlp.shared_expert_gate.weight",
};

/// Names in the Hugging Face layout with the experts of a layer in two tensors, as version 5 of
/// the library holds them in memory.
pub const HUGGING_FACE_FUSED: TensorNames = TensorNames {
    experts: ExpertNames::Fused {
        gate_up: "model.layers.{layer}.mlp.experts.gate_up_proj",
        down: "model.layers.{layer}.mlp.experts.down_proj",
    },
    ..HUGGING_FACE
};

/// Names of Mixtral.
pub const MIXTRAL: TensorNames = TensorNames {
    router: "model.layers.{layer}.block_sparse_moe.gate.weight",
    experts: ExpertNames::Each(Projections {
        gate: "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
        up: "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
        down: "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
    }),
    ..HUGGING_FACE
};

/// Names in a GGUF file: the experts of a layer in three tensors, or in two, or, in old files, each
/// by itself.
pub const GGUF: &[TensorNames] = &[
    GGUF_STACKED,
    TensorNames {
        experts: ExpertNames::Fused {
            gate_up: "blk.{layer}.ffn_gate_up_exps.weight",
            down: "blk.{layer}.ffn_down_exps.weight",
        },
        ..GGUF_STACKED
    },
    TensorNames {
        experts: ExpertNames::Each(Projections {
            gate: "blk.{layer}.ffn_gate.{expert}.weight",
            up: "blk.{layer}.ffn_up.{expert}.weight",
            down: "blk.{layer}.ffn_down.{expert}.weight",
        }),
        ..GGUF_STACKED
    },
];

const GGUF_STACKED: TensorNames = TensorNames {
    embedding: "token_embd.weight",
    final_norm: "output_norm.weight",
    head: "output.weight",
    attention_norm: "blk.{layer}.attn_norm.weight",
    query: "blk.{layer}.attn_q.weight",
    key: "blk.{layer}.attn_k.weight",
    value: "blk.{layer}.attn_v.weight",
    attention_out: "blk.{layer}.attn_output.weight",
    query_norm: "blk.{layer}.attn_q_norm.weight",
    key_norm: "blk.{layer}.attn_k_norm.weight",
    feed_forward_norm: "blk.{layer}.ffn_norm.weight",
    dense: Projections {
        gate: "blk.{layer}.ffn_gate.weight",
        up: "blk.{layer}.ffn_up.weight",
        down: "blk.{layer}.ffn_down.weight",
    },
    router: "blk.{layer}.ffn_gate_inp.weight",
    selection_bias: "blk.{layer}.exp_probs_b.bias",
    experts: ExpertNames::Stacked(Projections {
        gate: "blk.{layer}.ffn_gate_exps.weight",
        up: "blk.{layer}.ffn_up_exps.weight",
        down: "blk.{layer}.ffn_down_exps.weight",
    }),
    shared: Projections {
        gate: "blk.{layer}.ffn_gate_shexp.weight",
        up: "blk.{layer}.ffn_up_shexp.weight",
        down: "blk.{layer}.ffn_down_shexp.weight",
    },
    shared_gate: "blk.{layer}.ffn_gate_inp_shexp.weight",
};

/// Names of DeepSeek, each expert by itself.
pub const DEEPSEEK: TensorNames = TensorNames {
    shared: Projections {
        gate: "model.layers.{layer}.mlp.shared_experts.gate_proj.weight",
        up: "model.layers.{layer}.mlp.shared_experts.up_proj.weight",
        down: "model.layers.{layer}.mlp.shared_experts.down_proj.weight",
    },
    ..HUGGING_FACE
};

/// Names of DeepSeek with the experts of a layer in two tensors.
pub const DEEPSEEK_FUSED: TensorNames =
    TensorNames { experts: HUGGING_FACE_FUSED.experts, ..DEEPSEEK };

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

/// The name of a projection's bias.
#[must_use]
pub fn bias(weight: &str) -> String {
    weight.strip_suffix("weight").map_or_else(|| weight.into(), |stem| format!("{stem}bias"))
}

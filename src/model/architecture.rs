//! The model families that can be loaded: one row a family, with what sets it apart.

use super::names::{self, TensorNames};
use agents::routing::{GroupWorth, ScoreFunction};

/// A family of checkpoints: decoder layers of attention and feed-forward with RMS norms before both.
#[derive(Debug)]
pub struct Architecture {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// `general.architecture` of a GGUF file; none where such files are not supported.
    pub gguf: Option<&'static str>,
    /// Whether queries, keys and values are made of low-rank latents (multi-head latent attention).
    pub latent_attention: bool,
    /// What queries and keys pass before the rotation.
    pub query_key_norm: QueryKeyNorm,
    /// Rotary base where the configuration names none.
    pub rope_theta_default: f64,
    /// Key of `config.json` that says whether attention has biases, and what it is when absent.
    pub attention_bias: AttentionBias,
    /// The routed layers; none for a dense family.
    pub moe: Option<MoeFamily>,
    /// Ways in which its tensors are named in `.safetensors` files; the first one whose experts are
    /// there is taken.
    pub names: &'static [TensorNames],
}

impl Architecture {
    /// Whether the shared expert's output is multiplied by a gate of its own.
    #[must_use]
    pub fn has_shared_gate(&self) -> bool {
        self.moe.as_ref().is_some_and(|moe| moe.shared == SharedExpert::Gated)
    }
}

/// The RMS norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// There is none.
    Absent,
    /// Over the whole projection, all heads together.
    AllHeads,
    /// Over each head by itself, with one weight for all heads.
    EachHead,
}

/// Where the configuration speaks of attention biases.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBias {
    /// The key.
    pub key: &'static str,
    /// When it is absent.
    pub default: bool,
    /// Whether the projection of the attended values has one too.
    pub output: bool,
}

/// How a family routes.
#[derive(Debug)]
pub struct MoeFamily {
    /// Keys of `config.json` with the number of experts: the first that is there counts.
    pub experts_keys: &'static [&'static str],
    /// Key with the hidden size of one expert.
    pub hidden_key: &'static str,
    /// How logits become scores.
    pub score: ScoreFunction,
    /// When gates are divided by their sum.
    pub normalise: Normalise,
    /// How a token is limited to some groups, where the family can do so.
    pub groups: Option<GroupFamily>,
    /// Whether each expert has a bias for selection.
    pub selection_bias: bool,
    /// A network that every token passes besides its experts.
    pub shared: SharedExpert,
}

/// How a family limits a token to some groups of experts.
#[derive(Clone, Copy, Debug)]
pub struct GroupFamily {
    /// By what the best groups are found.
    pub worth: GroupWorth,
    /// `topk_method` that asks for it.
    pub method: &'static str,
    /// `topk_method` when it is absent.
    pub default_method: &'static str,
}

/// When the gates of a token are divided by their sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalise {
    /// Always.
    Always,
    /// Never; a configuration that asks for it is refused.
    Never,
    /// As `norm_topk_prob` says, or as here when it is absent.
    Key(bool),
}

/// The shared experts of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedExpert {
    /// There are none.
    Absent,
    /// One, of its own size, whose output is multiplied by the sigmoid of one more logit.
    Gated,
    /// `n_shared_experts` of the size of an expert each, stored as one network.
    Plain,
}

const NO_BIAS: AttentionBias =
    AttentionBias { key: "attention_bias", default: false, output: true };

/// Softmax over all experts; nothing else.
const SOFTMAX: MoeFamily = MoeFamily {
    experts_keys: &["num_experts", "num_local_experts"],
    hidden_key: "moe_intermediate_size",
    score: ScoreFunction::Softmax,
    normalise: Normalise::Key(false),
    groups: None,
    selection_bias: false,
    shared: SharedExpert::Absent,
};

/// Every family that can be loaded.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "llama",
        gguf: Some("llama"),
        latent_attention: false,
        query_key_norm: QueryKeyNorm::Absent,
        rope_theta_default: 10_000.0,
        attention_bias: NO_BIAS,
        moe: None,
        names: &[names::HUGGING_FACE],
    },
    Architecture {
        model_type: "olmoe",
        gguf: Some("olmoe"),
        latent_attention: false,
        query_key_norm: QueryKeyNorm::AllHeads,
        rope_theta_default: 10_000.0,
        attention_bias: NO_BIAS,
        moe: Some(MoeFamily { hidden_key: "intermediate_size", ..SOFTMAX }),
        names: &[names::HUGGING_FACE, names::HUGGING_FACE_FUSED],
    },
    Architecture {
        model_type: "mixtral",
        gguf: Some("llama"),
        latent_attention: false,
        query_key_norm: QueryKeyNorm::Absent,
        rope_theta_default: 1_000_000.0,
        attention_bias: NO_BIAS,
        moe: Some(MoeFamily {
            experts_keys: &["num_local_experts", "num_experts"],
            hidden_key: "intermediate_size",
            normalise: Normalise::Always,
            ..SOFTMAX
        }),
        names: &[names::MIXTRAL, names::HUGGING_FACE_FUSED],
    },
    Architecture {
        model_type: "qwen2_moe",
        gguf: Some("qwen2moe"),
        latent_attention: false,
        query_key_norm: QueryKeyNorm::Absent,
        rope_theta_default: 10_000.0,
        attention_bias: AttentionBias { key: "qkv_bias", default: true, output: false },
        moe: Some(MoeFamily { shared: SharedExpert::Gated, ..SOFTMAX }),
        names: &[names::HUGGING_FACE, names::HUGGING_FACE_FUSED],
    },
    Architecture {
        model_type: "qwen3_moe",
        gguf: Some("qwen3moe"),
        latent_attention: false,
        query_key_norm: QueryKeyNorm::EachHead,
        rope_theta_default: 10_000.0,
        attention_bias: NO_BIAS,
        moe: Some(SOFTMAX),
        names: &[names::HUGGING_FACE, names::HUGGING_FACE_FUSED],
    },
    Architecture {
        model_type: "deepseek_v2",
        gguf: None,
        latent_attention: true,
        query_key_norm: QueryKeyNorm::Absent,
        rope_theta_default: 10_000.0,
        attention_bias: NO_BIAS,
        moe: Some(MoeFamily {
            experts_keys: &["n_routed_experts", "num_experts"],
            // The authors' own code and the library disagree on what normalising would do.
            normalise: Normalise::Never,
            groups: Some(GroupFamily {
                worth: GroupWorth::Best,
                method: "group_limited_greedy",
                default_method: "greedy",
            }),
            shared: SharedExpert::Plain,
            ..SOFTMAX
        }),
        names: &[names::DEEPSEEK, names::DEEPSEEK_FUSED],
    },
    Architecture {
        model_type: "deepseek_v3",
        gguf: None,
        latent_attention: true,
        query_key_norm: QueryKeyNorm::Absent,
        rope_theta_default: 10_000.0,
        attention_bias: NO_BIAS,
        moe: Some(MoeFamily {
            experts_keys: &["n_routed_experts", "num_experts", "num_local_experts"],
            score: ScoreFunction::Sigmoid,
            normalise: Normalise::Key(true),
            groups: Some(GroupFamily {
                worth: GroupWorth::BestTwo,
                method: "noaux_tc",
                default_method: "noaux_tc",
            }),
            selection_bias: true,
            shared: SharedExpert::Plain,
            ..SOFTMAX
        }),
        names: &[names::DEEPSEEK, names::DEEPSEEK_FUSED],
    },
];

/// The row of a `model_type`.
#[must_use]
pub fn architecture(model_type: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|row| row.model_type == model_type)
}

/// Every `model_type` that can be loaded, for messages.
#[must_use]
pub fn supported_model_types() -> String {
    let known: Vec<_> = ARCHITECTURES.iter().map(|row| row.model_type).collect();
    known.join(", ")
}

#[cfg(test)]
mod tests {
    use super::ARCHITECTURES;

    #[test]
    fn the_page_of_checkpoints_lists_every_family_and_no_other() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/checkpoints.md");
        let page = std::fs::read_to_string(path).expect("the page is there");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `")).skip(1);
        let listed: Vec<(String, String)> = rows
            .filter_map(|row| {
                let (family, rest) = row.split_once("` | ")?;
                Some((family.to_owned(), rest.split_once(" | ")?.0.to_owned()))
            })
            .collect();
        let gguf = |name: Option<&str>| name.map_or("no".to_owned(), |name| format!("`{name}`"));
        let known: Vec<(String, String)> =
            ARCHITECTURES.iter().map(|row| (row.model_type.to_owned(), gguf(row.gguf))).collect();
        assert_eq!(listed, known);
    }
}

//! `config.json` of a checkpoint: sizes and switches, and a refusal of what is not supported.

use super::architecture::{
    Architecture, GroupFamily, MoeFamily, Normalise, SharedExpert, architecture,
    supported_model_types,
};
use super::keys::Keys;
use super::latent::LatentConfig;
use agents::routing::{GroupLimit, Routing, ScoreFunction};
use serde_json::Value;

/// Sizes and switches of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family, a row of [`super::architecture::ARCHITECTURES`].
    pub model_type: &'static str,
    /// Length of a token's hidden state.
    pub width: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Components of a head, even.
    pub head_dim: usize,
    /// Hidden size of the dense feed-forward networks; 0 where every layer is routed.
    pub hidden: usize,
    /// Symbols of the vocabulary.
    pub vocab: usize,
    /// Longest window the model was made for, in tokens.
    pub max_positions: usize,
    /// Added to the mean square in RMS norms.
    pub rms_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// Whether queries, keys and values have biases.
    pub attention_bias: bool,
    /// Bound on the magnitude of queries, keys and values.
    pub clip_qkv: Option<f32>,
    /// Present where queries, keys and values are made of latents. Then `head_dim` counts the
    /// rotated components of a head alone.
    pub latent: Option<LatentConfig>,
    /// Present for Mixture-of-Experts models.
    pub moe: Option<MoeConfig>,
    /// The routed layers, ascending; the others are dense.
    pub routed_layers: Vec<usize>,
}

/// The routed part of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MoeConfig {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts a token is sent to.
    pub top_k: usize,
    /// Hidden size of one expert.
    pub hidden: usize,
    /// Hidden size of the shared expert, where there is one.
    pub shared_hidden: Option<usize>,
    /// The routing that the model was trained with.
    pub routing: Routing,
}

/// Sizes above these are refused: they bound what a hostile file can make us enumerate.
pub(super) const MAX_LAYERS: usize = 1024;
const MAX_EXPERTS: usize = 4096;

impl ModelConfig {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// Every reason why this model cannot be run, each naming its key.
    pub fn from_json(json: &Value) -> Result<(Self, &'static Architecture), Vec<String>> {
        let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let Some(family) = architecture(model_type) else {
            let known = supported_model_types();
            return Err(vec![format!("`model_type` is {model_type:?}; supported are {known}")]);
        };
        let mut keys = Keys { json, problems: Vec::new() };
        refuse_unsupported(&mut keys, family);
        let config = read(&mut keys, family);
        check_sizes(&mut keys, &config);
        if keys.problems.is_empty() { Ok((config, family)) } else { Err(keys.problems) }
    }
}

fn read(keys: &mut Keys<'_>, family: &'static Architecture) -> ModelConfig {
    let (width, heads) = (keys.size("hidden_size"), keys.size("num_attention_heads"));
    let layers = keys.size("num_hidden_layers");
    let moe = family.moe.as_ref().map(|family| read_moe(keys, family));
    let routed_layers = if moe.is_some() { routed_layers(keys, layers) } else { Vec::new() };
    let is_dense = |layers: usize| routed_layers.len() < layers;
    let rope_theta = rope_theta(keys, family.rope_theta_default);
    let latent = family.latent_attention.then(|| LatentConfig::read(keys, rope_theta));
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    let (rms_eps, clip_qkv) = (
        keys.positive("rms_norm_eps", None) as f32,
        keys.present("clip_qkv").is_some().then(|| keys.positive("clip_qkv", None) as f32),
    );
    ModelConfig {
        model_type: family.model_type,
        width,
        layers,
        heads,
        kv_heads: keys.optional_size("num_key_value_heads").unwrap_or(heads),
        head_dim: match &latent {
            Some(latent) => latent.rotated,
            None => keys.optional_size("head_dim").unwrap_or(width / heads.max(1)),
        },
        hidden: if is_dense(layers) { keys.size("intermediate_size") } else { 0 },
        vocab: keys.size("vocab_size"),
        max_positions: keys.size("max_position_embeddings"),
        rms_eps,
        rope_theta,
        tied_head: keys.flag("tie_word_embeddings", false),
        attention_bias: keys.flag(family.attention_bias.key, family.attention_bias.default),
        clip_qkv,
        latent,
        moe,
        routed_layers,
    }
}

fn read_moe(keys: &mut Keys<'_>, family: &MoeFamily) -> MoeConfig {
    let experts_key = family.experts_keys.iter().find(|key| keys.present(key).is_some());
    let hidden = keys.size(family.hidden_key);
    let normalise = match family.normalise {
        Normalise::Always => true,
        Normalise::Key(default) => keys.flag("norm_topk_prob", default),
        Normalise::Never => {
            if keys.flag("norm_topk_prob", false) {
                let problem = "`norm_topk_prob` is true; this family's gates are not normalised";
                keys.problems.push(problem.into());
            }
            false
        }
    };
    MoeConfig {
        experts: keys.size(experts_key.unwrap_or(&family.experts_keys[0])),
        top_k: keys.size("num_experts_per_tok"),
        hidden,
        shared_hidden: match family.shared {
            SharedExpert::Absent => None,
            SharedExpert::Gated => Some(keys.size("shared_expert_intermediate_size")),
            SharedExpert::Plain => {
                let experts = keys.count("n_shared_experts");
                (experts > 0).then(|| experts.saturating_mul(hidden))
            }
        },
        routing: Routing {
            score: family.score,
            groups: family.groups.and_then(|family| read_groups(keys, family)),
            normalise,
            #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
            scale: keys.positive("routed_scaling_factor", Some(1.0)) as f32,
        },
    }
}

fn read_groups(keys: &mut Keys<'_>, family: GroupFamily) -> Option<GroupLimit> {
    let method = keys.present("topk_method").map_or(Some(family.default_method), Value::as_str);
    if method == Some("greedy") && family.default_method == "greedy" {
        return None;
    }
    if method != Some(family.method) {
        let (known, default) = (family.method, family.default_method);
        keys.problems
            .push(format!("`topk_method` is {method:?}; supported are {known}, {default}"));
    }
    let groups = keys.size("n_group");
    let kept = keys.size("topk_group");
    (groups > 1).then_some(GroupLimit { groups, kept, worth: family.worth })
}

/// Layers below `first_k_dense_replace`, those of `mlp_only_layers`, and all but each
/// `decoder_sparse_step`-th are dense.
fn routed_layers(keys: &mut Keys<'_>, layers: usize) -> Vec<usize> {
    let first = keys.count("first_k_dense_replace");
    let step = keys.optional_size("decoder_sparse_step").unwrap_or(1);
    let dense: Vec<u64> = match keys.present("mlp_only_layers").map(Value::as_array) {
        None => Vec::new(),
        Some(list) => {
            let list = list.and_then(|list| list.iter().map(Value::as_u64).collect());
            list.unwrap_or_else(|| {
                keys.problems.push("`mlp_only_layers` is not a list of layers".into());
                Vec::new()
            })
        }
    };
    let is_routed = |layer: &usize| {
        *layer >= first && (layer + 1).is_multiple_of(step) && !dense.contains(&(*layer as u64))
    };
    let routed: Vec<usize> = (0..layers.min(MAX_LAYERS)).filter(is_routed).collect();
    if routed.is_empty() && layers > 0 {
        keys.problems.push(
            "no layer is routed: `first_k_dense_replace`, `mlp_only_layers` or \
             `decoder_sparse_step` makes all of them dense"
                .into(),
        );
    }
    routed
}

/// What would run but give wrong numbers.
fn refuse_unsupported(keys: &mut Keys<'_>, family: &Architecture) {
    match keys.present("hidden_act").map(Value::as_str) {
        Some(Some("silu")) => {}
        other => keys.problems.push(format!(
            "`hidden_act` is {}; only \"silu\" is supported",
            other.flatten().map_or("absent or not text".into(), |name| format!("{name:?}"))
        )),
    }
    if let (Some(moe), Some(score)) = (&family.moe, keys.present("scoring_func")) {
        let own = if moe.score == ScoreFunction::Softmax { "softmax" } else { "sigmoid" };
        if score != own {
            keys.problems.push(format!("`scoring_func` is {score}; this family's is \"{own}\""));
        }
    }
    if keys.present("moe_layer_freq").is_some_and(|step| *step != 1) {
        keys.problems.push("`moe_layer_freq` is not 1; that is not supported".into());
    }
    if family.latent_attention && keys.flag("attention_bias", false) {
        let problem = "`attention_bias` is true; latent attention has none here";
        keys.problems.push(problem.into());
    }
    if keys.flag("mlp_bias", false) {
        keys.problems.push("`mlp_bias` is true; biases of networks are not supported".into());
    }
    if keys.present("quantization_config").is_some() {
        keys.problems.push(
            "`quantization_config` is set; weights must be f32, f16 or bf16, or a GGUF file".into(),
        );
    }
    if keys.present("sliding_window").is_some() && keys.flag("use_sliding_window", true) {
        keys.problems.push("`sliding_window` is set; only full attention is supported".into());
    }
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = keys.present(key) else { continue };
        let kind = rope.get("rope_type").or_else(|| rope.get("type"));
        // Latent attention reads this one itself.
        let is_yarn = family.latent_attention && kind.is_some_and(|kind| kind == "yarn");
        if !is_yarn && !kind.is_none_or(|kind| kind == "default") {
            let kind = kind.map(Value::to_string).unwrap_or_default();
            keys.problems.push(format!("`{key}` asks for {kind}; only \"default\" is supported"));
        }
        let partial = rope.get("partial_rotary_factor").and_then(Value::as_f64);
        if partial.is_some_and(|factor| factor != 1.0) {
            keys.problems.push(format!("`{key}.partial_rotary_factor` must be 1"));
        }
    }
}

fn check_sizes(keys: &mut Keys<'_>, config: &ModelConfig) {
    let has_head_dim = keys.present("head_dim").is_some();
    let mut check = |good: bool, text: String| {
        if !good {
            keys.problems.push(text);
        }
    };
    let ModelConfig { width, heads, kv_heads, head_dim, layers, .. } = *config;
    check(layers <= MAX_LAYERS, format!("`num_hidden_layers` is {layers}; at most {MAX_LAYERS}"));
    if heads > 0 && kv_heads > 0 {
        check(
            heads.is_multiple_of(kv_heads),
            format!("`num_key_value_heads` is {kv_heads}, which does not divide {heads} heads"),
        );
        check(
            has_head_dim || config.latent.is_some() || width.is_multiple_of(heads),
            format!("`hidden_size` is {width}, which {heads} heads do not divide"),
        );
    }
    check(head_dim.is_multiple_of(2), format!("`head_dim` is {head_dim}; it must be even"));
    if let Some(MoeConfig { experts, top_k, routing, .. }) = config.moe {
        check(
            experts <= MAX_EXPERTS,
            format!("there are {experts} experts; at most {MAX_EXPERTS}"),
        );
        check(
            top_k <= experts,
            format!("`num_experts_per_tok` is {top_k} but there are {experts} experts"),
        );
        if let Some(GroupLimit { groups, kept, .. }) = routing.groups {
            check(
                experts.is_multiple_of(groups),
                format!("`n_group` is {groups}, which does not divide {experts} experts"),
            );
            check(
                kept <= groups && top_k <= kept.saturating_mul(experts / groups),
                format!(
                    "`topk_group` is {kept} of {groups} groups, which must hold {top_k} experts"
                ),
            );
        }
    }
}

/// Both places where it is written, or what the family's library assumes.
fn rope_theta(keys: &mut Keys<'_>, default: f64) -> f64 {
    match keys.present("rope_parameters").filter(|rope| rope.get("rope_theta").is_some()) {
        Some(rope) => {
            let mut inner = Keys { json: rope, problems: Vec::new() };
            let theta = inner.positive("rope_theta", None);
            keys.problems.extend(inner.problems);
            theta
        }
        None => keys.positive("rope_theta", Some(default)),
    }
}

#[cfg(test)]
mod tests {
    use super::ModelConfig;
    use serde_json::{Value, json};

    fn olmoe() -> Value {
        json!({
            "model_type": "olmoe", "hidden_act": "silu", "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 32,
            "vocab_size": 100, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
            "num_experts": 8, "num_experts_per_tok": 2, "rope_theta": 5e5
        })
    }

    #[test]
    fn both_places_of_the_rotary_base_are_read() {
        let mut json = olmoe();
        assert_eq!(ModelConfig::from_json(&json).expect("valid").0.rope_theta, 5e5);
        json["rope_parameters"] = json!({"rope_theta": 7e4, "rope_type": "default"});
        assert_eq!(ModelConfig::from_json(&json).expect("valid").0.rope_theta, 7e4);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_key() {
        let cases = [
            ("model_type", json!("mamba"), "supported are llama, olmoe"),
            ("hidden_act", json!("gelu"), "`hidden_act` is \"gelu\""),
            ("attention_bias", json!("no"), "`attention_bias` is \"no\""),
            ("mlp_bias", json!(true), "`mlp_bias` is true"),
            ("mlp_only_layers", json!("all"), "`mlp_only_layers` is not a list of layers"),
            ("mlp_only_layers", json!([0, 1]), "no layer is routed"),
            ("decoder_sparse_step", json!(0), "`decoder_sparse_step` is 0"),
            ("mlp_bias", json!("no"), "`mlp_bias` is \"no\""),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), "asks for \"yarn\""),
            ("rope_scaling", json!({"type": "linear", "factor": 2.0}), "asks for \"linear\""),
            ("rope_parameters", json!({"rope_type": "llama3"}), "asks for \"llama3\""),
            ("rope_theta", json!(-1.0), "`rope_theta` must be a positive number"),
            ("sliding_window", json!(4096), "`sliding_window` is set"),
            ("quantization_config", json!({"bits": 4}), "`quantization_config` is set"),
            ("hidden_size", json!(null), "`hidden_size` is missing"),
            ("hidden_size", json!(60), "`hidden_size` is 60"),
            ("num_hidden_layers", json!(1_000_000), "`num_hidden_layers` is 1000000"),
            ("num_experts", json!(0), "`num_experts` is 0"),
            ("num_experts_per_tok", json!(9), "`num_experts_per_tok` is 9"),
            ("num_key_value_heads", json!(3), "`num_key_value_heads` is 3"),
            ("head_dim", json!(7), "`head_dim` is 7"),
            ("vocab_size", json!(1e30), "`vocab_size` is 1e+30"),
            ("rms_norm_eps", json!("tiny"), "`rms_norm_eps` must be"),
        ];
        for (key, value, message) in cases {
            let mut json = olmoe();
            json[key] = value;
            let problems = ModelConfig::from_json(&json).expect_err(key).join("; ");
            assert!(problems.contains(message), "{key}: {problems}");
        }
    }
}

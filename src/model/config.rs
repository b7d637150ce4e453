//! `config.json` of a checkpoint: sizes and switches, and a refusal of what is not supported.

use super::architecture::{Architecture, FeedForward, architecture};
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
    /// Hidden size of the dense feed-forward network, or of one expert.
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
    /// Bound on the magnitude of queries, keys and values.
    pub clip_qkv: Option<f32>,
    /// Present for Mixture-of-Experts models; every layer has one then.
    pub moe: Option<MoeConfig>,
}

/// The routed part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoeConfig {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts a token is sent to.
    pub top_k: usize,
    /// Whether the gates of a token are divided by their sum.
    pub norm_top_k: bool,
}

/// Sizes above these are refused: they bound what a hostile file can make us enumerate.
const MAX_SIZE: u64 = 1 << 24;
const MAX_LAYERS: usize = 1024;
const MAX_EXPERTS: usize = 4096;

impl ModelConfig {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// Every reason why this model cannot be run, each naming its key.
    pub fn from_json(json: &Value) -> Result<(Self, &'static Architecture), Vec<String>> {
        let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let Some(family) = architecture(model_type) else {
            let known: Vec<_> =
                super::architecture::ARCHITECTURES.iter().map(|row| row.model_type).collect();
            return Err(vec![format!(
                "`model_type` is {model_type:?}; supported are {}",
                known.join(", ")
            )]);
        };
        let mut keys = Keys { json, problems: Vec::new() };
        keys.refuse_unsupported();
        let config = keys.config(family);
        keys.check_sizes(&config);
        if keys.problems.is_empty() { Ok((config, family)) } else { Err(keys.problems) }
    }
}

/// Reads keys and keeps what is wrong with them.
struct Keys<'a> {
    json: &'a Value,
    problems: Vec<String>,
}

impl<'a> Keys<'a> {
    fn config(&mut self, family: &'static Architecture) -> ModelConfig {
        let (width, heads) = (self.size("hidden_size"), self.size("num_attention_heads"));
        let (hidden_key, moe) = match &family.feed_forward {
            FeedForward::Dense(_) => ("intermediate_size", None),
            FeedForward::Experts { experts_key, hidden_key, norm_top_k_default, .. } => {
                let moe = MoeConfig {
                    experts: self.size(experts_key),
                    top_k: self.size("num_experts_per_tok"),
                    norm_top_k: self.flag("norm_topk_prob", *norm_top_k_default),
                };
                (*hidden_key, Some(moe))
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        let (rms_eps, clip_qkv) = (
            self.positive("rms_norm_eps", None) as f32,
            self.present("clip_qkv").is_some().then(|| self.positive("clip_qkv", None) as f32),
        );
        ModelConfig {
            model_type: family.model_type,
            width,
            layers: self.size("num_hidden_layers"),
            heads,
            kv_heads: self.optional_size("num_key_value_heads").unwrap_or(heads),
            head_dim: self.optional_size("head_dim").unwrap_or(width / heads.max(1)),
            hidden: self.size(hidden_key),
            vocab: self.size("vocab_size"),
            max_positions: self.size("max_position_embeddings"),
            rms_eps,
            rope_theta: self.rope_theta(),
            tied_head: self.flag("tie_word_embeddings", false),
            clip_qkv,
            moe,
        }
    }

    /// What would run but give wrong numbers.
    fn refuse_unsupported(&mut self) {
        match self.present("hidden_act").map(Value::as_str) {
            Some(Some("silu")) => {}
            other => self.problems.push(format!(
                "`hidden_act` is {}; only \"silu\" is supported",
                other.flatten().map_or("absent or not text".into(), |name| format!("{name:?}"))
            )),
        }
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key, false) {
                self.problems.push(format!("`{key}` is true; biases are not supported"));
            }
        }
        if self.present("quantization_config").is_some() {
            self.problems
                .push("`quantization_config` is set; weights must be f32, f16 or bf16".into());
        }
        if self.present("sliding_window").is_some() && self.flag("use_sliding_window", true) {
            self.problems.push("`sliding_window` is set; only full attention is supported".into());
        }
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(rope) = self.present(key) else { continue };
            let kind = rope.get("rope_type").or_else(|| rope.get("type"));
            if !kind.is_none_or(|kind| kind == "default") {
                let kind = kind.map(Value::to_string).unwrap_or_default();
                self.problems
                    .push(format!("`{key}` asks for {kind}; only \"default\" is supported"));
            }
            let partial = rope.get("partial_rotary_factor").and_then(Value::as_f64);
            if partial.is_some_and(|factor| factor != 1.0) {
                self.problems.push(format!("`{key}.partial_rotary_factor` must be 1"));
            }
        }
    }

    fn check_sizes(&mut self, config: &ModelConfig) {
        let mut check = |good: bool, text: String| {
            if !good {
                self.problems.push(text);
            }
        };
        let ModelConfig { width, heads, kv_heads, head_dim, layers, .. } = *config;
        check(
            layers <= MAX_LAYERS,
            format!("`num_hidden_layers` is {layers}; at most {MAX_LAYERS}"),
        );
        if heads > 0 && kv_heads > 0 {
            check(
                heads.is_multiple_of(kv_heads),
                format!("`num_key_value_heads` is {kv_heads}, which does not divide {heads} heads"),
            );
            check(
                self.json.get("head_dim").is_some_and(|d| !d.is_null())
                    || width.is_multiple_of(heads),
                format!("`hidden_size` is {width}, which {heads} heads do not divide"),
            );
        }
        check(head_dim.is_multiple_of(2), format!("`head_dim` is {head_dim}; it must be even"));
        if let Some(MoeConfig { experts, top_k, .. }) = config.moe {
            check(
                experts <= MAX_EXPERTS,
                format!("there are {experts} experts; at most {MAX_EXPERTS}"),
            );
            check(
                top_k <= experts,
                format!("`num_experts_per_tok` is {top_k} but there are {experts} experts"),
            );
        }
    }

    /// The value of a key that is there and not null.
    fn present(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn size(&mut self, key: &str) -> usize {
        self.optional_size(key).unwrap_or_else(|| {
            if self.present(key).is_none() {
                self.problems.push(format!("`{key}` is missing"));
            }
            0
        })
    }

    fn optional_size(&mut self, key: &str) -> Option<usize> {
        let value = self.present(key)?;
        match value.as_u64() {
            Some(size @ 1..=MAX_SIZE) => usize::try_from(size).ok(),
            _ => {
                self.problems.push(format!("`{key}` is {value}; it must be 1 to {MAX_SIZE}"));
                None
            }
        }
    }

    fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(value) = self.present(key) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.problems.push(format!("`{key}` is {value}; it must be true or false"));
            default
        })
    }

    fn positive(&mut self, key: &str, default: Option<f64>) -> f64 {
        match (self.present(key), default) {
            (None, Some(default)) => default,
            (value, _) => match value.and_then(Value::as_f64) {
                Some(number) if number > 0.0 && number.is_finite() => number,
                _ => {
                    self.problems.push(format!("`{key}` must be a positive number"));
                    1.0
                }
            },
        }
    }

    /// Both places where it is written; 10,000 is what the library assumes when it is in neither.
    fn rope_theta(&mut self) -> f64 {
        match self.present("rope_parameters").filter(|rope| rope.get("rope_theta").is_some()) {
            Some(rope) => {
                let mut keys = Keys { json: rope, problems: Vec::new() };
                let theta = keys.positive("rope_theta", None);
                self.problems.extend(keys.problems);
                theta
            }
            None => self.positive("rope_theta", Some(10_000.0)),
        }
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
            ("attention_bias", json!(true), "`attention_bias` is true"),
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

//! The configuration of a GGUF file, put into the words of `config.json` so that both kinds of
//! checkpoints pass the same checks.

use super::architecture::ARCHITECTURES;
use super::config::MAX_LAYERS;
use super::gguf::{Entry, Header};
use super::names::{self, GGUF};
use super::weights::Weights;
use serde_json::{Map, Value, json};

/// The architecture whose queries and keys are stored in another order of rows. It names both the
/// dense family and Mixtral, which has experts.
pub(super) const LLAMA: &str = "llama";

/// Keys after the architecture's prefix, and what `config.json` calls them. Those without which
/// nothing can run are checked where `config.json` is.
const SIZES: [(&str, &str); 13] = [
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("feed_forward_length", "intermediate_size"),
    ("context_length", "max_position_embeddings"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("rope.freq_base", "rope_theta"),
    ("attention.clamp_kqv", "clip_qkv"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
];

/// The `config.json` that a GGUF file would have.
///
/// # Errors
/// What is not supported, each with its key.
pub(super) fn config_json(header: &Header, weights: &Weights) -> Result<Value, Vec<String>> {
    let Some(arch) = header.text("general.architecture") else {
        return Err(vec!["`general.architecture` is missing".into()]);
    };
    let read = |key: &str| header.metadata.get(&format!("{arch}.{key}"));
    let experts = match read("expert_count") {
        Some(Entry::Unsigned(count)) if *count > 0 => Some(*count),
        _ => None,
    };
    let rows = ARCHITECTURES.iter().filter(|row| row.gguf == Some(arch));
    let Some(family) = rows.into_iter().find(|row| row.moe.is_some() == experts.is_some()) else {
        let mut known: Vec<_> = ARCHITECTURES.iter().filter_map(|row| row.gguf).collect();
        known.sort_unstable();
        known.dedup();
        return Err(vec![format!(
            "`general.architecture` is {arch:?} with {} experts; supported are {}",
            experts.unwrap_or(0),
            known.join(", ")
        )]);
    };
    let mut problems = unsupported(header, weights, arch);
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| drop(config.insert(key.into(), value));
    for (from, to) in SIZES {
        match read(from) {
            None => {}
            Some(Entry::Unsigned(size)) => set(to, json!(size)),
            Some(Entry::Signed(size)) => set(to, json!(size)),
            // Written as f32: the shortest text that reads back as the same f32 is what was meant.
            Some(Entry::Float(number)) => set(to, json!(shortest(*number))),
            Some(_) => problems.push(format!("`{arch}.{from}` is not a number")),
        }
    }
    set("model_type", json!(family.model_type));
    set("hidden_act", json!("silu"));
    if let (Some(moe), Some(experts)) = (&family.moe, experts) {
        set(moe.experts_keys[0], json!(experts));
        // Files of these families seldom say so: it is what their readers assume.
        let normalise = match read("expert_weights_norm") {
            Some(Entry::Flag(normalise)) => *normalise,
            _ => arch == "qwen3moe",
        };
        set("norm_topk_prob", json!(normalise));
        // A file does not list its dense layers: they are those with one network and no router.
        let layers = config_layers(read("block_count"));
        let is_dense = |layer: &usize| {
            let there = |pattern| weights.find(&names::layer_tensor(pattern, *layer)).is_some();
            there(GGUF[0].dense.gate) && !there(GGUF[0].router)
        };
        set("mlp_only_layers", json!((0..layers).filter(is_dense).collect::<Vec<_>>()));
    }
    let first_layer = |pattern: &str| weights.find(&names::layer_tensor(pattern, 0));
    set("tie_word_embeddings", json!(weights.find(GGUF[0].head).is_none()));
    set(family.attention_bias.key, json!(first_layer(&names::bias(GGUF[0].query)).is_some()));
    if let Some((_, embedding)) = weights.find(GGUF[0].embedding) {
        set("vocab_size", json!(embedding.shape.first()));
    }
    if problems.is_empty() { Ok(Value::Object(config)) } else { Err(problems) }
}

/// What would run but give wrong numbers.
fn unsupported(header: &Header, weights: &Weights, arch: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let read = |key: &str| header.metadata.get(&format!("{arch}.{key}"));
    let unsigned = |key: &str| match read(key) {
        Some(Entry::Unsigned(number)) => Some(*number),
        _ => None,
    };
    if !matches!(header.metadata.get("split.count"), None | Some(Entry::Unsigned(0 | 1))) {
        problems.push("it is one of several parts: join them to one file first".into());
    }
    if weights.find("rope_freqs.weight").is_some() {
        let problem = "tensor rope_freqs.weight scales rotary frequencies; it is not supported";
        problems.push(problem.into());
    }
    let heads = unsigned("attention.head_count").filter(|heads| *heads > 0);
    let width = unsigned("embedding_length").zip(heads).map(|(width, heads)| width / heads);
    let head = unsigned("attention.key_length").or(width);
    let whole = |rotated: &Entry| head.is_none_or(|head| *rotated == Entry::Unsigned(head));
    type Fits<'a> = &'a dyn Fn(&Entry) -> bool;
    let switches: [(&str, &str, Fits<'_>); 5] = [
        ("rope.scaling.type", "none", &|entry| *entry == Entry::Text("none".into())),
        ("rope.dimension_count", "a whole head", &whole),
        ("attention.sliding_window", "0", &|entry| *entry == Entry::Unsigned(0)),
        ("expert_gating_func", "softmax, 1,", &|entry| matches!(entry, Entry::Unsigned(0 | 1))),
        (
            "expert_weights_scale",
            "1",
            &|entry| matches!(entry, Entry::Float(scale) if [0.0, 1.0].contains(scale)),
        ),
    ];
    for (key, supported, fits) in switches {
        if let Some(entry) = read(key).filter(|entry| !fits(entry)) {
            problems.push(format!("`{arch}.{key}` is {entry}; only {supported} is supported"));
        }
    }
    problems
}

/// Layers that may be dense, of which there is a sensible number.
fn config_layers(block_count: Option<&Entry>) -> usize {
    match block_count {
        Some(Entry::Unsigned(count)) => usize::try_from(*count).unwrap_or(0).min(MAX_LAYERS),
        _ => 0,
    }
}

/// The decimal number that an f32 was most likely written from.
fn shortest(number: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "the number was an f32 in most files")]
    let narrow = number as f32;
    if f64::from(narrow) == number { narrow.to_string().parse().unwrap_or(number) } else { number }
}

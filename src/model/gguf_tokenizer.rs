//! The tokenizer in a GGUF file, put into the words of `tokenizer.json`.
//!
//! Byte-level BPE is supported, with the rules for cutting words that are known here by name. GGUF
//! files do not say how text is normalised before; the tokenizers of these rules do no more than
//! compose characters (NFC), which leaves most texts as they are.

use super::checkpoint::CheckpointError;
use super::gguf::Header;
use super::weights::map_gguf;
use serde_json::{Value, json};
use std::path::Path;

/// What `tokenizer.ggml.pre` may be, and the pattern of a word; `None` is GPT-2's own.
const WORDS: [(&str, Option<&str>); 4] = [
    ("gpt-2", None),
    ("olmo", None),
    (
        "qwen2",
        Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    (
        "llama-bpe",
        Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
];

/// Kinds of tokens that are found in a text before it is cut into words: control and user-defined.
const ADDED_KINDS: [i32; 2] = [3, 4];

/// The `tokenizer.json` of a GGUF file, or why there is none.
///
/// # Errors
/// When the file cannot be opened or its header is damaged.
pub(super) fn tokenizer_json(path: &Path) -> Result<Result<String, String>, CheckpointError> {
    let (bytes, header) = map_gguf(path)?;
    if let Some(json) = header.text("tokenizer.huggingface.json") {
        return Ok(Ok(json.into()));
    }
    Ok(byte_level_bpe(&header, &bytes).map(|json| json.to_string()))
}

fn byte_level_bpe(header: &Header, bytes: &[u8]) -> Result<Value, String> {
    let kind = header.text("tokenizer.ggml.model").unwrap_or("absent");
    if kind != "gpt2" {
        return Err(format!("`tokenizer.ggml.model` is {kind:?}; only \"gpt2\" is supported"));
    }
    let pre = header.text("tokenizer.ggml.pre").unwrap_or("absent");
    let Some((_, pattern)) = WORDS.iter().find(|(name, _)| *name == pre) else {
        let known: Vec<_> = WORDS.iter().map(|(name, _)| *name).collect();
        let known = known.join(", ");
        return Err(format!("`tokenizer.ggml.pre` is {pre:?}; supported are {known}"));
    };
    let list = |key: &str| {
        header.texts(bytes, key).ok_or_else(|| format!("`{key}` is missing or not a list of texts"))
    };
    let (tokens, merges) = (list("tokenizer.ggml.tokens")?, list("tokenizer.ggml.merges")?);
    let kinds = header.integers(bytes, "tokenizer.ggml.token_type").unwrap_or_default();
    let added = tokens.iter().zip(&kinds).enumerate();
    let added = added.filter(|(_, (_, kind))| ADDED_KINDS.contains(kind));
    let added: Vec<Value> = added
        .map(|(id, (token, _))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            })
        })
        .collect();
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let byte_level = |use_regex: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex
        })
    };
    let words = pattern.map_or_else(
        || byte_level(true),
        |pattern| {
            let split = json!({
                "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                "invert": false
            });
            json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
        },
    );
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": words, "post_processor": null,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre == "llama-bpe", "vocab": vocab, "merges": merges
        }
    }))
}

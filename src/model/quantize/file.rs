//! A quantized checkpoint on disk: a folder in the Hugging Face layout whose `model.safetensors`
//! holds matrices in the encoding of [`QuantizedMatrix`], as tensors of bytes, and all else in f32.
//!
//! The file's metadata has one entry, `nashflock-quantized`: a JSON object with `version`, which is 1,
//! and `blake3`, the hash of every tensor's bytes by name. Of a pruned model it has `kept_experts` too,
//! by layer the numbers that the experts had; `config.json` has as many as are left, and routers that
//! many rows, so to a reader it is a smaller model.

use super::super::checkpoint::{Checkpoint, CheckpointError};
use super::super::gguf_tokenizer;
use super::super::latent;
use super::super::names::{
    ExpertNames, Projections, TensorNames, bias, expert_tensor, layer_tensor,
};
use super::super::weights::SINGLE_FILE;
use super::streams::picked;
use super::{ExpertPart, Kept, Part, Projection, QuantizedModel};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// A file beside the weights.
enum Beside {
    /// As it is in the checkpoint.
    Copied(PathBuf),
    /// Made anew: of a GGUF file, or of a pruned model, whose configuration states fewer experts.
    Written(String),
}

/// Why a quantized checkpoint cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum QuantizedError {
    /// The checkpoint that was quantized.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The folder is not empty.
    #[error("{} is not empty: name a new folder", .0.display())]
    NotEmpty(PathBuf),
    /// A file or folder.
    #[error("failed to write {}: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl QuantizedError {
    /// Whether nothing was written, which is the user's to mend (exit code 2).
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }
}

/// Writes a quantized model to a new folder. The weights come last and have another name until they are
/// whole: a folder that a stopped program left has none, and is no checkpoint.
///
/// # Errors
/// When the folder is not empty or cannot be written; what was written is removed then.
pub fn write(
    model: &QuantizedModel,
    checkpoint: &Checkpoint,
    source: &Path,
    folder: &Path,
) -> Result<(), QuantizedError> {
    check_empty(folder)?;
    let tensors = tensors(model, checkpoint)?;
    let beside = beside(model.kept.as_ref(), checkpoint, source)?;
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    write_files(&tensors, model.kept.as_ref(), &beside, folder).inspect_err(|_| {
        for (name, _) in &beside {
            // The write's own failure is what is told.
            let _ = std::fs::remove_file(folder.join(name));
        }
    })
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> QuantizedError {
    let path = path.to_owned();
    move |source| QuantizedError::Write { path, source }
}

/// Configuration and tokenizer.
fn beside(
    kept: Option<&Kept>,
    checkpoint: &Checkpoint,
    source: &Path,
) -> Result<Vec<(&'static str, Beside)>, CheckpointError> {
    let is_file = source.is_file();
    let config = if is_file || kept.is_some() {
        Beside::Written(format!("{:#}\n", config_of(kept, checkpoint)))
    } else {
        Beside::Copied(source.join(CONFIG))
    };
    let tokenizer = if is_file {
        let apart = source.with_file_name(TOKENIZER);
        match gguf_tokenizer::tokenizer_json(source)? {
            Ok(json) => Some(Beside::Written(json)),
            Err(_) => apart.exists().then_some(Beside::Copied(apart)),
        }
    } else {
        let own = source.join(TOKENIZER);
        own.exists().then_some(Beside::Copied(own))
    };
    let tokenizer = tokenizer.map(|tokenizer| (TOKENIZER, tokenizer));
    Ok(std::iter::once((CONFIG, config)).chain(tokenizer).collect())
}

/// The configuration of what is left.
fn config_of(kept: Option<&Kept>, checkpoint: &Checkpoint) -> Value {
    let mut config = checkpoint.stated.clone();
    let experts = kept.and_then(|kept| kept.values().next()).map(Vec::len);
    let keys = checkpoint.family.moe.as_ref().map_or(&[][..], |moe| moe.experts_keys);
    for key in keys {
        if let (Some(count), Some(experts)) = (config.get_mut(*key), experts) {
            *count = experts.into();
        }
    }
    config
}

fn write_files(
    tensors: &Tensors,
    kept: Option<&Kept>,
    beside: &[(&str, Beside)],
    folder: &Path,
) -> Result<(), QuantizedError> {
    for (name, file) in beside {
        let to = folder.join(name);
        match file {
            Beside::Written(text) => std::fs::write(&to, text),
            Beside::Copied(from) => std::fs::copy(from, &to).map(|_| ()),
        }
        .map_err(failed(&to))?;
    }
    let hashes: BTreeMap<&str, String> = tensors
        .iter()
        .map(|(name, (_, bytes))| (name.as_str(), blake3::hash(bytes).to_hex().to_string()))
        .collect();
    let mut stated = serde_json::json!({"version": VERSION, "blake3": hashes});
    if let Some(kept) = kept {
        stated["kept_experts"] = serde_json::json!(kept);
    }
    let stated = stated.to_string();
    // One entry, because the library writes several in an order that changes from run to run.
    let metadata = std::iter::once((FORMAT.to_owned(), stated)).collect();
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        let is_float = bytes.len() == 4 * shape.iter().product::<usize>();
        let dtype = if is_float { Dtype::F32 } else { Dtype::U8 };
        let view = TensorView::new(dtype, shape.clone(), bytes);
        (name.clone(), view.expect("bytes match the shape they were made for"))
    });
    let path = folder.join(SINGLE_FILE);
    // The library writes to a file beside it that it renames at the end.
    let written = safetensors::serialize_to_file(views, Some(metadata), &path);
    written.map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => failed(&path)(source),
        other => failed(&path)(io::Error::other(other.to_string())),
    })
}

/// Checks that nothing would be overwritten.
///
/// # Errors
/// When the folder has something in it, or is none.
pub fn check_empty(folder: &Path) -> Result<(), QuantizedError> {
    match std::fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(QuantizedError::NotEmpty(folder.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(QuantizedError::Write { path: folder.into(), source }),
    }
}

/// The entry of the file's metadata.
pub(in crate::model) const FORMAT: &str = "nashflock-quantized";
pub(in crate::model) const VERSION: u64 = 1;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn tensors(model: &QuantizedModel, checkpoint: &Checkpoint) -> Result<Tensors, CheckpointError> {
    let mut tensors = Tensors::new();
    for (part, matrix) in &model.matrices {
        let bytes = matrix.to_bytes();
        tensors.insert(name(checkpoint, *part), (vec![bytes.len()], bytes));
    }
    let mut config = checkpoint.config.clone();
    let names = checkpoint.names_apart();
    let mut rows_kept = BTreeMap::new();
    if let (Some(kept), Some(moe)) = (&model.kept, &mut config.moe) {
        moe.experts = kept.values().next().map_or(0, Vec::len);
        for (layer, kept) in kept {
            for (pattern, columns) in [(names.router, config.width), (names.selection_bias, 1)] {
                rows_kept.insert(layer_tensor(pattern, *layer), (kept, columns));
            }
        }
    }
    let biases =
        if checkpoint.pairs_neighbours { rotated_biases(checkpoint)? } else { Biases::new() };
    let here = TensorNames { experts: names.experts, ..*checkpoint.names() };
    for (name, here, shape) in checkpoint.named_apart(&config, &here) {
        if let Entry::Vacant(place) = tensors.entry(name) {
            let mut values = match biases.get(place.key()) {
                Some(values) => values.clone(),
                None => checkpoint.tensor(&here)?,
            };
            if let Some((kept, columns)) = rows_kept.get(place.key()) {
                values = picked(&values, kept, *columns);
            }
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            place.insert((shape, bytes));
        }
    }
    Ok(tensors)
}

type Biases = BTreeMap<String, Vec<f32>>;

/// The biases of queries and keys, in the order of rows of the Hugging Face layout, by their names there.
fn rotated_biases(checkpoint: &Checkpoint) -> Result<Biases, CheckpointError> {
    let names = checkpoint.names_apart();
    let mut found = Biases::new();
    for layer in 0..checkpoint.config.layers {
        if let Some(biases) = checkpoint.layer(layer)?.biases {
            found.insert(layer_tensor(&bias(names.query), layer), biases.query);
            found.insert(layer_tensor(&bias(names.key), layer), biases.key);
        }
    }
    Ok(found)
}

/// The tensor of a matrix.
fn name(checkpoint: &Checkpoint, part: Part) -> String {
    let names = checkpoint.names_apart();
    match part {
        Part::Embedding => names.embedding.into(),
        Part::Head => names.head.into(),
        Part::Attention(layer, projection) => {
            let has_latent =
                checkpoint.config.latent.as_ref().is_some_and(|latent| latent.query_rank.is_some());
            let pattern = match projection {
                Projection::Query if has_latent => latent::QUERY_UP,
                Projection::QueryDown => latent::QUERY_DOWN,
                Projection::KeyValueDown => latent::KEY_VALUE_DOWN,
                Projection::KeyValueUp => latent::KEY_VALUE_UP,
                Projection::Query => names.query,
                Projection::Key => names.key,
                Projection::Value => names.value,
                Projection::Out => names.attention_out,
            };
            layer_tensor(pattern, layer)
        }
        Part::Expert(layer, expert, part) => {
            let parts = match names.experts {
                ExpertNames::Each(parts) if checkpoint.is_routed(layer) => parts,
                _ => names.dense,
            };
            expert_tensor(pattern_of(parts, part), layer, expert)
        }
        Part::Shared(layer, part) => layer_tensor(pattern_of(names.shared, part), layer),
    }
}

fn pattern_of(parts: Projections, part: ExpertPart) -> &'static str {
    match part {
        ExpertPart::Gate => parts.gate,
        ExpertPart::Up => parts.up,
        ExpertPart::Down => parts.down,
    }
}

//! A quantized checkpoint on disk: a folder in the Hugging Face layout whose `model.safetensors`
//! holds matrices in the encoding of [`QuantizedMatrix`], as tensors of bytes, and all else in f32.
//!
//! The file's metadata has one entry, `nashflock-quantized`: a JSON object with `version`, which is 1,
//! and `blake3`, the hash of every tensor's bytes by name. Of a pruned model it has `kept_experts` too,
//! by layer the numbers that the experts had; `config.json` has as many as are left, and routers that
//! many rows, so to a reader it is a smaller model.

use super::super::checkpoint::{Checkpoint, CheckpointError};
use super::super::names::{ExpertNames, expert_tensor, layer_tensor};
use super::super::weights::{SINGLE_FILE, read_json};
use super::streams::picked;
use super::{ExpertPart, Kept, Part, Projection, QuantizedModel};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
/// Files that are copied from the checkpoint as they are; but a pruned model's configuration states
/// fewer experts.
const COPIED: [&str; 2] = [CONFIG, "tokenizer.json"];

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
    let pruned = model.kept.as_ref().map(|kept| pruned_config(kept, checkpoint, source));
    let pruned = pruned.transpose()?;
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let kept = model.kept.as_ref().zip(pruned.as_deref());
    write_files(&tensors, kept, source, folder).inspect_err(|_| {
        for name in COPIED {
            // The write's own failure is what is told.
            let _ = std::fs::remove_file(folder.join(name));
        }
    })
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> QuantizedError {
    let path = path.to_owned();
    move |source| QuantizedError::Write { path, source }
}

/// The configuration of what is left.
fn pruned_config(
    kept: &Kept,
    checkpoint: &Checkpoint,
    source: &Path,
) -> Result<String, CheckpointError> {
    let mut config = read_json(&source.join(CONFIG))?;
    let experts = kept.values().next().map_or(0, Vec::len);
    let keys = checkpoint.family.moe.as_ref().map_or(&[][..], |moe| moe.experts_keys);
    for key in keys {
        if let Some(count) = config.get_mut(*key) {
            *count = experts.into();
        }
    }
    Ok(format!("{config:#}\n"))
}

fn write_files(
    tensors: &Tensors,
    kept: Option<(&Kept, &str)>,
    source: &Path,
    folder: &Path,
) -> Result<(), QuantizedError> {
    for name in COPIED.iter().filter(|name| source.join(name).exists()) {
        let to = folder.join(name);
        match kept {
            Some((_, config)) if *name == CONFIG => std::fs::write(&to, config),
            _ => std::fs::copy(source.join(name), &to).map(|_| ()),
        }
        .map_err(failed(&to))?;
    }
    let hashes: BTreeMap<&str, String> = tensors
        .iter()
        .map(|(name, (_, bytes))| (name.as_str(), blake3::hash(bytes).to_hex().to_string()))
        .collect();
    let mut stated = serde_json::json!({"version": VERSION, "blake3": hashes});
    if let Some((kept, _)) = kept {
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
    let mut routers = BTreeMap::new();
    if let (Some(kept), Some(moe)) = (&model.kept, &mut config.moe) {
        moe.experts = kept.values().next().map_or(0, Vec::len);
        let router = |layer| layer_tensor(checkpoint.names().router, layer);
        routers = kept.iter().map(|(layer, kept)| (router(*layer), kept)).collect();
    }
    for (name, shape) in checkpoint.tensors_of(&config) {
        if let Entry::Vacant(place) = tensors.entry(name) {
            let mut values = checkpoint.tensor(place.key())?;
            if let Some(kept) = routers.get(place.key()) {
                values = picked(&values, kept, config.width);
            }
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            place.insert((shape, bytes));
        }
    }
    Ok(tensors)
}

/// The tensor of a matrix.
fn name(checkpoint: &Checkpoint, part: Part) -> String {
    let names = checkpoint.names();
    match part {
        Part::Embedding => names.embedding.into(),
        Part::Head => names.head.into(),
        Part::Attention(layer, projection) => {
            let pattern = match projection {
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
            let pattern = match part {
                ExpertPart::Gate => parts.gate,
                ExpertPart::Up => parts.up,
                ExpertPart::Down => parts.down,
            };
            expert_tensor(pattern, layer, expert)
        }
    }
}

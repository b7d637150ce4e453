//! A quantized checkpoint on disk: a folder in the Hugging Face layout whose `model.safetensors`
//! holds matrices in the encoding of [`QuantizedMatrix`], as tensors of bytes, and all else in f32.
//!
//! The file's metadata has `format = "nashflock-quantized"`, `version = "1"` and the BLAKE3 hash of
//! every tensor under `blake3:NAME`.

use super::super::architecture::{self as names, FeedForward, Projections};
use super::super::checkpoint::{Checkpoint, CheckpointError};
use super::{ExpertPart, Part, Projection, QuantizedModel};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

/// The weights of a quantized checkpoint.
pub const QUANTIZED_FILE: &str = super::super::weights::SINGLE_FILE;

/// Files that are copied from the checkpoint as they are.
const COPIED: [&str; 2] = ["config.json", "tokenizer.json"];

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

/// Writes a quantized model to a new folder.
///
/// # Errors
/// When the folder is not empty or cannot be written.
pub fn write(
    model: &QuantizedModel,
    checkpoint: &Checkpoint,
    source: &Path,
    folder: &Path,
) -> Result<(), QuantizedError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| QuantizedError::Write { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    if std::fs::read_dir(folder).map_err(failed(folder))?.next().is_some() {
        return Err(QuantizedError::NotEmpty(folder.into()));
    }
    let tensors = tensors(model, checkpoint)?;
    let mut metadata: HashMap<String, String> = HashMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("version".to_owned(), VERSION.to_owned()),
    ]);
    for (name, (_, bytes)) in &tensors {
        let hash = blake3::hash(bytes).to_hex().to_string();
        metadata.insert(format!("{HASH_PREFIX}{name}"), hash);
    }
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        let is_float = bytes.len() == 4 * shape.iter().product::<usize>();
        let dtype = if is_float { Dtype::F32 } else { Dtype::U8 };
        let view = TensorView::new(dtype, shape.clone(), bytes);
        (name.clone(), view.expect("bytes match the shape they were made for"))
    });
    let path = folder.join(QUANTIZED_FILE);
    let written = safetensors::serialize_to_file(views, Some(metadata), &path);
    written.map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => failed(&path)(source),
        other => failed(&path)(io::Error::other(other.to_string())),
    })?;
    for name in COPIED.iter().filter(|name| source.join(name).exists()) {
        let to = folder.join(name);
        std::fs::copy(source.join(name), &to).map_err(failed(&to))?;
    }
    Ok(())
}

pub(in super::super) const FORMAT: &str = "nashflock-quantized";
pub(in super::super) const VERSION: &str = "1";
pub(in super::super) const HASH_PREFIX: &str = "blake3:";

type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn tensors(model: &QuantizedModel, checkpoint: &Checkpoint) -> Result<Tensors, CheckpointError> {
    let mut tensors = Tensors::new();
    for (part, matrix) in &model.matrices {
        let bytes = matrix.to_bytes();
        tensors.insert(name(checkpoint, *part), (vec![bytes.len()], bytes));
    }
    for (name, shape) in checkpoint.tensors() {
        if !tensors.contains_key(&name) {
            let values = checkpoint.tensor(&name)?;
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.insert(name, (shape, bytes));
        }
    }
    Ok(tensors)
}

/// The tensor of a matrix.
fn name(checkpoint: &Checkpoint, part: Part) -> String {
    match part {
        Part::Embedding => names::EMBEDDING.into(),
        Part::Head => names::HEAD.into(),
        Part::Attention(layer, projection) => {
            let pattern = match projection {
                Projection::Query => names::QUERY,
                Projection::Key => names::KEY,
                Projection::Value => names::VALUE,
                Projection::Out => names::ATTENTION_OUT,
            };
            names::layer_tensor(pattern, layer)
        }
        Part::Expert(layer, expert, part) => {
            let (FeedForward::Dense(parts) | FeedForward::Experts { expert: parts, .. }) =
                &checkpoint.family().feed_forward;
            let Projections { gate, up, down } = parts;
            let pattern = match part {
                ExpertPart::Gate => gate,
                ExpertPart::Up => up,
                ExpertPart::Down => down,
            };
            names::expert_tensor(pattern, layer, expert)
        }
    }
}

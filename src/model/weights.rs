//! The weight files of a checkpoint: which file holds which tensor, and its values.

use super::checkpoint::{CheckpointError, TensorProblem};
use super::mapping::map_file;
use memmap2::Mmap;
use safetensors::tensor::{Dtype, TensorInfo};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The weights, when they are in one file.
pub(super) const SINGLE_FILE: &str = "model.safetensors";
/// Names the file of each tensor, when there are several.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Mapped weight files.
#[derive(Debug)]
pub(super) struct Weights {
    /// The index, or the single file.
    catalogue: PathBuf,
    files: Vec<TensorFile>,
    /// Tensor name → position of its file.
    tensors: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct TensorFile {
    path: PathBuf,
    bytes: Mmap,
    /// Where tensor offsets count from.
    start: usize,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Weights {
    /// Maps the weight files of a folder and checks that every tensor lies inside its file.
    ///
    /// # Errors
    /// Missing, cut or damaged files, and tensors that are not where the index says.
    pub(super) fn open(directory: &Path) -> Result<Self, CheckpointError> {
        let (single, index) = (directory.join(SINGLE_FILE), directory.join(INDEX_FILE));
        if index.exists() {
            return Self::open_indexed(directory, index);
        }
        if !single.exists() {
            return Err(CheckpointError::NoWeights { directory: directory.into() });
        }
        let file = TensorFile::open(single.clone())?;
        let tensors = file.tensors.keys().map(|name| (name.clone(), 0)).collect();
        Ok(Self { catalogue: single, files: vec![file], tensors })
    }

    fn open_indexed(directory: &Path, index: PathBuf) -> Result<Self, CheckpointError> {
        let (mut files, mut opened) = (Vec::<TensorFile>::new(), BTreeMap::new());
        let mut tensors = BTreeMap::new();
        for (tensor, name) in read_index(&index)? {
            let file = match opened.get(&name) {
                Some(file) => *file,
                None => {
                    files.push(TensorFile::open(directory.join(&name))?);
                    opened.insert(name, files.len() - 1);
                    files.len() - 1
                }
            };
            if !files[file].tensors.contains_key(&tensor) {
                let path = files[file].path.clone();
                let problems = vec![TensorProblem::Missing { tensor, path }];
                return Err(CheckpointError::Tensors { directory: directory.into(), problems });
            }
            tensors.insert(tensor, file);
        }
        Ok(Self { catalogue: index, files, tensors })
    }

    /// The file that lists all tensors.
    pub(super) fn catalogue(&self) -> &Path {
        &self.catalogue
    }

    /// The file of a tensor, its shape and its type.
    pub(super) fn find(&self, tensor: &str) -> Option<(&Path, &TensorInfo)> {
        let file = &self.files[*self.tensors.get(tensor)?];
        Some((&file.path, &file.tensors[tensor]))
    }

    /// The values of a tensor that is there and made of f32, f16 or bf16.
    ///
    /// # Errors
    /// A value that is not finite.
    pub(super) fn read(&self, tensor: &str) -> Result<Vec<f32>, CheckpointError> {
        let file = &self.files[self.tensors[tensor]];
        let info = &file.tensors[tensor];
        let (from, to) = info.data_offsets;
        let values = to_f32(&file.bytes[file.start + from..file.start + to], info.dtype);
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(position) => Err(CheckpointError::NotFinite {
                tensor: tensor.into(),
                path: file.path.clone(),
                position,
            }),
        }
    }
}

/// Tensor name → file name, each a plain name in the index's own folder.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let wrong = |problem: String| CheckpointError::Index { path: path.into(), problem };
    let json = read_json(path)?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| wrong("`weight_map` is not an object".into()))?;
    map.iter()
        .map(|(tensor, file)| {
            let name = file.as_str().unwrap_or_default();
            let mut parts = Path::new(name).components();
            match (parts.next(), parts.next()) {
                (Some(Component::Normal(_)), None) => Ok((tensor.clone(), name.to_owned())),
                _ => Err(wrong(format!(
                    "tensor {tensor} is said to be in {file}, which is not a file name in this folder"
                ))),
            }
        })
        .collect()
}

impl TensorFile {
    fn open(path: PathBuf) -> Result<Self, CheckpointError> {
        let bytes = match map_file(&path) {
            Ok(bytes) => bytes,
            Err(source) => return Err(CheckpointError::Open { path, source }),
        };
        match read_header(&bytes) {
            Ok((start, tensors)) => Ok(Self { path, bytes, start, tensors }),
            Err(problem) => Err(CheckpointError::Damaged { path, problem }),
        }
    }
}

/// Where the data starts, and the tensors, each wholly inside the file.
///
/// The layout is that of the safetensors format: a little-endian u64 length, a JSON header of that
/// length, the data. The crate's own reader adds hostile offsets without a check.
fn read_header(bytes: &[u8]) -> Result<(usize, BTreeMap<String, TensorInfo>), String> {
    let cut = || format!("its {} bytes end before its header does", bytes.len());
    let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length)).ok_or_else(cut)?;
    let start = usize::try_from(length).ok().and_then(|n| n.checked_add(8)).ok_or_else(cut)?;
    let header = bytes.get(8..start).ok_or_else(cut)?;
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(header).map_err(|error| format!("its header: {error}"))?;
    let mut tensors = BTreeMap::new();
    for (name, value) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let info: TensorInfo =
            serde_json::from_value(value).map_err(|error| format!("tensor {name}: {error}"))?;
        let (from, to) = info.data_offsets;
        let data = bytes.len() - start;
        if to > data {
            return Err(format!("tensor {name} ends at byte {to} of {data}"));
        }
        let count = info.shape.iter().try_fold(1usize, |count, n| count.checked_mul(*n));
        let bits = count.and_then(|count| count.checked_mul(info.dtype.bitsize()));
        if to.checked_sub(from).and_then(|length| length.checked_mul(8)) != bits {
            return Err(format!(
                "tensor {name} has shape {:?} of {:?} in bytes {from} to {to}",
                info.shape, info.dtype
            ));
        }
        tensors.insert(name, info);
    }
    Ok((start, tensors))
}

/// Little-endian floats of one of the supported types.
fn to_f32(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let halves = bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F16 => halves.map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::BF16 => halves.map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        other => unreachable!("{other:?} was refused when the checkpoint was opened"),
    }
}

pub(super) fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let bytes = std::fs::read(path)
        .map_err(|source| CheckpointError::Open { path: path.into(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|source| CheckpointError::Json { path: path.into(), source })
}

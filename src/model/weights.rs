//! The weight files of a checkpoint: which file holds which tensor, and its values.

use super::blocks::{ElementType, GGUF_TYPES};
use super::checkpoint::{CheckpointError, TensorProblem};
use super::gguf::{self, Header};
use super::mapping::map_file;
use super::quantize;
use agents::quantize::QuantizedMatrix;
use memmap2::Mmap;
use safetensors::tensor::{Dtype, TensorInfo};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

/// The key of a file's metadata in its header.
const METADATA: &str = "__metadata__";

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

/// A tensor of a mapped file.
#[derive(Debug)]
pub(super) struct StoredTensor {
    pub shape: Vec<usize>,
    /// Its type, or what an unsupported one is called.
    pub elements: Result<ElementType, String>,
    /// The types that would be supported, for messages.
    pub supported: &'static str,
    /// Whether it is a quantized matrix, which `elements` says what it decodes to.
    coded: bool,
    /// The BLAKE3 hash of its bytes, where the file states it.
    hash: Option<blake3::Hash>,
    /// Bytes of the file, as many as shape and type ask for.
    place: Range<usize>,
}

#[derive(Debug)]
struct TensorFile {
    path: PathBuf,
    bytes: Mmap,
    tensors: BTreeMap<String, StoredTensor>,
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

    /// Maps a GGUF file. Its header's tensors move to the weights, its metadata stays.
    ///
    /// # Errors
    /// When it cannot be opened or its header is damaged.
    pub(super) fn open_gguf(path: &Path) -> Result<(Self, Header), CheckpointError> {
        let (bytes, mut header) = map_gguf(path)?;
        let tensors: BTreeMap<String, StoredTensor> = std::mem::take(&mut header.tensors)
            .into_iter()
            .map(|(name, gguf::TensorEntry { shape, elements, place })| {
                let (supported, coded, hash) = (GGUF_TYPES, false, None);
                (name, StoredTensor { shape, elements, supported, coded, hash, place })
            })
            .collect();
        let names = tensors.keys().map(|name| (name.clone(), 0)).collect();
        let file = TensorFile { path: path.into(), bytes, tensors };
        Ok((Self { catalogue: path.into(), files: vec![file], tensors: names }, header))
    }

    /// The file that lists all tensors.
    pub(super) fn catalogue(&self) -> &Path {
        &self.catalogue
    }

    /// The file of a tensor, its shape and its type.
    pub(super) fn find(&self, tensor: &str) -> Option<(&Path, &StoredTensor)> {
        let file = &self.files[*self.tensors.get(tensor)?];
        Some((&file.path, &file.tensors[tensor]))
    }

    /// The values of a tensor that is there and of a supported type.
    ///
    /// # Errors
    /// A value that is not finite.
    pub(super) fn read(&self, tensor: &str) -> Result<Vec<f32>, CheckpointError> {
        let rows = self.stored(tensor).1.rows();
        self.read_rows(tensor, 0..rows)
    }

    /// The values of some rows of such a tensor: a row is as long as its last dimension, and the
    /// others are counted together.
    ///
    /// # Errors
    /// A value that is not finite, and bytes that are not those that were written.
    pub(super) fn read_rows(
        &self,
        tensor: &str,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, CheckpointError> {
        let (file, stored) = self.stored(tensor);
        let values = if let Some(matrix) = self.matrix(tensor)? {
            let (_, columns) = matrix.shape();
            matrix.weights()[rows.start * columns..rows.end * columns].to_vec()
        } else {
            let elements = stored.elements.as_ref().expect("other types were refused when opened");
            let row_bytes = stored.place.len() / stored.rows().max(1);
            let place = file.place(tensor, stored)?;
            elements.to_f32(&place[rows.start * row_bytes..rows.end * row_bytes])
        };
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(position) => Err(CheckpointError::NotFinite {
                tensor: tensor.into(),
                path: file.path.clone(),
                position: position + rows.start * stored.shape.last().copied().unwrap_or(1),
            }),
        }
    }

    /// The codes of a quantized matrix that is there; none for a tensor of another type.
    ///
    /// # Errors
    /// Bytes that are not those that were written.
    pub(super) fn matrix(&self, tensor: &str) -> Result<Option<QuantizedMatrix>, CheckpointError> {
        let (file, stored) = self.stored(tensor);
        if !stored.coded {
            return Ok(None);
        }
        let matrix = QuantizedMatrix::from_bytes(file.place(tensor, stored)?);
        matrix.map(Some).map_err(|error| file.damaged(tensor, &error.to_string()))
    }

    fn stored(&self, tensor: &str) -> (&TensorFile, &StoredTensor) {
        let file = &self.files[self.tensors[tensor]];
        (file, &file.tensors[tensor])
    }
}

impl StoredTensor {
    /// All dimensions but the last.
    fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
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
            Ok(tensors) => Ok(Self { path, bytes, tensors }),
            Err(problem) => Err(CheckpointError::Damaged { path, problem }),
        }
    }

    /// The bytes of a tensor, held against their hash where the file states one.
    fn place(&self, tensor: &str, stored: &StoredTensor) -> Result<&[u8], CheckpointError> {
        let place = &self.bytes[stored.place.clone()];
        if stored.hash.is_some_and(|hash| hash != blake3::hash(place)) {
            let problem = "its bytes do not have the hash that they were written with";
            return Err(self.damaged(tensor, problem));
        }
        Ok(place)
    }

    fn damaged(&self, tensor: &str, problem: &str) -> CheckpointError {
        let problem = format!("tensor {tensor}: {problem}");
        CheckpointError::Damaged { path: self.path.clone(), problem }
    }
}

/// What a quantized checkpoint states of its tensors.
struct Hashes(Value);

impl Hashes {
    fn read(text: &str) -> Result<Self, String> {
        let stated: Value =
            serde_json::from_str(text).map_err(|error| format!("its metadata: {error}"))?;
        match stated["version"].as_u64() {
            Some(quantize::VERSION) => Ok(Self(stated)),
            version => Err(format!(
                "it has version {version:?}, this release reads version {}",
                quantize::VERSION
            )),
        }
    }

    fn of(&self, tensor: &str) -> Result<blake3::Hash, String> {
        let hash = self.0["blake3"][tensor].as_str().and_then(|hash| hash.parse().ok());
        hash.ok_or_else(|| format!("tensor {tensor} has no hash"))
    }
}

/// The tensors, each wholly inside the file.
///
/// The layout is that of the safetensors format: a little-endian u64 length, a JSON header of that
/// length, the data. The crate's own reader adds hostile offsets without a check.
fn read_header(bytes: &[u8]) -> Result<BTreeMap<String, StoredTensor>, String> {
    let cut = || format!("its {} bytes end before its header does", bytes.len());
    let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length)).ok_or_else(cut)?;
    let start = usize::try_from(length).ok().and_then(|n| n.checked_add(8)).ok_or_else(cut)?;
    let header = bytes.get(8..start).ok_or_else(cut)?;
    let mut header: BTreeMap<String, Value> =
        serde_json::from_slice(header).map_err(|error| format!("its header: {error}"))?;
    let metadata = header.remove(METADATA).unwrap_or_default();
    let quantized = match metadata.get(quantize::FORMAT).and_then(Value::as_str) {
        None => None,
        Some(stated) => Some(Hashes::read(stated)?),
    };
    let mut tensors = BTreeMap::new();
    for (name, value) in header {
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
        let hash = quantized.as_ref().map(|hashes| hashes.of(&name)).transpose()?;
        let coded = quantized.is_some() && info.dtype == Dtype::U8;
        let mut shape = info.shape;
        if coded {
            let ((rows, columns), _) =
                QuantizedMatrix::read_header(&bytes[start + from..start + to])
                    .map_err(|error| format!("tensor {name}: {error}"))?;
            shape = vec![rows, columns];
        }
        let elements = match info.dtype {
            Dtype::F32 => Ok(ElementType::F32),
            Dtype::U8 if coded => Ok(ElementType::F32),
            Dtype::F16 => Ok(ElementType::F16),
            Dtype::BF16 => Ok(ElementType::BF16),
            other => Err(format!("{other:?}")),
        };
        let place = start + from..start + to;
        let supported = "F32, F16 or BF16";
        tensors.insert(name, StoredTensor { shape, elements, supported, coded, hash, place });
    }
    Ok(tensors)
}

/// Maps a GGUF file and reads its header.
///
/// # Errors
/// When it cannot be opened or its header is damaged.
pub(super) fn map_gguf(path: &Path) -> Result<(Mmap, Header), CheckpointError> {
    let bytes =
        map_file(path).map_err(|source| CheckpointError::Open { path: path.into(), source })?;
    let damaged = |problem| CheckpointError::Damaged { path: path.into(), problem };
    let header = gguf::read_header(&bytes).map_err(damaged)?;
    Ok((bytes, header))
}

pub(super) fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let bytes = std::fs::read(path)
        .map_err(|source| CheckpointError::Open { path: path.into(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|source| CheckpointError::Json { path: path.into(), source })
}

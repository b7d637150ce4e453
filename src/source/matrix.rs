//! Score matrices in files: `.npy` and `.safetensors`, f32 `[T, E]`; assignments as `.npy`.

use agents::game::Choices;
use npyz::{DType, NpyFile, NpyHeader, Order, WriterBuilder as _};
use safetensors::{Dtype, SafeTensors};
use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// A dense matrix of affinities.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreMatrix {
    /// Row-major `[T, E]`.
    pub values: Vec<f32>,
    /// E.
    pub experts: usize,
}

/// Why a file holds no score matrix.
#[derive(Debug, thiserror::Error)]
pub enum MatrixError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Its content is not what is needed.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// Reads f32 `[T, E]` from a `.npy` file or a `.safetensors` file. `tensor` names the tensor where
/// there are several.
///
/// # Errors
/// When the file cannot be read or holds no such matrix.
pub fn read_scores(path: &Path, tensor: Option<&str>) -> Result<ScoreMatrix, MatrixError> {
    let bytes =
        fs::read(path).map_err(|source| MatrixError::Read { path: path.to_owned(), source })?;
    let matrix = match path.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => from_npy(&bytes),
        Some("safetensors") => from_safetensors(&bytes, tensor),
        _ => Err("give a .npy or a .safetensors file".to_owned()),
    };
    matrix.map_err(|problem| MatrixError::Content { path: path.to_owned(), problem })
}

fn from_npy(bytes: &[u8]) -> Result<ScoreMatrix, String> {
    let mut rest = bytes;
    let header = NpyHeader::from_reader(&mut rest)
        .map_err(|error| format!("not an .npy file that can be read: {error}"))?;
    let is_f32 = matches!(header.dtype(), DType::Plain(kind) if kind.to_string() == "<f4");
    if !is_f32 || header.order() != Order::C {
        let found = header.dtype().descr();
        let order = if header.order() == Order::C { "C" } else { "Fortran" };
        return Err(format!(
            "holds {found} in {order} order but little-endian f32 in C order is needed: save \
             numpy.ascontiguousarray(x, dtype='<f4')"
        ));
    }
    let experts = check_shape(header.shape(), rest.len())?;
    let values = NpyFile::with_header(header, rest)
        .into_vec()
        .map_err(|error| format!("cannot be read: {error}"))?;
    Ok(ScoreMatrix { values, experts })
}

fn from_safetensors(bytes: &[u8], name: Option<&str>) -> Result<ScoreMatrix, String> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| format!("not a safetensors file that can be read: {error}"))?;
    let mut names = file.names();
    names.sort_unstable();
    let name = match (name, names.as_slice()) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, _) => return Err(format!("choose one with --tensor: {}", names.join(", "))),
    };
    let tensor =
        file.tensor(name).map_err(|_| format!("has no tensor {name}: {}", names.join(", ")))?;
    if tensor.dtype() != Dtype::F32 {
        return Err(format!("tensor {name} is {:?} but f32 is needed", tensor.dtype()));
    }
    let shape: Vec<u64> = tensor.shape().iter().map(|n| *n as u64).collect();
    let experts = check_shape(&shape, tensor.data().len())?;
    let values = tensor
        .data()
        .chunks_exact(size_of::<f32>())
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    Ok(ScoreMatrix { values, experts })
}

/// E, once the shape is known to be `[T, E]` and to fit the bytes that are there.
fn check_shape(shape: &[u64], bytes: usize) -> Result<usize, String> {
    let [tokens, experts] = shape else {
        return Err(format!("has shape {shape:?} but [T, E] is needed"));
    };
    if *tokens == 0 || *experts == 0 {
        return Err(format!("has shape {shape:?}: at least one token and one expert are needed"));
    }
    let needed = tokens.checked_mul(*experts).and_then(|n| n.checked_mul(4));
    match (usize::try_from(*experts), needed) {
        (Ok(experts), Some(needed)) if needed == bytes as u64 => Ok(experts),
        _ => Err(format!("is truncated: shape {shape:?} does not fit its {bytes} bytes")),
    }
}

/// Writes assignments as int32 `[T, k]`; a token with fewer experts than another is filled up with
/// −1.
///
/// # Errors
/// When the file cannot be written.
pub fn write_assignments(path: &Path, choices: &Choices) -> io::Result<()> {
    let mut out = BufWriter::new(fs::File::create(path)?);
    let width = (0..choices.tokens()).map(|token| choices.row(token).len()).max().unwrap_or(0);
    let shape = [choices.tokens() as u64, width as u64];
    let mut writer =
        npyz::WriteOptions::new().default_dtype().shape(&shape).writer(&mut out).begin_nd()?;
    let id = |expert: &agents::ids::ExpertId| {
        i32::try_from(expert.0).map_err(|_| io::Error::other("an expert id exceeds int32"))
    };
    for token in 0..choices.tokens() {
        let row = choices.row(token);
        for expert in row {
            writer.push(&id(expert)?)?;
        }
        for _ in row.len()..width {
            writer.push(&-1)?;
        }
    }
    writer.finish()?;
    out.flush()
}

//! Checkpoints in the Hugging Face layout: `config.json` and one or many `.safetensors` files.
//!
//! Opening checks every tensor that the configuration asks for; weights are read on demand and
//! come out as f32.

use super::architecture::{self as names, Architecture, FeedForward, Projections};
use super::config::ModelConfig;
use super::trunk::{FeedForwardWeights, LayerWeights, SwiGlu, Trunk};
use super::weights::{INDEX_FILE, SINGLE_FILE, Weights, read_json};
use agents::expert::ExpertShape;
use agents::linear;
use safetensors::tensor::Dtype;
use std::path::{Path, PathBuf};

/// A checkpoint whose files are mapped and whose tensors have the right names, shapes and types.
#[derive(Debug)]
pub struct Checkpoint {
    /// Sizes and switches.
    pub config: ModelConfig,
    family: &'static Architecture,
    weights: Weights,
}

/// The matrices of one expert.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertWeights {
    /// Width and hidden size.
    pub shape: ExpertShape,
    /// Row-major `[hidden, width]`.
    pub gate: Vec<f32>,
    /// Row-major `[hidden, width]`.
    pub up: Vec<f32>,
    /// Row-major `[width, hidden]`.
    pub down: Vec<f32>,
}

/// Why a folder is not a checkpoint that can be run.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or the folder cannot be opened.
    #[error("failed to open {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No weights.
    #[error("{} holds neither {SINGLE_FILE} nor {INDEX_FILE}", directory.display())]
    NoWeights {
        /// The folder.
        directory: PathBuf,
    },
    /// A JSON file does not parse.
    #[error("{} is not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line and column.
        source: serde_json::Error,
    },
    /// The configuration is incomplete or asks for what is not supported.
    #[error("{} cannot be run: {}", path.display(), problems.join("; "))]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// One sentence for each key.
        problems: Vec<String>,
    },
    /// The index is JSON but not an index, or leads out of its folder.
    #[error("{}: {problem}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A weight file is cut short or its header is wrong.
    #[error("{} is damaged: {problem}; fetch it again", path.display())]
    Damaged {
        /// The weight file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Tensors are missing or not as the configuration says; at most [`MAX_PROBLEMS`] are listed.
    #[error("{} does not hold the model of its config.json: {}", directory.display(), listed(problems))]
    Tensors {
        /// The folder.
        directory: PathBuf,
        /// What is wrong, in the order of the layers.
        problems: Vec<TensorProblem>,
    },
    /// A weight is NaN or infinite.
    #[error("tensor {tensor} in {} has a weight that is not finite at position {position}", path.display())]
    NotFinite {
        /// Its name.
        tensor: String,
        /// Its file.
        path: PathBuf,
        /// Row-major position of the first such weight.
        position: usize,
    },
    /// An expert that the model does not have.
    #[error("the model has no expert {expert} in layer {layer}")]
    NoSuchExpert {
        /// Layer asked for.
        layer: usize,
        /// Expert asked for.
        expert: usize,
    },
}

/// What is wrong with one tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorProblem {
    /// It is not there.
    #[error("tensor {tensor} is missing from {}", path.display())]
    Missing {
        /// Its name.
        tensor: String,
        /// The file or index that should name it.
        path: PathBuf,
    },
    /// It has other sizes.
    #[error("tensor {tensor} in {} has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// Its name.
        tensor: String,
        /// Its file.
        path: PathBuf,
        /// From the configuration.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// It is not made of floats that are supported.
    #[error("tensor {tensor} in {} is {found}, expected F32, F16 or BF16", path.display())]
    Dtype {
        /// Its name.
        tensor: String,
        /// Its file.
        path: PathBuf,
        /// In the file.
        found: String,
    },
}

/// Problems listed before the search for more of them ends.
pub const MAX_PROBLEMS: usize = 16;

impl Checkpoint {
    /// Opens a folder and checks every tensor.
    ///
    /// # Errors
    /// The first file that cannot be read, or else all problems of the configuration, or else the
    /// first [`MAX_PROBLEMS`] problems of the tensors.
    pub fn open(directory: &Path) -> Result<Self, CheckpointError> {
        let path = directory.join("config.json");
        let (config, family) = ModelConfig::from_json(&read_json(&path)?)
            .map_err(|problems| CheckpointError::Config { path, problems })?;
        let checkpoint = Self { config, family, weights: Weights::open(directory)? };
        let problems = checkpoint.problems();
        if problems.is_empty() {
            Ok(checkpoint)
        } else {
            Err(CheckpointError::Tensors { directory: directory.into(), problems })
        }
    }

    /// Everything but the experts, as f32.
    ///
    /// # Errors
    /// A weight that is not finite.
    pub fn trunk(&self) -> Result<Trunk, CheckpointError> {
        let layers = (0..self.config.layers).map(|layer| self.layer(layer));
        Ok(Trunk {
            config: self.config.clone(),
            embedding: self.weights.read(names::EMBEDDING)?,
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: self.weights.read(names::FINAL_NORM)?,
            head: linear::Weights::from_rows(
                &self.weights.read(if self.config.tied_head {
                    names::EMBEDDING
                } else {
                    names::HEAD
                })?,
                self.config.width,
            ),
        })
    }

    /// One expert.
    ///
    /// # Errors
    /// A weight that is not finite, and ids that the model does not have.
    pub fn expert(&self, layer: usize, expert: usize) -> Result<ExpertWeights, CheckpointError> {
        match (&self.family.feed_forward, self.config.moe) {
            (FeedForward::Experts { expert: parts, .. }, Some(moe))
                if layer < self.config.layers && expert < moe.experts =>
            {
                let read =
                    |pattern| self.weights.read(&names::expert_tensor(pattern, layer, expert));
                Ok(ExpertWeights {
                    shape: ExpertShape { width: self.config.width, hidden: self.config.hidden },
                    gate: read(parts.gate)?,
                    up: read(parts.up)?,
                    down: read(parts.down)?,
                })
            }
            _ => Err(CheckpointError::NoSuchExpert { layer, expert }),
        }
    }

    /// Weights of the model, all of them.
    #[must_use]
    pub fn weights_count(&self) -> u64 {
        self.tensors().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// Names and shapes of all tensors.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        expected_tensors(&self.config, self.family)
    }

    /// The values of a tensor of the model.
    pub(super) fn tensor(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        self.weights.read(name)
    }

    /// The family's names.
    pub(super) fn family(&self) -> &'static Architecture {
        self.family
    }

    fn layer(&self, layer: usize) -> Result<LayerWeights, CheckpointError> {
        let read = |pattern| self.weights.read(&names::layer_tensor(pattern, layer));
        let ModelConfig { width, heads, head_dim, hidden, .. } = self.config;
        let matrix = |pattern, inputs| Ok(linear::Weights::from_rows(&read(pattern)?, inputs));
        let norms = self.family.query_key_norm;
        Ok(LayerWeights {
            attention_norm: read(names::ATTENTION_NORM)?,
            query: matrix(names::QUERY, width)?,
            key: matrix(names::KEY, width)?,
            value: matrix(names::VALUE, width)?,
            attention_out: matrix(names::ATTENTION_OUT, heads * head_dim)?,
            query_norm: if norms { Some(read(names::QUERY_NORM)?) } else { None },
            key_norm: if norms { Some(read(names::KEY_NORM)?) } else { None },
            feed_forward_norm: read(names::FEED_FORWARD_NORM)?,
            feed_forward: match self.family.feed_forward {
                FeedForward::Dense(Projections { gate, up, down }) => {
                    FeedForwardWeights::Dense(SwiGlu {
                        gate: matrix(gate, width)?,
                        up: matrix(up, width)?,
                        down: matrix(down, hidden)?,
                    })
                }
                FeedForward::Experts { router, .. } => {
                    FeedForwardWeights::Router(matrix(router, width)?)
                }
            },
        })
    }

    /// What keeps the tensors from being the model of the configuration.
    fn problems(&self) -> Vec<TensorProblem> {
        expected_tensors(&self.config, self.family)
            .filter_map(|(tensor, expected)| {
                let Some((path, info)) = self.weights.find(&tensor) else {
                    let path = self.weights.catalogue().into();
                    return Some(TensorProblem::Missing { tensor, path });
                };
                let path = path.into();
                if info.shape != expected {
                    let found = info.shape.clone();
                    Some(TensorProblem::Shape { tensor, path, expected, found })
                } else if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                    let found = format!("{:?}", info.dtype);
                    Some(TensorProblem::Dtype { tensor, path, found })
                } else {
                    None
                }
            })
            .take(MAX_PROBLEMS)
            .collect()
    }
}

/// Names and shapes of every tensor of a model, trunk before experts within a layer.
fn expected_tensors(
    config: &ModelConfig,
    family: &'static Architecture,
) -> impl Iterator<Item = (String, Vec<usize>)> {
    let ModelConfig { width, hidden, vocab, .. } = *config;
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut outer = vec![
        (names::EMBEDDING.to_owned(), vec![vocab, width]),
        (names::FINAL_NORM.to_owned(), vec![width]),
    ];
    if !config.tied_head {
        outer.push((names::HEAD.to_owned(), vec![vocab, width]));
    }
    let mut layer_shapes = vec![
        (names::ATTENTION_NORM, vec![width]),
        (names::QUERY, vec![q, width]),
        (names::KEY, vec![kv, width]),
        (names::VALUE, vec![kv, width]),
        (names::ATTENTION_OUT, vec![width, q]),
        (names::FEED_FORWARD_NORM, vec![width]),
    ];
    if family.query_key_norm {
        layer_shapes.extend([(names::QUERY_NORM, vec![q]), (names::KEY_NORM, vec![kv])]);
    }
    let (parts, experts) = match (&family.feed_forward, config.moe) {
        (FeedForward::Experts { router, expert, .. }, Some(moe)) => {
            layer_shapes.push((router, vec![moe.experts, width]));
            (expert, moe.experts)
        }
        // A dense network is read as one expert whose names have no number.
        (FeedForward::Dense(parts) | FeedForward::Experts { expert: parts, .. }, _) => (parts, 1),
    };
    let expert_shapes = [
        (parts.gate, vec![hidden, width]),
        (parts.up, vec![hidden, width]),
        (parts.down, vec![width, hidden]),
    ];
    outer.into_iter().chain((0..config.layers).flat_map(move |layer| {
        let trunk = layer_shapes.clone().into_iter();
        let trunk = trunk.map(move |(name, shape)| (names::layer_tensor(name, layer), shape));
        let expert_shapes = expert_shapes.clone();
        trunk.chain((0..experts).flat_map(move |expert| {
            expert_shapes
                .clone()
                .map(|(name, shape)| (names::expert_tensor(name, layer, expert), shape))
        }))
    }))
}

fn listed(problems: &[TensorProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

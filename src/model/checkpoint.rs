//! Checkpoints: a folder in the Hugging Face layout (`config.json` and one or many `.safetensors`
//! files), or a GGUF file.
//!
//! Opening checks every tensor that the configuration asks for; weights are read on demand and
//! come out as f32.

use super::architecture::Architecture;
use super::config::ModelConfig;
use super::expected::expected_tensors;
use super::gguf_config;
use super::names::{self, ExpertNames, Projections, TensorNames};
use super::trunk::Trunk;
use super::weights::{INDEX_FILE, SINGLE_FILE, Weights, read_json};
use agents::expert::{Expert, ExpertShape};
use agents::linear;
use agents::quantize::FormatError;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A checkpoint whose files are mapped and whose tensors have the right names, shapes and types.
#[derive(Debug)]
pub struct Checkpoint {
    /// Sizes and switches.
    pub config: ModelConfig,
    /// What `config` was read from, in the words of `config.json`.
    pub(super) stated: Value,
    pub(super) family: &'static Architecture,
    pub(super) names: TensorNames,
    pub(super) weights: Weights,
    /// Whether the rows of queries and keys come in the order of llama.cpp's rotation, which pairs
    /// neighbours where ours pairs the halves of a head.
    pub(super) pairs_neighbours: bool,
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

/// Why a folder or file is not a checkpoint that can be run.
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
    #[error("{} holds neither {SINGLE_FILE} nor {INDEX_FILE}; a GGUF file is named by its own path", directory.display())]
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
    #[error("{} does not hold the model of its configuration: {}", directory.display(), listed(problems))]
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
    /// An expert that is not stored in codes.
    #[error(
        "expert {expert} of layer {layer} is not stored in codes: `nashflock quantize` writes \
         checkpoints that are"
    )]
    NotStored {
        /// Its layer.
        layer: usize,
        /// Its id.
        expert: usize,
    },
    /// Codes of a format that experts are not computed in.
    #[error("expert {expert} of layer {layer} cannot be run from its codes: {source}")]
    NotComputed {
        /// Its layer.
        layer: usize,
        /// Its id.
        expert: usize,
        /// The format.
        source: FormatError,
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
    /// It is of a type that is not supported.
    #[error("tensor {tensor} in {} is {found}, expected {expected}", path.display())]
    Dtype {
        /// Its name.
        tensor: String,
        /// Its file.
        path: PathBuf,
        /// In the file.
        found: String,
        /// What is supported.
        expected: &'static str,
    },
}

/// Problems listed before the search for more of them ends.
pub const MAX_PROBLEMS: usize = 16;

/// The files that a checkpoint and its tokenizer are read from, ascending: of a folder those in JSON and
/// safetensors, else the file itself and a tokenizer beside it. Empty where nothing is there.
#[must_use]
pub fn checkpoint_files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        let beside = path.with_file_name("tokenizer.json");
        return std::iter::once(path.to_owned())
            .chain(beside.is_file().then_some(beside))
            .collect();
    }
    let is_read = |path: &PathBuf| {
        let kind = path.extension().and_then(|kind| kind.to_str());
        matches!(kind, Some("json" | "safetensors")) && path.is_file()
    };
    let entries = std::fs::read_dir(path).into_iter().flatten();
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_read).collect();
    files.sort();
    files
}

impl Checkpoint {
    /// Opens a folder or a GGUF file and checks every tensor.
    ///
    /// # Errors
    /// The first file that cannot be read, or else all problems of the configuration, or else the
    /// first [`MAX_PROBLEMS`] problems of the tensors.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let is_file = path.is_file();
        let checkpoint = if is_file { Self::gguf(path)? } else { Self::folder(path)? };
        let problems = checkpoint.problems();
        if problems.is_empty() {
            Ok(checkpoint)
        } else {
            Err(CheckpointError::Tensors { directory: path.into(), problems })
        }
    }

    fn folder(directory: &Path) -> Result<Self, CheckpointError> {
        let path = directory.join("config.json");
        let stated = read_json(&path)?;
        let (config, family) = ModelConfig::from_json(&stated)
            .map_err(|problems| CheckpointError::Config { path, problems })?;
        let weights = Weights::open(directory)?;
        let names = chosen(family.names, &config, &weights);
        Ok(Self { config, stated, family, names, weights, pairs_neighbours: false })
    }

    fn gguf(path: &Path) -> Result<Self, CheckpointError> {
        let (weights, header) = Weights::open_gguf(path)?;
        let wrong = |problems| CheckpointError::Config { path: path.into(), problems };
        let stated = gguf_config::config_json(&header, &weights).map_err(wrong)?;
        let (config, family) = ModelConfig::from_json(&stated).map_err(wrong)?;
        let names = chosen(names::GGUF, &config, &weights);
        let pairs_neighbours = family.gguf == Some(gguf_config::LLAMA);
        Ok(Self { config, stated, family, names, weights, pairs_neighbours })
    }

    /// Everything but the experts, as f32.
    ///
    /// # Errors
    /// A weight that is not finite.
    pub fn trunk(&self) -> Result<Trunk, CheckpointError> {
        let layers = (0..self.config.layers).map(|layer| self.layer(layer));
        let TensorNames { embedding, final_norm, head, .. } = self.names;
        let head = if self.config.tied_head { embedding } else { head };
        Ok(Trunk {
            config: self.config.clone(),
            embedding: self.weights.read(embedding)?,
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: self.weights.read(final_norm)?,
            head: linear::Weights::from_rows(&self.weights.read(head)?, self.config.width),
        })
    }

    /// One expert of a layer of the model, dense layers counted.
    ///
    /// # Errors
    /// A weight that is not finite, and ids that the model does not have.
    pub fn expert(&self, layer: usize, expert: usize) -> Result<ExpertWeights, CheckpointError> {
        let Some(shape) = self.expert_shape(layer, expert) else {
            return Err(CheckpointError::NoSuchExpert { layer, expert });
        };
        let ExpertShape { width, hidden } = shape;
        let rows = |pattern, from: usize, rows: usize| {
            self.weights.read_rows(&names::layer_tensor(pattern, layer), from..from + rows)
        };
        let each = |pattern| self.weights.read(&names::expert_tensor(pattern, layer, expert));
        let (gate, up, down) = match self.names.experts {
            ExpertNames::Each(Projections { gate, up, down }) => {
                (each(gate)?, each(up)?, each(down)?)
            }
            ExpertNames::Stacked(Projections { gate, up, down }) => (
                rows(gate, expert * hidden, hidden)?,
                rows(up, expert * hidden, hidden)?,
                rows(down, expert * width, width)?,
            ),
            ExpertNames::Fused { gate_up, down } => (
                rows(gate_up, expert * 2 * hidden, hidden)?,
                rows(gate_up, (expert * 2 + 1) * hidden, hidden)?,
                rows(down, expert * width, width)?,
            ),
        };
        Ok(ExpertWeights { shape, gate, up, down })
    }

    /// One expert with the codes that a quantized checkpoint holds.
    ///
    /// # Errors
    /// A matrix that is stored in another type, damaged codes, codes of a format that experts are
    /// not computed in, and ids that the model does not have.
    pub fn stored_expert(&self, layer: usize, expert: usize) -> Result<Expert, CheckpointError> {
        let Some(shape) = self.expert_shape(layer, expert) else {
            return Err(CheckpointError::NoSuchExpert { layer, expert });
        };
        let ExpertNames::Each(Projections { gate, up, down }) = self.names.experts else {
            return Err(CheckpointError::NotStored { layer, expert });
        };
        let matrix = |pattern| self.weights.matrix(&names::expert_tensor(pattern, layer, expert));
        let (Some(gate), Some(up), Some(down)) = (matrix(gate)?, matrix(up)?, matrix(down)?) else {
            return Err(CheckpointError::NotStored { layer, expert });
        };
        let coded = agents::quantize::expert(shape, [&gate, &up, &down]);
        coded.map_err(|source| CheckpointError::NotComputed { layer, expert, source })
    }

    /// Sizes of an expert that the model has.
    fn expert_shape(&self, layer: usize, expert: usize) -> Option<ExpertShape> {
        let moe = self.config.moe.filter(|moe| self.is_routed(layer) && expert < moe.experts)?;
        Some(ExpertShape { width: self.config.width, hidden: moe.hidden })
    }

    /// What is added to the scores of a layer's experts for selection, `[experts]`; empty where the
    /// family has no such bias.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn selection_bias(&self, layer: usize) -> Result<Vec<f32>, CheckpointError> {
        let has_bias = self.family.moe.as_ref().is_some_and(|moe| moe.selection_bias);
        if has_bias && self.is_routed(layer) {
            self.weights.read(&names::layer_tensor(self.names.selection_bias, layer))
        } else {
            Ok(Vec::new())
        }
    }

    /// Weights of the model, all of them.
    #[must_use]
    pub fn weights_count(&self) -> u64 {
        expected_tensors(&self.config, self.family, &self.names)
            .map(|(_, shape)| shape.iter().product::<usize>() as u64)
            .sum()
    }

    /// The tensors of a model with another configuration of this family, each expert's apart, by their
    /// names in the Hugging Face layout: the name, what it is called here, the shape. Experts that are
    /// stored together here have no name of their own.
    pub(super) fn named_apart<'a>(
        &'a self,
        config: &'a ModelConfig,
        here: &'a TensorNames,
    ) -> impl Iterator<Item = (String, String, Vec<usize>)> + 'a {
        let names = self.names_apart();
        let apart = expected_tensors(config, self.family, names);
        let here = expected_tensors(config, self.family, here);
        apart.zip(here).map(|((name, shape), (here, _))| (name, here, shape))
    }

    /// The names of [`Self::named_apart`].
    pub(super) fn names_apart(&self) -> &'static TensorNames {
        let apart = |names: &&TensorNames| matches!(names.experts, ExpertNames::Each(_));
        self.family.names.iter().find(apart).expect("every family has such names")
    }

    /// What the tensors are called.
    pub(super) fn names(&self) -> &TensorNames {
        &self.names
    }

    /// The values of a tensor of the model.
    pub(super) fn tensor(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        self.weights.read(name)
    }

    pub(super) fn is_routed(&self, layer: usize) -> bool {
        self.config.routed_layers.binary_search(&layer).is_ok()
    }

    /// What keeps the tensors from being the model of the configuration.
    fn problems(&self) -> Vec<TensorProblem> {
        // A vector may be stored as a matrix of one row and the other way round.
        fn dimensions(shape: &[usize]) -> &[usize] {
            match shape {
                [1, rest @ ..] => rest,
                all => all,
            }
        }
        expected_tensors(&self.config, self.family, &self.names)
            .filter_map(|(tensor, expected)| {
                let Some((path, stored)) = self.weights.find(&tensor) else {
                    let path = self.weights.catalogue().into();
                    return Some(TensorProblem::Missing { tensor, path });
                };
                let path = path.into();
                if dimensions(&stored.shape) != dimensions(&expected) {
                    let found = stored.shape.clone();
                    return Some(TensorProblem::Shape { tensor, path, expected, found });
                }
                let found = stored.elements.as_ref().err()?.clone();
                Some(TensorProblem::Dtype { tensor, path, found, expected: stored.supported })
            })
            .take(MAX_PROBLEMS)
            .collect()
    }
}

/// The first of the ways to name tensors whose experts are there, or else the first.
fn chosen(names: &[TensorNames], config: &ModelConfig, weights: &Weights) -> TensorNames {
    let layer = config.routed_layers.first().copied().unwrap_or(0);
    let there = |names: &&TensorNames| {
        weights.find(&names::expert_tensor(names.experts.first(), layer, 0)).is_some()
    };
    *names.iter().find(there).unwrap_or(&names[0])
}

fn listed(problems: &[TensorProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

//! The keys of `[source]`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where affinities (and hidden states) come from.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// A trained Mixture-of-Experts checkpoint that reads text.
    Checkpoint {
        /// Folder of a checkpoint in the Hugging Face layout, or a GGUF file, relative to the scenario
        /// file.
        checkpoint: PathBuf,
        /// One or more UTF-8 text files, relative to the scenario file; read in this order.
        #[schemars(length(min = 1))]
        text: Vec<PathBuf>,
    },
    /// Random affinities: softmax or logits of N(0, 1) plus a bias for each expert.
    Synthetic {
        /// Experts in a layer, 1 to 65536.
        #[schemars(range(min = 1, max = 65_536))]
        experts: u32,
        /// Mixture-of-Experts layers, 1 to 1024. Default 1.
        #[serde(default = "default::layers")]
        #[schemars(range(min = 1, max = 1024))]
        layers: u32,
        /// Standard deviation of the per-expert bias, in logits, 0 to 100. Default 0: no expert is favoured.
        #[serde(default)]
        #[schemars(range(min = 0, max = 100))]
        skew: f64,
        /// Length of a token's hidden state, 1 to 65536. Default 64.
        #[serde(default = "default::width")]
        #[schemars(range(min = 1, max = 65_536))]
        width: u32,
        /// Rows of an expert's gate and up projections, 1 to 262144. Default 128.
        #[serde(default = "default::expert_hidden")]
        #[schemars(range(min = 1, max = 262_144))]
        expert_hidden: u32,
    },
}

mod default {
    pub(super) fn layers() -> u32 {
        1
    }
    pub(super) fn width() -> u32 {
        64
    }
    pub(super) fn expert_hidden() -> u32 {
        128
    }
}

//! The keys of `[precision]`.

mod reallocate;

use std::path::PathBuf;

use agents::precision::pruned_count;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::reallocate::{Reallocate, ReallocatePolicy};
use crate::scenario::budget::Budget;

/// Bit widths of the experts' weights.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Precision {
    /// Size of all experts, scales included, or `stored`: the codes of a quantized checkpoint. Default `f32`: not quantized.
    pub budget: Budget,
    /// Who chooses the widths: `exact`, `hull`, `flock`, `local_search`, `uniform:N`, or one of your own. Default `exact`.
    pub allocator: String,
    /// What widths are chosen by. Default `output`.
    pub sensitivity: Sensitivity,
    /// What has a width of its own. Default `expert`.
    pub unit: PrecisionUnit,
    /// Share of each layer's experts that is pruned, 0 to 0.99, rounded down. Default 0.
    #[schemars(range(min = 0, max = 0.99))]
    pub prune: f64,
    /// By what experts are ranked for pruning. Default `reap`.
    pub prune_by: PruneBy,
    /// Bits of a weight code that may be used, each 2, 4 or 8. Default all three.
    #[schemars(length(min = 1, max = 3), extend("items" = { "type": "integer", "enum": [2, 4, 8] }))]
    pub widths: Vec<u32>,
    /// Weights that share a scale, 32 or 64. Default 32.
    #[schemars(extend("enum" = [32, 64]))]
    pub group: u32,
    /// UTF-8 text that shows which experts matter, relative to the scenario file. Without it widths follow the weights alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration_text: Option<PathBuf>,
    /// Tokens of the calibration text that are read, 1 to 16777216. Default 2048.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub calibration_tokens: u32,
    /// Whether and how widths follow the loads during the run.
    pub reallocate: Reallocate,
}

impl Default for Precision {
    fn default() -> Self {
        Self {
            budget: Budget::Full,
            allocator: "exact".to_owned(),
            sensitivity: Sensitivity::Output,
            unit: PrecisionUnit::Expert,
            prune: 0.0,
            prune_by: PruneBy::Reap,
            widths: vec![2, 4, 8],
            group: 32,
            calibration_text: None,
            calibration_tokens: 2048,
            reallocate: Reallocate::default(),
        }
    }
}

impl Precision {
    /// Experts of a layer that pruning leaves of `experts`.
    #[must_use]
    pub fn kept_experts(&self, experts: usize) -> usize {
        experts - pruned_count(self.prune, experts)
    }
}

/// What widths are chosen by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sensitivity {
    /// The relative squared error of the layer's output.
    #[default]
    Output,
    /// The expected change of the model's predictions, in nats: output errors scaled by what they do to those.
    Loss,
}

/// What has a width of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrecisionUnit {
    /// An expert: its three matrices have one width.
    #[default]
    Expert,
    /// Each of an expert's gate, up and down matrices; needs sensitivity `loss`.
    Matrix,
}

/// By what experts are ranked for pruning, on the calibration requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PruneBy {
    /// Mean of gate times output norm over the tokens that an expert got.
    #[default]
    Reap,
    /// Share of tokens that an expert got: the control.
    Frequency,
}

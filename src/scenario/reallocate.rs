//! The keys of `[precision.reallocate]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Widths that follow the loads while the run goes on: experts that are asked for more gain bits, and others
/// make room for them. Off unless `every_steps` says otherwise.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Reallocate {
    /// Batches, or steps where answers are generated, between two decisions, 0 to 65536. Default 0: widths stay.
    #[schemars(range(max = 65_536))]
    pub every_steps: u32,
    /// Bytes of experts that a decision may change, at their new sizes, 0 to 2^63 - 1. Default: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9_223_372_036_854_775_807u64))]
    pub bytes_max: Option<u64>,
    /// What changing 10^6 bytes must save, in the relative squared error that widths are chosen by, 0 to 1000000. Default 0.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub cost_per_mb: f64,
    /// Weight of the latest step in the average of the loads, 0.0001 to 1. Default 0.2.
    #[schemars(range(min = 0.0001, max = 1))]
    pub load_step: f64,
}

impl Default for Reallocate {
    fn default() -> Self {
        Self { every_steps: 0, bytes_max: None, cost_per_mb: 0.0, load_step: 0.2 }
    }
}

impl Reallocate {
    /// Whether widths stay as they are at the start.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.every_steps == 0
    }
}

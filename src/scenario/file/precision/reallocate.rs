//! The keys of `[precision.reallocate]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Widths that follow the loads while the run goes on: experts that are asked for more gain bits, and others
/// make room for them. Off unless `every_steps` says otherwise.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Reallocate {
    /// Who decides. Default `exact`.
    pub policy: ReallocatePolicy,
    /// Holders that decide apart under policy `flock`, 1 to 4096: experts are dealt to them in turn, as to nodes by
    /// placement `round_robin`. Where the nodes divide them, each node keeps within its bytes. Default 8.
    #[schemars(range(min = 1, max = 4096))]
    pub holders: u32,
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

/// Who decides on the widths during a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReallocatePolicy {
    /// One that sees all experts, under the budget of all.
    #[default]
    Exact,
    /// Each holder for its own experts, within the bytes that they take at the start.
    Flock,
}

impl Default for Reallocate {
    fn default() -> Self {
        Self {
            policy: ReallocatePolicy::Exact,
            holders: 8,
            every_steps: 0,
            bytes_max: None,
            cost_per_mb: 0.0,
            load_step: 0.2,
        }
    }
}

impl Reallocate {
    /// Whether widths stay as they are at the start.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.every_steps == 0
    }
}

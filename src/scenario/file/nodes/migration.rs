//! The keys of `[nodes.migration]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Experts that move between nodes while the run goes on, by the loads. No result depends on it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Migration {
    /// Who decides: `flock`, `greedy`, `eplb`, `none`, or a rule of your own. Default `none`: experts stay.
    pub policy: String,
    /// Batches, or steps where answers are generated, between two decisions, 2 to 65536. Default 4.
    #[schemars(range(min = 2, max = 65_536))]
    pub every_steps: u32,
    /// Encoded bytes of experts that a decision may send, 0 to 2^63 - 1. Default: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9_223_372_036_854_775_807u64))]
    pub bytes_max: Option<u64>,
    /// Weight of the latest step in the average of the loads, 0.0001 to 1. Default 0.2.
    #[schemars(range(min = 0.0001, max = 1))]
    pub load_step: f64,
}

impl Default for Migration {
    fn default() -> Self {
        Self { policy: Self::NONE.to_owned(), every_steps: 4, bytes_max: None, load_step: 0.2 }
    }
}

impl Migration {
    /// The name of no policy.
    pub(crate) const NONE: &str = "none";

    /// Whether experts stay on their nodes.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.policy == Self::NONE
    }
}

//! The keys of `[compute]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The coordinator's own resources.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Compute {
    /// Threads of the coordinator, 1 to 1024; results do not depend on it. Default 2.
    #[schemars(range(min = 1, max = 1024))]
    pub threads: u32,
}

impl Default for Compute {
    fn default() -> Self {
        Self { threads: 2 }
    }
}

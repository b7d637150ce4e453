//! The keys of `[run]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the run itself is kept. Results do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// Rounds, that is games, from a checkpoint to the next, 0 to 1000000000; it waits for the end of the batch or step.
    /// Default 256. 0: there are none, and a run that is cut starts over.
    #[schemars(range(max = 1_000_000_000))]
    pub checkpoint_every_rounds: u32,
}

impl Default for Run {
    fn default() -> Self {
        Self { checkpoint_every_rounds: 256 }
    }
}

//! What summary and manifest say of a run that was cut and went on.

use super::manifest::{Machine, Source};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Cuts that the run went on after. The run's clock, which every latency and rate is of, stands still from
/// the checkpoint that a part ended with until serving goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResumeFigures {
    /// Times that the run was resumed.
    pub count: u64,
    /// Wall-clock time that the run's clock stood still, summed, ns: in no latency. What was played
    /// after a checkpoint and was played again is in it.
    pub gap_ns: u64,
    /// Requests that had arrived by a checkpoint that the run went on from and were answered, or given up,
    /// after it: each once a cut. Their latencies are those of the run's clock, without the gap.
    pub requests_across: u64,
}

/// One resumption, as the manifest lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resumption {
    /// RFC 3339, UTC.
    pub resumed_at: String,
    /// When the checkpoint was written that it went on from, likewise; null where it began anew for
    /// want of one.
    pub checkpoint_at: Option<String>,
    /// Batches or steps that were kept.
    pub steps_kept: u64,
    /// Why the newest checkpoint was passed over; null where it was not.
    pub passed_over: Option<String>,
    /// The command line, word by word.
    pub command: Vec<String>,
    /// What the binary was built from.
    pub source: Source,
    /// Where the coordinator ran.
    pub machine: Machine,
}

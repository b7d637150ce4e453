//! What the summary says of experts that move between nodes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Experts that moved between nodes. A decision falls at the end of a step; its copies are brought while the
/// next step is served, and work from the one after it. Loads of nodes are largest over mean, as in
/// `placement.served`, and every figure has beside it what the same rounds would have come to otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationFigures {
    /// Who decided.
    pub policy: String,
    /// Steps between two decisions.
    pub every_steps: u64,
    /// Decisions, those that move nothing too.
    pub decisions: u64,
    /// Copies that came into force on a node that had not held them.
    pub copies: u64,
    /// Their encoded bytes.
    pub bytes_moved: u64,
    /// Encoded bytes that were sent for that; 0 where all experts are in this process.
    pub bytes_sent: u64,
    /// Experts that some new host did not get, because it was lost or had no room.
    pub incomplete: u64,
    /// Decisions for a layer that asked for more than bytes or room allow, and changed nothing.
    pub refused: u64,
    /// The longest time between two steps in which copies were waited for, ns; absent where none moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ns_max: Option<u64>,
    /// Largest over mean node load as served.
    pub max_over_mean: Option<f64>,
    /// The same had all experts stayed: the control.
    pub max_over_mean_frozen: Option<f64>,
    /// The same with a fresh EPLB plan at every decision, whatever it sends; absent where copies do not divide over the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_over_mean_eplb: Option<f64>,
    /// Bytes that those plans would have moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_eplb: Option<u64>,
    /// Nodes that compute for a token in a layer, mean.
    pub nodes_per_token: Option<f64>,
    /// The same had all experts stayed.
    pub nodes_per_token_frozen: Option<f64>,
}

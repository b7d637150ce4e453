//! What a summary says of virtual time.

use super::blocks::BlockFigures;
use super::node_memory::NodeMemory;
use super::uplinks::UplinkFigures;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nodes were virtual: times and rates of the summary are those that such nodes would have had, and not of the
/// machine that the run was on. Figures of the game and of quality are real.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VirtualTime {
    /// Virtual nodes.
    pub nodes: u64,
    /// Virtual time from the start of serving to the end of the last batch, ns.
    pub span_ns: u64,
    /// Where requests were blocks that only chose experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<BlockFigures>,
    /// What nodes hold; absent in results of versions that did not count it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<NodeMemory>,
    /// What racks and pods share, where that is limited: `out` and `in` for each level.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uplinks: Vec<UplinkFigures>,
}

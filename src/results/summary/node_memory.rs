//! What a summary says of the memory of virtual nodes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Encoded bytes of the experts that nodes hold when serving starts, replicas too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeMemory {
    /// What a node has; none where `virtual.memory_bytes` sets no limit.
    pub memory_bytes: Option<u64>,
    /// What all nodes hold together.
    pub resident_bytes: u64,
    /// Mean of a node.
    pub resident_bytes_mean: f64,
    /// The most that a node holds.
    pub resident_bytes_max: u64,
    /// Which node that is, from 0; the first of several.
    pub fullest: u64,
}

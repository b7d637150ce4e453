//! How nodes are talked to.

use super::Deadlines;

/// What holds for all nodes of a dispatcher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RemoteSettings {
    /// How long a node may take for each thing.
    pub deadlines: Deadlines,
    /// Pairs that hedges may cost for each pair ordered; 0 hedges nothing.
    pub hedge_budget: f64,
    /// Connections that carry orders and replies, for each node; another carries health and shards.
    /// 0 counts as 1.
    pub data_connections: usize,
}

impl Default for RemoteSettings {
    /// Hedges for one pair in twenty, one data connection.
    fn default() -> Self {
        Self { deadlines: Deadlines::default(), hedge_budget: 0.05, data_connections: 1 }
    }
}

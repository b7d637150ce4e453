//! How nodes are talked to.

use super::Deadlines;
use crate::transport::Access;

/// What holds for all nodes of a dispatcher.
#[derive(Clone, Debug)]
pub struct RemoteSettings {
    /// How long a node may take for each thing.
    pub deadlines: Deadlines,
    /// Pairs that hedges may cost for each pair ordered; 0 hedges nothing.
    pub hedge_budget: f64,
    /// Connections that carry orders and replies, for each node; another carries health and shards.
    /// 0 counts as 1.
    pub data_connections: usize,
    /// Orders that are computed a second time, by other holders of their experts, for each order: 0 to 1.
    pub spot_check_share: f64,
    /// Which orders these are.
    pub spot_check_seed: u64,
    /// What nodes are shown.
    pub access: Access,
}

impl Default for RemoteSettings {
    /// Hedges for one pair in twenty, one data connection, no checks, plain text and no token.
    fn default() -> Self {
        Self {
            deadlines: Deadlines::default(),
            hedge_budget: 0.05,
            data_connections: 1,
            spot_check_share: 0.0,
            spot_check_seed: 0,
            access: Access::default(),
        }
    }
}

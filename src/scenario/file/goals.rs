//! The keys of `[goals]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the run must reach.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Goals {
    /// Largest relative gap to the optimum, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub relative_gap_max: Option<f64>,
    /// Largest load of an expert in fair shares, 1 to 65536.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub max_over_mean_max: Option<f64>,
    /// Largest node load over the mean one, of the run as `placement.served` sums it up, 1 to 4096.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub node_load_over_mean_max: Option<f64>,
    /// Largest 99th percentile of request latency, in ms, 0.001 to 3600000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 3_600_000))]
    pub p99_ms_max: Option<f64>,
}

//! The keys of `[load]`.

mod generation;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::generation::{Generation, Lengths};

/// The requests that arrive.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// How arrivals are spaced. Default `poisson`.
    #[serde(default)]
    pub arrival: Arrival,
    /// Standard deviation of the gaps over their mean, 0.01 to 100, used by arrival `gamma`. Default 2.
    #[serde(default = "default::gap_variation")]
    #[schemars(range(min = 0.01, max = 100))]
    pub variation: f64,
    /// Requests that arrive together, 1 to 65536, used by arrival `burst`. Default 8.
    #[serde(default = "default::burst_requests")]
    #[schemars(range(min = 1, max = 65_536))]
    pub burst_requests: u32,
    /// CSV file with a column of arrival times, relative to the scenario file; arrival `trace` needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<PathBuf>,
    /// Requests that arrive in a second, 0.001 to 1000000.
    #[schemars(range(min = 0.001, max = 1_000_000))]
    pub rate_per_s: f64,
    /// Requests in the run, 1 to 100000000.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub requests: u32,
    /// Tokens of a request, 1 to 1048576. Default 64.
    #[serde(default = "default::tokens_per_request")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub tokens_per_request: u32,
    /// Requests that close a batch, 1 to 65536. Default 16.
    #[serde(default = "default::batch_requests_max")]
    #[schemars(range(min = 1, max = 65_536))]
    pub batch_requests_max: u32,
    /// A batch closes when full, or this long after its first intended arrival, in ms, 0 to 3600000. Default 50.
    #[serde(default = "default::batch_window_ms")]
    #[schemars(range(max = 3_600_000))]
    pub batch_window_ms: u32,
    /// A request answered later than this after its intended arrival counts as late, in ms, 1 to 3600000. Default 2000.
    #[serde(default = "default::deadline_ms")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub deadline_ms: u32,
    /// Which requests are served. Default `all`.
    #[serde(default)]
    pub admission: Admission,
    /// What a closed batch may wait while the queue stands, in ms, 1 to 3600000, used by admission `codel`. Default 20.
    #[serde(default = "default::queue_target_ms")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub queue_target_ms: u32,
    /// What it may wait otherwise, and how long the queue must not have been empty to stand, in ms, 1 to 3600000. Default 200.
    #[serde(default = "default::queue_interval_ms")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub queue_interval_ms: u32,
    /// Requests that may wait, 1 to 100000000, used by admission `codel`; more are shed. Default 1024.
    #[serde(default = "default::queue_requests_max")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub queue_requests_max: u32,
    /// Answers that requests have decoded token by token; by default requests are windows of text.
    #[serde(default)]
    pub generation: Generation,
}

/// Which requests are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Admission {
    /// All, however late.
    #[default]
    All,
    /// Those that can still be answered by `deadline_ms`, by the latest service times. What is shed, and
    /// so the state, then depends on the machine's speed.
    Deadline,
    /// Those that find room in a bounded queue and whose batch need not wait long (CoDel): others are shed,
    /// or end as `timeout`. The state then depends on the machine's speed.
    Codel,
}

/// How arrivals are spaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Arrival {
    /// Exponential gaps.
    #[default]
    Poisson,
    /// Equal gaps.
    Constant,
    /// Gamma gaps of coefficient of variation `variation`.
    Gamma,
    /// `burst_requests` at a time, at exponential gaps.
    Burst,
    /// As recorded in `trace`, stretched to `rate_per_s`.
    Trace,
}

mod default {
    pub(super) fn gap_variation() -> f64 {
        2.0
    }
    pub(super) fn burst_requests() -> u32 {
        8
    }
    pub(super) fn tokens_per_request() -> u32 {
        64
    }
    pub(super) fn batch_requests_max() -> u32 {
        16
    }
    pub(super) fn batch_window_ms() -> u32 {
        50
    }
    pub(super) fn deadline_ms() -> u32 {
        2000
    }
    pub(super) fn queue_target_ms() -> u32 {
        20
    }
    pub(super) fn queue_interval_ms() -> u32 {
        200
    }
    pub(super) fn queue_requests_max() -> u32 {
        1024
    }
}

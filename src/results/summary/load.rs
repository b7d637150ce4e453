//! What was asked and what came of it: rates, ends of requests, pairs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Work done a second of serving: from its start to the end of the last batch, without loading,
/// calibration and controls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Throughput {
    /// Tokens of answered requests.
    pub tokens_per_s: Option<f64>,
    /// Tokens of requests that were answered in time.
    #[serde(default)]
    pub goodput_tokens_per_s: Option<f64>,
    /// Tokens a second that the load's mean rate offers: the control, which an open loop cannot exceed
    /// for long. A random stretch of arrivals may lie above or below it.
    #[serde(default)]
    pub offered_tokens_per_s: Option<f64>,
    /// Token–expert pairs combined.
    pub token_experts_per_s: Option<f64>,
    /// Payload sent and received, as in `rounds`; 0 where the experts are in this process.
    pub bytes_per_s: Option<f64>,
    /// What the rates were divided by, ns.
    #[serde(default)]
    pub elapsed_ns: u64,
}

/// How requests ended; every request counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outcomes {
    /// In time and whole.
    pub ok: u64,
    /// Whole, after the deadline.
    pub late: u64,
    /// Given up after waiting too long, before work began.
    pub timeout: u64,
    /// Refused before work began.
    pub shed: u64,
    /// Failed.
    pub error: u64,
    /// Answered with experts missing.
    pub partial: u64,
}

impl Outcomes {
    /// Requests in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.rows().iter().map(|(_, count)| count).sum()
    }

    /// Every outcome by its key.
    #[must_use]
    pub fn rows(&self) -> [(&'static str, u64); 6] {
        [
            ("ok", self.ok),
            ("late", self.late),
            ("timeout", self.timeout),
            ("shed", self.shed),
            ("error", self.error),
            ("partial", self.partial),
        ]
    }
}

/// Token–expert pairs: `dispatched = combined + missing + shed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pairs {
    /// Ordered by the game.
    pub dispatched: u64,
    /// Came back and was added once.
    pub combined: u64,
    /// Never came back.
    pub missing: u64,
    /// Not sent.
    pub shed: u64,
}

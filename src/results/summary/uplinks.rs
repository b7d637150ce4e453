//! What a summary says of links that racks and pods share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Links of a level in one direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UplinkFigures {
    /// `rack` or `pod`.
    pub level: String,
    /// `out` of it or `in`to it.
    pub direction: String,
    /// How many there are: one for each rack or pod.
    pub links: u64,
    /// What the nodes of a rack or pod could send together over what its link carries.
    pub oversubscription: f64,
    /// Messages that passed.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Mean wait of a message for the link, ns; none without messages.
    pub wait_mean_ns: Option<f64>,
    /// Share of the time in which links carried something, their mean.
    pub busy_mean: f64,
    /// The largest of these shares.
    pub busy_max: f64,
    /// Whose that is, from 0.
    pub busiest: u64,
    /// Mean wait there, ns; none without messages.
    pub busiest_wait_mean_ns: Option<f64>,
    /// In stretches of time, where requests are blocks; messages are told by when they passed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stretches: Vec<UplinkStretch>,
}

/// Links of a level in one direction in one stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UplinkStretch {
    /// When it began, ns.
    pub from_ns: u64,
    /// Bytes that passed.
    pub bytes: u64,
    /// Share of the time in which links carried something, their mean.
    pub busy_mean: f64,
    /// Mean wait of a message, ns; none without messages.
    pub wait_mean_ns: Option<f64>,
}

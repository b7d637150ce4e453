//! The keys of `[game]`.

use agents::game::CostParameters;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The routing game.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Game {
    /// Name of the router: the dynamics that picks experts.
    pub router: String,
    /// Experts a token picks, 1 to the number of experts. Checkpoints default to the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub top_k: Option<u32>,
    /// What a token gains from an expert. Default `probability`.
    #[serde(default)]
    pub affinity: Affinity,
    /// Name of the congestion cost: `quota`, `linear`, `polynomial`, `latency`, or one of your own. Default `quota`.
    #[serde(default = "default::cost")]
    pub cost: String,
    /// Capacity of an expert in fair shares Tk/E, 1 to 65536; used by cost `quota`. Default 1.
    #[serde(default = "default::capacity_factor")]
    #[schemars(range(min = 1, max = 65_536))]
    pub capacity_factor: f64,
    /// Price of the load of one fair share, in affinity, 0 to 1000000; used by costs `linear` and `polynomial`. Default 0.1.
    #[serde(default = "default::price_per_fair_share")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub price_per_fair_share: f64,
    /// Power of the load in fair shares, 0 to 64; used by cost `polynomial`. Default 4, as for roads.
    #[serde(default = "default::degree")]
    #[schemars(range(min = 0, max = 64))]
    pub degree: f64,
    /// Service time of a token in ms, 0 to 1000000, one for every expert or one for all; cost `latency` needs it.
    #[serde(default)]
    #[schemars(length(max = 65_536), extend("items" = { "type": "number", "minimum": 0, "maximum": 1_000_000 }))]
    pub service_ms: Vec<f64>,
    /// Time in which a batch is to be served, in ms, 0.001 to 1000000; cost `latency` needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 1_000_000))]
    pub window_ms: Option<f64>,
    /// Standard deviation of service times over their mean, 0 to 1000; used by cost `latency`. Default 1: exponential.
    #[serde(default = "default::variation")]
    #[schemars(range(min = 0, max = 1000))]
    pub variation: f64,
    /// Price of a ms of waiting, in affinity, 0 to 1000000; used by cost `latency`. Default 0.01.
    #[serde(default = "default::price_per_ms")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub price_per_ms: f64,
    /// Whether the social optimum of each game is found too, to give the price of anarchy. Default false.
    #[serde(default)]
    pub social_optimum: bool,
    /// What the router may know when a batch is routed. Default `in-batch`.
    #[serde(default)]
    pub information: Information,
}

impl Game {
    /// What the keys of this section say to congestion costs; a window that is not given is 0.
    #[must_use]
    pub fn cost_parameters(&self) -> CostParameters {
        CostParameters {
            capacity_factor: self.capacity_factor,
            price_per_fair_share: self.price_per_fair_share,
            degree: self.degree,
            service_ms: self.service_ms.clone(),
            window_ms: self.window_ms.unwrap_or_default(),
            variation: self.variation,
            price_per_ms: self.price_per_ms,
        }
    }
}

/// What the router may know when a batch is routed. Only `stale` is causal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Information {
    /// The whole batch. Not causal: a token's experts depend on later tokens.
    #[default]
    InBatch,
    /// Prices of earlier batches and the token itself. Causal from batch to batch.
    Stale {
        /// Age of the prices in batches, 1 to 65536. Default 1, as in training.
        #[serde(default = "default::batches")]
        #[schemars(range(min = 1, max = 65_536))]
        batches: u32,
    },
    /// Several dispatchers, each with its own share of the batch. Not causal within a share.
    Partial {
        /// Dispatchers, 1 to 65536.
        #[schemars(range(min = 1, max = 65_536))]
        dispatchers: u32,
    },
}

/// What a token gains from an expert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Affinity {
    /// The router's softmax probability.
    #[default]
    Probability,
    /// The router's logit.
    Logit,
}

mod default {
    pub(super) fn cost() -> String {
        "quota".to_owned()
    }
    pub(super) fn capacity_factor() -> f64 {
        1.0
    }
    pub(super) fn price_per_fair_share() -> f64 {
        0.1
    }
    pub(super) fn degree() -> f64 {
        4.0
    }
    pub(super) fn variation() -> f64 {
        1.0
    }
    pub(super) fn price_per_ms() -> f64 {
        0.01
    }
    pub(super) fn batches() -> u32 {
        1
    }
}

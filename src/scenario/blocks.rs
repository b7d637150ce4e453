//! The keys of `[virtual.blocks]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Requests as blocks of tokens that choose experts without computing them, at many front ends: what clusters
/// would do that have more nodes than a machine can compute for. Off unless `front_ends` says otherwise.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Blocks {
    /// Front ends, 0 to 65536: each routes the requests that reach it. Default 0: no blocks, experts are computed.
    #[schemars(range(max = 65_536))]
    pub front_ends: u32,
    /// Experts that are drawn for a request, those with the largest affinities, `top_k` to 65536. Default 32.
    #[schemars(range(min = 1, max = 65_536))]
    pub candidates: u32,
    /// Experts that a node has memory for, 1 to 65536. Default 1.
    #[schemars(range(min = 1, max = 65_536))]
    pub expert_slots: u32,
    /// Bits of a weight, 1 to 32: what touching an expert costs. Default 4.
    #[schemars(range(min = 1, max = 32))]
    pub weight_bits: f64,
    /// Widths that experts have instead, each its share of them, at most 16. Default none: all have `weight_bits`.
    #[schemars(length(max = 16))]
    pub widths: Vec<BlockWidth>,
    /// Which experts have the wide ones of these. Default `popular`.
    pub widths_to: WidthsTo,
    /// Whether of two hosts that are drawn the one is asked that the front end waits less for. Default false.
    pub two_choices: bool,
    /// Racks that the experts of a request are in, at most, 0 to 1000000. Default 0: any number.
    #[schemars(range(max = 1_000_000))]
    pub racks_max: u32,
    /// Whether hosts in a front end's own rack are asked before others, and that rack is the first of `racks_max`.
    /// Default false.
    pub own_rack: bool,
    /// Whether front ends price loads, by `game.cost` linear or polynomial; else plain top-k. Default true.
    pub prices: bool,
    /// Loads are counted and told by period, in ms, 0.001 to 1000000. Default 10.
    #[schemars(range(min = 0.001, max = 1_000_000))]
    pub period_ms: f64,
    /// From a period's end until others know its loads, in ms, 0 to 1000000. Default 1.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub delay_ms: f64,
    /// Other front ends that one hears of in a period, 0 to 65535; what it does not hear it takes to be alike.
    /// Default 65535: all.
    #[schemars(range(max = 65_535))]
    pub fan_out: u32,
    /// Share of the way that prices go to the cost of the loads heard, 0.000001 to 1. Default 0.3.
    #[schemars(range(min = 0.000_001, max = 1))]
    pub step: f64,
    /// Periods whose joint play is certified, 0 to 1024: the last that are whole. Default 1.
    #[schemars(range(max = 1024))]
    pub certified: u32,
    /// A message without an answer is given up after this time, in ms, 0.001 to 1000000. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 1_000_000))]
    pub patience_ms: Option<f64>,
    /// Times that a request asks anew before it is lost, 0 to 1000. Default 3.
    #[schemars(range(max = 1000))]
    pub again_max: u32,
    /// A node that broke off is avoided for this long, in ms, 0 to 1000000. Default 100.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub aside_ms: f64,
    /// Requests that a front end has under way at most, 1 to 10000000; more are shed. Default 100000.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub open_max: u32,
    /// Requests that arrive before this time are in no latency, in ms, 0 to 1000000000. Default 0.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub warm_up_ms: f64,
    /// Length of the stretches that outcomes are told by, in ms, 0.001 to 1000000. Default 100.
    #[schemars(range(min = 0.001, max = 1_000_000))]
    pub stretch_ms: f64,
}

/// A width and how many experts have it.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockWidth {
    /// Bits of a weight with its scales, a multiple of 1/16, 1 to 32.
    #[schemars(range(min = 1, max = 32))]
    pub bits: f64,
    /// Share of the experts, over the sum of all shares, 0.000001 to 1000000.
    #[schemars(range(min = 0.000_001, max = 1_000_000))]
    pub share: f64,
}

/// Which experts have wide weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WidthsTo {
    /// Those that are wanted most.
    #[default]
    Popular,
    /// Those that are wanted least: what is asked often is quick.
    Rare,
    /// Widths are dealt over experts by their numbers, whoever is wanted.
    Even,
}

impl Default for Blocks {
    fn default() -> Self {
        Self {
            front_ends: 0,
            candidates: 32,
            expert_slots: 1,
            weight_bits: 4.0,
            widths: Vec::new(),
            widths_to: WidthsTo::Popular,
            two_choices: false,
            racks_max: 0,
            own_rack: false,
            prices: true,
            period_ms: 10.0,
            delay_ms: 1.0,
            fan_out: 65_535,
            step: 0.3,
            certified: 1,
            patience_ms: None,
            again_max: 3,
            aside_ms: 100.0,
            open_max: 100_000,
            warm_up_ms: 0.0,
            stretch_ms: 100.0,
        }
    }
}

impl Blocks {
    /// Whether experts are computed.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.front_ends == 0
    }
}

//! What `summary.json` says of a placement: how evenly it loads the nodes, beside its controls.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which nodes host which experts, and how evenly that loads them. Loads are token–expert pairs.
/// Each figure is a sum of largest node loads divided by the sum of mean node loads, over layers
/// (`expected`) or rounds (`served`): how much longer than on evenly loaded nodes the experts take
/// when all nodes are equally fast and each round waits for the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlacementFigures {
    /// The rule: `round_robin`, `eplb` or `planned`.
    pub name: String,
    /// Expert copies in each layer beyond one an expert that there is room for.
    pub replica_slots: u64,
    /// What was expected when the experts were placed; absent for `round_robin`, which looks at no
    /// loads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<ExpectedNodeLoads>,
    /// What the served traffic came to.
    pub served: ServedNodeLoads,
}

impl PlacementFigures {
    /// Whether it is more than its own control: not every expert once, dealt in turn.
    #[must_use]
    pub fn is_chosen(&self) -> bool {
        self.name != "round_robin" || self.replica_slots > 0
    }
}

/// The loads that a placement was planned for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExpectedNodeLoads {
    /// Where they come from.
    pub loads_from: LoadsFrom,
    /// Largest over mean node load under this placement and its best dispatch, in fractions of
    /// tokens.
    pub max_over_mean: Option<f64>,
    /// No placement in as many slots a node is below this.
    pub lower_bound: Option<f64>,
    /// (`max_over_mean` − `lower_bound`) / `max_over_mean`.
    pub relative_gap: Option<f64>,
}

/// Where expected loads come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoadsFrom {
    /// The calibration requests, played under the run's own router before serving.
    Calibration,
    /// All the same: the checkpoint has no calibration text.
    Even,
}

/// Largest over mean node load of the served traffic, with its controls on the same rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServedNodeLoads {
    /// As served: this placement, each round's tokens split over the copies in whole so that the
    /// largest node load is least.
    pub max_over_mean: Option<f64>,
    /// No split over the same copies is below this: from the tight set of each round.
    pub dispatch_lower_bound: Option<f64>,
    /// No placement in as many slots a node is below this, even one made for each round by itself.
    pub lower_bound: Option<f64>,
    /// The same copies with each expert's load split evenly over them, as EPLB assumes, rounded up
    /// to whole tokens: the control of the split.
    pub max_over_mean_even_split: Option<f64>,
    /// Every expert once, dealt to the nodes in turn: the control of the placement.
    pub max_over_mean_round_robin: Option<f64>,
}

impl ServedNodeLoads {
    /// Its keys.
    pub const KEYS: [&str; 5] = [
        "max_over_mean",
        "dispatch_lower_bound",
        "lower_bound",
        "max_over_mean_even_split",
        "max_over_mean_round_robin",
    ];
}

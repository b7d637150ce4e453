//! How far play was from equilibrium: of the router, of the flock, of rows that move.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The play over all rounds. Certificates are the worst round's; balance and score loss are means
/// weighted by tokens, for the router and its control alike.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Convergence {
    /// Name of the router.
    pub router: String,
    /// Games played (layers × steps).
    pub rounds: u64,
    /// Steps of the router's own kind, summed.
    pub iterations: u64,
    /// Passes over the T × E scores, summed.
    #[serde(default)]
    pub passes: u64,
    /// Time of the router, summed, ns.
    #[serde(default)]
    pub route_ns: u64,
    /// Largest regret of a token, in units of affinity.
    pub epsilon_nash: Option<f64>,
    /// (D − Φ)/|D|: at most this far from the optimum.
    pub relative_gap: Option<f64>,
    /// Largest load over the fair share.
    pub max_over_mean: Option<f64>,
    /// The same in the worst round.
    #[serde(default)]
    pub max_over_mean_worst: Option<f64>,
    /// `max_over_mean` under plain top-k on the same scores: the control.
    pub max_over_mean_top_k: Option<f64>,
    /// Share of the affinity of plain top-k that balance cost.
    pub score_loss: Option<f64>,
    /// Slots that tokens were left without, summed over tokens with fewer than k experts.
    #[serde(default)]
    pub dropped_pairs: u64,
    /// Pairs beyond k of a token, summed.
    #[serde(default)]
    pub extra_pairs: u64,
    /// Smallest share of its top-k affinity that any token kept.
    #[serde(default)]
    pub kept_share_min: Option<f64>,
    /// Whether every round's relative gap is within the scenario's goal, or 1e-4 without one.
    pub converged: bool,
    /// The plays against the social optimum, where the scenario asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub social: Option<SocialFigures>,
}

/// What all tokens pay together, summed over rounds, in units of affinity: the affinity they give up
/// against plain top-k and the congestion they suffer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SocialFigures {
    /// Of the plays.
    pub cost: Option<f64>,
    /// The least there is: of the social optimum of every game, the control.
    pub optimum: Option<f64>,
    /// No plays cost less, certified.
    pub optimum_bound: Option<f64>,
    /// `cost` / `optimum`, given where every play is an equilibrium and the bound proves the optimum
    /// to within 1e-6: the games' price of anarchy is at least this.
    pub price_of_anarchy: Option<f64>,
}

/// The flock rules alone, on the same scores as the router.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlockComparison {
    /// Largest regret in the last quarter of the batches.
    pub epsilon_nash: Option<f64>,
    /// Largest relative gap in the last quarter of the batches.
    pub relative_gap: Option<f64>,
    /// Largest load over the fair share, mean over the first quarter of the batches, weighted by
    /// tokens as the router's.
    pub max_over_mean_first: Option<f64>,
    /// The same over the last quarter.
    pub max_over_mean_last: Option<f64>,
}

/// Router rows that moved (MODEL.md section 4). What it costs in loss stands in `quality`, whose controls
/// have the trained rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MotionFigures {
    /// The rule.
    pub rule: String,
    /// Rounds after which the rows of a layer moved or were put back.
    pub moves: u64,
    /// Of these the rounds after which they were put back, because plain top-k would have lost too much.
    pub undone: u64,
    /// Angle between a row and the trained one at the end, mean over all, radians.
    pub turned_mean_rad: f64,
    /// The largest of these angles, radians.
    pub turned_max_rad: f64,
}

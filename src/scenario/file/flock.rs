//! The keys of `[flock]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `flock.motion` of rows that stand.
const NO_MOTION: &str = "none";

/// How experts share and move their prices from batch to batch.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Flock {
    /// Whether prices are carried from batch to batch. Default true.
    pub enabled: bool,
    /// Nearest experts that an expert minds, 1 to 65535. Default 7, as starlings keep.
    #[schemars(range(min = 1, max = 65_535))]
    pub neighbours: u32,
    /// Price change, in affinity, per fair share of excess load, 0 to 1000. Default 0.003.
    #[schemars(range(min = 0, max = 1000))]
    pub price_step: f64,
    /// Weight of the neighbours' price changes in an expert's own, 0 to 1. Default 0.3.
    #[schemars(range(min = 0, max = 1))]
    pub alignment: f64,
    /// Rule by which router rows move after each batch: `boids`, `k_means`, `auxiliary_loss`, `consensus`,
    /// `random_step`, or one of your own; only with a checkpoint. Default `none`: they stand.
    pub motion: String,
    /// Angle that a row turns in a batch at most, radians, 0 to 1.5. Default 0.02.
    #[schemars(range(min = 0, max = 1.5))]
    pub motion_turn_max_rad: f64,
    /// Part of the trained router's scores that plain top-k may lose by a move, 0 to 1; a move that loses
    /// more is undone. Default 0.05.
    #[schemars(range(min = 0, max = 1))]
    pub motion_score_loss_max: f64,
}

impl Default for Flock {
    fn default() -> Self {
        Self {
            enabled: true,
            neighbours: 7,
            price_step: 0.003,
            alignment: 0.3,
            motion: NO_MOTION.to_owned(),
            motion_turn_max_rad: 0.02,
            motion_score_loss_max: 0.05,
        }
    }
}

impl Flock {
    /// The rule by which rows move; none where they stand.
    #[must_use]
    pub fn motion_rule(&self) -> Option<&str> {
        Some(self.motion.as_str()).filter(|rule| *rule != NO_MOTION)
    }
}

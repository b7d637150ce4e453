//! What the model still knows of the text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Cross-entropy in nats a token, with its controls on the same windows, in this process. Under plain
/// top-k a window's loss does not depend on its batch, so each is played once and weighted by how
/// often it was served; the routed control plays the run's own batches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Quality {
    /// Quantized experts, routed by the run's router.
    pub loss: Option<f64>,
    /// The f32 model with its own plain top-k.
    pub loss_f32: Option<f64>,
    /// ln V: a model that predicts nothing.
    pub loss_uniform: Option<f64>,
    /// The same quantized experts under plain top-k.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_top_k: Option<f64>,
    /// All experts at the best uniform width within the budget, under plain top-k: the control of
    /// mixed widths, to be held against `loss_top_k`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_top_k_uniform_bits: Option<f64>,
    /// The experts at the widths of the start, under the run's router, on the run's own batches: the control
    /// of re-allocation, to be held against `loss`. Absent where widths stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_widths_kept: Option<f64>,
    /// Relative squared error of the routed layers' outputs from those of f32 experts under the run's router, on
    /// the run's own batches, at the widths that the run had. Absent where widths stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// The same at the widths of the start: the control.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error_widths_kept: Option<f64>,
    /// f32 experts, those that are kept, under plain top-k: what pruning alone costs, to be held
    /// against `loss_f32`. Absent where nothing is pruned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_f32_pruned: Option<f64>,
    /// The same with as many experts pruned by frequency: the control of the criterion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_f32_pruned_by_frequency: Option<f64>,
    /// f32 experts, those that are kept, under the run's router, on the run's own batches: what
    /// routing alone costs. Absent where the router is plain top-k.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_f32_routed: Option<f64>,
    /// Tokens scored.
    pub tokens: u64,
}

//! What the summary says of widths that follow the loads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Widths that followed the loads. A decision falls at the end of a step; the experts that it changes are
/// quantized while the next step is served, and brought to their nodes before the one after it. Costs are
/// those of `precision`, corrected by the loads at the last decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReallocationFigures {
    /// Who decides: `exact`, one that sees all, or `flock`, each holder for its own experts.
    #[serde(default)]
    pub policy: String,
    /// Steps between two decisions.
    pub every_steps: u64,
    /// Decisions.
    pub decisions: u64,
    /// Changes of an expert's width that came into force.
    pub moves: u64,
    /// Bytes of the experts that changed, at their new widths, each once.
    pub bytes_moved: u64,
    /// Encoded bytes that were sent for that, to every node that holds a copy; 0 where all experts are in this
    /// process.
    pub bytes_sent: u64,
    /// The longest time between two steps in which changed experts were waited for and brought, ns; absent where
    /// nothing changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ns_max: Option<u64>,
    /// Bytes of all experts at the end.
    pub expert_bytes_end: u64,
    /// Experts of each bit width at the end, those that are pruned left out.
    pub widths_end: BTreeMap<u32, u64>,
    /// Cost of the widths chosen last; absent where no decision fell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// Cost had one that sees all decided each time by the same loads, where holders decide: the control.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_exact: Option<f64>,
    /// Cost of the widths of the start: the control.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_kept: Option<f64>,
    /// Cost of the hull allocation, had changing been free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_free: Option<f64>,
    /// No widths within the budget cost less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dual_bound: Option<f64>,
}

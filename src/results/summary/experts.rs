//! What the experts weigh, and who was narrowed or pruned for it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Size of the experts; scales and offsets are included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// Resident bytes of all experts as served, one copy of each however many replicas there are.
    pub expert_bytes: u64,
    /// Bytes of the same experts in `base_type`: the control.
    pub expert_bytes_f32: u64,
    /// Bits a weight, scales included.
    pub bits_per_weight: Option<f64>,
    /// 1 − `expert_bytes` / `expert_bytes_f32`.
    pub saving: Option<f64>,
    /// What the saving is counted against.
    pub base_type: String,
    /// Experts of each bit width; at 0 bits, those that are pruned.
    #[serde(default)]
    pub widths: BTreeMap<u32, u64>,
}

impl Memory {
    /// The sizes and what follows from them, against f32.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "sizes stay below 2^53")]
    pub fn new(expert_bytes: u64, weights: u64, widths: BTreeMap<u32, u64>) -> Self {
        let expert_bytes_f32 = weights * 4;
        let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        Self {
            expert_bytes,
            expert_bytes_f32,
            bits_per_weight: ratio(expert_bytes * 8, weights),
            saving: ratio(expert_bytes, expert_bytes_f32).map(|share| 1.0 - share),
            base_type: "f32".to_owned(),
            widths,
        }
    }
}

/// How well the precision budget was used. By sensitivity `loss`, costs are the expected divergence of the next
/// token's distribution from that of f32 experts, in nats; by `output`, they are relative squared errors of the layers' outputs
/// on calibration text under plain top-k, summed over experts; for experts that the text never
/// reached, or without a text, relative squared errors of the weights times a small assumed share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PrecisionFigures {
    /// Bytes that the budget allows.
    pub budget_bytes: u64,
    /// Who chose the widths.
    #[serde(default = "exact")]
    pub allocator: String,
    /// What costs are: `output` or `loss`.
    #[serde(default = "output")]
    pub sensitivity: String,
    /// What has a width of its own: `expert` or `matrix`.
    #[serde(default = "expert")]
    pub unit: String,
    /// Cost of the allocation in use.
    pub cost: f64,
    /// Bytes of the allocation in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Cost of the exact allocation: the control.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact_cost: Option<f64>,
    /// (`cost` − `exact_cost`) / `exact_cost`; absent where the exact allocation alone is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_to_exact: Option<f64>,
    /// No allocation within the budget costs less.
    pub dual_bound: f64,
    /// Whether the exact allocation is exact, not rounded to coarser sizes.
    #[serde(default)]
    pub exact: bool,
    /// Cost of the best uniform width within the budget: the control; absent where none fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uniform_cost: Option<f64>,
    /// Bytes of that uniform width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uniform_bytes: Option<u64>,
}

fn exact() -> String {
    "exact".to_owned()
}

fn output() -> String {
    "output".to_owned()
}

fn expert() -> String {
    "expert".to_owned()
}

/// Which experts were pruned: they take no bytes, no token can choose them, and every certificate is
/// that of the game over the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PruningFigures {
    /// By what experts were ranked: `reap` or `frequency`.
    pub by: String,
    /// The share of each layer that was asked for.
    pub share: f64,
    /// Experts of all layers.
    pub experts: u64,
    /// Those of them that are gone.
    pub pruned: u64,
    /// Pruned experts that ranking by frequency would have kept; absent where that is the ranking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlike_frequency: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_counted_against_f32() {
        let memory = Memory::new(376, 1_000, BTreeMap::from([(3, 8)]));
        assert_eq!(memory.expert_bytes_f32, 4_000);
        assert_eq!(memory.bits_per_weight, Some(3.008));
        assert_eq!(memory.saving, Some(0.906));
        assert_eq!(Memory::new(0, 0, BTreeMap::new()).saving, None);
    }
}

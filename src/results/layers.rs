//! `layers.json`: what has one value an expert, kept out of the summary so that people can read that.

use serde::{Deserialize, Serialize};

use super::SCHEMA_VERSION;

/// Loads and bit widths of every expert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Layers {
    /// Version of this layout.
    pub schema_version: u32,
    /// One entry a layer.
    pub layers: Vec<LayerFigures>,
}

/// One layer. Every list has one entry an expert, in the order of their ids, or is empty where that
/// was not measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LayerFigures {
    /// The layer.
    pub layer: u32,
    /// Tokens an expert would have got from plain top-k, over the whole run: the control.
    pub loads_top_k: Vec<u64>,
    /// Tokens it got from the run's router, over the whole run.
    pub loads: Vec<u64>,
    /// Bits a weight is stored in, scales not counted; 0 where the expert is pruned.
    pub bits: Vec<u32>,
    /// The same at the end of the run, where widths followed the loads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bits_end: Vec<u32>,
    /// Where the experts' router rows lie at the start, in thousandths along the two directions in which
    /// they differ most; empty where they lie in no plane.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<[i16; 2]>,
    /// The first steps one by one, 40 of them at most and fewer in layers of more than 1638 experts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepLoads>,
}

/// Steps that a layer keeps one by one.
const STEPS_MAX: usize = 40;
/// Experts times steps that a layer keeps.
const STEP_CELLS_MAX: usize = 65_536;
/// Tokens of a step whose hidden states are placed.
pub const TOKENS_PLACED: usize = 48;

/// One step of a layer, an entry for each expert in play.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct StepLoads {
    /// Tokens an expert would have got from plain top-k.
    pub loads_top_k: Vec<u32>,
    /// Tokens it got from the router.
    pub loads: Vec<u32>,
    /// What the hidden states of the first 48 tokens turn to: cosines with the two directions of the layer's `places`,
    /// in thousandths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<[i16; 2]>,
}

impl LayerFigures {
    /// Keeps a step, as long as there is room.
    pub fn keep_step(
        &mut self,
        loads_top_k: &[u32],
        loads: &[u32],
        tokens: impl FnOnce() -> Vec<[i16; 2]>,
    ) {
        if self.steps.len() < STEPS_MAX.min(STEP_CELLS_MAX / loads.len().max(1)) {
            let (loads_top_k, loads) = (loads_top_k.to_vec(), loads.to_vec());
            self.steps.push(StepLoads { loads_top_k, loads, tokens: tokens() });
        }
    }
}

impl Layers {
    /// The layers under the present version.
    #[must_use]
    pub fn new(layers: Vec<LayerFigures>) -> Self {
        Self { schema_version: SCHEMA_VERSION, layers }
    }
}

//! Score sources: where hidden states, router logits and experts come from.
//!
//! A source runs everything around the experts. It stops at each Mixture-of-Experts layer to hand
//! out the layer's input, and goes on when it gets the layer's output.

mod checkpoint;
mod generate;
pub mod matrix;
mod pruned;
mod synthetic;
pub mod trace;

pub use checkpoint::{CheckpointSource, SourceError};
pub use generate::{Generate, GeneratingSource, Sequence, Sequences};
pub use pruned::{KeptExperts, PrunedSource};
pub use synthetic::{SyntheticSettings, SyntheticSource};

use crate::model::checkpoint::{CheckpointError, ExpertWeights};
use agents::expert::Expert;
use agents::ids::{ExpertId, LayerId, RequestId};
use agents::routing::Routing;

/// Sizes that a game on a source has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SourceShape {
    /// Mixture-of-Experts layers.
    pub layers: usize,
    /// Experts of a layer, E.
    pub experts: usize,
    /// Columns of a hidden row.
    pub width: usize,
    /// k, as the source was made for.
    pub top_k: usize,
    /// The routing that the source was made for.
    pub routing: Routing,
    /// Tokens of each request.
    pub tokens_per_request: usize,
}

/// The input of a Mixture-of-Experts layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerInput {
    /// f32 `[T, width]`: what the experts compute on.
    pub hidden: Vec<f32>,
    /// f32 `[T, E]`: router logits.
    pub logits: Vec<f32>,
}

/// Where hidden states, router logits and experts come from.
///
/// For each batch the calls are `begin`, then for each layer in order `perceive` and `absorb`, then
/// `finish`. A token's values depend on its own request alone, never on the batch it shares.
pub trait ScoreSource: Send + Sync {
    /// Its sizes.
    fn shape(&self) -> SourceShape;

    /// Router weight of a layer, row-major `[experts, width]`.
    fn router_rows(&self, layer: LayerId) -> Vec<f32>;

    /// What is added to the scores of a layer's experts for selection, `[experts]`; empty for none.
    fn selection_bias(&self, _layer: LayerId) -> Vec<f32> {
        Vec::new()
    }

    /// The f32 weights of one expert.
    ///
    /// # Errors
    /// When the checkpoint lacks it.
    fn expert(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights, CheckpointError>;

    /// One expert with the codes that it is stored in.
    ///
    /// # Errors
    /// When it is stored in another type, or its codes are damaged or of a format that experts are
    /// not computed in.
    fn stored_expert(&self, layer: LayerId, expert: ExpertId) -> Result<Expert, CheckpointError> {
        Err(CheckpointError::NotStored { layer: layer.index(), expert: expert.index() })
    }

    /// Takes up a batch.
    fn begin(&mut self, requests: &[RequestId]);

    /// The layer's input for the batch.
    fn perceive(&mut self, layer: LayerId) -> LayerInput;

    /// Takes the layer's output, `[T, width]`.
    fn absorb(&mut self, layer: LayerId, output: &[f32]);

    /// Ends the batch: the summed next-token loss of each request in nats, where text is scored.
    fn finish(&mut self) -> Option<Vec<f64>>;
}

//! What each width costs each matrix of the experts, in nats of expected loss, where nothing else is quantized
//! and each group is rounded by itself: as runs serve experts.

use super::costs::{Costs, by_groups, measure};
use super::{ExpertPart, Kept, Model, Part, QuantizeError, sample, window_tokens};
use crate::model::checkpoint::Checkpoint;
use agents::quantize::Format;

/// Costs of the matrices of all routed experts.
pub struct ExpertCosts {
    costs: Costs,
    /// The model's layer of each layer of the game.
    routed_layers: Vec<usize>,
}

impl ExpertCosts {
    /// Of gate, up and down of an expert, each at each format; `layer` counts routed layers.
    ///
    /// # Panics
    /// When there is no such expert.
    #[must_use]
    pub fn of(&self, layer: usize, expert: usize) -> [&[f64]; 3] {
        let layer = self.routed_layers[layer];
        [ExpertPart::Gate, ExpertPart::Up, ExpertPart::Down].map(|part| {
            let costs = self.costs.of(Part::Expert(layer, expert, part));
            costs.expect("every matrix of a routed expert was measured")
        })
    }
}

/// Measures them on all windows of the calibration text, under plain top-k. `kept` are the experts that are left
/// of each layer of the game, where some are pruned; they are numbered anew.
///
/// # Errors
/// When the checkpoint cannot be read or the text is too short.
pub fn expert_costs(
    checkpoint: &Checkpoint,
    calibration: &[u32],
    kept: Option<&[Vec<usize>]>,
    formats: &[Format],
) -> Result<ExpertCosts, QuantizeError> {
    let mut exact = Model::load(checkpoint)?;
    let ids = sample(calibration, usize::MAX, window_tokens(&checkpoint.config))?;
    let routed_layers = checkpoint.config.routed_layers.clone();
    if let Some(kept) = kept {
        let kept: Kept = routed_layers.iter().copied().zip(kept.iter().cloned()).collect();
        exact.keep(&kept);
    }
    let round = by_groups(&routed_layers, formats);
    let costs = measure(&exact, &ids, formats.len() / 2, &round)?;
    drop(round);
    Ok(ExpertCosts { costs, routed_layers })
}

//! Calibration where no text is given: the model writes its own.

use super::super::checkpoint::Checkpoint;
use super::costs::logits_of;
use super::parts::Model;
use super::{QuantizeError, window_tokens};
use agents::rng::stream;
use rand::RngExt as _;

/// Most windows that a model writes: each token takes a pass over all before it.
pub const OWN_WINDOWS: usize = 16;

/// Text that a model writes by itself, as token ids: `windows` windows, at most
/// [`OWN_WINDOWS`], and one token after them. A window starts with any symbol, and each further one is drawn
/// from the model's own distribution, from seed 0. Such text meets weights with inputs much as read text
/// does, as far as the model is a good one (self-sampled calibration: MoEQuant, arXiv 2505.03804).
///
/// # Errors
/// When the checkpoint cannot be read.
pub fn own_text(checkpoint: &Checkpoint, windows: usize) -> Result<Vec<u32>, QuantizeError> {
    let model = Model::load(checkpoint)?;
    let experts = model.local_experts();
    let vocab = model.trunk.config.vocab;
    let mut rng = stream(0, "own text");
    let symbols = u32::try_from(vocab).unwrap_or(u32::MAX);
    let count = windows.clamp(1, OWN_WINDOWS);
    let mut texts: Vec<Vec<u32>> = (0..count).map(|_| vec![rng.random_range(0..symbols)]).collect();
    for length in 1..window_tokens(&model.trunk.config) {
        let logits = logits_of((&model, &experts), &texts.concat(), length)?;
        let rows = logits.chunks_exact(vocab).skip(length - 1).step_by(length);
        for (text, row) in texts.iter_mut().zip(rows) {
            text.push(drawn(row, rng.random()));
        }
    }
    let mut ids = texts.concat();
    // Windows are cut so that a token is left to predict.
    ids.push(ids[0]);
    Ok(ids)
}

/// The symbol at `share` of the distribution `softmax(logits)`.
fn drawn(logits: &[f32], share: f64) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|x| f64::from(x - max).exp()).collect();
    let mut left = share * weights.iter().sum::<f64>();
    let place = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    let last = weights.len() - 1;
    u32::try_from(place.unwrap_or(last)).expect("a vocabulary has 32-bit ids")
}

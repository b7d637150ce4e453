//! Loss of a model on a text, and how far another model is from it.

use super::experts::MoeOutput;
use super::tokenizer::{Document, windows};
use super::trunk::{Pass, TokensError, Trunk};
use agents::transformer::{argmax, cross_entropy, divergence};
use rayon::prelude::*;
use serde::Serialize;

/// Tokens of a window.
pub const WINDOW_TOKENS: usize = 256;
/// Windows that are run together.
pub const BATCH_WINDOWS: usize = 8;

/// Runs a routed layer: layer, hidden states `[tokens, width]`, router logits `[tokens, experts]`.
/// It is not called for a dense model.
pub type MoeLayer<'a> = dyn FnMut(usize, &[f32], &[f32]) -> MoeOutput + 'a;

/// A model to score: its trunk and what runs its routed layers.
pub struct Scored<'a> {
    /// Weights around the experts.
    pub trunk: &'a Trunk,
    /// Runs the routed layers.
    pub moe: &'a mut MoeLayer<'a>,
}

/// What a model scores on a text. Logarithms are natural unless a name says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean of `−ln p(next token)`, in nats a token.
    pub loss: f64,
    /// Half of the loss's 95 % interval, [`half_width_95`] over the windows.
    pub loss_half_width_95: Option<f64>,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// The loss in bits a character of the text.
    pub bits_per_char: f64,
    /// Predicted tokens.
    pub tokens: usize,
    /// What the uniform predictor scores, `ln vocab`: the control.
    pub loss_uniform: f64,
    /// One entry a routed layer, first to last.
    pub expert_loads: Vec<ExpertLoads>,
    /// Distance to the reference model, where one was given.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
}

/// How the tokens of a text were spread over the experts of a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertLoads {
    /// The layer.
    pub layer: usize,
    /// Tokens of each expert.
    pub loads: Vec<u64>,
    /// The largest load over the mean load.
    pub max_over_mean: f64,
}

/// How far a model is from its f32 reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Loss of the reference, in nats a token.
    pub loss_f32: f64,
    /// Loss of the model less that of the reference, in nats a token.
    pub loss_difference: f64,
    /// Half of the difference's 95 % interval, [`half_width_95`] over the windows. Both models read
    /// the same windows, so what is hard in a window cancels.
    pub loss_difference_half_width_95: Option<f64>,
    /// Mean of `KL(reference ‖ model)` of the next token, in nats.
    pub kl_to_f32: f64,
    /// Share of tokens whose most probable successor is the same, 0 to 1.
    pub top1_agreement: f64,
}

/// Why a text cannot be scored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The text has no whole window.
    #[error("the text has {ids} tokens; scoring needs at least {}", WINDOW_TOKENS + 1)]
    TooShort {
        /// Tokens it has.
        ids: usize,
    },
    /// The tokens do not fit the model.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// The reference predicts other symbols.
    #[error("the model has {vocab} symbols but its reference has {reference}")]
    Vocabulary {
        /// Of the model.
        vocab: usize,
        /// Of the reference.
        reference: usize,
    },
}

/// Scores a model on the whole windows of a text, each with a context of its own.
///
/// `progress` is called with the windows done and their number. Sums run in f64 in the order of
/// the windows, so the figures do not depend on the number of threads.
///
/// # Errors
/// A text without a whole window, ids outside the vocabulary, a reference of another vocabulary.
pub fn evaluate(
    mut model: Scored<'_>,
    mut reference: Option<Scored<'_>>,
    document: &Document,
    mut progress: impl FnMut(usize, usize),
) -> Result<Evaluation, EvalError> {
    let vocab = model.trunk.config.vocab;
    if let Some(other) = reference.as_ref().map(|other| other.trunk.config.vocab)
        && other != vocab
    {
        return Err(EvalError::Vocabulary { vocab, reference: other });
    }
    let cut = windows(&document.ids, WINDOW_TOKENS);
    let tokens = cut.inputs.len();
    if tokens == 0 {
        return Err(EvalError::TooShort { ids: document.ids.len() });
    }
    let batch = BATCH_WINDOWS * WINDOW_TOKENS;
    let mut losses = Vec::new();
    let mut loads: Vec<Vec<u64>> = Vec::new();
    let mut against = Sums::default();
    for (index, (inputs, targets)) in
        cut.inputs.chunks(batch).zip(cut.targets.chunks(batch)).enumerate()
    {
        let pass = run_layers(&mut model, inputs, WINDOW_TOKENS, |routed, batch_loads| {
            add_loads(&mut loads, routed, batch_loads);
        })?;
        losses.extend(match &mut reference {
            None => by_window(&pass.losses(targets)),
            Some(reference) => {
                let other = run_layers(reference, inputs, WINDOW_TOKENS, |_, _| {})?;
                against.add(&pass.logits(), &other.logits(), targets, vocab)
            }
        });
        let done = index * BATCH_WINDOWS + inputs.len() / WINDOW_TOKENS;
        progress(done, tokens / WINDOW_TOKENS);
    }
    let loss = losses.iter().sum::<f64>() / losses.len() as f64;
    let tokens_per_char = document.ids.len() as f64 / document.characters as f64;
    Ok(Evaluation {
        loss,
        loss_half_width_95: half_width_95(&losses),
        perplexity: loss.exp(),
        bits_per_char: loss / std::f64::consts::LN_2 * tokens_per_char,
        tokens,
        loss_uniform: (vocab as f64).ln(),
        expert_loads: expert_loads(loads),
        agreement: reference.is_some().then(|| against.mean(&losses)),
    })
}

/// The mean of each window.
fn by_window(tokens: &[f64]) -> Vec<f64> {
    let mean = |window: &[f64]| window.iter().sum::<f64>() / window.len() as f64;
    tokens.chunks(WINDOW_TOKENS).map(mean).collect()
}

/// `1.96 s / √n` for the standard deviation s of n values: half of the normal 95 % interval of their
/// mean, as if they were drawn independently. None of a single value.
///
/// Windows of one book are not quite independent, so the interval speaks of this text and others like it
/// rather than of all texts.
#[must_use]
pub fn half_width_95(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some(1.96 * (squares / (count - 1.0) / count).sqrt())
}

/// Runs all layers of a batch and reports the loads of each routed one.
pub(super) fn run_layers<'a>(
    model: &mut Scored<'a>,
    inputs: &[u32],
    window: usize,
    mut report: impl FnMut(usize, &[u32]),
) -> Result<Pass<'a>, TokensError> {
    let mut pass = model.trunk.begin(inputs, window)?;
    for layer in 0..model.trunk.layers.len() {
        let Some(input) = pass.up_to_router(layer) else { continue };
        let MoeOutput { output, loads } = (model.moe)(layer, input.hidden, input.router_logits);
        report(layer, &loads);
        pass.add_moe(layer, &output);
    }
    Ok(pass)
}

/// The loads of the routed layers; a dense one has none.
fn expert_loads(sums: Vec<Vec<u64>>) -> Vec<ExpertLoads> {
    let layers = sums.into_iter().enumerate();
    let routed = layers.filter(|(_, loads)| loads.iter().any(|load| *load > 0));
    routed.map(ExpertLoads::of_layer).collect()
}

fn add_loads(sums: &mut Vec<Vec<u64>>, layer: usize, loads: &[u32]) {
    if sums.len() <= layer {
        sums.resize(layer + 1, vec![0; loads.len()]);
    }
    sums[layer].iter_mut().zip(loads).for_each(|(sum, load)| *sum += u64::from(*load));
}

impl ExpertLoads {
    fn of_layer((layer, loads): (usize, Vec<u64>)) -> Self {
        let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
        let max = loads.iter().copied().max().unwrap_or(0) as f64;
        Self { layer, loads, max_over_mean: max / mean }
    }
}

/// Distances of all windows so far.
#[derive(Default)]
struct Sums {
    /// The reference's mean loss of each window.
    losses: Vec<f64>,
    divergence: f64,
    same: usize,
    tokens: usize,
}

impl Sums {
    /// Adds a batch and returns the model's own mean loss of each window.
    fn add(&mut self, model: &[f32], reference: &[f32], targets: &[u32], vocab: usize) -> Vec<f64> {
        let rows: Vec<((f64, f64), (f64, bool))> = model
            .par_chunks_exact(vocab)
            .zip(reference.par_chunks_exact(vocab))
            .zip(targets)
            .map(|((model, reference), target)| {
                let target = *target as usize;
                let losses = (cross_entropy(model, target), cross_entropy(reference, target));
                (losses, (divergence(reference, model), argmax(model) == argmax(reference)))
            })
            .collect();
        let (losses, distances): (Vec<_>, Vec<(f64, bool)>) = rows.into_iter().unzip();
        for (divergence, same) in distances {
            self.divergence += divergence;
            self.same += usize::from(same);
        }
        self.tokens += targets.len();
        let (own, reference): (Vec<f64>, Vec<f64>) = losses.into_iter().unzip();
        self.losses.extend(by_window(&reference));
        by_window(&own)
    }

    fn mean(&self, own: &[f64]) -> Agreement {
        let differences: Vec<f64> = own.iter().zip(&self.losses).map(|(a, b)| a - b).collect();
        let windows = own.len() as f64;
        let tokens = self.tokens as f64;
        Agreement {
            loss_f32: self.losses.iter().sum::<f64>() / windows,
            loss_difference: differences.iter().sum::<f64>() / windows,
            loss_difference_half_width_95: half_width_95(&differences),
            kl_to_f32: self.divergence / tokens,
            top1_agreement: self.same as f64 / tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::half_width_95;

    #[test]
    fn an_interval_is_that_of_the_textbook_and_needs_two_values() {
        // s = 2 for 1, 3, 5; s / sqrt(3) = 1.1547.
        let half = half_width_95(&[1.0, 3.0, 5.0]).expect("three values");
        assert!((half - 1.96 * 1.154_700_538).abs() < 1e-9, "{half}");
        assert_eq!(half_width_95(&[2.0, 2.0]), Some(0.0));
        assert_eq!((half_width_95(&[2.0]), half_width_95(&[])), (None, None));
    }
}

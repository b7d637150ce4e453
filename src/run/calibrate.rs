//! Calibration: what plain top-k sends to each expert on the calibration requests.

use super::controls::{Played, in_turn, play_batches};
use super::materials::Materials;
use super::rounds::{Round, RoundError};
use super::rules;
use crate::measure::Clock;
use crate::scenario::Scenario;
use crate::source::{KeptExperts, SourceShape};
use agents::ids::TokenId;
use agents::precision;
use agents::round::Arena;

/// What the calibration requests sent to each expert of a layer.
#[derive(Default)]
pub(super) struct LayerSample {
    /// What the layer computed on, `[tokens, width]`: once, however many experts a token has.
    hidden: Vec<f32>,
    width: usize,
    /// By expert: rows of `hidden`.
    chosen_by: Vec<Vec<TokenId>>,
    /// By expert: gates `[m]`.
    pub(super) gates: Vec<Vec<f32>>,
    /// Of the layer's output.
    pub(super) energy: f64,
    /// Tokens × experts per token.
    pub(super) pairs: usize,
    pub(super) tokens: usize,
    /// Tokens that chose both of two experts, `[E, E]`.
    pub(super) together: Vec<u64>,
}

impl LayerSample {
    /// An expert's activations `[m, width]`.
    pub(super) fn x(&self, expert: usize) -> Vec<f32> {
        let tokens = self.chosen_by[expert].iter();
        tokens.flat_map(|t| &self.hidden[t.index() * self.width..][..self.width]).copied().collect()
    }
}

/// Plays the calibration requests with plain top-k on the f32 experts that are kept.
///
/// # Errors
/// The first round that fails.
pub(super) async fn calibrate(
    materials: &Materials,
    scenario: &Scenario,
    kept: Option<&KeptExperts>,
    clock: &Clock,
) -> Result<Vec<LayerSample>, RoundError> {
    let SourceShape { layers, experts, width, .. } = materials.source(kept).shape();
    let mut samples: Vec<LayerSample> = (0..layers)
        .map(|_| LayerSample {
            width,
            chosen_by: vec![Vec::new(); experts],
            gates: vec![Vec::new(); experts],
            together: vec![0; experts * experts],
            ..LayerSample::default()
        })
        .collect();
    let Some((mut source, requests)) = materials.calibration_source(kept) else {
        return Ok(samples);
    };
    let full = Played::Read(materials.source(kept));
    let arena = rules::top_k_arena(source.as_ref(), scenario, full.bits());
    let collect = |round: &Round<'_>, arena: &mut Arena| {
        let sample = &mut samples[round.layer.index()];
        let (choices, gates) = (arena.choices(), arena.gates());
        sample.hidden.extend_from_slice(&round.input.hidden);
        for token in 0..choices.tokens() {
            let row = TokenId::from_index(sample.tokens + token);
            for (expert, gate) in choices.row(token).iter().zip(&gates[choices.pairs(token)]) {
                sample.chosen_by[expert.index()].push(row);
                sample.gates[expert.index()].push(*gate);
                for other in choices.row(token) {
                    sample.together[expert.index() * experts + other.index()] += 1;
                }
            }
        }
        sample.energy += precision::output_energy(round.output);
        sample.pairs += choices.experts().len();
        sample.tokens += choices.tokens();
    };
    let batches = in_turn(requests, scenario.load.batch_requests_max as usize);
    play_batches(source.as_mut(), arena, full, batches, clock, collect).await?;
    Ok(samples)
}

//! Pruning before quantizing: the experts of every layer that matter least are left out.
//!
//! What is left is a smaller model of the same family: fewer rows in each router, and experts numbered
//! anew in their old order. That is the old model with the logits of the pruned at −∞.

use super::super::config::ModelConfig;
use super::super::trunk::FeedForwardWeights;
use super::parts::Model;
use super::streams::{picked, route};
use super::{QuantizeError, window_tokens};
use agents::expert::{BitWidth, Expert};
use agents::linear::Weights;
use agents::precision::{PruneCriterion, prune_lowest, prune_score, pruned_count};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// How many experts go, and which.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pruning {
    /// Of each layer's experts, from 0 to below 1, rounded down.
    pub share: f64,
    /// By what they are ranked, on the calibration text, in f32 and under plain top-k.
    pub criterion: PruneCriterion,
}

/// For each routed layer the experts that are left, by their numbers in the whole model, ascending; as
/// many in every layer.
pub type Kept = BTreeMap<usize, Vec<usize>>;

/// Windows whose tokens are held at once.
const WINDOWS_AT_ONCE: usize = 32;

impl Pruning {
    /// Checks that enough is left.
    ///
    /// # Errors
    /// When a dense model has nothing to prune, a router picks groups of experts, which would no longer be of one
    /// size, or a token would find too few experts.
    pub(super) fn check(self, config: &ModelConfig) -> Result<(), QuantizeError> {
        let moe = config.moe.ok_or(QuantizeError::NoExperts)?;
        if moe.routing.groups.is_some() {
            return Err(QuantizeError::PrunedGroups);
        }
        let (share, experts, top_k) = (self.share, moe.experts, moe.top_k);
        let kept = experts - pruned_count(share, experts);
        if kept < top_k {
            return Err(QuantizeError::Pruning { share, kept, experts, top_k });
        }
        Ok(())
    }
}

/// Ranks the experts of every layer on the calibration tokens.
pub(super) fn choose(
    model: &Model,
    ids: &[u32],
    pruning: Pruning,
) -> Result<Kept, super::super::trunk::TokensError> {
    let config = &model.trunk.config;
    let served = model.local_experts();
    // Scores times the tokens they are the mean of, and those tokens.
    let mut sums: BTreeMap<usize, Vec<(f64, usize)>> = config
        .routed_layers
        .iter()
        .map(|layer| (*layer, vec![(0.0, 0); model.experts[*layer].len()]))
        .collect();
    let window = window_tokens(config);
    for ids in ids.chunks(WINDOWS_AT_ONCE * window) {
        let mut pass = model.trunk.begin(ids, window)?;
        for layer in 0..config.layers {
            let Some(input) = pass.up_to_router(layer) else { continue };
            let routed = route(model, layer, input.hidden);
            let own = model.experts[layer].par_iter().zip(&routed);
            let scored: Vec<f64> = own
                .map(|(weights, (rows, gates))| {
                    let (gate, up, down) = (&weights.gate, &weights.up, &weights.down);
                    let expert =
                        Expert::quantize(weights.shape, gate, up, down, BitWidth::Full, 32);
                    let x = picked(input.hidden, rows, config.width);
                    prune_score(pruning.criterion, &expert, &x, gates, ids.len())
                })
                .collect();
            let sums = sums.entry(layer).or_default();
            for ((sum, score), (rows, _)) in sums.iter_mut().zip(scored).zip(&routed) {
                let tokens = match pruning.criterion {
                    PruneCriterion::Reap => rows.len(),
                    PruneCriterion::Frequency => ids.len(),
                };
                sum.0 += score * tokens as f64;
                sum.1 += tokens;
            }
            let output = served.forward(layer, input.hidden, input.router_logits).output;
            pass.add_moe(layer, &output);
        }
    }
    let mean = |(sum, tokens): &(f64, usize)| sum / (*tokens).max(1) as f64;
    let kept = |(layer, sums): (usize, Vec<(f64, usize)>)| {
        (layer, prune_lowest(&sums.iter().map(mean).collect::<Vec<_>>(), pruning.share))
    };
    Ok(sums.into_iter().map(kept).collect())
}

impl Model {
    /// Leaves the other experts and their router rows out, and gives how many weights those have.
    pub(super) fn keep(&mut self, kept: &Kept) -> u64 {
        let width = self.trunk.config.width;
        let mut gone = 0;
        for (layer, kept) in kept {
            let own = &mut self.experts[*layer];
            let pruned = own.len() - kept.len();
            let each: usize = own.first().map_or(0, |expert| 3 * expert.gate.len()) + width;
            gone += (pruned * each) as u64;
            *own = kept.iter().map(|expert| own[*expert].clone()).collect();
            let bias = &mut self.selection_bias[*layer];
            if !bias.is_empty() {
                gone += pruned as u64;
                *bias = picked(bias, kept, 1);
            }
            if let FeedForwardWeights::Routed { router, .. } =
                &mut self.trunk.layers[*layer].feed_forward
            {
                *router = Weights::from_rows(&picked(&router.rows(), kept, width), width);
            }
            if let Some(moe) = &mut self.trunk.config.moe {
                moe.experts = kept.len();
            }
        }
        gone
    }
}

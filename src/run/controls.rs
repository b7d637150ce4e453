//! Controls: the same windows under other routers and experts, in process.

use super::fit::{self, FittedExperts};
use super::plan::Plan;
use super::prune;
use super::rounds::{Round, RoundError, play_batch};
use super::rules;
use super::serve::ServeError;
use crate::dispatch::{Dispatch, InProcess, ShardAssignment};
use crate::measure::Clock;
use crate::model::checkpoint::CheckpointError;
use crate::results::Summary;
use crate::source::{KeptExperts, ScoreSource};
use agents::expert::{BitWidth, Expert};
use agents::ids::{ExpertId, LayerId, NodeId, RequestId, StepId};
use agents::round::Arena;
use std::sync::Arc;

/// All experts by layer and id.
pub(super) type ExpertTable = [Vec<Arc<Expert>>];

/// Plays batches on experts in this process, one after the other, and gives the summed loss of each
/// request in nats; empty where no text is scored. `watch` sees every round.
///
/// # Errors
/// The first round that fails.
pub(super) async fn play_batches(
    source: &mut dyn ScoreSource,
    mut arena: Arena,
    experts: &ExpertTable,
    batches: impl Iterator<Item = Vec<RequestId>>,
    clock: &Clock,
    mut watch: impl FnMut(&Round<'_>, &mut Arena),
) -> Result<Vec<f64>, RoundError> {
    let mut dispatch = InProcess::new();
    let shards = shards_on(experts, |_, _| vec![NodeId(0)]);
    dispatch.load(shards).await.expect("experts in this process load");
    let mut losses = Vec::new();
    for (step, requests) in batches.enumerate() {
        let batch = (StepId::from_index(step), requests.as_slice());
        let scored =
            play_batch(source, &mut arena, &mut dispatch, clock, batch, &mut watch).await?;
        losses.extend(scored.unwrap_or_default());
        // Lets an interrupt be heard between batches: nothing here waits by itself.
        tokio::task::yield_now().await;
    }
    Ok(losses)
}

/// Requests `0..requests` in batches of `batch_requests`.
pub(super) fn in_turn(
    requests: usize,
    batch_requests: usize,
) -> impl Iterator<Item = Vec<RequestId>> {
    let starts = (0..requests).step_by(batch_requests);
    starts.map(move |start| {
        (start..requests.min(start + batch_requests)).map(RequestId::from_index).collect()
    })
}

/// A shard for each host of each expert.
pub(super) fn shards_on(
    experts: &ExpertTable,
    hosts: impl Fn(LayerId, ExpertId) -> Vec<NodeId>,
) -> Vec<ShardAssignment> {
    let mut shards = Vec::new();
    for (layer, experts) in experts.iter().enumerate() {
        for (expert, weights) in experts.iter().enumerate() {
            let (layer, expert) = (LayerId::from_index(layer), ExpertId::from_index(expert));
            for node in hosts(layer, expert) {
                let expert_weights = Arc::clone(weights);
                shards.push(ShardAssignment { node, layer, expert, expert_weights });
            }
        }
    }
    shards
}

impl Plan<'_> {
    /// Plays what was served under the controls, each with one thing changed: f32 experts, uniform
    /// bits, plain top-k, other experts pruned or none.
    pub(super) async fn controls(
        &self,
        summary: &mut Summary,
        clock: &Clock,
    ) -> Result<(), ServeError> {
        let Some(quality) = &mut summary.quality else { return Ok(()) };
        let FittedExperts { served, pruned, fit, .. } = &self.experts;
        let kept = self.experts.kept();
        quality.loss_top_k = self.top_k_loss((served, kept), clock).await?;
        if let Some(bits) = fit.as_ref().and_then(|fit| fit.uniform_bits) {
            let uniform = self.all_of(kept, bits)?;
            quality.loss_top_k_uniform_bits = self.top_k_loss((&uniform, kept), clock).await?;
        }
        // Read again for the controls alone: the most that a run holds is these f32 experts once.
        let full = self.all_of(None, BitWidth::Full)?;
        quality.loss_f32 = self.top_k_loss((&full, None), clock).await?;
        if let Some(kept) = pruned.as_ref().and_then(|pruned| pruned.kept_by_frequency.as_ref()) {
            let experts = prune::kept_of(full.clone(), Some(kept));
            let loss = self.top_k_loss((&experts, Some(kept)), clock).await?;
            quality.loss_f32_pruned_by_frequency = loss;
        }
        let full = prune::kept_of(full, kept);
        if pruned.is_some() {
            quality.loss_f32_pruned = self.top_k_loss((&full, kept), clock).await?;
        }
        if self.scenario.game.router != "top_k" {
            quality.loss_f32_routed = Some(self.routed_loss(&full, clock).await?);
        }
        Ok(())
    }

    /// The experts that are kept, all at these bits.
    fn all_of(
        &self,
        kept: Option<&KeptExperts>,
        bits: BitWidth,
    ) -> Result<Vec<Vec<Arc<Expert>>>, CheckpointError> {
        let group = self.scenario.precision.group as usize;
        fit::quantized(self.materials.source(kept).as_ref(), group, &|_, _| bits)
    }

    /// Mean loss under plain top-k. A token's experts do not depend on its batch then, so each
    /// window of the text is played once and counted as often as it was served.
    async fn top_k_loss(
        &self,
        (experts, kept): (&ExpertTable, Option<&KeptExperts>),
        clock: &Clock,
    ) -> Result<Option<f64>, RoundError> {
        let requests = self.intended_ns.len();
        let Some(windows) = self.materials.windows().map(|windows| windows.min(requests)) else {
            return Ok(None);
        };
        let mut source = self.materials.source(kept);
        let arena = rules::top_k_arena(source.as_ref(), self.scenario, experts);
        let batches = in_turn(windows, self.scenario.load.batch_requests_max as usize);
        let losses =
            play_batches(source.as_mut(), arena, experts, batches, clock, |_, _| {}).await?;
        let served = |window: usize| (requests - window).div_ceil(windows) as f64;
        let sum: f64 = losses.iter().enumerate().map(|(w, loss)| served(w) * loss).sum();
        Ok(Some(sum / self.tokens()))
    }

    /// Mean loss under the run's router, on the run's own batches.
    async fn routed_loss(&self, experts: &ExpertTable, clock: &Clock) -> Result<f64, RoundError> {
        let mut source = self.source();
        let rules = (self.scenario, self.registries);
        let arena = rules::arena(source.as_ref(), rules, experts, 1, |_, _| vec![NodeId(0)]);
        let batches = self.batches.iter().map(|batch| batch.request_ids().collect());
        let losses =
            play_batches(source.as_mut(), arena, experts, batches, clock, |_, _| {}).await?;
        Ok(losses.iter().sum::<f64>() / self.tokens())
    }

    fn tokens(&self) -> f64 {
        (self.intended_ns.len() * self.scenario.load.tokens_per_request as usize) as f64
    }
}

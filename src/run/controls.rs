//! Controls: the same windows under other routers and experts, in process.

use super::plan::Plan;
use super::rounds::{Round, RoundError, play_batch};
use super::rules;
use crate::dispatch::{Dispatch, InProcess, ShardAssignment};
use crate::measure::Clock;
use crate::results::Summary;
use crate::source::ScoreSource;
use agents::expert::Expert;
use agents::ids::{ExpertId, LayerId, NodeId, RequestId, StepId};
use agents::round::Arena;
use std::sync::Arc;

/// All experts by layer and id.
pub(super) type ExpertTable = [Vec<Arc<Expert>>];

/// Plays windows `0..windows` once, in batches of `batch_requests`, on experts in this process, and
/// gives each window's summed loss in nats; empty where no text is scored. `watch` sees every round.
///
/// # Errors
/// The first round that fails.
pub(super) async fn play_windows(
    source: &mut dyn ScoreSource,
    mut arena: Arena,
    experts: &ExpertTable,
    (windows, batch_requests): (usize, usize),
    clock: &Clock,
    mut watch: impl FnMut(&Round<'_>, &mut Arena),
) -> Result<Vec<f64>, RoundError> {
    let mut dispatch = InProcess::new();
    let shards = shards_on(experts, |_, _| vec![NodeId(0)]);
    dispatch.load(shards).await.expect("experts in this process load");
    let ids: Vec<RequestId> = (0..windows).map(RequestId::from_index).collect();
    let mut losses = Vec::with_capacity(windows);
    for (step, requests) in ids.chunks(batch_requests).enumerate() {
        let batch = (StepId::from_index(step), requests);
        let scored =
            play_batch(source, &mut arena, &mut dispatch, clock, batch, &mut watch).await?;
        losses.extend(scored.unwrap_or_default());
        // Lets an interrupt be heard between batches: nothing here waits by itself.
        tokio::task::yield_now().await;
    }
    Ok(losses)
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
    /// Plays the windows that were served under the controls: f32 and quantized experts, plain
    /// top-k and the scenario's router.
    pub(super) async fn controls(
        &self,
        summary: &mut Summary,
        clock: &Clock,
    ) -> Result<(), RoundError> {
        let (Some(windows), Some(quality)) = (self.materials.windows(), &mut summary.quality)
        else {
            return Ok(());
        };
        let requests = self.intended_ns.len();
        let windows = windows.min(requests);
        // Requests take the windows in turn, so the first ones may be served once more often.
        let served = |window: usize| (requests - window).div_ceil(windows) as f64;
        let tokens = (requests * self.scenario.load.tokens_per_request as usize) as f64;
        let batch = self.scenario.load.batch_requests_max as usize;
        let (full, quantized) = (&self.experts.full, &self.experts.served);
        let mut source = self.materials.source();
        let plain = |source: &dyn ScoreSource| rules::top_k_arena(source, self.scenario, full);
        let routed = |source: &dyn ScoreSource| {
            rules::arena(source, self.scenario, full, 1, |_, _| vec![NodeId(0)])
        };
        for (arena, experts, loss) in [
            (plain(source.as_ref()), full, &mut quality.loss_f32),
            (plain(source.as_ref()), quantized, &mut quality.loss_top_k),
            (routed(source.as_ref()), full, &mut quality.loss_f32_equilibrium),
        ] {
            let span = (windows, batch);
            let losses =
                play_windows(source.as_mut(), arena, experts, span, clock, |_, _| {}).await?;
            let sum: f64 = losses.iter().enumerate().map(|(w, loss)| served(w) * loss).sum();
            *loss = Some(sum / tokens);
        }
        Ok(())
    }
}

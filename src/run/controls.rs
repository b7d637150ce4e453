//! Controls: the same windows under other routers and experts, in process.

use super::rounds::{RoundError, play_batch};
use crate::dispatch::{Dispatch, InProcess, ShardAssignment};
use crate::measure::Clock;
use crate::source::ScoreSource;
use agents::expert::Expert;
use agents::ids::{ExpertId, LayerId, NodeId, RequestId, StepId};
use agents::round::Arena;
use std::sync::Arc;

/// All experts by layer and id.
pub type ExpertTable = [Vec<Arc<Expert>>];

/// Plays windows `0..windows` once, in batches of `batch_requests`, on experts in this process, and
/// gives each window's summed loss in nats; empty where no text is scored. `watch` sees every round.
///
/// # Errors
/// The first round that fails.
pub async fn play_windows(
    source: &mut dyn ScoreSource,
    mut arena: Arena,
    experts: &ExpertTable,
    (windows, batch_requests): (usize, usize),
    clock: &Clock,
    mut watch: impl FnMut(&super::rounds::Round<'_>, &mut Arena),
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
pub fn shards_on(
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

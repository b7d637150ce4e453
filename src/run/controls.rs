//! Controls: the same windows under other routers and experts, in process.

use super::fit::{self, Codes, FittedExperts};
use super::plan::Plan;
use super::read_when_used::ReadWhenUsed;
use super::rounds::{Round, RoundError, play_batch};
use super::rules::{self, CONTROL_NODES, control_host};
use super::serve::ServeError;
use super::shared::{Part, Sharing};
use super::width_control::WidthChange;
use crate::dispatch::{Dispatch, InProcess, ShardAssignment};
use crate::measure::Clock;
use crate::results::Summary;
use crate::source::{KeptExperts, ScoreSource, SourceShape};
use agents::expert::{BitWidth, Expert};
use agents::ids::{ExpertId, LayerId, NodeId, RequestId, StepId};
use agents::round::Arena;
use std::sync::Arc;

/// Tokens of a batch where its make-up does not matter: few, for the replies of a batch are what a
/// control holds most of.
const BATCH_TOKENS: usize = 512;

/// All experts by layer and id.
pub(super) type ExpertTable = [Vec<Arc<Expert>>];

/// The experts of a control.
pub(super) enum Played<'a> {
    /// Held in memory.
    Held(&'a ExpertTable),
    /// A source's own in f32, read whenever a batch needs them: they would be most of what a run
    /// holds, and reading takes less time than computing.
    Read(Box<dyn ScoreSource + 'a>),
}

impl Played<'_> {
    /// By layer and id.
    pub(super) fn bits(&self) -> Vec<Vec<BitWidth>> {
        match self {
            Self::Held(experts) => rules::bits_of(experts),
            Self::Read(source) => {
                let SourceShape { layers, experts, .. } = source.shape();
                vec![vec![BitWidth::Full; experts]; layers]
            }
        }
    }
}

/// Plays batches on experts in this process, one after the other, and gives the summed loss of each
/// request in nats; empty where no text is scored. `watch` sees every round.
///
/// # Errors
/// The first round that fails.
pub(super) async fn play_batches(
    source: &mut dyn ScoreSource,
    arena: Arena,
    experts: Played<'_>,
    batches: impl Iterator<Item = Vec<RequestId>>,
    clock: &Clock,
    watch: impl FnMut(&Round<'_>, &mut Arena),
) -> Result<Vec<f64>, RoundError> {
    match experts {
        Played::Held(experts) => {
            let mut dispatch = InProcess::new();
            let shards = shards_on(experts, control_host);
            dispatch.load(shards).await.expect("experts in this process load");
            play_on(dispatch, source, arena, batches, clock, watch).await
        }
        Played::Read(experts) => {
            play_on(ReadWhenUsed { experts }, source, arena, batches, clock, watch).await
        }
    }
}

async fn play_on(
    mut dispatch: impl Dispatch,
    source: &mut dyn ScoreSource,
    mut arena: Arena,
    batches: impl Iterator<Item = Vec<RequestId>>,
    clock: &Clock,
    mut watch: impl FnMut(&Round<'_>, &mut Arena),
) -> Result<Vec<f64>, RoundError> {
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

/// What the controls play: the requests that were answered, batch by batch.
pub(super) struct Controls<'a> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) answered: &'a [Vec<RequestId>],
    /// How the widths changed on the way.
    pub(super) width_changes: &'a [WidthChange],
    pub(super) clock: &'a Clock,
    pub(super) sharing: Sharing<'a>,
}

impl Controls<'_> {
    /// Plays them, each time with one thing changed: f32 experts, uniform bits, widths that stay, plain
    /// top-k, other experts pruned or none.
    pub(super) async fn play(&self, summary: &mut Summary) -> Result<(), ServeError> {
        let Some(quality) = &mut summary.quality else { return Ok(()) };
        let Plan { scenario, materials, experts, .. } = self.plan;
        let FittedExperts { served, codes, pruned, fit, .. } = experts;
        let kept = experts.kept();
        quality.loss_top_k = self.top_k_loss(kept, codes, Some(served)).await?;
        if let Some(bits) = fit.as_ref().and_then(|fit| fit.uniform_bits) {
            let loss = self.top_k_loss(kept, &Codes::All(bits), None).await?;
            quality.loss_top_k_uniform_bits = loss;
        }
        let full = Codes::All(BitWidth::Full);
        quality.loss_f32 = self.top_k_loss(None, &full, None).await?;
        if let Some(pruned) = pruned {
            quality.loss_f32_pruned = self.top_k_loss(kept, &full, None).await?;
            if let Some(kept) = &pruned.kept_by_frequency {
                let loss = self.top_k_loss(Some(kept), &full, None).await?;
                quality.loss_f32_pruned_by_frequency = loss;
            }
        }
        if !scenario.precision.reallocate.is_off() {
            let errors = self.width_errors(self.width_changes).await?;
            quality.loss_widths_kept = Some(errors.loss_kept / self.tokens());
            quality.output_error = Some(errors.followed);
            quality.output_error_widths_kept = Some(errors.kept);
        }
        if scenario.game.router != "top_k" {
            quality.loss_f32_routed =
                Some(self.routed_loss(Played::Read(materials.source(kept))).await?);
        }
        Ok(())
    }

    /// Mean loss under plain top-k over experts in these codes, which may be held already. A token's experts do
    /// not depend on its batch then, so each window of the text is played once and counted as often as it was
    /// served.
    async fn top_k_loss(
        &self,
        kept: Option<&KeptExperts>,
        codes: &Codes,
        held: Option<&ExpertTable>,
    ) -> Result<Option<f64>, ServeError> {
        let Plan { scenario, materials, demand, .. } = self.plan;
        let requests = demand.intended_ns.len();
        let Some(windows) = materials.windows().map(|windows| windows.min(requests)) else {
            return Ok(None);
        };
        let mut served = vec![0_u32; windows];
        self.answered.iter().flatten().for_each(|request| served[request.index() % windows] += 1);
        let load = &scenario.load;
        let small = (BATCH_TOKENS / load.tokens_per_request as usize).max(1);
        let small = small.min(load.batch_requests_max as usize);
        let play = async || {
            let made;
            let experts = match (held, codes) {
                (Some(held), _) => Played::Held(held),
                (None, Codes::All(BitWidth::Full)) => Played::Read(materials.source(kept)),
                (None, codes) => {
                    made = fit::coded(materials, self.sharing, kept, codes).await?;
                    Played::Held(&made)
                }
            };
            let mut source = materials.source(kept);
            let arena = rules::top_k_arena(source.as_ref(), scenario, experts.bits());
            let batches = in_turn(windows, small);
            let losses =
                play_batches(source.as_mut(), arena, experts, batches, self.clock, |_, _| {});
            losses.await.map_err(ServeError::from)
        };
        let losses = self.sharing.get(Part::Losses, &(kept, codes, windows), play).await?;
        let sum: f64 = losses.iter().zip(&served).map(|(loss, n)| f64::from(*n) * loss).sum();
        Ok(Some(sum / self.tokens()))
    }

    /// Mean loss under the run's router, on the run's own batches.
    async fn routed_loss(&self, experts: Played<'_>) -> Result<f64, RoundError> {
        let mut source = self.plan.source();
        let rules = (self.plan.scenario, self.plan.registries);
        let arena =
            rules::arena(source.as_ref(), rules, experts.bits(), CONTROL_NODES, control_host);
        let batches = self.answered.iter().cloned();
        let losses =
            play_batches(source.as_mut(), arena, experts, batches, self.clock, |_, _| {}).await?;
        Ok(losses.iter().sum::<f64>() / self.tokens())
    }

    fn tokens(&self) -> f64 {
        let requests = self.answered.iter().map(Vec::len).sum::<usize>();
        (requests * self.plan.scenario.load.tokens_per_request as usize) as f64
    }
}

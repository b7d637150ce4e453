//! The control of widths that follow the loads: the run's own batches once more, at the widths that it had and
//! at those of its start, each beside f32, under the run's router and in this process.

use super::controls::{Controls, Played, shards_on};
use super::plan::Plan;
use super::read_when_used::{ReadWhenUsed, expert_at};
use super::rounds::{Round, play_batch};
use super::rules::{self, CONTROL_NODES, control_host};
use super::serve::ServeError;
use crate::dispatch::{Dispatch, InProcess, ShardAssignment};
use crate::measure::Clock;
use crate::source::ScoreSource;
use agents::ids::{RequestId, StepId};
use agents::precision::WidthMove;
use agents::round::Arena;
use std::sync::Arc;

/// Widths that came into force after so many batches were answered.
pub(super) type WidthChange = (usize, Vec<WidthMove>);

/// What the three ways came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WidthErrors {
    /// `Σ ‖y − y_f32‖² ÷ Σ ‖y_f32‖²` over the outputs of all routed layers, at the widths that the run had.
    pub(super) followed: f64,
    /// The same at the widths of its start.
    pub(super) kept: f64,
    /// Loss at the widths of its start, nats in all.
    pub(super) loss_kept: f64,
}

/// One way of playing the batches.
struct Way<'a, D> {
    source: Box<dyn ScoreSource + 'a>,
    arena: Arena,
    dispatch: D,
    loss: f64,
}

impl<'a, D: Dispatch> Way<'a, D> {
    fn new(plan: &'a Plan<'_>, experts: &Played<'_>, dispatch: D) -> Self {
        let source = plan.source();
        let played = (plan.scenario, plan.registries);
        let arena =
            rules::arena(source.as_ref(), played, experts.bits(), CONTROL_NODES, control_host);
        Self { source, arena, dispatch, loss: 0.0 }
    }

    /// The outputs of all layers.
    async fn play(
        &mut self,
        batch: (StepId, &[RequestId]),
        clock: &Clock,
    ) -> Result<Vec<f32>, ServeError> {
        let mut outputs = Vec::new();
        let watch = |round: &Round<'_>, _: &mut Arena| outputs.extend_from_slice(round.output);
        let Self { source, arena, dispatch, .. } = self;
        let losses = play_batch(source.as_mut(), arena, dispatch, clock, batch, watch).await?;
        self.loss += losses.into_iter().flatten().sum::<f64>();
        Ok(outputs)
    }
}

impl Controls<'_> {
    /// Plays the batches in step, so that no more than the outputs of one are held.
    ///
    /// # Errors
    /// The first round that fails, or an expert that cannot be read again.
    pub(super) async fn width_errors(
        &self,
        changes: &[WidthChange],
    ) -> Result<WidthErrors, ServeError> {
        let Plan { materials, experts, .. } = self.plan;
        let held = Played::Held(&experts.served);
        let full = || Played::Read(materials.source(experts.kept()));
        let from_source = ReadWhenUsed { experts: materials.source(experts.kept()) };
        let mut exact = Way::new(self.plan, &full(), from_source);
        let mut kept = Way::new(self.plan, &held, InProcess::new());
        let mut followed = Way::new(self.plan, &held, InProcess::new());
        for way in [&mut kept, &mut followed] {
            way.dispatch.load(shards_on(&experts.served, control_host)).await?;
        }
        let mut changes = changes.iter().peekable();
        let (mut energy, mut errors) = (0.0, WidthErrors::default());
        for (step, requests) in self.answered.iter().enumerate() {
            while let Some((_, moves)) = changes.next_if(|change| change.0 <= step) {
                let source = materials.source(experts.kept());
                let shards = self.moved_shards(source.as_ref(), moves)?;
                followed.dispatch.replace(shards).await?;
            }
            let batch = (StepId::from_index(step), requests.as_slice());
            let y = exact.play(batch, self.clock).await?;
            energy += squares(&y, &vec![0.0; y.len()]);
            errors.kept += squares(&kept.play(batch, self.clock).await?, &y);
            errors.followed += squares(&followed.play(batch, self.clock).await?, &y);
            // Lets an interrupt be heard between batches: nothing here waits by itself.
            tokio::task::yield_now().await;
        }
        Ok(WidthErrors {
            followed: errors.followed / energy,
            kept: errors.kept / energy,
            loss_kept: kept.loss,
        })
    }

    fn moved_shards(
        &self,
        source: &dyn ScoreSource,
        moves: &[WidthMove],
    ) -> Result<Vec<ShardAssignment>, ServeError> {
        let group = self.plan.scenario.precision.group as usize;
        let shard = |step: &WidthMove| {
            let WidthMove { layer, expert, to, .. } = *step;
            let expert_weights = Arc::new(expert_at(source, (layer, expert), [to; 3], group)?);
            let [node] = control_host(layer, expert)[..] else { unreachable!("one host each") };
            Ok(ShardAssignment { node, layer, expert, expert_weights })
        };
        moves.iter().map(shard).collect()
    }
}

fn squares(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "the same rows");
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

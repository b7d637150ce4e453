//! Widths that follow the loads: what the core decides is quantized beside the steps and brought to the nodes
//! between them.
//!
//! A step is computed at one version of the widths. What was decided at the end of a step is quantized on
//! a thread of its own while the next one is served, and comes into force before the one after that, at
//! any speed of the machine and on any nodes: which widths a step has follows from the loads before it.

use super::fit::Fit;
use super::plan::Plan;
use super::serve::{ServeError, Watch};
use crate::dispatch::{Dispatch, ShardAssignment};
use crate::measure::Clock;
use crate::model::checkpoint::ExpertWeights;
use crate::results::ReallocationFigures;
use crate::scenario::file::ReallocatePolicy;
use agents::expert::{BitWidth, Expert};
use agents::ids::{ExpertId, LayerId, NodeId};
use agents::precision::{
    Follow, FollowSettings, FollowedUnits, NodesOfUnits, ReallocateLimits, WidthDecision,
    WidthMove, WidthPolicy,
};
use agents::round::Arena;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::task::{JoinHandle, spawn_blocking};

/// What came into force between two steps.
pub(super) struct WidthsBrought<'a> {
    pub(super) decision: &'a WidthDecision,
    /// Encoded bytes that went to other processes.
    pub(super) sent_bytes: u64,
    /// How long the next step waited for it.
    pub(super) pause_ns: u64,
}

/// Brings the widths that an arena decides.
pub(super) struct WidthsInFlight<'a> {
    plan: &'a Plan<'a>,
    /// Decided, and quantized while a step is served.
    pending: Option<Pending>,
}

/// What an expert is computed at.
struct Width {
    layer: LayerId,
    expert: ExpertId,
    bits: BitWidth,
}

impl From<&WidthMove> for Width {
    fn from(of: &WidthMove) -> Self {
        Self { layer: of.layer, expert: of.expert, bits: of.to }
    }
}

/// Experts whose weights are in memory together where a run goes on.
const QUANTIZED_AT_ONCE: usize = 32;

type Pending = (WidthDecision, JoinHandle<Vec<Arc<Expert>>>);

impl Plan<'_> {
    /// What decides the widths of this plan's experts; none where they stay.
    pub(super) fn follow(&self) -> Option<Follow> {
        let reallocate = &self.scenario.precision.reallocate;
        let fit = self.experts.fit.as_ref().filter(|_| !reallocate.is_off())?;
        let settings = FollowSettings {
            every_steps: u64::from(reallocate.every_steps),
            load_step: reallocate.load_step,
            limits: ReallocateLimits {
                budget: fit.budget_bytes,
                bytes_moved_max: reallocate.bytes_max.unwrap_or(u64::MAX),
                cost_per_byte: reallocate.cost_per_mb / 1e6,
            },
        };
        let of = FollowedUnits {
            units: fit.units.clone(),
            widths: fit.widths.clone(),
            calibrated: fit.calibrated.clone(),
            experts: self.experts.served[0].len(),
            options: fit.allocation.options.clone(),
        };
        let follow = Follow::new(settings, of, self.width_policy(fit));
        Some(follow.expect("an allocation fits the budget it was chosen for"))
    }

    fn width_policy(&self, fit: &Fit) -> WidthPolicy {
        /// Weight of companions, as measured in docs/flock-precision.md.
        const VOUCHING: f64 = 0.2;
        let reallocate = &self.scenario.precision.reallocate;
        let holders = reallocate.holders as usize;
        // As experts are dealt to nodes in turn, but for any number of nodes alike.
        let holder = |unit: usize| NodeId::from_index(unit % holders);
        match reallocate.policy {
            ReallocatePolicy::Exact => WidthPolicy::Exact,
            ReallocatePolicy::Flock => WidthPolicy::Flock(NodesOfUnits {
                nodes: (0..fit.units.len()).map(holder).collect(),
                node_count: holders,
                companions: fit.companions.clone(),
                vouching: VOUCHING,
            }),
        }
    }

    /// What brings the widths that an arena of this plan decides.
    pub(super) fn widths_in_flight(&self) -> WidthsInFlight<'_> {
        WidthsInFlight { plan: self, pending: None }
    }

    /// What is known of widths that follow the loads before the first step; none where they stay.
    pub(super) fn reallocation(&self) -> Option<ReallocationFigures> {
        let every_steps = u64::from(self.scenario.precision.reallocate.every_steps);
        let fit = self.experts.fit.as_ref().filter(|_| every_steps > 0)?;
        let expert_bytes_end = fit.allocation.bytes;
        Some(ReallocationFigures {
            every_steps,
            policy: match self.scenario.precision.reallocate.policy {
                ReallocatePolicy::Exact => "exact".to_owned(),
                ReallocatePolicy::Flock => "flock".to_owned(),
            },
            expert_bytes_end,
            ..ReallocationFigures::default()
        })
    }
}

impl ReallocationFigures {
    /// Notes what came into force.
    pub(super) fn add(&mut self, brought: &WidthsBrought<'_>) {
        let WidthsBrought { decision, sent_bytes, pause_ns } = brought;
        let of = &decision.reallocation;
        self.decisions += 1;
        self.moves += decision.moves.len() as u64;
        self.bytes_moved += of.bytes_moved;
        self.bytes_sent += sent_bytes;
        if !decision.moves.is_empty() {
            self.pause_ns_max = self.pause_ns_max.max(Some(*pause_ns));
        }
        self.expert_bytes_end = decision.bytes;
        self.cost_exact = decision.cost_exact;
        (self.cost, self.cost_kept) = (Some(of.cost_after), Some(decision.cost_kept));
        (self.cost_free, self.dual_bound) = (Some(of.cost_hull), Some(of.dual_bound));
    }

    /// Notes the bits of every expert at the end, 0 where it is pruned.
    pub(super) fn ended(&mut self, bits: &[Vec<u32>]) {
        let served = bits.iter().flatten().filter(|bits| **bits > 0);
        self.widths_end = served.fold(BTreeMap::new(), |mut widths, bits| {
            *widths.entry(*bits).or_insert(0) += 1;
            widths
        });
    }
}

impl WidthsInFlight<'_> {
    /// Between two steps: brings what was decided a step ago, and has what was decided just now quantized.
    ///
    /// # Errors
    /// An expert that cannot be read, or nodes that cannot be brought what they need.
    pub(super) async fn step_ended(
        &mut self,
        arena: &mut Arena,
        dispatch: &mut impl Dispatch,
        clock: &Clock,
        watch: &mut impl Watch,
    ) -> Result<(), ServeError> {
        let from_ns = clock.now_ns();
        if let Some((decision, quantized)) = self.pending.take() {
            let experts = quantized.await.expect("quantizing an expert does not panic");
            let widths: Vec<Width> = decision.moves.iter().map(Width::from).collect();
            let sent_bytes = self.bring(&widths, &experts, arena, dispatch).await?;
            let pause_ns = clock.now_ns() - from_ns;
            watch.widths_brought(&WidthsBrought { decision: &decision, sent_bytes, pause_ns });
        }
        if let Some(decision) = arena.take_width_decision() {
            self.pending = Some(self.begin(decision)?);
        }
        Ok(())
    }

    /// What was decided and is not in force yet.
    pub(super) fn decided(&self) -> Option<&WidthDecision> {
        self.pending.as_ref().map(|(decision, _)| decision)
    }

    /// Goes on after a cut, with nodes that hold the experts of the start: brings the widths that were in force,
    /// and has what was `decided` by then quantized.
    ///
    /// # Errors
    /// An expert that cannot be read, or nodes that cannot be brought what they need.
    pub(super) async fn going_on(
        &mut self,
        decided: Option<WidthDecision>,
        arena: &mut Arena,
        dispatch: &mut impl Dispatch,
    ) -> Result<(), ServeError> {
        let mut changed = Vec::new();
        for (layer, held) in self.plan.experts.served.iter().enumerate() {
            let layer = LayerId::from_index(layer);
            for (place, (bits, held)) in arena.bits(layer).into_iter().zip(held).enumerate() {
                if bits != held.bits() {
                    changed.push(Width { layer, expert: ExpertId::from_index(place), bits });
                }
            }
        }
        for some in changed.chunks(QUANTIZED_AT_ONCE) {
            let quantized = self.quantize(some)?.await.expect("quantizing does not panic");
            self.bring(some, &quantized, arena, dispatch).await?;
        }
        if let Some(decision) = decided {
            self.pending = Some(self.begin(decision)?);
        }
        Ok(())
    }

    fn begin(&self, decision: WidthDecision) -> Result<Pending, ServeError> {
        let widths: Vec<Width> = decision.moves.iter().map(Width::from).collect();
        let quantized = self.quantize(&widths)?;
        Ok((decision, quantized))
    }

    /// Weights are read here, for a source lives as long as the run; the rest takes its own time.
    fn quantize(&self, widths: &[Width]) -> Result<JoinHandle<Vec<Arc<Expert>>>, ServeError> {
        let group = self.plan.scenario.precision.group as usize;
        let source = self.plan.source();
        let read = |of: &Width| Ok((of.bits, source.expert(of.layer, of.expert)?));
        let read = widths.iter().map(read).collect::<Result<Vec<_>, ServeError>>()?;
        Ok(spawn_blocking(move || {
            let expert = |(bits, weights)| {
                let ExpertWeights { shape, gate, up, down } = weights;
                Arc::new(Expert::quantize(shape, &gate, &up, &down, bits, group))
            };
            read.into_iter().map(expert).collect()
        }))
    }

    async fn bring(
        &self,
        widths: &[Width],
        experts: &[Arc<Expert>],
        arena: &mut Arena,
        dispatch: &mut impl Dispatch,
    ) -> Result<u64, ServeError> {
        let mut shards = Vec::new();
        for (Width { layer, expert, bits }, weights) in widths.iter().zip(experts) {
            let shard = |node: NodeId| ShardAssignment {
                node,
                layer: *layer,
                expert: *expert,
                expert_weights: Arc::clone(weights),
            };
            shards.extend(self.plan.placed.hosts(*layer, *expert).into_iter().map(shard));
            arena.set_bits(*layer, *expert, *bits);
        }
        if shards.is_empty() {
            return Ok(0);
        }
        Ok(dispatch.replace(shards).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::InProcess;
    use crate::run::checkpoint::Boundary;
    use crate::run::controls::{Played, shards_on};
    use crate::run::decode::{Answer, StepDone};
    use crate::run::demand::Arrivals;
    use crate::run::materials::Materials;
    use crate::run::rounds::{Round, play_batch};
    use crate::run::serve::{Refusal, StageEnds};
    use crate::run::shared::Sharing;
    use crate::run::{Progress, fit, placement, rules};
    use crate::scenario::{self, Known};
    use agents::game::Registries;
    use agents::ids::{RequestId, StepId};
    use std::ops::Range;

    const SCENARIO: &str = r#"schema_version = 1
name = "drift"
seed = 7
[source]
kind = "synthetic"
experts = 12
layers = 2
skew = 1.0
width = 32
expert_hidden = 32
[game]
router = "top_k"
top_k = 3
[precision]
budget = "4.5bpw"
[precision.reallocate]
every_steps = 2
load_step = 1.0
[nodes]
count = 2
[load]
rate_per_s = 1000000.0
requests = 40
tokens_per_request = 16
batch_requests_max = 4
"#;

    struct Silent;

    impl Progress for Silent {
        fn phase(&self, _: &str) {}
        fn answered(&self, _: u64, _: u64) {}
    }

    /// Bits of all experts before a layer, and what the layer gave.
    type Seen = (StepId, LayerId, Vec<Vec<BitWidth>>, Vec<f32>);

    #[derive(Default)]
    struct Eye {
        seen: Vec<Seen>,
        batches: Vec<Vec<RequestId>>,
        figures: ReallocationFigures,
    }

    fn bits(arena: &Arena) -> Vec<Vec<BitWidth>> {
        (0..2).map(|layer| arena.bits(LayerId::from_index(layer))).collect()
    }

    impl Watch for Eye {
        fn serving_from(&mut self, _: u64) {}
        fn round(&mut self, round: &Round<'_>, arena: &Arena, _: &StageEnds, _: (u64, u64)) {
            self.seen.push((round.step, round.layer, bits(arena), round.output.to_vec()));
        }
        fn released(&mut self, _: u64) {}
        fn refused(&mut self, _: &[RequestId], _: Refusal, _: &[u64], _: u64) {}
        fn batch(
            &mut self,
            (_, requests): (StepId, Vec<RequestId>),
            _: &[u64],
            _: Range<u64>,
            _: Option<&[f64]>,
        ) {
            self.batches.push(requests);
        }
        fn step(&mut self, _: StepDone) {}
        fn answered(&mut self, _: Answer) {}
        fn widths_brought(&mut self, brought: &WidthsBrought<'_>) {
            self.figures.add(brought);
        }
        fn goes_on(&mut self, _: &Boundary<'_>) -> Result<bool, ServeError> {
            Ok(true)
        }
    }

    #[tokio::test]
    async fn each_step_has_the_bits_of_a_run_that_starts_at_its_widths() {
        let folder = tempfile::TempDir::new().expect("a temporary folder");
        let file = folder.path().join("scenario.toml");
        std::fs::write(&file, SCENARIO).expect("the file is written");
        let registries = Registries::standard();
        let routers: Vec<String> = registries.routers.names().map(str::to_owned).collect();
        let Registries { costs, allocators, motions, migrations, .. } = &registries;
        let known = Known { routers, costs, allocators, motions, migrations };
        let scenario = scenario::load(&file, &[], &known).expect("a good scenario");
        let clock = Clock::start();
        let sharing = Sharing::of(&scenario, None);
        let materials = Materials::load(sharing, &registries.costs).await.expect("it loads");
        let experts = fit::fit(&materials, sharing, &registries, &clock).await.expect("it fits");
        let placed = placement::place(&materials, &scenario, &registries, &experts, &clock).await;
        let demand = Arrivals::of(&scenario, None).expect("no trace").of_scenario(&scenario);
        let prepared = (experts, placed.expect("it is placed"));
        let plan = Plan::new(&scenario, &registries, &materials, demand, prepared);

        let mut dispatch = InProcess::new();
        let shards = shards_on(&plan.experts.served, |l, e| plan.placed.hosts(l, e));
        dispatch.load(shards).await.expect("experts in this process load");
        let mut arena = plan.arena(plan.source().as_ref());
        arena.follow_loads(plan.follow().expect("it is on"));
        let mut eye = Eye::default();
        let on: (&dyn Progress, &Clock, bool) = (&Silent, &clock, true);
        let demand = (&plan.demand, None);
        let served = plan.serve_demand(demand, &mut arena, &mut dispatch, on, &mut eye);
        served.await.expect("nothing fails");

        assert_eq!((eye.seen.len(), eye.batches.len()), (20, 10));
        assert_ne!(eye.seen[0].2, eye.seen[19].2, "something changed");
        for (step, requests) in eye.batches.iter().enumerate() {
            let (of, layers) = (&eye.seen[2 * step].2, &eye.seen[2 * step..][..2]);
            assert!(layers.iter().all(|seen| seen.2 == *of), "one version a step");
            // Decided at the end of the second step, in force from the fourth on, and so forth.
            let before = &eye.seen[2 * step.saturating_sub(1)].2;
            assert!(of == before || (step >= 3 && step % 2 == 1), "step {step}");
            let source = plan.source();
            let group = scenario.precision.group as usize;
            let held =
                fit::quantized(source.as_ref(), group, &|l, e| [of[l][e]; 3]).expect("readable");
            let mut fresh = InProcess::new();
            let shards = shards_on(&held, |l, e| plan.placed.hosts(l, e));
            fresh.load(shards).await.expect("experts in this process load");
            let mut arena = rules::arena(
                source.as_ref(),
                (&scenario, &registries),
                Played::Held(&held).bits(),
                2,
                |l, e| plan.placed.hosts(l, e),
            );
            let mut outputs = Vec::new();
            let batch = (StepId::from_index(step), requests.as_slice());
            let mut source = plan.source();
            let watch = |round: &Round<'_>, _: &mut Arena| outputs.push(round.output.to_vec());
            play_batch(source.as_mut(), &mut arena, &mut fresh, &clock, batch, watch)
                .await
                .expect("nothing fails");
            for (seen, fresh) in layers.iter().zip(&outputs) {
                assert_eq!(
                    bytemuck::cast_slice::<f32, u32>(&seen.3),
                    bytemuck::cast_slice::<f32, u32>(fresh)
                );
            }
        }
        let budget = plan.experts.fit.as_ref().expect("it was fitted").budget_bytes;
        let bytes = |of: &[Vec<BitWidth>]| -> u64 {
            let shape = plan.experts.served[0][0].shape();
            of.iter().flatten().map(|bits| shape.bytes(*bits, 32)).sum()
        };
        assert!(eye.seen.iter().all(|seen| bytes(&seen.2) <= budget));
        assert_eq!(eye.figures.expert_bytes_end, bytes(&bits(&arena)));
        assert!(eye.figures.decisions == 4 && eye.figures.moves > 0, "{:?}", eye.figures);
    }
}

//! A forward pass as a run makes it, in process, with the time of its parts: embedding, attention,
//! router, equilibrium routing with its certificates, experts, combining and head.

#![allow(dead_code, reason = "each benchmark reads a part of the figures")]

use crate::shared::Failure;
use agents::expert::Expert;
use agents::game::{CostSettings, Information, RouterRegistry};
use agents::ids::{ExpertId, LayerId, NodeId, RequestId, StepId};
use agents::round::{Arena, Perception};
use agents::world::{Affinity, LayerSettings, Rules, WorldSettings};
use nashflock::dispatch::{Dispatch as _, InProcess, ShardAssignment};
use nashflock::measure::Clock;
use nashflock::model::trunk::{FeedForwardWeights, Trunk};
use std::sync::Arc;

/// A model whose layers are all routed, on one node in this process.
pub(crate) struct Forward<'a> {
    trunk: &'a Trunk,
    arena: Arena,
    nodes: InProcess,
    clock: Clock,
}

/// Time of the parts of a pass, ns, and what was computed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parts {
    /// Embedding, attention and router logits.
    pub trunk: u64,
    /// The game and its certificates.
    pub decide: u64,
    /// Orders, experts and replies.
    pub dispatch: u64,
    /// Of this, the experts' products.
    pub compute: u64,
    /// The gated sum, and adding it.
    pub combine: u64,
    /// Norm and logits.
    pub head: u64,
    /// Experts that had tokens, summed over the layers.
    pub groups: u64,
    /// Tokens that they had.
    pub pairs: u64,
}

impl Parts {
    pub(crate) fn total(&self) -> u64 {
        self.trunk + self.routed() + self.head
    }

    /// Without the trunk and the head.
    pub(crate) fn routed(&self) -> u64 {
        self.decide + self.dispatch + self.combine
    }
}

impl<'a> Forward<'a> {
    /// `experts` by layer and id; batches have `tokens_max` tokens at most.
    pub(crate) async fn new(
        trunk: &'a Trunk,
        experts: &[Vec<Arc<Expert>>],
        tokens_max: usize,
    ) -> Result<Self, Failure> {
        let moe = trunk.config.moe.ok_or("the model has no experts")?;
        let (mut layers, mut shards) = (Vec::new(), Vec::new());
        for ((layer, experts), weights) in experts.iter().enumerate().zip(&trunk.layers) {
            shards.extend(experts.iter().enumerate().map(|(id, expert)| ShardAssignment {
                node: NodeId(0),
                layer: LayerId::from_index(layer),
                expert: ExpertId::from_index(id),
                expert_weights: Arc::clone(expert),
            }));
            let FeedForwardWeights::Routed { router, .. } = &weights.feed_forward else {
                return Err("a layer of the model is dense".into());
            };
            layers.push(LayerSettings {
                router: router.rows(),
                bits: experts.iter().map(|expert| expert.bits()).collect(),
                hosts: vec![vec![NodeId(0)]; experts.len()],
                selection_bias: Vec::new(),
            });
        }
        let mut nodes = InProcess::new();
        nodes.load(shards).await?;
        let router = RouterRegistry::standard().get("equilibrium").ok_or("no such router")?;
        let arena = Arena::new(WorldSettings {
            tokens_max,
            nodes: 1,
            layers,
            rules: Rules {
                top_k: moe.top_k,
                affinity: Affinity::Probability,
                routing: moe.routing,
                router: router.into(),
                information: Information::InBatch,
                cost: Box::new(|shape| {
                    let quota = CostSettings::Quota { capacity_factor: 1.0 };
                    quota.build(shape.tokens, shape.experts, shape.top_k)
                }),
                social_optimum: false,
                flock: None,
            },
        });
        Ok(Self { trunk, arena, nodes, clock: Clock::start() })
    }

    /// Logits `[tokens, vocab]` of windows of `window` tokens.
    pub(crate) async fn pass(
        &mut self,
        ids: &[u32],
        window: usize,
    ) -> Result<(Vec<f32>, Parts), Failure> {
        let mut parts = Parts::default();
        let (clock, mut now_ns) = (self.clock, self.clock.now_ns());
        let mut lap = move || {
            let before_ns = std::mem::replace(&mut now_ns, clock.now_ns());
            now_ns - before_ns
        };
        let width = self.trunk.config.width;
        let seats: Vec<RequestId> =
            (0..ids.len()).map(|token| RequestId::from_index(token / window)).collect();
        let mut pass = self.trunk.begin(ids, window)?;
        for layer in 0..self.trunk.layers.len() {
            let input = pass.up_to_router(layer).ok_or("a layer of the model is dense")?;
            parts.trunk += lap();
            let decision = self.arena.decide(&Perception {
                step: StepId(0),
                layer: LayerId::from_index(layer),
                requests: &seats,
                logits: input.router_logits,
                hidden: &[],
            })?;
            parts.decide += lap();
            for order in &decision.orders.nodes {
                parts.groups += order.groups.len() as u64;
                parts.pairs += order.pairs() as u64;
            }
            let replies = self.nodes.send(&decision.orders, input.hidden, width).await?;
            parts.dispatch += lap();
            parts.compute += replies.nodes.iter().map(|reply| reply.compute_ns).sum::<u64>();
            let output = self.arena.absorb(decision.orders, replies, width)?;
            pass.add_moe(layer, &output);
            parts.combine += lap();
        }
        let logits = pass.logits();
        parts.head += lap();
        Ok((logits, parts))
    }
}

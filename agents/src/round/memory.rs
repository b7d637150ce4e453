//! Memory: what a world carries from batch to batch, taken out and put back.

use super::{Arena, motion::Motions};
use crate::components::{FlockPrice, Load, NodeWork, Precision, Price};
use crate::expert::BitWidth;
use crate::flock::motion::{LayerMotion, MotionMemory};
use crate::precision::FollowMemory;
use crate::world::{LayerDynamics, Roster, Widths};
use bevy_ecs::prelude::Entity;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Everything that earlier batches left in a world: a few numbers an expert and a node, whatever the
/// batches were, the router rows where they move, and bits
/// where they follow the loads. A world of the same settings that recalls it plays on
/// with the same bits. Of random streams it has those of rules of motion: no other is drawn from by
/// rounds. What own systems keep is not in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArenaMemory {
    /// Prices that each layer's dynamics remembers, the oldest first.
    prices: Vec<VecDeque<Vec<f64>>>,
    /// By layer and id.
    experts: Vec<Vec<ExpertMemory>>,
    nodes: Vec<NodeWork>,
    /// By layer, where router rows move.
    motion: Option<Vec<MotionMemory>>,
    /// Where widths follow the loads.
    follow: Option<FollowMemory>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct ExpertMemory {
    load: u32,
    price: f64,
    flock: FlockPrice,
    routed_gate: f64,
    /// In force.
    bits: BitWidth,
}

/// The memory is that of a world with other layers, experts or nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory is that of a world with other layers, experts or nodes")]
pub struct ForeignMemory;

const KNOWN: &str = "the roster is complete";

impl Arena {
    /// What the batches so far have left, between two batches.
    #[must_use]
    pub fn memory(&self) -> ArenaMemory {
        let world = &self.world;
        let roster = world.resource::<Roster>();
        let expert = |entity: &Entity| {
            let entity = world.entity(*entity);
            let precision = entity.get::<Precision>().expect(KNOWN);
            ExpertMemory {
                load: entity.get::<Load>().expect(KNOWN).0,
                price: entity.get::<Price>().expect(KNOWN).0,
                flock: *entity.get::<FlockPrice>().expect(KNOWN),
                routed_gate: precision.routed_gate,
                bits: precision.bits,
            }
        };
        let dynamics = &world.resource::<LayerDynamics>().0;
        ArenaMemory {
            prices: dynamics.iter().map(|layer| layer.memory().clone()).collect(),
            experts: roster.experts.iter().map(|l| l.iter().map(expert).collect()).collect(),
            nodes: roster
                .nodes
                .iter()
                .map(|node| *world.get::<NodeWork>(*node).expect(KNOWN))
                .collect(),
            motion: self.motion().map(|l| l.iter().map(LayerMotion::memory).collect()),
            follow: world.get_resource::<Widths>().map(|widths| widths.follow.memory()),
        }
    }

    /// Goes on from a memory, before the next batch.
    ///
    /// # Errors
    /// When it is that of a world of another shape: nothing is changed then.
    pub fn recall(&mut self, memory: ArenaMemory) -> Result<(), ForeignMemory> {
        let ArenaMemory { prices, experts, nodes, motion, follow } = memory;
        let roster = self.world.resource::<Roster>();
        let of_experts = roster.experts.clone();
        let of_nodes = roster.nodes.clone();
        let fits = prices.len() == of_experts.len()
            && experts.len() == of_experts.len()
            && experts.iter().zip(&of_experts).all(|(a, b)| a.len() == b.len())
            && nodes.len() == of_nodes.len()
            && match (self.motion(), &motion) {
                (None, None) => true,
                (Some(layers), Some(motion)) => {
                    layers.len() == motion.len()
                        && layers.iter().zip(motion).all(|(layer, memory)| layer.fits(memory))
                }
                _ => false,
            }
            && match (self.world.get_resource::<Widths>(), &follow) {
                (None, None) => true,
                (Some(widths), Some(memory)) => widths.follow.fits(memory),
                _ => false,
            };
        if !fits {
            return Err(ForeignMemory);
        }
        let mut dynamics = self.world.resource_mut::<LayerDynamics>();
        dynamics.0.iter_mut().zip(prices).for_each(|(layer, prices)| layer.recall(prices));
        let entities = of_experts.into_iter().flatten();
        for (entity, memory) in entities.zip(experts.into_iter().flatten()) {
            let mut entity = self.world.entity_mut(entity);
            entity.get_mut::<Load>().expect(KNOWN).0 = memory.load;
            entity.get_mut::<Price>().expect(KNOWN).0 = memory.price;
            *entity.get_mut::<FlockPrice>().expect(KNOWN) = memory.flock;
            let mut precision = entity.get_mut::<Precision>().expect(KNOWN);
            (precision.routed_gate, precision.bits) = (memory.routed_gate, memory.bits);
        }
        if let Some(motion) = motion {
            let mut motions = self.world.resource_mut::<Motions>();
            motions.layers.iter_mut().zip(motion).for_each(|(layer, of)| layer.recall(of));
        }
        if let Some(follow) = follow {
            self.world.resource_mut::<Widths>().follow.recall(follow);
        }
        for (entity, work) in of_nodes.into_iter().zip(nodes) {
            *self.world.get_mut::<NodeWork>(entity).expect(KNOWN) = work;
        }
        Ok(())
    }
}

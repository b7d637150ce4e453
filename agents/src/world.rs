//! The world: which agents there are, and the dense matrices that their rows live in.

use crate::components::{
    Expert, FlockPrice, Hosts, KeptShare, Load, Neighbours, Node, NodeWork, Precision, Price, Seat,
    Token,
};
use crate::expert::BitWidth;
use crate::flock::migration::{Migrating, MigrationDecision};
use crate::flock::{neighbours, price::FlockSettings};
use crate::game::{CostOfGame, Dynamics, GameShape, Information, Play, Router};
use crate::ids::{ExpertId, LayerId, NodeId, RequestId, StepId, TokenId};
use crate::orders::{Combine, Orders, Replies};
use crate::placement::{NodeLoad, ReplicaChoice};
use crate::precision::{Follow, WidthDecision};
use crate::routing::Routing;
use bevy_ecs::prelude::{Entity, Resource, World};
use std::sync::Arc;

/// What a token maximises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// What selects experts in the model as it was trained: the router's score of 0 to 1 (a softmax,
    /// or a sigmoid), plus the layer's selection bias, with closed groups below all others.
    Probability,
    /// The router's bare logit: no bias is added and no group is closed.
    Logit,
}

/// The rules of play, the same for every batch.
#[derive(Resource)]
pub struct Rules {
    /// k: experts a token picks.
    pub top_k: usize,
    /// What a token maximises.
    pub affinity: Affinity,
    /// How logits become scores, selections and gates.
    pub routing: Routing,
    /// The router that plays the game; layers share it, what it remembers is each layer's own.
    pub router: Arc<dyn Router>,
    /// What it may know when it plays.
    pub information: Information,
    /// What congestion costs.
    pub cost: Box<CostOfGame>,
    /// Whether the social optimum of each game is found too, beside the play.
    pub social_optimum: bool,
    /// The flock's rule, played beside the router; `None` switches it off.
    pub flock: Option<FlockSettings>,
}

/// What each layer remembers of its earlier batches, by [`LayerId`].
#[derive(Resource)]
pub struct LayerDynamics(pub Vec<Dynamics>);

/// One layer's experts.
#[derive(Clone, Debug)]
pub struct LayerSettings {
    /// Router weight, row-major `[experts, width]`: where the experts are on the sphere.
    pub router: Vec<f32>,
    /// Bits of each expert.
    pub bits: Vec<BitWidth>,
    /// The nodes that hold each expert, ascending, distinct and not empty.
    pub hosts: Vec<Vec<NodeId>>,
    /// Added to each expert's score for selection only, `[experts]`; empty for none.
    pub selection_bias: Vec<f32>,
}

/// Everything that [`spawn`] needs.
pub struct WorldSettings {
    /// Largest number of tokens in a batch.
    pub tokens_max: usize,
    /// Nodes, `0..nodes`.
    pub nodes: usize,
    /// The Mixture-of-Experts layers.
    pub layers: Vec<LayerSettings>,
    /// The rules.
    pub rules: Rules,
}

/// Dense tables from our ids to entities: systems that sum walk these, never a query's own order.
#[derive(Resource, Debug)]
pub struct Roster {
    /// By [`TokenId`].
    pub tokens: Vec<Entity>,
    /// By [`LayerId`], then [`ExpertId`].
    pub experts: Vec<Vec<Entity>>,
    /// By [`NodeId`].
    pub nodes: Vec<Entity>,
}

/// Which copy computes an expert's tokens.
#[derive(Resource, Debug, Default)]
pub struct Replicas {
    /// The rule.
    pub choice: ReplicaChoice,
    /// What it draws by.
    pub seed: u64,
    /// What is known of each node, by [`NodeId`]; empty while nothing is.
    pub loads: Vec<NodeLoad>,
}

/// The batch in play at one layer.
#[derive(Resource, Debug, Default)]
pub struct Batch {
    /// Which batch.
    pub step: StepId,
    /// Which layer.
    pub layer: LayerId,
    /// E.
    pub experts: usize,
    /// The request of each token, by row.
    pub requests: Vec<RequestId>,
    /// Router logits `[T, E]`.
    pub logits: Vec<f32>,
}

impl Batch {
    /// T.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.requests.len()
    }

    /// The shape of the batch's game under `rules`.
    #[must_use]
    pub fn shape(&self, rules: &Rules) -> GameShape {
        GameShape { tokens: self.tokens(), experts: self.experts, top_k: rules.top_k }
    }
}

/// What the tokens perceive: written by the perceive stage.
#[derive(Resource, Debug, Default)]
pub struct Perceived {
    /// Router scores `[T, E]` of 0 to 1: what gates are made of.
    pub scores: Vec<f32>,
    /// What experts are selected by, `[T, E]`, where it differs from the scores.
    pub selection: Option<Vec<f32>>,
}

/// The selection bias of each layer, `[experts]` or empty.
#[derive(Resource, Debug)]
pub struct SelectionBias(pub Vec<Vec<f32>>);

/// The play in force: written by the respond stage.
#[derive(Resource, Debug)]
pub struct Response(pub Play);

/// What there is to report of the play: written by the certify stage.
#[derive(Resource, Debug)]
pub struct Certified(pub crate::report::PlayReport);

/// What the flock alone would have done: written by the flock stage.
#[derive(Resource, Debug, Default)]
pub struct FlockResponse(pub Option<crate::report::FlockReport>);

/// Widths that follow the loads, and what they last decided: written by the precision stage. Absent where
/// widths stay.
#[derive(Resource, Debug)]
pub struct Widths {
    /// What decides.
    pub follow: Follow,
    /// What the shell has not taken up yet.
    pub decided: Option<WidthDecision>,
}

/// Copies that follow the loads, and what was last decided of them: written by the order stage. Absent where
/// experts stay on their nodes.
#[derive(Resource, Debug)]
pub struct Migrations {
    /// What decides.
    pub migrating: Migrating,
    /// What the shell has not taken up yet.
    pub decided: Option<MigrationDecision>,
}

/// Orders to send: written by the order stage.
#[derive(Resource, Debug)]
pub struct Outbox(pub Orders);

/// How those orders load the nodes: written by the order stage.
#[derive(Resource, Debug)]
pub struct NodeLoads(pub crate::report::NodeLoadReport);

/// Replies that came back, and what they combine to: read and written by the absorb stage.
#[derive(Resource, Debug)]
pub struct Inbox {
    /// The orders they answer.
    pub orders: Orders,
    /// The replies, checked against the orders.
    pub replies: Replies,
    /// Columns of a hidden row.
    pub width: usize,
    /// Whether the replies are sums or outputs.
    pub combine: Combine,
    /// The layer's output `[T, width]`.
    pub combined: Vec<f32>,
}

/// Spawns all agents, in the order of their ids.
///
/// # Panics
/// When a layer's tables differ in length or an expert has no host: the shell checks scenarios.
#[must_use]
pub fn spawn(settings: WorldSettings) -> World {
    let WorldSettings { tokens_max, nodes, mut layers, rules } = settings;
    let mut world = World::new();
    let bias = |layer: &mut LayerSettings| std::mem::take(&mut layer.selection_bias);
    world.insert_resource(SelectionBias(layers.iter_mut().map(bias).collect()));
    let tokens = (0..tokens_max)
        .map(|row| {
            let token = Token { row: TokenId::from_index(row) };
            world.spawn((token, Seat::default(), KeptShare::default())).id()
        })
        .collect();
    let nodes = (0..nodes)
        .map(|node| {
            let node = Node { node: NodeId::from_index(node), available: true };
            world.spawn((node, NodeWork::default())).id()
        })
        .collect();
    let dynamics = || Dynamics::sharing(Arc::clone(&rules.router), rules.information);
    world.insert_resource(LayerDynamics(layers.iter().map(|_| dynamics()).collect()));
    let neighbour_count = rules.flock.map_or(0, |flock| flock.neighbours);
    let experts = layers
        .into_iter()
        .enumerate()
        .map(|(layer, settings)| {
            spawn_layer(&mut world, LayerId::from_index(layer), settings, neighbour_count)
        })
        .collect();
    world.insert_resource(Roster { tokens, experts, nodes });
    world.insert_resource(rules);
    world.init_resource::<Replicas>();
    world.init_resource::<Batch>();
    world.init_resource::<Perceived>();
    world.init_resource::<FlockResponse>();
    world
}

fn spawn_layer(
    world: &mut World,
    layer: LayerId,
    settings: LayerSettings,
    neighbour_count: usize,
) -> Vec<Entity> {
    let LayerSettings { router, bits, hosts, .. } = settings;
    assert_eq!(bits.len(), hosts.len(), "one host list an expert");
    let near = neighbours::nearest(&router, bits.len(), neighbour_count);
    bits.into_iter()
        .zip(hosts)
        .zip(near)
        .enumerate()
        .map(|(expert, ((bits, hosts), near))| {
            assert!(!hosts.is_empty(), "every expert has a host");
            world
                .spawn((
                    Expert { layer, expert: ExpertId::from_index(expert) },
                    Load::default(),
                    Price::default(),
                    FlockPrice::default(),
                    Neighbours(near),
                    Precision { bits, routed_gate: 0.0 },
                    Hosts(hosts),
                ))
                .id()
        })
        .collect()
}

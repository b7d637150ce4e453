//! A round: one layer of one batch, from scores to orders and from replies to the layer's output.
//!
//! `decide` runs the stages arrive → perceive → respond → certify → flock → precision → order in one
//! schedule; `absorb` runs after the replies. The world never waits: the shell sends the orders.

mod absorb;
mod arrive;
mod certify;
mod flock;
mod memory;
mod migration;
mod motion;
mod order;
mod perceive;
mod precision;
mod respond;

use crate::expert::BitWidth;
use crate::flock::migration::{Migrating, MigrationDecision};
use crate::flock::motion::LayerMotion;
use crate::game::{Choices, GameError, Scores};
use crate::ids::{ExpertId, LayerId, NodeId, RequestId, StepId};
use crate::orders::{Combine, Orders, PairGates, Replies};
use crate::placement::{NodeLoad, ReplicaChoice};
use crate::precision::{Follow, WidthDecision};
use crate::report::{FlockReport, NodeLoadReport, PlayReport};
use crate::routing::gates;
use crate::world::{
    Batch, Certified, FlockResponse, Inbox, Migrations, NodeLoads, Outbox, Perceived, Replicas,
    Response, Rules, Widths, WorldSettings, spawn,
};
use bevy_ecs::prelude::{IntoScheduleConfigs, Res, Resource, Schedule, SystemSet, World};
use bevy_ecs::schedule::{LogLevel, ScheduleBuildSettings, ScheduleLabel, SingleThreadedExecutor};
use bevy_ecs::system::ScheduleSystem;

pub use absorb::AbsorbError;
pub use memory::{ArenaMemory, ForeignMemory};

/// The stages of a round, in order. Own systems join one of them through [`Arena::add_systems`].
#[derive(SystemSet, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Tokens of the batch take their seats.
    Arrive,
    /// Tokens turn logits into affinities.
    Perceive,
    /// Tokens choose experts: the game is played.
    Respond,
    /// The play is certified, beside plain top-k.
    Certify,
    /// Experts update their flock prices.
    Flock,
    /// Experts account for what their bits are worth.
    Precision,
    /// Choices become orders to nodes, and copies follow the loads.
    Order,
    /// Replies become the layer's output.
    Absorb,
}

impl Stage {
    /// The stages of [`Arena::decide`], in order.
    pub const DECIDE: [Self; 7] = [
        Self::Arrive,
        Self::Perceive,
        Self::Respond,
        Self::Certify,
        Self::Flock,
        Self::Precision,
        Self::Order,
    ];
}

/// The input of a round.
#[derive(Clone, Copy, Debug)]
pub struct Perception<'a> {
    /// Which batch.
    pub step: StepId,
    /// Which layer.
    pub layer: LayerId,
    /// The request of each token, by row; at most `tokens_max`, at least one.
    pub requests: &'a [RequestId],
    /// Router logits `[T, E]`, finite.
    pub logits: &'a [f32],
    /// Hidden states `[T, width]`, what the logits are made of. Read where rows move; may be empty else.
    pub hidden: &'a [f32],
}

/// The output of [`Arena::decide`].
#[derive(Clone, Debug)]
pub struct Decision {
    /// What to send.
    pub orders: Orders,
    /// What to send with it where nodes sum; see [`Arena::set_combine`].
    pub gates: Option<PairGates>,
    /// How that loads the nodes.
    pub node_loads: NodeLoadReport,
    /// What was played.
    pub play: PlayReport,
    /// What the flock would have played; absent when it is switched off.
    pub flock: Option<FlockReport>,
}

/// Tells the shell that a stage has ended, so that it can read its clock; the core has none.
type StageObserver = Box<dyn Fn(Stage) + Send + Sync>;

#[derive(Resource, Default)]
struct Observer(Option<StageObserver>);

#[derive(ScheduleLabel, Clone, Debug, PartialEq, Eq, Hash)]
struct DecideSchedule;

#[derive(ScheduleLabel, Clone, Debug, PartialEq, Eq, Hash)]
struct AbsorbSchedule;

/// The world and its two schedules.
pub struct Arena {
    world: World,
    decide: Schedule,
    absorb: Schedule,
    combine: Combine,
}

impl Arena {
    /// Spawns the agents and builds the schedules.
    #[must_use]
    pub fn new(settings: WorldSettings) -> Self {
        let mut world = spawn(settings);
        world.init_resource::<Observer>();
        let mut decide = strict(Schedule::new(DecideSchedule));
        decide.add_systems((
            arrive::seat_tokens.in_set(Stage::Arrive),
            perceive::perceive.in_set(Stage::Perceive),
            respond::respond.in_set(Stage::Respond),
            certify::certify_play.in_set(Stage::Certify),
            flock::fly.in_set(Stage::Flock),
            (precision::weigh, precision::follow).in_set(Stage::Precision),
            (order::write_orders, migration::migrate).in_set(Stage::Order),
        ));
        for (stage, next) in Stage::DECIDE.into_iter().zip(Stage::DECIDE.into_iter().skip(1)) {
            decide.configure_sets((stage, next).chain());
            decide.add_systems(ended(stage).after(stage).before(next));
        }
        decide.add_systems(ended(Stage::Order).after(Stage::Order));
        let mut absorb = strict(Schedule::new(AbsorbSchedule));
        absorb.add_systems(absorb::combine_replies.in_set(Stage::Absorb));
        Self { world, decide, absorb, combine: Combine::default() }
    }

    /// Adds own systems to a stage. They must order themselves against the stage's other systems
    /// where both touch the same data: an ambiguity stops the first round.
    pub fn add_systems<M>(
        &mut self,
        stage: Stage,
        systems: impl IntoScheduleConfigs<ScheduleSystem, M>,
    ) -> &mut Self {
        let schedule = if stage == Stage::Absorb { &mut self.absorb } else { &mut self.decide };
        schedule.add_systems(systems.in_set(stage));
        self
    }

    /// Calls `observer` at the end of each stage of a decision.
    pub fn observe_stages(&mut self, observer: impl Fn(Stage) + Send + Sync + 'static) {
        self.world.insert_resource(Observer(Some(Box::new(observer))));
    }

    /// The world, for own components and queries.
    pub fn world_mut(&mut self) -> &mut World {
        &mut self.world
    }

    /// Says where outputs are summed from the next round on; [`Combine::Exact`] at first.
    pub fn set_combine(&mut self, combine: Combine) {
        self.combine = combine;
    }

    /// Lets the router rows of each layer move: from the next round on the logits are those of the rows in
    /// force, and each round's perception has its hidden states. One a layer, in order.
    ///
    /// # Panics
    /// When there is not one motion a layer, or rows move already.
    pub fn set_motion(&mut self, layers: Vec<LayerMotion>) {
        let roster = self.world.resource::<crate::world::Roster>();
        assert_eq!(layers.len(), roster.experts.len(), "a motion for every layer");
        assert!(self.motion().is_none(), "rows are set in motion once");
        self.world.insert_resource(motion::Motions { layers, hidden: Vec::new() });
        self.decide.add_systems((
            motion::perceive.in_set(Stage::Perceive).before(perceive::perceive),
            motion::fly.in_set(Stage::Flock),
        ));
    }

    /// The rows of each layer in motion; none where they stand.
    #[must_use]
    pub fn motion(&self) -> Option<&[LayerMotion]> {
        self.world.get_resource::<motion::Motions>().map(|motions| motions.layers.as_slice())
    }

    /// Says which copy of an expert computes its tokens from the next round on, and what is drawn for it by;
    /// [`ReplicaChoice::Planned`] at first. What is combined from outputs is the same bits; sums of nodes
    /// ([`Combine::AtWorker`]) are those of the nodes that were chosen.
    pub fn set_choice(&mut self, choice: ReplicaChoice, seed: u64) {
        let mut replicas = self.world.resource_mut::<Replicas>();
        (replicas.choice, replicas.seed) = (choice, seed);
    }

    /// Says what is known of each node, for choices that mind it.
    pub fn set_node_loads(&mut self, mut load: impl FnMut(NodeId) -> NodeLoad) {
        let nodes = self.world.resource::<crate::world::Roster>().nodes.len();
        self.world.resource_mut::<Replicas>().loads =
            (0..nodes).map(|node| load(NodeId::from_index(node))).collect();
    }

    /// Says which nodes should get work from the next round on; all should at first. Experts of the
    /// others are computed by their replicas, and by the others still where there is none: what is
    /// combined is the same.
    pub fn set_available(&mut self, mut available: impl FnMut(NodeId) -> bool) {
        let nodes = self.world.resource::<crate::world::Roster>().nodes.clone();
        for entity in nodes {
            let mut node = self
                .world
                .get_mut::<crate::components::Node>(entity)
                .expect("the roster is complete");
            node.available = available(node.node);
        }
    }

    /// Says which nodes host an expert from the next round on: what is combined is the same.
    ///
    /// # Panics
    /// When the layer, the expert or a host is unknown, or there is no host.
    pub fn set_hosts(&mut self, layer: LayerId, expert: ExpertId, hosts: Vec<NodeId>) {
        let roster = self.world.resource::<crate::world::Roster>();
        let known = hosts.iter().all(|host| host.index() < roster.nodes.len());
        assert!(!hosts.is_empty() && known, "every expert has hosts, nodes of the roster");
        let entity = roster.experts[layer.index()][expert.index()];
        self.world.get_mut::<crate::components::Hosts>(entity).expect("the roster is complete").0 =
            hosts;
    }

    /// Lets widths follow the loads of the steps from now on.
    pub fn follow_loads(&mut self, follow: Follow) {
        self.world.insert_resource(Widths { follow, decided: None });
    }

    /// What was decided of the widths in the latest step, if anything was and nobody took it before. The
    /// widths in force stay until [`Self::set_bits`] says that others are.
    pub fn take_width_decision(&mut self) -> Option<WidthDecision> {
        self.world.get_resource_mut::<Widths>()?.decided.take()
    }

    /// Lets copies follow the loads of the steps from now on.
    pub fn follow_with_copies(&mut self, migrating: Migrating) {
        self.world.insert_resource(Migrations { migrating, decided: None });
    }

    /// What was decided of the copies in the latest step, if anything was and nobody took it before. The hosts
    /// in force stay until [`Self::set_hosts`] says that others are.
    pub fn take_migration_decision(&mut self) -> Option<MigrationDecision> {
        self.world.get_resource_mut::<Migrations>()?.decided.take()
    }

    /// Says that an expert is computed at another width from the next round on.
    ///
    /// # Panics
    /// When the layer or the expert is unknown.
    pub fn set_bits(&mut self, layer: LayerId, expert: ExpertId, bits: BitWidth) {
        let roster = self.world.resource::<crate::world::Roster>();
        let entity = roster.experts[layer.index()][expert.index()];
        let mut precision = self
            .world
            .get_mut::<crate::components::Precision>(entity)
            .expect("the roster is complete");
        precision.bits = bits;
    }

    /// The bits that each expert of a layer is computed at.
    ///
    /// # Panics
    /// When the layer is unknown.
    #[must_use]
    pub fn bits(&self, layer: LayerId) -> Vec<BitWidth> {
        let experts = &self.world.resource::<crate::world::Roster>().experts[layer.index()];
        let bits = |entity: &bevy_ecs::prelude::Entity| {
            let precision = self.world.get::<crate::components::Precision>(*entity);
            precision.expect("the roster is complete").bits
        };
        experts.iter().map(bits).collect()
    }

    /// Plays one round.
    ///
    /// # Errors
    /// When a logit is not finite or the matrix does not fit the batch.
    ///
    /// # Panics
    /// When the batch is larger than the token pool or names an unknown layer.
    pub fn decide(&mut self, perception: &Perception<'_>) -> Result<Decision, GameError> {
        let Perception { step, layer, requests, logits, hidden } = *perception;
        let roster = self.world.resource::<crate::world::Roster>();
        let experts = roster.experts[layer.index()].len();
        assert!(requests.len() <= roster.tokens.len(), "the batch fits the token pool");
        if Scores::new(logits, experts)?.tokens() != requests.len() {
            return Err(GameError::Shape { values: logits.len(), experts });
        }
        let mut batch = self.world.resource_mut::<Batch>();
        (batch.step, batch.layer, batch.experts) = (step, layer, experts);
        batch.requests.clear();
        batch.requests.extend_from_slice(requests);
        batch.logits.clear();
        batch.logits.extend_from_slice(logits);
        if let Some(mut motions) = self.world.get_resource_mut::<motion::Motions>() {
            motions.hidden.clear();
            motions.hidden.extend_from_slice(hidden);
        }
        self.decide.run(&mut self.world);
        Ok(Decision {
            orders: self.world.resource::<Outbox>().0.clone(),
            gates: match self.combine {
                Combine::Exact => None,
                Combine::AtWorker => Some(PairGates::new(self.choices().clone(), self.gates())),
            },
            node_loads: self.world.resource::<NodeLoads>().0.clone(),
            play: self.world.resource::<Certified>().0.clone(),
            flock: self.world.resource::<FlockResponse>().0.clone(),
        })
    }

    /// Combines the replies to the latest decision into the layer's output `[T, width]`.
    ///
    /// # Errors
    /// When a reply is missing, unasked or of the wrong length: nothing is combined then.
    pub fn absorb(
        &mut self,
        orders: Orders,
        replies: Replies,
        width: usize,
    ) -> Result<Vec<f32>, AbsorbError> {
        let combine = self.combine;
        absorb::check(&orders, &replies, width, combine)?;
        self.world.insert_resource(Inbox { orders, replies, width, combine, combined: Vec::new() });
        self.absorb.run(&mut self.world);
        let inbox = self.world.remove_resource::<Inbox>().expect("inserted above");
        Ok(inbox.combined)
    }

    /// The assignment of the latest round.
    ///
    /// # Panics
    /// Before the first round.
    #[must_use]
    pub fn choices(&self) -> &Choices {
        &self.world.resource::<Response>().0.choices
    }

    /// The gates of the latest round's chosen pairs, by token and ascending expert.
    ///
    /// # Panics
    /// Before the first round.
    #[must_use]
    pub fn gates(&self) -> Vec<f32> {
        let scores = &self.world.resource::<Perceived>().scores;
        gates(scores, self.choices(), &self.world.resource::<Rules>().routing)
    }

    /// Token–expert pairs that all nodes were ordered, and those that were combined, since the run
    /// began: they differ only where replies never came or were refused.
    #[must_use]
    pub fn pairs(&self) -> (u64, u64) {
        let nodes = &self.world.resource::<crate::world::Roster>().nodes;
        let work = nodes.iter().map(|node| {
            self.world.get::<crate::components::NodeWork>(*node).expect("nodes have work")
        });
        work.fold((0, 0), |(pairs, combined), work| (pairs + work.pairs, combined + work.combined))
    }

    /// Feeds the game's state at the latest round to `hash`: choices, prices and flock prices.
    pub fn fingerprint(&self, mut hash: impl FnMut(&[u8])) {
        let batch = self.world.resource::<Batch>();
        let layer = batch.layer;
        hash(&batch.step.0.to_le_bytes());
        hash(&layer.0.to_le_bytes());
        for expert in self.choices().experts() {
            hash(&expert.0.to_le_bytes());
        }
        for entity in &self.world.resource::<crate::world::Roster>().experts[layer.index()] {
            let entity = self.world.entity(*entity);
            let price = entity.get::<crate::components::Price>().expect("experts have a price");
            let flock = entity.get::<crate::components::FlockPrice>().expect("and a flock price");
            hash(&price.0.to_le_bytes());
            hash(&flock.price.to_le_bytes());
        }
    }
}

/// One thread and no ambiguity: parallelism lives inside systems, over fixed blocks.
fn strict(mut schedule: Schedule) -> Schedule {
    schedule.set_executor(SingleThreadedExecutor::new());
    schedule.set_build_settings(ScheduleBuildSettings {
        ambiguity_detection: LogLevel::Error,
        ..ScheduleBuildSettings::default()
    });
    schedule
}

/// A system that tells the observer that a stage has ended.
fn ended(stage: Stage) -> impl Fn(Res<'_, Observer>) {
    move |observer| {
        if let Some(observe) = &observer.0 {
            observe(stage);
        }
    }
}

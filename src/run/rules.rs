//! From a scenario to an arena: rules, layers and hosts.

use crate::scenario::Scenario;
use crate::scenario::file;
use crate::source::{ScoreSource, SourceShape};
use agents::expert::{BitWidth, Expert};
use agents::flock::motion::{LayerMotion, MotionSettings, RowRule};
use agents::flock::price::FlockSettings;
use agents::game::{CostOfGame, CostSettings, Information, Registries, Router, TopK};
use agents::ids::{ExpertId, LayerId, NodeId};
use agents::rng::stream;
use agents::round::Arena;
use agents::world::{Affinity, LayerSettings, Rules, WorldSettings};
use rand::RngExt as _;
use std::sync::Arc;

/// Bits by layer and expert.
pub(super) fn bits_of(experts: &[Vec<Arc<Expert>>]) -> Vec<Vec<BitWidth>> {
    let layer = |experts: &Vec<Arc<Expert>>| experts.iter().map(|expert| expert.bits()).collect();
    experts.iter().map(layer).collect()
}

/// Nodes that the experts of a control are dealt to, in one process. The replies of a batch are most of
/// what it holds: several that are smaller find room where one would not.
pub(super) const CONTROL_NODES: usize = 8;

/// Where a control has an expert.
pub(super) fn control_host(_: LayerId, expert: ExpertId) -> Vec<NodeId> {
    vec![NodeId::from_index(expert.index() % CONTROL_NODES)]
}

/// An arena with the scenario's own router.
#[must_use]
pub(super) fn arena(
    source: &dyn ScoreSource,
    (scenario, registries): (&Scenario, &Registries),
    bits: Vec<Vec<BitWidth>>,
    nodes: usize,
    hosts: impl Fn(LayerId, ExpertId) -> Vec<NodeId>,
) -> Arena {
    const KNOWN: &str = "the scenario's checks know all names";
    let game = &scenario.game;
    let router = registries.routers.get(&game.router).expect(KNOWN);
    let cost = registries.costs.of_games(&game.cost, game.cost_parameters()).expect(KNOWN);
    let information = match game.information {
        file::Information::InBatch => Information::InBatch,
        file::Information::Stale { batches } => Information::Stale { batches: batches as usize },
        file::Information::Partial { dispatchers } => {
            Information::Partial { dispatchers: dispatchers as usize }
        }
    };
    let flock = scenario.flock.enabled.then_some(FlockSettings {
        neighbours: scenario.flock.neighbours as usize,
        price_step: scenario.flock.price_step,
        alignment: scenario.flock.alignment,
    });
    let play = Playing { router, cost, information, social_optimum: game.social_optimum, flock };
    let mut arena = build(source, scenario, bits, play, nodes, hosts);
    if let Some(rule) = scenario.flock.motion_rule() {
        arena.set_motion(motions(source, scenario, &|seed| {
            registries.motions.build(rule, seed).expect(KNOWN)
        }));
    }
    arena
}

/// The rows of each layer, with a rule and a seed of its own.
fn motions(
    source: &dyn ScoreSource,
    scenario: &Scenario,
    rule: &dyn Fn(u64) -> Box<dyn RowRule>,
) -> Vec<LayerMotion> {
    let SourceShape { layers, width, top_k, routing, .. } = source.shape();
    let top_k = scenario.game.top_k.map_or(top_k, |top_k| top_k as usize);
    let settings = MotionSettings {
        neighbours: scenario.flock.neighbours as usize,
        turn_max: scenario.flock.motion_turn_max_rad,
        score_loss_max: scenario.flock.motion_score_loss_max,
    };
    let layers = (0..layers).map(LayerId::from_index);
    let of_layer = |layer| {
        let seed = stream(scenario.seed, &format!("motion of layer {layer}")).random();
        let rows = source.router_rows(layer);
        LayerMotion::new(&rows, width, (routing, top_k), settings, rule(seed))
    };
    layers.map(of_layer).collect()
}

/// The control: the same tokens under plain top-k, without a flock. Top-k
/// minds no congestion, so it costs nothing.
#[must_use]
pub(super) fn top_k_arena(
    source: &dyn ScoreSource,
    scenario: &Scenario,
    bits: Vec<Vec<BitWidth>>,
) -> Arena {
    let free = CostSettings::Linear { price_per_fair_share: 0.0 };
    let play = Playing {
        router: Box::new(TopK),
        cost: Box::new(move |shape| free.build(shape.tokens, shape.experts, shape.top_k)),
        information: Information::InBatch,
        social_optimum: false,
        flock: None,
    };
    build(source, scenario, bits, play, CONTROL_NODES, control_host)
}

/// How an arena plays, beside what its source and scenario say of sizes.
struct Playing {
    router: Box<dyn Router>,
    cost: Box<CostOfGame>,
    information: Information,
    social_optimum: bool,
    flock: Option<FlockSettings>,
}

fn build(
    source: &dyn ScoreSource,
    scenario: &Scenario,
    bits: Vec<Vec<BitWidth>>,
    play: Playing,
    nodes: usize,
    hosts: impl Fn(LayerId, ExpertId) -> Vec<NodeId>,
) -> Arena {
    let SourceShape { top_k, routing, .. } = source.shape();
    let layers = bits
        .into_iter()
        .enumerate()
        .map(|(layer, bits)| {
            let layer = LayerId::from_index(layer);
            LayerSettings {
                router: source.router_rows(layer),
                hosts: (0..bits.len()).map(|e| hosts(layer, ExpertId::from_index(e))).collect(),
                bits,
                selection_bias: source.selection_bias(layer),
            }
        })
        .collect();
    Arena::new(WorldSettings {
        tokens_max: usize::try_from(scenario.batch_tokens_max()).expect("checked to be small"),
        nodes,
        layers,
        rules: Rules {
            top_k: scenario.game.top_k.map_or(top_k, |top_k| top_k as usize),
            affinity: match scenario.game.affinity {
                file::Affinity::Probability => Affinity::Probability,
                file::Affinity::Logit => Affinity::Logit,
            },
            routing,
            router: play.router.into(),
            information: play.information,
            cost: play.cost,
            social_optimum: play.social_optimum,
            flock: play.flock,
        },
    })
}

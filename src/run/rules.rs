//! From a scenario to an arena: rules, layers and hosts.

use crate::scenario::Scenario;
use crate::scenario::file::{self, Cost};
use crate::source::{ScoreSource, SourceShape};
use agents::expert::Expert;
use agents::flock::price::FlockSettings;
use agents::game::{CostSettings, Router, RouterRegistry, TopK};
use agents::ids::{ExpertId, LayerId, NodeId};
use agents::round::Arena;
use agents::world::{Affinity, LayerSettings, Rules, WorldSettings};
use std::sync::Arc;

/// An arena with the scenario's own router.
#[must_use]
pub(super) fn arena(
    source: &dyn ScoreSource,
    (scenario, routers): (&Scenario, &RouterRegistry),
    experts: &[Vec<Arc<Expert>>],
    nodes: usize,
    hosts: impl Fn(LayerId, ExpertId) -> Vec<NodeId>,
) -> Arena {
    let router = routers.get(&scenario.game.router).expect("the scenario's checks know all names");
    let flock = scenario.flock.enabled.then_some(FlockSettings {
        neighbours: scenario.flock.neighbours as usize,
        price_step: scenario.flock.price_step,
        alignment: scenario.flock.alignment,
    });
    build(source, scenario, experts, (router, flock), nodes, hosts)
}

/// The control: the same game under plain top-k, everything on one node, without a flock.
#[must_use]
pub(super) fn top_k_arena(
    source: &dyn ScoreSource,
    scenario: &Scenario,
    experts: &[Vec<Arc<Expert>>],
) -> Arena {
    build(source, scenario, experts, (Box::new(TopK), None), 1, |_, _| vec![NodeId(0)])
}

fn build(
    source: &dyn ScoreSource,
    scenario: &Scenario,
    experts: &[Vec<Arc<Expert>>],
    (router, flock): (Box<dyn Router>, Option<FlockSettings>),
    nodes: usize,
    hosts: impl Fn(LayerId, ExpertId) -> Vec<NodeId>,
) -> Arena {
    let SourceShape { tokens_per_request, top_k, routing, .. } = source.shape();
    let layers = experts
        .iter()
        .enumerate()
        .map(|(layer, experts)| {
            let layer = LayerId::from_index(layer);
            LayerSettings {
                router: source.router_rows(layer),
                bits: experts.iter().map(|expert| expert.bits()).collect(),
                hosts: (0..experts.len()).map(|e| hosts(layer, ExpertId::from_index(e))).collect(),
                selection_bias: source.selection_bias(layer),
            }
        })
        .collect();
    Arena::new(WorldSettings {
        tokens_max: scenario.load.batch_requests_max as usize * tokens_per_request,
        nodes,
        layers,
        rules: Rules {
            top_k: scenario.game.top_k.map_or(top_k, |top_k| top_k as usize),
            affinity: match scenario.game.affinity {
                file::Affinity::Probability => Affinity::Probability,
                file::Affinity::Logit => Affinity::Logit,
            },
            routing,
            router,
            cost: cost(&scenario.game),
            flock,
        },
    })
}

/// The congestion cost that a scenario names.
fn cost(game: &file::Game) -> CostSettings {
    match game.cost {
        Cost::Quota => CostSettings::Quota { capacity_factor: game.capacity_factor },
        Cost::Linear => CostSettings::Linear { price_per_fair_share: game.price_per_fair_share },
    }
}

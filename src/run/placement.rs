//! Places the experts: deals them, or plans for the loads that calibration requests bring.

use super::PlanError;
use super::controls::{Played, in_turn, play_batches};
use super::fit::{FitError, FittedExperts};
use super::materials::Materials;
use super::rounds::Round;
use super::rules::{self, CONTROL_NODES, control_host};
use crate::dispatch::placement::RoundRobin;
use crate::measure::Clock;
use crate::results::{ExpectedNodeLoads, LoadsFrom, PlacementFigures, ServedNodeLoads};
use crate::scenario::Scenario;
use crate::scenario::file::{Nodes, PlacementRule};
use agents::game::Registries;
use agents::ids::{ExpertId, LayerId, NodeId};
use agents::placement::{
    EplbShape, Placement, PlanSettings, dispatch, eplb, placement_lower_bound, plan,
};
use agents::round::Arena;
use rayon::prelude::*;

/// Placements that the local search may dispatch for a layer: its bound.
const EVALUATIONS_MAX: usize = 500;

/// Where the experts are, and what was expected of it.
pub(super) struct Placed {
    /// By layer.
    layers: Vec<LayerPlacement>,
    /// The control: every expert once, dealt in turn.
    pub(super) round_robin: RoundRobin,
    figures: PlacementFigures,
}

/// One layer's copies.
pub(super) struct LayerPlacement {
    /// Which node holds what.
    placement: Placement,
    /// Copies that each node has room for, `[N]`.
    pub(super) slots: Vec<usize>,
}

impl Placed {
    /// The nodes that hold an expert, ascending.
    pub(super) fn hosts(&self, layer: LayerId, expert: ExpertId) -> Vec<NodeId> {
        self.layers[layer.index()].placement.hosts(expert).to_vec()
    }

    /// Room for copies by layer and node.
    pub(super) fn slots(&self) -> Vec<Vec<usize>> {
        self.layers.iter().map(|layer| layer.slots.clone()).collect()
    }

    /// What is known before serving.
    pub(super) fn figures(&self) -> PlacementFigures {
        self.figures.clone()
    }
}

/// Places all experts by the scenario's rule. Round robin looks at no loads; the others play the
/// calibration requests first, under the scenario's own router and on the experts as served, from
/// cold prices, and plan for the sums. Without calibration text they plan for even loads: the text
/// that is served is never looked at.
///
/// # Errors
/// When there are more replicas than nodes or calibration fails.
pub(super) async fn place(
    materials: &Materials,
    scenario: &Scenario,
    registries: &Registries,
    experts: &FittedExperts,
    clock: &Clock,
) -> Result<Placed, PlanError> {
    let nodes = &scenario.nodes;
    let count = nodes.count as usize;
    let shape = materials.source(experts.kept()).shape();
    let round_robin = RoundRobin::deal(shape.experts, count, 1)?;
    let name = nodes.placement.name().to_owned();
    let served_yet = ServedNodeLoads::default();
    if nodes.placement == PlacementRule::RoundRobin {
        let replicas = nodes.replicas as usize;
        let deal = RoundRobin::deal(shape.experts, count, replicas)?;
        let layers = (0..shape.layers).map(LayerId::from_index);
        let layers = layers.map(|layer| dealt(deal, layer, shape.experts, count)).collect();
        let replica_slots = (shape.experts * (replicas - 1)) as u64;
        let figures = PlacementFigures { name, replica_slots, expected: None, served: served_yet };
        return Ok(Placed { layers, round_robin, figures });
    }
    let (loads, loads_from) = expected_loads(materials, scenario, registries, experts, clock)
        .await
        .map_err(FitError::from)?;
    let planned: Vec<(LayerPlacement, Expected)> = loads
        .par_iter()
        .enumerate()
        .map(|(layer, loads)| planned_layer(nodes, layer, loads))
        .collect();
    let mut sums = Expected::default();
    let mut layers = Vec::with_capacity(planned.len());
    for (layer, expected) in planned {
        sums.add(&expected);
        layers.push(layer);
    }
    let expected = Some(sums.figures(loads_from, count));
    let replica_slots = u64::from(nodes.replica_slots);
    let figures = PlacementFigures { name, replica_slots, expected, served: served_yet };
    Ok(Placed { layers, round_robin, figures })
}

fn dealt(deal: RoundRobin, layer: LayerId, experts: usize, nodes: usize) -> LayerPlacement {
    let experts = (0..experts).map(ExpertId::from_index);
    let hosts: Vec<Vec<NodeId>> =
        experts.map(|expert| deal.hosts(layer, expert).collect()).collect();
    let placement = Placement::new(nodes, &hosts).expect("a deal gives distinct nodes");
    let slots = placement.held().iter().map(Vec::len).collect();
    LayerPlacement { placement, slots }
}

/// The expected load of each expert by layer, in pairs.
async fn expected_loads(
    materials: &Materials,
    scenario: &Scenario,
    registries: &Registries,
    experts: &FittedExperts,
    clock: &Clock,
) -> Result<(Vec<Vec<f64>>, LoadsFrom), super::RoundError> {
    let served = &experts.served;
    let Some((mut source, requests)) = materials.calibration_source(experts.kept()) else {
        let even = served.iter().map(|experts| vec![1.0; experts.len()]).collect();
        return Ok((even, LoadsFrom::Even));
    };
    let mut loads: Vec<Vec<f64>> = served.iter().map(|experts| vec![0.0; experts.len()]).collect();
    let rules = (scenario, registries);
    let experts = Played::Held(served);
    let arena = rules::arena(source.as_ref(), rules, experts.bits(), CONTROL_NODES, control_host);
    let count = |round: &Round<'_>, _: &mut Arena| {
        let sums = loads[round.layer.index()].iter_mut();
        sums.zip(&round.decision.play.loads).for_each(|(sum, load)| *sum += f64::from(*load));
    };
    let batches = in_turn(requests, scenario.load.batch_requests_max as usize);
    play_batches(source.as_mut(), arena, experts, batches, clock, count).await?;
    Ok((loads, LoadsFrom::Calibration))
}

/// What is expected of placements, in pairs of the expected loads; summed over layers.
#[derive(Default)]
struct Expected {
    pairs: f64,
    largest: f64,
    bound: f64,
}

impl Expected {
    fn add(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.largest += other.largest;
        self.bound += other.bound;
    }

    fn figures(&self, loads_from: LoadsFrom, nodes: usize) -> ExpectedNodeLoads {
        let mean = self.pairs / nodes as f64;
        let over_mean = |load: f64| (mean > 0.0).then(|| load / mean);
        // The plan may reach the bound, and fall below it by rounding.
        let gap = ((self.largest - self.bound) / self.largest).max(0.0);
        ExpectedNodeLoads {
            loads_from,
            max_over_mean: over_mean(self.largest),
            lower_bound: over_mean(self.bound),
            relative_gap: (self.largest > 0.0).then_some(gap),
        }
    }
}

fn planned_layer(nodes: &Nodes, layer: usize, loads: &[f64]) -> (LayerPlacement, Expected) {
    let slots = slots_of_layer(nodes, layer, loads.len());
    let bound = placement_lower_bound(loads, &slots).expect("the slots hold every expert");
    let (placement, largest) = if nodes.placement == PlacementRule::Eplb {
        let replicas = slots.iter().sum();
        let shape = EplbShape { replicas, groups: 1, servers: 1, gpus: slots.len() };
        let found = eplb(loads, shape).expect("materials check that the copies divide");
        let placement = found.placement();
        let split = dispatch(&placement, loads, None).expect("counts are loads");
        (placement, split.max_load())
    } else {
        let settings =
            PlanSettings { slots: &slots, evaluations_max: EVALUATIONS_MAX, previous: None };
        let found = plan(loads, &settings).expect("counts are loads, and the slots hold them");
        (found.placement, found.dispatch.max_load())
    };
    let expected = Expected { pairs: loads.iter().sum(), largest, bound };
    (LayerPlacement { placement, slots }, expected)
}

/// Slots that differ by one at most. Where they do, the larger ones go on from layer to layer.
fn slots_of_layer(nodes: &Nodes, layer: usize, experts: usize) -> Vec<usize> {
    let count = nodes.count as usize;
    let copies = experts + nodes.replica_slots as usize;
    let (each, rest) = (copies / count, copies % count);
    let first = layer * rest % count;
    (0..count).map(|node| each + usize::from((node + count - first) % count < rest)).collect()
}

#[cfg(test)]
mod tests {
    use super::slots_of_layer;
    use crate::scenario::file::Nodes;

    #[test]
    fn slots_hold_all_copies_and_over_the_layers_no_node_is_short() {
        let nodes = Nodes { count: 5, replica_slots: 2, ..Nodes::default() };
        let mut sums = [0; 5];
        for layer in 0..5 {
            let slots = slots_of_layer(&nodes, layer, 11);
            assert_eq!(slots.iter().sum::<usize>(), 13);
            assert!(slots.iter().all(|slots| (2..=3).contains(slots)), "{slots:?}");
            sums.iter_mut().zip(slots).for_each(|(sum, slots)| *sum += slots);
        }
        assert_eq!(sums, [13; 5]);
    }
}

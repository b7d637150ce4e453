//! Everything decided before the first request.

use super::demand::Demand;
use super::fit::FittedExperts;
use super::materials::Materials;
use super::placement::Placed;
use super::rounds::RoundError;
use super::rules;
use super::serve::ServeError;
use crate::dispatch::{Faults, MembershipCounts, NodeStats};
use crate::results::{
    FaultFigures, GenerationFigures, ManifestNode, MembershipFigures, Memory, NodeFigures,
    PrecisionFigures, PruningFigures,
};
use crate::scenario::Scenario;
use crate::scenario::file::{self, Engine, PrecisionUnit, PruneBy, Sensitivity};
use crate::source::{KeptExperts, ScoreSource};
use agents::expert::Expert;
use agents::game::Registries;
use agents::ids::LayerId;
use agents::orders::Combine;
use agents::placement::ReplicaChoice;
use agents::round::Arena;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Everything decided before the first request.
pub(super) struct Plan<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) registries: &'a Registries,
    pub(super) materials: &'a Materials,
    pub(super) experts: FittedExperts,
    pub(super) placed: Placed,
    node_count: usize,
    pub(super) demand: Demand,
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        scenario: &'a Scenario,
        registries: &'a Registries,
        materials: &'a Materials,
        demand: Demand,
        (experts, placed): (FittedExperts, Placed),
    ) -> Self {
        let node_count = scenario.nodes.seats();
        Self { scenario, registries, materials, experts, placed, node_count, demand }
    }

    /// A source of the requests over the experts that are served.
    pub(super) fn source(&self) -> Box<dyn ScoreSource + '_> {
        self.materials.source(self.experts.kept())
    }

    pub(super) fn arena(&self, source: &dyn ScoreSource) -> Arena {
        let bits = rules::bits_of(&self.experts.served);
        let played = (self.scenario, self.registries);
        let mut arena =
            rules::arena(source, played, bits, self.node_count, |l, e| self.placed.hosts(l, e));
        arena.set_combine(match self.scenario.nodes.combine {
            file::Combine::Exact => Combine::Exact,
            file::Combine::AtWorker => Combine::AtWorker,
        });
        let choice = match self.scenario.nodes.choice {
            file::Choice::Planned => ReplicaChoice::Planned,
            file::Choice::TwoChoices => ReplicaChoice::TwoChoices,
            file::Choice::Random => ReplicaChoice::Random,
            file::Choice::RoundRobin => ReplicaChoice::RoundRobin,
        };
        arena.set_choice(choice, self.scenario.seed);
        arena
    }

    pub(super) fn memory(&self) -> Memory {
        let experts = || self.experts.served.iter().flatten();
        let mut widths = BTreeMap::new();
        experts().for_each(|e| *widths.entry(e.bits().code_bits()).or_insert(0) += 1);
        let all = self.experts.experts * self.experts.served.len();
        let pruned = (all - experts().count()) as u64;
        if pruned > 0 {
            widths.insert(0, pruned);
        }
        let weights = all * experts().next().map_or(0, |expert| expert.shape().weights());
        Memory::new(experts().map(|e| e.bytes()).sum(), weights as u64, widths)
    }

    pub(super) fn precision(&self) -> Option<PrecisionFigures> {
        let fit = self.experts.fit.as_ref()?;
        let allocation = &fit.allocation;
        Some(PrecisionFigures {
            budget_bytes: fit.budget_bytes,
            allocator: fit.allocator.clone(),
            sensitivity: match self.scenario.precision.sensitivity {
                Sensitivity::Output => "output".to_owned(),
                Sensitivity::Loss => "loss".to_owned(),
            },
            unit: match self.scenario.precision.unit {
                PrecisionUnit::Expert => "expert".to_owned(),
                PrecisionUnit::Matrix => "matrix".to_owned(),
            },
            cost: allocation.cost,
            bytes: Some(allocation.bytes),
            exact_cost: Some(fit.exact.cost),
            gap_to_exact: allocation.gap_to(&fit.exact),
            dual_bound: allocation.dual_bound,
            exact: fit.exact.exact,
            uniform_cost: fit.uniform.as_ref().map(|uniform| uniform.cost),
            uniform_bytes: fit.uniform.as_ref().map(|uniform| uniform.bytes),
        })
    }

    pub(super) fn pruning(&self) -> Option<PruningFigures> {
        let pruned = self.experts.pruned.as_ref()?;
        let precision = &self.scenario.precision;
        let count = |experts: &[Vec<Arc<Expert>>]| experts.iter().map(Vec::len).sum::<usize>();
        let all = self.experts.experts * self.experts.served.len();
        let unlike = |other: &KeptExperts| {
            let layers = other.iter().zip(&pruned.kept);
            let differ =
                layers.map(|(other, kept)| kept.iter().filter(|e| !other.contains(e)).count());
            differ.sum::<usize>() as u64
        };
        let by = match precision.prune_by {
            PruneBy::Reap => "reap",
            PruneBy::Frequency => "frequency",
        };
        Some(PruningFigures {
            by: by.to_owned(),
            share: precision.prune,
            experts: all as u64,
            pruned: (all - count(&self.experts.served)) as u64,
            unlike_frequency: pruned.kept_by_frequency.as_ref().map(unlike),
        })
    }

    /// What is known of the answers before the first step.
    pub(super) fn generation(&self) -> Option<GenerationFigures> {
        let answers = self.demand.answers.as_ref()?;
        let (mut steps, mut virtual_ns) = (0, 0);
        for step in answers.steps(&self.demand.intended_ns) {
            steps += 1;
            virtual_ns +=
                answers.limits.step_ns + u64::from(step.tokens()) * answers.limits.token_ns;
        }
        Some(GenerationFigures {
            context: answers.context as u64,
            cut_requests: answers.cut,
            virtual_step_ns: virtual_ns.checked_div(steps),
            ..GenerationFigures::default()
        })
    }

    /// Bits of every expert of the model by layer, 0 where it is pruned.
    pub(super) fn bits(&self) -> Vec<Vec<u32>> {
        let layer = |experts: &Vec<Arc<Expert>>| {
            experts.iter().map(|expert| expert.bits().code_bits()).collect()
        };
        self.bits_of_all(self.experts.served.iter().map(layer))
    }

    /// The same as an arena has them.
    pub(super) fn bits_in(&self, arena: &Arena) -> Vec<Vec<u32>> {
        let layers = (0..self.experts.served.len()).map(LayerId::from_index);
        let bits = |layer| arena.bits(layer).iter().map(|bits| bits.code_bits()).collect();
        self.bits_of_all(layers.map(bits))
    }

    /// By expert of the model, from those of the experts that are served.
    fn bits_of_all(&self, served: impl Iterator<Item = Vec<u32>>) -> Vec<Vec<u32>> {
        let layer = |(layer, served): (usize, Vec<u32>)| {
            let Some(kept) = self.experts.kept() else { return served };
            let mut bits = vec![0; self.experts.experts];
            kept[layer].iter().zip(served).for_each(|(expert, at)| bits[expert.index()] = at);
            bits
        };
        served.enumerate().map(layer).collect()
    }

    /// Whether the experts were hosted otherwise than placed at any time: all that a quiet run sees is
    /// that each seat is taken and gets work.
    pub(super) fn has_churned(&self, counts: &MembershipCounts) -> bool {
        let seats = self.node_count as u64;
        (counts.joined, counts.epoch) != (seats, 2 * seats)
    }

    pub(super) fn node_figures(
        &self,
        stats: &[NodeStats],
        span_ns: u64,
        failure: Option<&ServeError>,
    ) -> Vec<NodeFigures> {
        // Not every node that ended a run was lost: it may have been too slow, or have refused.
        let ended_by = match failure {
            Some(
                ServeError::Dispatch(error)
                | ServeError::Round(RoundError::Dispatch { source: error, .. }),
            ) => Some(error.node()),
            _ => None,
        };
        let span_ns = span_ns as f64;
        let addresses = manifest_nodes(self.scenario);
        let figures = |stats: &NodeStats| NodeFigures {
            node: stats.node.0,
            address: addresses
                .get(stats.node.index())
                .map_or_else(String::new, |node| node.address.clone()),
            experts: stats.shards as u64,
            bytes: stats.shard_bytes as u64,
            tokens: stats.token_experts,
            busy_share: (span_ns > 0.0).then(|| stats.compute_ns as f64 / span_ns),
            alive: !stats.lost && ended_by != Some(stats.node),
        };
        stats.iter().map(figures).collect()
    }
}

/// What a run says of the faults that it survived.
pub(super) fn fault_figures(faults: &Faults) -> FaultFigures {
    FaultFigures {
        lost_nodes: faults.lost,
        set_aside: faults.set_aside,
        stale_replies: faults.stale_replies,
        late_replies: faults.late_replies,
        duplicate_replies: faults.duplicate_replies,
        redelivered_orders: faults.redelivered,
        spot_checks: faults.spot_checks,
        spot_checks_skipped: faults.spot_checks_skipped,
        quarantined_nodes: faults.quarantined,
        rerouted_pairs: faults.rerouted_pairs,
        recovery_ns_max: (faults.rerouted_pairs > 0).then_some(faults.recovery_ns_max),
        hedges: faults.hedges,
        hedges_won: faults.hedges_won,
        hedged_share: (faults.pairs > 0).then(|| faults.hedged_pairs as f64 / faults.pairs as f64),
    }
}

/// What a run says of the workers that came and went.
pub(super) fn membership_figures(counts: &MembershipCounts) -> MembershipFigures {
    let MembershipCounts { epoch, joined, left, expired, dropped, refused, copies_dropped } =
        *counts;
    MembershipFigures { epoch, joined, left, expired, dropped, refused, copies_dropped }
}

/// The nodes that a scenario names, and how each is reached.
pub(super) fn manifest_nodes(scenario: &Scenario) -> Vec<ManifestNode> {
    let nodes = &scenario.nodes;
    let count = nodes.seats();
    let address = |node: usize| match nodes.engine {
        Engine::InProcess => "in-process".to_owned(),
        Engine::Virtual => "virtual".to_owned(),
        Engine::Local => "local".to_owned(),
        Engine::Peers => nodes.peers[node].clone(),
        Engine::Join => "joined".to_owned(),
    };
    (0..)
        .zip(0..count)
        .map(|(id, node)| ManifestNode { node: id, address: address(node) })
        .collect()
}

//! Experts that move between nodes: what the core decides is brought beside the steps and works from between
//! them on.
//!
//! What was decided at the end of a step is sent to its new hosts while the next one is served, and they get
//! work from the one after that, at any speed of the machine; only then the old copies are dropped.

use super::plan::Plan;
use super::rounds::Round;
use super::serve::{ServeError, Watch};
use crate::dispatch::{Dispatch, Rehosted, Rehosting};
use crate::measure::Clock;
use crate::results::MigrationFigures;
use agents::flock::migration::{
    HostsChange, Migrating, MigratingLayer, MigratingSettings, MigrationDecision, MigrationRule,
    Rehearsal, nodes_of_tokens,
};
use agents::ids::{ExpertId, LayerId};
use agents::placement::Placement;
use agents::rng::stream;
use agents::round::Arena;
use rand::RngExt as _;
use std::sync::Arc;

/// The baseline that every run is held against.
const EPLB: &str = "eplb";

/// What came into force between two steps.
pub(super) struct ExpertsMoved<'a> {
    pub(super) decision: &'a MigrationDecision,
    pub(super) rehosted: Rehosted,
    /// How long the next step waited for it; none where nothing was to be brought.
    pub(super) pause_ns: Option<u64>,
}

/// Brings the copies that an arena decides.
pub(super) struct MovesInFlight<'a> {
    plan: &'a Plan<'a>,
    /// Decided, and brought while a step is served.
    pending: Option<MigrationDecision>,
}

impl Plan<'_> {
    /// What decides on this plan's copies; none where they stay.
    pub(super) fn migrating(&self) -> Option<Migrating> {
        let migration = &self.scenario.nodes.migration;
        let bytes_max = migration.bytes_max.unwrap_or(u64::MAX);
        (!migration.is_off()).then(|| self.migrating_by(&migration.policy, bytes_max))?
    }

    fn migrating_by(&self, policy: &str, bytes_max: u64) -> Option<Migrating> {
        let migration = &self.scenario.nodes.migration;
        let settings = MigratingSettings {
            every_steps: u64::from(migration.every_steps),
            load_step: migration.load_step,
            bytes_max,
            copies_min: self.scenario.nodes.replicas as usize,
        };
        let rule = |layer: usize| -> Option<Box<dyn MigrationRule>> {
            let seed = stream(self.scenario.seed, &format!("migration of layer {layer}")).random();
            self.registries.migrations.build(policy, seed)
        };
        let layers = self.experts.served.iter().zip(self.placed.slots()).enumerate();
        let layers = layers.map(|(layer, (experts, slots))| {
            let shard_bytes = experts.iter().map(|expert| expert.encoded_bytes()).collect();
            Some(MigratingLayer { rule: rule(layer)?, slots, shard_bytes })
        });
        Some(Migrating::new(settings, layers.collect::<Option<_>>()?))
    }

    /// What brings the copies that an arena of this plan decides.
    pub(super) fn moves_in_flight(&self) -> MovesInFlight<'_> {
        MovesInFlight { plan: self, pending: None }
    }

    /// What is recorded of copies that follow the loads; none where they stay.
    pub(super) fn migration_record(&self) -> Option<MigrationRecord> {
        let migration = &self.scenario.nodes.migration;
        if migration.is_off() {
            return None;
        }
        let placements = self.placements();
        let is_even = |slots: &Vec<usize>| slots.iter().all(|of_node| *of_node == slots[0]);
        // Whole plans, whatever the run itself may send.
        let by_eplb = || self.migrating_by(EPLB, u64::MAX);
        let eplb = self.placed.slots().iter().all(is_even).then(by_eplb);
        Some(MigrationRecord {
            figures: MigrationFigures {
                policy: migration.policy.clone(),
                every_steps: u64::from(migration.every_steps),
                ..MigrationFigures::default()
            },
            frozen: Rehearsal::new(placements.clone(), None),
            eplb: eplb.flatten().map(|of| Rehearsal::new(placements, Some(of))),
            sums: LoadSums::default(),
        })
    }

    fn placements(&self) -> Vec<Placement> {
        let nodes = self.placed.slots()[0].len();
        let layers = (0..).map(LayerId).zip(self.experts.served.iter());
        let placement = |(layer, experts): (LayerId, &Vec<_>)| {
            let experts = (0..experts.len()).map(ExpertId::from_index);
            let hosts: Vec<_> = experts.map(|expert| self.placed.hosts(layer, expert)).collect();
            Placement::new(nodes, &hosts).expect("experts were placed")
        };
        layers.map(placement).collect()
    }
}

impl MovesInFlight<'_> {
    /// Between two steps: puts into force what was decided a step ago, and begins to bring what was decided
    /// just now.
    ///
    /// # Errors
    /// Nodes that cannot be brought what they need.
    pub(super) async fn step_ended(
        &mut self,
        arena: &mut Arena,
        dispatch: &mut impl Dispatch,
        clock: &Clock,
        watch: &mut impl Watch,
    ) -> Result<(), ServeError> {
        if let Some(decision) = self.pending.take() {
            let from_ns = clock.now_ns();
            let brings = !decision.changes.is_empty();
            let rehosted = if brings { dispatch.rehosted().await? } else { Rehosted::default() };
            let pause_ns = brings.then(|| clock.now_ns() - from_ns);
            watch.experts_moved(&ExpertsMoved { decision: &decision, rehosted, pause_ns });
        }
        if let Some(decision) = arena.take_migration_decision() {
            if !decision.changes.is_empty() {
                let changes = decision.changes.iter().map(|change| self.rehosting(change));
                dispatch.rehost(changes.collect()).await?;
            }
            self.pending = Some(decision);
        }
        Ok(())
    }

    fn rehosting(&self, change: &HostsChange) -> Rehosting {
        let HostsChange { layer, expert, hosts } = change;
        let weights = &self.plan.experts.served[layer.index()][expert.index()];
        let (layer, expert, hosts) = (*layer, *expert, hosts.clone());
        Rehosting { layer, expert, expert_weights: Arc::clone(weights), hosts }
    }
}

/// What moving experts came to, beside what the same rounds would have come to otherwise.
pub(super) struct MigrationRecord {
    figures: MigrationFigures,
    frozen: Rehearsal,
    eplb: Option<Rehearsal>,
    sums: LoadSums,
}

/// Sums over rounds: of largest node loads in pairs, and of nodes over tokens.
#[derive(Default)]
struct LoadSums {
    pairs: u64,
    served: u64,
    frozen: u64,
    eplb: u64,
    tokens: u64,
    nodes: u64,
    nodes_frozen: u64,
}

impl MigrationRecord {
    /// Adds a round, which the arena has just played.
    pub(super) fn round(&mut self, round: &Round<'_>, arena: &Arena) {
        let (layer, loads) = (round.layer, &round.decision.play.loads);
        let sums = &mut self.sums;
        sums.pairs += round.decision.node_loads.loads.iter().sum::<u64>();
        sums.served += round.decision.node_loads.max();
        let choices = arena.choices();
        sums.tokens += choices.tokens() as u64;
        let orders = &round.decision.orders.nodes;
        sums.nodes += orders.iter().map(|order| order.tokens().len() as u64).sum::<u64>();
        let split = self.frozen.play(layer, loads);
        sums.frozen += split.max_load();
        let placement = &self.frozen.placements()[layer.index()];
        sums.nodes_frozen += nodes_of_tokens(placement, &split, choices);
        if let Some(eplb) = &mut self.eplb {
            sums.eplb += eplb.play(layer, loads).max_load();
        }
    }

    /// Notes what came into force.
    pub(super) fn moved(&mut self, moved: &ExpertsMoved<'_>) {
        let ExpertsMoved { decision, rehosted, pause_ns } = moved;
        let figures = &mut self.figures;
        figures.decisions += 1;
        figures.copies += decision.copies;
        figures.bytes_moved += decision.bytes;
        figures.bytes_sent += rehosted.sent_bytes;
        figures.incomplete += rehosted.incomplete;
        figures.refused += decision.refused;
        figures.pause_ns_max = figures.pause_ns_max.max(*pause_ns);
    }

    /// The figures of the summary.
    pub(super) fn figures(&self) -> MigrationFigures {
        let nodes = self.frozen.placements()[0].nodes() as f64;
        let LoadSums { pairs, served, frozen, eplb, tokens, nodes: touched, nodes_frozen } =
            self.sums;
        let over_mean = |sum: u64| (pairs > 0).then(|| sum as f64 * nodes / pairs as f64);
        let per_token = |sum: u64| (tokens > 0).then(|| sum as f64 / tokens as f64);
        let of_eplb = self.eplb.as_ref();
        MigrationFigures {
            max_over_mean: over_mean(served),
            max_over_mean_frozen: over_mean(frozen),
            max_over_mean_eplb: of_eplb.and_then(|_| over_mean(eplb)),
            bytes_eplb: of_eplb.map(|rehearsal| rehearsal.sent().1),
            nodes_per_token: per_token(touched),
            nodes_per_token_frozen: per_token(nodes_frozen),
            ..self.figures.clone()
        }
    }
}

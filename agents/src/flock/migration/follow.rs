//! Copies that follow the loads while a run goes on: when rules are asked, and what of their answers is
//! carried out.

use super::{MigrationRule, MigrationView};
use crate::ids::{ExpertId, LayerId, NodeId};
use crate::placement::Placement;
use crate::precision::RunningLoads;

/// When copies are decided on anew, and what that may send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MigratingSettings {
    /// Steps between two decisions, at least 2: one has to be in force before the next.
    pub every_steps: u64,
    /// Weight of the latest step in the running loads, above 0 and up to 1.
    pub load_step: f64,
    /// Bytes that a decision may send, all layers together.
    pub bytes_max: u64,
    /// Hosts that every expert keeps that has as many, at least 1.
    pub copies_min: usize,
}

/// One layer, and what decides for it.
pub struct MigratingLayer {
    /// The rule.
    pub rule: Box<dyn MigrationRule>,
    /// Copies that each node has room for, `[N]`.
    pub slots: Vec<usize>,
    /// Bytes of each expert, `[E]`.
    pub shard_bytes: Vec<u64>,
}

/// An expert gets other hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostsChange {
    /// Its layer.
    pub layer: LayerId,
    /// The expert.
    pub expert: ExpertId,
    /// Who shall hold it, ascending; nodes that are out of service and hold it among them.
    pub hosts: Vec<NodeId>,
}

/// A decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigrationDecision {
    /// What changes, by layer and id.
    pub changes: Vec<HostsChange>,
    /// Copies to send.
    pub copies: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Layers whose rule asked for more than bytes and room or for fewer copies than are allowed: they stay as
    /// they are.
    pub refused: u64,
}

/// The hosts of every expert of a layer.
pub type HostsOfLayer = Vec<Vec<NodeId>>;

/// Asks the rules of all layers every so many steps. All that a decision depends on are loads, the copies in
/// force and the nodes in service, so it is the same on any number of threads.
pub struct Migrating {
    settings: MigratingSettings,
    layers: Vec<MigratingLayer>,
    running: Vec<RunningLoads>,
    steps: u64,
    decisions: u64,
}

impl std::fmt::Debug for Migrating {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { settings, running, steps, decisions, .. } = self;
        write!(
            to,
            "Migrating {{ {settings:?}, {running:?}, {steps} steps, {decisions} decisions }}"
        )
    }
}

impl Migrating {
    /// No step seen yet.
    ///
    /// # Panics
    /// When a setting is out of its range.
    #[must_use]
    pub fn new(settings: MigratingSettings, layers: Vec<MigratingLayer>) -> Self {
        assert!(settings.every_steps > 1, "a decision is in force before the next one falls");
        let of =
            |layer: &MigratingLayer| RunningLoads::new(layer.shard_bytes.len(), settings.load_step);
        let running = layers.iter().map(of).collect();
        Self { settings, layers, running, steps: 0, decisions: 0 }
    }

    /// Takes a layer's loads in a step, `[E]` pairs, and says whether a decision falls now: after the last
    /// layer of every so many steps.
    ///
    /// # Panics
    /// When the layer is unknown or there is not one load an expert.
    pub fn absorb(&mut self, layer: LayerId, loads: &[u32]) -> bool {
        self.running[layer.index()].absorb(loads);
        if layer.index() + 1 < self.running.len() {
            return false;
        }
        self.steps += 1;
        self.steps.is_multiple_of(self.settings.every_steps)
    }

    /// Asks the rules. `hosts` are those in force, by layer; `available` says which nodes are in service,
    /// `[N]`. Copies of nodes that are not count only where an expert has no other, and stay where they are.
    ///
    /// # Panics
    /// When hosts are not those of the layers, or name a node that is unknown.
    pub fn decide(&mut self, hosts: &[HostsOfLayer], available: &[bool]) -> MigrationDecision {
        assert_eq!(hosts.len(), self.layers.len(), "hosts of every layer");
        let mut decision = MigrationDecision::default();
        let asked = self.layers.iter_mut().zip(&self.running).zip(hosts);
        for (layer, ((of, running), hosts)) in (0..).map(LayerId).zip(asked) {
            let placement = in_service(hosts, available);
            let serving = of.slots.iter().zip(available);
            let slots: Vec<usize> = serving.map(|(s, is)| if *is { *s } else { 0 }).collect();
            let bytes_max = self.settings.bytes_max - decision.bytes;
            let view = MigrationView {
                placement: &placement,
                loads: running.loads(),
                slots: &slots,
                shard_bytes: &of.shard_bytes,
                copies_min: self.settings.copies_min,
                bytes_max,
                decision: self.decisions,
            };
            let next = of.rule.next(&view);
            if !is_allowed(&next, &view) {
                decision.refused += 1;
                continue;
            }
            decision.bytes += next.moved_bytes(&placement, &of.shard_bytes);
            for (expert, before) in (0..).map(ExpertId).zip(hosts) {
                let (now, after) = (placement.hosts(expert), next.hosts(expert));
                if now == after {
                    continue;
                }
                decision.copies += after.iter().filter(|node| !now.contains(node)).count() as u64;
                let stays = before.iter().filter(|node| !available[node.index()]);
                let mut hosts: Vec<NodeId> = after.iter().chain(stays).copied().collect();
                hosts.sort_unstable();
                hosts.dedup();
                decision.changes.push(HostsChange { layer, expert, hosts });
            }
        }
        self.decisions += 1;
        decision
    }
}

/// The copies on nodes in service, and the others of experts that have none there.
fn in_service(hosts: &HostsOfLayer, available: &[bool]) -> Placement {
    let of_expert = |hosts: &Vec<NodeId>| {
        let serving: Vec<NodeId> =
            hosts.iter().copied().filter(|node| available[node.index()]).collect();
        if serving.is_empty() { hosts.clone() } else { serving }
    };
    let hosts: Vec<Vec<NodeId>> = hosts.iter().map(of_expert).collect();
    Placement::new(available.len(), &hosts).expect("every expert has hosts, distinct known nodes")
}

/// Whether an answer is within the view's bytes, no node exceeds its room by more than it did, and experts keep
/// their copies.
fn is_allowed(next: &Placement, view: &MigrationView<'_>) -> bool {
    let is_alike = |placement: &Placement| (placement.nodes(), placement.experts());
    if is_alike(next) != is_alike(view.placement) {
        return false;
    }
    let (before, after) = (view.placement.held(), next.held());
    let has_room = |((before, after), slots): ((&Vec<ExpertId>, &Vec<ExpertId>), &usize)| {
        after.len() <= before.len().max(*slots)
    };
    let keeps = |expert: ExpertId| {
        let before = view.placement.hosts(expert).len();
        next.hosts(expert).len() >= before.min(view.copies_min)
    };
    (0..next.experts()).map(ExpertId::from_index).all(keeps)
        && next.moved_bytes(view.placement, view.shard_bytes) <= view.bytes_max
        && before.iter().zip(&after).zip(view.slots).all(has_room)
}

//! Conflicts of the [nodes.migration] section.

use super::{Found, one_of};
use crate::scenario::file::{Combine, Engine, Migration, Nodes, PlacementRule, Scenario, Source};
use crate::scenario::read::Known;

pub(super) fn find(scenario: &Scenario, known: &Known<'_>, found: &mut Found<'_>) {
    let nodes = &scenario.nodes;
    if nodes.migration.is_off() {
        return;
    }
    let (key, name) = ("nodes.migration.policy", &nodes.migration.policy);
    found.unless(known.migrations.names().any(|known| known == name), &[key], || {
        let names = known.migrations.names().chain([Migration::NONE]).collect();
        (format!("there is no rule of migration \"{name}\""), one_of(name, names))
    });
    found.unless(nodes.count > 1, &[key, "nodes.count"], || {
        let message = format!("`{key}` is \"{name}\" but `nodes.count` is 1");
        (
            message,
            "experts move between nodes: write count = 2 or more, or policy = \"none\"".into(),
        )
    });
    found.unless(nodes.combine == Combine::Exact, &[key, "nodes.combine"], || {
        let message = format!(
            "`{key}` is \"{name}\" but `nodes.combine` is \"at_worker\": sums would depend on where experts are"
        );
        (message, "write combine = \"exact\", or policy = \"none\"".into())
    });
    let is_real = nodes.engine != Engine::Virtual;
    found.unless(is_real, &[key, "nodes.engine"], || {
        let message =
            format!("`{key}` is \"{name}\" but on virtual nodes experts stay where they are");
        (message, "write engine = \"in-process\" or \"local\", or policy = \"none\"".into())
    });
    let stay = scenario.precision.reallocate.is_off();
    found.unless(stay, &[key, "precision.reallocate.every_steps"], || {
        let message = format!(
            "`{key}` is \"{name}\" and `precision.reallocate.every_steps` is not 0: a copy on its way has \
             the width of before"
        );
        (message, "write policy = \"none\", or reallocate.every_steps = 0".into())
    });
    let keeps = nodes.replicas == 1 || !matches!(name.as_str(), "greedy" | "eplb");
    found.unless(keeps, &["nodes.replicas", key], || {
        let replicas = nodes.replicas;
        let message = format!(
            "`nodes.replicas` is {replicas} but `{key}` \"{name}\" gives hot experts the copies of cold ones"
        );
        (message, "write policy = \"flock\", or replica_slots in the place of replicas".into())
    });
    // A checkpoint states its experts when it is loaded.
    let Source::Synthetic { experts, .. } = scenario.source else { return };
    let experts = scenario.precision.kept_experts(experts as usize);
    if let Some(problem) = migration_problem(nodes, experts) {
        let keys = [key, "nodes.replicas", "nodes.replica_slots", "nodes.count", "source.experts"];
        found.unless(false, &keys, || problem);
    }
}

/// Why copies of layers of `experts` cannot move as `nodes` asks: message and help.
pub(crate) fn migration_problem(nodes: &Nodes, experts: usize) -> Option<(String, String)> {
    let copies = match nodes.placement {
        PlacementRule::RoundRobin => experts * nodes.replicas as usize,
        PlacementRule::Eplb | PlacementRule::Planned => experts + nodes.replica_slots as usize,
    };
    let count = nodes.count as usize;
    (nodes.migration.policy == "eplb" && copies % count > 0).then(|| {
        let message = format!(
            "`nodes.migration.policy` \"eplb\" gives every node as many copies, but {copies} do not divide \
             over {count} nodes"
        );
        (message, "write other replicas, replica_slots or count, or another policy".into())
    })
}

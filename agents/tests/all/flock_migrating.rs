//! Copies that follow the loads of a run: when rules are asked, what they may do, and what is carried out.

use agents::flock::migration::{
    Migrating, MigratingLayer, MigratingSettings, MigrationRegistry, MigrationRule, MigrationView,
    Rehearsal, nodes_of_tokens,
};
use agents::game::Choices;
use agents::ids::{ExpertId, LayerId, NodeId};
use agents::placement::{Placement, dispatch_tokens};
use agents::rng::stream;
use proptest::prelude::*;

const SETTINGS: MigratingSettings =
    MigratingSettings { every_steps: 2, load_step: 0.5, bytes_max: u64::MAX, copies_min: 1 };

/// Loads that favour some experts, others for each seed.
fn loads(experts: usize, seed: u64) -> Vec<u32> {
    let mut rng = stream(seed, "migrating loads");
    (0..experts).map(|_| rng.random_range(0..40_u32).pow(2) / 10).collect()
}

/// Experts dealt to nodes in turn, every second one to the next node too.
fn dealt(experts: usize, nodes: usize) -> Vec<Vec<NodeId>> {
    let hosts = |e: usize| {
        let copies = if nodes > 1 { 1 + e % 2 } else { 1 };
        let mut hosts: Vec<_> =
            (0..copies).map(|copy| NodeId::from_index((e + copy) % nodes)).collect();
        hosts.sort_unstable();
        hosts
    };
    (0..experts).map(hosts).collect()
}

fn layer(rule: &str, hosts: &[Vec<NodeId>], nodes: usize) -> MigratingLayer {
    let rule = MigrationRegistry::standard().build(rule, 5).expect("a standard rule");
    let most = Placement::new(nodes, hosts).expect("hosts").held().iter().map(Vec::len).max();
    let shard_bytes = (0..hosts.len()).map(|e| 100 + e as u64).collect();
    MigratingLayer { rule, slots: vec![most.unwrap_or(0); nodes], shard_bytes }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_rule_breaks_bytes_room_or_leaves_an_expert_without_a_host_in_service(
        rule in 0..3_usize,
        nodes in 2..6_usize,
        seed in 0..1000_u64,
        bytes_max in 0..4000_u64,
        out in 0..8_usize,
    ) {
        let rule = ["flock", "greedy", "eplb"][rule];
        let experts = 4 * nodes;
        let of = layer(rule, &dealt(experts, nodes), nodes);
        let (slots, shard_bytes) = (of.slots.clone(), of.shard_bytes.clone());
        let settings = MigratingSettings { bytes_max, ..SETTINGS };
        let mut migrating = Migrating::new(settings, vec![of]);
        let mut hosts = dealt(experts, nodes);
        let available: Vec<bool> = (0..nodes).map(|node| node != out).collect();
        for step in 0..8 {
            if !migrating.absorb(LayerId(0), &loads(experts, seed + step / 4)) {
                continue;
            }
            let decision = migrating.decide(std::slice::from_ref(&hosts), &available);
            let before = hosts.clone();
            for change in &decision.changes {
                hosts[change.expert.index()].clone_from(&change.hosts);
            }
            let placement = Placement::new(nodes, &hosts).expect("every expert has hosts");
            let earlier = Placement::new(nodes, &before).expect("hosts");
            let sent = placement.moved_bytes(&earlier, &shard_bytes);
            prop_assert_eq!(sent, decision.bytes);
            prop_assert!(sent <= bytes_max, "{} of {}", sent, bytes_max);
            for (node, (held, room)) in placement.held().iter().zip(&slots).enumerate() {
                prop_assert!(held.len() <= *room, "{} on node {}", held.len(), node);
            }
            for (expert, (now, was)) in hosts.iter().zip(&before).enumerate() {
                let serves = |host: &NodeId| available[host.index()];
                let had = was.iter().any(serves);
                prop_assert!(!had || now.iter().any(serves), "expert {} is served", expert);
                let new_on_lost = now.iter().any(|host| !serves(host) && !was.contains(host));
                prop_assert!(!new_on_lost, "nothing is sent to a node out of service");
            }
        }
    }
}

/// Takes the first expert to the last node at once.
struct Greed;

impl MigrationRule for Greed {
    fn next(&mut self, view: &MigrationView<'_>) -> Placement {
        let last = NodeId::from_index(view.placement.nodes() - 1);
        let experts = (0..view.placement.experts()).map(ExpertId::from_index);
        let hosts: Vec<Vec<NodeId>> = experts.map(|_| vec![last]).collect();
        Placement::new(view.placement.nodes(), &hosts).expect("hosts")
    }
}

#[test]
fn an_own_rule_joins_by_name_and_what_breaks_the_room_is_refused() {
    let mut known = MigrationRegistry::standard();
    known.insert("mine", "all to the last", Box::new(|_| Box::new(Greed))).expect("a new name");
    assert!(known.insert("flock", "", Box::new(|_| Box::new(Greed))).is_err());
    let names: Vec<&str> = known.names().collect();
    assert_eq!(names, ["eplb", "flock", "greedy", "mine"]);
    for (room, refused) in [(4, 0), (3, 1)] {
        let rule = known.build("mine", 0).expect("just added");
        let of = MigratingLayer { rule, slots: vec![room; 2], shard_bytes: vec![10; 4] };
        let mut migrating = Migrating::new(SETTINGS, vec![of]);
        let hosts = vec![vec![vec![NodeId(0)], vec![NodeId(0)], vec![NodeId(1)], vec![NodeId(1)]]];
        let decision = migrating.decide(&hosts, &[true; 2]);
        assert_eq!(decision.refused, refused);
        assert_eq!((decision.copies, decision.bytes), if refused == 0 { (2, 20) } else { (0, 0) });
    }
}

#[test]
fn copies_on_nodes_out_of_service_stay_where_they_are() {
    let of = layer("greedy", &dealt(8, 2), 2);
    let mut migrating = Migrating::new(SETTINGS, vec![of]);
    let hosts = vec![dealt(8, 2)];
    migrating.absorb(LayerId(0), &loads(8, 1));
    let decision = migrating.decide(&hosts, &[true, false]);
    for change in &decision.changes {
        let before = &hosts[0][change.expert.index()];
        assert!(before.iter().all(|host| *host == NodeId(0) || change.hosts.contains(host)));
    }
}

#[test]
fn a_rehearsal_puts_a_decision_into_force_two_steps_after_it_and_counts_what_it_sends() {
    let hosts = dealt(16, 4);
    let start = Placement::new(4, &hosts).expect("hosts");
    let migrating = Migrating::new(SETTINGS, vec![layer("greedy", &hosts, 4)]);
    let mut moving = Rehearsal::new(vec![start.clone()], Some(migrating));
    let mut still = Rehearsal::new(vec![start.clone()], None);
    let loads = loads(16, 9);
    let mut largest = Vec::new();
    for step in 0..8 {
        // Decided at the end of the second step, in force for the fourth.
        assert_eq!(moving.placements()[0] == start, step < 3, "step {step}");
        largest.push(moving.play(LayerId(0), &loads).max_load());
        let split = still.play(LayerId(0), &loads);
        assert_eq!(split, dispatch_tokens(&start, &loads).expect("loads"));
    }
    assert!(largest[7] < largest[0], "{largest:?}");
    assert!(moving.sent().0 > 0 && still.sent() == (0, 0));
}

#[test]
fn nodes_of_a_token_are_counted_once_each() {
    // Expert 0 on both nodes, half of its tokens each; expert 1 on the first, expert 2 on the second.
    let hosts = [vec![NodeId(0), NodeId(1)], vec![NodeId(0)], vec![NodeId(1)]];
    let placement = Placement::new(2, &hosts).expect("hosts");
    let rows = [[0, 1], [0, 1], [0, 2], [0, 2]];
    let experts = rows.iter().flatten().map(|expert| ExpertId(*expert)).collect();
    let choices = Choices::uniform(experts, 2);
    let split = dispatch_tokens(&placement, &[4, 2, 2]).expect("loads");
    assert_eq!(split.shares, [2, 2, 2, 2]);
    assert_eq!(
        nodes_of_tokens(&placement, &split, &choices),
        4,
        "each token finds all on one node"
    );
}

//! A round of the world, from logits to the combined output.

use agents::components::{FlockPrice, KeptShare, NodeWork, Seat};
use agents::expert::BitWidth;
use agents::flock::price::FlockSettings;
use agents::game::{
    Choices, CostSettings, Dynamics, Game, Information, RouterRegistry, Scores, certify,
};
use agents::ids::TokenId;
use agents::ids::{ExpertId, LayerId, NodeId, RequestId, StepId};
use agents::orders::{Combine, NodeReply, Orders, PairGates, Replies, weighted_sums};
use agents::rng::stream;
use agents::round::{AbsorbError, Arena, Perception, Stage};
use agents::routing::{Routing, gates};
use agents::transformer::softmax;
use agents::world::{Affinity, LayerSettings, Rules, WorldSettings};
use bevy_ecs::prelude::{Query, ResMut, Resource};
use rand::RngExt as _;

const TOKENS: usize = 60;
const EXPERTS: usize = 6;
const TOP_K: usize = 2;
const WIDTH: usize = 3;

fn arena(router: &str, nodes: u32, replicas: u32) -> Arena {
    arena_knowing(router, nodes, replicas, Information::InBatch)
}

pub(crate) fn arena_knowing(
    router: &str,
    nodes: u32,
    replicas: u32,
    information: Information,
) -> Arena {
    let hosts = |e: u32| {
        let mut hosts: Vec<NodeId> = (0..replicas).map(|r| NodeId((e + r) % nodes)).collect();
        hosts.sort_unstable();
        hosts
    };
    Arena::new(WorldSettings {
        tokens_max: 100,
        nodes: nodes as usize,
        layers: [5, 6]
            .map(|seed| LayerSettings {
                router: random(seed, EXPERTS * WIDTH),
                bits: vec![BitWidth::Four; EXPERTS],
                hosts: (0..6).map(hosts).collect(),
                selection_bias: Vec::new(),
            })
            .into(),
        rules: Rules {
            top_k: TOP_K,
            affinity: Affinity::Probability,
            routing: Routing::softmax(false),
            router: RouterRegistry::standard().get(router).expect("a standard router").into(),
            information,
            cost: Box::new(|shape| {
                let quota = CostSettings::Quota { capacity_factor: 1.0 };
                quota.build(shape.tokens, shape.experts, shape.top_k)
            }),
            social_optimum: false,
            flock: Some(FlockSettings { neighbours: 7, price_step: 0.02, alignment: 0.3 }),
        },
    })
}

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = stream(seed, "round test");
    (0..len).map(|_| rng.random::<f32>() * 4.0 - 2.0).collect()
}

fn id(index: usize) -> u32 {
    u32::try_from(index).expect("small test ids")
}

/// Stands in for an expert: its output names the expert and depends on the token.
fn answer(expert: u32, token: u32) -> [f32; WIDTH] {
    [expert as f32 + 1.0, token as f32 * 0.125, (expert * 100 + token) as f32]
}

fn reply(orders: &Orders) -> Replies {
    let nodes = orders.nodes.iter().map(|order| NodeReply {
        node: order.node,
        outputs: order
            .groups
            .iter()
            .flat_map(|group| group.tokens.iter().flat_map(|t| answer(group.expert.0, t.0)))
            .collect(),
        compute_ns: 5,
    });
    Replies { nodes: nodes.collect() }
}

pub(crate) fn play(arena: &mut Arena, step: u32) -> (Orders, Vec<f32>) {
    let requests: Vec<RequestId> = (0..60).map(|t| RequestId(t / 10)).collect();
    let logits = random(u64::from(step), TOKENS * EXPERTS);
    let perception = Perception {
        step: StepId(step),
        layer: LayerId(0),
        requests: &requests,
        logits: &logits,
        hidden: &[],
    };
    let decision = arena.decide(&perception).expect("finite logits");
    let replies = reply(&decision.orders);
    let combined = arena.absorb(decision.orders.clone(), replies, WIDTH).expect("whole replies");
    (decision.orders, combined)
}

#[test]
fn the_output_is_the_gate_weighted_sum_of_the_chosen_experts() {
    let mut arena = arena("top_k", 2, 1);
    let (_, combined) = play(&mut arena, 1);
    let logits = random(1, TOKENS * EXPERTS);
    for (t, row) in logits.chunks(EXPERTS).enumerate() {
        let total: f64 = row.iter().map(|z| f64::from(*z).exp()).sum();
        let mut order: Vec<usize> = (0..EXPERTS).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        for column in 0..WIDTH {
            let exact: f64 = order[..TOP_K]
                .iter()
                .map(|e| {
                    let gate = f64::from(row[*e]).exp() / total;
                    gate * f64::from(answer(id(*e), id(t))[column])
                })
                .sum();
            let got = f64::from(combined[t * WIDTH + column]);
            assert!((got - exact).abs() <= 1e-5 * exact.abs().max(1.0), "token {t}");
        }
    }
}

#[test]
fn placement_and_replication_do_not_change_a_bit_of_the_output() {
    let bits = |nodes, replicas| -> Vec<u32> {
        let mut arena = arena("equilibrium", nodes, replicas);
        (0..3).flat_map(|step| play(&mut arena, step).1).map(f32::to_bits).collect()
    };
    let alone = bits(1, 1);
    assert_eq!(alone, bits(3, 1));
    assert_eq!(alone, bits(3, 2));
    assert_eq!(alone, bits(6, 6));
}

#[test]
fn a_node_that_is_not_available_gets_only_what_no_other_holds_and_no_bit_changes() {
    for replicas in [1, 2] {
        let (mut all, mut some) =
            (arena("equilibrium", 3, replicas), arena("equilibrium", 3, replicas));
        for step in 0..4 {
            // Node 1 is away in the second and third round.
            let away = (1..3).contains(&step);
            some.set_available(|node| !(away && node == NodeId(1)));
            let (orders, combined) = play(&mut some, step);
            assert_eq!(combined, play(&mut all, step).1);
            let work = orders.nodes.iter().find(|order| order.node == NodeId(1));
            match (away, replicas) {
                (true, 2) => assert_eq!(work, None),
                // Experts 1 and 4 are on node 1 alone.
                _ => assert!(work.is_some_and(|order| order.groups.len() >= 2), "{work:?}"),
            }
        }
    }
}

#[test]
fn experts_that_move_between_rounds_are_ordered_of_their_new_hosts_and_no_bit_changes() {
    let (mut still, mut moving) = (arena("equilibrium", 3, 1), arena("equilibrium", 3, 2));
    for step in 0..4 {
        let host = NodeId(step % 3);
        for layer in (0..2).map(LayerId) {
            let experts = (0..EXPERTS).map(ExpertId::from_index);
            experts.for_each(|expert| moving.set_hosts(layer, expert, vec![host]));
        }
        let (orders, combined) = play(&mut moving, step);
        assert_eq!(combined, play(&mut still, step).1);
        assert_eq!(orders.nodes.iter().map(|order| order.node).collect::<Vec<_>>(), [host]);
    }
}

#[test]
fn each_layer_plays_and_is_certified_under_its_own_memory_of_earlier_batches() {
    let requests = [RequestId(0); TOKENS];
    let router = || RouterRegistry::standard().get("equilibrium").expect("a standard router");
    for information in [
        Information::InBatch,
        Information::Stale { batches: 2 },
        Information::Partial { dispatchers: 4 },
    ] {
        let mut arena = arena_knowing("equilibrium", 1, 1, information);
        let mut alone = [(); 2].map(|()| Dynamics::new(router(), information));
        for step in 0..5 {
            for (layer, dynamics) in (0..).zip(&mut alone) {
                let logits = random(u64::from(10 * step + layer), TOKENS * EXPERTS);
                let step = StepId(step);
                let layer = LayerId(layer);
                let perception =
                    Perception { step, layer, requests: &requests, logits: &logits, hidden: &[] };
                let report = arena.decide(&perception).expect("finite logits").play;

                let mut values = logits;
                softmax(&mut values, EXPERTS);
                let cost = CostSettings::Quota { capacity_factor: 1.0 };
                let cost = cost.build(TOKENS, EXPERTS, TOP_K);
                let scores = Scores::new(&values, EXPERTS).expect("finite");
                let game = Game { scores, top_k: TOP_K, cost: cost.as_ref() };
                let play = dynamics.play(&game);
                assert_eq!(arena.choices(), &play.choices, "{information:?} {step} {layer}");
                let certificate = certify(&game, &play.choices, &play.prices);
                assert_eq!(report.certificate, certificate, "{information:?} {step} {layer}");
                let prices_are_zero = play.prices.iter().all(|price| *price == 0.0);
                let stale = information == Information::Stale { batches: 2 };
                assert_eq!(prices_are_zero, stale && step.0 < 2, "{information:?} {step}");
            }
        }
    }
}

#[test]
fn every_chosen_pair_is_ordered_once_from_a_node_that_hosts_the_expert() {
    let mut arena = arena("equilibrium", 3, 2);
    let (orders, _) = play(&mut arena, 0);
    let mut pairs: Vec<(u32, u32)> = Vec::new();
    for order in &orders.nodes {
        for group in &order.groups {
            let first = group.expert.0 % 3;
            assert!([first, (first + 1) % 3].contains(&order.node.0), "hosted where it is sent");
            assert!(group.tokens.is_sorted());
            pairs.extend(group.tokens.iter().map(|t| (t.0, group.expert.0)));
        }
    }
    assert_eq!(pairs.len(), TOKENS * TOP_K);
    pairs.sort_unstable();
    pairs.dedup();
    assert_eq!(pairs.len(), TOKENS * TOP_K);
}

/// The oracle is Hall's condition over all sets of experts: some node carries w(A) / |nodes(A)|.
#[test]
fn replicas_share_a_round_so_that_the_largest_node_load_is_least() {
    let (nodes, replicas) = (5, 2);
    let mut arena = arena("top_k", nodes, replicas);
    let requests: Vec<RequestId> = (0..60).map(|t| RequestId(t / 10)).collect();
    let mut better_than_even = 0;
    for step in 0..20 {
        let mut logits = random(u64::from(step), TOKENS * EXPERTS);
        logits.chunks_mut(EXPERTS).for_each(|row| row[step as usize % EXPERTS] += 3.0);
        let (step, layer) = (StepId(step), LayerId(0));
        let perception =
            Perception { step, layer, requests: &requests, logits: &logits, hidden: &[] };
        let decision = arena.decide(&perception).expect("finite logits");
        let (loads, found) = (&decision.play.loads, &decision.node_loads);

        let mut ordered = vec![0; nodes as usize];
        decision.orders.nodes.iter().for_each(|o| ordered[o.node.index()] = o.pairs() as u64);
        assert_eq!(found.loads, ordered);
        let least = (1_u32..1 << EXPERTS).map(|set| {
            let members = || (0..6_u32).filter(|e| set >> e & 1 == 1);
            let load: u32 = members().map(|e| loads[e as usize]).sum();
            let mut hosts: Vec<u32> =
                members().flat_map(|e| (0..replicas).map(move |r| (e + r) % nodes)).collect();
            hosts.sort_unstable();
            hosts.dedup();
            u64::from(load).div_ceil(hosts.len() as u64)
        });
        assert_eq!(Some(found.max()), least.max(), "step {step}: {loads:?}");
        assert_eq!(found.max(), found.lower_bound, "step {step}: the tight set certifies it");
        assert!(found.max() <= found.max_even_split, "step {step}: {found:?}");
        better_than_even += u32::from(found.max() < found.max_even_split);
    }
    assert!(better_than_even > 10, "{better_than_even} of 20");
}

#[test]
fn dispatched_pairs_equal_combined_pairs_on_every_node() {
    let mut arena = arena("equilibrium", 3, 1);
    play(&mut arena, 0);
    let world = arena.world_mut();
    let work: Vec<NodeWork> = world.query::<&NodeWork>().iter(world).copied().collect();
    assert!(work.iter().all(|work| work.pairs == work.combined && work.compute_ns == 5));
    let pairs = (TOKENS * TOP_K) as u64;
    assert_eq!(arena.pairs(), (pairs, pairs));
    assert_eq!(work.iter().map(|work| work.pairs).sum::<u64>(), pairs);

    let requests = [RequestId(0)];
    let logits = random(9, EXPERTS);
    let unanswered = Perception {
        step: StepId(1),
        layer: LayerId(0),
        requests: &requests,
        logits: &logits,
        hidden: &[],
    };
    arena.decide(&unanswered).expect("finite logits");
    assert_eq!(arena.pairs(), (pairs + TOP_K as u64, pairs), "ordered and never combined");
}

/// What nodes sum of the same answers.
fn summed(orders: &Orders, gates: &PairGates) -> Replies {
    let mut replies = reply(orders);
    for (order, reply) in orders.nodes.iter().zip(&mut replies.nodes) {
        let tokens = order.tokens();
        let row = |token| TokenId::from_index(tokens.binary_search(token).expect("its own"));
        let gate = |expert, token| gates.of(token, expert).expect("each pair has a gate");
        let groups: Vec<(Vec<TokenId>, Vec<f32>)> = order
            .groups
            .iter()
            .map(|group| {
                let rows = group.tokens.iter().map(row).collect();
                (rows, group.tokens.iter().map(|token| gate(group.expert, *token)).collect())
            })
            .collect();
        let groups = groups.iter().map(|(rows, gates)| (rows.as_slice(), gates.as_slice()));
        reply.outputs = weighted_sums(groups, &reply.outputs, tokens.len(), WIDTH);
    }
    replies
}

#[test]
fn sums_of_nodes_combine_to_the_same_output_up_to_rounding_and_on_one_node_to_the_same_bits() {
    for nodes in [1, 4] {
        let mut exact = arena("equilibrium", nodes, 1);
        let (_, expected) = play(&mut exact, 0);
        let mut arena = arena("equilibrium", nodes, 1);
        arena.set_combine(Combine::AtWorker);
        let requests: Vec<RequestId> = (0..60).map(|t| RequestId(t / 10)).collect();
        let logits = random(0, TOKENS * EXPERTS);
        let (step, layer) = (StepId(0), LayerId(0));
        let perception =
            Perception { step, layer, requests: &requests, logits: &logits, hidden: &[] };
        let decision = arena.decide(&perception).expect("finite logits");
        let gates = decision.gates.expect("nodes need them");
        let replies = summed(&decision.orders, &gates);
        let found = arena.absorb(decision.orders.clone(), replies, WIDTH).expect("whole replies");
        let pairs = (TOKENS * TOP_K) as u64;
        assert_eq!(arena.pairs(), (pairs, pairs), "each pair counts once");
        if nodes == 1 {
            assert_eq!(found, expected);
        }
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0));
        }
        let refused = arena.absorb(decision.orders.clone(), reply(&decision.orders), WIDTH);
        assert!(refused.is_err(), "a token of two experts of a node has one row");
    }
}

#[test]
fn whichever_copy_computes_an_expert_the_same_bits_are_combined() {
    use agents::placement::{NodeLoad, ReplicaChoice};
    let (_, expected) = play(&mut arena("equilibrium", 4, 2), 0);
    for choice in [ReplicaChoice::TwoChoices, ReplicaChoice::Random, ReplicaChoice::RoundRobin] {
        let mut arena = arena("equilibrium", 4, 2);
        arena.set_choice(choice, 7);
        let slow = |node| NodeLoad {
            ns_per_pair: if node == NodeId(1) { 1e6 } else { 1.0 },
            ..NodeLoad::default()
        };
        arena.set_node_loads(slow);
        let (orders, found) = play(&mut arena, 0);
        assert_eq!(found, expected, "{choice:?}");
        let asks_slow = orders.nodes.iter().any(|order| order.node == NodeId(1));
        assert!(!asks_slow || choice != ReplicaChoice::TwoChoices, "{choice:?}");
    }
}

#[test]
#[should_panic(expected = "every chosen pair is ordered once")]
fn sums_of_orders_that_leave_a_pair_out_are_a_bug() {
    let mut arena = arena("top_k", 2, 1);
    arena.set_combine(Combine::AtWorker);
    let requests: Vec<RequestId> = (0..60).map(|t| RequestId(t / 10)).collect();
    let logits = random(0, TOKENS * EXPERTS);
    let (step, layer) = (StepId(0), LayerId(0));
    let perception = Perception { step, layer, requests: &requests, logits: &logits, hidden: &[] };
    let decision = arena.decide(&perception).expect("finite logits");
    let mut orders = decision.orders;
    orders.nodes[0].groups[0].tokens.pop();
    let replies = summed(&orders, &decision.gates.expect("nodes need them"));
    let _ = arena.absorb(orders, replies, WIDTH);
}

#[test]
fn a_reply_that_is_short_or_from_another_node_is_refused() {
    let mut arena = arena("top_k", 2, 1);
    let (orders, _) = play(&mut arena, 0);
    let mut short = reply(&orders);
    short.nodes[1].outputs.pop();
    let refused = arena.absorb(orders.clone(), short, WIDTH);
    assert!(matches!(refused, Err(AbsorbError::Length { node: NodeId(1), .. })));
    let mut swapped = reply(&orders);
    swapped.nodes.reverse();
    assert!(matches!(arena.absorb(orders, swapped, WIDTH), Err(AbsorbError::Nodes { .. })));
}

#[test]
fn a_node_that_claims_an_absurd_time_stops_no_run() {
    let mut arena = arena("top_k", 2, 1);
    for _ in 0..2 {
        let (orders, _) = play(&mut arena, 0);
        let mut replies = reply(&orders);
        replies.nodes.iter_mut().for_each(|reply| reply.compute_ns = u64::MAX);
        assert!(arena.absorb(orders, replies, WIDTH).is_ok());
    }
}

#[test]
fn normalised_gates_sum_to_one_even_where_every_chosen_probability_is_zero() {
    let choices = Choices::uniform([0, 1, 1, 2].map(ExpertId).to_vec(), 2);
    let probabilities = [0.5, 0.25, 0.25, 1.0, 0.0, 0.0];
    assert_eq!(
        gates(&probabilities, &choices, &Routing::softmax(true)),
        [2.0 / 3.0, 1.0 / 3.0, 0.5, 0.5]
    );
    assert_eq!(gates(&probabilities, &choices, &Routing::softmax(false)), [0.5, 0.25, 0.0, 0.0]);
}

#[test]
fn tokens_are_pooled_and_seats_beyond_the_batch_stay_empty() {
    let mut arena = arena("equilibrium", 1, 1);
    for step in 0..3 {
        play(&mut arena, step);
    }
    let world = arena.world_mut();
    let seats: Vec<Seat> = world.query::<&Seat>().iter(world).copied().collect();
    assert_eq!(seats.len(), 100, "no token is spawned in the loop");
    assert_eq!(seats.iter().filter(|seat| seat.0.is_some()).count(), TOKENS);
    let kept: Vec<f32> = world.query::<&KeptShare>().iter(world).map(|kept| kept.0).collect();
    assert!(kept[..TOKENS].iter().all(|kept| *kept > 0.0 && *kept <= 1.0 + 1e-6));
}

#[test]
fn the_flock_raises_the_price_of_its_most_crowded_expert() {
    let mut arena = arena("top_k", 1, 1);
    play(&mut arena, 0);
    let world = arena.world_mut();
    let birds: Vec<FlockPrice> = world.query::<&FlockPrice>().iter(world).copied().collect();
    let crowded = birds.iter().max_by_key(|bird| bird.load).expect("six experts");
    assert!(crowded.price > 0.0);
    assert_eq!(birds.iter().map(|bird| bird.load as usize).sum::<usize>(), TOKENS * TOP_K);
}

#[derive(Resource, Default)]
struct Counted(usize);

#[test]
fn an_own_system_joins_a_named_stage_and_the_observer_hears_every_stage_in_order() {
    let mut arena = arena("top_k", 1, 1);
    arena.world_mut().init_resource::<Counted>();
    arena.add_systems(
        Stage::Flock,
        |seats: Query<'_, '_, &Seat>, mut counted: ResMut<'_, Counted>| {
            counted.0 += seats.iter().filter(|seat| seat.0.is_some()).count();
        },
    );
    let (sender, heard) = std::sync::mpsc::channel();
    arena.observe_stages(move |stage| sender.send(stage).expect("the test listens"));
    play(&mut arena, 0);
    assert_eq!(arena.world_mut().resource::<Counted>().0, TOKENS);
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), Stage::DECIDE);
}

#[test]
#[should_panic(expected = "conflict")]
fn two_own_systems_that_race_stop_the_first_round() {
    let mut arena = arena("top_k", 1, 1);
    arena.world_mut().init_resource::<Counted>();
    arena.add_systems(Stage::Flock, |mut counted: ResMut<'_, Counted>| counted.0 += 1);
    arena.add_systems(Stage::Flock, |mut counted: ResMut<'_, Counted>| counted.0 *= 2);
    play(&mut arena, 0);
}

#[test]
fn a_logit_that_is_not_finite_is_refused_with_its_place() {
    let mut arena = arena("top_k", 1, 1);
    let mut logits = random(0, 2 * EXPERTS);
    logits[7] = f32::NAN;
    let perception = Perception {
        step: StepId(0),
        layer: LayerId(0),
        requests: &[RequestId(0), RequestId(0)],
        logits: &logits,
        hidden: &[],
    };
    let refused = arena.decide(&perception).expect_err("not a number").to_string();
    assert!(refused.contains("row 1, column 1"), "{refused}");
}

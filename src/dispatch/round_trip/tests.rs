//! Rounds on their way, by hand and at random.

use super::{AttemptId, Holders, RoundTrip};
use agents::ids::{ExpertId, LayerId, NodeId, StepId, TokenId};
use agents::orders::{Combine, ExpertGroup, NodeOrder, NodeReply, Orders, Replies};
use agents::rng::stream;
use rand::{Rng, RngExt as _};
use std::collections::BTreeSet;

const LAYER: LayerId = LayerId(3);

fn order(node: u32, groups: &[(u32, &[u32])]) -> NodeOrder {
    let group = |(expert, tokens): &(u32, &[u32])| ExpertGroup {
        expert: ExpertId(*expert),
        tokens: tokens.iter().copied().map(TokenId).collect(),
    };
    NodeOrder { node: NodeId(node), groups: groups.iter().map(group).collect() }
}

/// What any node computes: one value a pair, which names the pair.
fn answer(order: &NodeOrder, compute_ns: u64) -> NodeReply {
    let row = |group: &ExpertGroup, token: &TokenId| (group.expert.0 * 1000 + token.0) as f32;
    let rows = order.groups.iter().flat_map(|g| g.tokens.iter().map(move |t| row(g, t)));
    NodeReply { node: order.node, outputs: rows.collect(), compute_ns }
}

fn expected(orders: &Orders) -> Vec<(NodeId, Vec<f32>)> {
    orders.nodes.iter().map(|order| (order.node, answer(order, 0).outputs)).collect()
}

fn outputs(replies: Replies) -> Vec<(NodeId, Vec<f32>)> {
    replies.nodes.into_iter().map(|reply| (reply.node, reply.outputs)).collect()
}

fn holders(of: &[&[u32]]) -> Holders {
    let held = |nodes: &&[u32]| nodes.iter().copied().map(NodeId).collect();
    (0..).zip(of).map(|(e, nodes)| ((LAYER, ExpertId(e)), held(nodes))).collect()
}

#[test]
fn a_failed_order_goes_to_the_least_asked_holders_and_its_reply_keeps_its_name() {
    let holders = holders(&[&[0, 1], &[0, 2], &[1, 2]]);
    let nodes = vec![order(0, &[(0, &[1, 2]), (1, &[0])]), order(1, &[(2, &[0, 1])])];
    let orders = Orders { step: StepId(1), layer: LAYER, nodes };
    let mut trip = RoundTrip::new(&orders, &holders, Combine::Exact);
    let [lost, other] = [AttemptId(0), AttemptId(1)];
    let instead = trip.failed(lost, |_| true).expect("both experts have a second holder");
    let asked: Vec<_> =
        instead.iter().map(|id| trip.attempt(*id).order.clone().into_owned()).collect();
    assert_eq!(asked, [order(1, &[(0, &[1, 2])]), order(2, &[(1, &[0])])]);
    for id in [other, instead[0], instead[1]] {
        assert!(!trip.is_done());
        let reply = answer(&trip.attempt(id).order.clone(), 10);
        trip.answered(id, reply);
    }
    assert!(trip.is_done());
    let replies = trip.into_replies(1);
    assert_eq!(replies.nodes[0].compute_ns, 20);
    assert_eq!(outputs(replies), expected(&orders));
    // Expert 1 of node 2 has nowhere left to go.
    let mut trip = RoundTrip::new(&orders, &holders, Combine::Exact);
    let instead = trip.failed(lost, |_| true).expect("as above");
    assert_eq!(trip.failed(instead[1], |_| true), None);
}

#[test]
fn a_hedge_and_its_order_race_and_either_wins() {
    let holders = holders(&[&[0, 1]]);
    let orders = Orders { step: StepId(1), layer: LAYER, nodes: vec![order(0, &[(0, &[4, 7])])] };
    for hedge_wins in [false, true] {
        let mut trip = RoundTrip::new(&orders, &holders, Combine::Exact);
        assert_eq!(trip.hedge(AttemptId(0), |_| false), None, "nobody is available");
        let hedge = trip.hedge(AttemptId(0), |_| true).expect("node 1 holds it")[0];
        let (winner, loser) =
            if hedge_wins { (hedge, AttemptId(0)) } else { (AttemptId(0), hedge) };
        for id in [winner, loser] {
            let reply = answer(&trip.attempt(id).order.clone(), 1);
            trip.answered(id, reply);
            assert!(trip.is_done());
        }
        assert!(trip.is_used(winner) && !trip.is_used(loser));
        assert_eq!(outputs(trip.into_replies(1)), expected(&orders));
    }
}

/// The same where nodes sum, which is exact in f32: one value a token.
fn sums(order: &NodeOrder) -> Vec<f32> {
    let value = |token: TokenId, group: &ExpertGroup| (group.expert.0 * 1000 + token.0) as f32;
    let has =
        |token: TokenId| order.groups.iter().filter(move |group| group.tokens.contains(&token));
    let sum = |token: TokenId| has(token).map(|group| value(token, group)).sum::<f32>();
    order.tokens().into_iter().map(sum).collect()
}

fn answer_as(combine: Combine, order: &NodeOrder) -> NodeReply {
    match combine {
        Combine::Exact => answer(order, 1),
        Combine::AtWorker => NodeReply { outputs: sums(order), ..answer(order, 1) },
    }
}

/// A random round of few nodes and experts.
fn draw(rng: &mut impl Rng) -> (Orders, Holders) {
    let (nodes, experts) = (rng.random_range(1_u32..7), rng.random_range(1_u32..9));
    let mut holders = Holders::new();
    let mut orders = Orders { step: StepId(0), layer: LAYER, nodes: Vec::new() };
    let mut work = vec![Vec::new(); nodes as usize];
    for expert in (0..experts).map(ExpertId) {
        let copies = rng.random_range(1..=nodes.min(3));
        let first = rng.random_range(0..nodes);
        let mut held: Vec<_> = (0..copies).map(|c| NodeId((first + c) % nodes)).collect();
        held.sort_unstable();
        for node in &held {
            // A replicated expert's tokens are split over some of its hosts.
            let tokens: Vec<_> =
                (0..rng.random_range(0_u32..4)).map(|t| TokenId(t * nodes + node.0)).collect();
            if !tokens.is_empty() {
                work[node.index()].push(ExpertGroup { expert, tokens });
            }
        }
        holders.insert((LAYER, expert), held);
    }
    for (node, groups) in work.into_iter().enumerate().filter(|(_, g)| !g.is_empty()) {
        orders.nodes.push(NodeOrder { node: NodeId::from_index(node), groups });
    }
    (orders, holders)
}

/// One random round under random faults.
fn simulate(seed: u64, combine: Combine) -> Result<(), String> {
    let mut rng = stream(seed, "round trip");
    let (orders, holders) = draw(&mut rng);
    let mut trip = RoundTrip::new(&orders, &holders, combine);
    let mut open: Vec<AttemptId> = trip.attempts().collect();
    let mut lost = BTreeSet::new();
    let mut steps = 0;
    while !trip.is_done() {
        steps += 1;
        if steps > 10_000 || open.is_empty() {
            return Err(format!("no progress after {steps} steps"));
        }
        let id = open[rng.random_range(0..open.len())];
        let node = trip.attempt(id).node;
        match rng.random_range(0..10) {
            0..6 => {
                open.retain(|other| *other != id);
                let reply = answer_as(combine, &trip.attempt(id).order.clone());
                trip.answered(id, reply);
            }
            6..8 => {
                // The node is lost, with all that it was asked.
                lost.insert(node);
                let (its, rest): (Vec<_>, Vec<_>) =
                    open.iter().partition(|id| trip.attempt(**id).node == node);
                open = rest;
                for id in its {
                    let Some(instead) = trip.failed(id, |node| !lost.contains(&node)) else {
                        // Then every holder of one of its experts was asked before.
                        let groups = &trip.attempt(id).order.groups;
                        let asked = |group: &ExpertGroup| {
                            holders[&(LAYER, group.expert)].iter().all(|holder| {
                                trip.attempts().any(|a| trip.attempt(a).node == *holder)
                            })
                        };
                        return if groups.iter().any(asked) {
                            Ok(())
                        } else {
                            Err("gave up too early".into())
                        };
                    };
                    open.extend(instead);
                }
            }
            _ => {
                if trip.is_needed(id) {
                    open.extend(trip.hedge(id, |node| !lost.contains(&node)).unwrap_or_default());
                }
            }
        }
        for id in &open {
            let groups = &trip.attempt(*id).order.groups;
            if groups.is_empty() || !groups.is_sorted_by(|a, b| a.expert < b.expert) {
                return Err("an order breaks its contract".into());
            }
        }
    }
    let right = |order: &NodeOrder| (order.node, answer_as(combine, order).outputs);
    let expected: Vec<_> = orders.nodes.iter().map(right).collect();
    let same = outputs(trip.into_replies(1)) == expected;
    if same { Ok(()) } else { Err("the replies are not those of the orders".into()) }
}

#[test]
fn whatever_fails_every_token_is_answered_once_or_the_round_says_that_it_cannot() {
    for seed in 0..20_000 {
        for combine in [Combine::Exact, Combine::AtWorker] {
            if let Err(problem) = simulate(seed, combine) {
                panic!("seed {seed}, {combine:?}: {problem}");
            }
        }
    }
}

//! Outputs summed on the nodes: the same sums as here, in fewer bytes, whatever fails.

use crate::binary::{Folder, SYNTHETIC};
use crate::nodes::{EXPERTS, LAYER, PROGRAM, WIDTH, expert, numbers, orders, settings, shards};
use crate::worker::Worker;
use agents::{
    expert::{BitWidth, ExpertShape},
    game::Choices,
    ids::{ExpertId, NodeId, StepId, TokenId},
    orders::{ExpertGroup, NodeOrder, Orders, PairGates, Replies},
};
use nashflock::dispatch::{
    Dispatch, InProcess, Local, LocalSettings, Served, placement::RoundRobin,
};
use nashflock::wire;
use proto::{ComputeFault, ComputeRequest};
use std::{collections::BTreeMap, path::Path, time::Duration};

const TOKENS: usize = 50;

/// Some gate for each pair of the orders.
fn gates(orders: &Orders) -> PairGates {
    let mut rows = vec![Vec::new(); TOKENS];
    for group in orders.nodes.iter().flat_map(|order| &order.groups) {
        group.tokens.iter().for_each(|token| rows[token.index()].push(group.expert));
    }
    rows.iter_mut().for_each(|row| row.sort_unstable());
    let choices = Choices::ragged(&rows);
    let gates = numbers(7, choices.experts().len());
    PairGates::new(choices, gates)
}

/// What the replies sum to, by token.
fn totals(orders: &Orders, replies: &Replies) -> BTreeMap<TokenId, Vec<f32>> {
    let mut totals = BTreeMap::new();
    for (order, reply) in orders.nodes.iter().zip(&replies.nodes) {
        assert_eq!(reply.outputs.len(), order.tokens().len() * WIDTH);
        for (token, row) in order.tokens().into_iter().zip(reply.outputs.chunks_exact(WIDTH)) {
            let total = totals.entry(token).or_insert_with(|| vec![0.0; WIDTH]);
            total.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
    }
    totals
}

/// The exact sums from unweighted outputs, in ascending order of expert.
fn exact(orders: &Orders, replies: &Replies, gates: &PairGates) -> BTreeMap<TokenId, Vec<f32>> {
    let mut rows = Vec::new();
    for (order, reply) in orders.nodes.iter().zip(&replies.nodes) {
        let pairs =
            order.groups.iter().flat_map(|g| g.tokens.iter().map(|token| (g.expert, *token)));
        rows.extend(pairs.zip(reply.outputs.chunks_exact(WIDTH)));
    }
    rows.sort_by_key(|(pair, _)| *pair);
    let mut totals = BTreeMap::new();
    for ((expert, token), row) in rows {
        let gate = gates.of(token, expert).expect("each pair has one");
        let total = totals.entry(token).or_insert_with(|| vec![0.0; WIDTH]);
        total.iter_mut().zip(row).for_each(|(sum, value)| *sum += gate * value);
    }
    totals
}

fn bits(totals: &BTreeMap<TokenId, Vec<f32>>) -> Vec<u32> {
    totals.values().flatten().map(|value| value.to_bits()).collect()
}

fn received(served: &Served) -> u64 {
    served.nodes.iter().map(|node| node.received_bytes).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_sum_as_this_process_does_in_fewer_bytes_and_on_one_node_to_the_exact_bits() {
    for nodes in [1, 3] {
        let placement = RoundRobin::deal(EXPERTS, nodes, 1).expect("one replica fits");
        let orders = orders(placement, TOKENS, 1);
        let gates = gates(&orders);
        let hidden = numbers(99, TOKENS * WIDTH);
        let mut near = InProcess::new();
        near.load(shards(placement)).await.expect("always fits");
        let outputs = near.send(&orders, &hidden, WIDTH).await.expect("computes");
        let exact = exact(&orders, &outputs, &gates);
        let here = near.deliver(&orders, Some(&gates), &hidden, WIDTH).await.expect("computes");
        let here = totals(&orders, &here);

        let mut bytes = Vec::new();
        for gates in [None, Some(&gates)] {
            let count = u32::try_from(nodes).expect("small");
            let local = Local::spawn(Path::new(PROGRAM), count, settings()).await;
            let mut local = local.expect("workers start");
            local.load(shards(placement)).await.expect("shards fit");
            let replies = local.deliver(&orders, gates, &hidden, WIDTH).await.expect("computes");
            match gates {
                None => assert_eq!(replies.nodes[0].outputs, outputs.nodes[0].outputs),
                Some(_) => {
                    assert_eq!(bits(&totals(&orders, &replies)), bits(&here), "{nodes} nodes")
                }
            }
            bytes.push(received(&local.close().await));
        }
        let rows: usize = orders.nodes.iter().map(|order| order.tokens().len()).sum();
        let (all, summed) = (2 * TOKENS * WIDTH * 4, rows * WIDTH * 4);
        let headers = 100 * nodes as u64;
        assert!((all as u64..all as u64 + headers).contains(&bytes[0]), "{bytes:?}");
        assert!((summed as u64..summed as u64 + headers).contains(&bytes[1]), "{bytes:?}");
        assert!(summed < all, "some token has both experts on one node");

        if nodes == 1 {
            assert_eq!(bits(&here), bits(&exact));
        }
        for (found, expected) in here.values().flatten().zip(exact.values().flatten()) {
            assert!(
                (found - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                "{found} {expected}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_worker_loses_no_sum_and_doubles_none() {
    let placement = RoundRobin::deal(EXPERTS, 3, 2).expect("two replicas fit");
    let orders = orders(placement, TOKENS, 1);
    let gates = gates(&orders);
    let hidden = numbers(99, TOKENS * WIDTH);
    let local = Local::spawn(Path::new(PROGRAM), 3, LocalSettings::default()).await;
    let mut local = local.expect("workers start");
    local.load(shards(placement)).await.expect("shards fit");
    let before = local.deliver(&orders, Some(&gates), &hidden, WIDTH).await.expect("all live");
    let before = totals(&orders, &before);
    let pid = local.process_ids()[1].expect("it runs").to_string();
    crate::nodes::send_signal("KILL", &pid).await;
    let after = local.deliver(&orders, Some(&gates), &hidden, WIDTH).await.expect("others hold it");
    let after = totals(&orders, &after);
    for (found, expected) in after.values().flatten().zip(before.values().flatten()) {
        assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found} {expected}");
    }
    assert!(local.close().await.faults.rerouted_pairs > 0);
}

#[tokio::test]
async fn sums_without_a_gate_for_each_pair_are_refused() {
    let mut worker = Worker::start(&[]).await;
    let shape = ExpertShape { width: WIDTH, hidden: 2 * WIDTH };
    worker.load(LAYER, ExpertId(0), &expert(1, shape, BitWidth::Full)).await;
    let rows: Vec<TokenId> = (0..4).map(TokenId).collect();
    let groups = vec![ExpertGroup { expert: ExpertId(0), tokens: rows }];
    let order = NodeOrder { node: NodeId(0), groups };
    let choices = Choices::uniform(vec![ExpertId(0); 4], 1);
    let gates = PairGates::new(choices, vec![0.5, -1.0, 0.0, 2.0]);
    let ticket = wire::Ticket { step: StepId(1), layer: LAYER, ..wire::Ticket::default() };
    let hidden = numbers(3, 4 * WIDTH);
    let (wanted, patience) = ((hidden.as_slice(), WIDTH), Duration::from_secs(30));
    let good = wire::encode_order_for_sums(ticket, &order, &gates, wanted, patience, usize::MAX);
    let good = good.expect("it is valid");
    let unknown = PairGates::new(Choices::uniform(vec![ExpertId(0); 3], 1), vec![1.0; 3]);
    let refused =
        wire::encode_order_for_sums(ticket, &order, &unknown, wanted, patience, usize::MAX);
    assert!(
        refused.expect_err("token 3 has none").detail.contains("token 3 of expert 0 has no gate")
    );

    type Change = fn(&mut ComputeRequest);
    let cases: [(ComputeFault, &str, Change); 4] = [
        (ComputeFault::BadShape, "no sums are asked for", |request| request.sums = false),
        (ComputeFault::BadShape, "3 gates for 4 rows", |request| {
            request.groups[0].gates.truncate(3)
        }),
        (ComputeFault::NotFinite, "gate 1", |request| request.groups[0].gates[1] = f32::NAN),
        (ComputeFault::BadShape, "groups name 3", |request| {
            request.groups[0].rows.truncate(3);
            request.groups[0].gates.truncate(3);
        }),
    ];
    let (requests, mut replies) = worker.stream().await;
    for (fault, says, change) in cases {
        let mut request = good.clone();
        change(&mut request);
        requests.send(wire::seal_request(request)).await.expect("the stream is open");
        let reply = replies.message().await.expect("no error").expect("a reply");
        assert_eq!(reply.fault(), fault, "{}", reply.detail);
        assert!(reply.detail.contains(says), "{}", reply.detail);
    }
    requests.send(good).await.expect("the stream is open");
    let mut reply = replies.message().await.expect("no error").expect("a reply");
    assert_eq!((reply.summed_pairs, reply.outputs.len()), (4, 4 * WIDTH * 4));
    // Sums of another number of pairs, sealed by a node that lies about what it combined.
    reply.summed_pairs = 3;
    let lie = wire::seal_reply(reply);
    let refused = wire::Outputs::sums(ticket, (4, 4), WIDTH).take(lie).expect_err("3");
    assert!(refused.to_string().contains("3 pairs where 4 were ordered"), "{refused}");
}

#[test]
fn a_run_that_sums_at_the_workers_is_the_same_wherever_the_nodes_are() {
    let folder = Folder::with(SYNTHETIC);
    let sums = ["--set", "nodes.combine=at_worker", "--set", "nodes.count=2"];
    let here = folder.summary("here", &sums);
    let there = folder.summary("there", &[&sums[..], &["--nodes", "local:2"]].concat());
    assert_eq!(there["state_hash"], here["state_hash"]);
    let exact = folder.summary("exact", &["--nodes", "local:2", "--set", "nodes.combine=exact"]);
    assert_eq!(exact["state_hash"], folder.summary("plain", &[])["state_hash"]);
}

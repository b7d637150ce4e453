//! Workers as real processes: same bits wherever experts compute, and a fault never hangs, never
//! changes a result and never leaves a process behind.

use agents::{
    expert::{BitWidth, Expert, ExpertShape},
    ids::{ExpertId, LayerId, NodeId, StepId, TokenId},
    orders::{ExpertGroup, NodeOrder, Orders, Replies},
    rng::stream,
};
use nashflock::dispatch::{
    Deadlines, Dispatch, DispatchError, InProcess, Local, LocalSettings, Remote, RemoteSettings,
    ShardAssignment, SocketKind, placement::RoundRobin,
};
use proptest::prelude::*;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_nashflock");
pub(crate) const WIDTH: usize = 64;
pub(crate) const EXPERTS: usize = 8;
pub(crate) const LAYER: LayerId = LayerId(1);

/// More than any of these things takes, so that a hang fails a test instead of stopping it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = stream(seed, "nodes test");
    (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
}

pub(crate) fn expert(seed: u64, shape: ExpertShape, bits: BitWidth) -> Arc<Expert> {
    let part = |i| numbers(10 * seed + i, shape.width * shape.hidden);
    Arc::new(Expert::quantize(shape, &part(0), &part(1), &part(2), bits, 32))
}

pub(crate) fn experts() -> Vec<Arc<Expert>> {
    let bits = [BitWidth::Full, BitWidth::Eight, BitWidth::Four, BitWidth::Two];
    let shape = ExpertShape { width: WIDTH, hidden: 2 * WIDTH };
    (0..EXPERTS).map(|e| expert(e as u64, shape, bits[e % 4])).collect()
}

pub(crate) fn shards(placement: RoundRobin) -> Vec<ShardAssignment> {
    let assign = |(e, weights): (usize, Arc<Expert>)| {
        let expert = ExpertId::from_index(e);
        placement.hosts(LAYER, expert).map(move |node| ShardAssignment {
            node,
            layer: LAYER,
            expert,
            expert_weights: weights.clone(),
        })
    };
    experts().into_iter().enumerate().flat_map(assign).collect()
}

/// Random top-2 routing, heavily skewed so that one group has several row blocks.
pub(crate) fn orders(placement: RoundRobin, tokens: usize, seed: u64) -> Orders {
    let mut rng = stream(seed, "routing");
    let mut tokens_of = vec![Vec::new(); EXPERTS];
    for token in (0..tokens).map(TokenId::from_index) {
        let other = rng.random_range(1..EXPERTS);
        tokens_of[0].push(token);
        tokens_of[other].push(token);
    }
    let mut orders = Orders { step: StepId(7), layer: LAYER, nodes: Vec::new() };
    for (e, tokens) in tokens_of.into_iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
        let expert = ExpertId::from_index(e);
        let node = placement.first_host(LAYER, expert);
        let group = ExpertGroup { expert, tokens };
        match orders.nodes.iter_mut().find(|order| order.node == node) {
            Some(order) => order.groups.push(group),
            None => orders.nodes.push(NodeOrder { node, groups: vec![group] }),
        }
    }
    orders.nodes.sort_by_key(|order| order.node);
    orders
}

/// Output bits by expert and token: what must not depend on where it was computed.
pub(crate) fn bits(orders: &Orders, replies: &Replies) -> Vec<(ExpertId, TokenId, Vec<u32>)> {
    let mut found = Vec::new();
    assert_eq!(orders.nodes.len(), replies.nodes.len());
    for (order, reply) in orders.nodes.iter().zip(&replies.nodes) {
        assert_eq!(order.node, reply.node);
        let mut rows = reply.outputs.chunks_exact(WIDTH);
        for group in &order.groups {
            for token in &group.tokens {
                let row = rows.next().expect("a row for every pair");
                found.push((group.expert, *token, row.iter().map(|v| v.to_bits()).collect()));
            }
        }
        assert!(rows.next().is_none(), "no row besides");
    }
    found.sort();
    found
}

pub(crate) fn settings() -> LocalSettings {
    LocalSettings { threads: 2, ..LocalSettings::default() }
}

async fn local(nodes: u32) -> Local {
    local_with(nodes, settings()).await
}

async fn local_with(nodes: u32, settings: LocalSettings) -> Local {
    let mut local = Local::spawn(Path::new(PROGRAM), nodes, settings).await.expect("workers start");
    local.load(shards(place(nodes as usize))).await.expect("shards fit");
    local
}

pub(crate) fn place(nodes: usize) -> RoundRobin {
    RoundRobin::deal(EXPERTS, nodes, 1).expect("one replica fits")
}

/// One expert alone, row by row on this thread: the plain meaning of an order.
pub(crate) fn row_by_row(orders: &Orders, hidden: &[f32]) -> Vec<(ExpertId, TokenId, Vec<u32>)> {
    let experts = experts();
    let mut found = Vec::new();
    for group in orders.nodes.iter().flat_map(|order| &order.groups) {
        for token in &group.tokens {
            let mut out = vec![0.0; WIDTH];
            let row = &hidden[token.index() * WIDTH..][..WIDTH];
            experts[group.expert.index()].forward(row, &mut out);
            found.push((group.expert, *token, out.iter().map(|v| v.to_bits()).collect()));
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_have_the_same_bits_in_process_and_on_workers_over_any_sockets() {
    let hidden = numbers(99, 300 * WIDTH);
    for (nodes, sockets, data_connections) in
        [(1, SocketKind::Tcp, 1), (3, SocketKind::Unix, 1), (2, SocketKind::Tcp, 3)]
    {
        let remote = RemoteSettings { data_connections, ..RemoteSettings::default() };
        let settings = LocalSettings { sockets, remote, ..settings() };
        let placement = place(nodes);
        let mut in_process = InProcess::new();
        in_process.load(shards(placement)).await.expect("always fits");
        let mut local = local_with(u32::try_from(nodes).expect("small"), settings).await;
        let (mut requests, mut pairs) = (0, 0);
        for (seed, tokens) in [(1, 300), (2, 1), (3, 65), (4, 128)] {
            let orders = orders(placement, tokens, seed);
            let hidden = &hidden[..tokens * WIDTH];
            let expected = row_by_row(&orders, hidden);
            let near = in_process.send(&orders, hidden, WIDTH).await.expect("computes");
            let far = local.send(&orders, hidden, WIDTH).await.expect("computes");
            assert_eq!(bits(&orders, &near), expected, "in process, {tokens} tokens");
            assert_eq!(
                bits(&orders, &far),
                expected,
                "{nodes} workers, {sockets:?}, {tokens} tokens"
            );
            requests += orders.nodes.len() as u64;
            pairs += 2 * tokens as u64;
        }
        let (near, far) = (in_process.close().await.nodes, local.close().await.nodes);
        assert_eq!(far.len(), nodes);
        for (near, far) in near.iter().zip(&far) {
            assert_eq!(
                (near.node, near.shards, near.shard_bytes, near.requests, near.token_experts),
                (far.node, far.shards, far.shard_bytes, far.requests, far.token_experts)
            );
            assert!(far.compute_ns > 0);
        }
        assert_eq!(far.iter().map(|stats| stats.shards).sum::<usize>(), EXPERTS);
        assert_eq!(far.iter().map(|stats| stats.requests).sum::<u64>(), requests);
        assert_eq!(far.iter().map(|stats| stats.token_experts).sum::<u64>(), pairs);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_that_break_the_contract_are_refused_alike_near_and_far() {
    let placement = place(2);
    let mut near = InProcess::new();
    near.load(shards(placement)).await.expect("always fits");
    let mut far = local(2).await;
    let good = orders(placement, 8, 1);
    let hidden = numbers(5, 8 * WIDTH);
    let mut nan = hidden.clone();
    nan[3 * WIDTH + 2] = f32::NAN;
    let with = |change: &dyn Fn(&mut Orders)| {
        let mut orders = good.clone();
        change(&mut orders);
        orders
    };
    let cases = [
        // Every node refuses a layer that it has not, and far away any of them may be the first to
        // say so: one is asked.
        (
            "layer 4",
            with(&|orders| {
                orders.layer = LayerId(4);
                orders.nodes.truncate(1);
            }),
            &hidden,
        ),
        ("is not here", with(&|orders| orders.nodes[0].groups[0].expert = ExpertId(1)), &hidden),
        ("row 8 of 8", with(&|orders| orders.nodes[0].groups[0].tokens.push(TokenId(8))), &hidden),
        ("do not ascend", with(&|orders| orders.nodes[0].groups[0].tokens.reverse()), &hidden),
        ("is empty", with(&|orders| orders.nodes[0].groups[0].tokens.clear()), &hidden),
        ("must ascend", with(&|orders| orders.nodes[0].groups.reverse()), &hidden),
        ("at least one group", with(&|orders| orders.nodes[0].groups.clear()), &hidden),
        ("row 3, column 2 is not finite", good.clone(), &nan),
    ];
    for (says, orders, hidden) in &cases {
        for found in [near.send(orders, hidden, WIDTH).await, far.send(orders, hidden, WIDTH).await]
        {
            let Err(DispatchError::Refused { node: NodeId(0), detail }) = found else {
                panic!("{says}: {found:?}");
            };
            assert!(detail.contains(says), "{says}: {detail}");
        }
    }
    // Rows that no group names are nobody's business.
    let mut hidden = hidden;
    hidden.extend([f32::NAN; WIDTH]);
    let expected = near.send(&good, &hidden, WIDTH).await.expect("still computes");
    let found = far.send(&good, &hidden, WIDTH).await.expect("still computes");
    assert_eq!(bits(&good, &expected), bits(&good, &found));
    far.close().await;
}

/// Waits for what other processes do, not for ever.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "never: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Only ever given the id of a child of this test.
pub(crate) async fn send_signal(name: &str, pid: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), pid.to_owned()]).status().await;
    assert!(sent.expect("kill runs").success());
}

fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses; a zombie has ended.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

async fn all_end(pids: &[u32]) {
    eventually("no process is left", async || !pids.iter().any(|pid| is_running(*pid))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_is_reported_with_its_log_and_the_others_go_on_until_the_end() {
    let mut local = local(3).await;
    let placement = place(3);
    let orders = orders(placement, 100, 1);
    let hidden = numbers(5, 100 * WIDTH);
    let before = local.send(&orders, &hidden, WIDTH).await.expect("all live");
    let pids: Vec<u32> = local.process_ids().into_iter().flatten().collect();
    assert_eq!(pids.len(), 3);
    send_signal("KILL", &pids[1].to_string()).await;
    let lost = timeout(PATIENCE / 3, local.send(&orders, &hidden, WIDTH)).await;
    let lost = lost.expect("noticed within seconds").expect_err("node 1 is dead");
    let sentence = lost.to_string();
    let DispatchError::NodeLost { node: NodeId(1), log, .. } = lost else { panic!("{sentence}") };
    assert!(sentence.contains("signal: 9") && sentence.contains("listening on"), "{sentence}");
    assert!(log.iter().any(|line| line.contains("listening on unix:/")), "{log:?}");

    let mut rest = orders.clone();
    rest.nodes.remove(1);
    let after = local.send(&rest, &hidden, WIDTH).await.expect("nodes 0 and 2 live");
    assert_eq!(after.nodes[0].outputs, before.nodes[0].outputs);
    assert_eq!(after.nodes[1].outputs, before.nodes[2].outputs);
    let stats = local.close().await.nodes;
    assert_eq!(stats.len(), 3, "the lost node is accounted for");
    assert!(!pids.iter().any(|pid| is_running(*pid)), "close waits for the workers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_dispatcher_leaves_no_process() {
    let local = local(2).await;
    let pids: Vec<u32> = local.process_ids().into_iter().flatten().collect();
    assert!(pids.len() == 2 && pids.iter().all(|pid| is_running(*pid)));
    drop(local);
    all_end(&pids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_reply_is_never_taken_for_a_later_one() {
    let mut settings = settings();
    settings.remote.deadlines.compute = Duration::from_secs(2);
    let mut local = Local::spawn(Path::new(PROGRAM), 1, settings).await.expect("it starts");
    let placement = place(1);
    local.load(shards(placement)).await.expect("fits");
    let pid = local.process_ids()[0].expect("it runs").to_string();
    let (first, second) = (numbers(1, 8 * WIDTH), numbers(2, 8 * WIDTH));
    let orders = orders(placement, 8, 1);
    send_signal("STOP", &pid).await;
    let late = local.send(&orders, &first, WIDTH).await;
    send_signal("CONT", &pid).await;
    assert_eq!(late, Err(DispatchError::Timeout { node: NodeId(0), deadline_ms: 2000 }));
    let replies = local.send(&orders, &second, WIDTH).await.expect("it goes on");
    assert_eq!(bits(&orders, &replies), row_by_row(&orders, &second));
    assert_eq!(local.close().await.faults.late_replies, 1);
}

#[tokio::test]
async fn a_program_that_is_no_worker_or_no_peer_is_a_start_error() {
    for (program, says) in
        [("/nowhere/nashflock", "cannot run"), ("/bin/true", "its process ended")]
    {
        let error = Local::spawn(Path::new(program), 2, settings()).await.expect_err(program);
        assert!(matches!(error, DispatchError::Start { node: NodeId(0), .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    // Long enough to be refused on a busy machine; the attempts go on until it ends.
    let deadlines = Deadlines { start: Duration::from_secs(3), ..Deadlines::default() };
    let settings = RemoteSettings { deadlines, ..RemoteSettings::default() };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
    let address = closed.expect("a free port").to_string();
    let error = Remote::connect(std::slice::from_ref(&address), settings)
        .await
        .expect_err("nobody listens");
    let sentence = error.to_string();
    assert!(sentence.contains(&address) && sentence.contains("refused"), "{sentence}");
}

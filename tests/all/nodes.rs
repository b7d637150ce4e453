//! Workers as real processes: same bits wherever experts compute, and a fault never hangs, never
//! changes a result and never leaves a process behind.

use agents::{
    expert::{BitWidth, Expert, ExpertShape},
    ids::{ExpertId, LayerId, NodeId, StepId, TokenId},
    orders::{ExpertGroup, NodeOrder, Orders, Replies},
    rng::stream,
};
use nashflock::{
    dispatch::{
        Deadlines, Dispatch, DispatchError, InProcess, Local, LocalSettings, Remote,
        ShardAssignment, placement::Placement,
    },
    wire,
};
use proptest::prelude::*;
use proto::{
    ComputeFault, ComputeReply, ComputeRequest, ShardChunk, StatusReply, StatusRequest,
    expert_service_client::ExpertServiceClient,
};
use std::{
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nashflock");
const WIDTH: usize = 64;
const EXPERTS: usize = 8;
const LAYER: LayerId = LayerId(1);

/// More than any of these things takes, so that a hang fails a test instead of stopping it.
const PATIENCE: Duration = Duration::from_secs(30);

fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = stream(seed, "nodes test");
    (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
}

fn expert(seed: u64, shape: ExpertShape, bits: BitWidth) -> Arc<Expert> {
    let part = |i| numbers(10 * seed + i, shape.width * shape.hidden);
    Arc::new(Expert::quantize(shape, &part(0), &part(1), &part(2), bits, 32))
}

fn experts() -> Vec<Arc<Expert>> {
    let bits = [BitWidth::Full, BitWidth::Eight, BitWidth::Four, BitWidth::Two];
    let shape = ExpertShape { width: WIDTH, hidden: 2 * WIDTH };
    (0..EXPERTS).map(|e| expert(e as u64, shape, bits[e % 4])).collect()
}

fn shards(placement: Placement) -> Vec<ShardAssignment> {
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
fn orders(placement: Placement, tokens: usize, seed: u64) -> Orders {
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
fn bits(orders: &Orders, replies: &Replies) -> Vec<(ExpertId, TokenId, Vec<u32>)> {
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

fn settings() -> LocalSettings {
    LocalSettings { threads: 2, ..LocalSettings::default() }
}

async fn local(nodes: u32) -> Local {
    let mut local =
        Local::spawn(Path::new(PROGRAM), nodes, settings()).await.expect("workers start");
    local.load(shards(place(nodes as usize))).await.expect("shards fit");
    local
}

fn place(nodes: usize) -> Placement {
    Placement::round_robin(EXPERTS, nodes, 1).expect("one replica fits")
}

/// One expert alone, row by row on this thread: the plain meaning of an order.
fn row_by_row(orders: &Orders, hidden: &[f32]) -> Vec<(ExpertId, TokenId, Vec<u32>)> {
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
async fn replies_have_the_same_bits_in_process_on_one_worker_and_on_three() {
    let hidden = numbers(99, 300 * WIDTH);
    for nodes in [1, 3] {
        let placement = place(nodes);
        let mut in_process = InProcess::new();
        in_process.load(shards(placement)).await.expect("always fits");
        let mut local = local(u32::try_from(nodes).expect("small")).await;
        let (mut requests, mut pairs) = (0, 0);
        for (seed, tokens) in [(1, 300), (2, 1), (3, 65), (4, 128)] {
            let orders = orders(placement, tokens, seed);
            let hidden = &hidden[..tokens * WIDTH];
            let expected = row_by_row(&orders, hidden);
            let near = in_process.send(&orders, hidden, WIDTH).await.expect("computes");
            let far = local.send(&orders, hidden, WIDTH).await.expect("computes");
            assert_eq!(bits(&orders, &near), expected, "in process, {tokens} tokens");
            assert_eq!(bits(&orders, &far), expected, "{nodes} workers, {tokens} tokens");
            requests += orders.nodes.len() as u64;
            pairs += 2 * tokens as u64;
        }
        let (near, far) = (in_process.close().await, local.close().await);
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
        ("layer 4", with(&|orders| orders.layer = LayerId(4)), &hidden),
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

/// A worker process with a plain client, for what the dispatcher itself would never send.
struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    address: String,
    client: ExpertServiceClient<Channel>,
}

impl Worker {
    async fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["worker", "--listen", "127.0.0.1:0", "--lifeline", "--threads", "1"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the program runs");
        let stdin = child.stdin.take();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut line).await.expect("one line");
        let said: serde_json::Value = serde_json::from_str(&line).expect("one JSON line");
        let address = said["listening"].as_str().expect("an address").to_owned();
        let endpoint = nashflock::dispatch::endpoint(&address).expect("an address");
        let client =
            ExpertServiceClient::new(endpoint.connect_lazy()).max_decoding_message_size(usize::MAX);
        Self { child, stdin, address, client }
    }

    async fn load(&mut self, layer: LayerId, id: ExpertId, shard: &Expert) {
        let (chunks, _) = wire::encode_shard(layer, id, shard);
        self.client.load_shard(tokio_stream::iter(chunks)).await.expect("it fits");
    }

    async fn stream(&mut self) -> (mpsc::Sender<ComputeRequest>, Streaming<ComputeReply>) {
        let (requests, outbox) = mpsc::channel(1);
        let replies = self.client.compute(ReceiverStream::new(outbox)).await.expect("it serves");
        (requests, replies.into_inner())
    }

    async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        send_signal(name, &pid).await;
    }

    async fn exit(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").expect("it can be awaited")
    }

    async fn status(&self) -> StatusReply {
        let mut client = self.client.clone();
        let status = client.status(StatusRequest {});
        timeout(PATIENCE, status).await.expect("in time").expect("it serves").into_inner()
    }

    async fn health(&self) -> i32 {
        let endpoint = nashflock::dispatch::endpoint(&self.address).expect("an address");
        let mut health = HealthClient::new(endpoint.connect().await.expect("it listens"));
        let request = HealthCheckRequest { service: "nashflock.v1.ExpertService".into() };
        health.check(request).await.expect("health answers").into_inner().status
    }
}

/// Waits for what other processes do, not for ever.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "never: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Only ever given the id of a child of this test.
async fn send_signal(name: &str, pid: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), pid.to_owned()]).status().await;
    assert!(sent.expect("kill runs").success());
}

fn request(expert: u32, rows: &[u32], hidden: &[f32]) -> ComputeRequest {
    let order = NodeOrder {
        node: NodeId(0),
        groups: vec![ExpertGroup {
            expert: ExpertId(expert),
            tokens: rows.iter().copied().map(TokenId).collect(),
        }],
    };
    let ticket = wire::Ticket { step: StepId(1), layer: LAYER, sequence: 1 };
    wire::encode_order(ticket, &order, hidden, WIDTH, PATIENCE, usize::MAX).expect("it is valid")
}

#[tokio::test]
async fn a_damaged_or_oversized_shard_is_refused_and_nothing_is_stored() {
    let shape = ExpertShape { width: WIDTH, hidden: 2 * WIDTH };
    let shard = expert(1, shape, BitWidth::Full);
    let bytes = shard.to_bytes().len();
    let mut worker = Worker::start(&["--shard-bytes-max", &(bytes + 9).to_string()]).await;
    type Change = fn(&mut Vec<ShardChunk>);
    let cases: [(Code, &str, Change); 7] = [
        (Code::DataLoss, "BLAKE3", |chunks| {
            let mut payload = chunks[0].payload.to_vec();
            let last = payload.len() - 1;
            payload[last] ^= 1;
            chunks[0].payload = payload.into();
        }),
        (Code::DataLoss, "BLAKE3", |chunks| {
            chunks[0].header.as_mut().expect("first").blake3 = vec![7; 32].into();
        }),
        (Code::InvalidArgument, "32 bytes, not 31", |chunks| {
            chunks[0].header.as_mut().expect("first").blake3 = vec![7; 31].into();
        }),
        (Code::ResourceExhausted, "needs 10000000000 bytes", |chunks| {
            chunks[0].header.as_mut().expect("first").total_bytes = 10_000_000_000;
        }),
        (Code::InvalidArgument, "bytes but", |chunks| {
            chunks[0].header.as_mut().expect("first").total_bytes += 1;
        }),
        (Code::InvalidArgument, "needs the header", |chunks| chunks[0].header = None),
        (Code::InvalidArgument, "without chunks", Vec::clear),
    ];
    for (code, says, change) in cases {
        let (mut chunks, _) = wire::encode_shard(LAYER, ExpertId(0), &shard);
        change(&mut chunks);
        let refused = worker.client.load_shard(tokio_stream::iter(chunks)).await;
        let refused = refused.expect_err(says);
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(says), "{refused}");
    }
    let mut long = wire::encode_shard(LAYER, ExpertId(0), &shard).0;
    long[0].payload = vec![0; wire::CHUNK_BYTES_MAX + 1].into();
    let refused = worker.client.load_shard(tokio_stream::iter(long)).await.expect_err("too long");
    assert!(refused.message().contains("a chunk has at most"), "{refused}");

    let status = worker.status().await;
    assert_eq!((status.shards, status.shard_bytes), (0, 0));
    worker.load(LAYER, ExpertId(0), &shard).await;
    let (chunks, _) = wire::encode_shard(LAYER, ExpertId(1), &shard);
    let full = worker.client.load_shard(tokio_stream::iter(chunks)).await.expect_err("full");
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(full.message().contains(&format!("9 of {} are free", bytes + 9)), "{full}");
    worker.load(LAYER, ExpertId(0), &shard).await;
    let status = worker.status().await;
    assert_eq!((status.shards, status.shard_bytes), (1, bytes as u64));
}

#[tokio::test]
async fn a_bad_request_gets_a_fault_and_the_stream_goes_on() {
    let mut worker = Worker::start(&[]).await;
    let shape = ExpertShape { width: WIDTH, hidden: 2 * WIDTH };
    worker.load(LAYER, ExpertId(0), &expert(1, shape, BitWidth::Full)).await;
    let narrow = ExpertShape { width: WIDTH / 2, hidden: WIDTH };
    worker.load(LAYER, ExpertId(1), &expert(2, narrow, BitWidth::Full)).await;
    let hidden = numbers(3, 4 * WIDTH);
    let good = request(0, &[0, 1, 2, 3], &hidden);
    let damaged = |at: usize, value: [u8; 4], fix_crc: bool| {
        let mut bytes = good.hidden.to_vec();
        bytes[4 * at..4 * at + 4].copy_from_slice(&value);
        let mut request = ComputeRequest { hidden: bytes.into(), ..good.clone() };
        if fix_crc {
            request.hidden_crc32 = crc32fast::hash(&request.hidden);
        }
        request
    };
    let rows = |rows: &[u32]| {
        let groups = vec![proto::ExpertGroup { expert: 0, rows: rows.to_vec() }];
        ComputeRequest { groups, ..good.clone() }
    };
    use ComputeFault as Fault;
    let group = good.groups[0].clone();
    let cases = [
        (Fault::UnknownExpert, request(5, &[0], &hidden)),
        (Fault::UnknownExpert, ComputeRequest { layer: 9, ..good.clone() }),
        (Fault::BadShape, request(1, &[0], &hidden)),
        (Fault::BadShape, ComputeRequest { width: 0, ..good.clone() }),
        (Fault::BadShape, ComputeRequest { width: u32::MAX, ..good.clone() }),
        (Fault::BadShape, ComputeRequest { width: good.width - 1, ..good.clone() }),
        (Fault::BadShape, ComputeRequest { hidden: good.hidden.slice(1..), ..good.clone() }),
        (Fault::BadShape, ComputeRequest { hidden: good.hidden.slice(4..), ..good.clone() }),
        (Fault::BadShape, ComputeRequest { step: u64::MAX, ..good.clone() }),
        (Fault::BadShape, ComputeRequest { groups: vec![], ..good.clone() }),
        (Fault::BadShape, ComputeRequest { groups: vec![group.clone(), group], ..good.clone() }),
        (Fault::BadShape, rows(&[])),
        (Fault::BadShape, rows(&[4])),
        (Fault::BadShape, rows(&[u32::MAX])),
        (Fault::BadShape, rows(&[1, 0])),
        (Fault::BadShape, rows(&[1, 1])),
        (Fault::NotFinite, damaged(70, f32::NAN.to_le_bytes(), true)),
        (Fault::NotFinite, damaged(0, f32::INFINITY.to_le_bytes(), true)),
        // Finite going in, infinite coming out.
        (Fault::NotFinite, damaged(0, f32::MAX.to_le_bytes(), true)),
        (Fault::Corrupt, damaged(0, 0.25_f32.to_le_bytes(), false)),
        (Fault::Expired, ComputeRequest { deadline_ms: 0, ..good.clone() }),
    ];
    let (requests, mut replies) = worker.stream().await;
    for (sequence, (fault, request)) in (2..).zip(cases) {
        let sent = ComputeRequest { sequence, ..request };
        requests.send(sent.clone()).await.expect("the stream is open");
        let reply = replies.message().await.expect("no error").expect("a reply");
        assert_eq!((reply.sequence, reply.step, reply.layer), (sequence, sent.step, sent.layer));
        assert_eq!(reply.fault(), fault, "{} for {sent:?}", reply.detail);
        assert!(!reply.detail.is_empty() && reply.outputs.is_empty());
        requests.send(good.clone()).await.expect("the stream is open");
        let reply = replies.message().await.expect("no error").expect("a reply");
        assert_eq!((reply.fault(), reply.outputs.len()), (Fault::None, good.hidden.len()));
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_on_both_sides() {
    let limit = 2 << 20;
    let mut worker = Worker::start(&["--message-bytes-max", &limit.to_string()]).await;
    let shape = ExpertShape { width: WIDTH, hidden: 2 * WIDTH };
    worker.load(LAYER, ExpertId(0), &expert(1, shape, BitWidth::Full)).await;
    let hidden = numbers(3, 9000 * WIDTH);
    let rows: Vec<u32> = (0..9000).collect();
    let (requests, mut replies) = worker.stream().await;
    requests.send(request(0, &rows, &hidden)).await.expect("the stream is open");
    let refused = replies.message().await.expect_err("9000 rows have 2304000 bytes");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");

    let (requests, mut replies) = worker.stream().await;
    let mut wide = request(0, &rows[..3000], &hidden[..3000 * WIDTH]);
    wide.groups =
        (0..3).map(|e| proto::ExpertGroup { expert: e, ..wide.groups[0].clone() }).collect();
    requests.send(wide).await.expect("the stream is open");
    let reply = replies.message().await.expect("no error").expect("a reply");
    assert_eq!(reply.fault(), ComputeFault::OverLimit, "9000 rows of output: {}", reply.detail);

    let mut remote = Remote::connect(std::slice::from_ref(&worker.address), Deadlines::default())
        .await
        .expect("it serves");
    let order = |tokens: u32| Orders {
        step: StepId(0),
        layer: LAYER,
        nodes: vec![NodeOrder {
            node: NodeId(0),
            groups: vec![ExpertGroup {
                expert: ExpertId(0),
                tokens: (0..tokens).map(TokenId).collect(),
            }],
        }],
    };
    let refused = remote.send(&order(9000), &hidden, WIDTH).await.expect_err("over the limit");
    let sentence = refused.to_string();
    assert!(sentence.contains("over the limit of 2097152"), "{sentence}");
    let replies = remote.send(&order(50), &hidden, WIDTH).await.expect("fits");
    assert_eq!(replies.nodes[0].outputs.len(), 50 * WIDTH);
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
    assert!(log.iter().any(|line| line.contains("listening on 127.0.0.1:")), "{log:?}");

    let mut rest = orders.clone();
    rest.nodes.remove(1);
    let after = local.send(&rest, &hidden, WIDTH).await.expect("nodes 0 and 2 live");
    assert_eq!(after.nodes[0].outputs, before.nodes[0].outputs);
    assert_eq!(after.nodes[1].outputs, before.nodes[2].outputs);
    let stats = local.close().await;
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
    settings.deadlines.compute = Duration::from_secs(2);
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
    local.close().await;
}

#[tokio::test]
async fn a_terminated_worker_answers_what_is_in_flight_and_exits_0() {
    let mut worker = Worker::start(&[]).await;
    let shape = ExpertShape { width: WIDTH, hidden: 64 * WIDTH };
    worker.load(LAYER, ExpertId(0), &expert(1, shape, BitWidth::Full)).await;
    let (requests, mut replies) = worker.stream().await;
    let rows: Vec<u32> = (0..4000).collect();
    let hidden = numbers(3, rows.len() * WIDTH);
    requests.send(request(0, &rows, &hidden)).await.expect("the stream is open");
    eventually("the request is under way", async || worker.status().await.requests == 1).await;
    worker.signal("TERM").await;
    let reply = replies.message().await.expect("no error").expect("a reply");
    assert_eq!((reply.fault(), reply.outputs.len()), (ComputeFault::None, hidden.len() * 4));
    let end = replies.message().await.expect_err("the node says why it ends the stream");
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    assert_eq!(worker.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_draining_worker_is_not_serving_takes_nothing_new_and_finishes_an_upload() {
    let mut worker = Worker::start(&[]).await;
    assert_eq!(worker.health().await, 1, "SERVING");
    let shape = ExpertShape { width: WIDTH, hidden: 128 * WIDTH };
    let shard = expert(1, shape, BitWidth::Full);
    let (chunks, blake3) = wire::encode_shard(LAYER, ExpertId(0), &shard);
    assert!(chunks.len() > 1, "the upload has a first and a last chunk");
    let (sender, outbox) = mpsc::channel(chunks.len());
    let mut client = worker.client.clone();
    let upload = tokio::spawn(async move { client.load_shard(ReceiverStream::new(outbox)).await });
    let (last, first) = chunks.split_last().expect("several");
    for chunk in first {
        sender.send(chunk.clone()).await.expect("the upload is open");
    }
    eventually("the upload is under way", async || worker.status().await.calls == 1).await;
    worker.signal("TERM").await;
    eventually("it is NOT_SERVING", async || worker.health().await == 2).await;
    let again = tokio_stream::iter(chunks.clone());
    let refused = worker.client.clone().load_shard(again).await.expect_err("it is draining");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    sender.send(last.clone()).await.expect("the upload is open");
    drop(sender);
    let receipt = upload.await.expect("no panic").expect("the upload is finished").into_inner();
    assert_eq!(receipt.blake3, blake3);
    assert_eq!(worker.exit().await.code(), Some(0));
}

#[tokio::test]
async fn the_end_of_the_lifeline_ends_the_worker() {
    let mut worker = Worker::start(&[]).await;
    assert_eq!(worker.health().await, 1, "SERVING");
    worker.stdin = None;
    assert_eq!(worker.exit().await.code(), Some(0));
}

#[tokio::test]
async fn bad_listen_addresses_exit_with_2_and_say_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().map(|address| (taken, address)).expect("bound");
    let taken_address = taken.1.to_string();
    for (arguments, says) in [
        (vec!["--listen", &taken_address], ["cannot listen on", "--listen IP:PORT"]),
        (vec!["--listen", "0.0.0.0:0"], ["plain text", "--insecure-non-loopback"]),
        (vec!["--listen", "127.0.0.1:0", "--threads", "0"], ["0 compute threads", "1 to 1024"]),
        (
            vec!["--listen", "127.0.0.1:0", "--message-bytes-max", "9"],
            ["9 bytes", "2097152 to 4294967295"],
        ),
    ] {
        let mut child = Command::new(PROGRAM)
            .arg("worker")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program runs");
        let mut log = String::new();
        let mut stderr = child.stderr.take().expect("piped");
        timeout(PATIENCE, stderr.read_to_string(&mut log)).await.expect("it ends").expect("text");
        assert_eq!(child.wait().await.expect("it ended").code(), Some(2), "{log}");
        assert!(says.iter().all(|says| log.contains(says)), "{log}");
    }
}

#[tokio::test]
async fn reflection_names_the_services() {
    let worker = Worker::start(&[]).await;
    let endpoint = nashflock::dispatch::endpoint(&worker.address).expect("an address");
    let mut client = ServerReflectionClient::new(endpoint.connect_lazy());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let call = client.server_reflection_info(tokio_stream::iter([request])).await;
    let reply = call.expect("it answers").into_inner().message().await;
    let reply = reply.expect("no error").expect("a reply").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = reply else { panic!("{reply:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["nashflock.v1.ExpertService", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
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
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
    let address = closed.expect("a free port").to_string();
    let error = Remote::connect(std::slice::from_ref(&address), deadlines)
        .await
        .expect_err("nobody listens");
    let sentence = error.to_string();
    assert!(sentence.contains(&address) && sentence.contains("refused"), "{sentence}");
}

fn any_order() -> impl Strategy<Value = (usize, usize, Vec<ExpertGroup>)> {
    (1_usize..200, 1_usize..20).prop_flat_map(|(tokens, width)| {
        let rows = prop::collection::btree_set(0..tokens, 1..=tokens.min(40));
        let groups = prop::collection::btree_map(0_u32..64, rows, 1..8);
        groups.prop_map(move |groups| {
            let group = |(expert, rows): (u32, std::collections::BTreeSet<usize>)| ExpertGroup {
                expert: ExpertId(expert),
                tokens: rows.into_iter().map(TokenId::from_index).collect(),
            };
            (tokens, width, groups.into_iter().map(group).collect())
        })
    })
}

proptest! {
    #[test]
    fn an_order_survives_the_wire_and_any_flipped_bit_of_its_tensors_is_noticed(
        (tokens, width, groups) in any_order(),
        seed in any::<u64>(),
        flip in any::<prop::sample::Index>(),
    ) {
        let hidden = numbers(seed, tokens * width);
        let ticket = wire::Ticket { step: StepId(3), layer: LayerId(2), sequence: 9 };
        let order = NodeOrder { node: NodeId(4), groups };
        let sent = wire::encode_order(ticket, &order, &hidden, width, PATIENCE, 1 << 20)
            .expect("it is valid");
        let distinct: std::collections::BTreeSet<_> =
            order.groups.iter().flat_map(|group| &group.tokens).collect();
        prop_assert_eq!(sent.hidden.len(), distinct.len() * width * 4, "each row once");

        let work = wire::decode_order(sent.clone(), 1 << 20).expect("it was encoded");
        prop_assert_eq!((work.ticket, work.width, work.pairs), (ticket, width, order.pairs()));
        prop_assert_eq!(work.deadline, PATIENCE);
        let values: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(&work.hidden);
        let mut outputs = Vec::new();
        for (original, arrived) in order.groups.iter().zip(&work.groups) {
            prop_assert_eq!(original.expert, arrived.expert);
            prop_assert_eq!(original.tokens.len(), arrived.tokens.len());
            for (token, row) in original.tokens.iter().zip(&arrived.tokens) {
                let row = &values[row.index() * width..][..width];
                prop_assert_eq!(&hidden[token.index() * width..][..width], row);
                outputs.extend_from_slice(row);
            }
        }

        let reply = wire::encode_outputs(wire::reply_to(&sent), outputs.clone(), width, 5)
            .expect("finite");
        let decode = |reply: &ComputeReply| {
            wire::decode_reply(reply, ticket, order.node, work.pairs, width)
        };
        let decoded = decode(&reply).expect("it was encoded");
        prop_assert_eq!(decoded.outputs, outputs);
        prop_assert_eq!((decoded.node, decoded.compute_ns), (order.node, 5));

        let flipped = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes.into()
        };
        let damaged = ComputeRequest { hidden: flipped(&sent.hidden), ..sent };
        prop_assert_eq!(
            wire::decode_order(damaged, 1 << 20).expect_err("a bit flipped").fault,
            ComputeFault::Corrupt
        );
        let damaged = ComputeReply { outputs: flipped(&reply.outputs), ..reply.clone() };
        prop_assert!(matches!(decode(&damaged), Err(wire::ReplyError::Bad(_))));
        for other in [
            ComputeReply { sequence: 8, ..reply.clone() },
            ComputeReply { step: 4, ..reply.clone() },
            ComputeReply { layer: 3, ..reply.clone() },
            ComputeReply { outputs: reply.outputs.slice(4..), ..reply.clone() },
            ComputeReply { fault: 77, ..reply.clone() },
        ] {
            prop_assert!(matches!(decode(&other), Err(wire::ReplyError::Bad(_))));
        }
    }
}

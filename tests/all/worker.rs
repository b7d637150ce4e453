//! One worker process: what it refuses, how it drains, where it listens.

use crate::nodes::{LAYER, PATIENCE, PROGRAM, WIDTH, eventually, expert, numbers, send_signal};
use agents::{
    expert::{BitWidth, Expert, ExpertShape},
    ids::{ExpertId, LayerId, NodeId, StepId, TokenId},
    orders::{ExpertGroup, NodeOrder, Orders},
};
use nashflock::{
    dispatch::{Dispatch, Remote, RemoteSettings},
    wire,
};
use proto::{
    ComputeFault, ComputeReply, ComputeRequest, DropRequest, ShardChunk, ShardName, StatusReply,
    StatusRequest, expert_service_client::ExpertServiceClient,
};
use std::process::{ExitStatus, Stdio};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// A worker process with a plain client, for what the dispatcher itself would never send.
pub(crate) struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    address: String,
    client: ExpertServiceClient<Channel>,
}

impl Worker {
    pub(crate) async fn start(arguments: &[&str]) -> Self {
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

    pub(crate) async fn load(&mut self, layer: LayerId, id: ExpertId, shard: &Expert) {
        let (chunks, _) = wire::encode_shard(layer, id, shard);
        self.client.load_shard(tokio_stream::iter(chunks)).await.expect("it fits");
    }

    pub(crate) async fn stream(
        &mut self,
    ) -> (mpsc::Sender<ComputeRequest>, Streaming<ComputeReply>) {
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

    pub(crate) async fn status(&self) -> StatusReply {
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

fn request(expert: u32, rows: &[u32], hidden: &[f32]) -> ComputeRequest {
    let order = NodeOrder {
        node: NodeId(0),
        groups: vec![ExpertGroup {
            expert: ExpertId(expert),
            tokens: rows.iter().copied().map(TokenId).collect(),
        }],
    };
    let ticket =
        wire::Ticket { step: StepId(1), layer: LAYER, sequence: 1, ..wire::Ticket::default() };
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
        let groups = vec![proto::ExpertGroup { expert: 0, rows: rows.to_vec(), gates: vec![] }];
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
        let sent = wire::seal_request(ComputeRequest { sequence, ..request });
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
async fn every_flipped_byte_of_a_small_shard_is_found_and_the_whole_one_is_taken() {
    let mut worker = Worker::start(&[]).await;
    let shape = ExpertShape { width: 32, hidden: 32 };
    let shard = expert(1, shape, BitWidth::Two);
    let (chunks, _) = wire::encode_shard(LAYER, ExpertId(0), &shard);
    assert_eq!(chunks.len(), 1);
    for at in 0..chunks[0].payload.len() {
        let mut payload = chunks[0].payload.to_vec();
        payload[at] ^= 1 << (at % 8);
        let damaged = ShardChunk { payload: payload.into(), ..chunks[0].clone() };
        let refused = worker.client.load_shard(tokio_stream::iter([damaged])).await;
        assert_eq!(refused.expect_err("a byte differs").code(), Code::DataLoss, "byte {at}");
    }
    assert_eq!(worker.status().await.shards, 0);
    worker.load(LAYER, ExpertId(0), &shard).await;
    assert_eq!(worker.status().await.shards, 1);
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
    requests.send(wire::seal_request(wide)).await.expect("the stream is open");
    let reply = replies.message().await.expect("no error").expect("a reply");
    assert_eq!(reply.fault(), ComputeFault::OverLimit, "9000 rows of output: {}", reply.detail);

    let mut remote =
        Remote::connect(std::slice::from_ref(&worker.address), RemoteSettings::default())
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
    let (mut bytes, mut more) = (0, true);
    while more {
        let piece = replies.message().await.expect("no error").expect("a reply");
        assert_eq!(piece.fault(), ComputeFault::None);
        (bytes, more) = (bytes + piece.outputs.len(), piece.more);
    }
    assert_eq!(bytes, hidden.len() * 4, "all pieces of the reply");
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
async fn a_dropped_shard_is_gone_and_its_room_is_free() {
    let mut worker = Worker::start(&[]).await;
    let shape = ExpertShape { width: WIDTH, hidden: WIDTH };
    for id in [ExpertId(0), ExpertId(1)] {
        worker.load(LAYER, id, &expert(0, shape, BitWidth::Four)).await;
    }
    let before = worker.status().await;
    let shards = [(0, LAYER.0), (7, LAYER.0), (1, LAYER.0 + 1)];
    let shards = shards.map(|(expert, layer)| ShardName { layer, expert }).to_vec();
    let reply = worker.client.drop_shards(DropRequest { shards }).await.expect("it serves");
    assert_eq!(reply.into_inner().dropped, 1, "the others were not there");
    let after = worker.status().await;
    assert_eq!((before.shards, after.shards), (2, 1));
    assert_eq!(after.shard_bytes * 2, before.shard_bytes);
    let (requests, mut replies) = worker.stream().await;
    for (id, expected) in [(0, ComputeFault::UnknownExpert), (1, ComputeFault::None)] {
        let order = request(id, &[0], &numbers(3, WIDTH));
        requests.send(order).await.expect("it reads");
        let reply = replies.message().await.expect("it serves").expect("a reply");
        assert_eq!(reply.fault(), expected, "{}", reply.detail);
    }
}

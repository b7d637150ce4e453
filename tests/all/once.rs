//! Each order is computed once and each answer counts once, whatever the way between the dispatcher and the
//! workers does with their messages: says them twice, late, out of order, or breaks.

use crate::nodes::{EXPERTS, LAYER, WIDTH, bits, eventually, numbers, orders, row_by_row, shards};
use crate::worker::Worker;
use agents::{
    expert::{BitWidth, ExpertShape},
    ids::{ExpertId, NodeId, StepId, TokenId},
    orders::{ExpertGroup, NodeOrder},
};
use nashflock::dispatch::{Dispatch, Remote, RemoteSettings, Served, placement::RoundRobin};
use nashflock::wire;
use nashflock::worker::{Settings, serve_with_incoming};
use proto::{
    ComputeFault, ComputeReply, ComputeRequest, DropReply, DropRequest, ShardChunk, ShardReceipt,
    StatusReply, StatusRequest,
    expert_service_client::ExpertServiceClient,
    expert_service_server::{ExpertService, ExpertServiceServer},
};
use std::{collections::VecDeque, path::Path, time::Duration};
use tokio::{net::UnixListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Server, server::TcpIncoming};
use tonic::{Request, Response, Status, Streaming};

const TOKENS: usize = 12;
const ROUNDS: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(60);

fn request(run: u64, sequence: u64, awaited_from: u64, rows: u32) -> ComputeRequest {
    let order = NodeOrder {
        node: NodeId(0),
        groups: vec![ExpertGroup { expert: ExpertId(0), tokens: (0..rows).map(TokenId).collect() }],
    };
    let step = StepId(u32::try_from(sequence).expect("small"));
    let ticket =
        wire::Ticket { run, step, layer: LAYER, sequence, awaited_from, ..wire::Ticket::default() };
    let hidden = numbers(sequence, rows as usize * WIDTH);
    wire::encode_order(ticket, &order, &hidden, WIDTH, PATIENCE, usize::MAX).expect("it is valid")
}

async fn answer(
    requests: &mpsc::Sender<ComputeRequest>,
    replies: &mut Streaming<ComputeReply>,
    request: &ComputeRequest,
) -> ComputeReply {
    requests.send(request.clone()).await.expect("the stream is open");
    replies.message().await.expect("no error").expect("a reply")
}

#[tokio::test]
async fn an_order_that_comes_again_on_any_stream_has_its_first_answer_and_is_not_computed() {
    let mut worker = Worker::start(&[]).await;
    let shape = ExpertShape { width: WIDTH, hidden: 64 * WIDTH };
    worker.load(LAYER, ExpertId(0), &crate::nodes::expert(1, shape, BitWidth::Full)).await;
    let (requests, mut replies) = worker.stream().await;
    let first = answer(&requests, &mut replies, &request(7, 1, 1, 3)).await;
    assert_eq!(first.fault(), ComputeFault::None);
    assert_eq!(answer(&requests, &mut replies, &request(7, 1, 1, 3)).await, first);
    let (requests, mut replies) = worker.stream().await;
    assert_eq!(answer(&requests, &mut replies, &request(7, 1, 1, 3)).await, first);
    let status = worker.status().await;
    assert_eq!((status.token_experts, status.duplicates, status.requests), (3, 2, 3));

    // Another order under the same name, one that is not awaited any more, and those without a name.
    let other = answer(&requests, &mut replies, &request(7, 1, 1, 4)).await;
    assert_eq!(other.fault(), ComputeFault::BadShape, "{}", other.detail);
    answer(&requests, &mut replies, &request(7, 3, 3, 1)).await;
    for sequence in [1, 2] {
        let late = answer(&requests, &mut replies, &request(7, sequence, 1, 3)).await;
        assert_eq!(late.fault(), ComputeFault::Duplicate, "{}", late.detail);
    }
    for _ in 0..2 {
        answer(&requests, &mut replies, &request(0, 1, 1, 5)).await;
    }
    assert_eq!(worker.status().await.token_experts, 3 + 1 + 2 * 5);

    // One that is under way when its stream ends is computed to the end and answered on the next.
    let before = worker.status().await.requests;
    let long = request(7, 4, 4, 3000);
    requests.send(long.clone()).await.expect("the stream is open");
    eventually("it is under way", async || worker.status().await.requests == before + 1).await;
    drop((requests, replies));
    let (requests, mut replies) = worker.stream().await;
    let mut piece = answer(&requests, &mut replies, &long).await;
    let mut bytes = piece.outputs.len();
    while piece.more {
        piece = replies.message().await.expect("no error").expect("the rest of the reply");
        bytes += piece.outputs.len();
    }
    assert_eq!((piece.fault(), bytes), (ComputeFault::None, 3000 * WIDTH * 4));
    assert_eq!(worker.status().await.token_experts, 3 + 1 + 2 * 5 + 3000);
}

/// What a [`Meddler`] does to the messages of a stream.
#[derive(Clone, Copy, Debug)]
struct Mischief {
    /// How often each request is said to the worker, which answers each time.
    said: usize,
    /// By how many replies the second and later answers come late, out of order.
    late_by: usize,
    /// After how many replies the stream breaks instead of giving the next one; 0 for never.
    breaks_after: usize,
}

/// Stands between the dispatcher and a real worker.
struct Meddler {
    worker: ExpertServiceClient<Channel>,
    mischief: Mischief,
}

#[tonic::async_trait]
impl ExpertService for Meddler {
    type ComputeStream = ReceiverStream<Result<ComputeReply, Status>>;

    async fn load_shard(
        &self,
        request: Request<Streaming<ShardChunk>>,
    ) -> Result<Response<ShardReceipt>, Status> {
        let mut chunks = request.into_inner();
        let mut all = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            all.push(chunk);
        }
        self.worker.clone().load_shard(tokio_stream::iter(all)).await
    }

    async fn compute(
        &self,
        request: Request<Streaming<ComputeRequest>>,
    ) -> Result<Response<Self::ComputeStream>, Status> {
        let Mischief { said, late_by, breaks_after } = self.mischief;
        let mut requests = request.into_inner();
        let (to_worker, outbox) = mpsc::channel(64);
        let mut replies =
            self.worker.clone().compute(ReceiverStream::new(outbox)).await?.into_inner();
        let (to_dispatcher, outbox) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                for _ in 0..said {
                    if to_worker.send(request.clone()).await.is_err() {
                        return;
                    }
                }
            }
        });
        tokio::spawn(async move {
            let (mut last, mut count, mut held) = (0, 0, VecDeque::new());
            while let Ok(Some(reply)) = replies.message().await {
                if reply.sequence == last {
                    held.push_back(reply);
                    if held.len() <= late_by {
                        continue;
                    }
                    let late = held.pop_front().expect("pushed above");
                    if to_dispatcher.send(Ok(late)).await.is_err() {
                        return;
                    }
                    continue;
                }
                last = reply.sequence;
                count += 1;
                let breaks = breaks_after > 0 && count > breaks_after;
                let next = if breaks { Err(Status::unavailable("it breaks")) } else { Ok(reply) };
                if to_dispatcher.send(next).await.is_err() || breaks {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outbox)))
    }

    async fn drop_shards(&self, _: Request<DropRequest>) -> Result<Response<DropReply>, Status> {
        Err(Status::unimplemented("it keeps what it has"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        self.worker.clone().status(StatusRequest {}).await
    }
}

/// A real worker on a Unix socket, and the address of a meddler before it.
async fn meddled(
    folder: &Path,
    node: usize,
    mischief: Mischief,
) -> (ExpertServiceClient<Channel>, String) {
    let path = folder.join(node.to_string());
    let listener = UnixListener::bind(&path).expect("a short path");
    let settings = Settings::new("127.0.0.1:0".parse::<std::net::SocketAddr>().expect("plain"));
    let incoming = UnixListenerStream::new(listener);
    tokio::spawn(serve_with_incoming(settings, incoming, std::future::pending()));
    let endpoint = nashflock::dispatch::endpoint(&format!("unix:{}", path.display()));
    let worker = ExpertServiceClient::new(endpoint.expect("an address").connect_lazy());
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let address = incoming.local_addr().expect("bound").to_string();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<ExpertServiceServer<Meddler>>().await;
    let meddler = ExpertServiceServer::new(Meddler { worker: worker.clone(), mischief });
    let server = Server::builder().add_service(health).add_service(meddler);
    tokio::spawn(server.serve_with_incoming(incoming));
    (worker, address)
}

/// Rounds over two meddled workers: the bits are right each time. Gives what the dispatcher counted,
/// and the pairs that were ordered, computed by the workers, and asked of these again.
async fn rounds(mischief: Mischief) -> (Served, u64, u64, u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut workers, mut addresses) = (Vec::new(), Vec::new());
    for node in 0..2 {
        let (worker, address) = meddled(folder.path(), node, mischief).await;
        workers.push(worker);
        addresses.push(address);
    }
    let placement = RoundRobin::deal(EXPERTS, 2, 1).expect("one replica fits");
    let settings = RemoteSettings { hedge_budget: 0.0, ..RemoteSettings::default() };
    let mut remote = Remote::connect(&addresses, settings).await.expect("they serve");
    remote.load(shards(placement)).await.expect("they fit");
    let mut pairs = 0;
    for seed in 0..ROUNDS {
        let orders = orders(placement, TOKENS, seed);
        let hidden = numbers(seed, TOKENS * WIDTH);
        let replies = remote.send(&orders, &hidden, WIDTH).await.expect("no node is lost");
        assert_eq!(bits(&orders, &replies), row_by_row(&orders, &hidden), "round {seed}");
        pairs += orders.nodes.iter().map(|order| order.pairs() as u64).sum::<u64>();
    }
    let served = remote.close().await;
    let (mut computed, mut duplicates) = (0, 0);
    for worker in &mut workers {
        let status = worker.status(StatusRequest {}).await.expect("it serves").into_inner();
        computed += status.token_experts;
        duplicates += status.duplicates;
    }
    (served, pairs, computed, duplicates)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_orders_and_late_repeated_answers_out_of_order_count_once() {
    let mischief = Mischief { said: 3, late_by: 5, breaks_after: 0 };
    let (served, pairs, computed, duplicates) = rounds(mischief).await;
    assert_eq!(computed, pairs, "each pair is computed once");
    assert_eq!(served.nodes.iter().map(|node| node.token_experts).sum::<u64>(), pairs);
    assert_eq!(duplicates, 2 * 2 * ROUNDS, "each order came three times");
    let faults = served.faults;
    // The last ones of each node may still be on their way.
    let range = 4 * ROUNDS - 4 * 8..=4 * ROUNDS;
    assert!(range.contains(&faults.duplicate_replies), "{faults:?}");
    assert_eq!((faults.lost, faults.late_replies, faults.redelivered), (0, 0, 0), "{faults:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broken_stream_swallowed_is_answered_again_on_the_next_and_not_computed_again() {
    let mischief = Mischief { said: 1, late_by: 0, breaks_after: 3 };
    let (served, pairs, computed, duplicates) = rounds(mischief).await;
    assert_eq!(computed, pairs, "each pair is computed once");
    let faults = served.faults;
    // Every fourth answer of each node is swallowed, and the one that comes again is the first of the next three.
    assert!(faults.redelivered >= 2 * (ROUNDS / 4 - 1), "{faults:?}");
    assert_eq!(duplicates, faults.redelivered, "the workers knew each");
    assert_eq!((faults.lost, faults.duplicate_replies, faults.rerouted_pairs), (0, 0, 0));
}

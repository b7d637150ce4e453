//! A worker that answers wrongly, well formed and with the right checksums, is found by comparing a share
//! of its answers with those of others.

use crate::nodes::{EXPERTS, WIDTH, bits, numbers, orders, row_by_row, shards};
use agents::{
    expert::Expert,
    ids::{ExpertId, LayerId, NodeId, StepId},
    orders::Orders,
};
use nashflock::dispatch::{
    Deadlines, Dispatch, Faults, Joined, JoinedSettings, Remote, RemoteSettings,
    placement::RoundRobin,
};
use nashflock::wire;
use nashflock::worker::{Join, Settings, compute, serve, serve_with_incoming};
use proto::{
    ComputeReply, ComputeRequest, DropReply, DropRequest, JoinRequest, ShardChunk, ShardReceipt,
    StatusReply, StatusRequest,
    expert_service_server::{ExpertService, ExpertServiceServer},
    membership_service_client::MembershipServiceClient,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Server, server::TcpIncoming};
use tonic::{Code, Request, Response, Status, Streaming};

const MESSAGE_BYTES_MAX: usize = 4 << 20;
const LIAR: NodeId = NodeId(1);
const LIAR_INCARNATION: u64 = 77;
const TOKENS: usize = 16;

type Experts = BTreeMap<(LayerId, ExpertId), Arc<Expert>>;

/// Computes as a worker does, and scales what it answers.
#[derive(Default)]
struct Liar(Arc<Mutex<Experts>>);

impl Liar {
    fn answer(&self, request: ComputeRequest) -> ComputeReply {
        let reply = wire::reply_to(&request);
        let work = wire::decode_order(request, MESSAGE_BYTES_MAX).expect("a valid order");
        let experts = self.0.lock().expect("not poisoned");
        let groups: Vec<_> = work
            .groups
            .iter()
            .map(|group| {
                let expert = experts[&(work.ticket.layer, group.expert)].clone();
                (expert, group.tokens.as_slice())
            })
            .collect();
        let outputs = compute::outputs(&groups, &work.hidden, work.width);
        let scaled = outputs.iter().map(|value| value * 1.01).collect();
        wire::encode_outputs(reply, scaled, work.width, 1).expect("finite").remove(0)
    }
}

#[tonic::async_trait]
impl ExpertService for Liar {
    type ComputeStream = ReceiverStream<Result<ComputeReply, Status>>;

    async fn load_shard(
        &self,
        request: Request<Streaming<ShardChunk>>,
    ) -> Result<Response<ShardReceipt>, Status> {
        let mut chunks = request.into_inner();
        let (mut header, mut bytes) = (None, Vec::new());
        while let Some(chunk) = chunks.message().await? {
            header = header.or(chunk.header);
            bytes.extend_from_slice(&chunk.payload);
        }
        let header = header.expect("the first chunk has it");
        let (layer, expert, _) = wire::decode_shard_header(&header).expect("valid");
        let shard = wire::decode_shard(&bytes).expect("an expert");
        self.0.lock().expect("not poisoned").insert((layer, expert), Arc::new(shard));
        Ok(Response::new(ShardReceipt {
            layer: header.layer,
            expert: header.expert,
            stored_bytes: header.total_bytes,
            blake3: header.blake3,
        }))
    }

    async fn compute(
        &self,
        request: Request<Streaming<ComputeRequest>>,
    ) -> Result<Response<Self::ComputeStream>, Status> {
        let mut requests = request.into_inner();
        let (replies, outbox) = mpsc::channel(4);
        let liar = Self(self.0.clone());
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if replies.send(Ok(liar.answer(request))).await.is_err() {
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
        let message_bytes_max = MESSAGE_BYTES_MAX as u64;
        let incarnation = LIAR_INCARNATION;
        Ok(Response::new(StatusReply { message_bytes_max, incarnation, ..StatusReply::default() }))
    }
}

fn listener() -> (TcpIncoming, String) {
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let address = incoming.local_addr().expect("bound").to_string();
    (incoming.with_nodelay(Some(true)), address)
}

/// Two workers and between them the liar.
async fn cluster() -> Vec<String> {
    let mut addresses = Vec::new();
    for node in 0..3 {
        let (incoming, address) = listener();
        if node == LIAR.index() {
            let (reporter, health) = tonic_health::server::health_reporter();
            reporter.set_serving::<ExpertServiceServer<Liar>>().await;
            let liar = ExpertServiceServer::new(Liar::default());
            let server = Server::builder().add_service(health).add_service(liar);
            tokio::spawn(server.serve_with_incoming(incoming));
        } else {
            let settings = Settings {
                threads: 1,
                ..Settings::new("127.0.0.1:0".parse::<std::net::SocketAddr>().expect("plain"))
            };
            tokio::spawn(serve_with_incoming(settings, incoming, std::future::pending()));
        }
        addresses.push(address);
    }
    addresses
}

fn placement() -> RoundRobin {
    RoundRobin::deal(EXPERTS, 3, 2).expect("two replicas on three nodes")
}

async fn connect(addresses: &[String], share: f64, seed: u64) -> Remote {
    let settings = RemoteSettings {
        deadlines: Deadlines::default(),
        hedge_budget: 0.0,
        spot_check_share: share,
        spot_check_seed: seed,
        ..RemoteSettings::default()
    };
    let mut remote = Remote::connect(addresses, settings).await.expect("all serve");
    remote.load(shards(placement())).await.expect("they fit");
    remote
}

/// Orders of one node.
fn orders_of(node: NodeId, step: u32) -> Orders {
    let mut orders = orders(placement(), TOKENS, 1);
    orders.step = StepId(step);
    orders.nodes.retain(|order| order.node == node);
    assert_eq!(orders.nodes.len(), 1, "node {node} has work");
    orders
}

async fn faults(remote: Remote) -> Faults {
    remote.close().await.faults
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_scales_its_answers_is_caught_by_the_geometric_law_and_not_without_checks() {
    const SHARE: f64 = 0.25;
    const SEEDS: u64 = 100;
    let addresses = cluster().await;
    let hidden = numbers(99, TOKENS * WIDTH);
    let mut rounds = Vec::new();
    for seed in 0..SEEDS {
        let mut remote = connect(&addresses, SHARE, seed).await;
        let mut step = 0;
        while remote.is_available(LIAR) {
            step += 1;
            assert!(step <= 100, "seed {seed}: never caught");
            let orders = orders_of(LIAR, step);
            let replies = remote.send(&orders, &hidden, WIDTH).await.expect("it goes on");
            let is_right = bits(&orders, &replies) == row_by_row(&orders, &hidden);
            assert_eq!(is_right, !remote.is_available(LIAR), "what is found is not combined");
        }
        // From now on others answer for it.
        let orders = orders_of(LIAR, step + 1);
        let replies = remote.send(&orders, &hidden, WIDTH).await.expect("it goes on");
        assert_eq!(bits(&orders, &replies), row_by_row(&orders, &hidden));
        let faults = faults(remote).await;
        assert_eq!((faults.quarantined, faults.lost), (1, 1));
        rounds.push(f64::from(step));
    }
    let mean = rounds.iter().sum::<f64>() / SEEDS as f64;
    let deviation = ((1.0 - SHARE) / SHARE.powi(2) / SEEDS as f64).sqrt();
    assert!((mean - 1.0 / SHARE).abs() <= 3.0 * deviation, "{mean} rounds of {}", 1.0 / SHARE);
    let at_once = rounds.iter().filter(|step| **step == 1.0).count() as f64 / SEEDS as f64;
    let deviation = (SHARE * (1.0 - SHARE) / SEEDS as f64).sqrt();
    assert!((at_once - SHARE).abs() <= 3.0 * deviation, "{at_once} in the first round");

    let mut remote = connect(&addresses, 0.0, 0).await;
    for step in 0..50 {
        let orders = orders_of(LIAR, step);
        let replies = remote.send(&orders, &hidden, WIDTH).await.expect("nobody notices");
        assert_ne!(bits(&orders, &replies), row_by_row(&orders, &hidden));
    }
    assert_eq!(faults(remote).await.quarantined, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liar_that_is_asked_as_a_witness_does_not_cost_the_honest_node_its_place() {
    let addresses = cluster().await;
    let hidden = numbers(99, TOKENS * WIDTH);
    let mut remote = connect(&addresses, 1.0, 3).await;
    for step in 0..20 {
        for node in [NodeId(0), NodeId(2)] {
            let orders = orders_of(node, step);
            let replies = remote.send(&orders, &hidden, WIDTH).await.expect("it goes on");
            assert_eq!(bits(&orders, &replies), row_by_row(&orders, &hidden));
        }
    }
    assert!(remote.is_available(NodeId(0)) && remote.is_available(NodeId(2)));
    let faults = faults(remote).await;
    assert_eq!((faults.quarantined, faults.lost), (1, 1), "{faults:?}");
    assert!(faults.spot_checks > 0 && faults.spot_checks_skipped > 0, "{faults:?}");
}

/// A worker that stays until the run is over.
fn honest(coordinator: &str) -> tokio::task::JoinHandle<()> {
    let join = Join {
        coordinator: coordinator.to_owned(),
        advertise: None,
        patience: Duration::from_secs(20),
    };
    let listen: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
    let settings =
        Settings { threads: 1, announce: false, join: Some(join), ..Settings::new(listen) };
    tokio::spawn(async move { serve(settings).await.expect("it stays to the end") })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_in_quarantine_does_not_get_a_seat_again_until_it_is_started_anew() {
    let listen = std::net::TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
    let listen = listen.expect("a free port");
    let (incoming, address) = listener();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<ExpertServiceServer<Liar>>().await;
    let liar = ExpertServiceServer::new(Liar::default());
    tokio::spawn(
        Server::builder().add_service(health).add_service(liar).serve_with_incoming(incoming),
    );
    let asks = move |incarnation| {
        let asked = JoinRequest {
            run_token: String::new(),
            address: address.clone(),
            shard_bytes_max: 1 << 30,
            incarnation,
        };
        async move {
            let endpoint = nashflock::dispatch::endpoint(&listen.to_string()).expect("an address");
            let mut client = MembershipServiceClient::new(endpoint.connect_lazy());
            loop {
                match client.join(asked.clone()).await {
                    // The run is not there yet.
                    Err(status) if status.code() == Code::Unavailable => {
                        sleep(Duration::from_millis(20)).await;
                    }
                    answer => return answer.map(|_| ()),
                }
            }
        }
    };
    let joins = tokio::spawn(asks(LIAR_INCARNATION));
    let workers = [(); 2].map(|()| honest(&listen.to_string()));
    let remote = RemoteSettings {
        hedge_budget: 0.0,
        spot_check_share: 1.0,
        spot_check_seed: 1,
        ..RemoteSettings::default()
    };
    let settings = JoinedSettings {
        listen,
        seats: 3,
        min_workers: 3,
        // The liar renews nothing: it is caught before this runs out, and the end waits for it no longer.
        lease: Duration::from_secs(6),
        join_wait: Duration::from_secs(20),
        own_worker: None,
        remote,
    };
    let mut joined = Joined::start(settings).await.expect("three join");
    joins.await.expect("it does not panic").expect("nobody knows it yet");
    joined.load(shards(placement())).await.expect("they fit");
    let hidden = numbers(99, TOKENS * WIDTH);
    // All experts are asked for, so the liar is, too, and its seat is taken from it after the round.
    for step in 0..2 {
        let orders = Orders { step: StepId(step), ..orders(placement(), TOKENS, 1) };
        let replies = joined.send(&orders, &hidden, WIDTH).await.expect("others answer");
        assert_eq!(bits(&orders, &replies), row_by_row(&orders, &hidden));
    }
    let refused = asks(LIAR_INCARNATION).await.expect_err("it is known now");
    assert_eq!(refused.code(), Code::Aborted, "{refused}");
    assert!(refused.message().contains("start it anew"), "{refused}");
    asks(LIAR_INCARNATION + 1).await.expect("it was started anew, and has a seat until it lies");
    let served = joined.close().await;
    assert_eq!(served.faults.quarantined, 1);
    let membership = served.membership.expect("nodes come and go");
    assert_eq!((membership.refused, membership.dropped), (1, 1), "{membership:?}");
    for worker in workers {
        worker.await.expect("it hears that the run is over");
    }
}

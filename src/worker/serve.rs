//! The gRPC service of one node.

use super::{
    Figures, Settings, Standing, compute,
    once::{Admission, Answer, Once},
    store::{Reservation, Store},
};
use crate::measure::Clock;
use crate::transport::Peer;
use crate::wire::{self, NodeWork, WireError};
use agents::ids::{ExpertId, LayerId};
use agents::orders::weighted_sums;
use proto::{
    ComputeFault, ComputeReply, ComputeRequest, DropReply, DropRequest, ShardChunk, ShardReceipt,
    StatusReply, StatusRequest, expert_service_server::ExpertService,
};
use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
    vec,
};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

/// Streams and uploads at once, of all coordinators together. Each holds at most one message.
const CALLS_MAX: usize = 64;

/// Bytes of hidden states, and bytes of weights times their tokens, up to which an order is computed where it
/// arrives, in some microseconds. The kernels do not ask for other threads below this either.
const SMALL_HIDDEN_BYTES: usize = 1 << 17;
const SMALL_WEIGHT_BYTES: usize = 1 << 15;

/// Outputs of answered orders that are kept for those that come again; in a run without faults those of
/// one round.
const KEPT_REPLY_BYTES_MAX: usize = 64 << 20;

/// How long an upload may pause between chunks before its reserved room is given back.
const CHUNK_WAIT: Duration = Duration::from_secs(30);

/// The service; a handle to what all its calls share.
pub(super) struct Node(pub(super) Arc<Shared>);

/// What all calls share.
pub(super) struct Shared {
    pub(super) message_bytes_max: usize,
    store: Store,
    pool: rayon::ThreadPool,
    calls: watch::Sender<usize>,
    draining: watch::Sender<bool>,
    once: Once,
    figures: Arc<Figures>,
    /// Another for each start of a node.
    incarnation: u64,
}

/// One call under way; a drain waits for its end.
struct Call(Arc<Shared>);

/// One stream: a reply to each request, in their order, until the coordinator ends the stream or the
/// node drains. A request that has arrived is answered even then. The transport takes one request
/// after the other from here, in its own task: waking another for each step would cost more than a
/// small step does. The call ends when the transport has taken the last reply.
pub(super) struct Replies {
    requests: Streaming<ComputeRequest>,
    /// The reply to the last request, where that computes.
    computing: Option<oneshot::Receiver<Answer>>,
    /// What is left of it after that.
    pieces: vec::IntoIter<ComputeReply>,
    drain: Pin<Box<dyn Future<Output = ()> + Send>>,
    has_ended: bool,
    peer: Option<Peer>,
    call: Call,
}

impl Shared {
    pub(super) fn new(pool: rayon::ThreadPool, settings: &Settings, incarnation: u64) -> Self {
        Self {
            message_bytes_max: settings.message_bytes_max,
            store: Store::new(settings.shard_bytes_max),
            pool,
            calls: watch::Sender::new(0),
            draining: watch::Sender::new(false),
            once: Once::new(KEPT_REPLY_BYTES_MAX),
            figures: Arc::clone(&settings.figures),
            incarnation,
        }
    }

    /// Refuses new calls and waits for those under way.
    pub(super) async fn drain(&self, patience: Duration) {
        self.draining.send_replace(true);
        let mut calls = self.calls.subscribe();
        if timeout(patience, calls.wait_for(|calls| *calls == 0)).await.is_err() {
            tracing::warn!("{} calls did not end in time", *self.calls.borrow());
        }
    }

    /// How it stands now.
    pub(super) fn standing(&self) -> Standing {
        let (shards, shard_bytes) = self.store.usage();
        Standing {
            shards,
            shard_bytes,
            shard_bytes_max: self.store.bytes_max(),
            calls: *self.calls.borrow(),
            is_draining: *self.draining.borrow(),
        }
    }

    fn enter(self: &Arc<Self>) -> Result<Call, Status> {
        if *self.draining.borrow() {
            self.figures.call_refused(true);
            return Err(draining());
        }
        let entered = self.calls.send_if_modified(|calls| {
            let room = *calls < CALLS_MAX;
            *calls += usize::from(room);
            room
        });
        if !entered {
            self.figures.call_refused(false);
            let sentence = format!("this node serves at most {CALLS_MAX} calls at once");
            return Err(Status::resource_exhausted(sentence));
        }
        Ok(Call(self.clone()))
    }

    /// Whether an order is answered sooner than a compute thread wakes up.
    fn is_small(&self, request: &ComputeRequest) -> bool {
        let layer = LayerId(request.layer);
        let cost = |group: &proto::ExpertGroup| {
            let bytes = self.store.bytes(layer, ExpertId(group.expert)).unwrap_or(0);
            bytes.saturating_mul(group.rows.len())
        };
        request.hidden.len() <= SMALL_HIDDEN_BYTES
            && request.groups.iter().map(cost).fold(0, usize::saturating_add) <= SMALL_WEIGHT_BYTES
    }

    /// Runs on a compute thread, or for a small order on the stream's. The time that `request`, whose header
    /// was checked, waited for it counts against its deadline.
    fn answer(&self, request: ComputeRequest, since_arrival: Clock) -> Answer {
        let mut reply = wire::reply_to(&request);
        let work = wire::decode_checked_order(request, self.message_bytes_max);
        let computed = work.and_then(|work| {
            let (outputs, compute_ns) = self.compute(&work, since_arrival)?;
            if work.gates.is_some() {
                reply.summed_pairs = u32::try_from(work.pairs).unwrap_or(u32::MAX);
            }
            wire::encode_outputs(reply.clone(), outputs, work.width, compute_ns)
        });
        computed.unwrap_or_else(|error| self.refusal(reply, error))
    }

    fn compute(&self, work: &NodeWork, since_arrival: Clock) -> Result<(Vec<f32>, u64), WireError> {
        let waited = Duration::from_nanos(since_arrival.now_ns());
        if waited >= work.deadline {
            let (had, waited) = (work.deadline.as_millis(), waited.as_millis());
            let detail = format!("the request had {had} ms left and waited {waited} ms");
            return Err(WireError::new(ComputeFault::Expired, detail));
        }
        let mut groups = Vec::with_capacity(work.groups.len());
        let layer = work.ticket.layer;
        for group in &work.groups {
            let expert = self.store.get(layer, group.expert).ok_or_else(|| {
                let detail = format!("expert {} of layer {layer} is not here", group.expert);
                WireError::new(ComputeFault::UnknownExpert, detail)
            })?;
            wire::check_width(&expert, work.width)?;
            groups.push((expert, group.tokens.as_slice()));
        }
        let clock = Clock::start();
        let mut outputs = compute::outputs(&groups, &work.hidden, work.width);
        if let Some(gates) = &work.gates {
            let rows = work.hidden.len() / 4 / work.width;
            let gates = gates.iter().map(Vec::as_slice);
            let groups = groups.iter().map(|(_, tokens)| *tokens).zip(gates);
            outputs = weighted_sums(groups, &outputs, rows, work.width);
        }
        let compute_ns = clock.now_ns();
        self.figures.token_experts.fetch_add(work.pairs as u64, Relaxed);
        self.figures.computing.count(compute_ns);
        Ok((outputs, compute_ns))
    }

    /// A reply that says why there is none.
    fn refusal(&self, reply: ComputeReply, error: WireError) -> Answer {
        tracing::warn!("step {}, layer {}: {error}", reply.step, reply.layer);
        self.figures.order_refused(error.fault);
        vec![wire::encode_fault(reply, error)]
    }

    /// Receives a shard, checks and stores it.
    async fn take_shard(&self, mut chunks: Streaming<ShardChunk>) -> Result<ShardReceipt, Status> {
        let first = next_chunk(&mut chunks).await?;
        let first = first.ok_or_else(|| Status::invalid_argument("an upload without chunks"))?;
        let Some(header) = first.header else {
            return Err(Status::invalid_argument("the first chunk of an upload needs the header"));
        };
        let (layer, expert, total_bytes) = wire::decode_shard_header(&header)
            .map_err(|error| Status::invalid_argument(error.detail))?;
        let room = self
            .store
            .reserve(layer, expert, total_bytes)
            .map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let bytes = receive(first.payload.into(), &mut chunks, total_bytes).await?;
        let expected = header.blake3.clone();
        let decode = move || {
            let found = blake3::hash(&bytes);
            if found.as_bytes()[..] != expected[..] {
                return Err(Status::data_loss(format!(
                    "the shard arrived damaged: BLAKE3 {found} is not what its header says"
                )));
            }
            wire::decode_shard(&bytes).map_err(|error| Status::invalid_argument(error.detail))
        };
        let shard = if total_bytes <= wire::SMALL_SHARD_BYTES {
            decode()?
        } else {
            let decoded = tokio::task::spawn_blocking(decode).await;
            decoded.map_err(|_| Status::internal("decoding the shard panicked"))??
        };
        Reservation::store(room, shard);
        tracing::debug!("stored expert {expert} of layer {layer}, {total_bytes} bytes");
        Ok(ShardReceipt {
            layer: header.layer,
            expert: header.expert,
            stored_bytes: header.total_bytes,
            blake3: header.blake3,
        })
    }
}

/// An order that is computed now. Where that panics, the order is as if it had not come.
struct UnderWay {
    shared: Arc<Shared>,
    run: u64,
    sequence: u64,
    is_answered: bool,
}

impl UnderWay {
    fn new(shared: &Arc<Shared>, request: &ComputeRequest) -> Self {
        let ComputeRequest { run, sequence, .. } = *request;
        Self { shared: Arc::clone(shared), run, sequence, is_answered: false }
    }

    fn answer(mut self, request: ComputeRequest, since_arrival: Clock) -> Answer {
        let reply = self.shared.answer(request, since_arrival);
        if self.run != ANONYMOUS {
            self.shared.once.answered(self.run, self.sequence, &reply);
        }
        self.is_answered = true;
        reply
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if !self.is_answered {
            self.shared.once.dropped(self.run, self.sequence);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.calls.send_modify(|calls| *calls -= 1);
    }
}

impl Replies {
    fn new(requests: Streaming<ComputeRequest>, peer: Option<Peer>, call: Call) -> Self {
        let mut draining = call.0.draining.subscribe();
        let drain = Box::pin(async move {
            // An error means that the node is gone: then this is, too.
            let _ = draining.wait_for(|draining| *draining).await;
        });
        Self {
            requests,
            computing: None,
            pieces: Answer::new().into_iter(),
            drain,
            has_ended: false,
            peer,
            call,
        }
    }

    fn end(&mut self, status: Status) -> Poll<Option<Result<ComputeReply, Status>>> {
        self.has_ended = true;
        Poll::Ready(Some(Err(status)))
    }
}

impl Stream for Replies {
    type Item = Result<ComputeReply, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(piece) = this.pieces.next() {
                return Poll::Ready(Some(Ok(piece)));
            }
            if let Some(computing) = &mut this.computing {
                let answer = ready!(Pin::new(computing).poll(cx));
                this.computing = None;
                let Ok(answer) = answer else {
                    let panicked = "the computation panicked: see the node's log";
                    return this.end(Status::internal(panicked));
                };
                this.pieces = answer.into_iter();
                continue;
            }
            if this.has_ended {
                return Poll::Ready(None);
            }
            match Pin::new(&mut this.requests).poll_next(cx) {
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(status))) => {
                    // A message over the limit that it was told.
                    if status.code() == Code::OutOfRange {
                        this.peer.iter().for_each(Peer::offends);
                    }
                    return this.end(status);
                }
                Poll::Ready(Some(Ok(request))) => match take(&this.call.0, request) {
                    Taken::Answered(answer) => this.pieces = answer.into_iter(),
                    Taken::Computing(computing) => this.computing = Some(computing),
                },
                Poll::Pending => {
                    ready!(this.drain.as_mut().poll(cx));
                    return this.end(draining());
                }
            }
        }
    }
}

#[tonic::async_trait]
impl ExpertService for Node {
    type ComputeStream = Replies;

    async fn load_shard(
        &self,
        request: Request<Streaming<ShardChunk>>,
    ) -> Result<Response<ShardReceipt>, Status> {
        let call = self.0.enter()?;
        let figures = &self.0.figures;
        let stored = self.0.take_shard(request.into_inner()).await;
        drop(call);
        let receipt = stored.inspect_err(|status| figures.upload_failed(status.code()))?;
        figures.shards_loaded.fetch_add(1, Relaxed);
        figures.shard_bytes_loaded.fetch_add(receipt.stored_bytes, Relaxed);
        Ok(Response::new(receipt))
    }

    async fn compute(
        &self,
        request: Request<Streaming<ComputeRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let call = self.0.enter()?;
        let peer = request.extensions().get::<Peer>().cloned();
        Ok(Response::new(Replies::new(request.into_inner(), peer, call)))
    }

    async fn drop_shards(
        &self,
        request: Request<DropRequest>,
    ) -> Result<Response<DropReply>, Status> {
        let shards = request.into_inner().shards;
        let is_here = |shard: &&proto::ShardName| {
            self.0.store.remove(LayerId(shard.layer), ExpertId(shard.expert))
        };
        let dropped = shards.iter().filter(is_here).count();
        self.0.figures.shards_dropped.fetch_add(dropped as u64, Relaxed);
        tracing::debug!("dropped {dropped} of {} shards", shards.len());
        Ok(Response::new(DropReply { dropped: u32::try_from(dropped).unwrap_or(u32::MAX) }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let shared = &self.0;
        let Standing { shards, shard_bytes, shard_bytes_max, calls, .. } = shared.standing();
        let figures = &shared.figures;
        Ok(Response::new(StatusReply {
            shards: u32::try_from(shards).unwrap_or(u32::MAX),
            shard_bytes: shard_bytes as u64,
            shard_bytes_max: shard_bytes_max as u64,
            message_bytes_max: shared.message_bytes_max as u64,
            requests: figures.orders.load(Relaxed),
            token_experts: figures.token_experts.load(Relaxed),
            compute_ns: figures.computing.sum_ns(),
            calls: u32::try_from(calls).unwrap_or(u32::MAX),
            duplicates: figures.duplicates.load(Relaxed),
            incarnation: shared.incarnation,
        }))
    }
}

fn draining() -> Status {
    Status::unavailable("this node is draining")
}

async fn next_chunk(chunks: &mut Streaming<ShardChunk>) -> Result<Option<ShardChunk>, Status> {
    let late = |_| Status::deadline_exceeded("the upload paused for too long");
    let chunk = timeout(CHUNK_WAIT, chunks.message()).await.map_err(late)??;
    match &chunk {
        Some(chunk) if chunk.payload.len() > wire::CHUNK_BYTES_MAX => {
            let sentence = format!("a chunk has at most {} bytes", wire::CHUNK_BYTES_MAX);
            Err(Status::invalid_argument(sentence))
        }
        _ => Ok(chunk),
    }
}

/// Collects `total_bytes`, for which the caller has made room.
async fn receive(
    first: Vec<u8>,
    chunks: &mut Streaming<ShardChunk>,
    total_bytes: usize,
) -> Result<Vec<u8>, Status> {
    let wrong = |bytes| {
        let sentence = format!("the header announces {total_bytes} bytes but {bytes} came");
        Status::invalid_argument(sentence)
    };
    let mut bytes = first;
    while let Some(chunk) = next_chunk(chunks).await? {
        if bytes.len() + chunk.payload.len() > total_bytes {
            return Err(wrong(bytes.len() + chunk.payload.len()));
        }
        bytes.extend_from_slice(&chunk.payload);
    }
    if bytes.len() == total_bytes { Ok(bytes) } else { Err(wrong(bytes.len())) }
}

/// A request that was taken from its stream.
enum Taken {
    Answered(Answer),
    Computing(oneshot::Receiver<Answer>),
}

/// The run of orders without identity: each is computed when it comes.
const ANONYMOUS: u64 = 0;

/// Answers a small request at once. Larger ones compute away from the async threads, which keep
/// answering health and keepalive. What has come before is not computed again.
fn take(shared: &Arc<Shared>, mut request: ComputeRequest) -> Taken {
    let since_arrival = Clock::start();
    shared.figures.orders.fetch_add(1, Relaxed);
    if let Err(error) = wire::check_header(&mut request) {
        return Taken::Answered(shared.refusal(wire::reply_to(&request), error));
    }
    if request.run != ANONYMOUS {
        let admission = shared.once.admit(&request);
        if !matches!(admission, Admission::Compute) {
            shared.figures.duplicates.fetch_add(1, Relaxed);
        }
        match admission {
            Admission::Compute => {}
            Admission::Answered(reply) => return Taken::Answered(reply),
            Admission::UnderWay(reply) => return Taken::Computing(reply),
            Admission::Refused(error) => {
                return Taken::Answered(shared.refusal(wire::reply_to(&request), error));
            }
        }
    }
    let under_way = UnderWay::new(shared, &request);
    if shared.is_small(&request) {
        return Taken::Answered(under_way.answer(request, since_arrival));
    }
    let (done, reply) = oneshot::channel();
    shared.pool.spawn(move || {
        // An error means that the stream ended meanwhile.
        let _ = done.send(under_way.answer(request, since_arrival));
    });
    Taken::Computing(reply)
}

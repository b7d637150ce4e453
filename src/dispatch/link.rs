//! The connection to one node: wire types only, no core types.

use crate::{
    transport::{Access, Calls},
    wire::REPLY_HEADER_BYTES_MAX,
};
use bytes::Bytes;
use proto::{
    ComputeReply, ComputeRequest, DropRequest, ShardChunk, ShardName, StatusReply, StatusRequest,
    expert_service_client::ExpertServiceClient,
};
use std::{
    collections::BTreeMap,
    error::Error as _,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_stream::{Stream as _, wrappers::ReceiverStream};
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// Pause between two looks at a node that is starting.
const HEALTH_PAUSE: Duration = Duration::from_millis(20);

/// Requests that wait on a stream for the node to take them: those of hedges and of rounds that went
/// on without it.
const REQUESTS_MAX: usize = 4;
/// The same on a stream that took the place of another, which has to take all that is awaited at once.
const REOPENED_REQUESTS_MAX: usize = 64;

/// How long a node has to take up a stream that broke, before it is lost.
const REOPEN_WAIT: Duration = Duration::from_millis(500);

/// How long a node may take. Every call has one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Until a node is reached and ready.
    pub start: Duration,
    /// One shard upload.
    pub load: Duration,
    /// One order, from sending to its reply.
    pub compute: Duration,
}

impl Default for Deadlines {
    /// 20 s to start, 60 s a shard, 30 s an order.
    fn default() -> Self {
        let [start, load, compute] = [20, 60, 30].map(Duration::from_secs);
        Self { start, load, compute }
    }
}

/// Why a node did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LinkError {
    Lost(String),
    Timeout {
        deadline_ms: u64,
    },
    /// It has not taken earlier requests yet.
    Busy,
    Refused(String),
    Bad(String),
}

/// The channel for uploads.
pub(super) type Control = ExpertServiceClient<Calls>;

/// One node: a channel for control and, so that bulk data never delays it, others for the streams.
#[derive(Debug)]
pub(super) struct Link {
    control: Control,
    /// At least one.
    streams: Vec<DataStream>,
    /// The node's limit.
    pub(super) message_bytes_max: usize,
    /// What the node called its start.
    incarnation: u64,
    /// Requests that were sent again because a stream broke, since this was last taken.
    redelivered: u64,
}

/// Orders to a node and its replies, on a connection of their own.
#[derive(Debug)]
struct DataStream {
    channel: Calls,
    ends: Ends,
    /// Requests that are awaited, by sequence.
    open: BTreeMap<u64, ComputeRequest>,
    /// What broke the stream, and the stream that is to take its place.
    reopening: Option<(LinkError, JoinHandle<Result<Ends, LinkError>>)>,
    /// Whether the node answered on this stream, or it is the first one.
    has_answered: bool,
}

/// The two ends of a stream that are here.
#[derive(Debug)]
struct Ends {
    requests: mpsc::Sender<ComputeRequest>,
    replies: Streaming<ComputeReply>,
}

impl Link {
    /// Waits until the node is ready and opens a stream on each data channel.
    pub(super) async fn open(
        control: Channel,
        data: Vec<Channel>,
        access: &Access,
        deadline: Duration,
    ) -> Result<Self, LinkError> {
        assert!(!data.is_empty(), "orders need a channel");
        let at = Instant::now() + deadline;
        let control = access.calls(control);
        wait_until_serving(control.clone(), at, deadline).await?;
        let mut control = ExpertServiceClient::new(control);
        let late = |_| LinkError::Timeout { deadline_ms: millis(deadline) };
        let status: StatusReply =
            timeout_at(at, control.status(StatusRequest {})).await.map_err(late)??.into_inner();
        let message_bytes_max = usize::try_from(status.message_bytes_max)
            .map_err(|_| LinkError::Bad("its message limit exceeds the address space".into()))?;
        let mut streams = Vec::with_capacity(data.len());
        for channel in data {
            let channel = access.calls(channel);
            let client = data_client(channel.clone(), message_bytes_max);
            let ends = timeout_at(at, Ends::open(client, REQUESTS_MAX)).await.map_err(late)??;
            let (open, reopening, has_answered) = (BTreeMap::new(), None, true);
            streams.push(DataStream { channel, ends, open, reopening, has_answered });
        }
        let incarnation = status.incarnation;
        Ok(Self { control, streams, message_bytes_max, incarnation, redelivered: 0 })
    }

    /// What the node called its start.
    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// A handle for uploads, which may run beside other nodes' uploads.
    pub(super) fn control(&self) -> Control {
        self.control.clone()
    }

    /// Puts a request on the stream with the fewest that are awaited, without waiting. It is sent again
    /// should the stream break, until a request says that it is not awaited any more.
    ///
    /// # Errors
    /// [`LinkError::Busy`] where the node has taken none of the last [`REQUESTS_MAX`] of it.
    pub(super) fn post(&mut self, request: ComputeRequest) -> Result<(), LinkError> {
        for stream in &mut self.streams {
            // What is awaited comes last.
            while let Some(given_up) = stream.open.first_entry()
                && *given_up.key() < request.awaited_from
            {
                given_up.remove();
            }
        }
        let stream = self.streams.iter_mut().min_by_key(|stream| stream.open.len());
        let stream = stream.expect("a link has a stream");
        if stream.reopening.is_none() {
            match stream.ends.requests.try_send(request.clone()) {
                Err(TrySendError::Full(_)) => return Err(LinkError::Busy),
                // A closed stream is no error here: its cause is what the stream of replies says next.
                Ok(()) | Err(TrySendError::Closed(_)) => {}
            }
        }
        stream.open.insert(request.sequence, request);
        Ok(())
    }

    /// The next piece of a reply, whichever request it answers. A stream that broke is opened anew once, and what
    /// is awaited sent again on it, unless the node is `given_up`.
    pub(super) fn poll_reply(
        &mut self,
        cx: &mut Context<'_>,
        given_up: bool,
    ) -> Poll<Result<ComputeReply, LinkError>> {
        let Self { streams, message_bytes_max, incarnation, redelivered, .. } = self;
        for stream in streams {
            while let Poll::Ready(event) = stream.poll(cx, redelivered) {
                match event {
                    Err(LinkError::Lost(_)) if !given_up && stream.has_answered => {
                        let channel = stream.channel.clone();
                        let again = reopen(channel, *message_bytes_max, *incarnation);
                        let cause = event.expect_err("matched above");
                        stream.reopening = Some((cause, tokio::spawn(again)));
                        stream.has_answered = false;
                    }
                    event => return Poll::Ready(event),
                }
            }
        }
        Poll::Pending
    }

    /// How many requests were sent again since this was last asked.
    pub(super) fn take_redelivered(&mut self) -> u64 {
        mem::take(&mut self.redelivered)
    }
}

impl DataStream {
    /// The next piece on this stream, or why there will be none.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        redelivered: &mut u64,
    ) -> Poll<Result<ComputeReply, LinkError>> {
        if let Some((cause, reopening)) = &mut self.reopening {
            let ends = ready!(Pin::new(reopening).poll(cx)).expect("opening a stream cannot panic");
            let cause = cause.clone();
            self.reopening = None;
            match ends {
                Err(error) => {
                    tracing::debug!("a stream cannot be opened anew: {error:?}");
                    return Poll::Ready(Err(cause));
                }
                Ok(ends) => self.ends = ends,
            }
            *redelivered += self.open.len() as u64;
            for request in self.open.values() {
                // One that finds no room is late, and asked of others.
                let _ = self.ends.requests.try_send(request.clone());
            }
        }
        Poll::Ready(match ready!(Pin::new(&mut self.ends.replies).poll_next(cx)) {
            Some(Ok(piece)) => {
                self.has_answered = true;
                if !piece.more {
                    self.open.remove(&piece.sequence);
                }
                Ok(piece)
            }
            Some(Err(status)) => Err(status.into()),
            None => Err(LinkError::Lost("it ended the stream".into())),
        })
    }
}

impl Ends {
    async fn open(
        mut client: ExpertServiceClient<Calls>,
        capacity: usize,
    ) -> Result<Self, LinkError> {
        let (requests, outbox) = mpsc::channel(capacity);
        let replies = client.compute(ReceiverStream::new(outbox)).await?.into_inner();
        Ok(Self { requests, replies })
    }
}

fn data_client(channel: Calls, message_bytes_max: usize) -> ExpertServiceClient<Calls> {
    let reply_bytes_max = message_bytes_max.saturating_add(REPLY_HEADER_BYTES_MAX);
    ExpertServiceClient::new(channel).max_decoding_message_size(reply_bytes_max)
}

/// Another stream to the same node, if it is that still.
async fn reopen(
    channel: Calls,
    message_bytes_max: usize,
    incarnation: u64,
) -> Result<Ends, LinkError> {
    let again = async {
        let mut client = data_client(channel, message_bytes_max);
        // The stream first: if it is the same node that answers after that, it was the same before.
        let ends = Ends::open(client.clone(), REOPENED_REQUESTS_MAX).await?;
        if client.status(StatusRequest {}).await?.into_inner().incarnation != incarnation {
            return Err(LinkError::Lost("it was started anew, without what it held".into()));
        }
        Ok(ends)
    };
    let late = |_| LinkError::Timeout { deadline_ms: millis(REOPEN_WAIT) };
    timeout(REOPEN_WAIT, again).await.map_err(late)?
}

/// Uploads one shard and checks the receipt.
pub(super) async fn upload(
    control: &mut Control,
    chunks: Vec<ShardChunk>,
    blake3: &Bytes,
    deadline: Duration,
) -> Result<(), LinkError> {
    let late = |_| LinkError::Timeout { deadline_ms: millis(deadline) };
    let call = control.load_shard(tokio_stream::iter(chunks));
    let receipt = timeout(deadline, call).await.map_err(late)??.into_inner();
    if receipt.blake3 == *blake3 {
        Ok(())
    } else {
        Err(LinkError::Bad("its receipt names another shard than was sent".into()))
    }
}

/// Takes shards from a node.
pub(super) async fn drop_shards(
    control: &mut Control,
    shards: Vec<ShardName>,
    deadline: Duration,
) -> Result<(), LinkError> {
    let late = |_| LinkError::Timeout { deadline_ms: millis(deadline) };
    timeout(deadline, control.drop_shards(DropRequest { shards })).await.map_err(late)??;
    Ok(())
}

impl From<Status> for LinkError {
    fn from(status: Status) -> Self {
        match status.code() {
            // A broken transport has several codes, depending on what was under way.
            Code::Unknown | Code::Unavailable | Code::Cancelled | Code::Internal => {
                Self::Lost(with_causes(&status))
            }
            _ => Self::Refused(status.message().to_owned()),
        }
    }
}

pub(super) fn millis(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)
}

/// The sentence of a status, with what caused it: "transport error" alone helps nobody.
fn with_causes(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let sentence = error.to_string();
        if !text.contains(&sentence) {
            text = format!("{text}: {sentence}");
        }
        cause = error.source();
    }
    text
}

async fn wait_until_serving(
    control: Calls,
    at: Instant,
    deadline: Duration,
) -> Result<(), LinkError> {
    let mut health = HealthClient::new(control);
    let not_ready = |found| {
        let waited_ms = millis(deadline);
        LinkError::Lost(format!("it was not ready within {waited_ms} ms: {found}"))
    };
    let mut earlier = None;
    loop {
        let request = HealthCheckRequest { service: String::new() };
        let found = match timeout_at(at, health.check(request)).await {
            // The look that time cuts short says less than the one before it.
            Err(_) => {
                let late = LinkError::Timeout { deadline_ms: millis(deadline) };
                return Err(earlier.map_or(late, not_ready));
            }
            Ok(Ok(reply)) if reply.get_ref().status() == ServingStatus::Serving => return Ok(()),
            Ok(Ok(reply)) => format!("its health is {}", reply.get_ref().status().as_str_name()),
            Ok(Err(status)) => with_causes(&status),
        };
        if at.saturating_duration_since(Instant::now()) < HEALTH_PAUSE {
            return Err(not_ready(found));
        }
        earlier = Some(found);
        sleep(HEALTH_PAUSE).await;
    }
}

//! The two ends of a measurement: plain sockets as the control, and a worker process with a client.

#![allow(dead_code, reason = "each benchmark uses a part")]

use crate::shared::Failure;
use crate::shared::runs::{self, Running};
use agents::expert::{BitWidth, Expert, ExpertShape};
use agents::ids::{ExpertId, LayerId, NodeId, StepId, TokenId};
use agents::orders::{ExpertGroup, NodeOrder};
use nashflock::wire;
use proto::expert_service_client::ExpertServiceClient;
use proto::{ComputeReply, ComputeRequest};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// A row of 1 KiB.
pub(crate) const WIDTH: usize = 256;
pub(crate) const LAYER: LayerId = LayerId(0);

/// More than any message here.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// An expert that costs next to nothing.
pub(crate) fn small_expert() -> Expert {
    let shape = ExpertShape { width: WIDTH, hidden: 32 };
    let part: Vec<f32> = (0..WIDTH * 32_usize).map(|i| (i % 7) as f32 * 0.01 - 0.03).collect();
    Expert::quantize(shape, &part, &part, &part, BitWidth::Four, 32)
}

/// An order of `bytes` of hidden states, of which only the first row is asked for.
pub(crate) fn request(bytes: usize, sequence: u64) -> ComputeRequest {
    let hidden: Vec<f32> = (0..bytes / 4).map(|i| (i % 11) as f32 * 0.1 - 0.5).collect();
    let all = ExpertGroup {
        expert: ExpertId(0),
        tokens: (0..bytes / 4 / WIDTH).map(TokenId::from_index).collect(),
    };
    let order = NodeOrder { node: NodeId(0), groups: vec![all] };
    let ticket =
        wire::Ticket { step: StepId(0), layer: LAYER, sequence, ..wire::Ticket::default() };
    let deadline = Duration::from_secs(60);
    let mut request =
        wire::encode_order(ticket, &order, &hidden, WIDTH, deadline, MESSAGE_BYTES_MAX)
            .expect("it is valid");
    request.groups[0].rows.truncate(1);
    request
}

/// A child process that says where it listens; killed when dropped.
pub(crate) struct Process {
    child: Running,
    /// Where it listens.
    pub(crate) address: String,
}

impl Process {
    /// Starts a program that prints where it listens as `{"listening":"ADDRESS"}`.
    pub(crate) fn start(command: &mut Command) -> Result<Self, Failure> {
        let mut child = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("piped above")?).read_line(&mut line)?;
        let said: serde_json::Value = serde_json::from_str(&line)?;
        let address = said["listening"].as_str().ok_or("no address")?.to_owned();
        Ok(Self { child, address })
    }

    /// Ends its standard input and waits, so that it ends by itself.
    pub(crate) fn end(mut self) -> Result<(), Failure> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("it ended with {status}").into()) }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

/// A worker of one compute thread.
pub(crate) fn worker(listen: &str, preload: Option<&Path>) -> Result<Process, Failure> {
    let mut command = runs::nashflock();
    command.args(["worker", "--lifeline", "--threads", "1", "--listen", listen]);
    if let Some(library) = preload {
        command.env("LD_PRELOAD", library);
    }
    Process::start(&mut command)
}

/// A stream to a worker that holds the small expert.
pub(crate) struct Client {
    pub(crate) service: ExpertServiceClient<Channel>,
    requests: mpsc::Sender<ComputeRequest>,
    replies: Streaming<ComputeReply>,
}

impl Client {
    pub(crate) async fn connect(address: &str) -> Result<Self, Failure> {
        let channel = nashflock::dispatch::endpoint(address)?.connect().await?;
        let mut service =
            ExpertServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (chunks, _) = wire::encode_shard(LAYER, ExpertId(0), &small_expert());
        service.load_shard(tokio_stream::iter(chunks)).await?;
        let (requests, outbox) = mpsc::channel(16);
        let replies = service.compute(ReceiverStream::new(outbox)).await?.into_inner();
        Ok(Self { service, requests, replies })
    }

    pub(crate) async fn post(&self, request: ComputeRequest) -> Result<(), Failure> {
        Ok(self.requests.send(request).await?)
    }

    /// The next reply, which has to be good. Gives the time it was computed in, ns.
    pub(crate) async fn reply(&mut self) -> Result<u64, Failure> {
        let reply = self.replies.message().await?.ok_or("the stream ended")?;
        if reply.fault == 0 { Ok(reply.compute_ns) } else { Err(reply.detail.into()) }
    }

    /// The next reply, which has to say that the expert is not there.
    pub(crate) async fn refusal(&mut self) -> Result<(), Failure> {
        let reply = self.replies.message().await?.ok_or("the stream ended")?;
        let expected = reply.fault() == proto::ComputeFault::UnknownExpert;
        if expected { Ok(()) } else { Err(format!("{:?}: {}", reply.fault(), reply.detail).into()) }
    }

    /// The same request as a call of its own.
    pub(crate) async fn call(&mut self, request: ComputeRequest) -> Result<(), Failure> {
        let replies = self.service.compute(tokio_stream::iter([request])).await?;
        let mut replies = replies.into_inner();
        while let Some(reply) = replies.message().await? {
            assert_eq!(reply.fault, 0, "{}", reply.detail);
        }
        Ok(())
    }
}

/// A plain socket.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

pub(crate) async fn connect(address: &str) -> Result<Box<dyn Socket>, Failure> {
    Ok(match address.strip_prefix("unix:") {
        Some(path) => Box::new(UnixStream::connect(path).await?),
        None => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
    })
}

/// Serves one connection at `listen` and ends: for a header of two lengths, (message, answer) it
/// reads messages and answers each, until the connection ends.
pub(crate) async fn serve_raw(listen: &str) -> Result<(), Failure> {
    let announce = |address: String| println!("{}", serde_json::json!({ "listening": address }));
    let mut socket: Box<dyn Socket> = match listen.strip_prefix("unix:") {
        Some(path) => {
            let listener = UnixListener::bind(path)?;
            announce(listen.into());
            Box::new(listener.accept().await?.0)
        }
        None => {
            let listener = TcpListener::bind(listen).await?;
            announce(listener.local_addr()?.to_string());
            let stream = listener.accept().await?.0;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
    };
    loop {
        let Ok(message) = socket.read_u64().await else { return Ok(()) };
        let (answer, count) = (socket.read_u64().await?, socket.read_u64().await?);
        let mut buffer = vec![1; usize::try_from(message.max(answer))?];
        for _ in 0..count {
            socket.read_exact(&mut buffer[..usize::try_from(message)?]).await?;
            socket.write_all(&buffer[..usize::try_from(answer)?]).await?;
        }
    }
}

/// Announces to [`serve_raw`] `count` messages of so many bytes and what answers each.
pub(crate) async fn announce(
    socket: &mut dyn Socket,
    message: usize,
    answer: usize,
    count: usize,
) -> Result<(), Failure> {
    for number in [message, answer, count] {
        socket.write_u64(number as u64).await?;
    }
    Ok(())
}

//! Connections as they come: accepted, shaken hands with where TLS is asked for, and watched until they
//! have shown that they belong here.

use super::strangers::{Attendance, Crowd, Peer};
use super::{ConnectionLimits, Identity, Listen, Refusals, SocketFile};
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

/// How long a TLS handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// How long nothing is accepted after the system refused: out of files, out of memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The connections of one listener. It never ends and never fails: what the system refuses is tried
/// again, who is refused is logged.
pub struct Incoming {
    listener: Listener,
    tls: Option<TlsAcceptor>,
    crowd: Arc<Crowd>,
    handshakes: JoinSet<Option<Connection>>,
    pause: Option<Pin<Box<Sleep>>>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, #[allow(dead_code, reason = "removes the file")] SocketFile),
}

impl Incoming {
    /// Listens, and says where: with the port that the system chose. TCP connections use TLS where there
    /// is an identity.
    ///
    /// # Errors
    /// When the address is in use or not of this machine.
    pub(crate) fn bind(
        listen: &Listen,
        tls: Option<&Identity>,
        limits: ConnectionLimits,
        refusals: Arc<Refusals>,
    ) -> io::Result<(Self, Listen)> {
        let (listener, at) = match listen {
            Listen::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                let listener = TcpListener::from_std(listener)?;
                let at = Listen::Tcp(listener.local_addr()?);
                (Listener::Tcp(listener), at)
            }
            Listen::Unix(path) => {
                let listener = UnixListener::bind(path)?;
                (Listener::Unix(listener, SocketFile::new(path)), listen.clone())
            }
        };
        let tls = tls.filter(|_| matches!(listen, Listen::Tcp(_))).map(Identity::acceptor);
        let crowd = Crowd::new(limits, refusals);
        Ok((Self { listener, tls, crowd, handshakes: JoinSet::new(), pause: None }, at))
    }

    /// Who is connected.
    pub(crate) fn attendance(&self) -> Attendance {
        Attendance(Arc::clone(&self.crowd))
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Raw, Option<SocketAddr>)>> {
        Poll::Ready(match &self.listener {
            Listener::Tcp(listener) => {
                let (stream, from) = ready!(listener.poll_accept(cx))?;
                // It can only fail because the peer has gone.
                let _ = stream.set_nodelay(true);
                Ok((Raw::Tcp(stream), Some(from)))
            }
            Listener::Unix(listener, _) => {
                let (stream, _) = ready!(listener.poll_accept(cx))?;
                Ok((Raw::Unix(stream), None))
            }
        })
    }

    /// What becomes of an accepted connection: it is ready, is refused, or shakes hands.
    fn take(&mut self, raw: Raw, from: Option<SocketAddr>) -> Option<Connection> {
        let (peer, told) = self.crowd.enter(from)?;
        let probation = Probation { told, end: Box::pin(sleep(self.crowd.stranger_time())) };
        let watched = Watched { raw, peer: peer.clone(), probation: Some(probation) };
        let Some(tls) = self.tls.clone() else { return Some(Connection::Plain(watched)) };
        let crowd = self.crowd.clone();
        self.handshakes.spawn(async move {
            let why = match timeout(HANDSHAKE_MAX, tls.accept(watched)).await {
                Ok(Ok(stream)) => return Some(Connection::Tls(Box::new(stream))),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no handshake within {} s", HANDSHAKE_MAX.as_secs()),
            };
            crowd.refusals().note(format_args!("{peer}: TLS: {why}"));
            None
        });
        None
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            while let Poll::Ready(Some(shaken)) = this.handshakes.poll_join_next(cx) {
                if let Ok(Some(connection)) = shaken {
                    return Poll::Ready(Some(Ok(connection)));
                }
            }
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(cx));
                this.pause = None;
            }
            if let Some(wait) = this.crowd.wait() {
                this.pause = Some(Box::pin(sleep(wait)));
                continue;
            }
            match ready!(this.poll_accept(cx)) {
                Ok((raw, from)) => {
                    if let Some(connection) = this.take(raw, from) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) => {
                    this.crowd.refusals().note(format_args!("a connection: {error}"));
                    // Whoever hung up costs no pause.
                    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
                    let is_gone = [ConnectionAborted, ConnectionReset, Interrupted];
                    if !is_gone.contains(&error.kind()) {
                        this.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                    }
                }
            }
        }
    }
}

enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection that ends when it stays a stranger for too long.
pub struct Watched {
    raw: Raw,
    peer: Peer,
    /// None once it has been admitted.
    probation: Option<Probation>,
}

struct Probation {
    told: oneshot::Receiver<()>,
    end: Pin<Box<Sleep>>,
}

impl Watched {
    fn poll_probation(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.peer.is_barred() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let Some(probation) = &mut self.probation else { return Ok(()) };
        let is_over = Pin::new(&mut probation.told).poll(cx).is_ready()
            || probation.end.as_mut().poll(cx).is_ready();
        // Looked at last: being admitted ends the probation in the same way.
        if self.peer.is_known() {
            self.probation = None;
        } else if is_over {
            let refusals = self.peer.refusals();
            refusals.note(format_args!("{}: it showed no token of this run in time", self.peer));
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

/// A connection of a client.
pub enum Connection {
    /// Plain text.
    Plain(Watched),
    /// Behind TLS, the client's certificate checked.
    Tls(Box<TlsStream<Watched>>),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match self {
            Self::Plain(watched) => watched.peer.clone(),
            Self::Tls(stream) => stream.get_ref().0.peer.clone(),
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_probation(cx)?;
        match &mut self.raw {
            Raw::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Raw::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

/// Delegates writing to the variants of an enum.
macro_rules! write_through {
    ($type:ty, $self:ident => $inner:expr, $($variant:path),+) => {
        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                let $self = self.get_mut();
                match &mut $inner {
                    $($variant(stream) => Pin::new(stream).poll_write(cx, bytes),)+
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $self = self.get_mut();
                match &mut $inner {
                    $($variant(stream) => Pin::new(stream).poll_flush(cx),)+
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $self = self.get_mut();
                match &mut $inner {
                    $($variant(stream) => Pin::new(stream).poll_shutdown(cx),)+
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let $self = self.get_mut();
                match &mut $inner {
                    $($variant(stream) => Pin::new(stream).poll_write_vectored(cx, slices),)+
                }
            }

            fn is_write_vectored(&self) -> bool {
                let $self = self;
                match &$inner {
                    $($variant(stream) => stream.is_write_vectored(),)+
                }
            }
        }
    };
}

write_through!(Watched, this => this.raw, Raw::Tcp, Raw::Unix);

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

write_through!(Connection, this => *this, Connection::Plain, Connection::Tls);

#[cfg(test)]
mod tests {
    use super::Incoming;
    use crate::transport::{ConnectionLimits, Refusals};
    use std::io::ErrorKind;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio_stream::StreamExt as _;
    use tonic::transport::server::Connected as _;

    #[tokio::test]
    async fn a_stranger_is_cut_off_after_its_time_and_who_is_admitted_is_not() {
        let stranger_time = Duration::from_millis(50);
        let limits = ConnectionLimits { stranger_time, ..ConnectionLimits::new(4) };
        let listen = "127.0.0.1:0".parse().expect("an address");
        let bound = Incoming::bind(&listen, None, limits, Arc::new(Refusals::new()));
        let (mut incoming, at) = bound.expect("a free port");
        for is_admitted in [false, true] {
            let mut client = TcpStream::connect(at.to_string()).await.expect("it listens");
            let mut taken = incoming.next().await.expect("never ends").expect("never fails");
            if is_admitted {
                taken.connect_info().admit();
            }
            let later = tokio::spawn(async move {
                tokio::time::sleep(4 * stranger_time).await;
                // It may have been cut off.
                let _ = client.write_all(&[7]).await;
                client
            });
            let read = taken.read_u8().await.map_err(|error| error.kind());
            assert_eq!(read, if is_admitted { Ok(7) } else { Err(ErrorKind::TimedOut) });
            later.await.expect("it ends");
        }
    }
}

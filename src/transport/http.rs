//! A small HTTP/1.1 server for pages that somebody asks for now and then, on a thread of its own: what it costs
//! is never paid by the threads that answer orders.

#[cfg(feature = "prometheus")]
use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::{self, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

/// Connections at once; one more is closed at once.
const CONNECTIONS_MAX: u32 = 16;

/// How long a client may take for the head of a request, and may be idle between two.
const HEAD_MAX: Duration = Duration::from_secs(20);

/// How long a connection may last; a client that comes every few seconds then makes another.
const CONNECTION_MAX: Duration = Duration::from_secs(120);

/// How long a client may take nothing of what it is sent.
const STALL_MAX: Duration = Duration::from_secs(10);

/// Bytes of the head of a request.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// How long nothing is accepted after the system refused.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What is answered.
#[cfg(feature = "prometheus")]
pub(crate) type Answer = Response<Full<Bytes>>;

/// A server that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct PageServer {
    at: SocketAddr,
    stop: Option<oneshot::Sender<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl PageServer {
    /// Listens, in plain text. `answer` runs on the server's own thread; bodies of requests are not read.
    ///
    /// # Errors
    /// When the address is in use or not of this machine, or there is no further thread.
    #[cfg(feature = "prometheus")]
    pub(crate) fn start(
        address: SocketAddr,
        name: &str,
        answer: impl Fn(&Request<Incoming>) -> Answer + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::on(net::TcpListener::bind(address)?, name, answer)
    }

    /// The same on a socket that listens, with answers of any kind.
    ///
    /// # Errors
    /// When there is no further thread.
    pub(crate) fn on<B>(
        listener: net::TcpListener,
        name: &str,
        answer: impl Fn(&Request<Incoming>) -> Response<B> + Send + Sync + 'static,
    ) -> io::Result<Self>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self::bearing(STALL_MAX, listener, name, answer)
    }

    fn bearing<B>(
        stall_max: Duration,
        listener: net::TcpListener,
        name: &str,
        answer: impl Fn(&Request<Incoming>) -> Response<B> + Send + Sync + 'static,
    ) -> io::Result<Self>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        listener.set_nonblocking(true)?;
        let at = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                let room = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
                let within = tokio::select! {
                    () = accept(listener, &room, stall_max, Arc::new(answer)) => Duration::ZERO,
                    within = stopped => within.unwrap_or_default(),
                };
                // All seats are free when nobody is connected any more.
                let _ = timeout(within, room.acquire_many(CONNECTIONS_MAX)).await;
            });
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(serve)?;
        Ok(Self { at, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens, with the port that the system chose.
    pub(crate) fn address(&self) -> SocketAddr {
        self.at
    }

    /// Takes no more connections, and ends when those that are there have ended, or after this time.
    pub(crate) fn end(mut self, within: Duration) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ = stop.send(within);
        }
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Should it have panicked, that is on standard error.
            let _ = thread.join();
        }
    }
}

async fn accept<F, B>(
    listener: TcpListener,
    room: &Arc<Semaphore>,
    stall_max: Duration,
    answer: Arc<F>,
) where
    F: Fn(&Request<Incoming>) -> Response<B> + Send + Sync + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(seat) = Arc::clone(room).try_acquire_owned() else { continue };
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(stall_max));
            // What goes wrong on a connection is its client's matter.
            let _ = timeout(CONNECTION_MAX, converse(Box::pin(stream), answer)).await;
            drop(seat);
        });
    }
}

async fn converse<F, B>(
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    answer: Arc<F>,
) -> hyper::Result<()>
where
    F: Fn(&Request<Incoming>) -> Response<B>,
    B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
{
    let service = service_fn(|request| {
        let answered = answer(&request);
        async move { Ok::<_, Infallible>(answered) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

#[cfg(test)]
mod tests {
    use super::PageServer;
    use http_body_util::StreamBody;
    use hyper::Response;
    use hyper::body::{Bytes, Frame};
    use std::convert::Infallible;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::time::Duration;
    use tokio_stream::iter;

    const STALL: Duration = Duration::from_millis(200);

    /// A server of an endless page, and a count of those who read it.
    fn endless() -> (PageServer, Arc<()>) {
        let readers = Arc::new(());
        let counted = Arc::clone(&readers);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let answer = move |_: &_| {
            let reader = Arc::clone(&counted);
            Response::new(StreamBody::new(iter(std::iter::repeat_with(move || {
                let _here = &reader;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'a'; 1 << 16])))
            }))))
        };
        (PageServer::bearing(STALL, listener, "test", answer).expect("it starts"), readers)
    }

    fn asked(server: &PageServer) -> TcpStream {
        let mut client = TcpStream::connect(server.address()).expect("it listens");
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("it reads");
        client
    }

    fn until(what: &str, mut happened: impl FnMut() -> bool) {
        for _ in 0..500 {
            if happened() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{what} did not happen");
    }

    #[test]
    fn a_client_that_takes_nothing_is_dropped_and_one_that_reads_is_not() {
        let (server, readers) = endless();
        let mut reads = asked(&server);
        let stuck = asked(&server);
        // The closure and the two clients.
        until("both are served", || Arc::strong_count(&readers) == 4);
        let mut part = [0; 1 << 16];
        until("one is dropped", || {
            reads.read_exact(&mut part).expect("it goes on");
            Arc::strong_count(&readers) == 3
        });
        for _ in 0..50 {
            reads.read_exact(&mut part).expect("it goes on");
            std::thread::sleep(STALL / 20);
        }
        drop(stuck);
    }

    #[test]
    fn ending_takes_no_new_client_and_waits_for_those_that_are_there_but_not_for_long() {
        let (server, readers) = endless();
        let at = server.address();
        let _client = asked(&server);
        until("it is served", || Arc::strong_count(&readers) == 3);
        server.end(Duration::from_millis(50));
        assert!(TcpStream::connect(at).is_err());
        assert_eq!(Arc::strong_count(&readers), 1, "all of it is gone");
    }
}

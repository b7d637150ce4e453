//! A small HTTP/1.1 server for pages that somebody asks for now and then, on a thread of its own: what it costs
//! is never paid by the threads that answer orders.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

/// Connections at once; one more is closed at once.
const CONNECTIONS_MAX: usize = 16;

/// How long a client may take for the head of a request, and may be idle between two.
const HEAD_MAX: Duration = Duration::from_secs(20);

/// How long a connection may last; a client that comes every few seconds then makes another.
const CONNECTION_MAX: Duration = Duration::from_secs(120);

/// Bytes of the head of a request.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// How long nothing is accepted after the system refused.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is answered.
pub(crate) type Answer = Response<Full<Bytes>>;

/// A server that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct PageServer {
    at: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl PageServer {
    /// Listens, in plain text. `answer` runs on the server's own thread; bodies of requests are not read.
    ///
    /// # Errors
    /// When the address is in use or not of this machine, or there is no further thread.
    pub(crate) fn start(
        address: SocketAddr,
        name: &str,
        answer: impl Fn(&Request<Incoming>) -> Answer + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let at = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = accept(listener, Arc::new(answer)) => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(serve)?;
        Ok(Self { at, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens, with the port that the system chose.
    pub(crate) fn address(&self) -> SocketAddr {
        self.at
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

async fn accept<F>(listener: TcpListener, answer: Arc<F>)
where
    F: Fn(&Request<Incoming>) -> Answer + Send + Sync + 'static,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(seat) = Arc::clone(&room).try_acquire_owned() else { continue };
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            // What goes wrong on a connection is its client's matter.
            let _ = timeout(CONNECTION_MAX, converse(stream, answer)).await;
            drop(seat);
        });
    }
}

async fn converse<F>(stream: TcpStream, answer: Arc<F>) -> hyper::Result<()>
where
    F: Fn(&Request<Incoming>) -> Answer,
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

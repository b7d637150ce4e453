//! The same as a web page: fed by server-sent events, on a thread of its own.

use crate::results::Snapshot;
use crate::run::{Feed, Pace};
use crate::transport::http::PageServer;
use http_body_util::{Either, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// How long the end of a run is told to those who watch.
const END_MAX: Duration = Duration::from_millis(500);

/// A comment is sent this often where there is nothing else: who has gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// What the page may do: draw itself, and ask its own server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

type Events = StreamBody<ReceiverStream<Result<Frame<Bytes>, Infallible>>>;
type Answer = Response<Either<Full<Bytes>, Events>>;

/// Serves a run until it is dropped.
#[derive(Debug)]
pub struct WebPage {
    server: PageServer,
}

impl WebPage {
    /// `GET /` the page, `/events` snapshots as they come, `/snapshot.json` the latest. Where only this machine can
    /// ask, `POST /pause`, `/go-on` and `/step` from the page itself set the pace.
    ///
    /// # Errors
    /// When the address is in use or not of this machine, or there is no further thread.
    pub fn start(address: SocketAddr, feed: Arc<Feed>) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let at = listener.local_addr()?;
        let answer = move |request: &Request<Incoming>| answer(request, at, &feed);
        Ok(Self { server: PageServer::on(listener, "web page", answer)? })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Ends when all who watch know the last snapshot, or soon.
    pub fn end(self) {
        self.server.end(END_MAX);
    }
}

fn answer(request: &Request<Incoming>, at: SocketAddr, feed: &Feed) -> Answer {
    let headers = request.headers();
    let Some(host) = our_host(headers, at) else {
        return says(
            StatusCode::MISDIRECTED_REQUEST,
            "ask for this page by its IP address, or as localhost: other names may be anybody's\n",
        );
    };
    let path = request.uri().path();
    match *request.method() {
        Method::GET => match path {
            "/" => page(at),
            "/events" => events(feed),
            "/snapshot.json" => {
                let mut answer = whole(json(&feed.subscribe().borrow()));
                set(&mut answer, header::CONTENT_TYPE, "application/json");
                answer
            }
            "/pause" | "/go-on" | "/step" => not_allowed("POST"),
            _ => says(StatusCode::NOT_FOUND, "the page is at /\n"),
        },
        Method::POST => {
            let change = match path {
                "/pause" => Pace::pause,
                "/go-on" => Pace::go_on,
                "/step" => Pace::step,
                _ => return not_allowed("GET"),
            };
            if !at.ip().is_loopback() || !is_same_origin(headers, host) {
                return says(StatusCode::FORBIDDEN, "only the page itself sets the pace\n");
            }
            feed.set_pace(change);
            let mut answer = whole(Bytes::new());
            *answer.status_mut() = StatusCode::NO_CONTENT;
            answer
        }
        _ => not_allowed("GET"),
    }
}

fn page(at: SocketAddr) -> Answer {
    let html = include_str!("page.html");
    let mut answer = if at.ip().is_loopback() {
        whole(html.replacen("<body>", "<body data-sets=\"pace\">", 1))
    } else {
        whole(html)
    };
    set(&mut answer, header::CONTENT_TYPE, "text/html; charset=utf-8");
    set(&mut answer, header::CONTENT_SECURITY_POLICY, POLICY);
    answer
}

/// Snapshots as they come, each a whole one; who reads slowly gets fewer.
fn events(feed: &Feed) -> Answer {
    let (sent, received) = mpsc::channel(1);
    tokio::spawn(tell(feed.subscribe(), sent));
    let mut answer = Response::new(Either::Right(StreamBody::new(ReceiverStream::new(received))));
    set(&mut answer, header::CONTENT_TYPE, "text/event-stream");
    set(&mut answer, header::CACHE_CONTROL, "no-store");
    set(&mut answer, header::CONNECTION, "close");
    answer
}

async fn tell(
    mut latest: watch::Receiver<Arc<Snapshot>>,
    sent: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
) {
    latest.mark_changed();
    loop {
        let news = tokio::time::timeout(KEEP_ALIVE, latest.changed());
        let (text, is_last) = match news.await {
            Ok(Ok(())) => {
                let snapshot = latest.borrow_and_update().clone();
                (format!("data: {}\n\n", json(&snapshot)), snapshot.end.is_some())
            }
            // The run ended before it began.
            Ok(Err(_)) => return,
            Err(_) => (":\n\n".to_owned(), false),
        };
        // Waits for room: meanwhile newer snapshots take the place of those that were not sent.
        if sent.send(Ok(Frame::data(text.into()))).await.is_err() || is_last {
            return;
        }
    }
}

fn json(snapshot: &Snapshot) -> String {
    serde_json::to_string(snapshot).expect("a snapshot is plain data")
}

/// The name and port that the client asked for, if they are ours. A page of a stranger whose name was made to lead
/// here would name itself (DNS rebinding), so that only addresses pass, and the name that browsers keep for this
/// machine.
fn our_host(headers: &HeaderMap, at: SocketAddr) -> Option<&str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().filter(|_| hosts.next().is_none())?.to_str().ok()?;
    let authority: Authority = host.parse().ok()?;
    if authority.as_str().contains('@') || authority.port_u16().unwrap_or(80) != at.port() {
        return None;
    }
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_ours = match name.parse::<IpAddr>() {
        Ok(ip) if at.ip().is_unspecified() => !ip.is_unspecified(),
        Ok(ip) if at.ip().is_loopback() => ip.is_loopback(),
        Ok(ip) => ip == at.ip(),
        Err(_) => {
            let reaches_here = at.ip().is_loopback() || at.ip().is_unspecified();
            name.eq_ignore_ascii_case("localhost") && reaches_here
        }
    };
    is_ours.then_some(host)
}

/// Whether a request was made by a page from here.
fn is_same_origin(headers: &HeaderMap, host: &str) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = text("origin").and_then(|origin| origin.strip_prefix("http://"));
    let site = text("sec-fetch-site").unwrap_or("same-origin");
    origin == Some(host) && site == "same-origin"
}

fn whole(text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(text.into())));
    set(&mut answer, header::CACHE_CONTROL, "no-store");
    set(&mut answer, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    answer
}

fn says(code: StatusCode, sentence: &'static str) -> Answer {
    let mut answer = whole(sentence);
    *answer.status_mut() = code;
    set(&mut answer, header::CONTENT_TYPE, "text/plain; charset=utf-8");
    answer
}

fn not_allowed(method: &'static str) -> Answer {
    let mut answer = says(StatusCode::METHOD_NOT_ALLOWED, "not in this way\n");
    set(&mut answer, header::ALLOW, method);
    answer
}

fn set(answer: &mut Answer, name: HeaderName, value: &'static str) {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
}

#[cfg(test)]
mod tests {
    use super::{is_same_origin, our_host};
    use hyper::header::{HOST, HeaderMap, HeaderValue, ORIGIN};

    fn headers(name: hyper::header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).expect("plain"))])
    }

    #[test]
    fn only_addresses_of_this_machine_and_localhost_are_our_hosts() {
        for (at, host, is_ours) in [
            ("127.0.0.1:8080", "127.0.0.1:8080", true),
            ("127.0.0.1:8080", "LocalHost:8080", true),
            ("127.0.0.1:8080", "[::1]:8080", true),
            ("127.0.0.1:8080", "127.0.0.1:8081", false),
            ("127.0.0.1:8080", "127.0.0.1", false),
            ("127.0.0.1:80", "127.0.0.1", true),
            ("127.0.0.1:8080", "10.0.0.7:8080", false),
            ("127.0.0.1:8080", "evil.example:8080", false),
            ("127.0.0.1:8080", "127.0.0.1.evil.example:8080", false),
            ("127.0.0.1:8080", "localhost.evil.example:8080", false),
            ("127.0.0.1:8080", "me@127.0.0.1:8080", false),
            ("127.0.0.1:8080", "", false),
            ("[::1]:8080", "[::1]:8080", true),
            ("0.0.0.0:8080", "10.0.0.7:8080", true),
            ("0.0.0.0:8080", "evil.example:8080", false),
            ("10.0.0.7:8080", "10.0.0.7:8080", true),
            ("10.0.0.7:8080", "10.0.0.8:8080", false),
            ("10.0.0.7:8080", "localhost:8080", false),
        ] {
            let at = at.parse().expect("an address");
            assert_eq!(our_host(&headers(HOST, host), at).is_some(), is_ours, "{host} at {at}");
        }
        let mut twice = headers(HOST, "127.0.0.1:8080");
        twice.append(HOST, HeaderValue::from_static("127.0.0.1:8080"));
        let at = "127.0.0.1:8080".parse().expect("an address");
        assert!(our_host(&twice, at).is_none() && our_host(&HeaderMap::new(), at).is_none());
    }

    #[test]
    fn only_a_page_from_here_sets_the_pace() {
        let host = "127.0.0.1:8080";
        assert!(is_same_origin(&headers(ORIGIN, "http://127.0.0.1:8080"), host));
        for origin in
            ["null", "http://evil.example:8080", "https://127.0.0.1:8080", "http://127.0.0.1"]
        {
            assert!(!is_same_origin(&headers(ORIGIN, origin), host), "{origin}");
        }
        assert!(!is_same_origin(&HeaderMap::new(), host), "none is stated");
        let mut cross = headers(ORIGIN, "http://127.0.0.1:8080");
        cross.insert("sec-fetch-site", HeaderValue::from_static("same-site"));
        assert!(!is_same_origin(&cross, host));
    }
}

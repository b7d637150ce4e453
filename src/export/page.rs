//! Pages at `/metrics`, in the format that was asked for: OpenMetrics or Prometheus' own.

use super::{ExportError, MetricsAddress};
use crate::measure::Clock;
use crate::transport::http::{Answer, PageServer};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// What OpenMetrics calls itself.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What Prometheus and its like ask with, and browsers and curl do not.
const SCRAPE: &str = "x-prometheus-scrape-timeout-seconds";

/// How long the last figures wait for a scrape: twice the longest time between two, within these bounds.
const WAIT_MIN: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How long whoever is connected may take to take the last figures.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// A page that is served until this is dropped.
#[derive(Debug)]
pub(super) struct Page {
    server: PageServer,
    scrapes: Arc<watch::Sender<Scrapes>>,
}

/// Who scraped a page when.
#[derive(Clone, Copy, Debug, Default)]
struct Scrapes {
    latest_ns: Option<u64>,
    longest_ns: Option<u64>,
    is_over: bool,
    had_the_last: bool,
}

impl Scrapes {
    fn begin(&mut self, now_ns: u64) {
        let since = self.latest_ns.map(|latest_ns| now_ns.saturating_sub(latest_ns));
        self.longest_ns = self.longest_ns.max(since);
        self.latest_ns = Some(now_ns);
    }

    fn awaited_for(&self) -> Option<Duration> {
        self.latest_ns?;
        let twice = self.longest_ns.map(|ns| Duration::from_nanos(ns.saturating_mul(2)));
        Some(twice.unwrap_or(WAIT_MAX).clamp(WAIT_MIN, WAIT_MAX))
    }
}

impl Page {
    /// Serves it from now on.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub(super) fn serve(address: MetricsAddress, of: impl Collector) -> Result<Self, ExportError> {
        let scrapes = Arc::new(watch::Sender::new(Scrapes::default()));
        let server = serve(address, of, Arc::clone(&scrapes))?;
        Ok(Self { server, scrapes })
    }

    /// Where it is served.
    pub(super) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// How long a scraper may take to come once more, by what it took before; nothing where none has come.
    pub(super) fn awaited_for(&self) -> Option<Duration> {
        self.scrapes.borrow().awaited_for()
    }

    /// No figure changes any more: ends when they have been scraped, or after this time.
    pub(super) async fn end_when_read(self, within: Duration) {
        // A scrape under way may have older figures; those that begin from here on have the last.
        self.scrapes.send_modify(|scrapes| scrapes.is_over = true);
        let mut scrapes = self.scrapes.subscribe();
        let _ = timeout(within, scrapes.wait_for(|scrapes| scrapes.had_the_last)).await;
        self.server.end(FLUSH_MAX);
    }
}

fn serve(
    address: MetricsAddress,
    of: impl Collector,
    scrapes: Arc<watch::Sender<Scrapes>>,
) -> Result<PageServer, ExportError> {
    let clock = Clock::start();
    let mut registry = Registry::with_prefix("nashflock");
    let build =
        Info::new([("version", env!("CARGO_PKG_VERSION")), ("commit", env!("NASHFLOCK_COMMIT"))]);
    registry.register("build", "What the program was built from", build);
    registry.register_collector(Box::new(of));
    let answer = move |request: &Request<Incoming>| {
        let is_over = scrapes.borrow().is_over;
        let is_scrape = request.headers().contains_key(SCRAPE);
        if is_scrape {
            scrapes.send_modify(|scrapes| scrapes.begin(clock.now_ns()));
        }
        let mut answer = answer(&registry, request);
        if is_over {
            // The server ends when nobody is connected, and a scraper would stay.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if is_scrape && is_over && answer.status() == StatusCode::OK {
            scrapes.send_modify(|scrapes| scrapes.had_the_last = true);
        }
        answer
    };
    PageServer::start(address.0, "metrics", answer)
        .map_err(|source| ExportError::Bind { address: address.0, source })
}

fn answer(registry: &Registry, request: &Request<Incoming>) -> Answer {
    let says = |code: StatusCode, sentence: &'static str| {
        let mut answer = Answer::new(sentence.into());
        *answer.status_mut() = code;
        answer
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut answer = says(StatusCode::METHOD_NOT_ALLOWED, "GET /metrics\n");
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    if request.uri().path() != "/metrics" {
        return says(StatusCode::NOT_FOUND, "the figures are at /metrics\n");
    }
    let mut page = String::new();
    let (encoded, format) = if wants_open_metrics(request) {
        (text::encode(&mut page, registry), OPEN_METRICS)
    } else {
        (prometheus_text::encode(&mut page, registry), prometheus_text::CONTENT_TYPE)
    };
    if encoded.is_err() {
        return says(StatusCode::INTERNAL_SERVER_ERROR, "the figures cannot be written\n");
    }
    let mut answer = Answer::new(page.into());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format));
    answer
}

/// Whoever can read OpenMetrics lists it; who lists nothing gets what every reader knows.
fn wants_open_metrics(request: &Request<Incoming>) -> bool {
    let accepted = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|format| {
        format.split(';').next().is_some_and(|name| name.trim() == "application/openmetrics-text")
    })
}

#[cfg(test)]
mod tests {
    use super::{Scrapes, WAIT_MAX, WAIT_MIN};
    use std::time::Duration;

    #[test]
    fn a_scraper_is_awaited_for_twice_its_longest_pause_within_bounds() {
        let after = |times_s: &[u64]| {
            let mut scrapes = Scrapes::default();
            times_s.iter().for_each(|second| scrapes.begin(second * 1_000_000_000));
            scrapes.awaited_for()
        };
        assert_eq!(after(&[]), None, "nobody came");
        assert_eq!(after(&[3]), Some(WAIT_MAX), "how often it comes is not known");
        assert_eq!(after(&[3, 4, 5]), Some(WAIT_MIN));
        assert_eq!(after(&[3, 18, 30]), Some(Duration::from_secs(30)));
        assert_eq!(after(&[3, 63]), Some(WAIT_MAX));
    }
}

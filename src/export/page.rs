//! Pages at `/metrics`, in the format that was asked for: OpenMetrics or Prometheus' own.

use super::{ExportError, MetricsAddress};
use crate::transport::http::{Answer, PageServer};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// What OpenMetrics calls itself.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves a page until what is returned is dropped.
pub(super) fn serve(
    address: MetricsAddress,
    of: impl Collector,
) -> Result<PageServer, ExportError> {
    let mut registry = Registry::with_prefix("nashflock");
    let build =
        Info::new([("version", env!("CARGO_PKG_VERSION")), ("commit", env!("NASHFLOCK_COMMIT"))]);
    registry.register("build", "What the program was built from", build);
    registry.register_collector(Box::new(of));
    let answer = move |request: &Request<Incoming>| answer(&registry, request);
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

//! `run --otlp`: what a run did when, for an OpenTelemetry collector.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use nashflock::export::{SpanTarget, Spans};
use nashflock::run::Progress as _;
use nashflock::run::timeline::{Took, What};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::Value;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::binary::{Ended, Folder, Running, SYNTHETIC};

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().expect("nothing panics").push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens, and says where.
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let at = listener.local_addr().expect("it is bound");
        let service = TraceServiceServer::new(self.clone());
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        format!("http://{at}")
    }

    /// Spans in the order in which they came, and the attributes of whom they are of.
    fn spans(&self) -> (Vec<Span>, BTreeMap<String, String>) {
        let requests = self.0.lock().expect("nothing panics");
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        let of = resources.clone().next().and_then(|of| of.resource.as_ref()).expect("it says");
        let scopes = resources.flat_map(|of| &of.scope_spans);
        (scopes.flat_map(|of| of.spans.clone()).collect(), plain(&of.attributes))
    }
}

fn plain(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |of: &KeyValue| match of.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => panic!("{}: {other:?}", of.key),
    };
    attributes.iter().map(|of| (of.key.clone(), text(of))).collect()
}

fn run(folder: &Folder, out: &str, args: &[&str], endpoint: Option<&str>) -> Ended {
    let all = [&["run", "scenario.toml", "--trace", "--json", "--out", out], args].concat();
    let mut command = folder.command(&all);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(endpoint) = endpoint {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    }
    Running::start(command).end()
}

/// What `trace.json` draws: a name, and from when to when, µs; in the order in which it was told.
fn drawn(folder: &Folder, out: &str) -> Vec<(String, f64, f64)> {
    let text = fs::read(folder.path(out).join("trace.json")).expect("written");
    let events: Vec<Value> = serde_json::from_slice(&text).expect("a JSON array");
    let mut drawn = Vec::new();
    let mut open = BTreeMap::new();
    for event in &events {
        let number = |key: &str| event[key].as_f64().expect("a number");
        let name = event["name"].as_str().expect("a name").to_owned();
        match event["ph"].as_str().expect("a phase") {
            "X" => drawn.push((name, number("ts"), number("ts") + number("dur"))),
            "b" => drop(open.insert(event["id"].to_string(), number("ts"))),
            "e" => drawn.push((name, open[&event["id"].to_string()], number("ts"))),
            _ => {}
        }
    }
    drawn
}

fn agree(spans: &[Span], drawn: &[(String, f64, f64)]) {
    // What nodes do has a track of its own there.
    let plain = |span: &'_ Span| span.name.trim_start_matches("node ").to_owned();
    let sent: Vec<String> = spans.iter().map(plain).collect();
    assert!(sent.iter().eq(drawn.iter().map(|(name, ..)| name)), "{sent:?}");
    let ns = |us: f64| us * 1e3;
    let started_ns = spans[0].start_time_unix_nano as f64 - ns(drawn[0].1);
    for (span, (name, from_us, to_us)) in spans.iter().zip(drawn) {
        let since = |unix_ns: u64| unix_ns as f64 - started_ns;
        // Nanoseconds since 1970 have more digits than an f64.
        let is_near = |unix_ns: u64, us: f64| (since(unix_ns) - ns(us)).abs() < 1_000.0;
        assert!(is_near(span.start_time_unix_nano, *from_us), "{name} begins at {from_us} µs");
        assert!(is_near(span.end_time_unix_nano, *to_us), "{name} ends at {to_us} µs");
    }
}

/// Each span has the parent that the trace draws it under.
fn are_nested(spans: &[Span]) {
    let by_id: BTreeMap<&[u8], &Span> = spans.iter().map(|span| (&*span.span_id, span)).collect();
    assert_eq!(by_id.len(), spans.len(), "ids differ");
    let attribute = |span: &Span, key: &str| plain(&span.attributes).get(key).cloned();
    for span in spans {
        let parent = by_id.get(&*span.parent_span_id);
        let expected = match &*span.name {
            "batch" | "step" | "request" => None,
            "node order" => Some("dispatch"),
            "node compute" => Some("node order"),
            _ => Some("batch"),
        };
        assert_eq!(parent.map(|parent| &*parent.name), expected, "{}", span.name);
        let Some(parent) = parent else { continue };
        assert_eq!(span.trace_id, parent.trace_id);
        let (from, to) = (span.start_time_unix_nano, span.end_time_unix_nano);
        let is_within = parent.start_time_unix_nano <= from && to <= parent.end_time_unix_nano;
        assert!(is_within, "{} is a part of its {}", span.name, parent.name);
        let same = match &*span.name {
            "node compute" => vec!["nashflock.node"],
            "node order" => vec!["nashflock.step", "nashflock.layer"],
            _ => vec!["nashflock.step"],
        };
        for key in same {
            assert!(attribute(span, key).is_some_and(|of| attribute(parent, key) == Some(of)));
        }
    }
    for request in spans.iter().filter(|span| span.name == "request") {
        let [link] = &request.links[..] else { panic!("a request ends in one batch") };
        let batch = by_id[&*link.span_id];
        assert_eq!((&*batch.name, &batch.trace_id), ("batch", &link.trace_id));
        assert_eq!(batch.end_time_unix_nano, request.end_time_unix_nano);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_what_the_trace_draws_each_under_its_parent() {
    let folder = Folder::with(SYNTHETIC);
    let plain_run = run(&folder, "plain", &[], None);
    for (out, nodes) in [("in-process", "in-process"), ("local", "local:2")] {
        let collector = Collector::default();
        let endpoint = collector.start().await;
        let ended = run(&folder, out, &["--nodes", nodes, "--otlp", &endpoint], None);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(ended.json()["state_hash"], plain_run.json()["state_hash"]);
        let (spans, of) = collector.spans();
        agree(&spans, &drawn(&folder, out));
        are_nested(&spans);
        assert_eq!((&*of["service.name"], &*of["nashflock.scenario"]), ("nashflock", "small"));
        let said = format!("spans: {} sent to {endpoint}, 0 not taken, 0 dropped", spans.len());
        assert!(ended.stderr.contains(&said), "{said}: {}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_names_the_collector_too_and_decoded_answers_say_when_they_began() {
    let folder = Folder::with_checkpoint();
    folder.decodes();
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let ended = run(&folder, "out", &[], Some(&endpoint));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let (spans, _) = collector.spans();
    agree(&spans, &drawn(&folder, "out"));
    let requests = spans.iter().filter(|span| span.name == "request");
    let mut seen = 0;
    for request in requests {
        let said = plain(&request.attributes);
        let number = |key: &str| said[key].parse::<u64>().expect("a number");
        let took = request.end_time_unix_nano - request.start_time_unix_nano;
        assert!(number("nashflock.waited_ns") <= number("nashflock.first_token_ns"));
        assert!(number("nashflock.first_token_ns") <= took);
        seen += 1;
    }
    assert_eq!(seen, 6);
}

#[test]
fn a_collector_that_is_not_there_or_says_nothing_costs_the_spans_and_nothing_else() {
    let folder = Folder::with(SYNTHETIC);
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent_at = silent.local_addr().expect("it is bound");
    let nobody_at = {
        let gone = TcpListener::bind("127.0.0.1:0").expect("a free port");
        gone.local_addr().expect("it is bound")
    };
    let plain_run = run(&folder, "plain", &[], None);
    assert_eq!(plain_run.stderr, "");
    for (out, at) in [("silent", silent_at), ("nobody", nobody_at)] {
        let endpoint = format!("http://{at}");
        let ended = run(&folder, out, &["--otlp", &endpoint], None);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(ended.json()["state_hash"], plain_run.json()["state_hash"]);
        let spans = drawn(&folder, out).len();
        let said = format!("spans: 0 sent to {endpoint}, {spans} not taken, 0 dropped");
        assert!(ended.stderr.contains(&said), "{said}: {}", ended.stderr);
        let warnings = ended.stderr.matches("the run goes on without them").count();
        assert_eq!(warnings, usize::from(at == nobody_at), "{}", ended.stderr);
    }
}

#[test]
fn an_endpoint_that_is_none_is_bad_input() {
    let folder = Folder::with(SYNTHETIC);
    for endpoint in ["", "not a url", "https://localhost:4317"] {
        let ended = run(&folder, "out", &["--otlp", endpoint], None);
        assert_eq!(ended.code, Some(2), "{endpoint}: {}", ended.stderr);
        assert!(ended.stderr.contains("--otlp"), "{}", ended.stderr);
        assert!(!folder.path("out").exists(), "nothing was started");
    }
}

#[test]
fn spans_that_find_the_queue_full_are_dropped_and_counted() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = SpanTarget {
        endpoint: format!("http://{}", silent.local_addr().expect("it is bound")),
        scenario: "none".to_owned(),
        router: "none".to_owned(),
        seed: 0,
        is_remote: false,
        names_service: false,
    };
    let spans = Spans::start(&target).expect("a good endpoint");
    let told = 20_000;
    for request in 0..told {
        let what = What::Request { request, decoded: None };
        spans.took(&Took { what, from_ns: request, to_ns: request + 1 });
    }
    let counts = spans.finish();
    assert_eq!((counts.exported, counts.failed + counts.dropped), (0, told));
    assert!(counts.dropped > 0 && counts.failed >= 16_384, "{counts:?}");
}

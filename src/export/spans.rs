//! What a run did when, as OpenTelemetry spans over OTLP.
//!
//! A batch, or a step of decoding, is a trace: its stages lie under it, the orders of nodes under the stage that sent
//! them, a node's computing under its order. A request is a trace of its own, linked to the batch that ended it, because
//! it begins before that and may need many. Times are the run's clock from when it started.

use super::{ExportError, SpanCounts, SpanTarget};
use crate::run::Progress;
use crate::run::timeline::{Took, What};
use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{RetryPolicy, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanExporter as _, SpanLinks,
};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::sleep;

/// Spans that wait; one more is dropped.
const QUEUE_MAX: usize = 16_384;

/// Spans of one message.
const BATCH_MAX: usize = 512;

/// How long a message may take, tries included.
const EXPORT_MAX: Duration = Duration::from_secs(10);

/// How long a span waits for others.
const LINGER: Duration = Duration::from_millis(200);

/// How long the end of a run waits for what is left.
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// Sends spans to a collector from a thread of its own.
#[derive(Debug)]
pub struct Spans {
    drawing: Mutex<Drawing>,
    counts: Arc<Counts>,
    /// Nothing comes, and its other end goes when all is sent.
    done: Mutex<std::sync::mpsc::Receiver<()>>,
}

/// What became of spans so far.
#[derive(Debug, Default)]
struct Counts {
    queued: AtomicU64,
    dropped: AtomicU64,
    exported: AtomicU64,
}

/// Where the next span belongs.
#[derive(Debug)]
struct Drawing {
    queue: Sender<SpanData>,
    ids: RandomIdGenerator,
    scope: InstrumentationScope,
    started_at: SystemTime,
    /// Whether orders go to other processes.
    is_remote: bool,
    /// The batch or step under way.
    current: Option<(TraceId, SpanId)>,
    /// The one before, which ended the requests that are told now.
    ended: Option<SpanContext>,
    dispatch: SpanId,
    order: SpanId,
}

impl Spans {
    /// Begins to send to `target`. Whether anybody is there is not asked.
    ///
    /// # Errors
    /// The endpoint is none, or there is no further thread.
    pub fn start(target: &SpanTarget) -> Result<Self, ExportError> {
        let system = |source: io::Error| ExportError::System { flag: "--otlp", source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(system)?;
        let endpoint = endpoint(target)?;
        let exporter = {
            // Its connection is made by tasks of this runtime.
            let _entered = runtime.enter();
            opentelemetry_otlp::SpanExporter::builder()
                .with_tonic()
                .with_endpoint(&endpoint)
                .with_timeout(EXPORT_MAX)
                .with_retry_policy(RetryPolicy::recommended().with_max_retries(2))
                .build()
                .map_err(|error| ExportError::Endpoint { endpoint, reason: error.to_string() })?
        };
        let (queue, waiting) = channel(QUEUE_MAX);
        let (working, done) = std::sync::mpsc::channel();
        let counts = Arc::<Counts>::default();
        let endpoint = target.endpoint.clone();
        let mut sending = Sending { exporter, counts: Arc::clone(&counts), endpoint };
        sending.exporter.set_resource(&resource(target));
        let work = move || {
            runtime.block_on(sending.run(waiting));
            drop(working);
        };
        thread::Builder::new().name("spans".into()).spawn(work).map_err(system)?;
        let drawing = Drawing {
            queue,
            ids: RandomIdGenerator::default(),
            scope: InstrumentationScope::builder("nashflock")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
            started_at: SystemTime::UNIX_EPOCH,
            is_remote: target.is_remote,
            current: None,
            ended: None,
            dispatch: SpanId::INVALID,
            order: SpanId::INVALID,
        };
        Ok(Self { drawing: Mutex::new(drawing), counts, done: Mutex::new(done) })
    }

    /// The run's clock started then.
    pub fn starts_at(&self, started_at: SystemTime) {
        self.drawing().started_at = started_at;
    }

    /// Sends what is left, for some seconds at most, and tells what became of all.
    #[must_use]
    pub fn finish(self) -> SpanCounts {
        let Self { drawing, counts, done } = self;
        // The thread ends when the queue has no other end. Time may be up before.
        drop(drawing);
        let done = done.into_inner().expect("it is locked nowhere");
        let _ = done.recv_timeout(FLUSH_MAX);
        let [queued, dropped, exported] =
            [&counts.queued, &counts.dropped, &counts.exported].map(|count| count.load(Relaxed));
        SpanCounts { exported, failed: queued.saturating_sub(exported), dropped }
    }
}

impl Spans {
    fn drawing(&self) -> MutexGuard<'_, Drawing> {
        self.drawing.lock().expect("no holder of this lock can panic")
    }
}

impl Progress for Spans {
    fn phase(&self, _name: &str) {}

    fn answered(&self, _answered: u64, _requests: u64) {}

    fn wants_times(&self) -> bool {
        true
    }

    fn took(&self, took: &Took) {
        let mut drawing = self.drawing();
        let span = drawing.span(took);
        let count = match drawing.queue.try_send(span) {
            Ok(()) => &self.counts.queued,
            Err(_) => &self.counts.dropped,
        };
        count.fetch_add(1, Relaxed);
    }
}

impl Drawing {
    fn span(&mut self, took: &Took) -> SpanData {
        let id = self.ids.new_span_id();
        let number = |key, value: u64| KeyValue::new(key, i64::try_from(value).unwrap_or(i64::MAX));
        let place = |step, layer: u32| {
            vec![number("nashflock.step", step), number("nashflock.layer", layer.into())]
        };
        match took.what {
            What::Stage { step, layer, name } => {
                let (trace, root) = self.current();
                if name == "dispatch" {
                    self.dispatch = id;
                }
                self.data((trace, id, root), name, took, place(step, layer))
            }
            What::Order { step, layer, node, pairs } => {
                let (trace, _) = self.current();
                self.order = id;
                let mut attributes = place(step, layer);
                attributes.push(number("nashflock.node", node.into()));
                attributes.extend(pairs.map(|pairs| number("nashflock.pairs", pairs as u64)));
                if self.is_remote {
                    attributes.push(KeyValue::new("rpc.system", "grpc"));
                    attributes.push(KeyValue::new("rpc.service", "nashflock.v1.ExpertService"));
                    attributes.push(KeyValue::new("rpc.method", "Compute"));
                }
                let span = self.data((trace, id, self.dispatch), "node order", took, attributes);
                let kind = if self.is_remote { SpanKind::Client } else { SpanKind::Internal };
                SpanData { span_kind: kind, ..span }
            }
            What::Computing { node } => {
                let (trace, _) = self.current();
                let attributes = vec![number("nashflock.node", node.into())];
                self.data((trace, id, self.order), "node compute", took, attributes)
            }
            What::Batch { step, requests } => {
                let requests = number("nashflock.requests", requests as u64);
                self.ends("batch", took, vec![number("nashflock.step", step), requests])
            }
            What::Step { tokens } => {
                self.ends("step", took, vec![number("nashflock.tokens", tokens.into())])
            }
            What::Request { request, decoded } => {
                let mut attributes = vec![number("nashflock.request", request)];
                if let Some(decoded) = decoded {
                    let since = |ns: u64| ns.saturating_sub(took.from_ns);
                    attributes.extend([
                        number("nashflock.waited_ns", since(decoded.started_ns)),
                        number("nashflock.first_token_ns", since(decoded.first_token_ns)),
                        number("nashflock.answer_tokens", decoded.tokens.into()),
                    ]);
                }
                let own = (self.ids.new_trace_id(), id, SpanId::INVALID);
                let mut span = self.data(own, "request", took, attributes);
                span.span_kind = SpanKind::Server;
                let ended = self.ended.clone();
                span.links.links.extend(ended.map(|ended| Link::new(ended, Vec::new(), 0)));
                span
            }
        }
    }

    /// The batch or step that is under way: the first that is told of it begins it.
    fn current(&mut self) -> (TraceId, SpanId) {
        let ids = &self.ids;
        *self.current.get_or_insert_with(|| (ids.new_trace_id(), ids.new_span_id()))
    }

    /// What is under way has ended.
    fn ends(&mut self, name: &'static str, took: &Took, attributes: Vec<KeyValue>) -> SpanData {
        let (trace, root) = self.current();
        let span = self.data((trace, root, SpanId::INVALID), name, took, attributes);
        (self.current, self.ended) = (None, Some(span.span_context.clone()));
        span
    }

    fn data(
        &self,
        (trace, id, parent): (TraceId, SpanId, SpanId),
        name: &'static str,
        took: &Took,
        attributes: Vec<KeyValue>,
    ) -> SpanData {
        let at = |ns: u64| self.started_at + Duration::from_nanos(ns);
        SpanData {
            span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: at(took.from_ns),
            end_time: at(took.to_ns),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

/// The endpoint, which has to be one. Whatever else the library takes would go elsewhere than it says.
fn endpoint(target: &SpanTarget) -> Result<String, ExportError> {
    let endpoint = &target.endpoint;
    let wrong = |reason: &str| ExportError::Endpoint {
        endpoint: endpoint.clone(),
        reason: reason.to_owned(),
    };
    let parsed = tonic::transport::Endpoint::from_shared(endpoint.clone());
    let uri = parsed.map_err(|_| wrong("this is no URL; write http://HOST:PORT"))?.uri().clone();
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => Ok(endpoint.clone()),
        (Some("https"), _) => {
            Err(wrong("spans are sent in plain text: use a collector of this machine or network"))
        }
        _ => Err(wrong("this is no URL of HTTP; write http://HOST:PORT")),
    }
}

/// Who the spans are of. The environment's `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` are honoured.
fn resource(target: &SpanTarget) -> Resource {
    let builder = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("nashflock.scenario", target.scenario.clone()),
        KeyValue::new("nashflock.router", target.router.clone()),
        KeyValue::new("nashflock.seed", target.seed.to_string()),
    ]);
    match target.names_service {
        true => builder.build(),
        false => builder.with_service_name("nashflock").build(),
    }
}

struct Sending {
    exporter: opentelemetry_otlp::SpanExporter,
    counts: Arc<Counts>,
    endpoint: String,
}

impl Sending {
    /// Sends until the run has ended and all is sent. Once it has ended, a collector that does not take spans is
    /// not tried again.
    async fn run(self, mut waiting: Receiver<SpanData>) {
        let mut has_warned = false;
        while let Some(batch) = gather(&mut waiting).await {
            let spans = batch.len() as u64;
            let Err(error) = self.exporter.export(batch).await else {
                self.counts.exported.fetch_add(spans, Relaxed);
                continue;
            };
            if !std::mem::replace(&mut has_warned, true) {
                let endpoint = &self.endpoint;
                tracing::warn!("spans: {endpoint}: {error}; the run goes on without them");
            }
            if waiting.is_closed() {
                return;
            }
        }
    }
}

/// The next message, as soon as it is full or its first span has waited a while; none where nothing comes any more.
async fn gather(waiting: &mut Receiver<SpanData>) -> Option<Vec<SpanData>> {
    let mut batch = vec![waiting.recv().await?];
    let mut linger = pin!(sleep(LINGER));
    while batch.len() < BATCH_MAX {
        tokio::select! {
            span = waiting.recv() => match span {
                Some(span) => batch.push(span),
                None => break,
            },
            () = &mut linger => break,
        }
    }
    Some(batch)
}

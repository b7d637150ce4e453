//! What a run did when, round by round, for a trace viewer.

use crate::results::{ResultsError, RunDir, TraceWriter, Track};
use crate::run::timeline::{Took, What};
use agents::ids::NodeId;
use serde_json::{Value, json};

const STAGES: Track = Track { process: 0, row: 0 };
const BATCHES: Track = Track { process: 0, row: 1 };
const REQUESTS: Track = Track { process: 0, row: 2 };

/// Draws rounds, batches and requests. The first error ends it, and is told when the run has ended.
pub(in crate::run) struct Trace {
    writer: TraceWriter,
    failure: Option<ResultsError>,
}

impl Trace {
    /// # Errors
    /// The file cannot be written.
    pub(in crate::run) fn start(dir: &RunDir, nodes: usize) -> Result<Self, ResultsError> {
        let mut writer = TraceWriter::create(dir.path().join("trace.json"))?;
        for (track, row) in [(STAGES, "stages"), (BATCHES, "batches"), (REQUESTS, "requests")] {
            writer.name(track, "coordinator", row)?;
        }
        for node in (0..nodes).map(NodeId::from_index) {
            writer.name(of_node(node), &format!("node {node}"), "orders")?;
        }
        Ok(Self { writer, failure: None })
    }

    pub(in crate::run) fn took(&mut self, took: &Took) {
        let Took { what, from_ns, to_ns } = *took;
        let times_ns = (from_ns, to_ns);
        let written = match what {
            What::Stage { step, layer, name } => {
                let place = json!({"step": step, "layer": layer});
                self.writer.slice(STAGES, name, times_ns, place)
            }
            What::Order { step, layer, node, pairs } => {
                let args = json!({"step": step, "layer": layer, "pairs": pairs});
                self.writer.slice(of_node(NodeId(node)), "order", times_ns, args)
            }
            What::Computing { node } => {
                self.writer.slice(of_node(NodeId(node)), "compute", times_ns, Value::Null)
            }
            What::Batch { step, requests } => {
                let args = json!({"step": step, "requests": requests});
                self.writer.slice(BATCHES, "batch", times_ns, args)
            }
            What::Step { tokens } => {
                self.writer.slice(BATCHES, "step", times_ns, json!({"tokens": tokens}))
            }
            What::Request { request, decoded } => {
                let since = |ns: u64| ns.saturating_sub(from_ns) as f64 / 1e6;
                let args = decoded.map_or(Value::Null, |decoded| {
                    json!({
                        "waited_ms": since(decoded.started_ns),
                        "first_token_ms": since(decoded.first_token_ns),
                    })
                });
                self.writer.span(REQUESTS, "request", times_ns, request, args)
            }
        };
        if let Err(error) = written {
            self.failure.get_or_insert(error);
        }
    }

    /// # Errors
    /// The first of all.
    pub(in crate::run) fn finish(self) -> Result<(), ResultsError> {
        self.failure.map_or_else(|| self.writer.finish(), Err)
    }
}

fn of_node(node: NodeId) -> Track {
    Track { process: node.0 + 1, row: 0 }
}

//! What a run did when, round by round, for a trace viewer.

use super::decode::Answer;
use super::rounds::Round;
use super::serve::StageEnds;
use crate::results::{ResultsError, RunDir, TraceWriter, Track};
use agents::ids::NodeId;
use agents::round::Stage;
use serde_json::{Value, json};

const STAGES: Track = Track { process: 0, row: 0 };
const BATCHES: Track = Track { process: 0, row: 1 };
const REQUESTS: Track = Track { process: 0, row: 2 };

/// Draws rounds, batches and requests. The first error ends it, and is told when the run has ended.
pub(super) struct Trace {
    writer: TraceWriter,
    failure: Option<ResultsError>,
}

impl Trace {
    /// # Errors
    /// The file cannot be written.
    pub(super) fn start(dir: &RunDir, nodes: usize) -> Result<Self, ResultsError> {
        let mut writer = TraceWriter::create(dir.path().join("trace.json"))?;
        for (track, row) in [(STAGES, "stages"), (BATCHES, "batches"), (REQUESTS, "requests")] {
            writer.name(track, "coordinator", row)?;
        }
        for node in (0..nodes).map(NodeId::from_index) {
            writer.name(of_node(node), &format!("node {node}"), "orders")?;
        }
        Ok(Self { writer, failure: None })
    }

    /// The stages of a round, and what each node did in it. A node's computing is drawn up to the arrival of its
    /// answer: clocks of other processes are not read.
    pub(super) fn round(&mut self, round: &Round<'_>, stages: &StageEnds) {
        let times = &round.times;
        let place = json!({"step": round.step.0, "layer": round.layer.0});
        let mut from_ns = times.decide_ns;
        for (stage, ended_ns) in Stage::DECIDE.iter().zip(stages.0) {
            let name = format!("{stage:?}").to_lowercase();
            self.slice(STAGES, &name, (from_ns, ended_ns), place.clone());
            from_ns = ended_ns;
        }
        self.slice(STAGES, "dispatch", (times.sent_ns, times.replied_ns), place.clone());
        self.slice(STAGES, "absorb", (times.replied_ns, times.combined_ns), place);
        for (node, compute_ns) in round.computed {
            let leg = round.legs.iter().find(|(of, _)| of == node);
            let took_ns = leg.map_or(*compute_ns, |(_, took_ns)| *took_ns);
            let answered_ns = times.sent_ns + took_ns;
            let pairs = round.decision.orders.nodes.iter().find(|order| order.node == *node);
            let args = json!({
                "step": round.step.0,
                "layer": round.layer.0,
                "pairs": pairs.map(agents::orders::NodeOrder::pairs),
            });
            self.slice(of_node(*node), "order", (times.sent_ns, answered_ns), args);
            let computes_ns = (answered_ns.saturating_sub(*compute_ns), answered_ns);
            self.slice(of_node(*node), "compute", computes_ns, Value::Null);
        }
    }

    pub(super) fn batch(&mut self, step: u64, requests: usize, times_ns: (u64, u64)) {
        self.slice(BATCHES, "batch", times_ns, json!({"step": step, "requests": requests}));
    }

    pub(super) fn step(&mut self, tokens: u32, times_ns: (u64, u64)) {
        self.slice(BATCHES, "step", times_ns, json!({"tokens": tokens}));
    }

    /// A request from its intended start to its end.
    pub(super) fn request(&mut self, id: u64, times_ns: (u64, u64)) {
        let written = self.writer.span(REQUESTS, "request", times_ns, id, Value::Null);
        self.keep(written);
    }

    pub(super) fn answer(&mut self, answer: &Answer) {
        let id = answer.request.index() as u64;
        let args = json!({
            "waited_ms": answer.started_ns.saturating_sub(answer.intended_ns) as f64 / 1e6,
            "first_token_ms": answer.first_token_ns.saturating_sub(answer.intended_ns) as f64 / 1e6,
        });
        let times_ns = (answer.intended_ns, answer.finished_ns);
        let written = self.writer.span(REQUESTS, "request", times_ns, id, args);
        self.keep(written);
    }

    /// # Errors
    /// The first of all.
    pub(super) fn finish(self) -> Result<(), ResultsError> {
        self.failure.map_or_else(|| self.writer.finish(), Err)
    }

    fn slice(&mut self, track: Track, name: &str, times_ns: (u64, u64), args: Value) {
        let written = self.writer.slice(track, name, times_ns, args);
        self.keep(written);
    }

    fn keep(&mut self, written: Result<(), ResultsError>) {
        if let Err(error) = written {
            self.failure.get_or_insert(error);
        }
    }
}

fn of_node(node: NodeId) -> Track {
    Track { process: node.0 + 1, row: 0 }
}

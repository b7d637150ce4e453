//! What a run is doing while it goes.

use super::{FaultFigures, Outcomes};
use crate::measure::LatencyQuantiles;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nodes that a snapshot lists at most: those with the lowest ids.
pub const SNAPSHOT_NODES_MAX: usize = 256;

/// What a run was doing at the end of a round. Counts are from the start of the run and never fall.
///
/// Times are of the run's clock. A figure that cannot be said yet, or is not finite, is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Snapshot {
    /// Version of this layout.
    pub schema_version: u32,
    /// Name of the scenario.
    pub scenario: String,
    /// Seed of the run.
    pub seed: u64,
    /// Name of the router.
    pub router: String,
    /// What the run does, as `serving`.
    pub phase: String,
    /// Whether it goes or stands still.
    pub pace: PaceState,
    /// How it ended; null while it goes.
    pub end: Option<SnapshotEnd>,
    /// From the start of serving, without pauses, ns.
    pub elapsed_ns: u64,
    /// Batches, or steps of decoding, done.
    pub steps_done: u64,
    /// Batches or steps in all.
    pub steps: u64,
    /// Layers that were played, over all batches.
    pub rounds: u64,
    /// Requests of the run.
    pub requests: u64,
    /// Requests with their whole answer.
    pub answered: u64,
    /// How requests ended so far.
    pub outcomes: Outcomes,
    /// Tokens that were played, of requests under way too.
    pub tokens_played: u64,
    /// Tokens of answered requests.
    pub tokens_answered: u64,
    /// Tokens of answered requests a second, from the start of serving.
    pub tokens_per_s: Option<f64>,
    /// Largest ε of the layers' latest rounds, score units.
    pub epsilon_nash: Option<f64>,
    /// Largest gap to the optimum of the layers' latest rounds, a share.
    pub relative_gap: Option<f64>,
    /// Largest ε of all rounds, score units.
    pub epsilon_nash_worst: Option<f64>,
    /// Largest gap of all rounds, a share.
    pub relative_gap_worst: Option<f64>,
    /// Each layer's latest round.
    pub layers: Vec<LayerSnapshot>,
    /// From a request's intended arrival to its whole answer.
    pub latency_ns: LatencyQuantiles,
    /// From it to the first token, where answers are decoded.
    pub ttft_ns: Option<LatencyQuantiles>,
    /// Of each further token, a request's mean.
    pub tpot_ns: Option<LatencyQuantiles>,
    /// Nodes by id, the first 256 of them.
    pub nodes: Vec<NodeSnapshot>,
    /// Nodes in all.
    pub nodes_total: u64,
    /// Nodes that get work.
    pub nodes_up: u64,
    /// Bytes of the messages to nodes, without what carries them.
    pub sent_bytes: u64,
    /// Bytes of their messages, in the same way.
    pub received_bytes: u64,
    /// Faults that were survived so far; null where all experts are in this process.
    pub faults: Option<FaultFigures>,
}

/// A layer's latest round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LayerSnapshot {
    /// The layer.
    pub layer: u32,
    /// The batch or step.
    pub step: u64,
    /// Tokens that were played, T.
    pub tokens: u64,
    /// Tokens by expert, `[E]`; 0 where an expert is pruned.
    pub loads: Vec<u32>,
    /// The control: tokens by expert had each taken its plain top k, `[E]`.
    pub loads_top_k: Vec<u32>,
    /// The fair share Tk/E over the E experts in play, tokens.
    pub fair_share: f64,
    /// Tokens that an expert may take, where the cost is a quota.
    pub capacity: Option<u64>,
    /// Largest load over the fair share.
    pub max_over_mean: f64,
    /// The same of plain top k.
    pub max_over_mean_top_k: f64,
    /// ε: the most any token gains by changing its experts, score units.
    pub epsilon_nash: Option<f64>,
    /// Gap to the optimum, a share.
    pub relative_gap: Option<f64>,
    /// The potential Φ, score units.
    pub potential: Option<f64>,
    /// A bound on the largest potential.
    pub dual_bound: Option<f64>,
    /// Share of the scores that balance costs.
    pub score_loss: f64,
    /// The router's time, ns.
    pub route_ns: u64,
    /// From the orders to the combined output, ns.
    pub dispatch_ns: u64,
}

/// A node at the end of the latest round that was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeSnapshot {
    /// The node.
    pub node: u32,
    /// Whether it gets work.
    pub state: NodeState,
    /// Experts that it holds.
    pub experts: u64,
    /// Their encoded bytes.
    pub shard_bytes: u64,
    /// Token–expert pairs that the round asked of it.
    pub round_pairs: u64,
    /// Pairs that it was asked for and has not answered, those of messages given up too.
    pub pending_pairs: u64,
    /// Orders that it answered.
    pub orders: u64,
    /// Pairs that it answered.
    pub token_experts: u64,
    /// Time that it spent computing them, ns.
    pub compute_ns: u64,
    /// From the round's start to its answer, ns; null where it did not answer, or is in this process.
    pub answer_ns: Option<u64>,
    /// Bytes of the messages that asked it.
    pub sent_bytes: u64,
    /// Bytes of its messages.
    pub received_bytes: u64,
}

/// Whether a node gets work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It does.
    #[default]
    Up,
    /// Not for now: it was slow, or is leaving.
    Aside,
    /// Not any more.
    Lost,
}

/// Whether a run goes or stands still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PaceState {
    /// It goes.
    #[default]
    Running,
    /// It stands still before its next batch or step, or will.
    Paused,
    /// It was told to end.
    Stopping,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotEnd {
    /// `complete`, `interrupted` or `failed`, as in `summary.json`.
    pub status: super::Status,
    /// What ended it early.
    pub detail: Option<String>,
    /// Where its results are.
    pub results: Option<String>,
}

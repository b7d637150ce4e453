//! `summary.json`: the figures of a run, each beside its control. One file a group of its sections.

mod blocks;
mod experts;
mod load;
mod migration;
mod node_load;
mod node_memory;
mod nodes;
mod play;
mod quality;
mod reallocation;
mod serving;
mod theory;
mod uplinks;
mod virtual_time;

pub use blocks::{
    BlockFigures, BlockWidthFigures, JointFigures, JointPlayFigures, LimitFigure, StretchFigures,
    TokenFigures,
};
pub use experts::{Memory, PrecisionFigures, PruningFigures};
pub use load::{Outcomes, Pairs, Throughput};
pub use migration::MigrationFigures;
pub use node_load::{ExpectedNodeLoads, LoadsFrom, PlacementFigures, ServedNodeLoads};
pub use node_memory::NodeMemory;
pub use nodes::{FaultFigures, MembershipFigures, NodeFigures};
pub use play::{Convergence, FlockComparison, MotionFigures, SocialFigures};
pub use quality::Quality;
pub use reallocation::ReallocationFigures;
pub use serving::{GenerationFigures, GeneratorLag};
pub use theory::{
    BatchTimes, HottestExpert, QueueTheory, ResponseQuantile, StepTheory, TailTheory,
};
pub use uplinks::{UplinkFigures, UplinkStretch};
pub use virtual_time::VirtualTime;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::SCHEMA_VERSION;
use super::resumed::ResumeFigures;
use crate::measure::LatencyQuantiles;

/// The figures of one run. A figure that was not measured, or is not a finite number, is `null`, and
/// `null_reasons` says why under its path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Version of this layout.
    pub schema_version: u32,
    /// Name of the scenario.
    pub scenario: String,
    /// Seed of every random stream.
    pub seed: u64,
    /// BLAKE3 of every round's choices, prices, flock prices and output, hex: same scenario and seed,
    /// same hash on the same kind of CPU.
    pub state_hash: String,
    /// How the run ended.
    pub status: Status,
    /// What stopped it, where it did not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_detail: Option<String>,
    /// Cuts that the run went on after; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<ResumeFigures>,
    /// How long whoever watched the run had it stand still, ns: its clock stood still too. Absent where nobody
    /// did; of the part after its last cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ns: Option<u64>,
    /// Which figures are in virtual time; absent where nodes are real.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_time: Option<VirtualTime>,
    /// How far play ended from equilibrium, with certificates.
    pub convergence: Convergence,
    /// What the flock rules alone reach on the same scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flock: Option<FlockComparison>,
    /// Where router rows move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub motion: Option<MotionFigures>,
    /// Work done a second.
    pub throughput: Throughput,
    /// Latency of answered requests, late ones too, from their intended start, ns. Requests given up
    /// are under `outcomes.error`.
    pub latency_ns: LatencyQuantiles,
    /// From the intended start to the first token of an answer, ns; absent where nothing is generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ns: Option<LatencyQuantiles>,
    /// Time of each further token: of every request with more than one the mean, ns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_ns: Option<LatencyQuantiles>,
    /// From the intended start to the last token, ns: `latency_ns` by its name in serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2e_ns: Option<LatencyQuantiles>,
    /// What was generated, and how; absent where nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<GenerationFigures>,
    /// How late the load generator itself was; absent where no batch was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator_lag_ns: Option<GeneratorLag>,
    /// Measured tails beside what queueing theory says; absent where nothing was served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub theory: Option<TailTheory>,
    /// How requests ended.
    pub outcomes: Outcomes,
    /// Conservation of token–expert pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Pairs>,
    /// Size of the experts.
    pub memory: Memory,
    /// What the bytes were spent on; absent where experts stay in f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<PrecisionFigures>,
    /// What following the loads changed of the widths; absent where widths stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reallocation: Option<ReallocationFigures>,
    /// Which experts were pruned; absent where none are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruning: Option<PruningFigures>,
    /// Loss, where text was scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// How evenly the placement of the experts loaded the nodes; absent where the run ended before
    /// they were placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementFigures>,
    /// Experts that moved between nodes; absent where they stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationFigures>,
    /// One entry a node.
    pub nodes: Vec<NodeFigures>,
    /// Faults of nodes that the run survived; absent where all experts are in this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<FaultFigures>,
    /// Workers that came and went; absent where none can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub membership: Option<MembershipFigures>,
    /// Goals that the scenario states.
    #[serde(default)]
    pub goals: Vec<Goal>,
    /// Why a figure is null, by its path, as `convergence.relative_gap`.
    #[serde(default)]
    pub null_reasons: BTreeMap<String, String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All of it was played.
    Complete,
    /// Stopped from outside; the figures cover what was played.
    Interrupted,
    /// Stopped by an error; the figures cover what was played.
    Failed,
}

/// A goal that the scenario states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Goal {
    /// What is limited, with its unit, as `p99_ms`.
    pub name: String,
    /// The bound stated.
    pub limit: f64,
    /// What the run reached.
    pub measured: Option<f64>,
    /// Whether that holds the bound.
    pub met: bool,
}

impl Summary {
    /// The text of `summary.json`. Keys stand in the order of the struct. Every null has an entry in
    /// `null_reasons`: the caller's, or that it was not measured.
    ///
    /// # Panics
    /// Never: every key is a string, and serde_json writes what is not finite as null.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut whole = self.clone();
        let value = serde_json::to_value(self).expect("a summary has string keys only");
        let mut paths = Vec::new();
        null_paths("", &value, &mut paths);
        for path in paths {
            let reason = "not measured in this run, or not a finite number";
            whole.null_reasons.entry(path).or_insert_with(|| reason.to_owned());
        }
        serde_json::to_string_pretty(&whole).expect("a summary has string keys only") + "\n"
    }

    /// A summary to fill in: schema version set, complete, nothing measured.
    #[must_use]
    pub fn new(scenario: &str, seed: u64, memory: Memory) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            scenario: scenario.to_owned(),
            seed,
            state_hash: String::new(),
            status: Status::Complete,
            status_detail: None,
            resumed: None,
            paused_ns: None,
            virtual_time: None,
            convergence: Convergence::default(),
            flock: None,
            motion: None,
            throughput: Throughput::default(),
            latency_ns: LatencyQuantiles::default(),
            ttft_ns: None,
            tpot_ns: None,
            e2e_ns: None,
            generation: None,
            generator_lag_ns: None,
            theory: None,
            outcomes: Outcomes::default(),
            pairs: None,
            memory,
            precision: None,
            reallocation: None,
            pruning: None,
            quality: None,
            placement: None,
            migration: None,
            nodes: Vec::new(),
            faults: None,
            membership: None,
            goals: Vec::new(),
            null_reasons: BTreeMap::new(),
        }
    }

    /// Whether every stated goal was met (exit code 3 otherwise).
    #[must_use]
    pub fn goals_met(&self) -> bool {
        self.goals.iter().all(|goal| goal.met)
    }
}

/// The dotted paths of all nulls under `value`.
fn null_paths(path: &str, value: &Value, found: &mut Vec<String>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Null => found.push(path.to_owned()),
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| null_paths(&below(key), value, found));
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(at, value)| null_paths(&below(&at.to_string()), value, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_becomes_null_with_a_reason() {
        let mut summary = Summary::new("s", 1, Memory::new(10, 100, BTreeMap::new()));
        summary.convergence.epsilon_nash = Some(f64::NAN);
        summary.convergence.max_over_mean = Some(f64::INFINITY);
        summary.convergence.score_loss = Some(0.25);
        summary.null_reasons.insert("convergence.relative_gap".into(), "no prices".into());
        let read: Summary = serde_json::from_str(&summary.to_json()).expect("it is JSON");
        assert_eq!(read.convergence.epsilon_nash, None);
        assert_eq!(read.convergence.score_loss, Some(0.25));
        assert_eq!(read.null_reasons["convergence.relative_gap"], "no prices");
        for path in ["convergence.epsilon_nash", "convergence.max_over_mean", "latency_ns.p99"] {
            assert!(read.null_reasons.contains_key(path), "{path}");
        }
        assert!(!read.null_reasons.contains_key("convergence.score_loss"));
    }
}

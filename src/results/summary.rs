//! `summary.json`: the figures of a run, each beside its control.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::SCHEMA_VERSION;
use super::migration::MigrationFigures;
use super::node_load::PlacementFigures;
use super::reallocation::ReallocationFigures;
use super::resumed::ResumeFigures;
use super::serving::{GenerationFigures, GeneratorLag};
use super::theory::TailTheory;
use super::virtual_time::VirtualTime;
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

/// The play over all rounds. Certificates are the worst round's; balance and score loss are means
/// weighted by tokens, for the router and its control alike.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Convergence {
    /// Name of the router.
    pub router: String,
    /// Games played (layers × steps).
    pub rounds: u64,
    /// Steps of the router's own kind, summed.
    pub iterations: u64,
    /// Passes over the T × E scores, summed.
    #[serde(default)]
    pub passes: u64,
    /// Time of the router, summed, ns.
    #[serde(default)]
    pub route_ns: u64,
    /// Largest regret of a token, in units of affinity.
    pub epsilon_nash: Option<f64>,
    /// (D − Φ)/|D|: at most this far from the optimum.
    pub relative_gap: Option<f64>,
    /// Largest load over the fair share.
    pub max_over_mean: Option<f64>,
    /// The same in the worst round.
    #[serde(default)]
    pub max_over_mean_worst: Option<f64>,
    /// `max_over_mean` under plain top-k on the same scores: the control.
    pub max_over_mean_top_k: Option<f64>,
    /// Share of the affinity of plain top-k that balance cost.
    pub score_loss: Option<f64>,
    /// Slots that tokens were left without, summed over tokens with fewer than k experts.
    #[serde(default)]
    pub dropped_pairs: u64,
    /// Pairs beyond k of a token, summed.
    #[serde(default)]
    pub extra_pairs: u64,
    /// Smallest share of its top-k affinity that any token kept.
    #[serde(default)]
    pub kept_share_min: Option<f64>,
    /// Whether every round's relative gap is within the scenario's goal, or 1e-4 without one.
    pub converged: bool,
    /// The plays against the social optimum, where the scenario asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub social: Option<SocialFigures>,
}

/// What all tokens pay together, summed over rounds, in units of affinity: the affinity they give up
/// against plain top-k and the congestion they suffer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SocialFigures {
    /// Of the plays.
    pub cost: Option<f64>,
    /// The least there is: of the social optimum of every game, the control.
    pub optimum: Option<f64>,
    /// No plays cost less, certified.
    pub optimum_bound: Option<f64>,
    /// `cost` / `optimum`, given where every play is an equilibrium and the bound proves the optimum
    /// to within 1e-6: the games' price of anarchy is at least this.
    pub price_of_anarchy: Option<f64>,
}

/// The flock rules alone, on the same scores as the router.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlockComparison {
    /// Largest regret in the last quarter of the batches.
    pub epsilon_nash: Option<f64>,
    /// Largest relative gap in the last quarter of the batches.
    pub relative_gap: Option<f64>,
    /// Largest load over the fair share, mean over the first quarter of the batches, weighted by
    /// tokens as the router's.
    pub max_over_mean_first: Option<f64>,
    /// The same over the last quarter.
    pub max_over_mean_last: Option<f64>,
}

/// Router rows that moved (MODEL.md section 4). What it costs in loss stands in `quality`, whose controls
/// have the trained rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MotionFigures {
    /// The rule.
    pub rule: String,
    /// Rounds after which the rows of a layer moved or were put back.
    pub moves: u64,
    /// Of these the rounds after which they were put back, because plain top-k would have lost too much.
    pub undone: u64,
    /// Angle between a row and the trained one at the end, mean over all, radians.
    pub turned_mean_rad: f64,
    /// The largest of these angles, radians.
    pub turned_max_rad: f64,
}

/// Work done a second of serving: from its start to the end of the last batch, without loading,
/// calibration and controls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Throughput {
    /// Tokens of answered requests.
    pub tokens_per_s: Option<f64>,
    /// Tokens of requests that were answered in time.
    #[serde(default)]
    pub goodput_tokens_per_s: Option<f64>,
    /// Tokens a second that the load's mean rate offers: the control, which an open loop cannot exceed
    /// for long. A random stretch of arrivals may lie above or below it.
    #[serde(default)]
    pub offered_tokens_per_s: Option<f64>,
    /// Token–expert pairs combined.
    pub token_experts_per_s: Option<f64>,
    /// Payload sent and received, as in `rounds`; 0 where the experts are in this process.
    pub bytes_per_s: Option<f64>,
    /// What the rates were divided by, ns.
    #[serde(default)]
    pub elapsed_ns: u64,
}

/// How requests ended; every request counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outcomes {
    /// In time and whole.
    pub ok: u64,
    /// Whole, after the deadline.
    pub late: u64,
    /// Given up after waiting too long, before work began.
    pub timeout: u64,
    /// Refused before work began.
    pub shed: u64,
    /// Failed.
    pub error: u64,
    /// Answered with experts missing.
    pub partial: u64,
}

impl Outcomes {
    /// Requests in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.rows().iter().map(|(_, count)| count).sum()
    }

    /// Every outcome by its key.
    #[must_use]
    pub fn rows(&self) -> [(&'static str, u64); 6] {
        [
            ("ok", self.ok),
            ("late", self.late),
            ("timeout", self.timeout),
            ("shed", self.shed),
            ("error", self.error),
            ("partial", self.partial),
        ]
    }
}

/// Token–expert pairs: `dispatched = combined + missing + shed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pairs {
    /// Ordered by the game.
    pub dispatched: u64,
    /// Came back and was added once.
    pub combined: u64,
    /// Never came back.
    pub missing: u64,
    /// Not sent.
    pub shed: u64,
}

/// Size of the experts; scales and offsets are included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// Resident bytes of all experts as served, one copy of each however many replicas there are.
    pub expert_bytes: u64,
    /// Bytes of the same experts in `base_type`: the control.
    pub expert_bytes_f32: u64,
    /// Bits a weight, scales included.
    pub bits_per_weight: Option<f64>,
    /// 1 − `expert_bytes` / `expert_bytes_f32`.
    pub saving: Option<f64>,
    /// What the saving is counted against.
    pub base_type: String,
    /// Experts of each bit width; at 0 bits, those that are pruned.
    #[serde(default)]
    pub widths: BTreeMap<u32, u64>,
}

impl Memory {
    /// The sizes and what follows from them, against f32.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "sizes stay below 2^53")]
    pub fn new(expert_bytes: u64, weights: u64, widths: BTreeMap<u32, u64>) -> Self {
        let expert_bytes_f32 = weights * 4;
        let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        Self {
            expert_bytes,
            expert_bytes_f32,
            bits_per_weight: ratio(expert_bytes * 8, weights),
            saving: ratio(expert_bytes, expert_bytes_f32).map(|share| 1.0 - share),
            base_type: "f32".to_owned(),
            widths,
        }
    }
}

/// How well the precision budget was used. By sensitivity `loss`, costs are the expected divergence of the next
/// token's distribution from that of f32 experts, in nats; by `output`, they are relative squared errors of the layers' outputs
/// on calibration text under plain top-k, summed over experts; for experts that the text never
/// reached, or without a text, relative squared errors of the weights times a small assumed share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PrecisionFigures {
    /// Bytes that the budget allows.
    pub budget_bytes: u64,
    /// Who chose the widths.
    #[serde(default = "exact")]
    pub allocator: String,
    /// What costs are: `output` or `loss`.
    #[serde(default = "output")]
    pub sensitivity: String,
    /// What has a width of its own: `expert` or `matrix`.
    #[serde(default = "expert")]
    pub unit: String,
    /// Cost of the allocation in use.
    pub cost: f64,
    /// Bytes of the allocation in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Cost of the exact allocation: the control.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact_cost: Option<f64>,
    /// (`cost` − `exact_cost`) / `exact_cost`; absent where the exact allocation alone is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_to_exact: Option<f64>,
    /// No allocation within the budget costs less.
    pub dual_bound: f64,
    /// Whether the exact allocation is exact, not rounded to coarser sizes.
    #[serde(default)]
    pub exact: bool,
    /// Cost of the best uniform width within the budget: the control; absent where none fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uniform_cost: Option<f64>,
    /// Bytes of that uniform width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uniform_bytes: Option<u64>,
}

fn exact() -> String {
    "exact".to_owned()
}

fn output() -> String {
    "output".to_owned()
}

fn expert() -> String {
    "expert".to_owned()
}

/// Which experts were pruned: they take no bytes, no token can choose them, and every certificate is
/// that of the game over the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PruningFigures {
    /// By what experts were ranked: `reap` or `frequency`.
    pub by: String,
    /// The share of each layer that was asked for.
    pub share: f64,
    /// Experts of all layers.
    pub experts: u64,
    /// Those of them that are gone.
    pub pruned: u64,
    /// Pruned experts that ranking by frequency would have kept; absent where that is the ranking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlike_frequency: Option<u64>,
}

/// Cross-entropy in nats a token, with its controls on the same windows, in this process. Under plain
/// top-k a window's loss does not depend on its batch, so each is played once and weighted by how
/// often it was served; the routed control plays the run's own batches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Quality {
    /// Quantized experts, routed by the run's router.
    pub loss: Option<f64>,
    /// The f32 model with its own plain top-k.
    pub loss_f32: Option<f64>,
    /// ln V: a model that predicts nothing.
    pub loss_uniform: Option<f64>,
    /// The same quantized experts under plain top-k.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_top_k: Option<f64>,
    /// All experts at the best uniform width within the budget, under plain top-k: the control of
    /// mixed widths, to be held against `loss_top_k`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_top_k_uniform_bits: Option<f64>,
    /// The experts at the widths of the start, under the run's router, on the run's own batches: the control
    /// of re-allocation, to be held against `loss`. Absent where widths stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_widths_kept: Option<f64>,
    /// Relative squared error of the routed layers' outputs from those of f32 experts under the run's router, on
    /// the run's own batches, at the widths that the run had. Absent where widths stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// The same at the widths of the start: the control.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error_widths_kept: Option<f64>,
    /// f32 experts, those that are kept, under plain top-k: what pruning alone costs, to be held
    /// against `loss_f32`. Absent where nothing is pruned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_f32_pruned: Option<f64>,
    /// The same with as many experts pruned by frequency: the control of the criterion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_f32_pruned_by_frequency: Option<f64>,
    /// f32 experts, those that are kept, under the run's router, on the run's own batches: what
    /// routing alone costs. Absent where the router is plain top-k.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_f32_routed: Option<f64>,
    /// Tokens scored.
    pub tokens: u64,
}

/// One node over the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeFigures {
    /// Its id.
    pub node: u32,
    /// Where it listens, or how it is reached.
    pub address: String,
    /// Expert replicas hosted at the end.
    pub experts: u64,
    /// Bytes of those as they are sent: 28 bytes of header a shard more than in `memory`.
    pub bytes: u64,
    /// Token–expert pairs computed.
    pub tokens: u64,
    /// Time that the node reports for computing over the time of serving.
    pub busy_share: Option<f64>,
    /// Whether it answered to the end.
    pub alive: bool,
}

/// Faults of nodes that the run survived, and what that cost. Outputs are the same bits whatever
/// happens here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FaultFigures {
    /// Nodes that were lost for good.
    pub lost_nodes: u64,
    /// Times that a node was set aside for a while because it was slow.
    pub set_aside: u64,
    /// Orders whose outputs were compared bit by bit with those of other nodes.
    #[serde(default)]
    pub spot_checks: u64,
    /// Orders that were to be compared while no other node could compute them.
    #[serde(default)]
    pub spot_checks_skipped: u64,
    /// Nodes that were lost because a comparison found their outputs wrong.
    #[serde(default)]
    pub quarantined_nodes: u64,
    /// Replies that came from nodes after they were lost: dropped.
    #[serde(default)]
    pub stale_replies: u64,
    /// Replies to orders that were given up or beaten by a hedge: dropped.
    #[serde(default)]
    pub late_replies: u64,
    /// Second replies to orders that were answered: dropped.
    #[serde(default)]
    pub duplicate_replies: u64,
    /// Orders that were sent again because their stream broke.
    #[serde(default)]
    pub redelivered_orders: u64,
    /// Token–expert pairs that a replica was asked for because the first node failed.
    pub rerouted_pairs: u64,
    /// The longest round in which pairs were rerouted, from its orders to its last reply, ns.
    pub recovery_ns_max: Option<u64>,
    /// Orders that were asked of replicas too because the first node was slow.
    pub hedges: u64,
    /// Of these, those that were answered before the first node.
    pub hedges_won: u64,
    /// Their pairs over all pairs ordered: within `nodes.hedge_budget`.
    pub hedged_share: Option<f64>,
}

/// Workers that joined and left while the run went on. Outputs are the same bits whatever happens here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MembershipFigures {
    /// Changes of the membership: joined, got work, drained, out.
    pub epoch: u64,
    /// Times that a worker joined.
    pub joined: u64,
    /// Workers that drained and left once others held what they held.
    pub left: u64,
    /// Workers whose lease ran out.
    pub expired: u64,
    /// Workers whose connection broke, or that answered wrongly.
    pub dropped: u64,
    /// Requests to join that were of another run, or of a worker in quarantine.
    pub refused: u64,
    /// Copies of experts that were taken from nodes because others hold them as planned.
    #[serde(default)]
    pub copies_dropped: u64,
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

    #[test]
    fn sizes_are_counted_against_f32() {
        let memory = Memory::new(376, 1_000, BTreeMap::from([(3, 8)]));
        assert_eq!(memory.expert_bytes_f32, 4_000);
        assert_eq!(memory.bits_per_weight, Some(3.008));
        assert_eq!(memory.saving, Some(0.906));
        assert_eq!(Memory::new(0, 0, BTreeMap::new()).saving, None);
    }
}

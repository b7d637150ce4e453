//! The shape of a scenario file. These types are the only source of its keys, types, ranges and
//! defaults: the JSON Schema is derived from them and the reader checks files against that schema.

use std::path::PathBuf;

use agents::game::CostParameters;
use agents::precision::pruned_count;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::blocks::Blocks;
use super::budget::Budget;
pub use super::generation::{Generation, Lengths};
pub use super::migration::Migration;
pub use super::reallocate::{Reallocate, ReallocatePolicy};
pub use super::run::Run;
pub use super::sweep::Sweep;
pub use super::tls::Tls;
pub use super::virtual_nodes::{Shape, Topology, VirtualFault, VirtualNodes};

/// The one `schema_version` this version reads.
pub const SCHEMA_VERSION: u32 = 1;

/// A scenario: what is played, on which nodes, under which load, and what counts as success.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Version of this file format: 1, the only one so far.
    #[schemars(extend("enum" = [SCHEMA_VERSION]))]
    pub schema_version: u32,
    /// Name of the scenario in results: letters, digits, `-`, `_` and `.`, 1 to 64 of them.
    #[schemars(extend("format" = "name"))]
    pub name: String,
    /// Seed of every random stream, 0 to 2^63 - 1. Default 0.
    #[serde(default)]
    #[schemars(range(max = 9_223_372_036_854_775_807u64))]
    pub seed: u64,
    /// Where affinities and hidden states come from.
    pub source: Source,
    /// The routing game.
    pub game: Game,
    /// How experts share and move their prices from batch to batch.
    #[serde(default)]
    pub flock: Flock,
    /// Bit widths of the experts' weights.
    #[serde(default)]
    pub precision: Precision,
    /// The worker nodes that host the experts.
    #[serde(default)]
    pub nodes: Nodes,
    /// What nodes of engine `virtual` are like; others do not read it.
    #[serde(default, rename = "virtual")]
    pub virtual_nodes: VirtualNodes,
    /// The requests that arrive.
    pub load: Load,
    /// The coordinator's own resources.
    #[serde(default)]
    pub compute: Compute,
    /// How the run itself is kept: checkpoints.
    #[serde(default)]
    pub run: Run,
    /// What the run must reach; a missed goal ends it with exit code 3. Goals left out are not checked.
    #[serde(default)]
    pub goals: Goals,
    /// The same at many points; absent by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<Sweep>,
}

impl Scenario {
    /// Tokens that are in play together, at most: of a batch, or of a step where answers are generated.
    /// Calibration and controls play batches then too.
    #[must_use]
    pub fn batch_tokens_max(&self) -> u64 {
        let Load { batch_requests_max, tokens_per_request, generation, .. } = &self.load;
        let batch = u64::from(*batch_requests_max) * u64::from(*tokens_per_request);
        let step = if generation.is_off() { 0 } else { generation.step_tokens_max };
        batch.max(u64::from(step))
    }
}

/// Where affinities (and hidden states) come from.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// A trained Mixture-of-Experts checkpoint that reads text.
    Checkpoint {
        /// Folder of a checkpoint in the Hugging Face layout, or a GGUF file, relative to the scenario
        /// file.
        checkpoint: PathBuf,
        /// One or more UTF-8 text files, relative to the scenario file; read in this order.
        #[schemars(length(min = 1))]
        text: Vec<PathBuf>,
    },
    /// Random affinities: softmax or logits of N(0, 1) plus a bias for each expert.
    Synthetic {
        /// Experts in a layer, 1 to 65536.
        #[schemars(range(min = 1, max = 65_536))]
        experts: u32,
        /// Mixture-of-Experts layers, 1 to 1024. Default 1.
        #[serde(default = "default::layers")]
        #[schemars(range(min = 1, max = 1024))]
        layers: u32,
        /// Standard deviation of the per-expert bias, in logits, 0 to 100. Default 0: no expert is favoured.
        #[serde(default)]
        #[schemars(range(min = 0, max = 100))]
        skew: f64,
        /// Length of a token's hidden state, 1 to 65536. Default 64.
        #[serde(default = "default::width")]
        #[schemars(range(min = 1, max = 65_536))]
        width: u32,
        /// Rows of an expert's gate and up projections, 1 to 262144. Default 128.
        #[serde(default = "default::expert_hidden")]
        #[schemars(range(min = 1, max = 262_144))]
        expert_hidden: u32,
    },
}

/// The routing game.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Game {
    /// Name of the router: the dynamics that picks experts.
    pub router: String,
    /// Experts a token picks, 1 to the number of experts. Checkpoints default to the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub top_k: Option<u32>,
    /// What a token gains from an expert. Default `probability`.
    #[serde(default)]
    pub affinity: Affinity,
    /// Name of the congestion cost: `quota`, `linear`, `polynomial`, `latency`, or one of your own. Default `quota`.
    #[serde(default = "default::cost")]
    pub cost: String,
    /// Capacity of an expert in fair shares Tk/E, 1 to 65536; used by cost `quota`. Default 1.
    #[serde(default = "default::capacity_factor")]
    #[schemars(range(min = 1, max = 65_536))]
    pub capacity_factor: f64,
    /// Price of the load of one fair share, in affinity, 0 to 1000000; used by costs `linear` and `polynomial`. Default 0.1.
    #[serde(default = "default::price_per_fair_share")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub price_per_fair_share: f64,
    /// Power of the load in fair shares, 0 to 64; used by cost `polynomial`. Default 4, as for roads.
    #[serde(default = "default::degree")]
    #[schemars(range(min = 0, max = 64))]
    pub degree: f64,
    /// Service time of a token in ms, 0 to 1000000, one for every expert or one for all; cost `latency` needs it.
    #[serde(default)]
    #[schemars(length(max = 65_536), extend("items" = { "type": "number", "minimum": 0, "maximum": 1_000_000 }))]
    pub service_ms: Vec<f64>,
    /// Time in which a batch is to be served, in ms, 0.001 to 1000000; cost `latency` needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 1_000_000))]
    pub window_ms: Option<f64>,
    /// Standard deviation of service times over their mean, 0 to 1000; used by cost `latency`. Default 1: exponential.
    #[serde(default = "default::variation")]
    #[schemars(range(min = 0, max = 1000))]
    pub variation: f64,
    /// Price of a ms of waiting, in affinity, 0 to 1000000; used by cost `latency`. Default 0.01.
    #[serde(default = "default::price_per_ms")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub price_per_ms: f64,
    /// Whether the social optimum of each game is found too, to give the price of anarchy. Default false.
    #[serde(default)]
    pub social_optimum: bool,
    /// What the router may know when a batch is routed. Default `in-batch`.
    #[serde(default)]
    pub information: Information,
}

impl Game {
    /// What the keys of this section say to congestion costs; a window that is not given is 0.
    #[must_use]
    pub fn cost_parameters(&self) -> CostParameters {
        CostParameters {
            capacity_factor: self.capacity_factor,
            price_per_fair_share: self.price_per_fair_share,
            degree: self.degree,
            service_ms: self.service_ms.clone(),
            window_ms: self.window_ms.unwrap_or_default(),
            variation: self.variation,
            price_per_ms: self.price_per_ms,
        }
    }
}

/// What the router may know when a batch is routed. Only `stale` is causal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Information {
    /// The whole batch. Not causal: a token's experts depend on later tokens.
    #[default]
    InBatch,
    /// Prices of earlier batches and the token itself. Causal from batch to batch.
    Stale {
        /// Age of the prices in batches, 1 to 65536. Default 1, as in training.
        #[serde(default = "default::batches")]
        #[schemars(range(min = 1, max = 65_536))]
        batches: u32,
    },
    /// Several dispatchers, each with its own share of the batch. Not causal within a share.
    Partial {
        /// Dispatchers, 1 to 65536.
        #[schemars(range(min = 1, max = 65_536))]
        dispatchers: u32,
    },
}

/// What a token gains from an expert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Affinity {
    /// The router's softmax probability.
    #[default]
    Probability,
    /// The router's logit.
    Logit,
}

/// The `flock.motion` of rows that stand.
const NO_MOTION: &str = "none";

impl Flock {
    /// The rule by which rows move; none where they stand.
    #[must_use]
    pub fn motion_rule(&self) -> Option<&str> {
        Some(self.motion.as_str()).filter(|rule| *rule != NO_MOTION)
    }
}

/// How experts share and move their prices from batch to batch.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Flock {
    /// Whether prices are carried from batch to batch. Default true.
    pub enabled: bool,
    /// Nearest experts that an expert minds, 1 to 65535. Default 7, as starlings keep.
    #[schemars(range(min = 1, max = 65_535))]
    pub neighbours: u32,
    /// Price change, in affinity, per fair share of excess load, 0 to 1000. Default 0.003.
    #[schemars(range(min = 0, max = 1000))]
    pub price_step: f64,
    /// Weight of the neighbours' price changes in an expert's own, 0 to 1. Default 0.3.
    #[schemars(range(min = 0, max = 1))]
    pub alignment: f64,
    /// Rule by which router rows move after each batch: `boids`, `k_means`, `auxiliary_loss`, `consensus`,
    /// `random_step`, or one of your own; only with a checkpoint. Default `none`: they stand.
    pub motion: String,
    /// Angle that a row turns in a batch at most, radians, 0 to 1.5. Default 0.02.
    #[schemars(range(min = 0, max = 1.5))]
    pub motion_turn_max_rad: f64,
    /// Part of the trained router's scores that plain top-k may lose by a move, 0 to 1; a move that loses
    /// more is undone. Default 0.05.
    #[schemars(range(min = 0, max = 1))]
    pub motion_score_loss_max: f64,
}

impl Default for Flock {
    fn default() -> Self {
        Self {
            enabled: true,
            neighbours: 7,
            price_step: 0.003,
            alignment: 0.3,
            motion: NO_MOTION.to_owned(),
            motion_turn_max_rad: 0.02,
            motion_score_loss_max: 0.05,
        }
    }
}

/// Bit widths of the experts' weights.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Precision {
    /// Size of all experts, scales included, or `stored`: the codes of a quantized checkpoint. Default `f32`: not quantized.
    pub budget: Budget,
    /// Who chooses the widths: `exact`, `hull`, `flock`, `local_search`, `uniform:N`, or one of your own. Default `exact`.
    pub allocator: String,
    /// What widths are chosen by. Default `output`.
    pub sensitivity: Sensitivity,
    /// What has a width of its own. Default `expert`.
    pub unit: PrecisionUnit,
    /// Share of each layer's experts that is pruned, 0 to 0.99, rounded down. Default 0.
    #[schemars(range(min = 0, max = 0.99))]
    pub prune: f64,
    /// By what experts are ranked for pruning. Default `reap`.
    pub prune_by: PruneBy,
    /// Bits of a weight code that may be used, each 2, 4 or 8. Default all three.
    #[schemars(length(min = 1, max = 3), extend("items" = { "type": "integer", "enum": [2, 4, 8] }))]
    pub widths: Vec<u32>,
    /// Weights that share a scale, 32 or 64. Default 32.
    #[schemars(extend("enum" = [32, 64]))]
    pub group: u32,
    /// UTF-8 text that shows which experts matter, relative to the scenario file. Without it widths follow the weights alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration_text: Option<PathBuf>,
    /// Tokens of the calibration text that are read, 1 to 16777216. Default 2048.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub calibration_tokens: u32,
    /// Whether and how widths follow the loads during the run.
    pub reallocate: Reallocate,
}

impl Default for Precision {
    fn default() -> Self {
        Self {
            budget: Budget::Full,
            allocator: "exact".to_owned(),
            sensitivity: Sensitivity::Output,
            unit: PrecisionUnit::Expert,
            prune: 0.0,
            prune_by: PruneBy::Reap,
            widths: vec![2, 4, 8],
            group: 32,
            calibration_text: None,
            calibration_tokens: 2048,
            reallocate: Reallocate::default(),
        }
    }
}

impl Precision {
    /// Experts of a layer that pruning leaves of `experts`.
    #[must_use]
    pub fn kept_experts(&self, experts: usize) -> usize {
        experts - pruned_count(self.prune, experts)
    }
}

/// What widths are chosen by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sensitivity {
    /// The relative squared error of the layer's output.
    #[default]
    Output,
    /// The expected change of the model's predictions, in nats: output errors scaled by what they do to those.
    Loss,
}

/// What has a width of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrecisionUnit {
    /// An expert: its three matrices have one width.
    #[default]
    Expert,
    /// Each of an expert's gate, up and down matrices; needs sensitivity `loss`.
    Matrix,
}

/// By what experts are ranked for pruning, on the calibration requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PruneBy {
    /// Mean of gate times output norm over the tokens that an expert got.
    #[default]
    Reap,
    /// Share of tokens that an expert got: the control.
    Frequency,
}

/// The worker nodes that host the experts.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Nodes {
    /// Nodes, 1 to 4096, with engine `virtual` to 1000000. Default 1.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub count: u32,
    /// Nodes that host each expert under placement `round_robin`, 1 to `count`. Default 1.
    #[schemars(range(min = 1, max = 4096))]
    pub replicas: u32,
    /// Which nodes host which experts. Default `round_robin`.
    pub placement: PlacementRule,
    /// Expert copies in each layer beyond one an expert, 0 to 1048576; used by placements `eplb` and `planned`. Default 0.
    #[schemars(range(max = 1_048_576))]
    pub replica_slots: u32,
    /// Which node computes an expert's tokens where several hold it. Default `planned`.
    pub choice: Choice,
    /// Where nodes run. Default `in-process`.
    pub engine: Engine,
    /// Addresses of running workers for engine `peers`, one a node: `host:port`. Default none.
    #[schemars(length(max = 4096), extend("items" = { "type": "string", "format": "host-port" }))]
    pub peers: Vec<String>,
    /// Where the run listens for workers, `IP:PORT`; engine `join` needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "ip-port"))]
    pub listen: Option<String>,
    /// Workers that must have joined before the run starts, 1 to `count`; used by engine `join`. Default `count`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub min_workers: Option<u32>,
    /// A worker that joined and is not heard of for this long is out, in ms, 20 to 3600000. Default 1000.
    #[schemars(range(min = 20, max = 3_600_000))]
    pub lease_ms: u32,
    /// How long the run waits for `min_workers`, or for a worker while none holds an expert, in s, 1 to 86400. Default 60.
    #[schemars(range(min = 1, max = 86_400))]
    pub join_wait_s: u32,
    /// Whether `listen` and `peers` may be addresses of other machines though traffic is plain text. Default false.
    pub insecure_non_loopback: bool,
    /// Threads of a node, 1 to 1024. Default 1.
    #[schemars(range(min = 1, max = 1024))]
    pub threads: u32,
    /// Time a node has to answer one call, in ms, 1 to 3600000. Default 10000.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub deadline_ms: u32,
    /// Token–expert pairs that may be asked of a second node because the first is slow, for each pair
    /// ordered, 0 to 1; needs replicas. Default 0.05.
    #[schemars(range(min = 0, max = 1))]
    pub hedge_budget: f64,
    /// What the workers of engine `local` listen on. Default `unix`.
    pub sockets: Sockets,
    /// Connections that carry orders and replies, for each node, 1 to 16; health and shards have another.
    /// Default 1.
    #[schemars(range(min = 1, max = 16))]
    pub data_connections: u32,
    /// Orders whose outputs are compared bit by bit with those of other nodes, for each order, 0 to 1;
    /// needs replicas, and nodes of one kind of CPU. Default 0.
    #[schemars(range(min = 0, max = 1))]
    pub spot_check_share: f64,
    /// Where the outputs of a token's experts are summed. Default `exact`.
    pub combine: Combine,
    /// Certificates for TLS; by default connections are in plain text.
    #[serde(skip_serializing_if = "Tls::is_off")]
    pub tls: Tls,
    /// Whether and how experts move between nodes during the run.
    pub migration: Migration,
}

impl Nodes {
    /// Nodes that experts are placed on.
    #[must_use]
    pub fn seats(&self) -> usize {
        match self.engine {
            Engine::Peers => self.peers.len(),
            Engine::Local | Engine::InProcess | Engine::Virtual | Engine::Join => {
                self.count as usize
            }
        }
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            count: 1,
            replicas: 1,
            placement: PlacementRule::RoundRobin,
            replica_slots: 0,
            choice: Choice::Planned,
            engine: Engine::InProcess,
            peers: Vec::new(),
            listen: None,
            min_workers: None,
            lease_ms: 1_000,
            join_wait_s: 60,
            insecure_non_loopback: false,
            threads: 1,
            deadline_ms: 10_000,
            hedge_budget: 0.05,
            sockets: Sockets::Unix,
            data_connections: 1,
            spot_check_share: 0.0,
            combine: Combine::Exact,
            tls: Tls::default(),
            migration: Migration::default(),
        }
    }
}

/// Where the outputs of a token's experts are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// In the run: each node sends every expert's output, and results are the same bits on any placement.
    #[default]
    Exact,
    /// On each node for its own experts: fewer bytes, and the placement decides on the last bits.
    AtWorker,
}

/// What worker processes of the same machine listen on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sockets {
    /// Socket files in a folder that only this user can enter.
    #[default]
    Unix,
    /// TCP ports of the loopback interface.
    Tcp,
}

/// Which nodes host which experts. `eplb` and `planned` go by the loads of the calibration requests
/// under the scenario's own router, or by even loads where a checkpoint has no calibration text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlacementRule {
    /// Dealt to the nodes in turn, whatever their load.
    #[default]
    RoundRobin,
    /// The published balancer EPLB, without groups: the baseline.
    Eplb,
    /// A greedy start and a local search under exact dispatch.
    Planned,
}

impl PlacementRule {
    /// Its name in scenarios and results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Eplb => "eplb",
            Self::Planned => "planned",
        }
    }
}

/// Which node computes an expert's tokens where several hold it. Outputs are the same bits from each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// All of them, by a split that gives the busiest node the fewest pairs: nodes are taken to be equally fast.
    #[default]
    Planned,
    /// The better of two that are drawn, by what they still have to answer and how long they took lately.
    TwoChoices,
    /// One that is drawn: the control.
    Random,
    /// The next in turn: the control.
    RoundRobin,
}

impl Choice {
    /// Its name in scenarios.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::TwoChoices => "two_choices",
            Self::Random => "random",
            Self::RoundRobin => "round_robin",
        }
    }
}

/// Where nodes run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// In the coordinator's process, without a network.
    #[default]
    InProcess,
    /// `count` nodes in virtual time, as `[virtual]` describes them: experts compute in the coordinator's
    /// process, and latencies are those that such nodes would have.
    Virtual,
    /// `count` worker processes on this machine.
    Local,
    /// The workers that `peers` lists.
    Peers,
    /// Workers that join the run at `listen`, and may leave it and be replaced while it goes on.
    Join,
}

/// The requests that arrive.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// How arrivals are spaced. Default `poisson`.
    #[serde(default)]
    pub arrival: Arrival,
    /// Standard deviation of the gaps over their mean, 0.01 to 100, used by arrival `gamma`. Default 2.
    #[serde(default = "default::gap_variation")]
    #[schemars(range(min = 0.01, max = 100))]
    pub variation: f64,
    /// Requests that arrive together, 1 to 65536, used by arrival `burst`. Default 8.
    #[serde(default = "default::burst_requests")]
    #[schemars(range(min = 1, max = 65_536))]
    pub burst_requests: u32,
    /// CSV file with a column of arrival times, relative to the scenario file; arrival `trace` needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<PathBuf>,
    /// Requests that arrive in a second, 0.001 to 1000000.
    #[schemars(range(min = 0.001, max = 1_000_000))]
    pub rate_per_s: f64,
    /// Requests in the run, 1 to 100000000.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub requests: u32,
    /// Tokens of a request, 1 to 1048576. Default 64.
    #[serde(default = "default::tokens_per_request")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub tokens_per_request: u32,
    /// Requests that close a batch, 1 to 65536. Default 16.
    #[serde(default = "default::batch_requests_max")]
    #[schemars(range(min = 1, max = 65_536))]
    pub batch_requests_max: u32,
    /// A batch closes when full, or this long after its first intended arrival, in ms, 0 to 3600000. Default 50.
    #[serde(default = "default::batch_window_ms")]
    #[schemars(range(max = 3_600_000))]
    pub batch_window_ms: u32,
    /// A request answered later than this after its intended arrival counts as late, in ms, 1 to 3600000. Default 2000.
    #[serde(default = "default::deadline_ms")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub deadline_ms: u32,
    /// Which requests are served. Default `all`.
    #[serde(default)]
    pub admission: Admission,
    /// What a closed batch may wait while the queue stands, in ms, 1 to 3600000, used by admission `codel`. Default 20.
    #[serde(default = "default::queue_target_ms")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub queue_target_ms: u32,
    /// What it may wait otherwise, and how long the queue must not have been empty to stand, in ms, 1 to 3600000. Default 200.
    #[serde(default = "default::queue_interval_ms")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub queue_interval_ms: u32,
    /// Requests that may wait, 1 to 100000000, used by admission `codel`; more are shed. Default 1024.
    #[serde(default = "default::queue_requests_max")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub queue_requests_max: u32,
    /// Answers that requests have decoded token by token; by default requests are windows of text.
    #[serde(default)]
    pub generation: Generation,
}

/// Which requests are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Admission {
    /// All, however late.
    #[default]
    All,
    /// Those that can still be answered by `deadline_ms`, by the latest service times. What is shed, and
    /// so the state, then depends on the machine's speed.
    Deadline,
    /// Those that find room in a bounded queue and whose batch need not wait long (CoDel): others are shed,
    /// or end as `timeout`. The state then depends on the machine's speed.
    Codel,
}

/// How arrivals are spaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Arrival {
    /// Exponential gaps.
    #[default]
    Poisson,
    /// Equal gaps.
    Constant,
    /// Gamma gaps of coefficient of variation `variation`.
    Gamma,
    /// `burst_requests` at a time, at exponential gaps.
    Burst,
    /// As recorded in `trace`, stretched to `rate_per_s`.
    Trace,
}

/// The coordinator's own resources.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Compute {
    /// Threads of the coordinator, 1 to 1024; results do not depend on it. Default 2.
    #[schemars(range(min = 1, max = 1024))]
    pub threads: u32,
}

impl Default for Compute {
    fn default() -> Self {
        Self { threads: 2 }
    }
}

/// What the run must reach.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Goals {
    /// Largest relative gap to the optimum, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub relative_gap_max: Option<f64>,
    /// Largest load of an expert in fair shares, 1 to 65536.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub max_over_mean_max: Option<f64>,
    /// Largest node load over the mean one, of the run as `placement.served` sums it up, 1 to 4096.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub node_load_over_mean_max: Option<f64>,
    /// Largest 99th percentile of request latency, in ms, 0.001 to 3600000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 3_600_000))]
    pub p99_ms_max: Option<f64>,
}

mod default {
    pub(super) fn layers() -> u32 {
        1
    }
    pub(super) fn width() -> u32 {
        64
    }
    pub(super) fn expert_hidden() -> u32 {
        128
    }
    pub(super) fn cost() -> String {
        "quota".to_owned()
    }
    pub(super) fn degree() -> f64 {
        4.0
    }
    pub(super) fn variation() -> f64 {
        1.0
    }
    pub(super) fn price_per_ms() -> f64 {
        0.01
    }
    pub(super) fn batches() -> u32 {
        1
    }
    pub(super) fn capacity_factor() -> f64 {
        1.0
    }
    pub(super) fn price_per_fair_share() -> f64 {
        0.1
    }
    pub(super) fn gap_variation() -> f64 {
        2.0
    }
    pub(super) fn burst_requests() -> u32 {
        8
    }
    pub(super) fn tokens_per_request() -> u32 {
        64
    }
    pub(super) fn batch_requests_max() -> u32 {
        16
    }
    pub(super) fn batch_window_ms() -> u32 {
        50
    }
    pub(super) fn queue_target_ms() -> u32 {
        20
    }
    pub(super) fn queue_interval_ms() -> u32 {
        200
    }
    pub(super) fn queue_requests_max() -> u32 {
        1024
    }
    pub(super) fn deadline_ms() -> u32 {
        2000
    }
}

//! The keys of `[nodes]`.

mod migration;
mod tls;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::migration::Migration;
pub use self::tls::Tls;

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

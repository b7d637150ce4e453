//! The keys of `[virtual]`.

use super::blocks::Blocks;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nodes in virtual time: how long they compute and messages travel, and what goes wrong.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VirtualNodes {
    /// Time of a node for each message, in µs, 0 to 10^9. Default 20.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub setup_us: f64,
    /// Time of a node for each token–expert pair, in µs, 0 to 10^9. Default 1.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub pair_us: f64,
    /// Time of a node for each MiB of weights that it touches, in µs, 0 to 10^9: narrow widths are quicker.
    /// Default 100.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub weight_mib_us: f64,
    /// Time of a node for each MiB each time that its kernels read it, once for every panel of 8, 4, 2 or 1 tokens of
    /// an expert, in µs, 0 to 10^9. Default 0.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub pass_mib_us: f64,
    /// How a node's time varies. Default `constant`.
    pub service: Shape,
    /// Standard deviation of a node's time over its mean, 0.001 to 100; used by service `log_normal`. Default 0.2.
    #[schemars(range(min = 0.001, max = 100))]
    pub service_deviation: f64,
    /// Equally likely factors of a node's time, ascending, of mean 1, each 0 to 1000000; service `empirical` needs them.
    /// Default none.
    #[schemars(length(max = 65_536), extend("items" = { "type": "number", "minimum": 0, "maximum": 1_000_000 }))]
    pub service_factors: Vec<f64>,
    /// The same for all times of a step together: of the coordinator, nodes and ways. Default none.
    #[schemars(length(max = 65_536), extend("items" = { "type": "number", "minimum": 0, "maximum": 1_000_000 }))]
    pub step_factors: Vec<f64>,
    /// How many times as long as the others each node takes, by node, each 0.001 to 1000000; those beyond the list 1.
    /// Default none.
    #[schemars(length(max = 65_536), extend("items" = { "type": "number", "minimum": 0.001, "maximum": 1_000_000 }))]
    pub node_factors: Vec<f64>,
    /// Cores that all nodes share, as those of one machine do, 0 to 4096. Default 0: each has its own.
    #[schemars(range(max = 4096))]
    pub shared_cores: u32,
    /// Standard deviation of how slow nodes are, over its mean, 0 to 100. Default 0: all are alike.
    #[schemars(range(min = 0, max = 100))]
    pub node_deviation: f64,
    /// Memory of a node for the weights of its experts, replicas too, in bytes, 0 to 10^15: a placement that needs more is
    /// refused. Default 0: no limit.
    #[schemars(range(max = 1_000_000_000_000_000.0))]
    pub memory_bytes: u64,
    /// Which nodes are near each other. Default `flat`.
    pub topology: Topology,
    /// Nodes of a rack, 1 to 1000000. Default 32.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub rack_nodes: u32,
    /// Racks of a pod, 1 to 1000000. Default 16.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub pod_racks: u32,
    /// Least latency of a way within a rack, or any way where the topology is flat, in µs, 0.001 to 10^9. Default 20.
    #[schemars(range(min = 0.001, max = 1_000_000_000))]
    pub latency_us: f64,
    /// The same between racks. Default 40.
    #[schemars(range(min = 0.001, max = 1_000_000_000))]
    pub latency_rack_us: f64,
    /// The same between pods. Default 80.
    #[schemars(range(min = 0.001, max = 1_000_000_000))]
    pub latency_pod_us: f64,
    /// Mean of what comes on top of the least latency, exponential, in µs, 0 to 10^9. Default 0.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub jitter_us: f64,
    /// What a node sends, and at the same time receives, in Gbit/s, 0.000001 to 1000000. Default 25.
    #[schemars(range(min = 0.000_001, max = 1_000_000))]
    pub gbit_per_s: f64,
    /// What a rack sends to other racks, and at the same time receives of them, in Gbit/s, `gbit_per_s` to 10^9: messages
    /// of its nodes queue there. Default 0: as much as all its nodes together.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub rack_gbit_per_s: f64,
    /// The same of a pod and other pods. Default 0: as much as all its nodes together.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub pod_gbit_per_s: f64,
    /// Work of sending and of receiving a message, in µs, 0 to 10^6. Default 2.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub message_us: f64,
    /// From a crash until those who wait for the node know, in ms, 0 to 3600000. Default 1.
    #[schemars(range(min = 0, max = 3_600_000))]
    pub detect_ms: f64,
    /// Time of the coordinator for each round, in µs, 0 to 10^9. Default 0: only nodes and ways take time.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub coordinator_round_us: f64,
    /// Time of the coordinator for each token of a round, in µs, 0 to 10^9. Default 0.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub coordinator_token_us: f64,
    /// Time of the coordinator for each step besides, in µs, 0 to 10^9. Default 0.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub coordinator_step_us: f64,
    /// Time of the coordinator for each token of a step besides, in µs, 0 to 10^9. Default 0.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub coordinator_step_token_us: f64,
    /// Equally likely factors of the coordinator's time for a round, ascending, of mean 1, each 0 to 1000000. Default
    /// none: it does not vary.
    #[schemars(length(max = 65_536), extend("items" = { "type": "number", "minimum": 0, "maximum": 1_000_000 }))]
    pub coordinator_factors: Vec<f64>,
    /// Crashes of a node in an hour, at random, 0 to 3600000. Default 0.
    #[schemars(range(min = 0, max = 3_600_000))]
    pub crashes_per_hour: f64,
    /// Mean time until a node is back after such a crash, in ms, 0.001 to 3600000000. Default 10000.
    #[schemars(range(min = 0.001, max = 3_600_000_000.0))]
    pub crash_ms: f64,
    /// What goes wrong when. Default nothing.
    #[schemars(length(max = 65_536))]
    pub faults: Vec<VirtualFault>,
    /// Requests that only choose experts, at many front ends.
    pub blocks: Blocks,
}

impl Default for VirtualNodes {
    fn default() -> Self {
        Self {
            setup_us: 20.0,
            pair_us: 1.0,
            weight_mib_us: 100.0,
            pass_mib_us: 0.0,
            service: Shape::Constant,
            service_deviation: 0.2,
            service_factors: Vec::new(),
            step_factors: Vec::new(),
            node_factors: Vec::new(),
            shared_cores: 0,
            node_deviation: 0.0,
            memory_bytes: 0,
            topology: Topology::Flat,
            rack_nodes: 32,
            pod_racks: 16,
            latency_us: 20.0,
            latency_rack_us: 40.0,
            latency_pod_us: 80.0,
            jitter_us: 0.0,
            gbit_per_s: 25.0,
            rack_gbit_per_s: 0.0,
            pod_gbit_per_s: 0.0,
            message_us: 2.0,
            detect_ms: 1.0,
            coordinator_round_us: 0.0,
            coordinator_token_us: 0.0,
            coordinator_step_us: 0.0,
            coordinator_step_token_us: 0.0,
            coordinator_factors: Vec::new(),
            crashes_per_hour: 0.0,
            crash_ms: 10_000.0,
            faults: Vec::new(),
            blocks: Blocks::default(),
        }
    }
}

/// How a time varies about its mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Not at all.
    #[default]
    Constant,
    /// Exponentially.
    Exponential,
    /// Log-normally, by `service_deviation`.
    LogNormal,
    /// As was measured: by `service_factors`.
    Empirical,
}

/// Which nodes are near each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    /// All are.
    #[default]
    Flat,
    /// Those of a rack.
    Racks,
    /// Those of a rack, and then those of a pod.
    Pods,
}

/// One thing that goes wrong for a time.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum VirtualFault {
    /// A node loses what it has in hand and answers nothing, then starts anew.
    Crash {
        /// Which, from 0.
        #[schemars(range(max = 999_999))]
        node: u32,
        /// From when on, in ms of serving, 0 to 10^9.
        #[schemars(range(min = 0, max = 1_000_000_000))]
        at_ms: f64,
        /// For how long, in ms, 0.001 to 10^9.
        #[schemars(range(min = 0.001, max = 1_000_000_000))]
        for_ms: f64,
    },
    /// All nodes of a rack crash.
    RackLoss {
        /// Which, from 0.
        #[schemars(range(max = 999_999))]
        rack: u32,
        /// From when on, in ms of serving, 0 to 10^9.
        #[schemars(range(min = 0, max = 1_000_000_000))]
        at_ms: f64,
        /// For how long, in ms, 0.001 to 10^9.
        #[schemars(range(min = 0.001, max = 1_000_000_000))]
        for_ms: f64,
    },
    /// A node takes longer.
    Slow {
        /// Which, from 0.
        #[schemars(range(max = 999_999))]
        node: u32,
        /// From when on, in ms of serving, 0 to 10^9.
        #[schemars(range(min = 0, max = 1_000_000_000))]
        at_ms: f64,
        /// For how long, in ms, 0.001 to 10^9.
        #[schemars(range(min = 0.001, max = 1_000_000_000))]
        for_ms: f64,
        /// How many times as long, 0.01 to 1000000.
        #[schemars(range(min = 0.01, max = 1_000_000))]
        factor: f64,
    },
    /// A node stands still again and again, and goes on where it stood.
    Pause {
        /// Which, from 0.
        #[schemars(range(max = 999_999))]
        node: u32,
        /// From when on, in ms of serving, 0 to 10^9.
        #[schemars(range(min = 0, max = 1_000_000_000))]
        at_ms: f64,
        /// For how long, in ms, 0.001 to 10^9.
        #[schemars(range(min = 0.001, max = 1_000_000_000))]
        for_ms: f64,
        /// From a pause to the next, in ms, 0.001 to 10^9; more than `stopped_ms`.
        #[schemars(range(min = 0.001, max = 1_000_000_000))]
        every_ms: f64,
        /// Length of a pause, in ms, 0 to 10^9.
        #[schemars(range(min = 0, max = 1_000_000_000))]
        stopped_ms: f64,
    },
    /// No message passes between a rack and others.
    Partition {
        /// Which, from 0.
        #[schemars(range(max = 999_999))]
        rack: u32,
        /// From when on, in ms of serving, 0 to 10^9.
        #[schemars(range(min = 0, max = 1_000_000_000))]
        at_ms: f64,
        /// For how long, in ms, 0.001 to 10^9.
        #[schemars(range(min = 0.001, max = 1_000_000_000))]
        for_ms: f64,
    },
    /// Messages to and from a node are lost at random.
    Flaky {
        /// Which, from 0.
        #[schemars(range(max = 999_999))]
        node: u32,
        /// From when on, in ms of serving, 0 to 10^9.
        #[schemars(range(min = 0, max = 1_000_000_000))]
        at_ms: f64,
        /// For how long, in ms, 0.001 to 10^9.
        #[schemars(range(min = 0.001, max = 1_000_000_000))]
        for_ms: f64,
        /// Share of the messages, 0 to 1.
        #[schemars(range(min = 0, max = 1))]
        lost: f64,
    },
}

impl VirtualFault {
    /// The node or rack that it names, and which of the two that is.
    #[must_use]
    pub fn place(&self) -> (u32, &'static str) {
        match self {
            Self::Crash { node, .. }
            | Self::Slow { node, .. }
            | Self::Pause { node, .. }
            | Self::Flaky { node, .. } => (*node, "node"),
            Self::RackLoss { rack, .. } | Self::Partition { rack, .. } => (*rack, "rack"),
        }
    }
}

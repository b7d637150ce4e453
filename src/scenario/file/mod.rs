//! The shape of a scenario file. These types are the only source of its keys, types, ranges and
//! defaults: the JSON Schema is derived from them and the reader checks files against that schema.
//!
//! A section's keys stand in the file of its name: those of `[game]` in `game`, those of `[nodes.tls]` in
//! `nodes/tls`.

mod compute;
mod flock;
mod game;
mod goals;
mod load;
mod nodes;
mod precision;
mod run;
mod source;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::compute::Compute;
pub use self::flock::Flock;
pub use self::game::{Affinity, Game, Information};
pub use self::goals::Goals;
pub use self::load::{Admission, Arrival, Generation, Lengths, Load};
pub use self::nodes::{Choice, Combine, Engine, Migration, Nodes, PlacementRule, Sockets, Tls};
pub use self::precision::{
    Precision, PrecisionUnit, PruneBy, Reallocate, ReallocatePolicy, Sensitivity,
};
pub use self::run::Run;
pub use self::source::Source;
pub use super::blocks::{BlockWidth, Blocks, WidthsTo};
pub use super::sweep::Sweep;
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

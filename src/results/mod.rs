//! Run directories: manifest, summary, Parquet, histograms and the report.
//!
//! Nothing here measures: rows and figures arrive as plain structs. The report is a function of the
//! files in the directory alone, so it can be rebuilt from them at any time.

mod blocks;
pub mod checkpoint;
pub mod compare;
mod error;
mod files;
mod format;
mod layers;
mod manifest;
mod migration;
mod node_load;
mod observed;
mod parquet;
mod reallocation;
pub mod report;
mod resumed;
mod rows;
mod run_dir;
mod serving;
mod snapshot;
pub mod statistics;
mod summary;
mod table;
mod theory;
mod timeline;
mod trace;
mod virtual_time;

pub use blocks::{
    BlockFigures, JointFigures, JointPlayFigures, LimitFigure, StretchFigures, TokenFigures,
};
pub use checkpoint::CHECKPOINT_VERSION;
pub use error::ResultsError;
pub use files::{FileRecord, Hashing};
pub use layers::{LayerFigures, Layers, StepLoads, TOKENS_PLACED};
pub use manifest::{Machine, Manifest, ManifestNode, RunStart, Source, shell_line};
pub use migration::MigrationFigures;
pub use node_load::{ExpectedNodeLoads, LoadsFrom, PlacementFigures, ServedNodeLoads};
pub use observed::ObservedRow;
pub use parquet::{Column, Row, TableWriter, read_table};
pub use reallocation::ReallocationFigures;
pub use resumed::{ResumeFigures, Resumption};
pub use rows::{RequestRow, RoundRow};
pub use run_dir::{RunDir, RunLock};
pub use serving::{GenerationFigures, GeneratorLag};
pub use snapshot::{
    LayerSnapshot, NodeSnapshot, NodeState, PaceState, SNAPSHOT_NODES_MAX, Snapshot, SnapshotEnd,
};
pub use summary::{
    Convergence, FaultFigures, FlockComparison, Goal, MembershipFigures, Memory, MotionFigures,
    NodeFigures, Outcomes, Pairs, PrecisionFigures, PruningFigures, Quality, SocialFigures, Status,
    Summary, Throughput,
};
pub use table::summary_table;
pub use theory::{
    BatchTimes, HottestExpert, QueueTheory, ResponseQuantile, StepTheory, TailTheory,
};
pub use timeline::{NodeTimeline, TIMELINE_NODES_MAX, Timeline};
pub use trace::{TraceWriter, Track};
pub use virtual_time::VirtualTime;

/// The version of every file of a run directory; readers refuse newer ones.
pub const SCHEMA_VERSION: u32 = 1;

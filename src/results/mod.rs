//! Run directories: manifest, summary, Parquet, histograms and the report.
//!
//! Nothing here measures: rows and figures arrive as plain structs. The report is a function of the
//! files in the directory alone, so it can be rebuilt from them at any time.

pub mod checkpoint;
pub mod compare;
mod error;
mod files;
mod format;
mod layers;
mod manifest;
mod observed;
mod parquet;
pub mod report;
mod resumed;
mod rows;
mod run_dir;
mod snapshot;
pub mod statistics;
mod summary;
mod table;
mod timeline;
mod trace;

pub use checkpoint::CHECKPOINT_VERSION;
pub use error::ResultsError;
pub use files::{FileRecord, Hashing};
pub use layers::{LayerFigures, Layers, StepLoads, TOKENS_PLACED};
pub use manifest::{Machine, Manifest, ManifestNode, RunStart, Source, shell_line};
pub use observed::ObservedRow;
pub use parquet::{Column, Row, TableWriter, read_table};
pub use resumed::{ResumeFigures, Resumption};
pub use rows::{RequestRow, RoundRow};
pub use run_dir::{RunDir, RunLock};
pub use snapshot::{
    LayerSnapshot, NodeSnapshot, NodeState, PaceState, SNAPSHOT_NODES_MAX, Snapshot, SnapshotEnd,
};
pub use summary::{
    BatchTimes, BlockFigures, BlockWidthFigures, Convergence, ExpectedNodeLoads, FaultFigures,
    FlockComparison, GenerationFigures, GeneratorLag, Goal, HottestExpert, JointFigures,
    JointPlayFigures, LimitFigure, LoadsFrom, MembershipFigures, Memory, MigrationFigures,
    MotionFigures, NodeFigures, NodeMemory, Outcomes, Pairs, PlacementFigures, PrecisionFigures,
    PruningFigures, Quality, QueueTheory, ReallocationFigures, ResponseQuantile, ServedNodeLoads,
    SocialFigures, Status, StepTheory, StretchFigures, Summary, TailTheory, Throughput,
    TokenFigures, UplinkFigures, UplinkStretch, VirtualTime,
};
pub use table::summary_table;
pub use timeline::{NodeTimeline, TIMELINE_NODES_MAX, Timeline};
pub use trace::{TraceWriter, Track};

/// The version of every file of a run directory; readers refuse newer ones.
pub const SCHEMA_VERSION: u32 = 1;

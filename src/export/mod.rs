//! What monitoring systems are told while a run goes on: figures for Prometheus (feature `prometheus`) and spans for
//! OpenTelemetry (feature `otel`).
//!
//! Everything here only reads: no figure and no span reaches the game, and who asks, how often, or whether anybody is
//! there changes no `state_hash`. A build without a feature says which one it lacks.

mod address;
#[cfg(feature = "prometheus")]
mod encode;
#[cfg(not(feature = "prometheus"))]
mod no_page;
#[cfg(not(feature = "otel"))]
mod no_spans;
#[cfg(feature = "prometheus")]
mod node;
#[cfg(feature = "prometheus")]
mod page;
#[cfg(feature = "prometheus")]
mod run;
#[cfg(feature = "otel")]
mod spans;

pub use address::MetricsAddress;
#[cfg(not(feature = "prometheus"))]
pub use no_page::{NodePage, RunPage};
#[cfg(feature = "prometheus")]
pub use {node::NodePage, run::RunPage};

#[cfg(not(feature = "otel"))]
pub use no_spans::Spans;
#[cfg(feature = "otel")]
pub use spans::Spans;

use std::io;
use std::net::SocketAddr;

/// Why nothing can be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The build leaves it out.
    #[error(
        "{flag}: this build leaves that out; build it with `cargo build --release --features {feature}`"
    )]
    NotBuilt {
        /// Asked for.
        flag: &'static str,
        /// The feature that has it.
        feature: &'static str,
    },
    /// Spans cannot be sent there.
    #[error("--otlp: \"{endpoint}\": {reason}")]
    Endpoint {
        /// Asked for.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused what exporting needs.
    #[error("{flag}: {source}")]
    System {
        /// Asked for.
        flag: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The address is in use or not of this machine.
    #[error(
        "--metrics: cannot listen on {address}: {source}; choose another port (0 takes a free one)"
    )]
    Bind {
        /// Asked for.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
}

/// Where spans go, and what they are of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanTarget {
    /// A collector that speaks OTLP over gRPC, as `http://localhost:4317`.
    pub endpoint: String,
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the router.
    pub router: String,
    /// Seed of the run.
    pub seed: u64,
    /// Whether orders go to other processes.
    pub is_remote: bool,
    /// Whether the environment names the service.
    pub names_service: bool,
}

/// What became of the spans of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanCounts {
    /// The collector took them.
    pub exported: u64,
    /// It was not there or refused them, or time was up.
    pub failed: u64,
    /// Too many waited.
    pub dropped: u64,
}

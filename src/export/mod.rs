//! What monitoring systems are told while a run goes on: figures for Prometheus (feature `prometheus`) and spans for
//! OpenTelemetry (feature `otel`).
//!
//! Everything here only reads: no figure and no span reaches the game, and who asks, how often, or whether anybody is
//! there changes no `state_hash`. A build without a feature says which one it lacks.

mod address;
#[cfg(feature = "prometheus")]
mod encode;
#[cfg(feature = "prometheus")]
mod node;
#[cfg(feature = "prometheus")]
mod page;
#[cfg(not(feature = "prometheus"))]
#[path = "no_page.rs"]
mod page;

pub use address::MetricsAddress;
pub use page::MetricsPage;

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

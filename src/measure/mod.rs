//! Time, latency histograms and throughput.

pub mod clock;
pub mod latency;

pub use clock::Clock;
pub use latency::{Latency, LatencyQuantiles};

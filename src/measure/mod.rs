//! Time, latency histograms, throughput, and how sure a share is.

pub mod buckets;
pub mod clock;
pub mod latency;
pub mod memory;
pub mod share;

pub use buckets::{BucketCounts, Buckets};
pub use clock::Clock;
pub use latency::{Latency, LatencyQuantiles};

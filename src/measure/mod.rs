//! Time, latency histograms and throughput.

//! In the place of the spans, in builds without them.

use super::{ExportError, SpanCounts, SpanTarget};
use crate::run::Progress;
use std::convert::Infallible;
use std::time::SystemTime;

/// Never there.
#[derive(Debug)]
pub struct Spans(Infallible);

impl Spans {
    /// # Errors
    /// Always: the build sends no spans.
    pub fn start(_: &SpanTarget) -> Result<Self, ExportError> {
        Err(ExportError::NotBuilt { flag: "--otlp", feature: "otel" })
    }

    /// The run's clock started then.
    pub fn starts_at(&self, _: SystemTime) {
        match self.0 {}
    }

    /// What became of them.
    #[must_use]
    pub fn finish(self) -> SpanCounts {
        match self.0 {}
    }
}

impl Progress for Spans {
    fn phase(&self, _: &str) {
        match self.0 {}
    }

    fn answered(&self, _: u64, _: u64) {
        match self.0 {}
    }
}

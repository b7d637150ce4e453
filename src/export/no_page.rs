//! In the place of the pages, in builds without them.

use super::{ExportError, MetricsAddress};
use crate::run::Progress;
use crate::worker;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Never there.
#[derive(Debug)]
pub struct NodePage(Infallible);

impl NodePage {
    /// # Errors
    /// Always: the build has no such page.
    pub fn serve(_: MetricsAddress, _: Arc<worker::Figures>) -> Result<Self, ExportError> {
        Err(ExportError::NotBuilt { flag: "--metrics", feature: "prometheus" })
    }

    /// Where it is served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match self.0 {}
    }
}

/// Never there.
#[derive(Debug)]
pub struct RunPage(Infallible);

impl RunPage {
    /// # Errors
    /// Always: the build has no such page.
    pub fn serve(_: MetricsAddress) -> Result<Self, ExportError> {
        Err(ExportError::NotBuilt { flag: "--metrics", feature: "prometheus" })
    }

    /// Where it is served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match self.0 {}
    }

    /// How long somebody may take to read the last figures.
    #[must_use]
    pub fn awaited_for(&self) -> Option<Duration> {
        match self.0 {}
    }

    /// Keeps them until then.
    pub async fn end_when_read(self, _: Duration) {
        match self.0 {}
    }
}

impl Progress for RunPage {
    fn phase(&self, _: &str) {
        match self.0 {}
    }

    fn answered(&self, _: u64, _: u64) {
        match self.0 {}
    }
}

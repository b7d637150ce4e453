//! In the place of the page, in builds without it.

use super::{ExportError, MetricsAddress};
use crate::worker;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

/// Never there.
#[derive(Debug)]
pub struct MetricsPage(Infallible);

impl MetricsPage {
    /// # Errors
    /// Always: the build has no such page.
    pub fn of_node(_: MetricsAddress, _: Arc<worker::Figures>) -> Result<Self, ExportError> {
        Err(ExportError::NotBuilt { flag: "--metrics", feature: "prometheus" })
    }

    /// Where it is served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match self.0 {}
    }
}

//! `--metrics`: figures of a run or a node for Prometheus.

use super::Failure;
use crate::export::{ExportError, MetricsAddress, MetricsPage};
use crate::worker;

/// Serves the figures of a node from now on, where that is asked for, and has its address announced.
pub(super) fn of_node(
    address: Option<MetricsAddress>,
    settings: &mut worker::Settings,
) -> Result<Option<MetricsPage>, Failure> {
    let Some(address) = address else { return Ok(None) };
    let page = MetricsPage::of_node(address, settings.figures.clone()).map_err(failure)?;
    settings.metrics = Some(page.address());
    tracing::info!("figures at http://{}/metrics", page.address());
    Ok(Some(page))
}

fn failure(error: ExportError) -> Failure {
    Failure::bad_input(error)
}

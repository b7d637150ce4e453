//! The figures of a node.

use super::encode::{Families, by, one};
use super::page::Page;
use super::{ExportError, MetricsAddress};
use crate::worker::{Figures, NodeFigures};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// The figures of a node, served until this is dropped.
#[derive(Debug)]
pub struct NodePage(Page);

impl NodePage {
    /// Serves them from now on.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn serve(address: MetricsAddress, figures: Arc<Figures>) -> Result<Self, ExportError> {
        Page::serve(address, OfNode(figures)).map(Self)
    }

    /// Where they are served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }
}

/// Reads a node's counters when they are asked for.
#[derive(Debug)]
struct OfNode(Arc<Figures>);

impl Collector for OfNode {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let figures = self.0.now();
        let mut families = Families(encoder);
        orders(&mut families, &figures)?;
        shards(&mut families, &figures)?;
        standing(&mut families, &figures)
    }
}

fn orders(families: &mut Families<'_>, figures: &NodeFigures) -> fmt::Result {
    let reasons = |counts: &[(&'static str, u64)]| -> Vec<_> {
        counts.iter().map(|(reason, count)| (by("reason", reason), *count)).collect()
    };
    families.counter(
        ("worker_orders", None),
        "Orders that came, whatever became of them",
        one(figures.orders),
    )?;
    families.counter(
        ("worker_duplicate_orders", None),
        "Orders that were not computed because they had come before",
        one(figures.duplicates),
    )?;
    families.counter(
        ("worker_orders_refused", None),
        "Orders that were answered without outputs",
        reasons(&figures.orders_refused),
    )?;
    families.counter(
        ("worker_token_experts", None),
        "Pairs of token and expert that were computed",
        one(figures.token_experts),
    )?;
    families.seconds(
        "worker_compute",
        "Time that computing an order took",
        one(figures.computing.clone()),
    )?;
    families.counter(
        ("worker_calls_refused", None),
        "Calls that were turned away at the door",
        reasons(&figures.calls_refused),
    )?;
    families.counter(
        ("worker_shard_uploads_failed", None),
        "Uploads of shards that failed",
        reasons(&figures.uploads_failed),
    )
}

fn shards(families: &mut Families<'_>, figures: &NodeFigures) -> fmt::Result {
    families.counter(
        ("worker_shards_loaded", None),
        "Shards that arrived whole",
        one(figures.shards_loaded),
    )?;
    families.counter(
        ("worker_shards_loaded", Some(Unit::Bytes)),
        "Encoded bytes of shards that arrived whole",
        one(figures.shard_bytes_loaded),
    )?;
    families.counter(
        ("worker_shards_dropped", None),
        "Shards that were taken away because the coordinator said so",
        one(figures.shards_dropped),
    )?;
    let standing = &figures.standing;
    families.gauge(("worker_shards", None), "Shards that are held", one(standing.shards))?;
    families.gauge(
        ("worker_shards_resident", Some(Unit::Bytes)),
        "Encoded bytes of the shards that are held",
        one(standing.shard_bytes),
    )?;
    families.gauge(
        ("worker_shards_limit", Some(Unit::Bytes)),
        "Encoded bytes that shards may have together",
        one(standing.shard_bytes_max),
    )
}

fn standing(families: &mut Families<'_>, figures: &NodeFigures) -> fmt::Result {
    let (standing, attending) = (&figures.standing, &figures.attending);
    families.gauge(
        ("worker_calls", None),
        "Streams of orders and uploads of shards under way",
        one(standing.calls),
    )?;
    families.gauge(
        ("worker_draining", None),
        "1 while nothing new is taken",
        one(u64::from(standing.is_draining)),
    )?;
    families.gauge(
        ("worker_connections", None),
        "Connections, by whether they have shown that they belong here",
        [
            (by("peer", "known"), attending.connections.saturating_sub(attending.strangers)),
            (by("peer", "stranger"), attending.strangers),
        ],
    )?;
    families.counter(
        ("worker_peers_refused", None),
        "Connections, handshakes and calls that were refused",
        one(attending.refused),
    )
}

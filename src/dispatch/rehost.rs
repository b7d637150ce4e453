//! Experts that move to other nodes while rounds go on: copies under way to their new hosts.

use super::link::{self, Control};
use super::remote::{Uploaded, failed, upload_all};
use super::round_trip::Holders;
use super::{Deadlines, DispatchError, ShardAssignment};
use agents::expert::Expert;
use agents::ids::{ExpertId, LayerId, NodeId};
use proto::ShardName;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// An expert and the nodes that shall host it.
#[derive(Clone, Debug)]
pub struct Rehosting {
    /// The expert's layer.
    pub layer: LayerId,
    /// The expert.
    pub expert: ExpertId,
    /// What it computes with.
    pub expert_weights: Arc<Expert>,
    /// Its hosts, ascending, at least one: those that hold it already too.
    pub hosts: Vec<NodeId>,
}

/// What came of bringing experts to other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rehosted {
    /// Encoded bytes that went to other processes.
    pub sent_bytes: u64,
    /// Experts that some of their new hosts did not get: those that held them still do.
    pub incomplete: u64,
}

impl Rehosting {
    /// One for each host.
    pub(super) fn assignments(&self) -> impl Iterator<Item = ShardAssignment> {
        self.hosts.iter().map(|node| ShardAssignment {
            node: *node,
            layer: self.layer,
            expert: self.expert,
            expert_weights: Arc::clone(&self.expert_weights),
        })
    }
}

/// What is under way for running nodes.
#[derive(Debug, Default)]
pub(super) struct RehostingInFlight {
    /// The experts that shall have other hosts.
    pub(super) changes: Vec<Rehosting>,
    /// Experts that have, and nobody was told.
    pub(super) moved: Holders,
    uploads: JoinSet<Brought>,
    drops: JoinSet<()>,
}

/// What a node got, and what kept it from the rest.
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) uploaded: Vec<Uploaded>,
    pub(super) error: Option<DispatchError>,
}

impl RehostingInFlight {
    /// Begins to bring a node shards, one after the other.
    pub(super) fn bring(
        &mut self,
        control: Control,
        shards: Vec<ShardAssignment>,
        deadlines: Deadlines,
    ) {
        self.uploads.spawn(async move {
            let mut uploaded = Vec::with_capacity(shards.len());
            for shard in shards {
                match upload_all(control.clone(), vec![shard], deadlines).await {
                    Ok(one) => uploaded.extend(one),
                    Err(error) => return Brought { uploaded, error: Some(error) },
                }
            }
            Brought { uploaded, error: None }
        });
    }

    /// The next node that has what it was to get, or will not; none when all are done.
    pub(super) async fn brought(&mut self) -> Option<Brought> {
        self.uploads.join_next().await.map(|done| done.expect("uploads do not panic"))
    }

    /// Begins to take a copy from a node that is asked for it no more.
    pub(super) fn drop_copy(
        &mut self,
        node: NodeId,
        mut control: Control,
        (layer, expert): (LayerId, ExpertId),
        deadline: Duration,
    ) {
        self.drops.spawn(async move {
            let names = vec![ShardName { layer: layer.0, expert: expert.0 }];
            // It keeps what it was not made to drop.
            if let Err(error) = link::drop_shards(&mut control, names, deadline).await {
                tracing::warn!("{}", failed(node, error));
            }
        });
    }

    /// Waits until nodes have dropped what they were to drop.
    pub(super) async fn dropped(&mut self) {
        while self.drops.join_next().await.is_some() {}
    }
}

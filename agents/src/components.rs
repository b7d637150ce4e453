//! The components of the agents. Plain data; the systems in [`crate::round`] act on it.

use crate::expert::BitWidth;
use crate::ids::{ExpertId, LayerId, NodeId, RequestId, TokenId};
use bevy_ecs::prelude::Component;
use serde::{Deserialize, Serialize};

/// A token. The entity is pooled: batch after batch the same entities carry new tokens.
#[derive(Component, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Row in the dense matrices of the batch.
    pub row: TokenId,
}

/// The request a token belongs to in this batch; `None` while the entity waits in the pool.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seat(pub Option<RequestId>);

/// Share of its plain top-k affinity that a token kept in the current layer's play.
/// 1 where congestion cost it nothing; meaningless where logits make the top-k affinity ≤ 0.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq)]
pub struct KeptShare(pub f32);

/// An expert of one layer.
#[derive(Component, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expert {
    /// Its layer.
    pub layer: LayerId,
    /// Its id within the layer.
    pub expert: ExpertId,
}

/// Token–expert pairs that the router gave an expert in the latest batch, n_e.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load(pub u32);

/// The price p_e that the latest play was certified with: what the router ended with or, where play
/// is under stale prices, the price in force.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq)]
pub struct Price(pub f64);

/// What an expert knows by the flock's local rule alone.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlockPrice {
    /// Price in units of affinity, never negative.
    pub price: f64,
    /// Its last change, which the neighbours align with.
    pub velocity: f64,
    /// Pairs it would have had in the latest batch, had tokens followed the flock's prices.
    pub load: u32,
}

/// The nearest experts of the same layer by the angle between router rows, nearest first.
#[derive(Component, Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours(pub Vec<ExpertId>);

/// How an expert's weights are stored, and what that is worth.
#[derive(Component, Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// Bits of its codes.
    pub bits: BitWidth,
    /// Sum of the router probabilities routed to it since the run began, before gates are
    /// normalised: its observed importance.
    pub routed_gate: f64,
}

/// The nodes that hold an expert, ascending; more than one when it is replicated.
#[derive(Component, Clone, Debug, PartialEq, Eq)]
pub struct Hosts(pub Vec<NodeId>);

/// A worker node.
#[derive(Component, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub node: NodeId,
    /// Whether it should get work: a node that is not available gets that of the experts alone that
    /// no available node holds.
    pub available: bool,
}

/// What a node was asked to do since the run began.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeWork {
    /// Token–expert pairs ordered.
    pub pairs: u64,
    /// Token–expert pairs combined.
    pub combined: u64,
    /// Time the node reported for computing them.
    pub compute_ns: u64,
}

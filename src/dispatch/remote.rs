//! Nodes over gRPC: core types only, the wire types are behind `link` and `wire`.

use super::{
    Deadlines, Dispatch, DispatchError, Ledger, NodeStats, ShardAssignment, endpoint,
    link::{self, Link, LinkError, Until},
};
use crate::wire::{self, ReplyError, Ticket};
use agents::{
    ids::{ExpertId, LayerId, NodeId},
    orders::{NodeOrder, NodeReply, Orders, Replies},
};
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Running nodes. One message a node, layer and step goes out and one comes back.
#[derive(Debug)]
pub struct Remote {
    peers: Vec<Peer>,
    deadlines: Deadlines,
    /// Sends so far; orders the messages of every stream.
    sequence: u64,
}

#[derive(Debug)]
pub(super) struct Peer {
    link: Link,
    ledger: Ledger,
}

impl Remote {
    /// Connects to nodes at `HOST:PORT`, whose ids follow this order, and waits until they serve.
    ///
    /// # Errors
    /// [`DispatchError::Start`] for the first that is not there in time.
    pub async fn connect(
        addresses: &[String],
        deadlines: Deadlines,
    ) -> Result<Self, DispatchError> {
        let mut peers = Vec::with_capacity(addresses.len());
        for (node, address) in addresses.iter().enumerate() {
            peers.push(Peer::connect(NodeId::from_index(node), address, deadlines).await?);
        }
        Ok(Self::new(peers, deadlines))
    }

    /// The same over given channels, one pair for control and data a node: the seam for other
    /// transports than TCP.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn over(
        channels: Vec<(Channel, Channel)>,
        deadlines: Deadlines,
    ) -> Result<Self, DispatchError> {
        let mut peers = Vec::with_capacity(channels.len());
        for (node, (control, data)) in channels.into_iter().enumerate() {
            let link = Link::open(control, data, deadlines.start).await;
            peers.push(Peer::new(
                link.map_err(|error| not_started(NodeId::from_index(node), error))?,
            ));
        }
        Ok(Self::new(peers, deadlines))
    }

    pub(super) fn new(peers: Vec<Peer>, deadlines: Deadlines) -> Self {
        Self { peers, deadlines, sequence: 0 }
    }

    fn peer(&mut self, node: NodeId) -> Result<&mut Peer, DispatchError> {
        let count = self.peers.len();
        self.peers.get_mut(node.index()).ok_or_else(|| DispatchError::Refused {
            node,
            detail: format!("there are only {count} nodes"),
        })
    }
}

impl Peer {
    pub(super) async fn connect(
        node: NodeId,
        address: &str,
        deadlines: Deadlines,
    ) -> Result<Self, DispatchError> {
        let endpoint = endpoint(address).map_err(|detail| DispatchError::Start {
            node,
            detail,
            log: Vec::new(),
        })?;
        let (control, data) = (endpoint.connect_lazy(), endpoint.connect_lazy());
        Link::open(control, data, deadlines.start).await.map(Self::new).map_err(|error| {
            not_started(
                node,
                match error {
                    LinkError::Lost(detail) => LinkError::Lost(format!("{address}: {detail}")),
                    other => other,
                },
            )
        })
    }

    fn new(link: Link) -> Self {
        Self { link, ledger: Ledger::default() }
    }

    async fn post(
        &self,
        ticket: Ticket,
        order: &NodeOrder,
        (hidden, width): (&[f32], usize),
        until: Until,
    ) -> Result<(), LinkError> {
        let bytes_max = self.link.message_bytes_max;
        let request = wire::encode_order(ticket, order, hidden, width, until.left(), bytes_max)
            .map_err(|error| LinkError::Refused(error.detail))?;
        self.link.post(request, until).await
    }

    async fn reply(
        &mut self,
        ticket: Ticket,
        order: &NodeOrder,
        width: usize,
        until: Until,
    ) -> Result<NodeReply, LinkError> {
        let reply = self.link.reply(ticket.sequence, until).await?;
        let pairs = order.pairs();
        let reply =
            wire::decode_reply(&reply, ticket, order.node, pairs, width).map_err(|error| {
                match error {
                    ReplyError::Bad(detail) => LinkError::Bad(detail),
                    ReplyError::Expired => until.late(),
                    ReplyError::Refused(detail) => LinkError::Refused(detail),
                }
            })?;
        self.ledger.answered(pairs, &reply);
        Ok(reply)
    }
}

impl Dispatch for Remote {
    async fn load(&mut self, shards: Vec<ShardAssignment>) -> Result<(), DispatchError> {
        let mut by_node = vec![Vec::new(); self.peers.len()];
        for shard in shards {
            self.peer(shard.node)?;
            by_node[shard.node.index()].push(shard);
        }
        let mut uploads = JoinSet::new();
        for (peer, shards) in self.peers.iter().zip(by_node) {
            uploads.spawn(upload_all(peer.link.control(), shards, self.deadlines));
        }
        while let Some(done) = uploads.join_next().await {
            for (node, layer, expert, bytes) in done.expect("uploads do not panic")? {
                self.peers[node.index()].ledger.loaded(layer, expert, bytes);
            }
        }
        Ok(())
    }

    async fn send(
        &mut self,
        orders: &Orders,
        hidden: &[f32],
        width: usize,
    ) -> Result<Replies, DispatchError> {
        self.sequence += 1;
        let ticket = Ticket { step: orders.step, layer: orders.layer, sequence: self.sequence };
        let until = Until::after(self.deadlines.compute);
        if let Some(pair) = orders.nodes.windows(2).find(|pair| pair[0].node >= pair[1].node) {
            let detail = format!("its order follows that of node {}", pair[0].node);
            return Err(DispatchError::Refused { node: pair[1].node, detail });
        }
        // All are sent before the first reply is awaited, so the nodes compute at the same time.
        for order in &orders.nodes {
            let peer = self.peer(order.node)?;
            let posted = peer.post(ticket, order, (hidden, width), until).await;
            posted.map_err(|error| failed(order.node, error))?;
        }
        let mut nodes = Vec::with_capacity(orders.nodes.len());
        for order in &orders.nodes {
            let reply = self.peer(order.node)?.reply(ticket, order, width, until).await;
            nodes.push(reply.map_err(|error| failed(order.node, error))?);
        }
        Ok(Replies { nodes })
    }

    async fn close(self) -> Vec<NodeStats> {
        let stats = |(node, peer): (usize, &Peer)| peer.ledger.stats(NodeId::from_index(node));
        self.peers.iter().enumerate().map(stats).collect()
    }
}

type Uploaded = (NodeId, LayerId, ExpertId, usize);

async fn upload_all(
    mut control: link::Control,
    shards: Vec<ShardAssignment>,
    deadlines: Deadlines,
) -> Result<Vec<Uploaded>, DispatchError> {
    let mut uploaded = Vec::with_capacity(shards.len());
    for ShardAssignment { node, layer, expert, expert_weights } in shards {
        let encode = move || wire::encode_shard(layer, expert, &expert_weights);
        let encoded = tokio::task::spawn_blocking(encode).await;
        let (chunks, blake3) = encoded.expect("encoding an expert does not panic");
        let bytes = chunks.iter().map(|chunk| chunk.payload.len()).sum();
        link::upload(&mut control, chunks, &blake3, deadlines.load)
            .await
            .map_err(|error| failed(node, error))?;
        uploaded.push((node, layer, expert, bytes));
    }
    Ok(uploaded)
}

fn failed(node: NodeId, error: LinkError) -> DispatchError {
    match error {
        LinkError::Lost(detail) => DispatchError::NodeLost { node, detail, log: Vec::new() },
        LinkError::Timeout { deadline_ms } => DispatchError::Timeout { node, deadline_ms },
        LinkError::Refused(detail) => DispatchError::Refused { node, detail },
        LinkError::Bad(detail) => DispatchError::BadReply { node, detail },
    }
}

fn not_started(node: NodeId, error: LinkError) -> DispatchError {
    let detail = match error {
        LinkError::Lost(detail) | LinkError::Refused(detail) | LinkError::Bad(detail) => detail,
        LinkError::Timeout { deadline_ms } => format!("no answer within {deadline_ms} ms"),
    };
    DispatchError::Start { node, detail, log: Vec::new() }
}

//! Nodes over gRPC: core types only, the wire types are behind `link` and `wire`.

use super::{
    Deadlines, Dispatch, DispatchError, Faults, Ledger, RemoteSettings, Served, ShardAssignment,
    deliver::{Delivery, nanos},
    departures::Departures,
    health::Health,
    identity::Identity,
    link::{self, Link, LinkError},
    load::Loads,
    rehost::{Rehosted, Rehosting, RehostingInFlight},
    round_trip::Holders,
    spot_check::SpotCheck,
};
use crate::measure::Clock;
use crate::wire;
use agents::{
    ids::{ExpertId, LayerId, NodeId},
    membership::Pass,
    orders::{Orders, PairGates, Replies},
    placement::NodeLoad,
    queueing::ForkJoin,
};
use std::collections::BTreeSet;
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Running nodes. One message a node, layer and step goes out and one comes back, but for what is
/// asked of other nodes because the first failed or was slow.
#[derive(Debug)]
pub struct Remote {
    peers: Vec<Peer>,
    deadlines: Deadlines,
    holders: Holders,
    health: Health,
    loads: Loads,
    pub(super) faults: Faults,
    departures: Departures,
    pub(super) spot_check: SpotCheck,
    fork_join: ForkJoin,
    /// Of the latest round.
    legs: Vec<(NodeId, u64)>,
    clock: Clock,
    identity: Identity,
    rehosting: RehostingInFlight,
}

#[derive(Debug)]
pub(super) struct Peer {
    /// None where nobody has the seat, or the node ended its stream.
    pub(super) link: Option<Link>,
    /// The stay that this is, where nodes come and go.
    pub(super) pass: Option<Pass>,
    pub(super) ledger: Ledger,
    /// Why it is not asked any more.
    pub(super) lost: Option<String>,
    /// Whether it answered wrong outputs.
    pub(super) is_quarantined: bool,
}

impl Remote {
    /// Connects to nodes at `HOST:PORT` or `unix:PATH`, whose ids follow this order, and waits until
    /// they serve.
    ///
    /// # Errors
    /// [`DispatchError::Start`] for the first that is not there in time.
    pub async fn connect(
        addresses: &[String],
        settings: RemoteSettings,
    ) -> Result<Self, DispatchError> {
        let mut peers = Vec::with_capacity(addresses.len());
        for (node, address) in addresses.iter().enumerate() {
            peers.push(Peer::connect(NodeId::from_index(node), address, &settings).await?);
        }
        Ok(Self::new(peers, &settings))
    }

    /// The same over given channels, for each node one for control and at least one for data: the
    /// seam for other transports than sockets.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn over(
        channels: Vec<(Channel, Vec<Channel>)>,
        settings: RemoteSettings,
    ) -> Result<Self, DispatchError> {
        let mut peers = Vec::with_capacity(channels.len());
        for (node, (control, data)) in channels.into_iter().enumerate() {
            let deadline = settings.deadlines.start;
            let link = Link::open(control, data, &settings.access, deadline).await;
            peers.push(Peer::new(
                link.map_err(|error| not_started(NodeId::from_index(node), error))?,
            ));
        }
        Ok(Self::new(peers, &settings))
    }

    pub(super) fn new(peers: Vec<Peer>, settings: &RemoteSettings) -> Self {
        Self {
            health: Health::new(peers.len(), settings.hedge_budget),
            loads: Loads::new(peers.len(), nanos(settings.deadlines.compute)),
            peers,
            deadlines: settings.deadlines,
            spot_check: SpotCheck::new(settings),
            holders: Holders::new(),
            faults: Faults::default(),
            departures: Departures::default(),
            fork_join: ForkJoin::default(),
            legs: Vec::new(),
            clock: Clock::start(),
            identity: Identity::new(),
            rehosting: RehostingInFlight::default(),
        }
    }

    /// Nodes that come and go: `seats` of them, all vacant. Those that depart are lost at once.
    pub(super) fn vacant(seats: usize, departures: Departures, settings: &RemoteSettings) -> Self {
        let peers = (0..seats).map(|_| Peer::vacant()).collect();
        let mut remote = Self { departures, ..Self::new(peers, settings) };
        (0..seats).for_each(|node| remote.health.lose(NodeId::from_index(node)));
        remote
    }

    /// A node takes its seat: it gets work from now on. What its predecessors did stays on its bill.
    pub(super) fn seat(&mut self, node: NodeId, peer: Peer) {
        let seat = &mut self.peers[node.index()];
        let ledger = seat.ledger.succeeded_by(&peer.ledger);
        *seat = Peer { ledger, ..peer };
        self.health.revive(node);
        self.loads.forget(node);
    }

    /// Nobody has a seat any more. What its last node still says is `heard`, to be counted, until the
    /// seat is taken again; else its stream ends.
    pub(super) fn vacate(&mut self, node: NodeId, heard: bool) {
        let seat = &mut self.peers[node.index()];
        let ledger = seat.ledger.succeeded_by(&Ledger::default());
        let link = seat.link.take().filter(|_| heard);
        *seat = Peer { ledger, link, ..Peer::vacant() };
        self.health.lose(node);
        self.loads.forget(node);
    }

    /// Loses the nodes that departed since this was last asked, and says whether there were any.
    pub(super) fn note_departures(&mut self) -> bool {
        let mut any = false;
        while let Some((pass, why)) = self.departures.next() {
            let peer = &mut self.peers[pass.node.index()];
            if peer.pass == Some(pass) && peer.lost.is_none() {
                peer.lost = Some(why);
                self.health.lose(pass.node);
                self.faults.lost += 1;
                any = true;
            }
        }
        any
    }

    /// Whether a node has a seat and is not lost.
    pub(super) fn is_seated(&self, node: NodeId) -> bool {
        self.peers[node.index()].lost.is_none()
    }

    /// A node that has a seat and is not lost.
    pub(super) fn seated(&self, node: NodeId) -> Option<&Peer> {
        self.peers.get(node.index()).filter(|peer| peer.lost.is_none())
    }

    /// More shards that a seated node holds.
    pub(super) fn loaded(&mut self, uploaded: &[Uploaded]) {
        for (node, layer, expert, bytes) in uploaded {
            self.peers[node.index()].ledger.loaded(*layer, *expert, *bytes);
        }
    }

    /// The start of a node that was lost because it answered wrong outputs.
    pub(super) fn quarantined(&self, node: NodeId) -> Option<u64> {
        let peer = &self.peers[node.index()];
        peer.is_quarantined.then(|| peer.incarnation())
    }

    /// A shard that a seated node does not hold any more.
    pub(super) fn dropped(&mut self, node: NodeId, layer: LayerId, expert: ExpertId) {
        self.peers[node.index()].ledger.dropped(layer, expert);
    }

    /// Says which nodes hold each expert.
    pub(super) fn set_holders(&mut self, holders: Holders) {
        self.holders = holders;
    }

    /// See [`Self::set_holders`].
    pub(super) fn holders(&self) -> &Holders {
        &self.holders
    }

    /// A node that failed between rounds is not asked again.
    fn lose(&mut self, error: &DispatchError) {
        let node = error.node();
        let peer = &mut self.peers[node.index()];
        if peer.lost.is_none() {
            tracing::warn!("{error}; other nodes compute its experts where they hold them");
            peer.lost = Some(error.to_string());
            self.health.lose(node);
            self.faults.lost += 1;
        }
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
        settings: &RemoteSettings,
    ) -> Result<Self, DispatchError> {
        let channel = || {
            let bad = |detail| DispatchError::Start { node, detail, log: Vec::new() };
            settings.access.channel(address).map_err(bad)
        };
        let control = channel()?;
        let data: Result<_, _> = (0..settings.data_connections.max(1)).map(|_| channel()).collect();
        let link = Link::open(control, data?, &settings.access, settings.deadlines.start).await;
        link.map(Self::new).map_err(|error| {
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
        let ledger = Ledger::default();
        Self { link: Some(link), pass: None, ledger, lost: None, is_quarantined: false }
    }

    fn vacant() -> Self {
        let lost = Some("nobody has its seat".to_owned());
        Self { link: None, pass: None, ledger: Ledger::default(), lost, is_quarantined: false }
    }

    /// Which start of the node it is; 0 where that is not known.
    pub(super) fn incarnation(&self) -> u64 {
        self.link.as_ref().map_or(0, Link::incarnation)
    }

    /// For uploads.
    pub(super) fn control(&self) -> Option<link::Control> {
        self.link.as_ref().map(Link::control)
    }
}

impl Dispatch for Remote {
    async fn load(&mut self, shards: Vec<ShardAssignment>) -> Result<(), DispatchError> {
        self.spot_check.know(&shards);
        let mut by_node = vec![Vec::new(); self.peers.len()];
        for shard in shards {
            self.peer(shard.node)?;
            by_node[shard.node.index()].push(shard);
        }
        let mut uploads = JoinSet::new();
        for (peer, shards) in self.peers.iter().zip(by_node) {
            if let Some(control) = peer.control() {
                uploads.spawn(upload_all(control, shards, self.deadlines));
            }
        }
        while let Some(done) = uploads.join_next().await {
            for (node, layer, expert, bytes) in done.expect("uploads do not panic")? {
                self.peers[node.index()].ledger.loaded(layer, expert, bytes);
                let hosts = self.holders.entry((layer, expert)).or_default();
                if let Err(place) = hosts.binary_search(&node) {
                    hosts.insert(place, node);
                }
            }
        }
        Ok(())
    }

    async fn replace(&mut self, shards: Vec<ShardAssignment>) -> Result<u64, DispatchError> {
        self.spot_check.know(&shards);
        let mut by_node = vec![Vec::new(); self.peers.len()];
        for shard in shards {
            self.peer(shard.node)?;
            by_node[shard.node.index()].push(shard);
        }
        let mut uploads = JoinSet::new();
        for (peer, shards) in self.peers.iter().zip(by_node) {
            let control = peer.control().filter(|_| peer.lost.is_none() && !shards.is_empty());
            if let Some(control) = control {
                uploads.spawn(upload_all(control, shards, self.deadlines));
            }
        }
        let mut sent_bytes = 0;
        while let Some(done) = uploads.join_next().await {
            match done.expect("uploads do not panic") {
                Ok(uploaded) => {
                    sent_bytes += uploaded.iter().map(|shard| shard.3 as u64).sum::<u64>();
                    self.loaded(&uploaded);
                }
                // It may hold the weights of before, and must not be asked for what they give.
                Err(error) => self.lose(&error),
            }
        }
        Ok(sent_bytes)
    }

    async fn rehost(&mut self, changes: Vec<Rehosting>) -> Result<(), DispatchError> {
        for node in changes.iter().flat_map(|change| &change.hosts) {
            self.peer(*node)?;
        }
        // What was dropped before may come again.
        self.rehosting.dropped().await;
        let mut by_node = vec![Vec::new(); self.peers.len()];
        for change in &changes {
            let holders = self.holders.get(&(change.layer, change.expert));
            let lacks = |shard: &ShardAssignment| {
                let is_held = holders.is_some_and(|holders| holders.contains(&shard.node));
                !is_held && self.is_seated(shard.node)
            };
            for shard in change.assignments().filter(lacks) {
                by_node[shard.node.index()].push(shard);
            }
        }
        // The next step but one waits for it, and no longer than for an order.
        let load = self.deadlines.load.min(self.deadlines.compute);
        let deadlines = Deadlines { load, ..self.deadlines };
        for (peer, shards) in self.peers.iter().zip(by_node) {
            if let Some(control) = peer.control().filter(|_| !shards.is_empty()) {
                self.rehosting.bring(control, shards, deadlines);
            }
        }
        self.rehosting.changes = changes;
        Ok(())
    }

    async fn rehosted(&mut self) -> Result<Rehosted, DispatchError> {
        let mut found = Rehosted::default();
        let mut arrived = BTreeSet::new();
        while let Some(brought) = self.rehosting.brought().await {
            self.loaded(&brought.uploaded);
            for (node, layer, expert, bytes) in brought.uploaded {
                found.sent_bytes += bytes as u64;
                arrived.insert((layer, expert, node));
            }
            // One that has no room for a copy, or is slow, still serves what it holds.
            match brought.error {
                Some(error @ (DispatchError::Refused { .. } | DispatchError::Timeout { .. })) => {
                    tracing::warn!("{error}; it gets no copy")
                }
                Some(error) => self.lose(&error),
                None => {}
            }
        }
        for change in std::mem::take(&mut self.rehosting.changes) {
            let name = (change.layer, change.expert);
            let before = self.holders.get(&name).cloned().unwrap_or_default();
            let has = |node: &NodeId| {
                let is_there = before.contains(node) || arrived.contains(&(name.0, name.1, *node));
                is_there && self.is_seated(*node)
            };
            let mut hosts: Vec<NodeId> = change.hosts.iter().copied().filter(has).collect();
            let is_whole = hosts.len() == change.hosts.len();
            if !is_whole {
                found.incomplete += 1;
                hosts.extend(before.iter().filter(|node| !change.hosts.contains(node)));
                hosts.sort_unstable();
            }
            if hosts.is_empty() {
                continue;
            }
            for node in before.into_iter().filter(|node| !hosts.contains(node)) {
                self.dropped(node, change.layer, change.expert);
                if let Some(control) = self.seated(node).and_then(Peer::control) {
                    self.rehosting.drop_copy(node, control, name, self.deadlines.load);
                }
            }
            self.rehosting.moved.insert(name, hosts.clone());
            self.holders.insert(name, hosts);
        }
        Ok(found)
    }

    async fn deliver(
        &mut self,
        orders: &Orders,
        gates: Option<&PairGates>,
        hidden: &[f32],
        width: usize,
    ) -> Result<Replies, DispatchError> {
        if let Some(pair) = orders.nodes.windows(2).find(|pair| pair[0].node >= pair[1].node) {
            let detail = format!("its order follows that of node {}", pair[0].node);
            return Err(DispatchError::Refused { node: pair[1].node, detail });
        }
        self.legs.clear();
        let delivery = Delivery {
            peers: &mut self.peers,
            health: &mut self.health,
            loads: &mut self.loads,
            faults: &mut self.faults,
            departures: &mut self.departures,
            spot_check: &self.spot_check,
            identity: &mut self.identity,
            fork_join: &mut self.fork_join,
            legs: &mut self.legs,
            clock: self.clock,
            deadline: self.deadlines.compute,
            gates,
            hidden,
            width,
        };
        delivery.run(orders, &self.holders).await
    }

    fn is_available(&self, node: NodeId) -> bool {
        self.health.is_available(node, self.clock.now_ns())
    }

    fn legs(&self) -> &[(NodeId, u64)] {
        &self.legs
    }

    fn node_load(&self, node: NodeId) -> NodeLoad {
        self.loads.of(node, self.clock.now_ns())
    }

    fn moved(&mut self) -> Option<Holders> {
        let moved = &mut self.rehosting.moved;
        (!moved.is_empty()).then(|| std::mem::take(moved))
    }

    fn so_far(&self) -> Served {
        let stats = |(node, peer): (usize, &Peer)| {
            let node = NodeId::from_index(node);
            peer.ledger.stats(node, self.health.is_lost(node))
        };
        let nodes = self.peers.iter().enumerate().map(stats).collect();
        let fork_join = Some(self.fork_join.clone());
        Served { nodes, faults: self.faults, fork_join, ..Served::default() }
    }

    async fn close(self) -> Served {
        self.so_far()
    }
}

/// A shard that a node has, and its encoded bytes.
pub(super) type Uploaded = (NodeId, LayerId, ExpertId, usize);

pub(super) async fn upload_all(
    mut control: link::Control,
    shards: Vec<ShardAssignment>,
    deadlines: Deadlines,
) -> Result<Vec<Uploaded>, DispatchError> {
    let mut uploaded = Vec::with_capacity(shards.len());
    for ShardAssignment { node, layer, expert, expert_weights } in shards {
        let is_small = expert_weights.encoded_bytes() <= wire::SMALL_SHARD_BYTES as u64;
        let encode = move || wire::encode_shard(layer, expert, &expert_weights);
        let (chunks, blake3) = if is_small {
            encode()
        } else {
            let encoded = tokio::task::spawn_blocking(encode).await;
            encoded.expect("encoding an expert does not panic")
        };
        let bytes = chunks.iter().map(|chunk| chunk.payload.len()).sum();
        link::upload(&mut control, chunks, &blake3, deadlines.load)
            .await
            .map_err(|error| failed(node, error))?;
        uploaded.push((node, layer, expert, bytes));
    }
    Ok(uploaded)
}

pub(super) fn failed(node: NodeId, error: LinkError) -> DispatchError {
    match error {
        LinkError::Lost(detail) => DispatchError::NodeLost { node, detail, log: Vec::new() },
        LinkError::Timeout { deadline_ms } => DispatchError::Timeout { node, deadline_ms },
        LinkError::Busy => DispatchError::NodeLost {
            node,
            detail: "it takes no more requests".into(),
            log: Vec::new(),
        },
        LinkError::Refused(detail) => DispatchError::Refused { node, detail },
        LinkError::Bad(detail) => DispatchError::BadReply { node, detail },
    }
}

fn not_started(node: NodeId, error: LinkError) -> DispatchError {
    let detail = match error {
        LinkError::Lost(detail) | LinkError::Refused(detail) | LinkError::Bad(detail) => detail,
        LinkError::Timeout { deadline_ms } => format!("no answer within {deadline_ms} ms"),
        LinkError::Busy => "it takes no requests".to_owned(),
    };
    DispatchError::Start { node, detail, log: Vec::new() }
}

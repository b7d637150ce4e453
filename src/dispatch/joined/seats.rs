//! The seats as the dispatcher has them: it follows the register, connects to those that join, brings
//! them their shards, and lets go of those that leave. It never waits; uploads run beside the rounds.

use super::super::{
    link,
    remote::{Peer, Uploaded, failed, upload_all},
    round_trip::Holders,
};
use super::{DispatchError, Joined, RemoteSettings, Shard, ShardAssignment};
use agents::{
    expert::Expert,
    ids::{ExpertId, LayerId, NodeId},
    membership::{Pass, Phase, Share, shares},
};
use proto::ShardName;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One seat.
#[derive(Debug, Default)]
pub(super) struct Seat {
    /// Whose it is.
    pass: Option<Pass>,
    /// Connected, while it gets its first shards.
    waiting: Option<Peer>,
    /// Whether it gets work.
    serves: bool,
    pub(super) is_draining: bool,
    /// Whether an upload is under way.
    busy: bool,
    /// Shards it has, by place.
    held: BTreeSet<usize>,
}

/// What became of connecting to a member and bringing it shards.
#[derive(Debug)]
pub(super) struct Upload {
    pass: Pass,
    /// Places and versions.
    shards: Vec<(usize, u32)>,
    result: Result<(Option<Peer>, Vec<Uploaded>), DispatchError>,
}

impl Joined {
    /// Does all that can be done without waiting. Costs little where nothing happened since.
    pub(super) fn catch_up(&mut self) {
        let mut is_news = self.remote.note_departures();
        while let Some(upload) = self.uploads.try_join_next() {
            self.uploaded(upload.expect("uploads do not panic"));
            is_news = true;
        }
        is_news |= self.drop_lost();
        if !is_news && !self.is_behind && self.goal_of == Some(*self.changes.borrow()) {
            return;
        }
        self.is_behind = false;
        self.has_leftover = true;
        let members = self.register.members();
        for (at, seat) in self.seats.iter_mut().enumerate() {
            let is_member = |pass: Pass| members.iter().any(|(member, _)| member.pass == pass);
            if seat.pass.is_some_and(|pass| !is_member(pass)) {
                *seat = Seat::default();
                self.remote.vacate(NodeId::from_index(at), true);
                self.moved = true;
            }
        }
        for (member, _) in &members {
            let seat = &mut self.seats[member.pass.node.index()];
            seat.pass = Some(member.pass);
            seat.is_draining = member.phase == Phase::Draining;
        }
        self.aim();
        self.bring_shards();
        self.promote();
        self.let_go();
        self.note_holders();
    }

    /// An upload ended.
    pub(super) fn uploaded(&mut self, upload: Upload) {
        let Upload { pass, shards, result } = upload;
        self.is_behind = true;
        let seat = &mut self.seats[pass.node.index()];
        if seat.pass != Some(pass) {
            return;
        }
        seat.busy = false;
        match result {
            Ok((peer, uploaded)) => {
                if let Some(peer) = &peer
                    && self.register.is_quarantined(peer.incarnation())
                {
                    self.register.drop_member(pass);
                    return;
                }
                let of_now = |(at, version): &(usize, u32)| self.shards[*at].version == *version;
                seat.held.extend(shards.iter().filter(|s| of_now(s)).map(|(at, _)| at));
                if let Some(mut peer) = peer {
                    peer.pass = Some(pass);
                    for (_, layer, expert, bytes) in &uploaded {
                        peer.ledger.loaded(*layer, *expert, *bytes);
                    }
                    seat.waiting = Some(peer);
                } else {
                    self.remote.loaded(&uploaded);
                }
            }
            Err(error) => {
                tracing::warn!("{error}; it is out");
                self.register.drop_member(pass);
            }
        }
    }

    /// A shard has other weights from now on: nobody holds it until it is brought anew. Gives how many held it.
    pub(super) fn outdate(&mut self, at: usize, weights: Arc<Expert>) -> u64 {
        self.needs[at].bytes = weights.encoded_bytes();
        let shard = &mut self.shards[at];
        (shard.weights, shard.version) = (weights, shard.version + 1);
        self.is_behind = true;
        self.seats.iter_mut().map(|seat| u64::from(seat.held.remove(&at))).sum()
    }

    /// Whether a node that serves does not hold a shard.
    pub(super) fn lacks(&self, node: NodeId, at: usize) -> bool {
        let seat = self.seats.get(node.index());
        seat.is_some_and(|seat| seat.serves && !seat.is_draining && !seat.held.contains(&at))
    }

    /// Whether a node that serves is to get a shard.
    pub(super) fn is_awaited(&self, at: usize) -> bool {
        let goal = self.goal.get(at).into_iter().flatten();
        goal.copied().any(|host| self.lacks(host, at))
    }

    /// Tells the register of members that a round lost, and says whether there were any.
    fn drop_lost(&mut self) -> bool {
        let mut any = false;
        for (at, seat) in self.seats.iter().enumerate() {
            if let Some(pass) = seat.pass.filter(|_| seat.serves)
                && !self.remote.is_seated(NodeId::from_index(at))
            {
                if let Some(incarnation) = self.remote.quarantined(NodeId::from_index(at)) {
                    self.register.quarantine(incarnation);
                }
                self.register.drop_member(pass);
                any = true;
            }
        }
        any
    }

    /// Says anew who shall hold what, where the members changed.
    fn aim(&mut self) {
        let epoch = *self.changes.borrow_and_update();
        if self.goal_of == Some(epoch) || self.needs.is_empty() {
            return;
        }
        let stays = |(member, _): &(agents::membership::Member, _)| member.phase != Phase::Draining;
        let members: Vec<Share> = self
            .register
            .members()
            .into_iter()
            .filter(stays)
            .map(|(member, worker)| Share {
                node: member.pass.node,
                bytes_max: worker.shard_bytes_max,
                held: self.seats[member.pass.node.index()].held.clone(),
            })
            .collect();
        // The goal of before still says who held what while nobody can take it.
        match shares(&self.needs, &members) {
            Ok(goal) => (self.goal, self.no_room) = (goal, None),
            Err(no_room) => self.no_room = Some(no_room),
        }
        self.goal_of = Some(epoch);
        self.moved = true;
    }

    /// Starts the uploads that the goal asks for, one at a time for each member.
    fn bring_shards(&mut self) {
        for (member, worker) in self.register.members() {
            let node = member.pass.node;
            let seat = &mut self.seats[node.index()];
            if seat.pass != Some(member.pass) || seat.busy || seat.is_draining {
                continue;
            }
            let lacks = |(at, hosts): (usize, &Vec<NodeId>)| {
                (hosts.contains(&node) && !seat.held.contains(&at)).then_some(at)
            };
            let lacking: Vec<usize> = self.goal.iter().enumerate().filter_map(lacks).collect();
            let is_new = !seat.serves && seat.waiting.is_none();
            if (lacking.is_empty() && !is_new) || self.needs.is_empty() {
                continue;
            }
            seat.busy = true;
            let assignment = |at: &usize| {
                let shard = &self.shards[*at];
                let expert_weights = shard.weights.clone();
                ShardAssignment { node, layer: shard.layer, expert: shard.expert, expert_weights }
            };
            let assignments = lacking.iter().map(assignment).collect();
            let version = |at: usize| (at, self.shards[at].version);
            let brought = lacking.iter().copied().map(version).collect();
            let remote = self.settings.remote.clone();
            let known = seat.waiting.as_ref().or_else(|| self.remote.seated(node));
            let control = known.and_then(Peer::control);
            let pass = member.pass;
            self.uploads.spawn(async move {
                let result = match control {
                    Some(control) => upload_all(control, assignments, remote.deadlines)
                        .await
                        .map(|done| (None, done)),
                    None => connect(node, &worker.address, assignments, &remote).await,
                };
                Upload { pass, shards: brought, result }
            });
        }
    }

    /// Members that have all their shards get work.
    fn promote(&mut self) {
        for (at, seat) in self.seats.iter_mut().enumerate() {
            let node = NodeId::from_index(at);
            let has_all = !self
                .goal
                .iter()
                .enumerate()
                .any(|(shard, hosts)| hosts.contains(&node) && !seat.held.contains(&shard));
            if !has_all || seat.waiting.is_none() {
                continue;
            }
            let Some(pass) = seat.pass.filter(|pass| self.register.serve(*pass)) else { continue };
            let peer = seat.waiting.take().expect("checked above");
            self.remote.seat(node, peer);
            seat.serves = true;
            self.moved = true;
            tracing::info!("node {node} serves {} shards since {}", seat.held.len(), pass.since);
        }
    }

    /// Members that drain go as soon as others serve all that they hold.
    fn let_go(&mut self) {
        for at in 0..self.seats.len() {
            let seat = &self.seats[at];
            let Some(pass) = seat.pass.filter(|_| seat.is_draining) else { continue };
            let served = |shard: &usize| {
                self.goal.get(*shard).is_some_and(|hosts| {
                    hosts.iter().any(|host| {
                        let other = &self.seats[host.index()];
                        other.serves && !other.is_draining && other.held.contains(shard)
                    })
                })
            };
            if !seat.serves || seat.held.iter().all(served) {
                self.register.release(pass);
                self.remote.vacate(NodeId::from_index(at), false);
                self.seats[at] = Seat::default();
                self.moved = true;
            }
        }
    }

    /// Takes copies from nodes that hold them beyond the goal, as stand-ins of nodes that are back: their room is
    /// needed. That is done between rounds, one round after the hosts that are told of left them out, so that
    /// no order is on its way that asks for one.
    pub(super) fn drop_leftover(&mut self) {
        if !self.has_leftover {
            return;
        }
        let found = self.find_leftover();
        let ripe: Vec<(Pass, usize)> = found.intersection(&self.leftover).copied().collect();
        self.has_leftover = !found.is_empty();
        self.leftover = found;
        if ripe.is_empty() {
            return;
        }
        let mut by_stay: BTreeMap<Pass, Vec<usize>> = BTreeMap::new();
        ripe.into_iter().for_each(|(pass, shard)| by_stay.entry(pass).or_default().push(shard));
        for (pass, shards) in by_stay {
            let Some(mut control) = self.remote.seated(pass.node).and_then(Peer::control) else {
                continue;
            };
            let seat = &mut self.seats[pass.node.index()];
            // Nothing is brought to it meanwhile, so that it cannot lose what comes again.
            seat.busy = true;
            let mut names = Vec::with_capacity(shards.len());
            for at in shards {
                seat.held.remove(&at);
                let Shard { layer, expert, .. } = self.shards[at];
                self.remote.dropped(pass.node, layer, expert);
                names.push(ShardName { layer: layer.0, expert: expert.0 });
                self.copies_dropped += 1;
            }
            let deadline = self.settings.remote.deadlines.load;
            self.uploads.spawn(async move {
                let dropped = link::drop_shards(&mut control, names, deadline).await;
                // It keeps what it was not made to drop, which is asked for no more.
                if let Err(error) = dropped {
                    tracing::warn!("{}", failed(pass.node, error));
                }
                Upload { pass, shards: Vec::new(), result: Ok((None, Vec::new())) }
            });
        }
        self.note_holders();
    }

    /// Copies on nodes that serve, of shards that every node of the goal serves.
    fn find_leftover(&self) -> BTreeSet<(Pass, usize)> {
        let serves = |host: &NodeId, shard: usize| {
            let seat = &self.seats[host.index()];
            seat.serves && !seat.is_draining && seat.held.contains(&shard)
        };
        let mut found = BTreeSet::new();
        for (at, seat) in self.seats.iter().enumerate() {
            let Some(pass) = seat.pass.filter(|_| seat.serves && !seat.busy) else { continue };
            let node = NodeId::from_index(at);
            found.extend(seat.held.iter().filter_map(|shard| {
                let goal = self.goal.get(*shard)?;
                let is_left = !goal.contains(&node) && goal.iter().all(|host| serves(host, *shard));
                is_left.then_some((pass, *shard))
            }));
        }
        found
    }

    /// Tells deliveries who holds what.
    fn note_holders(&mut self) {
        let mut holders = Holders::new();
        for (at, seat) in self.seats.iter().enumerate().filter(|(_, seat)| seat.serves) {
            for shard in &seat.held {
                let shard = &self.shards[*shard];
                let hosts: &mut Vec<NodeId> =
                    holders.entry((shard.layer, shard.expert)).or_default();
                hosts.push(NodeId::from_index(at));
            }
        }
        if holders != *self.remote.holders() {
            self.moved = true;
            self.remote.set_holders(holders);
        }
    }

    /// The hosts of every expert that has any: those of the goal that serve it, else whoever does.
    pub(super) fn hosts(&self) -> BTreeMap<(LayerId, ExpertId), Vec<NodeId>> {
        let mut hosts = self.remote.holders().clone();
        for (shard, goal) in self.shards.iter().zip(&self.goal) {
            if let Some(hosts) = hosts.get_mut(&(shard.layer, shard.expert)) {
                let meant: Vec<NodeId> =
                    hosts.iter().copied().filter(|host| goal.contains(host)).collect();
                if !meant.is_empty() {
                    *hosts = meant;
                }
            }
        }
        hosts
    }
}

async fn connect(
    node: NodeId,
    address: &str,
    shards: Vec<ShardAssignment>,
    settings: &RemoteSettings,
) -> Result<(Option<Peer>, Vec<Uploaded>), DispatchError> {
    let peer = Peer::connect(node, address, settings).await?;
    let control = peer.control().expect("it was connected just now");
    let uploaded = upload_all(control, shards, settings.deadlines).await?;
    Ok((Some(peer), uploaded))
}

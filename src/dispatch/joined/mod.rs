//! Workers that join a run and leave it while it goes on.

mod own_worker;
mod register;
mod seats;
mod service;

pub use own_worker::OwnWorker;
pub use register::MembershipCounts;

use super::{
    Dispatch, DispatchError, Rehosted, Rehosting, Remote, RemoteSettings, Served, ShardAssignment,
    departures::Departures,
};
use crate::measure::Clock;
use agents::{
    expert::Expert,
    ids::{ExpertId, LayerId, NodeId},
    membership::{Epoch, HostsOfShard, NoRoom, Pass, ShardNeed},
    orders::{Orders, PairGates, Replies},
    placement::NodeLoad,
};
use register::Register;
use seats::{Seat, Upload};
use service::Serving;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{process::Child, sync::watch, task::JoinSet, time::sleep};

/// How long workers that wait for a seat have to hear that the run is over.
const SPARES_WAIT: Duration = Duration::from_millis(500);

/// How workers join, and how long they may take for each thing.
#[derive(Clone, Debug)]
pub struct JoinedSettings {
    /// Where the membership service listens.
    pub listen: SocketAddr,
    /// Seats; more workers than these wait until one is free.
    pub seats: usize,
    /// Workers that must be there before the run starts, 1 to `seats`.
    pub min_workers: usize,
    /// A worker that does not renew its lease for this long is out.
    pub lease: Duration,
    /// How long the run waits for `min_workers`, and for a worker while no live one holds an expert.
    pub join_wait: Duration,
    /// A worker of this process's own, which joins as any other; none for none.
    pub own_worker: Option<OwnWorker>,
    /// How the workers are talked to. They are shown its token and show it, and use TLS where it does.
    pub remote: RemoteSettings,
}

/// Nodes that come and go. A worker that joins gets its shards beside the rounds and work once it has
/// them; what a node that is lost or leaves held alone is given to others first. Rounds go on as long as
/// workers hold every expert, and wait for a while where none does.
#[derive(Debug)]
pub struct Joined {
    remote: Remote,
    register: Arc<Register>,
    settings: JoinedSettings,
    changes: watch::Receiver<Epoch>,
    /// What the workers are to hold, in ascending order of layer and expert.
    shards: Vec<Shard>,
    needs: Vec<ShardNeed>,
    /// By node.
    seats: Vec<Seat>,
    uploads: JoinSet<Upload>,
    /// Who shall hold each shard, and the epoch of which that is.
    goal: Vec<HostsOfShard>,
    goal_of: Option<Epoch>,
    no_room: Option<NoRoom>,
    /// Whether an upload ended that the seats do not show yet.
    is_behind: bool,
    /// Shards, by place, that shall have other hosts, and encoded bytes that go to processes for that.
    rehosting: (Vec<usize>, u64),
    /// Copies beyond the goal that nobody will be told of any more, by stay and place of the shard.
    leftover: BTreeSet<(Pass, usize)>,
    /// Whether there may be others.
    has_leftover: bool,
    copies_dropped: u64,
    /// Whether the experts' hosts changed since they were last asked for.
    moved: bool,
    clock: Clock,
    _serving: Serving,
    own_worker: Option<Child>,
}

#[derive(Clone, Debug)]
struct Shard {
    layer: LayerId,
    expert: ExpertId,
    weights: Arc<Expert>,
    /// How often its weights were replaced: an upload that began before is of other weights.
    version: u32,
}

impl Joined {
    /// Listens, and waits until enough workers have joined: for all seats, but no longer than a lease
    /// after the least that is needed are there.
    ///
    /// # Errors
    /// When the address cannot be listened on, or too few workers join in time.
    pub async fn start(settings: JoinedSettings) -> Result<Self, DispatchError> {
        let (seats, access) = (settings.seats, &settings.remote.access);
        let (departed, departures) = Departures::channel(2 * seats + 2);
        let register =
            Arc::new(Register::new(seats, settings.lease, access.token.clone(), departed));
        let tls = access.tls.as_ref();
        let serving =
            Serving::start(settings.listen, tls, Arc::clone(&register)).map_err(|error| {
                let detail = format!(
                    "the coordinator cannot listen on {}: {error}; write another nodes.listen",
                    settings.listen
                );
                DispatchError::Start { node: NodeId(0), detail, log: Vec::new() }
            })?;
        let own = settings.own_worker.as_ref();
        let own = own.map(|own| own.start(settings.listen, &access.token)).transpose();
        let own_worker = own.map_err(|error| {
            let detail = format!("cannot start a worker of its own: {error}");
            DispatchError::Start { node: NodeId(0), detail, log: Vec::new() }
        })?;
        let joined = Self {
            remote: Remote::vacant(seats, departures, &settings.remote),
            changes: register.changes(),
            register,
            settings,
            shards: Vec::new(),
            needs: Vec::new(),
            seats: (0..seats).map(|_| Seat::default()).collect(),
            uploads: JoinSet::new(),
            goal: Vec::new(),
            goal_of: None,
            no_room: None,
            is_behind: false,
            rehosting: (Vec::new(), 0),
            leftover: BTreeSet::new(),
            has_leftover: false,
            copies_dropped: 0,
            moved: false,
            clock: Clock::start(),
            _serving: serving,
            own_worker,
        };
        joined.wait_for_workers().await?;
        Ok(joined)
    }

    async fn wait_for_workers(&self) -> Result<(), DispatchError> {
        let JoinedSettings { listen, seats, min_workers, lease, join_wait, .. } = &self.settings;
        let mut changes = self.register.changes();
        let mut enough_at = None;
        let from_ns = self.clock.now_ns();
        loop {
            let now_ns = self.clock.now_ns();
            let there = self.register.present().len();
            if there >= *min_workers {
                let settled_ns = *enough_at.get_or_insert(now_ns) + nanos(*lease);
                if there == *seats || now_ns >= settled_ns {
                    return Ok(());
                }
            } else {
                enough_at = None;
                if now_ns - from_ns >= nanos(*join_wait) {
                    let detail = format!(
                        "{there} of at least {min_workers} workers joined at {listen} within {} s; \
                         start them with `nashflock worker --join {listen}`",
                        join_wait.as_secs()
                    );
                    let node = NodeId::from_index(there);
                    return Err(DispatchError::Start { node, detail, log: Vec::new() });
                }
            }
            changed(&mut changes).await;
        }
    }

    /// Waits until live workers hold these experts, while others may still join.
    async fn until_held(&mut self, wanted: &[(LayerId, ExpertId)]) -> Result<(), DispatchError> {
        let from_ns = self.clock.now_ns();
        loop {
            self.catch_up();
            let Some((layer, expert)) = wanted.iter().copied().find(|key| !self.is_held(*key))
            else {
                return Ok(());
            };
            if self.clock.now_ns() - from_ns >= nanos(self.settings.join_wait) {
                let why = match self.no_room {
                    Some(no_room) => format!(": {no_room}"),
                    None => String::new(),
                };
                let detail = format!(
                    "no live worker holds expert {expert} of layer {layer}, and that did not \
                     change within {} s{why}",
                    self.settings.join_wait.as_secs()
                );
                let at = self.shards.iter().position(|s| (s.layer, s.expert) == (layer, expert));
                let node = at.map_or(NodeId(0), |at| self.needs[at].planned[0]);
                return Err(DispatchError::NodeLost { node, detail, log: Vec::new() });
            }
            self.next_change().await;
        }
    }

    fn is_held(&self, key: (LayerId, ExpertId)) -> bool {
        let holders = self.remote.holders().get(&key);
        holders.is_some_and(|holders| holders.iter().any(|node| self.remote.is_seated(*node)))
    }

    /// Waits for news of members or uploads.
    async fn next_change(&mut self) {
        let Self { uploads, changes, .. } = self;
        let upload = tokio::select! {
            Some(upload) = uploads.join_next() => upload.expect("uploads do not panic"),
            () = changed(changes) => return,
        };
        self.uploaded(upload);
    }
}

impl Dispatch for Joined {
    async fn load(&mut self, assignments: Vec<ShardAssignment>) -> Result<(), DispatchError> {
        self.remote.spot_check.know(&assignments);
        let mut shards: BTreeMap<(LayerId, ExpertId), (Arc<Expert>, Vec<NodeId>)> = BTreeMap::new();
        for ShardAssignment { node, layer, expert, expert_weights } in assignments {
            let shard = shards.entry((layer, expert)).or_insert((expert_weights, Vec::new()));
            shard.1.push(node);
        }
        for ((layer, expert), (weights, mut planned)) in shards {
            planned.sort_unstable();
            planned.dedup();
            self.needs.push(ShardNeed { planned, bytes: weights.encoded_bytes() });
            self.shards.push(Shard { layer, expert, weights, version: 0 });
        }
        let all: Vec<_> = self.shards.iter().map(|shard| (shard.layer, shard.expert)).collect();
        self.goal_of = None;
        self.until_held(&all).await?;
        // Whoever was there at the start gets its shards before the first round.
        while !self.uploads.is_empty() {
            self.next_change().await;
            self.catch_up();
        }
        self.until_held(&all).await
    }

    /// Whoever held a shard is brought it anew; the run goes on once one live worker has each. Members that
    /// get them later are asked for them later.
    async fn replace(&mut self, assignments: Vec<ShardAssignment>) -> Result<u64, DispatchError> {
        self.remote.spot_check.know(&assignments);
        let (mut wanted, mut sent_bytes) = (Vec::new(), 0);
        for ShardAssignment { layer, expert, expert_weights, .. } in assignments {
            let place = self.shards.binary_search_by_key(&(layer, expert), |s| (s.layer, s.expert));
            let Ok(at) = place else { continue };
            // An assignment for each planned host brings the same weights.
            if wanted.contains(&(layer, expert)) {
                continue;
            }
            sent_bytes += expert_weights.encoded_bytes() * self.outdate(at, expert_weights);
            wanted.push((layer, expert));
        }
        self.until_held(&wanted).await?;
        Ok(sent_bytes)
    }

    /// The plan is another from now on: what follows members that come and go brings the copies and has the
    /// others dropped.
    async fn rehost(&mut self, changes: Vec<Rehosting>) -> Result<(), DispatchError> {
        for Rehosting { layer, expert, hosts, .. } in changes {
            let place = self.shards.binary_search_by_key(&(layer, expert), |s| (s.layer, s.expert));
            let Ok(at) = place else { continue };
            let lacking = hosts.iter().filter(|host| self.lacks(**host, at)).count() as u64;
            self.rehosting.0.push(at);
            self.rehosting.1 += lacking * self.needs[at].bytes;
            self.needs[at].planned = hosts;
        }
        self.goal_of = None;
        self.catch_up();
        Ok(())
    }

    /// Members that get their first shards are not waited for.
    async fn rehosted(&mut self) -> Result<Rehosted, DispatchError> {
        let (shards, sent_bytes) = std::mem::take(&mut self.rehosting);
        let from_ns = self.clock.now_ns();
        loop {
            self.catch_up();
            let incomplete = shards.iter().filter(|at| self.is_awaited(**at)).count() as u64;
            let waited_ns = self.clock.now_ns() - from_ns;
            if incomplete == 0 || waited_ns >= nanos(self.settings.remote.deadlines.load) {
                return Ok(Rehosted { sent_bytes, incomplete });
            }
            self.next_change().await;
        }
    }

    /// A round that lost the only holder of an expert is sent again once another holds it. Nothing of
    /// a round is combined before all of it is there, so that its pairs still count once.
    async fn deliver(
        &mut self,
        orders: &Orders,
        gates: Option<&PairGates>,
        hidden: &[f32],
        width: usize,
    ) -> Result<Replies, DispatchError> {
        let from_ns = self.clock.now_ns();
        let groups = orders.nodes.iter().flat_map(|order| &order.groups);
        let wanted: Vec<_> = groups.map(|group| (orders.layer, group.expert)).collect();
        // Each time a member is lost, or was too slow to be waited for.
        let tries_max = 2 * self.settings.seats + 2;
        for tried in 1.. {
            self.until_held(&wanted).await?;
            match self.remote.deliver(orders, gates, hidden, width).await {
                Ok(replies) => {
                    if tried > 1 {
                        let spent_ns = self.clock.now_ns() - from_ns;
                        let faults = &mut self.remote.faults;
                        faults.recovery_ns_max = faults.recovery_ns_max.max(spent_ns);
                    }
                    return Ok(replies);
                }
                Err(error @ DispatchError::Refused { .. }) => return Err(error),
                Err(error) if tried >= tries_max => return Err(error),
                Err(error) => {
                    tracing::warn!("{error}; the round is sent again");
                    self.remote.faults.rerouted_pairs +=
                        orders.nodes.iter().map(|order| order.pairs() as u64).sum::<u64>();
                }
            }
        }
        unreachable!("the last try returns")
    }

    fn is_available(&self, node: NodeId) -> bool {
        self.remote.is_available(node) && !self.seats[node.index()].is_draining
    }

    fn legs(&self) -> &[(NodeId, u64)] {
        self.remote.legs()
    }

    fn node_load(&self, node: NodeId) -> NodeLoad {
        self.remote.node_load(node)
    }

    fn moved(&mut self) -> Option<BTreeMap<(LayerId, ExpertId), Vec<NodeId>>> {
        self.catch_up();
        self.drop_leftover();
        std::mem::take(&mut self.moved).then(|| self.hosts())
    }

    fn so_far(&self) -> Served {
        Served { membership: Some(self.register.counts()), ..self.remote.so_far() }
    }

    async fn close(mut self) -> Served {
        let has_waiting = self.register.has_waiting();
        self.register.end();
        let mut changes = self.register.changes();
        let patience_ns = self.clock.now_ns() + 2 * nanos(self.settings.lease);
        while !self.register.all_told() && self.clock.now_ns() < patience_ns {
            changed(&mut changes).await;
        }
        if has_waiting {
            // They ask several times in this time, and then hear that the run is over.
            sleep(SPARES_WAIT).await;
        }
        if let Some(child) = &mut self.own_worker {
            own_worker::end(child).await;
        }
        let counts =
            MembershipCounts { copies_dropped: self.copies_dropped, ..self.register.counts() };
        Served { membership: Some(counts), ..self.remote.close().await }
    }
}

/// Waits for a change, and not for ever: leases run out in silence.
async fn changed(changes: &mut watch::Receiver<Epoch>) {
    tokio::select! {
        _ = changes.changed() => {}
        () = sleep(Duration::from_millis(20)) => {}
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

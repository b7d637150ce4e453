//! Nodes in virtual time: the experts compute in this process, and the virtual cluster says when each answer
//! would have come, from whom, and what went wrong.
//!
//! The course of a round is that of running nodes ([`super::course`]); messages are events of `agents::cluster`
//! instead of traffic. Outputs are those of the orders as they were given, whoever is late, so they are the same bits as in process.

use super::course::{Course, Standing};
use super::health::Health;
use super::load::Loads;
use super::round_trip::{AttemptId, Holders};
use super::work::work_of;
use super::{
    Dispatch, DispatchError, Faults, InProcess, Ledger, NodeStats, Served, ShardAssignment,
};
use crate::measure::Clock;
use agents::cluster::{
    Cores, Hardware, Link, LinkIds, LinkUse, Network, Node, Noise, Port, Served as Answer, Stream,
    StreamKey, Work,
};
use agents::ids::{ExpertId, LayerId, NodeId};
use agents::orders::{Combine, NodeOrder, NodeReply, Orders, PairGates, Replies};
use agents::placement::NodeLoad;
use agents::queueing::ForkJoin;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// The coordinator stands beside the first node.
const COORDINATOR: u32 = 0;

/// What virtual nodes are like.
#[derive(Clone, Debug)]
pub struct VirtualSettings {
    /// How nodes compute, how messages travel, what goes wrong.
    pub hardware: Hardware,
    /// How many nodes there are.
    pub nodes: u32,
    /// Time a node has to answer one message.
    pub deadline_ms: u64,
    /// Pairs that hedges may cost for each pair ordered.
    pub hedge_budget: f64,
    /// How long the coordinator takes.
    pub coordinator: Coordinator,
    /// What all times of a step vary by together.
    pub step_noise: Noise,
    /// Cores that all nodes share; 0: each has its own.
    pub shared_cores: u32,
    /// Of the ways of questions.
    pub seed: u64,
}

impl VirtualSettings {
    /// Links between racks and pods.
    #[must_use]
    pub fn links(&self) -> LinkIds {
        LinkIds::new(&self.hardware.network, self.nodes)
    }
}

/// How long the coordinator takes before it sends a round's orders: `(round + tokens · token + step + tokens · step
/// token) · noise`, the last two in a step's first layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coordinator {
    /// For each round, ns.
    pub round_ns: f64,
    /// For each token of a round, ns.
    pub token_ns: f64,
    /// For each step, ns.
    pub step_ns: f64,
    /// For each token of a step, ns.
    pub step_token_ns: f64,
    /// What varies.
    pub noise: Noise,
}

impl Coordinator {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
    fn took_ns(&self, layer: LayerId, tokens: f64, factor: f64, stream: &mut Stream) -> u64 {
        let mut took_ns = self.round_ns + self.token_ns * tokens;
        if layer.index() == 0 {
            took_ns += self.step_ns + self.step_token_ns * tokens;
        }
        (took_ns * factor * self.noise.draw(stream)).round() as u64
    }
}

/// Nodes that take virtual time.
#[derive(Debug)]
pub struct Virtual {
    with: VirtualSettings,
    clock: Clock,
    compute: InProcess,
    nodes: Vec<Node>,
    ledgers: BTreeMap<NodeId, Ledger>,
    holders: Holders,
    health: Health,
    loads: Loads,
    faults: Faults,
    fork_join: ForkJoin,
    /// Of the latest round.
    legs: Vec<(NodeId, u64)>,
    cores: Cores,
    /// Of what rounds and steps vary by.
    rounds: StreamKey,
    round: u64,
    /// That all of this step takes longer by.
    factor: f64,
    /// The network of steps that take as long as they are said to.
    network: Network,
    links: LinkUse,
    port: Port,
    ways: Stream,
    sequence: u64,
    events: BinaryHeap<Reverse<Event>>,
    /// Messages under way, those that nobody waits for too.
    messages: BTreeMap<u64, Message>,
}

/// When something happens to which message; of those at one time the message that was sent first comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at_ns: u64,
    sequence: u64,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// Its first byte, or that of its answer, is at a link between racks or pods.
    Passing { link: Link, is_answer: bool },
    /// Its first byte is at the node.
    Asked,
    /// The first byte of its answer is back.
    Returned,
    /// Its answer is whole.
    Whole,
    /// The connection broke while the answer was awaited.
    Broken,
}

#[derive(Clone, Copy, Debug)]
struct Message {
    node: NodeId,
    work: Work,
    service_ns: u64,
}

struct Awaited {
    id: AttemptId,
    late_ns: u64,
}

impl Virtual {
    /// Nodes without shards, at the time that a clock of virtual time shows.
    ///
    /// # Panics
    /// When the clock goes by itself.
    #[must_use]
    pub fn new(with: VirtualSettings, clock: Clock) -> Self {
        assert!(clock.is_simulated(), "virtual nodes move the clock");
        let nodes = with.nodes as usize;
        Self {
            clock,
            compute: InProcess::new(),
            nodes: vec![Node::default(); nodes],
            ledgers: BTreeMap::new(),
            holders: Holders::new(),
            health: Health::new(nodes, with.hedge_budget),
            loads: Loads::new(nodes, with.deadline_ms * 1_000_000),
            faults: Faults::default(),
            fork_join: ForkJoin::default(),
            legs: Vec::new(),
            cores: Cores::of(with.shared_cores),
            rounds: StreamKey::new(with.seed, "cluster rounds"),
            round: 0,
            factor: 1.0,
            network: with.hardware.network.clone(),
            links: LinkUse::new(0..with.links().count(), u64::MAX),
            port: Port::default(),
            ways: StreamKey::new(with.seed, "cluster front ways").stream(0, 0),
            sequence: 0,
            events: BinaryHeap::new(),
            messages: BTreeMap::new(),
            with,
        }
    }

    fn standing(&mut self) -> Standing<'_> {
        Standing { health: &mut self.health, faults: &mut self.faults }
    }

    /// Nodes that are back after a crash are asked again; they have been given their experts anew.
    fn welcome(&mut self) {
        let now_ns = self.clock.now_ns();
        for node in (0..self.nodes.len()).map(NodeId::from_index) {
            if self.health.is_lost(node) && !self.with.hardware.faults.is_down(node, now_ns) {
                self.health.revive(node);
            }
        }
    }

    /// What happens next, up to a time.
    fn next_event(&mut self, until_ns: u64) -> Option<Event> {
        let Reverse(event) = *self.events.peek()?;
        (event.at_ns <= until_ns).then_some(())?;
        self.events.pop();
        Some(event)
    }

    /// A message, or its answer, that would be at its goal at `at_ns` if it waited at no link meets the first of
    /// these, or is there.
    fn on_its_way(&mut self, sequence: u64, (node, is_answer): (NodeId, bool), at_ns: u64) {
        let first = self.with.hardware.network.first_link(way(node, is_answer), at_ns);
        let (what, at_ns) = match first {
            Some((link, at_ns)) => (What::Passing { link, is_answer }, at_ns),
            None => (arrival(is_answer), at_ns),
        };
        self.events.push(Reverse(Event { at_ns, sequence, what }));
    }

    /// Carries a message one event further; gives it when it has ended, and whether it was answered.
    fn follow(&mut self, event: Event) -> Option<(Message, bool)> {
        let Event { at_ns, sequence, what } = event;
        let message = self.messages.get_mut(&sequence)?;
        let (hardware, ids) = (&self.with.hardware, self.with.links());
        let mut then = |at_ns, what| self.events.push(Reverse(Event { at_ns, sequence, what }));
        match what {
            What::Passing { link, is_answer } => {
                let Message { node, work, .. } = *message;
                let (network, way) = (&hardware.network, way(node, is_answer));
                let bytes = if is_answer { work.reply_bytes } else { work.request_bytes };
                let left_ns = self.links.pass(network, (ids.id(link), link), at_ns, bytes);
                let next = network.next_link(Some(link), way);
                let next = next.map(|link| What::Passing { link, is_answer });
                then(left_ns + network.hop_ns(way), next.unwrap_or(arrival(is_answer)));
                None
            }
            What::Asked => {
                let Message { node: at, work, .. } = *message;
                let on = (&mut self.nodes[at.index()], &mut self.cores, self.factor);
                match hardware.serve_on(at, on, COORDINATOR, at_ns, &work) {
                    Answer::Answered { at_ns, service_ns, .. } => {
                        message.service_ns = service_ns;
                        self.on_its_way(sequence, (at, true), at_ns);
                    }
                    Answer::Broken { at_ns } => then(at_ns, What::Broken),
                    Answer::Silent => {
                        self.messages.remove(&sequence);
                    }
                }
                None
            }
            What::Returned => {
                let bytes = message.work.reply_bytes;
                let whole_ns = hardware.network.received(&mut self.port, at_ns, bytes);
                then(whole_ns, What::Whole);
                None
            }
            What::Whole => self.messages.remove(&sequence).map(|message| (message, true)),
            What::Broken => self.messages.remove(&sequence).map(|message| (message, false)),
        }
    }
}

/// From the coordinator to a node, or back.
fn way(node: NodeId, is_answer: bool) -> (u32, u32) {
    if is_answer { (node.0, COORDINATOR) } else { (COORDINATOR, node.0) }
}

fn arrival(is_answer: bool) -> What {
    if is_answer { What::Returned } else { What::Asked }
}

/// A delivery under way.
struct UnderWay<'c, 'o> {
    with: &'c mut Virtual,
    course: Course<'o>,
    orders: &'o Orders,
    width: usize,
    sums: bool,
    awaited: BTreeMap<u64, Awaited>,
    service_ns: BTreeMap<NodeId, u64>,
}

impl UnderWay<'_, '_> {
    fn run(&mut self) -> Result<(), DispatchError> {
        self.send_all(self.course.trip.attempts().collect());
        while !self.course.trip.is_done() {
            let late_at = self.awaited.values().map(|awaited| awaited.late_ns).min();
            let wake_ns =
                self.course.hedge_at_ns(&self.with.health).into_iter().chain(late_at).min();
            let wake_ns = wake_ns.expect("what is not answered is awaited");
            match self.with.next_event(wake_ns) {
                Some(event) => {
                    self.with.clock.advance_to_ns(event.at_ns);
                    if let Some((message, is_answered)) = self.with.follow(event) {
                        self.ended(event.sequence, message, is_answered)?;
                    }
                }
                None => {
                    self.with.clock.advance_to_ns(wake_ns);
                    self.give_up_late()?;
                    self.hedge();
                }
            }
        }
        Ok(())
    }

    fn send_all(&mut self, attempts: Vec<AttemptId>) {
        for id in attempts {
            let attempt = self.course.trip.attempt(id);
            let (node, work) = (attempt.node, self.work(&attempt.order));
            let with = &mut *self.with;
            let now_ns = with.clock.now_ns();
            with.sequence += 1;
            let sequence = with.sequence;
            let way = (COORDINATOR, node.0);
            let network = &with.with.hardware.network;
            let bytes = work.request_bytes;
            let at_ns = network.sent(&mut with.port, now_ns, way, bytes, &mut with.ways);
            if !with.with.hardware.is_lost(node, COORDINATOR, now_ns, sequence << 1) {
                with.messages.insert(sequence, Message { node, work, service_ns: 0 });
                with.on_its_way(sequence, (node, false), at_ns);
            }
            with.loads.sent(sequence, node, work.pairs as usize, now_ns);
            with.ledgers.entry(node).or_default().sent_bytes += bytes;
            let late_ns = now_ns + with.with.deadline_ms * 1_000_000;
            self.awaited.insert(sequence, Awaited { id, late_ns });
        }
    }

    fn work(&self, order: &NodeOrder) -> Work {
        let held = self.with.ledgers.get(&order.node).map(|ledger| &ledger.shard_bytes);
        let bytes = |expert: ExpertId| {
            held.and_then(|held| held.get(&(self.orders.layer, expert))).copied().unwrap_or(0)
        };
        work_of(order, self.width, self.sums, |expert| bytes(expert) as u64)
    }

    fn ended(
        &mut self,
        sequence: u64,
        message: Message,
        is_answered: bool,
    ) -> Result<(), DispatchError> {
        let (now_ns, node) = (self.with.clock.now_ns(), message.node);
        if !is_answered {
            return self.lose(node);
        }
        self.with.loads.answered(sequence, now_ns);
        let Some(Awaited { id, .. }) = self.awaited.remove(&sequence) else {
            self.with.faults.late_replies += 1;
            return Ok(());
        };
        let reply = NodeReply { node, outputs: Vec::new(), compute_ns: message.service_ns };
        let ledger = self.with.ledgers.entry(node).or_default();
        ledger.answered(message.work.pairs as usize, &reply);
        ledger.received_bytes += message.work.reply_bytes;
        *self.service_ns.entry(node).or_default() += message.service_ns;
        let took_ns = self.course.answered(id, reply, now_ns);
        self.with.legs.extend(took_ns.map(|took_ns| (node, took_ns)));
        Ok(())
    }

    /// A node whose connection broke: all that it was to answer is asked of others.
    fn lose(&mut self, node: NodeId) -> Result<(), DispatchError> {
        self.with.faults.lost += u64::from(!self.with.health.is_lost(node));
        self.with.health.lose(node);
        self.with.loads.forget(node);
        let its = |awaited: &Awaited| self.course.trip.attempt(awaited.id).node == node;
        let lost: Vec<u64> =
            self.awaited.iter().filter(|(_, awaited)| its(awaited)).map(|(s, _)| *s).collect();
        for sequence in lost {
            let detail = "it crashed in virtual time".to_owned();
            let error = DispatchError::NodeLost { node, detail, log: Vec::new() };
            self.ask_others(sequence, error)?;
        }
        Ok(())
    }

    fn ask_others(&mut self, sequence: u64, error: DispatchError) -> Result<(), DispatchError> {
        let Awaited { id, .. } = self.awaited.remove(&sequence).expect("it is awaited");
        let now_ns = self.with.clock.now_ns();
        let instead = self.course.instead(id, now_ns, self.with.standing()).ok_or(error)?;
        self.send_all(instead);
        Ok(())
    }

    fn give_up_late(&mut self) -> Result<(), DispatchError> {
        let now_ns = self.with.clock.now_ns();
        let is_late = |awaited: &Awaited| awaited.late_ns <= now_ns;
        let late: Vec<u64> =
            self.awaited.iter().filter(|(_, awaited)| is_late(awaited)).map(|(s, _)| *s).collect();
        for sequence in late {
            let node = self.course.trip.attempt(self.awaited[&sequence].id).node;
            self.with.standing().set_aside(node, now_ns);
            let deadline_ms = self.with.with.deadline_ms;
            self.ask_others(sequence, DispatchError::Timeout { node, deadline_ms })?;
        }
        Ok(())
    }

    fn hedge(&mut self) {
        let now_ns = self.with.clock.now_ns();
        while let Some(hedges) = self.course.next_hedge(now_ns, self.with.standing()) {
            self.send_all(hedges);
        }
    }
}

impl Dispatch for Virtual {
    async fn load(&mut self, shards: Vec<ShardAssignment>) -> Result<(), DispatchError> {
        for ShardAssignment { node, layer, expert, expert_weights } in &shards {
            let bytes = usize::try_from(expert_weights.encoded_bytes());
            let bytes = bytes.expect("an expert in memory has a length");
            self.ledgers.entry(*node).or_default().loaded(*layer, *expert, bytes);
            let holders = self.holders.entry((*layer, *expert)).or_default();
            if let Err(place) = holders.binary_search(node) {
                holders.insert(place, *node);
            }
        }
        self.compute.load(shards).await
    }

    async fn replace(&mut self, shards: Vec<ShardAssignment>) -> Result<u64, DispatchError> {
        let (mut bytes, mut done_ns) = (0, self.clock.now_ns());
        for shard in &shards {
            let of_shard = shard.expert_weights.encoded_bytes();
            let network = &self.with.hardware.network;
            let (way, now_ns) = ((COORDINATOR, shard.node.0), self.clock.now_ns());
            let first = network.sent(&mut self.port, now_ns, way, of_shard, &mut self.ways);
            let first = self.links.pass_all(network, self.with.links(), (way, first), of_shard);
            done_ns = done_ns.max(network.received(&mut Port::default(), first, of_shard));
            bytes += of_shard;
        }
        self.load(shards).await?;
        self.clock.advance_to_ns(done_ns);
        Ok(bytes)
    }

    async fn deliver(
        &mut self,
        orders: &Orders,
        gates: Option<&PairGates>,
        hidden: &[f32],
        width: usize,
    ) -> Result<Replies, DispatchError> {
        let mut replies = self.compute.deliver(orders, gates, hidden, width).await?;
        let tokens = (hidden.len() / width.max(1)) as f64;
        let mut stream = self.rounds.stream(0, self.round);
        self.round += 1;
        if orders.layer.index() == 0 && self.with.step_noise != Noise::Constant {
            self.factor = self.with.step_noise.draw(&mut stream);
            self.with.hardware.network = self.network.times(self.factor);
        }
        let own_ns = self.with.coordinator.took_ns(orders.layer, tokens, self.factor, &mut stream);
        self.clock.advance_to_ns(self.clock.now_ns() + own_ns);
        self.welcome();
        let pairs = orders.nodes.iter().map(NodeOrder::pairs).sum();
        self.health.sent(pairs);
        self.faults.pairs += pairs as u64;
        let holders = std::mem::take(&mut self.holders);
        self.legs.clear();
        // Where nodes sum, a reply counts as a whole; here all replies are the same bits, so parts count too.
        let mut under_way = UnderWay {
            course: Course::new(orders, &holders, Combine::Exact, self.clock.now_ns()),
            with: self,
            orders,
            width,
            sums: gates.is_some(),
            awaited: BTreeMap::new(),
            service_ns: BTreeMap::new(),
        };
        let done = under_way.run();
        let UnderWay { course, service_ns, .. } = under_way;
        if done.is_ok() {
            let standing = Standing { health: &mut self.health, faults: &mut self.faults };
            course.learn(&self.legs, self.clock.now_ns(), standing, &mut self.fork_join);
        }
        drop(course);
        self.holders = holders;
        done?;
        for reply in &mut replies.nodes {
            reply.compute_ns = service_ns.get(&reply.node).copied().unwrap_or(0);
        }
        Ok(replies)
    }

    fn is_available(&self, node: NodeId) -> bool {
        let now_ns = self.clock.now_ns();
        let is_back =
            || self.health.is_lost(node) && !self.with.hardware.faults.is_down(node, now_ns);
        self.health.is_available(node, now_ns) || is_back()
    }

    fn legs(&self) -> &[(NodeId, u64)] {
        &self.legs
    }

    fn node_load(&self, node: NodeId) -> NodeLoad {
        self.loads.of(node, self.clock.now_ns())
    }

    fn so_far(&self) -> Served {
        let stats = |(node, ledger): (&NodeId, &Ledger)| -> NodeStats {
            ledger.stats(*node, self.health.is_lost(*node))
        };
        Served {
            nodes: self.ledgers.iter().map(stats).collect(),
            faults: self.faults,
            fork_join: Some(self.fork_join.clone()),
            membership: None,
            links: self.links.links().copied().collect(),
        }
    }

    async fn close(self) -> Served {
        self.so_far()
    }
}

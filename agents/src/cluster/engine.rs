//! The loop: window after window, in each of them all partitions at the same time.

use super::calendar::{Calendar, Event, What};
use super::front::{Front, Post};
use super::joint::{JointCertificate, Union};
use super::node::{Node, Served};
use super::outcome::Tally;
use super::settings::Settings;
use super::stream::mixed;
use super::uplinks::LinkUse;
use crate::game::CostSettings;
use crate::ids::NodeId;
use rayon::prelude::*;
use std::hint::black_box;
use std::ops::Range;

/// A window with fewer events is sooner played than handed to other threads: with two, windows of 80 events took
/// 1.6 times as long in parts, and those of 215 as long as in one.
const WORTH_THREADS: usize = 1000;

/// What a cluster has come to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Tokens, latencies and messages.
    pub tally: Tally,
    /// By node.
    pub nodes: Vec<Node>,
    /// Links between racks and pods.
    pub links: LinkUse,
    /// When the last event happened, ns.
    pub end_ns: u64,
    /// Events that happened.
    pub events: u64,
    /// Windows with an event.
    pub windows: u64,
    /// Of all events: who, when, from whom and what. The same for the same seed, whatever the partitions.
    pub trace: [u64; 2],
    /// All blocks of the periods that are to be certified.
    pub unions: Vec<(u64, Union)>,
    /// Bytes of nodes, front ends, copies and events at the end.
    pub bytes: u64,
    fingerprint: Vec<u8>,
}

impl Report {
    /// The state at the end, for a hash.
    #[must_use]
    pub fn fingerprint(&self) -> &[u8] {
        &self.fingerprint
    }

    /// Certifies the joint plays, by period.
    ///
    /// # Panics
    /// With the settings of another cluster.
    #[must_use]
    pub fn certify(&self, settings: &Settings) -> Vec<(u64, JointCertificate)> {
        let certify = |(period, union): &(u64, Union)| {
            let pricing = settings.pricing.as_ref().expect("only priced periods have blocks");
            let (price_per_fair_share, degree) = (pricing.price_per_fair_share, pricing.degree);
            let cost = if degree == 1.0 {
                CostSettings::Linear { price_per_fair_share }
            } else {
                CostSettings::Polynomial { price_per_fair_share, degree }
            };
            (*period, union.certify(&cost))
        };
        self.unions.par_iter().map(certify).collect()
    }

    /// Mean and largest share of the time in which nodes computed.
    #[must_use]
    pub fn busy(&self) -> (f64, f64) {
        let share = |node: &Node| node.busy_ns as f64 / self.end_ns.max(1) as f64;
        let sum: f64 = self.nodes.iter().map(share).sum();
        (sum / self.nodes.len() as f64, self.nodes.iter().map(share).fold(0.0, f64::max))
    }

    /// Mean wait at a node, ns.
    #[must_use]
    pub fn wait_mean_ns(&self) -> f64 {
        let messages: u64 = self.nodes.iter().map(|node| u64::from(node.messages)).sum();
        self.nodes.iter().map(|node| node.wait_ns).sum::<u64>() as f64 / messages.max(1) as f64
    }
}

/// A part of the nodes and of the front ends.
struct Partition {
    first_node: u32,
    nodes: Vec<Node>,
    /// How many messages each node has sent.
    fronts: Vec<Front>,
    first_front: u32,
    links: LinkUse,
    calendar: Calendar,
    taken: Vec<Event>,
    /// Events for each partition, this one too.
    out: Vec<Vec<Event>>,
    events: u64,
    trace: [u64; 2],
    end_ns: u64,
}

/// Where the partitions' nodes, front ends and links begin.
struct Shares {
    nodes: Vec<u32>,
    fronts: Vec<u32>,
    links: Vec<u32>,
    first_front: u32,
    first_link: u32,
}

impl Shares {
    fn new(settings: &Settings) -> Self {
        let begin = |total: u32| {
            let at = |part| u64::from(total) * u64::from(part) / u64::from(settings.partitions);
            (0..=settings.partitions).map(|p| u32::try_from(at(p)).expect("a part")).collect()
        };
        Self {
            nodes: begin(settings.nodes),
            fronts: begin(settings.fronts),
            links: begin(settings.links().count()),
            first_front: settings.nodes,
            first_link: settings.first_link(),
        }
    }

    fn of(&self, to: u32) -> usize {
        let (begin, at) = match to {
            _ if to < self.first_front => (&self.nodes, to),
            _ if to < self.first_link => (&self.fronts, to - self.first_front),
            _ => (&self.links, to - self.first_link),
        };
        if begin.len() == 2 { 0 } else { begin.partition_point(|first| *first <= at) - 1 }
    }
}

/// Sorts events by where they go.
struct Outbox<'a> {
    out: &'a mut [Vec<Event>],
    shares: &'a Shares,
}

impl Post for Outbox<'_> {
    fn post(&mut self, event: Event) {
        self.out[self.shares.of(event.to)].push(event);
    }
}

/// Simulates until all blocks have ended.
///
/// # Panics
/// When the settings contradict themselves; see [`Settings`].
#[must_use]
pub fn simulate(settings: &Settings) -> Report {
    settings.check();
    let shares = Shares::new(settings);
    let window_ns = settings.hardware.network.least_ns().max(1);
    let mut parts: Vec<Partition> =
        (0..settings.partitions as usize).map(|at| Partition::new(at, settings, &shares)).collect();
    parts.iter_mut().for_each(|part| part.start(settings, &shares));
    let (mut windows, mut period) = (0, 0);
    exchange(&mut parts);
    loop {
        let next = parts.iter_mut().filter_map(|part| part.calendar.next_window()).min();
        let Some(window) = next else { break };
        windows += 1;
        let begin_ns = window * window_ns;
        while let Some(pricing) = &settings.pricing
            && pricing.known_ns(period) <= begin_ns
        {
            tell(&mut parts, period, settings);
            period += 1;
        }
        let ends = begin_ns..begin_ns + window_ns;
        let play = |part: &mut Partition| part.play(window, ends.clone(), settings, &shares);
        let events: usize = parts.iter().map(|part| part.calendar.waiting(window)).sum();
        if parts.len() == 1 || events < WORTH_THREADS {
            parts.iter_mut().for_each(play);
        } else {
            parts.par_iter_mut().for_each(play);
        }
        exchange(&mut parts);
    }
    report(settings, parts, windows)
}

impl Partition {
    fn new(at: usize, settings: &Settings, shares: &Shares) -> Self {
        let (nodes, fronts) = (&shares.nodes[at..at + 2], &shares.fronts[at..at + 2]);
        Self {
            first_node: nodes[0],
            nodes: vec![Node::default(); (nodes[1] - nodes[0]) as usize],
            fronts: (fronts[0]..fronts[1]).map(|id| Front::new(id, settings)).collect(),
            first_front: settings.nodes + fronts[0],
            links: LinkUse::new(shares.links[at]..shares.links[at + 1], settings.stretch_ns),
            calendar: Calendar::new(settings.hardware.network.least_ns().max(1)),
            taken: Vec::new(),
            out: vec![Vec::new(); settings.partitions as usize],
            events: 0,
            trace: [0; 2],
            end_ns: 0,
        }
    }

    fn start(&mut self, settings: &Settings, shares: &Shares) {
        let mut out = Outbox { out: &mut self.out, shares };
        self.fronts.iter_mut().for_each(|front| front.start(settings, &mut out));
    }

    /// A word of what an event will read.
    fn looked_at(&self, event: &Event) -> u64 {
        match event.what {
            _ if event.to != event.goal => 0,
            What::Question { .. } => self.nodes[(event.to - self.first_node) as usize].busy_ns,
            What::Answer { block, leg, .. } | What::Broken { block, leg, .. } => {
                self.fronts[(event.to - self.first_front) as usize].looked_at(block, leg)
            }
            What::Wake => 0,
        }
    }

    /// All events of a window, by whom they concern: nobody hears of anybody within one.
    fn play(&mut self, window: u64, time_ns: Range<u64>, settings: &Settings, shares: &Shares) {
        let mut taken = std::mem::take(&mut self.taken);
        self.calendar.take(window, &mut taken);
        taken.sort_unstable();
        // Reads what the events are about, one after the other: memory brings these lines at the same time, where
        // the events themselves would wait for each in turn.
        black_box(taken.iter().fold(0, |sum, event| sum ^ self.looked_at(event)));
        let mut out = Outbox { out: &mut self.out, shares };
        for events in taken.chunk_by(|a, b| a.to == b.to) {
            let to = events[0].to;
            if to >= shares.first_link {
                events.iter().for_each(|event| pass(event, &mut self.links, settings, &mut out));
            } else if to < settings.nodes {
                let node = &mut self.nodes[(to - self.first_node) as usize];
                events.iter().for_each(|event| serve(event, node, settings, &mut out));
            } else {
                let front = &mut self.fronts[(to - self.first_front) as usize];
                front.window(events, time_ns.end, settings, &mut out);
            }
        }
        for event in &taken {
            let [a, b] = &mut self.trace;
            let hash = hash_of(event);
            (*a, *b) = (a.wrapping_add(hash), b.wrapping_add(mixed(hash ^ event.at_ns)));
        }
        self.events += taken.len() as u64;
        self.end_ns = taken.iter().map(|event| event.at_ns).fold(self.end_ns, u64::max);
        self.taken = taken;
    }
}

fn serve(event: &Event, node: &mut Node, settings: &Settings, out: &mut impl Post) {
    let What::Question { block, generation, leg, experts, units } = event.what else {
        unreachable!("nodes are asked, and nothing else")
    };
    let front = event.from;
    let place = settings.place_of_front(front - settings.nodes);
    let work = settings.work(experts.into(), units);
    let served = settings.hardware.serve(NodeId(event.to), node, place, event.at_ns, &work);
    // A node that is down takes nothing in, so the question's own count tells its events apart.
    let (from, count) = (event.to, event.count);
    let (at_ns, what) = match served {
        Served::Answered { at_ns, .. } => (at_ns, What::Answer { block, generation, leg, experts }),
        Served::Broken { at_ns } => (at_ns, What::Broken { block, generation, leg }),
        Served::Silent => return,
    };
    let at_ns = at_ns.max(event.at_ns + settings.hardware.network.least_ns());
    // That a connection broke is no message that could queue.
    let (to, at_ns) = match what {
        What::Answer { .. } => settings.first_stop((from, front), at_ns),
        _ => (front, at_ns),
    };
    out.post(Event { to, at_ns, from, count, what, goal: front });
}

/// A message passes a link, to the next one or to whom it is for.
fn pass(event: &Event, links: &mut LinkUse, settings: &Settings, out: &mut impl Post) {
    let network = &settings.hardware.network;
    let bytes = match event.what {
        What::Question { .. } => settings.request_bytes(),
        What::Answer { experts, .. } => settings.reply_bytes(experts.into()),
        What::Broken { .. } | What::Wake => unreachable!("only messages with bytes pass links"),
    };
    let way = (settings.place_of(event.from), settings.place_of(event.goal));
    let id = event.to - settings.first_link();
    let link = settings.links().link(id);
    let left_ns = links.pass(network, (id, link), event.at_ns, bytes);
    let next = network.next_link(Some(link), way);
    let to = next.map_or(event.goal, |link| settings.address_of(link));
    out.post(Event { to, at_ns: left_ns + network.hop_ns(way), ..*event });
}

/// One number of all of an event.
fn hash_of(event: &Event) -> u64 {
    let Event { to, at_ns, from, count, what, .. } = *event;
    let (kind, block, generation, leg, experts) = match what {
        What::Question { block, generation, leg, experts, units } => {
            (1 | u64::from(units) << 8, block, generation, leg, experts)
        }
        What::Answer { block, generation, leg, .. } => (2, block, generation, leg, 0),
        What::Broken { block, generation, leg } => (3, block, generation, leg, 0),
        What::Wake => (4, 0, 0, 0, 0),
    };
    let pair = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
    let words = [
        at_ns,
        pair(to, from),
        pair(count, block),
        pair(generation, u32::from(leg) << 16 | u32::from(experts)),
    ];
    words.into_iter().fold(kind, |hash, word| mixed(hash ^ word))
}

/// Brings events to the partitions that they are for.
fn exchange(parts: &mut [Partition]) {
    for from in 0..parts.len() {
        for to in 0..parts.len() {
            let mut events = std::mem::take(&mut parts[from].out[to]);
            events.drain(..).for_each(|event| parts[to].calendar.push(event));
            parts[from].out[to] = events;
        }
    }
}

/// Tells front ends the loads of a period, of which they make prices.
fn tell(parts: &mut [Partition], period: u64, settings: &Settings) {
    let pricing = settings.pricing.as_ref().expect("prices are asked for");
    let experts = settings.popularity.shares().len();
    let key = settings.key("cluster heard");
    let all: Vec<Option<&[u32]>> = parts
        .iter()
        .flat_map(|part| &part.fronts)
        .map(|front| front.loads.as_ref().and_then(|loads| loads.of_past(period)))
        .collect();
    let sum_of = |fronts: &mut dyn Iterator<Item = u32>| {
        let mut sums = vec![0_u64; experts];
        for loads in fronts.filter_map(|front| all[front as usize]) {
            sums.iter_mut().zip(loads).for_each(|(sum, load)| *sum += u64::from(*load));
        }
        sums
    };
    let knows_all = pricing.fan_out >= settings.fronts - 1;
    let everything = if knows_all { sum_of(&mut (0..settings.fronts)) } else { Vec::new() };
    let heard: Vec<Vec<u64>> = (0..if knows_all { 0 } else { settings.fronts })
        .into_par_iter()
        .map(|front| {
            let heard = pricing.heard(key, period, front, settings.fronts);
            sum_of(&mut heard.into_iter())
        })
        .collect();
    for (front, at) in parts.iter_mut().flat_map(|part| &mut part.fronts).zip(0..) {
        let heard = heard.get(at).unwrap_or(&everything);
        pricing.update(heard, &mut front.chooser.prices);
        front.chooser.repriced();
    }
}

fn report(settings: &Settings, parts: Vec<Partition>, windows: u64) -> Report {
    let bytes_of_nodes = settings.nodes as usize * size_of::<Node>();
    let mut bytes = bytes_of_nodes + settings.copies.total() * 4;
    let (mut nodes, mut tally) = (Vec::with_capacity(settings.nodes as usize), Tally::default());
    let (mut trace, mut events, mut end_ns) = ([0_u64; 2], 0, 0);
    let mut links = LinkUse::default();
    let mut fingerprint = Vec::new();
    let mut rows = std::collections::BTreeMap::new();
    for part in parts {
        nodes.extend(part.nodes);
        trace.iter_mut().zip(part.trace).for_each(|(sum, part)| *sum = sum.wrapping_add(part));
        events += part.events;
        end_ns = end_ns.max(part.end_ns);
        links.append(&part.links);
        bytes +=
            part.links.bytes() + part.taken.capacity() * size_of::<Event>() + part.calendar.bytes();
        for front in part.fronts {
            assert_eq!(front.open(), 0, "a block that never ends: give messages a patience");
            bytes += front.bytes();
            tally.add(&front.tally);
            front.tally.fingerprint(|word| fingerprint.extend(word.to_le_bytes()));
            fingerprint.extend_from_slice(bytemuck::cast_slice(&front.chooser.prices));
            for (period, mut blocks) in front.rows {
                rows.entry(period).or_insert_with(Vec::new).append(&mut blocks);
            }
        }
    }
    for node in &nodes {
        let Node { messages, pairs, busy_ns, wait_ns, .. } = *node;
        [u64::from(messages), pairs, busy_ns, wait_ns]
            .iter()
            .for_each(|word| fingerprint.extend(word.to_le_bytes()));
    }
    for passed in links.links() {
        fingerprint.extend(passed.busy_ns.to_le_bytes());
        fingerprint.extend(passed.wait_ns.to_le_bytes());
    }
    assert_eq!(tally.arrived, tally.tokens.total(), "each token ends once");
    let union = |(period, rows)| {
        let (experts, block_tokens) = (settings.popularity.shares().len(), settings.block_tokens);
        (period, Union { rows, block_tokens, experts, top_k: settings.top_k })
    };
    let unions = rows.into_iter().map(union).collect();
    let bytes = bytes as u64;
    Report { tally, nodes, links, end_ns, events, windows, trace, unions, bytes, fingerprint }
}

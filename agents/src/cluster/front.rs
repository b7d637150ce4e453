//! A front end: token blocks arrive at it, choose experts by the prices that it knows, and wait for all of them.

use super::calendar::{Event, What};
use super::choose::Chooser;
use super::joint::Row;
use super::network::Port;
use super::outcome::Tally;
use super::prices::OwnLoads;
use super::settings::{Arrivals, Settings};
use super::stream::Stream;
use super::whole_ns;
use crate::ids::{ExpertId, NodeId};
use rand_distr::{Distribution as _, Exp1};
use std::collections::{BTreeMap, VecDeque};
use std::ops::{AddAssign as _, Range};

/// One message to one node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leg {
    pub(super) node: u32,
    /// Places among the block's experts, as bits.
    pub(super) experts: u64,
    sent_ns: u64,
    is_open: bool,
}

/// A block under way. Its place is used again after it has ended, under the next generation.
#[derive(Clone, Debug, Default)]
pub(super) struct Block {
    generation: u32,
    arrived_ns: u64,
    done_ns: u64,
    pub(super) experts: Vec<ExpertId>,
    pub(super) legs: Vec<Leg>,
    /// Experts without an answer.
    missing: u64,
    /// Times that something was asked anew.
    pub(super) again: u32,
}

/// One front end.
#[derive(Clone, Debug)]
pub(super) struct Front {
    id: u32,
    /// Where it stands.
    place: u32,
    port: Port,
    count: u32,
    wake_ns: u64,
    begun: u64,
    blocks: u64,
    next_ns: Option<u64>,
    gaps: Stream,
    ways: Stream,
    open: Vec<Block>,
    free: Vec<u32>,
    /// When silent messages are given up: block, generation, legs.
    timers: VecDeque<(u64, u32, u32, Range<usize>)>,
    pub(super) chooser: Chooser,
    pub(super) loads: Option<OwnLoads>,
    /// Blocks of the periods that are certified.
    pub(super) rows: BTreeMap<u64, Vec<Row>>,
    pub(super) tally: Tally,
    nodes: Vec<(u32, u64)>,
}

/// Where a front end's messages go.
pub(super) trait Post {
    fn post(&mut self, event: Event);
}

impl Front {
    pub(super) fn new(id: u32, settings: &Settings) -> Self {
        let stream = |purpose: &str| settings.key(purpose).stream(id.into(), 0);
        let (fronts, all) = (u64::from(settings.fronts), settings.blocks);
        let experts = settings.popularity.shares().len();
        let pricing = settings.pricing.as_ref();
        let mut front = Self {
            id,
            place: settings.place_of_front(id),
            port: Port::default(),
            count: 0,
            wake_ns: u64::MAX,
            begun: 0,
            blocks: all / fronts + u64::from(u64::from(id) < all % fronts),
            next_ns: None,
            gaps: stream("cluster gaps"),
            ways: stream("cluster front ways"),
            open: Vec::new(),
            free: Vec::new(),
            timers: VecDeque::new(),
            chooser: Chooser::new(id, settings),
            loads: pricing.map(|pricing| OwnLoads::new(pricing.kept(), experts)),
            rows: BTreeMap::new(),
            tally: Tally::default(),
            nodes: Vec::new(),
        };
        front.plan_next(settings, 0);
        front
    }

    /// Blocks under way.
    pub(super) fn open(&self) -> usize {
        self.open.len() - self.free.len()
    }

    /// A word of a block and of one of its messages.
    pub(super) fn looked_at(&self, slot: u32, leg: u16) -> u64 {
        let block = &self.open[slot as usize];
        block.done_ns ^ block.legs.get(usize::from(leg)).map_or(0, |leg| leg.sent_ns)
    }

    /// Bytes that it takes, about.
    pub(super) fn bytes(&self) -> usize {
        const LEG_BYTES: usize = size_of::<Leg>() + size_of::<ExpertId>();
        let legs = |block: &Block| block.legs.capacity() * LEG_BYTES;
        let rows = self.rows.values().flatten();
        size_of::<Self>()
            + self.open.capacity() * size_of::<Block>()
            + self.open.iter().map(legs).sum::<usize>()
            + self.timers.capacity() * 40
            + self.chooser.bytes()
            + self.loads.as_ref().map_or(0, OwnLoads::bytes)
            + rows.map(|row| row.wants.listed.len() * 8 + row.chosen.len() * 4 + 64).sum::<usize>()
            + self.tally.latency_bytes()
    }

    /// Has it wake for its first block.
    pub(super) fn start(&mut self, settings: &Settings, out: &mut impl Post) {
        self.wake_next(settings, 0, out);
    }

    /// Takes what happens to it in a window, in order of time, and does what is due before `end_ns`.
    pub(super) fn window(
        &mut self,
        events: &[Event],
        end_ns: u64,
        settings: &Settings,
        out: &mut impl Post,
    ) {
        let mut events = events.iter().peekable();
        loop {
            let event_ns = events.peek().map_or(u64::MAX, |event| event.at_ns);
            let timer_ns = self.timers.front().map_or(u64::MAX, |timer| timer.0);
            let block_ns = self.next_ns.unwrap_or(u64::MAX);
            let next_ns = event_ns.min(timer_ns).min(block_ns);
            if next_ns >= end_ns {
                break;
            }
            if event_ns == next_ns {
                let event = events.next().expect("peeked");
                self.hear(event, settings, out);
            } else if timer_ns == next_ns {
                let (_, block, generation, legs) = self.timers.pop_front().expect("peeked");
                self.give_up(next_ns, (block, generation), legs, settings, out);
            } else {
                self.arrive(next_ns, settings, out);
                self.plan_next(settings, next_ns);
            }
        }
        debug_assert!(events.peek().is_none(), "an event of a later window");
        self.wake_next(settings, end_ns, out);
    }

    fn wake_next(&mut self, settings: &Settings, end_ns: u64, out: &mut impl Post) {
        let timer_ns = self.timers.front().map(|timer| timer.0);
        let Some(next_ns) = self.next_ns.into_iter().chain(timer_ns).min() else { return };
        if self.wake_ns < end_ns || next_ns < self.wake_ns {
            self.wake_ns = next_ns;
            let me = settings.nodes + self.id;
            self.post(out, (me, me, next_ns), settings, What::Wake);
        }
    }

    fn post(
        &mut self,
        out: &mut impl Post,
        (to, goal, at_ns): (u32, u32, u64),
        settings: &Settings,
        what: What,
    ) {
        let from = settings.nodes + self.id;
        self.count = self.count.wrapping_add(1);
        out.post(Event { to, at_ns, from, count: self.count, what, goal });
    }

    fn plan_next(&mut self, settings: &Settings, now_ns: u64) {
        self.next_ns = (self.begun < self.blocks).then(|| match &settings.arrivals {
            Arrivals::Poisson { blocks_per_ns } => {
                let gap: f64 = Exp1.sample(&mut self.gaps);
                now_ns + whole_ns(gap * f64::from(settings.fronts) / blocks_per_ns)
            }
            Arrivals::Planned(times) => {
                let at = self.begun * u64::from(settings.fronts) + u64::from(self.id);
                times[usize::try_from(at).expect("times in memory")]
            }
        });
        self.begun += u64::from(self.next_ns.is_some());
    }

    /// A block arrives, chooses and asks.
    fn arrive(&mut self, now_ns: u64, settings: &Settings, out: &mut impl Post) {
        let tokens = u64::from(settings.block_tokens);
        self.tally.arrived += tokens;
        if self.open() >= settings.open_max as usize {
            self.tally.tokens.shed += tokens;
            self.tally.stretch(now_ns, settings.stretch_ns).tokens.shed += tokens;
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.open.push(Block::default());
            u32::try_from(self.open.len() - 1).expect("open blocks fit 32 bits")
        });
        let block = &mut self.open[slot as usize];
        self.chooser.choose(settings, &mut block.experts, &mut self.tally);
        if let Some((pricing, loads)) = settings.pricing.as_ref().zip(self.loads.as_mut()) {
            let period = now_ns / pricing.period_ns;
            let counts = loads.of_now(period);
            block.experts.iter().for_each(|e| counts[e.index()] += settings.block_tokens);
            if settings.certified.contains(&period) {
                let row = self.chooser.row(&block.experts);
                self.rows.entry(period).or_default().push(row);
            }
        }
        (block.arrived_ns, block.done_ns, block.again) = (now_ns, now_ns, 0);
        block.legs.clear();
        block.missing = (1 << block.experts.len()) - 1;
        let missing = block.missing;
        self.ask(now_ns, slot, missing, settings, out);
    }

    /// Asks nodes for experts of a block, one message a node.
    fn ask(
        &mut self,
        now_ns: u64,
        slot: u32,
        missing: u64,
        settings: &Settings,
        out: &mut impl Post,
    ) {
        let mut nodes = std::mem::take(&mut self.nodes);
        nodes.clear();
        let block = &self.open[slot as usize];
        let (first, generation) = (block.legs.len(), block.generation);
        for place in (0..block.experts.len()).filter(|place| missing >> place & 1 == 1) {
            let node = self.chooser.host(now_ns, block, place, settings);
            match nodes.iter_mut().find(|(known, _)| *known == node) {
                Some((_, experts)) => *experts |= 1 << place,
                None => nodes.push((node, 1 << place)),
            }
        }
        nodes.iter().for_each(|asked| self.send(now_ns, slot, *asked, settings, out));
        if let Some(patience_ns) = settings.patience_ns {
            let legs = first..first + nodes.len();
            self.timers.push_back((now_ns + patience_ns, slot, generation, legs));
        }
        self.nodes = nodes;
    }

    fn send(
        &mut self,
        now_ns: u64,
        slot: u32,
        (node, experts): (u32, u64),
        settings: &Settings,
        out: &mut impl Post,
    ) {
        let block = &mut self.open[slot as usize];
        let leg = u16::try_from(block.legs.len()).expect("legs are bounded by attempts");
        block.legs.push(Leg { node, experts, sent_ns: now_ns, is_open: true });
        let generation = block.generation;
        let count = experts.count_ones();
        let units = settings.expert_bytes.units_of(&block.experts, experts);
        let bytes = settings.request_bytes();
        let network = &settings.hardware.network;
        let way = (self.place, node);
        let at_ns = network.sent(&mut self.port, now_ns, way, bytes, &mut self.ways);
        self.tally.questions += 1;
        self.tally.between_racks += u64::from(network.topology.distance(self.place, node) > 0);
        self.chooser.sent(node);
        // Even for questions, odd for answers: see `Hardware::serve`.
        let salt = (u64::from(self.id) << 33) | (self.tally.questions << 1);
        if settings.hardware.is_lost(NodeId(node), self.place, now_ns, salt) {
            return;
        }
        let experts = u16::try_from(count).expect("at most 64");
        let what = What::Question { block: slot, generation, leg, experts, units };
        let (to, at_ns) = settings.first_stop((settings.nodes + self.id, node), at_ns);
        self.post(out, (to, node, at_ns), settings, what);
    }

    fn hear(&mut self, event: &Event, settings: &Settings, out: &mut impl Post) {
        match event.what {
            What::Answer { block, generation, leg, .. } => {
                self.answered(event, (block, generation, leg), settings);
            }
            What::Broken { block, generation, leg } => {
                self.tally.broken += 1;
                self.chooser.avoid(event.from, event.at_ns + settings.aside_ns);
                let legs = usize::from(leg)..usize::from(leg) + 1;
                self.give_up(event.at_ns, (block, generation), legs, settings, out);
            }
            What::Wake => {}
            What::Question { .. } => unreachable!("front ends are asked nothing"),
        }
    }

    fn answered(
        &mut self,
        event: &Event,
        (slot, generation, leg): (u32, u32, u16),
        settings: &Settings,
    ) {
        let block = &mut self.open[slot as usize];
        if block.generation != generation || !block.legs[usize::from(leg)].is_open {
            self.tally.late_answers += 1;
            return;
        }
        let leg = &mut block.legs[usize::from(leg)];
        leg.is_open = false;
        self.chooser.ended(leg.node);
        let bytes = settings.reply_bytes(leg.experts.count_ones());
        let network = &settings.hardware.network;
        let whole_ns = network.received(&mut self.port, event.at_ns, bytes);
        block.done_ns = block.done_ns.max(whole_ns);
        if leg.sent_ns >= settings.warm_up_ns {
            self.tally.legs.record(whole_ns - leg.sent_ns);
        }
        block.missing &= !leg.experts;
        if block.missing > 0 {
            return;
        }
        let (arrived_ns, latency_ns) = (block.arrived_ns, block.done_ns - block.arrived_ns);
        let tokens = u64::from(settings.block_tokens);
        let is_late = latency_ns > settings.late_ns;
        if arrived_ns >= settings.warm_up_ns {
            self.tally.latency.record(latency_ns);
        }
        let stretch = self.tally.stretch(arrived_ns, settings.stretch_ns);
        stretch.answered += 1;
        stretch.latency_sum_ns += latency_ns;
        stretch.latency_max_ns = stretch.latency_max_ns.max(latency_ns);
        let of_stretch = &mut stretch.tokens;
        if is_late { &mut of_stretch.late } else { &mut of_stretch.ok }.add_assign(tokens);
        let counts = &mut self.tally.tokens;
        if is_late { &mut counts.late } else { &mut counts.ok }.add_assign(tokens);
        self.end(slot);
    }

    /// Messages that will not be answered, or have not been for too long: asked anew of others.
    fn give_up(
        &mut self,
        now_ns: u64,
        (slot, generation): (u32, u32),
        legs: Range<usize>,
        settings: &Settings,
        out: &mut impl Post,
    ) {
        let block = &mut self.open[slot as usize];
        if block.generation != generation {
            return;
        }
        let mut missing = 0;
        for leg in block.legs[legs].iter_mut().filter(|leg| leg.is_open) {
            leg.is_open = false;
            missing |= leg.experts;
            self.chooser.ended(leg.node);
        }
        if missing == 0 {
            return;
        }
        block.again += 1;
        if block.again > settings.again_max {
            let tokens = u64::from(settings.block_tokens);
            let arrived_ns = block.arrived_ns;
            self.tally.tokens.lost += tokens;
            self.tally.stretch(arrived_ns, settings.stretch_ns).tokens.lost += tokens;
            self.end(slot);
            return;
        }
        let before = self.tally.questions;
        self.ask(now_ns, slot, missing, settings, out);
        self.tally.asked_again += self.tally.questions - before;
    }

    /// A block has ended; what is still under way for it is not awaited.
    fn end(&mut self, slot: u32) {
        let block = &mut self.open[slot as usize];
        let open = block.legs.iter().filter(|leg| leg.is_open);
        open.for_each(|leg| self.chooser.ended(leg.node));
        block.generation = block.generation.wrapping_add(1);
        self.free.push(slot);
    }
}

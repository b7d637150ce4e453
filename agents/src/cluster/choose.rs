//! How a front end chooses: experts by affinity less price, and of their hosts one that is not known to be bad.

use super::demand::Candidates;
use super::front::Block;
use super::joint::Row;
use super::outcome::Tally;
use super::settings::{ReplicaChoice, Settings};
use super::stream::Stream;
use crate::ids::ExpertId;
use std::collections::BTreeMap;

/// Draws before all hosts are looked through.
const DRAWS: usize = 8;

/// What a front end knows of experts and nodes.
#[derive(Clone, Debug)]
pub(super) struct Chooser {
    wants: Stream,
    picks: Stream,
    /// Own messages under way by node, where the choice minds them.
    pending: Vec<u32>,
    /// Nodes that broke off, and until when they are avoided, ns.
    aside: BTreeMap<u32, u64>,
    pub(super) prices: Vec<f32>,
    least_price: f32,
    candidates: Candidates,
    order: Vec<(f32, u32)>,
    /// Of the latest block.
    racks: Vec<u32>,
    own_rack: u32,
    /// Hosts in the own rack, where they are asked first.
    near: Vec<u32>,
}

impl Chooser {
    pub(super) fn new(front: u32, settings: &Settings) -> Self {
        let stream = |purpose: &str| settings.key(purpose).stream(front.into(), 0);
        let two = settings.choice == ReplicaChoice::TwoChoices;
        let experts = settings.popularity.shares().len();
        Self {
            wants: stream("cluster wants"),
            picks: stream("cluster picks"),
            pending: vec![0; if two { settings.nodes as usize } else { 0 }],
            aside: BTreeMap::new(),
            prices: vec![0.0; if settings.pricing.is_some() { experts } else { 0 }],
            least_price: 0.0,
            candidates: Candidates::default(),
            order: Vec::new(),
            racks: Vec::new(),
            own_rack: settings.hardware.network.topology.rack(settings.place_of_front(front)),
            near: Vec::new(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        (self.pending.len() + self.prices.len()) * 4 + self.aside.len() * 32
    }

    /// Notes that prices changed.
    pub(super) fn repriced(&mut self) {
        self.least_price = self.prices.iter().copied().fold(f32::INFINITY, f32::min);
    }

    /// A message to a node is under way.
    pub(super) fn sent(&mut self, node: u32) {
        if let Some(pending) = self.pending.get_mut(node as usize) {
            *pending += 1;
        }
    }

    /// It is not awaited any more.
    pub(super) fn ended(&mut self, node: u32) {
        if let Some(pending) = self.pending.get_mut(node as usize) {
            *pending -= 1;
        }
    }

    /// A node is not asked until a time while another can be.
    pub(super) fn avoid(&mut self, node: u32, until_ns: u64) {
        self.aside.insert(node, until_ns);
    }

    /// The k experts with the largest affinity less price, of those in few racks where that is asked for:
    /// going down the list, an expert counts if it has a host in one of the racks, or if there may be one more.
    pub(super) fn choose(
        &mut self,
        settings: &Settings,
        chosen: &mut Vec<ExpertId>,
        tally: &mut Tally,
    ) {
        let top_k = settings.top_k;
        let Self { candidates, order, prices, .. } = self;
        let lengths = (top_k, settings.candidates);
        settings.popularity.candidates(lengths, &mut self.wants, candidates);
        let price = |expert: ExpertId| prices.get(expert.index()).copied().unwrap_or(0.0);
        order.clear();
        order.extend(candidates.listed.iter().map(|(e, a)| (a - price(*e), e.0)));
        if !prices.is_empty() {
            let largest = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
            // All in order only where the k best may have to give way to others.
            if settings.racks_max.is_none() && top_k < order.len() {
                order.select_nth_unstable_by(top_k - 1, largest);
                order.truncate(top_k);
            }
            order.sort_unstable_by(largest);
            let is_cut = candidates.listed.len() < settings.popularity.shares().len();
            let worst = order[top_k - 1].0;
            tally.uncertain += u64::from(is_cut && worst < candidates.least() - self.least_price);
        }
        chosen.clear();
        if let Some(racks_max) = settings.racks_max {
            self.within_racks(settings, racks_max, chosen);
            let wanted = &self.order[..top_k];
            let has_all = wanted.iter().all(|(_, e)| chosen.contains(&ExpertId(*e)));
            tally.displaced += u64::from(!has_all);
        }
        // Few racks may have too few of those that are listed: the rest is taken from anywhere.
        for (_, expert) in &self.order {
            if chosen.len() == top_k {
                break;
            }
            if !chosen.contains(&ExpertId(*expert)) {
                chosen.push(ExpertId(*expert));
            }
        }
    }

    fn within_racks(&mut self, settings: &Settings, racks_max: u32, chosen: &mut Vec<ExpertId>) {
        self.racks.clear();
        self.racks.extend(settings.own_rack.then_some(self.own_rack));
        for (_, expert) in &self.order {
            let hosts = settings.copies.hosts(ExpertId(*expert));
            let rack = |host: &u32| settings.hardware.network.topology.rack(*host);
            if !hosts.iter().any(|host| self.racks.contains(&rack(host))) {
                if self.racks.len() >= racks_max as usize {
                    continue;
                }
                self.racks.push(rack(&hosts[self.picks.below(hosts.len())]));
            }
            chosen.push(ExpertId(*expert));
            if chosen.len() == settings.top_k {
                break;
            }
        }
    }

    /// What the latest block wanted, and what it chose.
    pub(super) fn row(&self, chosen: &[ExpertId]) -> Row {
        let mut chosen = chosen.to_vec();
        chosen.sort_unstable();
        Row { wants: self.candidates.clone(), chosen }
    }

    /// A host of one of a block's experts: one that the block has not asked for it, and that did not break off
    /// of late, where there is one.
    pub(super) fn host(
        &mut self,
        now_ns: u64,
        block: &Block,
        place: usize,
        settings: &Settings,
    ) -> u32 {
        let mut hosts = settings.copies.hosts(block.experts[place]);
        let again = block.again > 0;
        let topology = settings.hardware.network.topology;
        let Self { aside, racks, picks, pending, near, .. } = self;
        let is_near =
            |node| settings.racks_max.is_none() || again || racks.contains(&topology.rack(node));
        let is_good = |node: u32| {
            let mut legs = block.legs.iter();
            let asked = legs.any(|leg| leg.node == node && leg.experts >> place & 1 == 1);
            let avoided = aside.get(&node).is_some_and(|until| *until > now_ns);
            !asked && !avoided && is_near(node)
        };
        near.clear();
        if settings.own_rack && !again {
            let own = |node: &u32| topology.rack(*node) == self.own_rack && is_good(*node);
            near.extend(hosts.iter().copied().filter(own));
            hosts = if near.is_empty() { hosts } else { near };
        }
        let all_good =
            !near.is_empty() || aside.is_empty() && !again && settings.racks_max.is_none();
        let mut draw = || {
            let mut node = hosts[picks.below(hosts.len())];
            if all_good {
                return node;
            }
            for _ in 0..DRAWS {
                if is_good(node) {
                    return node;
                }
                node = hosts[picks.below(hosts.len())];
            }
            // Chance has not found one: the next from here on that will do, or any.
            let from = picks.below(hosts.len());
            let mut around = hosts[from..].iter().chain(&hosts[..from]).copied();
            around.find(|node| is_good(*node)).unwrap_or(node)
        };
        let one = draw();
        if pending.is_empty() || hosts.len() == 1 {
            return one;
        }
        let other = (0..DRAWS).map(|_| draw()).find(|other| *other != one).unwrap_or(one);
        if pending[other as usize] < pending[one as usize] { other } else { one }
    }
}

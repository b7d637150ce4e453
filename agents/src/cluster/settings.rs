//! What a virtual cluster is made of.

use super::copies::Copies;
use super::demand::Popularity;
use super::node::{Hardware, Work};
use super::prices::Pricing;
use super::stream::StreamKey;
use super::uplinks::{Link, LinkIds, Uplinks};
use super::widths::ExpertBytes;
use crate::expert::passes;
use std::collections::BTreeSet;
use std::sync::Arc;

/// When token blocks arrive. Open loop: they come whether or not earlier ones were answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// At each front end a Poisson process; at this rate over all of them.
    Poisson {
        /// Blocks in a ns, above 0.
        blocks_per_ns: f64,
    },
    /// At these times in ns, ascending, one for each block; dealt to the front ends in turn.
    Planned(Arc<[u64]>),
}

/// Which host of an expert is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplicaChoice {
    /// One that is drawn.
    #[default]
    Random,
    /// Of two that are drawn the one with fewer of the front end's own messages under way.
    TwoChoices,
}

/// A cluster and what it is asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seed of every stream.
    pub seed: u64,
    /// N, ≥ 1.
    pub nodes: u32,
    /// F, ≥ 1. Front ends stand beside nodes, evenly spread.
    pub fronts: u32,
    /// How nodes compute, how messages travel, what goes wrong.
    pub hardware: Hardware,
    /// Which nodes hold which experts.
    pub copies: Copies,
    /// How popular experts are.
    pub popularity: Popularity,
    /// k, 1 to 64 and to E.
    pub top_k: usize,
    /// Experts that are listed for a block, k to E; see [`super::demand`].
    pub candidates: usize,
    /// Tokens of a block: they have the same affinities and choose alike.
    pub block_tokens: u32,
    /// Blocks that arrive, over all front ends.
    pub blocks: u64,
    /// When.
    pub arrivals: Arrivals,
    /// Bytes of a token's row, in questions and in answers.
    pub row_bytes: u64,
    /// Bytes of a message besides.
    pub header_bytes: u64,
    /// Encoded bytes of experts' weights.
    pub expert_bytes: ExpertBytes,
    /// Which host is asked.
    pub choice: ReplicaChoice,
    /// Racks that a block's experts are in, at most; none for no limit.
    pub racks_max: Option<u32>,
    /// Whether hosts in a front end's own rack are asked first, and its rack is the first of these.
    pub own_rack: bool,
    /// How front ends learn prices; none for plain top-k.
    pub pricing: Option<Pricing>,
    /// A message without an answer for this long is given up, ns; none for never.
    pub patience_ns: Option<u64>,
    /// Times that a block asks anew before it is lost.
    pub again_max: u32,
    /// A node that broke off is avoided for this long, ns.
    pub aside_ns: u64,
    /// A block that takes longer is late, ns.
    pub late_ns: u64,
    /// Blocks that a front end has under way at most; more are shed.
    pub open_max: u32,
    /// Blocks that arrive before this time do not count in latencies, ns.
    pub warm_up_ns: u64,
    /// Length of the stretches of time that are told apart, ns.
    pub stretch_ns: u64,
    /// Periods of [`Pricing`] whose joint play is certified.
    pub certified: BTreeSet<u64>,
    /// Partitions that are simulated at the same time, ≥ 1. Results do not depend on it.
    pub partitions: u32,
}

impl Settings {
    /// The streams of a purpose.
    #[must_use]
    pub fn key(&self, purpose: &str) -> StreamKey {
        StreamKey::new(self.seed, purpose)
    }

    /// The place of a front end.
    #[must_use]
    pub fn place_of_front(&self, front: u32) -> u32 {
        let at = u64::from(front) * u64::from(self.nodes) / u64::from(self.fronts);
        u32::try_from(at).expect("below the nodes") % self.nodes
    }

    /// Links between racks and pods.
    #[must_use]
    pub fn links(&self) -> LinkIds {
        LinkIds::new(&self.hardware.network, self.nodes)
    }

    /// Events are for nodes by their numbers, then front ends, then links.
    pub(super) fn first_link(&self) -> u32 {
        self.nodes + self.fronts
    }

    pub(super) fn address_of(&self, link: Link) -> u32 {
        self.first_link() + self.links().id(link)
    }

    /// Where a node or a front end stands.
    pub(super) fn place_of(&self, address: u32) -> u32 {
        address.checked_sub(self.nodes).map_or(address, |front| self.place_of_front(front))
    }

    /// Whom a message that would be at its goal at `at_ns` meets first, and when: a link that it has to pass.
    pub(super) fn first_stop(&self, (from, goal): (u32, u32), at_ns: u64) -> (u32, u64) {
        let network = &self.hardware.network;
        if network.uplinks.are_none() {
            return (goal, at_ns);
        }
        let way = (self.place_of(from), self.place_of(goal));
        let first = network.first_link(way, at_ns);
        first.map_or((goal, at_ns), |(link, at_ns)| (self.address_of(link), at_ns))
    }

    /// What a message with so many experts of a block asks, which come to so many units of [`ExpertBytes`].
    #[must_use]
    pub fn work(&self, experts: u32, units: u16) -> Work {
        let pairs = experts * self.block_tokens;
        let weight_bytes = self.expert_bytes.of_message(experts, units);
        Work {
            pairs,
            weight_bytes,
            pass_bytes: weight_bytes * passes(self.block_tokens as usize) as u64,
            request_bytes: self.request_bytes(),
            reply_bytes: self.reply_bytes(experts),
        }
    }

    /// Of a question.
    #[must_use]
    pub fn request_bytes(&self) -> u64 {
        self.header_bytes + u64::from(self.block_tokens) * self.row_bytes
    }

    /// Of an answer with so many experts of a block.
    #[must_use]
    pub fn reply_bytes(&self, experts: u32) -> u64 {
        self.header_bytes + u64::from(experts * self.block_tokens) * self.row_bytes
    }

    pub(super) fn check(&self) {
        let experts = self.popularity.shares().len();
        assert!(self.nodes > 0 && self.fronts > 0 && self.partitions > 0, "somebody is there");
        assert!((1..=64.min(experts)).contains(&self.top_k), "k is 1 to 64 and to E");
        assert!((self.top_k..=experts).contains(&self.candidates), "candidates are k to E");
        assert_eq!(self.copies.experts(), experts, "each expert has a popularity and copies");
        let ids = u64::from(self.nodes) + u64::from(self.fronts) + u64::from(self.links().count());
        assert!(ids <= u64::from(u32::MAX), "ids fit 32 bits");
        self.check_links();
        self.expert_bytes.check(experts);
        assert!(self.block_tokens > 0 && self.stretch_ns > 0, "positive lengths");
        if let Arrivals::Planned(times) = &self.arrivals {
            assert_eq!(times.len() as u64, self.blocks, "one time a block");
        }
    }

    fn check_links(&self) {
        let network = &self.hardware.network;
        let Uplinks { rack_bytes_per_ns, pod_bytes_per_ns } = network.uplinks;
        let links = rack_bytes_per_ns.into_iter().chain(pod_bytes_per_ns);
        links.for_each(|link| {
            assert!(link >= network.bytes_per_ns, "links are no slower than ports")
        });
        for (distance, base_ns) in network.used_ns().iter().enumerate() {
            let parts = network.uplinks.on_way(distance) + 1;
            assert!(*base_ns >= parts, "each part of a way takes time");
        }
    }
}

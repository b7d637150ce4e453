//! What the places of a rack, and the racks of a pod, share: links to the rest, at which messages queue.
//!
//! A link carries one message after the other in order of their first bytes' arrival, out of a rack or pod and into
//! it at the same time. The first byte goes on when the message's turn has come: a link is at least as fast as the
//! port that the message comes from, so its bytes need not be awaited.

use super::network::Network;
use super::whole_ns;
use serde::{Deserialize, Serialize};

/// Bandwidths of links; none where a level is as wide as all that stands in it together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Uplinks {
    /// What a rack sends to others and, at the same time, receives of them, bytes in a ns, at least that of a place.
    pub rack_bytes_per_ns: Option<f64>,
    /// The same of a pod.
    pub pod_bytes_per_ns: Option<f64>,
}

/// A level and a direction of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    /// Out of a rack.
    RackOut,
    /// Into a rack.
    RackIn,
    /// Out of a pod.
    PodOut,
    /// Into a pod.
    PodIn,
}

impl LinkKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::RackOut, Self::RackIn, Self::PodOut, Self::PodIn];
}

/// The link of a rack or pod in a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Which level and direction.
    pub kind: LinkKind,
    /// Which rack or pod.
    pub of: u32,
}

impl Uplinks {
    /// What a link of a kind carries; none where it is not limited.
    #[must_use]
    pub fn bytes_per_ns(self, kind: LinkKind) -> Option<f64> {
        match kind {
            LinkKind::RackOut | LinkKind::RackIn => self.rack_bytes_per_ns,
            LinkKind::PodOut | LinkKind::PodIn => self.pod_bytes_per_ns,
        }
    }

    /// Whether messages queue nowhere but at places.
    #[must_use]
    pub fn are_none(self) -> bool {
        self.rack_bytes_per_ns.is_none() && self.pod_bytes_per_ns.is_none()
    }

    pub(super) fn times(self, factor: f64) -> Self {
        let slower = |bytes: f64| bytes / factor.max(f64::MIN_POSITIVE);
        Self {
            rack_bytes_per_ns: self.rack_bytes_per_ns.map(slower),
            pod_bytes_per_ns: self.pod_bytes_per_ns.map(slower),
        }
    }

    /// Links on a way of a distance, as [`super::Topology::distance`] counts.
    pub(super) fn on_way(self, distance: usize) -> u64 {
        let racks = if self.rack_bytes_per_ns.is_some() { 2 } else { 0 };
        let pods = if self.pod_bytes_per_ns.is_some() { 2 } else { 0 };
        [0, racks, racks + pods][distance]
    }
}

/// Numbers links from 0: out of each rack, into each, and the same of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkIds {
    racks: u32,
    pods: u32,
}

impl LinkIds {
    /// Of so many places; none without uplinks.
    #[must_use]
    pub fn new(network: &Network, places: u32) -> Self {
        if network.uplinks.are_none() {
            return Self { racks: 0, pods: 0 };
        }
        let last = places.saturating_sub(1);
        Self { racks: network.topology.rack(last) + 1, pods: network.topology.pod(last) + 1 }
    }

    /// How many racks and pods there are.
    #[must_use]
    pub fn of_kind(self, kind: LinkKind) -> u32 {
        match kind {
            LinkKind::RackOut | LinkKind::RackIn => self.racks,
            LinkKind::PodOut | LinkKind::PodIn => self.pods,
        }
    }

    /// All links.
    #[must_use]
    pub fn count(self) -> u32 {
        2 * (self.racks + self.pods)
    }

    /// A link's number.
    #[must_use]
    pub fn id(self, link: Link) -> u32 {
        let before = LinkKind::ALL.into_iter().take_while(|kind| *kind != link.kind);
        before.map(|kind| self.of_kind(kind)).sum::<u32>() + link.of
    }

    /// The link of a number below [`Self::count`].
    #[must_use]
    pub fn link(self, id: u32) -> Link {
        let mut of = id;
        for kind in LinkKind::ALL {
            match of.checked_sub(self.of_kind(kind)) {
                Some(rest) => of = rest,
                None => return Link { kind, of },
            }
        }
        unreachable!("a link's number")
    }
}

impl Network {
    /// The first link on the way between two places, or the next after one.
    #[must_use]
    pub fn next_link(&self, after: Option<Link>, (from, to): (u32, u32)) -> Option<Link> {
        let distance = self.topology.distance(from, to);
        let is_passed = |kind: LinkKind| match kind {
            LinkKind::RackOut | LinkKind::RackIn => distance > 0,
            LinkKind::PodOut | LinkKind::PodIn => distance > 1,
        };
        let place = |kind: LinkKind| match kind {
            LinkKind::RackOut => self.topology.rack(from),
            LinkKind::PodOut => self.topology.pod(from),
            LinkKind::PodIn => self.topology.pod(to),
            LinkKind::RackIn => self.topology.rack(to),
        };
        const WAY: [LinkKind; 4] =
            [LinkKind::RackOut, LinkKind::PodOut, LinkKind::PodIn, LinkKind::RackIn];
        let begin = after.map_or(0, |link| {
            WAY.iter().position(|kind| *kind == link.kind).expect("all are on it") + 1
        });
        let mut on = WAY[begin..].iter().copied();
        let kind =
            on.find(|kind| is_passed(*kind) && self.uplinks.bytes_per_ns(*kind).is_some())?;
        Some(Link { kind, of: place(kind) })
    }

    /// The part of a way from a link to the next one or to its end, ns: links part the least latency evenly.
    #[must_use]
    pub fn hop_ns(&self, (from, to): (u32, u32)) -> u64 {
        let distance = self.topology.distance(from, to);
        self.base_ns[distance] / (self.uplinks.on_way(distance) + 1)
    }

    /// The first link of a message that would arrive at `at_ns` if it waited at none, and when it is there; none
    /// where there is none on its way.
    #[must_use]
    pub fn first_link(&self, way: (u32, u32), at_ns: u64) -> Option<(Link, u64)> {
        let link = self.next_link(None, way)?;
        let links = self.uplinks.on_way(self.topology.distance(way.0, way.1));
        Some((link, at_ns - links * self.hop_ns(way)))
    }
}

/// What passed the links of a level in a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Time that links carried them, summed, ns.
    pub busy_ns: u64,
    /// Time that they waited for a link to be free, summed, ns.
    pub wait_ns: u64,
}

impl Passed {
    /// Adds what passed besides.
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.busy_ns += other.busy_ns;
        self.wait_ns += other.wait_ns;
    }
}

/// The last stretch takes all that comes later.
const STRETCHES_MAX: usize = 4096;

/// Links that follow each other by number, and what passed them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkUse {
    first: u32,
    /// When each is free, ns, and what passed it.
    links: Vec<(u64, Passed)>,
    stretch_ns: u64,
    /// By stretch of time and kind, which is in the order of [`LinkKind::ALL`].
    stretches: Vec<[Passed; 4]>,
}

impl LinkUse {
    /// Idle links of these numbers; what passes is told apart by stretches ≥ 1.
    #[must_use]
    pub fn new(ids: std::ops::Range<u32>, stretch_ns: u64) -> Self {
        let links = vec![Default::default(); ids.len()];
        Self { first: ids.start, links, stretch_ns, stretches: Vec::new() }
    }

    /// A message whose first byte is there at `now_ns`, after all that came before: when that byte goes on.
    ///
    /// # Panics
    /// For a link that is not among these or has no bandwidth.
    pub fn pass(
        &mut self,
        network: &Network,
        (id, link): (u32, Link),
        now_ns: u64,
        bytes: u64,
    ) -> u64 {
        let bandwidth = network.uplinks.bytes_per_ns(link.kind).expect("a link with a bandwidth");
        let busy_ns = whole_ns(bytes as f64 / bandwidth);
        let (free_ns, carried) = &mut self.links[(id - self.first) as usize];
        let start_ns = now_ns.max(*free_ns);
        *free_ns = start_ns + busy_ns;
        let passed = Passed { messages: 1, bytes, busy_ns, wait_ns: start_ns - now_ns };
        carried.add(&passed);
        let at = usize::try_from(start_ns / self.stretch_ns.max(1)).unwrap_or(usize::MAX);
        let at = at.min(STRETCHES_MAX - 1);
        if self.stretches.len() <= at {
            self.stretches.resize(at + 1, Default::default());
        }
        self.stretches[at][link.kind as usize].add(&passed);
        start_ns
    }

    /// A message passes all links of its way, of which none is among others' links: when its first byte arrives
    /// that would arrive at `at_ns` if it waited at none.
    pub fn pass_all(
        &mut self,
        network: &Network,
        ids: LinkIds,
        (way, at_ns): ((u32, u32), u64),
        bytes: u64,
    ) -> u64 {
        let Some((first, first_ns)) = network.first_link(way, at_ns) else { return at_ns };
        let (mut next, mut now_ns) = (Some(first), first_ns);
        while let Some(link) = next {
            now_ns = self.pass(network, (ids.id(link), link), now_ns, bytes) + network.hop_ns(way);
            next = network.next_link(Some(link), way);
        }
        now_ns
    }

    /// Appends links whose numbers follow.
    pub fn append(&mut self, other: &Self) {
        self.links.extend_from_slice(&other.links);
        self.stretch_ns = other.stretch_ns;
        if self.stretches.len() < other.stretches.len() {
            self.stretches.resize(other.stretches.len(), Default::default());
        }
        for (sums, others) in self.stretches.iter_mut().zip(&other.stretches) {
            sums.iter_mut().zip(others).for_each(|(sum, other)| sum.add(other));
        }
    }

    /// What passed each link, by number.
    pub fn links(&self) -> impl Iterator<Item = &Passed> {
        self.links.iter().map(|(_, passed)| passed)
    }

    /// What passed by stretch of time, in each by the order of [`LinkKind::ALL`].
    #[must_use]
    pub fn stretches(&self) -> &[[Passed; 4]] {
        &self.stretches
    }

    /// All that passed, in the same order.
    #[must_use]
    pub fn total(&self) -> [Passed; 4] {
        let mut sums = [Passed::default(); 4];
        for of in &self.stretches {
            sums.iter_mut().zip(of).for_each(|(sum, part)| sum.add(part));
        }
        sums
    }

    /// Bytes of memory that they take.
    pub(super) fn bytes(&self) -> usize {
        self.links.capacity() * size_of::<(u64, Passed)>()
            + self.stretches.capacity() * size_of::<[Passed; 4]>()
    }
}

#[cfg(test)]
mod tests {
    use super::{Link, LinkIds, LinkKind, LinkUse, Uplinks};
    use crate::cluster::{Network, Noise, Topology};

    /// Racks of 4 and pods of 2 of them; rack links of 2 and pod links of 4 bytes in a ns.
    fn network(rack: Option<f64>, pod: Option<f64>) -> Network {
        Network {
            topology: Topology::Pods { rack: 4, racks: 2 },
            base_ns: [100, 300, 1_000],
            jitter_ns: 0.0,
            jitter: Noise::Constant,
            bytes_per_ns: 1.0,
            message_ns: 0,
            uplinks: Uplinks { rack_bytes_per_ns: rack, pod_bytes_per_ns: pod },
        }
    }

    #[test]
    fn a_way_passes_the_links_of_the_levels_that_it_leaves_and_enters() {
        use LinkKind::{PodIn, PodOut, RackIn, RackOut};
        let way = |network: &Network, way| {
            let mut links = Vec::new();
            while let Some(link) = network.next_link(links.last().copied(), way) {
                links.push(link);
            }
            links.into_iter().map(|Link { kind, of }| (kind, of)).collect::<Vec<_>>()
        };
        let both = network(Some(2.0), Some(4.0));
        assert_eq!(way(&both, (1, 3)), []);
        assert_eq!(way(&both, (1, 7)), [(RackOut, 0), (RackIn, 1)]);
        assert_eq!(way(&both, (18, 7)), [(RackOut, 4), (PodOut, 2), (PodIn, 0), (RackIn, 1)]);
        assert_eq!(way(&network(None, Some(4.0)), (18, 7)), [(PodOut, 2), (PodIn, 0)]);
        assert_eq!(way(&network(None, None), (18, 7)), []);
        assert_eq!((both.hop_ns((1, 7)), both.hop_ns((18, 7))), (100, 200));
        assert_eq!(both.first_link((1, 7), 5_000).map(|(_, at_ns)| at_ns), Some(4_800));
        let ids = LinkIds::new(&both, 18);
        assert_eq!(ids.count(), 2 * (5 + 3));
        (0..ids.count()).for_each(|id| assert_eq!(ids.id(ids.link(id)), id));
        assert_eq!(LinkIds::new(&network(None, None), 18).count(), 0);
    }

    #[test]
    fn a_link_is_a_pipe_that_carries_one_message_after_the_other() {
        let mut network = network(Some(2.0), None);
        network.topology = Topology::Racks { rack: 4 };
        let ids = LinkIds::new(&network, 16);
        let mut of = LinkUse::new(0..ids.count(), 1_000);
        // Incast: four messages of 500 ns on the links, from as many racks, reach rack 1 together.
        let arrived: Vec<u64> = [0, 8, 12, 1]
            .map(|from| of.pass_all(&network, ids, ((from, 4), 1_300), 1_000))
            .to_vec();
        // The last one's first byte waits at its own rack's link for the first one's, and is in turn then.
        assert_eq!(arrived, [1_300, 1_800, 2_300, 2_800]);
        let [out, into, ..] = of.total();
        assert_eq!((out.messages, into.messages, out.bytes, into.bytes), (4, 4, 4_000, 4_000));
        assert_eq!((out.busy_ns, out.wait_ns), (2_000, 500));
        assert_eq!((into.busy_ns, into.wait_ns), (2_000, 500 + 1_000 + 1_000));
        assert_eq!(of.links().map(|passed| passed.busy_ns).sum::<u64>(), 4_000);
        assert_eq!(of.stretches().iter().map(|of| of[1].messages).collect::<Vec<_>>(), [0, 2, 2]);
        // Within a rack nothing passes a link.
        assert_eq!(of.pass_all(&network, ids, ((0, 1), 900), 1_000), 900);
    }
}

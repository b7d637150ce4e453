//! Which nodes hold which experts: lists, so that memory follows the copies and never experts times nodes.

use crate::ids::ExpertId;

/// Hosts of each expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copies {
    /// Where each expert's hosts begin in `hosts`, and the end of the last one's.
    starts: Vec<u32>,
    hosts: Vec<u32>,
}

/// Nodes have too little memory for one copy of each expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{nodes} nodes with room for {slots} experts each cannot hold {experts} experts: take more nodes, or give \
     them more memory"
)]
pub struct TooSmall {
    /// N.
    pub nodes: u32,
    /// Experts that a node has room for.
    pub slots: u32,
    /// E.
    pub experts: usize,
}

impl Copies {
    /// Every expert on every node: queues without experts.
    #[must_use]
    pub fn everywhere(experts: u32, nodes: u32) -> Self {
        let starts = (0..=experts).map(|expert| expert * nodes).collect();
        Self { starts, hosts: (0..experts).flat_map(|_| 0..nodes).collect() }
    }

    /// On these nodes, each expert on one at least and on each at most once.
    #[must_use]
    pub fn on(hosts: &[Vec<u32>]) -> Self {
        let ends = hosts.iter().scan(0, |end, hosts| {
            *end += u32::try_from(hosts.len()).expect("copies fit 32 bits");
            Some(*end)
        });
        Self { starts: std::iter::once(0).chain(ends).collect(), hosts: hosts.concat() }
    }

    /// Fills `slots` places on each of `nodes` nodes: one copy for each expert, the rest in proportion to
    /// their shares (largest remainders), at most one on each node. Copies are dealt to nodes in steps that
    /// bring those of one expert into as many racks as there are.
    ///
    /// # Errors
    /// [`TooSmall`].
    pub fn by_share(shares: &[f64], nodes: u32, slots: u32) -> Result<Self, TooSmall> {
        let experts = shares.len();
        let places = nodes as usize * slots as usize;
        if places < experts {
            return Err(TooSmall { nodes, slots, experts });
        }
        let counts = counts(shares, nodes as usize, places - experts);
        let mut starts = Vec::with_capacity(experts + 1);
        let mut hosts = Vec::with_capacity(places);
        // Successive copies are a golden section of the nodes apart. The step has no divisor in common with
        // their number, so each node has been visited once before any is visited again.
        let step = coprime_near(u64::from(nodes), f64::from(nodes) * 0.618);
        let mut at = 0;
        for count in counts {
            starts.push(u32::try_from(hosts.len()).expect("copies fit 32 bits"));
            for _ in 0..count {
                hosts.push(u32::try_from(at).expect("a node"));
                at = (at + step) % u64::from(nodes);
            }
        }
        starts.push(u32::try_from(hosts.len()).expect("copies fit 32 bits"));
        Ok(Self { starts, hosts })
    }

    /// E.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.starts.len() - 1
    }

    /// All copies.
    #[must_use]
    pub fn total(&self) -> usize {
        self.hosts.len()
    }

    /// Bytes that each of `nodes` holds, of experts of so many bytes each.
    #[must_use]
    pub fn resident_bytes(&self, nodes: u32, expert_bytes: impl Fn(ExpertId) -> u64) -> Vec<u64> {
        let mut resident = vec![0; nodes as usize];
        for expert in (0..self.experts()).map(ExpertId::from_index) {
            let bytes = expert_bytes(expert);
            self.hosts(expert).iter().for_each(|host| resident[*host as usize] += bytes);
        }
        resident
    }

    /// The nodes that hold an expert, each once, at least one.
    #[must_use]
    pub fn hosts(&self, expert: ExpertId) -> &[u32] {
        &self.hosts[self.starts[expert.index()] as usize..self.starts[expert.index() + 1] as usize]
    }
}

/// Copies of each expert, `1..=nodes`, `extra` of them beyond one each where there is room.
fn counts(shares: &[f64], nodes: usize, extra: usize) -> Vec<usize> {
    let sum: f64 = shares.iter().sum();
    let wanted = |share: &f64| 1.0 + share / sum * extra as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most the places"
    )]
    let mut counts: Vec<usize> =
        shares.iter().map(|share| (wanted(share) as usize).clamp(1, nodes)).collect();
    let mut left = (shares.len() + extra).saturating_sub(counts.iter().sum());
    let mut by_remainder: Vec<usize> = (0..shares.len()).collect();
    by_remainder.sort_by(|a, b| {
        let remainder = |at: &usize| wanted(&shares[*at]) - counts[*at] as f64;
        remainder(b).total_cmp(&remainder(a)).then(a.cmp(b))
    });
    // Those that are on all nodes leave their places to the others, in turn.
    while left > 0 && counts.iter().any(|count| *count < nodes) {
        for at in &by_remainder {
            if left > 0 && counts[*at] < nodes {
                counts[*at] += 1;
                left -= 1;
            }
        }
    }
    counts
}

fn coprime_near(nodes: u64, step: f64) -> u64 {
    let divisor = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let near = super::whole_ns(step).max(1);
    (near..).find(|step| divisor(*step, nodes) == 1).expect("a prime is near")
}

#[cfg(test)]
mod tests {
    use super::{Copies, TooSmall};
    use crate::cluster::Popularity;
    use crate::ids::ExpertId;
    use std::collections::BTreeSet;

    #[test]
    fn each_expert_has_a_host_popular_ones_more_and_no_node_more_than_it_has_room_for() {
        for (experts, nodes, slots) in
            [(64, 16, 4), (64, 16, 9), (4096, 1000, 8), (8, 3000, 1), (1, 7, 3)]
        {
            let shares = Popularity::skewed(experts, 1.0, 5).shares().to_vec();
            let copies = Copies::by_share(&shares, nodes, slots).expect("enough room");
            let mut held = vec![0; nodes as usize];
            for expert in (0..experts).map(ExpertId::from_index) {
                let hosts = copies.hosts(expert);
                let distinct: BTreeSet<u32> = hosts.iter().copied().collect();
                assert!(!hosts.is_empty() && distinct.len() == hosts.len(), "{experts} {nodes}");
                hosts.iter().for_each(|host| held[*host as usize] += 1);
            }
            assert!(held.iter().all(|held| *held <= slots), "{experts} {nodes}: {held:?}");
            let bytes: Vec<u64> = held.iter().map(|held| u64::from(*held) * 10).collect();
            assert_eq!(copies.resident_bytes(nodes, |_| 10), bytes);
            let most = experts * nodes as usize;
            assert_eq!(copies.total(), (nodes as usize * slots as usize).min(most));
            let most = (0..experts).max_by(|a, b| shares[*a].total_cmp(&shares[*b])).expect("one");
            let least = (0..experts).min_by(|a, b| shares[*a].total_cmp(&shares[*b])).expect("one");
            let count = |expert| copies.hosts(ExpertId::from_index(expert)).len();
            assert!(count(most) >= count(least));
        }
        let small = Copies::by_share(&[0.5, 0.5, 0.5], 2, 1);
        assert_eq!(small, Err(TooSmall { nodes: 2, slots: 1, experts: 3 }));
    }
}

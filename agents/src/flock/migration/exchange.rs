//! The exchange: what two nodes may agree on, and one round of it over all nodes.

use super::super::graph::Graph;
use crate::ids::{ExpertId, NodeId};
use crate::placement::{Dispatch, LoadError, Placement, dispatch};

/// Parameters of the rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MigrationSettings {
    /// Nodes that a node hears each round, drawn anew.
    pub neighbours: usize,
    /// A node up to this many times the mean of what it hears is content, at least 1.
    pub tolerance: f64,
    /// What a moved copy must lower the larger load of two nodes by, in parts of the mean it hears.
    pub least_gain: f64,
    /// Worth of bringing an expert to those chosen with it, in parts of the mean load per unit of
    /// [`Coactivation`]; 0 ignores it.
    pub cohesion: f64,
    /// Copies that may be sent in a round, in the order of what the exchanges are worth.
    pub copies_max: usize,
    /// Hosts that an expert keeps when a copy is dropped, at least 1.
    pub copies_min: usize,
    /// Of who hears whom.
    pub seed: u64,
}

impl Default for MigrationSettings {
    /// Three others, content up to 1.05, a copy for 1 % of the mean, no cohesion, any number of copies.
    fn default() -> Self {
        Self {
            neighbours: 3,
            tolerance: 1.05,
            least_gain: 0.01,
            cohesion: 0.0,
            copies_max: usize::MAX,
            copies_min: 1,
            seed: 0,
        }
    }
}

/// How often two experts serve the same token: `[E, E]`, 0 to 1, symmetric.
#[derive(Clone, Copy, Debug)]
pub struct Coactivation<'a>(pub &'a [f64]);

/// What one round did.
#[derive(Clone, Debug, PartialEq)]
pub struct Migration {
    /// The copies afterwards.
    pub placement: Placement,
    /// Copies sent, in the order of the nodes that asked for it.
    pub moves: Vec<Move>,
}

/// A copy sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Whose copy.
    pub expert: ExpertId,
    /// Who sends it.
    pub from: NodeId,
    /// Who gets it.
    pub to: NodeId,
}

/// One round under the given loads. `slots` are the copies that each node has room for, `[N]`; a node with
/// none is out of service: it is sent nothing, and others may take over what it holds.
///
/// # Errors
/// Loads that are no amounts or not one an expert.
///
/// # Panics
/// When there is not one number of slots a node.
pub fn migrate(
    placement: &Placement,
    loads: &[f64],
    slots: &[usize],
    round: u64,
    together: Option<Coactivation<'_>>,
    settings: &MigrationSettings,
) -> Result<Migration, LoadError> {
    assert_eq!(slots.len(), placement.nodes(), "one number of slots a node");
    let served = dispatch(placement, loads, None)?;
    let held = shares_by_node(placement, &served);
    let seed = settings.seed.wrapping_add(round);
    let heard = Graph::Random.neighbourhoods(&[], held.len(), settings.neighbours, seed);
    let serves = |node: &usize| slots[*node] > 0;
    let room =
        Room { placement, held: &held, loads: &served.node_loads, slots, together, settings };
    let mut wishes: Vec<Exchange> = Vec::new();
    for (node, heard) in heard.iter().enumerate() {
        let others: Vec<usize> = heard.iter().map(|other| other.index()).filter(serves).collect();
        let sum: f64 = others.iter().map(|other| room.loads[*other]).sum();
        let mean = (sum + room.loads[node]) / (others.len() + 1) as f64;
        if room.loads[node] > settings.tolerance * mean {
            wishes.extend(others.into_iter().filter_map(|other| room.best(node, other, mean)));
        }
    }
    // Two nodes agree when each is the other's best: the order of gains says who meets whom.
    wishes.sort_by(|a, b| b.worth.total_cmp(&a.worth).then((a.high, a.low).cmp(&(b.high, b.low))));
    let mut busy = vec![false; held.len()];
    let mut hosts: Vec<Vec<NodeId>> = (0..placement.experts())
        .map(|e| placement.hosts(ExpertId::from_index(e)).to_vec())
        .collect();
    let mut agreed: Vec<Exchange> = Vec::new();
    let mut left = settings.copies_max;
    for wish in wishes {
        let third = wish.freed.filter(|_| !wish.returns);
        let third = third.and_then(|freed| room.least_other_host(freed, wish.low));
        let part = [Some(wish.high), Some(wish.low), third];
        let is_free = part.into_iter().flatten().all(|node| !busy[node]);
        let sent = wish.moves().count();
        if is_free && sent <= left && wish.leaves_copies(&hosts, settings.copies_min) {
            left -= sent;
            part.into_iter().flatten().for_each(|node| busy[node] = true);
            wish.carry_out(&mut hosts);
            agreed.push(wish);
        }
    }
    agreed.sort_by_key(|exchange| exchange.high);
    let moves = agreed.iter().flat_map(Exchange::moves).collect();
    let placement = Placement::new(held.len(), &hosts).expect("every expert kept a host");
    Ok(Migration { placement, moves })
}

/// For each node its experts with the loads they have there.
fn shares_by_node(placement: &Placement, served: &Dispatch) -> Vec<Vec<(ExpertId, f64)>> {
    let mut held = vec![Vec::new(); placement.nodes()];
    for expert in (0..placement.experts()).map(ExpertId::from_index) {
        let copies = placement.copies_of(expert);
        for (node, share) in placement.hosts(expert).iter().zip(&served.shares[copies]) {
            held[node.index()].push((expert, *share));
        }
    }
    held
}

/// What two nodes may agree on: the high one sends `gives`, the low one `takes` back or drops it.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    high: usize,
    low: usize,
    gives: ExpertId,
    keeps: bool,
    freed: Option<ExpertId>,
    returns: bool,
    worth: f64,
}

impl Exchange {
    /// Whether what is dropped is still held elsewhere, by as many as it shall be.
    fn leaves_copies(&self, hosts: &[Vec<NodeId>], copies_min: usize) -> bool {
        let others = |expert: ExpertId, node: usize| {
            hosts[expert.index()].iter().filter(|host| host.index() != node).count()
        };
        self.returns || self.freed.is_none_or(|freed| others(freed, self.low) >= copies_min)
    }

    fn carry_out(&self, hosts: &mut [Vec<NodeId>]) {
        let (high, low) = (NodeId::from_index(self.high), NodeId::from_index(self.low));
        if let Some(freed) = self.freed {
            hosts[freed.index()].retain(|host| *host != low);
            if self.returns {
                hosts[freed.index()].push(high);
            }
        }
        if !self.keeps {
            hosts[self.gives.index()].retain(|host| *host != high);
        }
        hosts[self.gives.index()].push(low);
    }

    fn moves(&self) -> impl Iterator<Item = Move> + use<> {
        let (high, low) = (NodeId::from_index(self.high), NodeId::from_index(self.low));
        let back = self.freed.filter(|_| self.returns);
        let given = Move { expert: self.gives, from: high, to: low };
        std::iter::once(given).chain(back.map(|expert| Move { expert, from: low, to: high }))
    }
}

/// What nodes know of those they hear.
struct Room<'r> {
    placement: &'r Placement,
    held: &'r [Vec<(ExpertId, f64)>],
    loads: &'r [f64],
    slots: &'r [usize],
    together: Option<Coactivation<'r>>,
    settings: &'r MigrationSettings,
}

impl Room<'_> {
    /// The exchange of most worth a copy sent, if one is worth it.
    fn best(&self, high: usize, low: usize, mean: f64) -> Option<Exchange> {
        let (own, other) = (self.loads[high], self.loads[low]);
        if own <= other || self.slots[low] == 0 {
            return None;
        }
        let holds = |node: usize, expert| self.held[node].iter().any(|(held, _)| *held == expert);
        let is_free = self.held[low].len() < self.slots[low];
        let mut best: Option<Exchange> = None;
        let mut offer = |exchange: Exchange, left: f64, sent: f64| {
            let gain = (own - left) / mean;
            let worth = gain / sent + self.settings.cohesion * self.nearer(&exchange);
            let enough = gain >= sent * self.settings.least_gain;
            if enough && best.is_none_or(|best| worth > best.worth) {
                best = Some(Exchange { worth, ..exchange });
            }
        };
        for (gives, load) in &self.held[high] {
            if holds(low, *gives) {
                continue;
            }
            let exchange = |keeps, freed, returns| Exchange {
                high,
                low,
                gives: *gives,
                keeps,
                freed,
                returns,
                worth: 0.0,
            };
            // A second copy takes what evens the two out.
            let shared = |freed: f64| {
                let moved = ((own - other + freed) / 2.0).min(*load);
                (own - moved).max(other - freed + moved)
            };
            if is_free {
                offer(exchange(true, None, false), shared(0.0), 1.0);
            }
            for (freed, back) in &self.held[low] {
                // Its load goes to the least loaded of its other hosts, which must have room for it.
                let spare = self.placement.hosts(*freed).len() > self.settings.copies_min;
                if let Some(third) = self.least_other_host(*freed, low).filter(|_| spare)
                    && third != high
                {
                    let rest = self.loads[third] + back;
                    offer(exchange(true, Some(*freed), false), shared(*back).max(rest), 1.0);
                }
                if !holds(high, *freed) && self.slots[high] > 0 {
                    let left = (own - load + back).max(other + load - back);
                    offer(exchange(false, Some(*freed), true), left, 2.0);
                }
            }
        }
        best
    }

    /// Of the hosts of an expert but for one node: copies of an expert know each other's load.
    fn least_other_host(&self, expert: ExpertId, but: usize) -> Option<usize> {
        let others = self.placement.hosts(expert).iter().map(|host| host.index());
        let others = others.filter(|host| *host != but);
        others.min_by(|a, b| self.loads[*a].total_cmp(&self.loads[*b]).then(a.cmp(b)))
    }

    /// How much more often the sent experts serve a token with those where they go.
    fn nearer(&self, exchange: &Exchange) -> f64 {
        let Some(Coactivation(together)) = self.together else { return 0.0 };
        let experts = self.placement.experts();
        let company = |expert: ExpertId, node: usize| -> f64 {
            let others = self.held[node].iter().filter(|(other, _)| *other != expert);
            others.map(|(other, _)| together[expert.index() * experts + other.index()]).sum()
        };
        let towards = |expert, from, to| company(expert, to) - company(expert, from);
        let back = exchange.freed.filter(|_| exchange.returns);
        towards(exchange.gives, exchange.high, exchange.low)
            + back.map_or(0.0, |expert| towards(expert, exchange.low, exchange.high))
    }
}

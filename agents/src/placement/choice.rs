//! Which copy computes an expert's tokens, by what its node is measured to take.

use super::Placement;
use crate::ids::{ExpertId, NodeId};
use rand::{Rng, RngExt as _};

/// What an order costs a node whatever it holds, in pairs: an order of few pairs takes longer for each.
pub const ORDER_COST_PAIRS: f64 = 16.0;

/// How the tokens of an expert with several copies get to one of them, or to all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplicaChoice {
    /// Split over the copies so that the most loaded node has the fewest pairs: nodes are taken to be
    /// equally fast. See [`super::dispatch_tokens`].
    #[default]
    Planned,
    /// Two copies are drawn and all tokens go to the one that will be done sooner, experts with most
    /// tokens first (Mitzenmacher, *IEEE Trans. Parallel Distrib. Syst.* 12, 2001).
    TwoChoices,
    /// One copy is drawn: the control.
    Random,
    /// The copies take turns, step by step: the control.
    RoundRobin,
}

/// What was measured of a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NodeLoad {
    /// Pairs that it was asked for and has not answered, at least zero.
    pub pending_pairs: f64,
    /// Time from an order to its answer for each pair of it and of [`ORDER_COST_PAIRS`], ns, above zero.
    pub ns_per_pair: f64,
}

impl Default for NodeLoad {
    /// Nothing is known: all nodes are alike.
    fn default() -> Self {
        Self { pending_pairs: 0.0, ns_per_pair: 1.0 }
    }
}

/// Sends all tokens of each expert to one of its copies, in all rules but [`ReplicaChoice::Planned`].
///
/// `loads` has the tokens of each expert, `[E]`, `nodes` what is known of each node, `[N]`, and `turn` is what
/// round robin counts. Gives the tokens of every copy, in the order of [`Placement::copies_of`]. What is drawn
/// depends on nothing but `rng`, the placement and which experts have tokens, and for two choices on
/// which have more.
///
/// # Panics
/// When a length is another, or the rule is [`ReplicaChoice::Planned`].
pub fn choose_copies(
    rule: ReplicaChoice,
    placement: &Placement,
    loads: &[u32],
    nodes: &[NodeLoad],
    turn: usize,
    rng: &mut impl Rng,
) -> Vec<u32> {
    assert_eq!((loads.len(), nodes.len()), (placement.experts(), placement.nodes()));
    let mut experts: Vec<ExpertId> = (0..loads.len()).map(ExpertId::from_index).collect();
    experts.retain(|expert| loads[expert.index()] > 0);
    if rule == ReplicaChoice::TwoChoices {
        // Large groups first: the small ones even out what these leave (Graham 1969).
        experts.sort_by_key(|expert| std::cmp::Reverse(loads[expert.index()]));
    }
    let mut shares = vec![0; placement.copies()];
    let mut ordered: Vec<f64> = nodes.iter().map(|node| node.pending_pairs).collect();
    for expert in experts {
        let load = loads[expert.index()];
        let (hosts, copies) = (placement.hosts(expert), placement.copies_of(expert));
        let done_ns = |copy: &usize| {
            let node = hosts[*copy].index();
            (ORDER_COST_PAIRS + ordered[node] + f64::from(load)) * nodes[node].ns_per_pair
        };
        let copy = match rule {
            ReplicaChoice::Planned => panic!("a plan splits the tokens of an expert"),
            ReplicaChoice::Random => rng.random_range(0..hosts.len()),
            // Experts in a row may be dealt to nodes in a row: as many as there are nodes go together.
            ReplicaChoice::RoundRobin => (turn + expert.index() / nodes.len()) % hosts.len(),
            ReplicaChoice::TwoChoices => {
                let [one, other] = two_of(hosts.len(), rng);
                if done_ns(&other) < done_ns(&one) { other } else { one }
            }
        };
        ordered[hosts[copy].index()] += f64::from(load);
        shares[copies.start + copy] = load;
    }
    shares
}

/// Two different ones of so many, each pair in each order as likely; the only one twice where there is one.
fn two_of(count: usize, rng: &mut impl Rng) -> [usize; 2] {
    let one = rng.random_range(0..count);
    let step = if count > 1 { rng.random_range(1..count) } else { 0 };
    [one, (one + step) % count]
}

/// The pairs that every node is ordered, `[N]`, under shares of copies.
#[must_use]
pub fn pairs_by_node(placement: &Placement, shares: &[u32]) -> Vec<u64> {
    let mut pairs = vec![0; placement.nodes()];
    for expert in (0..placement.experts()).map(ExpertId::from_index) {
        let hosts: &[NodeId] = placement.hosts(expert);
        for (host, share) in hosts.iter().zip(&shares[placement.copies_of(expert)]) {
            pairs[host.index()] += u64::from(*share);
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::{NodeLoad, ReplicaChoice, choose_copies, pairs_by_node};
    use crate::ids::NodeId;
    use crate::placement::Placement;
    use crate::rng::stream;

    const CHOICES: [ReplicaChoice; 3] =
        [ReplicaChoice::TwoChoices, ReplicaChoice::Random, ReplicaChoice::RoundRobin];

    /// `experts` with two copies each, on neighbours of a ring.
    fn ring(nodes: usize, experts: usize) -> Placement {
        let on = |e: usize| vec![e % nodes, (e + 1) % nodes];
        let hosts: Vec<Vec<NodeId>> =
            (0..experts).map(|e| on(e).into_iter().map(NodeId::from_index).collect()).collect();
        Placement::new(nodes, &hosts).expect("distinct nodes")
    }

    #[test]
    fn each_rule_sends_all_tokens_of_an_expert_to_one_of_its_copies_alike_each_time() {
        let placement = ring(4, 16);
        let loads: Vec<u32> = (0..16).map(|e| e * 7 % 5).collect();
        for rule in CHOICES {
            let chosen = || {
                let mut rng = stream(3, "replica choice");
                choose_copies(rule, &placement, &loads, &[NodeLoad::default(); 4], 1, &mut rng)
            };
            let shares = chosen();
            assert_eq!(shares, chosen());
            for (expert, load) in (0..).map(crate::ids::ExpertId).zip(&loads) {
                let of = &shares[placement.copies_of(expert)];
                assert_eq!(of.iter().sum::<u32>(), *load, "{rule:?}");
                assert!(of.iter().filter(|share| **share > 0).count() <= 1, "{rule:?}");
            }
        }
    }

    #[test]
    fn two_choices_keep_off_a_node_that_is_slow_or_has_much_to_do_and_the_controls_do_not() {
        let placement = ring(4, 64);
        let loads = [8_u32; 64];
        let slow = NodeLoad { ns_per_pair: 50.0, ..NodeLoad::default() };
        let busy = NodeLoad { pending_pairs: 1e6, ..NodeLoad::default() };
        for burdened in [slow, busy] {
            let mut nodes = [NodeLoad::default(); 4];
            nodes[1] = burdened;
            for rule in CHOICES {
                let mut rng = stream(1, "replica choice");
                let shares = choose_copies(rule, &placement, &loads, &nodes, 0, &mut rng);
                let pairs = pairs_by_node(&placement, &shares);
                assert_eq!(pairs.iter().sum::<u64>(), 64 * 8);
                if rule == ReplicaChoice::TwoChoices {
                    assert!(pairs[1] <= 8, "{pairs:?}");
                } else {
                    assert!(pairs[1] >= 64, "{rule:?}: {pairs:?}");
                }
            }
        }
    }

    /// The textbook's claim, with balls of one token: the fullest bin of two choices beats that of one.
    #[test]
    fn the_fullest_node_under_two_choices_has_less_than_under_one() {
        let nodes = 32;
        let hosts: Vec<Vec<NodeId>> = (0..1024).map(|_| (0..nodes).map(NodeId).collect()).collect();
        let placement = Placement::new(nodes as usize, &hosts).expect("distinct nodes");
        let fullest = |rule, seed| {
            let mut rng = stream(seed, "replica choice");
            let known = vec![NodeLoad::default(); nodes as usize];
            let shares = choose_copies(rule, &placement, &[1; 1024], &known, 0, &mut rng);
            pairs_by_node(&placement, &shares).into_iter().max().unwrap_or(0)
        };
        for seed in 0..20 {
            let two = fullest(ReplicaChoice::TwoChoices, seed);
            let one = fullest(ReplicaChoice::Random, seed);
            assert!((32..=36).contains(&two) && one > two, "seed {seed}: {two} and {one}");
        }
    }
}

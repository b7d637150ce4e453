//! The delivery of one round's orders, whatever happens to their nodes. Pure: it knows no transport
//! and no clock, but is told what arrived and when.
//!
//! An order is asked of its node first. What a node fails to do, and what is hedged, is asked again
//! of other holders of the same experts, an expert's tokens always as a whole. The first answer to a
//! group of tokens counts and every later one is dropped, so each is in the replies exactly once; as
//! an output depends on nothing but its row and its expert, it does not matter which.
//!
//! Where nodes sum, a reply counts as a whole or not at all. What is asked again is always a part of what one
//! attempt asked, so two attempts share all groups of the smaller or none: the reply to the larger takes
//! the place of those to its parts.

use agents::ids::{ExpertId, LayerId, NodeId};
use agents::orders::{Combine, ExpertGroup, NodeOrder, NodeReply, Orders, Replies};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The nodes that hold each expert, ascending.
pub(super) type Holders = BTreeMap<(LayerId, ExpertId), Vec<NodeId>>;

/// One message to one node, by its place in the order of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AttemptId(usize);

/// One message to one node.
#[derive(Clone, Debug)]
pub(super) struct Attempt<'a> {
    /// The addressee.
    pub(super) node: NodeId,
    /// What it is asked, which keeps the contract of an order.
    pub(super) order: Cow<'a, NodeOrder>,
    /// Whether it is the first message with these tokens.
    pub(super) is_first: bool,
    /// Whether an answer is awaited.
    pub(super) is_open: bool,
    /// The group of the round that each of its groups is.
    groups: Vec<usize>,
    reply: Option<NodeReply>,
    /// Whether any group counts by its reply.
    used: bool,
}

impl Attempt<'_> {
    /// Whether it was answered.
    pub(super) fn has_reply(&self) -> bool {
        self.reply.is_some()
    }
}

/// The tokens of one expert of one order.
#[derive(Clone, Debug)]
struct Group {
    /// Place in the round's orders, and in that order's groups.
    place: (usize, usize),
    /// Which reply counts, and its first row there.
    answer: Option<(AttemptId, usize)>,
    /// Attempts whose answer is awaited.
    open: usize,
    /// Nodes that were asked.
    asked: Vec<NodeId>,
}

/// One round's orders on their way.
#[derive(Debug)]
pub(super) struct RoundTrip<'a> {
    orders: &'a Orders,
    holders: &'a Holders,
    combine: Combine,
    attempts: Vec<Attempt<'a>>,
    groups: Vec<Group>,
    unanswered: usize,
}

impl<'a> RoundTrip<'a> {
    /// One attempt for each order, in their order.
    pub(super) fn new(orders: &'a Orders, holders: &'a Holders, combine: Combine) -> Self {
        let (mut attempts, mut groups) = (Vec::with_capacity(orders.nodes.len()), Vec::new());
        for (at, order) in orders.nodes.iter().enumerate() {
            let first = groups.len();
            groups.extend((0..order.groups.len()).map(|group| Group {
                place: (at, group),
                answer: None,
                open: 1,
                asked: vec![order.node],
            }));
            attempts.push(Attempt {
                node: order.node,
                order: Cow::Borrowed(order),
                is_first: true,
                is_open: true,
                groups: (first..groups.len()).collect(),
                reply: None,
                used: false,
            });
        }
        let unanswered = groups.len();
        Self { orders, holders, combine, attempts, groups, unanswered }
    }

    /// Every attempt so far.
    pub(super) fn attempts(&self) -> impl Iterator<Item = AttemptId> + use<> {
        (0..self.attempts.len()).map(AttemptId)
    }

    /// One of them.
    pub(super) fn attempt(&self, id: AttemptId) -> &Attempt<'a> {
        &self.attempts[id.0]
    }

    /// Whether every token is answered.
    pub(super) fn is_done(&self) -> bool {
        self.unanswered == 0
    }

    /// Whether some of what an attempt asks for has no answer yet.
    pub(super) fn is_needed(&self, id: AttemptId) -> bool {
        self.attempts[id.0].groups.iter().any(|group| self.groups[*group].answer.is_none())
    }

    /// Whether the reply to an attempt counts for anything.
    pub(super) fn is_used(&self, id: AttemptId) -> bool {
        self.attempts[id.0].used
    }

    /// A reply with one row for each pair of the attempt's order, or where nodes sum for each of its tokens.
    pub(super) fn answered(&mut self, id: AttemptId, reply: NodeReply) {
        if self.combine == Combine::AtWorker {
            self.summed(id);
            self.attempts[id.0].reply = Some(reply);
            return;
        }
        let Self { attempts, groups, .. } = self;
        let attempt = &mut attempts[id.0];
        assert!(attempt.is_open, "an attempt has one reply");
        attempt.is_open = false;
        let mut row = 0;
        for (asked, group) in attempt.order.groups.iter().zip(&attempt.groups) {
            let group = &mut groups[*group];
            group.open -= 1;
            if group.answer.is_none() {
                group.answer = Some((id, row));
                attempt.used = true;
                self.unanswered -= 1;
            }
            row += asked.tokens.len();
        }
        attempt.reply = Some(reply);
    }

    /// An attempt has its sums: they count for all of its groups, unless those of an attempt do that asked for
    /// no less.
    fn summed(&mut self, id: AttemptId) {
        let attempt = &mut self.attempts[id.0];
        assert!(attempt.is_open, "an attempt has one reply");
        attempt.is_open = false;
        let asked = attempt.groups.clone();
        let by: Vec<Option<AttemptId>> =
            asked.iter().map(|at| self.groups[*at].answer.map(|(by, _)| by)).collect();
        asked.iter().for_each(|at| self.groups[*at].open -= 1);
        let is_part = |by: &AttemptId| self.attempts[by.0].groups.len() < asked.len();
        if !by.iter().flatten().all(is_part) {
            return;
        }
        for (at, by) in asked.into_iter().zip(by) {
            match by {
                Some(part) => self.attempts[part.0].used = false,
                None => self.unanswered -= 1,
            }
            self.groups[at].answer = Some((id, 0));
        }
        self.attempts[id.0].used = true;
    }

    /// An attempt that will not be answered: what nobody else is computing is asked of other
    /// holders, those that `prefer` first and of these the one that is asked least this round.
    /// Gives the attempts to send, or nothing where a group has no holder left that was not asked.
    pub(super) fn failed(
        &mut self,
        id: AttemptId,
        prefer: impl Fn(NodeId) -> bool,
    ) -> Option<Vec<AttemptId>> {
        let attempt = &mut self.attempts[id.0];
        attempt.is_open = false;
        let asked = attempt.groups.clone();
        let mut orphans = Vec::new();
        for at in asked {
            let group = &mut self.groups[at];
            group.open -= 1;
            if group.answer.is_none() && group.open == 0 {
                orphans.push(at);
            }
        }
        self.ask_others(&orphans, |node| Some(prefer(node)))
    }

    /// Asks for what an attempt has not answered a second time, of other holders that are
    /// `available`. Gives the attempts to send, or nothing where some of it has no such holder.
    pub(super) fn hedge(
        &mut self,
        id: AttemptId,
        available: impl Fn(NodeId) -> bool,
    ) -> Option<Vec<AttemptId>> {
        let unanswered = |group: &usize| self.groups[*group].answer.is_none();
        let groups: Vec<usize> =
            self.attempts[id.0].groups.iter().copied().filter(unanswered).collect();
        self.ask_others(&groups, |node| available(node).then_some(true))
    }

    /// The nodes whose replies count, for each order and each of its groups.
    ///
    /// # Panics
    /// When a token is not answered.
    pub(super) fn answerers(&self) -> Vec<Vec<NodeId>> {
        let mut by_order = vec![Vec::new(); self.orders.nodes.len()];
        for group in &self.groups {
            let (attempt, _) = group.answer.expect("every group is answered");
            by_order[group.place.0].push(self.attempts[attempt.0].node);
        }
        by_order
    }

    /// The replies to the orders, each under the name of the order's own node.
    ///
    /// # Panics
    /// When a token is not answered, or not exactly once.
    pub(super) fn into_replies(mut self, width: usize) -> Replies {
        let mut groups = self.groups.iter().peekable();
        let mut nodes = Vec::with_capacity(self.orders.nodes.len());
        for (at, order) in self.orders.nodes.iter().enumerate() {
            let mut parts = Vec::with_capacity(order.groups.len());
            while let Some(group) = groups.next_if(|group| group.place.0 == at) {
                parts.push(group.answer.expect("every group is answered"));
            }
            let first = AttemptId(at);
            if parts.iter().all(|(attempt, _)| *attempt == first) {
                nodes.push(self.attempts[at].reply.take().expect("it answered"));
                continue;
            }
            let mut outputs = Vec::new();
            if self.combine == Combine::Exact {
                outputs.reserve_exact(order.pairs() * width);
                for (group, (attempt, row)) in order.groups.iter().zip(&parts) {
                    let reply = self.attempts[attempt.0].reply.as_ref().expect("it answered");
                    let rows = row * width..(row + group.tokens.len()) * width;
                    outputs.extend_from_slice(&reply.outputs[rows]);
                }
            }
            parts.sort_unstable();
            parts.dedup_by_key(|(attempt, _)| *attempt);
            if self.combine == Combine::AtWorker {
                outputs = self.sum_of_parts(order, &parts, width);
            }
            let spent = |(attempt, _): &(AttemptId, usize)| {
                self.attempts[attempt.0].reply.as_ref().map_or(0, |reply| reply.compute_ns)
            };
            // Peers state the times: whatever they say, the sum does not overflow.
            let compute_ns = parts.iter().map(spent).fold(0, u64::saturating_add);
            nodes.push(NodeReply { node: order.node, outputs, compute_ns });
        }
        if self.combine == Combine::Exact {
            for (order, reply) in self.orders.nodes.iter().zip(&nodes) {
                let asked = order.pairs() * width;
                assert_eq!(reply.outputs.len(), asked, "each pair of {} counts once", order.node);
            }
        }
        Replies { nodes }
    }

    /// What several attempts summed of one order, in their order.
    ///
    /// # Panics
    /// When a group is in the sums of none of them, or of two.
    fn sum_of_parts(
        &self,
        order: &NodeOrder,
        parts: &[(AttemptId, usize)],
        width: usize,
    ) -> Vec<f32> {
        let tokens = order.tokens();
        let mut sums = vec![0.0; tokens.len() * width];
        let mut pairs = 0;
        for (attempt, _) in parts {
            let Attempt { order, reply, .. } = &self.attempts[attempt.0];
            pairs += order.pairs();
            let rows = reply.as_ref().expect("it answered").outputs.chunks_exact(width);
            for (token, row) in order.tokens().iter().zip(rows) {
                let place = tokens.binary_search(token).expect("a part of the order");
                let sum = &mut sums[place * width..][..width];
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        assert_eq!(pairs, order.pairs(), "each pair of {} counts once", order.node);
        sums
    }

    /// Makes attempts that ask other holders for groups. `rank` is none for a node that is not to be
    /// asked, else whether it is preferred.
    fn ask_others(
        &mut self,
        groups: &[usize],
        rank: impl Fn(NodeId) -> Option<bool>,
    ) -> Option<Vec<AttemptId>> {
        let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
        for attempt in &self.attempts {
            *load.entry(attempt.node).or_default() += attempt.order.pairs();
        }
        let mut by_node: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for at in groups {
            let group = &self.groups[*at];
            let asked = self.asked(group);
            let holders = self.holders.get(&(self.orders.layer, asked.expert))?;
            let free = holders.iter().filter(|node| !group.asked.contains(node));
            let ranked = free.filter_map(|node| rank(*node).map(|preferred| (preferred, *node)));
            let least = |(preferred, node): &(bool, NodeId)| {
                (!preferred, load.get(node).copied().unwrap_or(0), *node)
            };
            let (_, node) = ranked.min_by_key(least)?;
            *load.entry(node).or_default() += asked.tokens.len();
            by_node.entry(node).or_default().push(*at);
        }
        let first_new = self.attempts.len();
        for (node, mut groups) in by_node {
            groups.sort_unstable_by_key(|at| self.asked(&self.groups[*at]).expert);
            // An order has an expert once: a second group of the same expert, from another order
            // of the round, takes another message.
            while !groups.is_empty() {
                let mut rest = Vec::new();
                let mut message: Vec<usize> = Vec::with_capacity(groups.len());
                for at in groups {
                    let expert = |at: &usize| self.asked(&self.groups[*at]).expert;
                    let again = message.last().is_some_and(|last| expert(last) == expert(&at));
                    if again { &mut rest } else { &mut message }.push(at);
                }
                self.ask(node, message);
                groups = rest;
            }
        }
        Some((first_new..self.attempts.len()).map(AttemptId).collect())
    }

    fn ask(&mut self, node: NodeId, groups: Vec<usize>) {
        let asked = groups.iter().map(|at| self.asked(&self.groups[*at]).clone()).collect();
        for at in &groups {
            let group = &mut self.groups[*at];
            group.open += 1;
            group.asked.push(node);
        }
        self.attempts.push(Attempt {
            node,
            order: Cow::Owned(NodeOrder { node, groups: asked }),
            is_first: false,
            is_open: true,
            groups,
            reply: None,
            used: false,
        });
    }

    fn asked(&self, group: &Group) -> &'a ExpertGroup {
        &self.orders.nodes[group.place.0].groups[group.place.1]
    }
}

#[cfg(test)]
mod tests {
    use super::{AttemptId, Holders, RoundTrip};
    use agents::ids::{ExpertId, LayerId, NodeId, StepId, TokenId};
    use agents::orders::{Combine, ExpertGroup, NodeOrder, NodeReply, Orders, Replies};
    use agents::rng::stream;
    use rand::RngExt as _;
    use std::collections::BTreeSet;

    const LAYER: LayerId = LayerId(3);

    fn order(node: u32, groups: &[(u32, &[u32])]) -> NodeOrder {
        let group = |(expert, tokens): &(u32, &[u32])| ExpertGroup {
            expert: ExpertId(*expert),
            tokens: tokens.iter().copied().map(TokenId).collect(),
        };
        NodeOrder { node: NodeId(node), groups: groups.iter().map(group).collect() }
    }

    /// What any node computes: one value a pair, which names the pair.
    fn answer(order: &NodeOrder, compute_ns: u64) -> NodeReply {
        let row = |group: &ExpertGroup, token: &TokenId| (group.expert.0 * 1000 + token.0) as f32;
        let rows = order.groups.iter().flat_map(|g| g.tokens.iter().map(move |t| row(g, t)));
        NodeReply { node: order.node, outputs: rows.collect(), compute_ns }
    }

    fn expected(orders: &Orders) -> Vec<(NodeId, Vec<f32>)> {
        orders.nodes.iter().map(|order| (order.node, answer(order, 0).outputs)).collect()
    }

    fn outputs(replies: Replies) -> Vec<(NodeId, Vec<f32>)> {
        replies.nodes.into_iter().map(|reply| (reply.node, reply.outputs)).collect()
    }

    fn holders(of: &[&[u32]]) -> Holders {
        let held = |nodes: &&[u32]| nodes.iter().copied().map(NodeId).collect();
        (0..).zip(of).map(|(e, nodes)| ((LAYER, ExpertId(e)), held(nodes))).collect()
    }

    #[test]
    fn a_failed_order_goes_to_the_least_asked_holders_and_its_reply_keeps_its_name() {
        let holders = holders(&[&[0, 1], &[0, 2], &[1, 2]]);
        let nodes = vec![order(0, &[(0, &[1, 2]), (1, &[0])]), order(1, &[(2, &[0, 1])])];
        let orders = Orders { step: StepId(1), layer: LAYER, nodes };
        let mut trip = RoundTrip::new(&orders, &holders, Combine::Exact);
        let [lost, other] = [AttemptId(0), AttemptId(1)];
        let instead = trip.failed(lost, |_| true).expect("both experts have a second holder");
        let asked: Vec<_> =
            instead.iter().map(|id| trip.attempt(*id).order.clone().into_owned()).collect();
        assert_eq!(asked, [order(1, &[(0, &[1, 2])]), order(2, &[(1, &[0])])]);
        for id in [other, instead[0], instead[1]] {
            assert!(!trip.is_done());
            let reply = answer(&trip.attempt(id).order.clone(), 10);
            trip.answered(id, reply);
        }
        assert!(trip.is_done());
        let replies = trip.into_replies(1);
        assert_eq!(replies.nodes[0].compute_ns, 20);
        assert_eq!(outputs(replies), expected(&orders));
        // Expert 1 of node 2 has nowhere left to go.
        let mut trip = RoundTrip::new(&orders, &holders, Combine::Exact);
        let instead = trip.failed(lost, |_| true).expect("as above");
        assert_eq!(trip.failed(instead[1], |_| true), None);
    }

    #[test]
    fn a_hedge_and_its_order_race_and_either_wins() {
        let holders = holders(&[&[0, 1]]);
        let orders =
            Orders { step: StepId(1), layer: LAYER, nodes: vec![order(0, &[(0, &[4, 7])])] };
        for hedge_wins in [false, true] {
            let mut trip = RoundTrip::new(&orders, &holders, Combine::Exact);
            assert_eq!(trip.hedge(AttemptId(0), |_| false), None, "nobody is available");
            let hedge = trip.hedge(AttemptId(0), |_| true).expect("node 1 holds it")[0];
            let (winner, loser) =
                if hedge_wins { (hedge, AttemptId(0)) } else { (AttemptId(0), hedge) };
            for id in [winner, loser] {
                let reply = answer(&trip.attempt(id).order.clone(), 1);
                trip.answered(id, reply);
                assert!(trip.is_done());
            }
            assert!(trip.is_used(winner) && !trip.is_used(loser));
            assert_eq!(outputs(trip.into_replies(1)), expected(&orders));
        }
    }

    /// The same where nodes sum, which is exact in f32: one value a token.
    fn sums(order: &NodeOrder) -> Vec<f32> {
        let value = |token: TokenId, group: &ExpertGroup| (group.expert.0 * 1000 + token.0) as f32;
        let has =
            |token: TokenId| order.groups.iter().filter(move |group| group.tokens.contains(&token));
        let sum = |token: TokenId| has(token).map(|group| value(token, group)).sum::<f32>();
        order.tokens().into_iter().map(sum).collect()
    }

    fn answer_as(combine: Combine, order: &NodeOrder) -> NodeReply {
        match combine {
            Combine::Exact => answer(order, 1),
            Combine::AtWorker => NodeReply { outputs: sums(order), ..answer(order, 1) },
        }
    }

    /// One random round under random faults.
    fn simulate(seed: u64, combine: Combine) -> Result<(), String> {
        let mut rng = stream(seed, "round trip");
        let (nodes, experts) = (rng.random_range(1_u32..7), rng.random_range(1_u32..9));
        let mut holders = Holders::new();
        let mut orders = Orders { step: StepId(0), layer: LAYER, nodes: Vec::new() };
        let mut work = vec![Vec::new(); nodes as usize];
        for expert in (0..experts).map(ExpertId) {
            let copies = rng.random_range(1..=nodes.min(3));
            let first = rng.random_range(0..nodes);
            let mut held: Vec<_> = (0..copies).map(|c| NodeId((first + c) % nodes)).collect();
            held.sort_unstable();
            for node in &held {
                // A replicated expert's tokens are split over some of its hosts.
                let tokens: Vec<_> =
                    (0..rng.random_range(0_u32..4)).map(|t| TokenId(t * nodes + node.0)).collect();
                if !tokens.is_empty() {
                    work[node.index()].push(ExpertGroup { expert, tokens });
                }
            }
            holders.insert((LAYER, expert), held);
        }
        for (node, groups) in work.into_iter().enumerate().filter(|(_, g)| !g.is_empty()) {
            orders.nodes.push(NodeOrder { node: NodeId::from_index(node), groups });
        }
        let mut trip = RoundTrip::new(&orders, &holders, combine);
        let mut open: Vec<AttemptId> = trip.attempts().collect();
        let mut lost = BTreeSet::new();
        let mut steps = 0;
        while !trip.is_done() {
            steps += 1;
            if steps > 10_000 || open.is_empty() {
                return Err(format!("no progress after {steps} steps"));
            }
            let id = open[rng.random_range(0..open.len())];
            let node = trip.attempt(id).node;
            match rng.random_range(0..10) {
                0..6 => {
                    open.retain(|other| *other != id);
                    let reply = answer_as(combine, &trip.attempt(id).order.clone());
                    trip.answered(id, reply);
                }
                6..8 => {
                    // The node is lost, with all that it was asked.
                    lost.insert(node);
                    let (its, rest): (Vec<_>, Vec<_>) =
                        open.iter().partition(|id| trip.attempt(**id).node == node);
                    open = rest;
                    for id in its {
                        let Some(instead) = trip.failed(id, |node| !lost.contains(&node)) else {
                            // Then every holder of one of its experts was asked before.
                            let groups = &trip.attempt(id).order.groups;
                            let asked = |group: &ExpertGroup| {
                                holders[&(LAYER, group.expert)].iter().all(|holder| {
                                    trip.attempts().any(|a| trip.attempt(a).node == *holder)
                                })
                            };
                            return if groups.iter().any(asked) {
                                Ok(())
                            } else {
                                Err("gave up too early".into())
                            };
                        };
                        open.extend(instead);
                    }
                }
                _ => {
                    if trip.is_needed(id) {
                        open.extend(
                            trip.hedge(id, |node| !lost.contains(&node)).unwrap_or_default(),
                        );
                    }
                }
            }
            for id in &open {
                let groups = &trip.attempt(*id).order.groups;
                if groups.is_empty() || !groups.is_sorted_by(|a, b| a.expert < b.expert) {
                    return Err("an order breaks its contract".into());
                }
            }
        }
        let right = |order: &NodeOrder| (order.node, answer_as(combine, order).outputs);
        let expected: Vec<_> = orders.nodes.iter().map(right).collect();
        let same = outputs(trip.into_replies(1)) == expected;
        if same { Ok(()) } else { Err("the replies are not those of the orders".into()) }
    }

    #[test]
    fn whatever_fails_every_token_is_answered_once_or_the_round_says_that_it_cannot() {
        for seed in 0..20_000 {
            for combine in [Combine::Exact, Combine::AtWorker] {
                if let Err(problem) = simulate(seed, combine) {
                    panic!("seed {seed}, {combine:?}: {problem}");
                }
            }
        }
    }
}

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

mod replies;
#[cfg(test)]
mod tests;

use agents::ids::{ExpertId, LayerId, NodeId};
use agents::orders::{Combine, ExpertGroup, NodeOrder, NodeReply, Orders};
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

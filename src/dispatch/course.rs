//! The course of one round: what is asked again of whom, and when, by the rules of [`super::round_trip`] and
//! [`super::health`], and what the round says of its nodes. Pure: it sends nothing and is told the time.

use super::Faults;
use super::health::Health;
use super::round_trip::{AttemptId, Holders, RoundTrip};
use agents::ids::NodeId;
use agents::orders::{Combine, NodeReply, Orders};
use agents::queueing::ForkJoin;

/// How nodes stand, by the rounds so far.
pub(super) struct Standing<'a> {
    pub(super) health: &'a mut Health,
    pub(super) faults: &'a mut Faults,
}

impl Standing<'_> {
    /// A node was slow: it is set aside for a while, unless too many are.
    pub(super) fn set_aside(&mut self, node: NodeId, now_ns: u64) {
        if self.health.beaten(node, now_ns) {
            tracing::debug!("node {node} is slow and set aside");
            self.faults.set_aside += 1;
        }
    }
}

/// A round under way.
pub(super) struct Course<'o> {
    pub(super) trip: RoundTrip<'o>,
    started_ns: u64,
    /// When each order's own node answered, from the start, ascending.
    answered_ns: Vec<u64>,
    /// Orders that hedging was considered for, by place.
    considered: Vec<bool>,
    hedged: Vec<AttemptId>,
}

impl<'o> Course<'o> {
    /// One attempt for each order, which are in ascending order of node.
    pub(super) fn new(
        orders: &'o Orders,
        holders: &'o Holders,
        combine: Combine,
        started_ns: u64,
    ) -> Self {
        Self {
            trip: RoundTrip::new(orders, holders, combine),
            started_ns,
            answered_ns: Vec::with_capacity(orders.nodes.len()),
            considered: vec![false; orders.nodes.len()],
            hedged: Vec::new(),
        }
    }

    /// The reply to an attempt. Gives how long it took where it is that of an order's own node.
    pub(super) fn answered(&mut self, id: AttemptId, reply: NodeReply, now_ns: u64) -> Option<u64> {
        self.trip.answered(id, reply);
        self.trip.attempt(id).is_first.then(|| {
            let took_ns = now_ns - self.started_ns;
            self.answered_ns.push(took_ns);
            took_ns
        })
    }

    /// What replaces an attempt that failed; none where nobody else can.
    pub(super) fn instead(
        &mut self,
        id: AttemptId,
        now_ns: u64,
        standing: Standing<'_>,
    ) -> Option<Vec<AttemptId>> {
        let instead = self.trip.failed(id, |node| standing.health.is_available(node, now_ns))?;
        let pairs = |id: &AttemptId| self.trip.attempt(*id).order.pairs() as u64;
        standing.faults.rerouted_pairs += instead.iter().map(pairs).sum::<u64>();
        Some(instead)
    }

    /// When orders without an answer are due to be hedged; none where there is none to consider.
    pub(super) fn hedge_at_ns(&self, health: &Health) -> Option<u64> {
        self.first().find(|(place, id)| self.is_slow(*place, *id))?;
        let after_ns = health.hedge_after_ns(self.considered.len(), &self.answered_ns);
        Some(self.started_ns.saturating_add(after_ns?))
    }

    /// The orders' own attempts, by place.
    fn first(&self) -> impl Iterator<Item = (usize, AttemptId)> + use<> {
        (0..self.considered.len()).zip(self.trip.attempts())
    }

    /// Whether an order has no answer and was not considered yet.
    fn is_slow(&self, place: usize, id: AttemptId) -> bool {
        !self.considered[place] && self.trip.attempt(id).is_open
    }

    /// The attempts that hedge the next order of those that are due; none where no more are, or can be.
    pub(super) fn next_hedge(
        &mut self,
        now_ns: u64,
        standing: Standing<'_>,
    ) -> Option<Vec<AttemptId>> {
        self.hedge_at_ns(standing.health).filter(|at_ns| *at_ns <= now_ns)?;
        for (place, id) in self.first() {
            if !self.is_slow(place, id) {
                continue;
            }
            self.considered[place] = true;
            let attempt = self.trip.attempt(id);
            let (node, pairs) = (attempt.node, attempt.order.pairs());
            if !self.trip.is_needed(id) || !standing.health.pay(pairs) {
                continue;
            }
            let is_free = |other| other != node && standing.health.is_available(other, now_ns);
            if let Some(hedges) = self.trip.hedge(id, is_free) {
                standing.faults.hedges += 1;
                standing.faults.hedged_pairs += pairs as u64;
                self.hedged.push(id);
                return Some(hedges);
            }
            standing.health.repay(pairs);
        }
        None
    }

    /// What a round whose tokens are all answered says of its nodes; `legs` are how long the orders' own nodes took,
    /// of those that answered.
    pub(super) fn learn(
        &self,
        legs: &[(NodeId, u64)],
        now_ns: u64,
        mut standing: Standing<'_>,
        fork_join: &mut ForkJoin,
    ) {
        let orders = self.considered.len();
        for (_, id) in self.first() {
            let node = self.trip.attempt(id).node;
            if !self.hedged.contains(&id) {
                standing.health.in_time(node);
            } else if self.trip.attempt(id).is_open || !self.trip.is_used(id) {
                standing.faults.hedges_won += 1;
                standing.set_aside(node, now_ns);
            }
        }
        standing.health.ended(orders, &self.answered_ns);
        if legs.len() == orders {
            fork_join.record(legs.iter().copied());
        } else {
            fork_join.record_incomplete();
        }
        if self.is_rerouted() {
            let spent_ns = now_ns - self.started_ns;
            standing.faults.recovery_ns_max = standing.faults.recovery_ns_max.max(spent_ns);
        }
    }

    fn is_rerouted(&self) -> bool {
        let failed = |id: AttemptId| {
            let attempt = self.trip.attempt(id);
            !attempt.is_open && !attempt.has_reply()
        };
        self.trip.attempts().any(failed)
    }
}

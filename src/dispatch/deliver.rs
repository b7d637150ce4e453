//! Carries one round's orders to the nodes and back, past those that fail or are slow.

use super::course::{Course, Standing};
use super::departures::Departures;
use super::health::Health;
use super::identity::{Identity, Unawaited};
use super::link::{LinkError, millis};
use super::load::Loads;
use super::remote::{Peer, failed};
use super::round_trip::{AttemptId, Holders};
use super::spot_check::SpotCheck;
use super::{DispatchError, Faults};
use crate::measure::Clock;
use crate::wire::{self, Outputs, ReplyError};
use agents::ids::NodeId;
use agents::orders::{Combine, Orders, PairGates, Replies};
use agents::queueing::ForkJoin;
use proto::{ComputeReply, Message as _};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;
use tokio::time::timeout;

/// What a delivery needs beside its orders.
pub(super) struct Delivery<'a> {
    pub(super) peers: &'a mut [Peer],
    pub(super) health: &'a mut Health,
    pub(super) loads: &'a mut Loads,
    pub(super) faults: &'a mut Faults,
    pub(super) departures: &'a mut Departures,
    pub(super) spot_check: &'a SpotCheck,
    /// What names this round and its messages.
    pub(super) identity: &'a mut Identity,
    /// How long the nodes of each round took.
    pub(super) fork_join: &'a mut ForkJoin,
    /// When each order's own node answered, from the start.
    pub(super) legs: &'a mut Vec<(NodeId, u64)>,
    pub(super) clock: Clock,
    /// For each message.
    pub(super) deadline: Duration,
    /// Where nodes shall sum.
    pub(super) gates: Option<&'a PairGates>,
    /// f32 `[T, width]`.
    pub(super) hidden: &'a [f32],
    pub(super) width: usize,
}

/// A message without a whole reply.
struct Awaited {
    id: AttemptId,
    late_ns: u64,
    /// What has come of it.
    outputs: Outputs,
}

/// A delivery under way.
struct UnderWay<'c, 'a, 'o> {
    with: &'c mut Delivery<'a>,
    course: Course<'o>,
    orders: &'o Orders,
    /// By sequence.
    awaited: BTreeMap<u64, Awaited>,
    /// Attempts that were sent under another name because the node held them for answered.
    renamed: Vec<AttemptId>,
}

impl Delivery<'_> {
    /// Sends all orders, which are in ascending order of node, waits until every token is answered,
    /// and checks a share of the answers. A round in which a node answered wrongly is sent again
    /// without it.
    ///
    /// # Errors
    /// A node that refuses, or that fails while nobody else can compute its order.
    pub(super) async fn run(
        mut self,
        orders: &Orders,
        holders: &Holders,
    ) -> Result<Replies, DispatchError> {
        let pairs = orders.nodes.iter().map(|order| order.pairs()).sum();
        self.health.sent(pairs);
        self.faults.pairs += pairs as u64;
        loop {
            let (replies, answerers) = self.deliver(orders, holders).await?;
            // Each time that it does not pass a node is lost, so this ends.
            // Sums of other groups cannot be compared.
            if self.gates.is_some()
                || self.passes_checks(orders, holders, &replies, &answerers).await
            {
                return Ok(replies);
            }
        }
    }

    /// Sends all orders and waits until every token is answered. Also gives the nodes that answered, for
    /// each order and each of its groups.
    pub(super) async fn deliver(
        &mut self,
        orders: &Orders,
        holders: &Holders,
    ) -> Result<(Replies, Vec<Vec<NodeId>>), DispatchError> {
        let width = self.width;
        self.identity.begin_round();
        let combine = self.gates.map_or(Combine::Exact, |_| Combine::AtWorker);
        let mut under_way = UnderWay {
            course: Course::new(orders, holders, combine, self.clock.now_ns()),
            with: self,
            orders,
            awaited: BTreeMap::new(),
            renamed: Vec::new(),
        };
        under_way.run().await?;
        let UnderWay { with, course, .. } = under_way;
        let standing = Standing { health: &mut *with.health, faults: &mut *with.faults };
        course.learn(with.legs, with.clock.now_ns(), standing, with.fork_join);
        let answerers = course.trip.answerers();
        Ok((course.trip.into_replies(width), answerers))
    }

    fn standing(&mut self) -> Standing<'_> {
        Standing { health: self.health, faults: self.faults }
    }

    /// The next piece of any node that is not lost, or its loss. What lost nodes still say is dropped
    /// and counted.
    async fn next_event(&mut self) -> (NodeId, Result<ComputeReply, LinkError>) {
        poll_fn(|cx| {
            while let Poll::Ready((pass, why)) = self.departures.poll_next(cx) {
                let peer = &self.peers[pass.node.index()];
                if peer.pass == Some(pass) && peer.lost.is_none() {
                    return Poll::Ready((pass.node, Err(LinkError::Lost(why))));
                }
            }
            for (node, peer) in self.peers.iter_mut().enumerate() {
                let is_lost = peer.lost.is_some();
                while let Some(link) = &mut peer.link {
                    let event = link.poll_reply(cx, is_lost);
                    self.faults.redelivered += link.take_redelivered();
                    let Poll::Ready(event) = event else { break };
                    if !is_lost {
                        return Poll::Ready((NodeId::from_index(node), event));
                    }
                    match event {
                        Ok(piece) => self.faults.stale_replies += u64::from(!piece.more),
                        Err(_) => peer.link = None,
                    }
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl UnderWay<'_, '_, '_> {
    async fn run(&mut self) -> Result<(), DispatchError> {
        // All are sent before the first reply is awaited, so the nodes compute at the same time.
        self.send_all(self.course.trip.attempts().collect())?;
        while !self.course.trip.is_done() {
            let now_ns = self.with.clock.now_ns();
            let wake_ns = self
                .course
                .hedge_at_ns(self.with.health)
                .into_iter()
                .chain(self.late_at_ns())
                .min();
            let wake_ns = wake_ns.expect("what is not answered is awaited").saturating_sub(now_ns);
            match timeout(Duration::from_nanos(wake_ns), self.with.next_event()).await {
                Ok((node, Ok(piece))) => self.take(node, piece)?,
                Ok((node, Err(error))) => self.lose(failed(node, error))?,
                Err(_) => {
                    self.give_up_late()?;
                    self.hedge()?;
                }
            }
        }
        if !self.awaited.is_empty() {
            tracing::debug!("{} answers will come too late", self.awaited.len());
        }
        Ok(())
    }

    /// Sends attempts and those that replace what cannot be sent.
    fn send_all(&mut self, attempts: Vec<AttemptId>) -> Result<(), DispatchError> {
        let mut waiting = attempts;
        waiting.reverse();
        while let Some(id) = waiting.pop() {
            let node = self.course.trip.attempt(id).node;
            match self.post(id) {
                Ok(()) => {}
                Err(LinkError::Refused(detail)) => {
                    return Err(DispatchError::Refused { node, detail });
                }
                Err(error) => {
                    self.set_aside(node);
                    waiting.extend(self.instead(id, failed(node, error))?);
                }
            }
        }
        Ok(())
    }

    fn post(&mut self, id: AttemptId) -> Result<(), LinkError> {
        let attempt = self.course.trip.attempt(id);
        let count = self.with.peers.len();
        let peer = self.with.peers.get_mut(attempt.node.index());
        let peer =
            peer.ok_or_else(|| LinkError::Refused(format!("there are only {count} nodes")))?;
        let link = match (&peer.lost, &mut peer.link) {
            (Some(detail), _) => return Err(LinkError::Lost(detail.clone())),
            (None, None) => return Err(LinkError::Lost("it ended the stream".into())),
            (None, Some(link)) => link,
        };
        let epoch = peer.pass.map(|pass| pass.since).unwrap_or_default();
        let awaited_from = self.awaited.first_key_value().map(|(first, _)| *first);
        let ticket = self.with.identity.next(self.orders, attempt.node, epoch, awaited_from);
        let Delivery { gates, hidden, width, deadline, .. } = *self.with;
        let (order, bytes_max) = (&attempt.order, link.message_bytes_max);
        let request = match gates {
            None => wire::encode_order(ticket, order, hidden, width, deadline, bytes_max),
            Some(gates) => {
                let wanted = (hidden, width);
                wire::encode_order_for_sums(ticket, order, gates, wanted, deadline, bytes_max)
            }
        };
        let request = request.map_err(|error| LinkError::Refused(error.detail))?;
        let bytes = request.encoded_len() as u64;
        link.post(request)?;
        peer.ledger.sent_bytes += bytes;
        let now_ns = self.with.clock.now_ns();
        let late_ns = now_ns.saturating_add(nanos(self.with.deadline));
        let pairs = order.pairs();
        self.with.loads.sent(ticket.sequence, attempt.node, pairs, now_ns);
        let outputs = match gates {
            None => Outputs::new(ticket, pairs, width),
            Some(_) => Outputs::sums(ticket, (order.tokens().len(), pairs), width),
        };
        self.awaited.insert(ticket.sequence, Awaited { id, late_ns, outputs });
        Ok(())
    }

    fn take(&mut self, node: NodeId, piece: ComputeReply) -> Result<(), DispatchError> {
        let bad = |detail| DispatchError::BadReply { node, detail };
        let (sequence, is_last) = (piece.sequence, u64::from(!piece.more));
        if !piece.more {
            self.with.loads.answered(sequence, self.with.clock.now_ns());
        }
        let Some(Awaited { id, outputs, .. }) = self.awaited.get_mut(&sequence) else {
            let sent = match self.with.identity.unawaited(sequence) {
                Unawaited::Duplicate => {
                    self.with.faults.duplicate_replies += is_last;
                    return Ok(());
                }
                Unawaited::Late => {
                    self.with.faults.late_replies += is_last;
                    return Ok(());
                }
                Unawaited::Unsent(sent) => sent,
            };
            return self
                .lose(bad(format!("it answers request {sequence}, but the last sent was {sent}")));
        };
        let id = *id;
        let attempt = self.course.trip.attempt(id);
        if attempt.node != node {
            return self.lose(bad(format!("it answers request {sequence} of another node")));
        }
        let pairs = attempt.order.pairs();
        self.with.peers[node.index()].ledger.received_bytes += piece.encoded_len() as u64;
        match outputs.take(piece) {
            Ok(None) => Ok(()),
            Ok(Some(reply)) => {
                self.awaited.remove(&sequence);
                self.with.identity.note_answered(sequence);
                self.with.peers[node.index()].ledger.answered(pairs, &reply);
                let took_ns = self.course.answered(id, reply, self.with.clock.now_ns());
                self.with.legs.extend(took_ns.map(|took_ns| (node, took_ns)));
                Ok(())
            }
            Err(ReplyError::Expired) => {
                self.awaited.remove(&sequence);
                let instead = self.instead(id, self.late(node))?;
                self.send_all(instead)
            }
            Err(ReplyError::Duplicate) if self.renamed.contains(&id) => {
                self.lose(bad("it says again and again that it has answered".into()))
            }
            Err(ReplyError::Duplicate) => {
                // The answer was lost with its stream and is not kept: the attempt gets another name.
                self.awaited.remove(&sequence);
                self.with.faults.redelivered += 1;
                self.renamed.push(id);
                self.send_all(vec![id])
            }
            Err(ReplyError::Refused(detail)) => Err(DispatchError::Refused { node, detail }),
            Err(ReplyError::Bad(detail)) => self.lose(bad(detail)),
        }
    }

    /// A node that is not asked again: all that it was to answer is asked of others.
    fn lose(&mut self, error: DispatchError) -> Result<(), DispatchError> {
        let node = error.node();
        let peer = &mut self.with.peers[node.index()];
        let is_news = peer.lost.is_none();
        self.with.faults.lost += u64::from(is_news);
        peer.lost.get_or_insert_with(|| match &error {
            DispatchError::NodeLost { detail, .. } => detail.clone(),
            other => other.to_string(),
        });
        self.with.health.lose(node);
        self.with.loads.forget(node);
        let lost: Vec<(u64, AttemptId)> = self
            .awaited
            .iter()
            .filter(|(_, awaited)| self.course.trip.attempt(awaited.id).node == node)
            .map(|(sequence, awaited)| (*sequence, awaited.id))
            .collect();
        for (sequence, id) in lost {
            self.awaited.remove(&sequence);
            let instead = self.instead(id, error.clone())?;
            self.send_all(instead)?;
        }
        if is_news {
            tracing::warn!("{error}; other nodes compute its experts where they hold them");
        }
        Ok(())
    }

    /// What replaces an attempt that failed; the error where nobody else can.
    fn instead(
        &mut self,
        id: AttemptId,
        error: DispatchError,
    ) -> Result<Vec<AttemptId>, DispatchError> {
        let now_ns = self.with.clock.now_ns();
        self.course.instead(id, now_ns, self.with.standing()).ok_or(error)
    }

    fn late(&self, node: NodeId) -> DispatchError {
        DispatchError::Timeout { node, deadline_ms: millis(self.with.deadline) }
    }

    fn late_at_ns(&self) -> Option<u64> {
        self.awaited.values().map(|awaited| awaited.late_ns).min()
    }

    /// Asks others for what missed its deadline.
    fn give_up_late(&mut self) -> Result<(), DispatchError> {
        let now_ns = self.with.clock.now_ns();
        let late: Vec<(u64, AttemptId)> = self
            .awaited
            .iter()
            .filter(|(_, awaited)| awaited.late_ns <= now_ns)
            .map(|(sequence, awaited)| (*sequence, awaited.id))
            .collect();
        for (sequence, id) in late {
            self.awaited.remove(&sequence);
            let node = self.course.trip.attempt(id).node;
            self.set_aside(node);
            let instead = self.instead(id, self.late(node))?;
            self.send_all(instead)?;
        }
        Ok(())
    }

    fn hedge(&mut self) -> Result<(), DispatchError> {
        let now_ns = self.with.clock.now_ns();
        loop {
            let Some(hedges) = self.course.next_hedge(now_ns, self.with.standing()) else {
                return Ok(());
            };
            self.send_all(hedges)?;
        }
    }

    fn set_aside(&mut self, node: NodeId) {
        let now_ns = self.with.clock.now_ns();
        self.with.standing().set_aside(node, now_ns);
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

//! Who is in, as the membership service and the dispatcher both see it.

use super::super::departures::Departure;
use crate::measure::Clock;
use crate::measure::clock::unix_ns;
use crate::transport::RunToken;
use agents::{
    ids::NodeId,
    membership::{Ended, Epoch, Member, Membership, Pass, Phase},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Joins of one run, at most: more are workers that go in circles.
const JOINS_MAX: u64 = 65_536;

/// Drained members that are remembered until they have heard that they may go.
const RELEASED_MAX: usize = 4096;

/// Starts of workers in quarantine that are remembered.
const QUARANTINED_MAX: usize = 4096;

/// What was seen of a membership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipCounts {
    /// Changes of the membership.
    pub epoch: u64,
    /// Stays that began.
    pub joined: u64,
    /// Stays that ended in good order: drained, and handed over.
    pub left: u64,
    /// Stays that ended because their lease ran out.
    pub expired: u64,
    /// Stays that ended because the connection broke, or an answer was wrong.
    pub dropped: u64,
    /// Requests to join that were refused: of another run, or of a worker in quarantine.
    pub refused: u64,
    /// Copies of experts that were taken from nodes because others hold them as planned.
    pub copies_dropped: u64,
}

/// What a worker said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registered {
    pub(super) address: String,
    pub(super) shard_bytes_max: u64,
    /// Which start of the worker it is; 0 where it does not say.
    pub(super) incarnation: u64,
}

/// Why a worker gets no seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoSeat {
    /// Its token is of no run here.
    OtherRun,
    /// None is free now.
    Full(String),
    /// Its answers were found to be wrong.
    Quarantined,
    /// Nobody is needed any more.
    RunOver,
}

/// What a member hears when it says that it is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Member(Epoch),
    Released(Epoch),
    Ended(Epoch),
    RunOver(Epoch),
}

/// The membership with what belongs to it. Each change of it is published.
#[derive(Debug)]
pub(super) struct Register {
    book: Mutex<Book>,
    changed: watch::Sender<Epoch>,
    pub(super) lease: Duration,
    pub(super) seats: usize,
    token: RunToken,
    clock: Clock,
    /// The epoch before the first change.
    began: Epoch,
}

#[derive(Debug)]
struct Book {
    membership: Membership,
    workers: BTreeMap<Pass, Registered>,
    released: VecDeque<Pass>,
    /// Starts of workers that may not join any more, the latest last.
    quarantined: VecDeque<u64>,
    counts: MembershipCounts,
    departures: mpsc::Sender<Departure>,
    is_over: bool,
    /// When a worker last found no free seat.
    turned_away_ns: Option<u64>,
    /// Members that know that the run is over.
    told: BTreeSet<Pass>,
}

impl Register {
    /// Nobody is in. `departures` has room for more than all seats. Epochs go on from the wall-clock time in
    /// ns: workers that joined a coordinator before this one, at the same address, have passes of earlier
    /// epochs, and hear that their stay has ended.
    pub(super) fn new(
        seats: usize,
        lease: Duration,
        token: RunToken,
        departures: mpsc::Sender<Departure>,
    ) -> Self {
        let lease_ns = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
        let clock = Clock::start();
        let began = Epoch(unix_ns(clock.started_at()));
        let book = Book {
            membership: Membership::after(began, seats, lease_ns),
            workers: BTreeMap::new(),
            released: VecDeque::new(),
            quarantined: VecDeque::new(),
            counts: MembershipCounts::default(),
            departures,
            is_over: false,
            turned_away_ns: None,
            told: BTreeSet::new(),
        };
        Self {
            book: Mutex::new(book),
            changed: watch::Sender::new(began),
            began,
            lease,
            seats,
            token,
            clock,
        }
    }

    pub(super) fn is_of_this_run(&self, run_token: &str) -> bool {
        self.token.is(run_token.as_bytes())
    }

    pub(super) fn join(&self, run_token: &str, worker: Registered) -> Result<Pass, NoSeat> {
        let mut book = self.book();
        if !self.is_of_this_run(run_token) {
            book.counts.refused += 1;
            return Err(NoSeat::OtherRun);
        }
        if book.is_over {
            return Err(NoSeat::RunOver);
        }
        if book.quarantined.contains(&worker.incarnation) {
            book.counts.refused += 1;
            return Err(NoSeat::Quarantined);
        }
        // Else the departures of this very worker might find no room.
        if book.departures.capacity() <= book.workers.len() || book.counts.joined >= JOINS_MAX {
            return Err(NoSeat::Full("too many workers came and went".into()));
        }
        let now_ns = self.clock.now_ns();
        let pass = book.membership.join(now_ns).map_err(|full| {
            book.turned_away_ns = Some(now_ns);
            NoSeat::Full(full.to_string())
        })?;
        book.counts.joined += 1;
        tracing::info!("node {} joins from {} at epoch {}", pass.node, worker.address, pass.since);
        book.workers.insert(pass, worker);
        self.publish(&book);
        Ok(pass)
    }

    /// A member is still there, and perhaps wants to leave.
    pub(super) fn renew(&self, pass: Pass, draining: bool) -> Heard {
        let mut book = self.book();
        if book.is_over {
            book.told.insert(pass);
            self.publish(&book);
            return Heard::RunOver(book.membership.epoch());
        }
        if book.released.contains(&pass) {
            return Heard::Released(book.membership.epoch());
        }
        let now_ns = self.clock.now_ns();
        match book.membership.renew(pass, now_ns) {
            Err(Ended(_)) => Heard::Ended(book.membership.epoch()),
            Ok(member) => {
                if draining && member.phase != Phase::Draining {
                    tracing::info!("node {} wants to leave", pass.node);
                    book.membership.drain(pass).expect("it was renewed just now");
                    self.publish(&book);
                }
                Heard::Member(book.membership.epoch())
            }
        }
    }

    /// Ends the stays whose lease ran out. Once the run is over members go without a word.
    pub(super) fn expire(&self) {
        let mut book = self.book();
        if book.is_over {
            return;
        }
        for pass in book.membership.expire(self.clock.now_ns()) {
            tracing::warn!("the lease of node {} ran out", pass.node);
            book.workers.remove(&pass);
            book.counts.expired += 1;
            let why = format!("its lease of {} ms ran out", self.lease.as_millis());
            // `join` sees to it that there is room; a receiver that is gone needs no news.
            let _ = book.departures.try_send((pass, why));
        }
        self.publish(&book);
    }

    /// A member has its shards and may get work; false where its stay has ended or it drains.
    pub(super) fn serve(&self, pass: Pass) -> bool {
        let mut book = self.book();
        let served = book.membership.serve(pass).is_ok();
        self.publish(&book);
        served
    }

    /// A member handed over and may go.
    pub(super) fn release(&self, pass: Pass) {
        let mut book = self.book();
        if book.membership.leave(pass).is_ok() {
            book.workers.remove(&pass);
            book.counts.left += 1;
            if book.released.len() == RELEASED_MAX {
                book.released.pop_front();
            }
            book.released.push_back(pass);
        }
        self.publish(&book);
    }

    /// This start of a worker is not to join again: its answers were found to be wrong.
    pub(super) fn quarantine(&self, incarnation: u64) {
        let mut book = self.book();
        if incarnation != 0 && !book.quarantined.contains(&incarnation) {
            if book.quarantined.len() == QUARANTINED_MAX {
                book.quarantined.pop_front();
            }
            book.quarantined.push_back(incarnation);
        }
    }

    pub(super) fn is_quarantined(&self, incarnation: u64) -> bool {
        self.book().quarantined.contains(&incarnation)
    }

    /// A member cannot be reached or is not to be asked: when it renews, it hears that it is out.
    pub(super) fn drop_member(&self, pass: Pass) {
        let mut book = self.book();
        if book.membership.leave(pass).is_ok() {
            book.workers.remove(&pass);
            book.counts.dropped += 1;
        }
        self.publish(&book);
    }

    /// Nobody joins any more, and members that renew hear why.
    pub(super) fn end(&self) {
        let mut book = self.book();
        book.is_over = true;
        self.publish(&book);
    }

    /// Whether all members know that the run is over.
    pub(super) fn all_told(&self) -> bool {
        let book = self.book();
        book.membership.members().all(|member| book.told.contains(&member.pass))
    }

    /// Whether workers wait for a seat: they ask again and again.
    pub(super) fn has_waiting(&self) -> bool {
        const ASKED_NS: u64 = 1_000_000_000;
        let recent = |at_ns| self.clock.now_ns().saturating_sub(at_ns) < ASKED_NS;
        self.book().turned_away_ns.is_some_and(recent)
    }

    /// Members and what they said of themselves, in ascending order of seat.
    pub(super) fn members(&self) -> Vec<(Member, Registered)> {
        let book = self.book();
        let with =
            |member: Member| book.workers.get(&member.pass).map(|worker| (member, worker.clone()));
        book.membership.members().filter_map(with).collect()
    }

    /// The seats of the members that get work or are to get it, ascending.
    pub(super) fn present(&self) -> Vec<NodeId> {
        let members = self.members();
        let stays = |member: &Member| member.phase != Phase::Draining;
        members.iter().filter(|(m, _)| stays(m)).map(|(member, _)| member.pass.node).collect()
    }

    /// Changes as they happen.
    pub(super) fn changes(&self) -> watch::Receiver<Epoch> {
        self.changed.subscribe()
    }

    pub(super) fn counts(&self) -> MembershipCounts {
        let book = self.book();
        MembershipCounts { epoch: book.membership.epoch().0 - self.began.0, ..book.counts }
    }

    fn publish(&self, book: &Book) {
        self.changed.send_replace(book.membership.epoch());
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no holder of this lock can panic")
    }
}

//! The connections of a listener: how many there may be, and how long those may stay that have not shown
//! that they belong here.

use super::Refusals;
use super::brake::Brake;
use crate::measure::Clock;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Connections of a listener, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// All of them. One more is refused.
    pub connections: usize,
    /// Those of strangers: with TLS handshakes, and until a call shows the run's token. One more ends the
    /// oldest: who belongs here shows it at once, so that holding connections keeps nobody out.
    pub strangers: usize,
    /// How long one may stay a stranger.
    pub stranger_time: Duration,
    /// Calls of a stranger.
    pub stranger_calls: u32,
}

impl ConnectionLimits {
    /// So many connections; 64 strangers of 10 s and 64 calls each.
    #[must_use]
    pub fn new(connections: usize) -> Self {
        let stranger_time = Duration::from_secs(10);
        Self { connections, strangers: 64, stranger_time, stranger_calls: 64 }
    }
}

/// Broken limits after which a connection ends.
const OFFENCES_MAX: u32 = 16;

/// Everybody who is connected to one listener.
#[derive(Debug)]
pub(super) struct Crowd {
    limits: ConnectionLimits,
    refusals: Arc<Refusals>,
    clock: Clock,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    connections: usize,
    next: u64,
    /// By age, the oldest first. Dropping the sender ends the connection.
    strangers: BTreeMap<u64, oneshot::Sender<()>>,
    brake: Brake,
}

/// One connection. Its calls carry this among their extensions.
#[derive(Clone, Debug)]
pub struct Peer(Arc<Guest>);

#[derive(Debug)]
struct Guest {
    crowd: Arc<Crowd>,
    id: u64,
    address: Option<SocketAddr>,
    is_known: AtomicBool,
    calls: AtomicU32,
    offences: AtomicU32,
}

impl Crowd {
    pub(super) fn new(limits: ConnectionLimits, refusals: Arc<Refusals>) -> Arc<Self> {
        Arc::new(Self { limits, refusals, clock: Clock::start(), all: Mutex::default() })
    }

    pub(super) fn stranger_time(&self) -> Duration {
        self.limits.stranger_time
    }

    pub(super) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// How long nobody is to be taken in; none where somebody may be.
    pub(super) fn wait(&self) -> Option<Duration> {
        let wait_ns = self.all().brake.wait_ns(self.clock.now_ns());
        (wait_ns > 0).then(|| Duration::from_nanos(wait_ns))
    }

    /// Takes a connection in, with the receiver that tells when it is to end; none where it is one too
    /// many.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: Option<SocketAddr>,
    ) -> Option<(Peer, oneshot::Receiver<()>)> {
        let mut all = self.all();
        all.brake.stranger(self.clock.now_ns());
        let is_full = all.connections >= self.limits.connections;
        if is_full || all.strangers.len() >= self.limits.strangers {
            let oldest = all.strangers.pop_first();
            // Those that were told to end are here until they have.
            let most = self.limits.connections + self.limits.strangers;
            if oldest.is_none() || all.connections >= most {
                drop(all);
                let limit = self.limits.connections;
                self.refusals.note(format_args!("{}: {limit} are connected", shown(address)));
                return None;
            }
        }
        all.connections += 1;
        let id = all.next;
        all.next += 1;
        let (stay, told) = oneshot::channel();
        all.strangers.insert(id, stay);
        drop(all);
        let (is_known, [calls, offences]) =
            (AtomicBool::new(false), [const { AtomicU32::new(0) }; 2]);
        let crowd = self.clone();
        let guest = Guest { crowd, id, address, is_known, calls, offences };
        Some((Peer(Arc::new(guest)), told))
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().expect("no holder of this lock can panic")
    }
}

/// Who is connected to one listener, for whoever watches it.
#[derive(Clone, Debug)]
pub(crate) struct Attendance(pub(super) Arc<Crowd>);

/// The connections of a listener at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attending {
    /// All of them.
    pub connections: usize,
    /// Those that have not shown that they belong here.
    pub strangers: usize,
    /// Connections, handshakes and calls that were refused since the start.
    pub refused: u64,
}

impl Attendance {
    pub(crate) fn now(&self) -> Attending {
        let refused = self.0.refusals.all();
        let all = self.0.all();
        Attending { connections: all.connections, strangers: all.strangers.len(), refused }
    }
}

impl Peer {
    /// Where it connects from; none for a Unix socket.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.address
    }

    /// It showed that it belongs here.
    pub fn admit(&self) {
        if !self.is_known() {
            self.0.is_known.store(true, Ordering::Release);
            let mut all = self.0.crowd.all();
            if all.strangers.remove(&self.0.id).is_some() {
                all.brake.belongs();
            }
        }
    }

    /// It broke a limit that no node of this project breaks, whatever it showed: others are let in as slowly as
    /// after a stranger, and its connection ends after some of these.
    pub(crate) fn offends(&self) {
        let Guest { crowd, offences, .. } = &*self.0;
        crowd.all().brake.stranger(crowd.clock.now_ns());
        if offences.fetch_add(1, Ordering::Relaxed) + 1 == OFFENCES_MAX {
            self.refusals().note(format_args!("{self}: it broke limits {OFFENCES_MAX} times"));
        }
    }

    /// Whether its connection is to end for what it did.
    pub(super) fn is_barred(&self) -> bool {
        self.0.offences.load(Ordering::Relaxed) >= OFFENCES_MAX
    }

    pub(super) fn refusals(&self) -> &Refusals {
        &self.0.crowd.refusals
    }

    pub(super) fn is_known(&self) -> bool {
        self.0.is_known.load(Ordering::Acquire)
    }

    /// A stranger makes a call; false where it is one too many, which ends its connection.
    fn may_call(&self) -> bool {
        let limit = self.0.crowd.limits.stranger_calls;
        if self.is_known() || self.0.calls.fetch_add(1, Ordering::Relaxed) < limit {
            return true;
        }
        if self.0.crowd.all().strangers.remove(&self.0.id).is_some() {
            self.refusals().note(format_args!("{self}: {limit} calls without the run's token"));
        }
        false
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(self.address()))
    }
}

fn shown(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "a connection of this machine".into(), |address| address.to_string())
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut all = self.crowd.all();
        all.connections -= 1;
        all.strangers.remove(&self.id);
    }
}

/// Counts the calls of strangers, of all services.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CountCalls;

impl Interceptor for CountCalls {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match request.extensions().get::<Peer>().is_none_or(Peer::may_call) {
            true => Ok(request),
            false => Err(Status::resource_exhausted("too many calls without the run's token")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Attendance, Attending, ConnectionLimits, Crowd, OFFENCES_MAX, Peer};
    use crate::transport::Refusals;
    use std::sync::Arc;
    use tokio::sync::oneshot::{Receiver, error::TryRecvError};

    fn crowd() -> Arc<Crowd> {
        let limits =
            ConnectionLimits { strangers: 2, stranger_calls: 3, ..ConnectionLimits::new(4) };
        Crowd::new(limits, Arc::new(Refusals::new()))
    }

    fn stays((_, told): &mut (Peer, Receiver<()>)) -> bool {
        told.try_recv() == Err(TryRecvError::Empty)
    }

    #[test]
    fn a_stranger_too_many_ends_the_oldest_and_never_one_that_is_known() {
        let crowd = crowd();
        let enter = || crowd.enter(None).expect("there is room");
        let [known, mut oldest, mut other] = [(); 3].map(|()| {
            let entered = enter();
            if entered.0.0.id == 0 {
                entered.0.admit();
            }
            entered
        });
        assert!(known.0.is_known() && stays(&mut oldest) && stays(&mut other));
        let mut newcomer = enter();
        assert!(!stays(&mut oldest) && stays(&mut other) && stays(&mut newcomer));
        known.0.admit();
        drop((known, oldest, other, newcomer));
        let attending = Attendance(Arc::clone(&crowd)).now();
        assert_eq!((attending.connections, attending.strangers), (0, 0));
        assert_eq!(crowd.all().connections, 0);
        assert!(crowd.all().strangers.is_empty());
    }

    #[test]
    fn a_full_listener_refuses_and_takes_again_once_there_is_room() {
        let crowd = crowd();
        let mut known: Vec<_> = (0..4).map(|_| crowd.enter(None).expect("there is room")).collect();
        known.iter().for_each(|(peer, _)| peer.admit());
        assert!(crowd.enter(None).is_none());
        let attending = Attending { connections: 4, strangers: 0, refused: 1 };
        assert_eq!(Attendance(Arc::clone(&crowd)).now(), attending);
        known.pop();
        assert!(crowd.enter(None).is_some());
    }

    #[test]
    fn those_that_do_not_end_though_told_to_are_bounded_too() {
        let crowd = crowd();
        let kept: Vec<_> = (0..100).map_while(|_| crowd.enter(None)).collect();
        assert_eq!(kept.len(), 6);
    }

    #[test]
    fn who_breaks_limits_slows_others_down_though_it_is_known_and_is_barred_in_the_end() {
        let crowd = crowd();
        let (known, _told) = crowd.enter(None).expect("there is room");
        known.admit();
        assert!(crowd.wait().is_none());
        (1..OFFENCES_MAX).for_each(|_| known.offends());
        assert!(!known.is_barred());
        (0..20).for_each(|_| known.offends());
        assert!(known.is_barred() && crowd.wait().is_some());
    }

    #[test]
    fn a_stranger_may_make_few_calls_and_who_is_known_as_many_as_it_likes() {
        let crowd = crowd();
        let mut stranger = crowd.enter(None).expect("there is room");
        assert!((0..3).all(|_| stranger.0.may_call()) && stays(&mut stranger));
        assert!(!stranger.0.may_call() && !stays(&mut stranger));
        let (known, _told) = crowd.enter(None).expect("there is room");
        known.admit();
        assert!((0..100).all(|_| known.may_call()));
    }
}

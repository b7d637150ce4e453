//! Who is in the cluster: seats, leases and epochs. Pure: whoever calls says what time it is.
//!
//! A worker that joins gets a seat, which is a node of the world, and a lease on it. Each change of
//! who is in, and as what, raises the epoch by one, and no two members ever get the same [`Pass`]:
//! whatever a former member still says can be told from what a present one says.

mod shares;

pub use shares::{HostsOfShard, NoRoom, ShardNeed, Share, shares};

use crate::ids::NodeId;

/// The number of changes of the membership so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One stay of one worker: its seat, and the epoch that began when it took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pass {
    /// The seat.
    pub node: NodeId,
    /// When it was taken; no other member ever has the same.
    pub since: Epoch,
}

/// What a member is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It gets its shards and no work.
    Joining,
    /// It gets work.
    Serving,
    /// It finishes what it has and gets no more.
    Draining,
}

/// A member as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its stay.
    pub pass: Pass,
    /// What it is there for.
    pub phase: Phase,
    /// When it is out unless it renews before, ns.
    pub lease_until_ns: u64,
}

/// Every seat is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {seats} seats are taken")]
pub struct Full {
    /// How many there are.
    pub seats: usize,
}

/// A pass whose stay has ended: its holder may join anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease on seat {} since epoch {} has ended", .0.node, .0.since)]
pub struct Ended(pub Pass);

/// The seats of a cluster and who has them. Times never run backwards: an earlier time than one
/// before counts as that one.
#[derive(Clone, Debug)]
pub struct Membership {
    seats: Vec<Option<Member>>,
    epoch: Epoch,
    lease_ns: u64,
    now_ns: u64,
}

impl Membership {
    /// Nobody is in yet. A member that does not renew for `lease_ns` is out.
    #[must_use]
    pub fn new(seats: usize, lease_ns: u64) -> Self {
        Self::after(Epoch::default(), seats, lease_ns)
    }

    /// The same, with later epochs than `epoch`: where the seats are those of a cluster that was served
    /// before, no pass is one that was given then.
    #[must_use]
    pub fn after(epoch: Epoch, seats: usize, lease_ns: u64) -> Self {
        Self { seats: vec![None; seats], epoch, lease_ns, now_ns: 0 }
    }

    /// A worker takes the lowest free seat.
    ///
    /// # Errors
    /// When there is none.
    pub fn join(&mut self, now_ns: u64) -> Result<Pass, Full> {
        let now_ns = self.at(now_ns);
        let seats = self.seats.len();
        let free = self.seats.iter().position(Option::is_none).ok_or(Full { seats })?;
        let pass = Pass { node: NodeId::from_index(free), since: self.change() };
        let lease_until_ns = now_ns.saturating_add(self.lease_ns);
        self.seats[free] = Some(Member { pass, phase: Phase::Joining, lease_until_ns });
        Ok(pass)
    }

    /// A member is still there: its lease runs anew. A lease that has run out is not renewed, even
    /// where nobody has called [`Self::expire`] since.
    ///
    /// # Errors
    /// When its stay has ended.
    pub fn renew(&mut self, pass: Pass, now_ns: u64) -> Result<Member, Ended> {
        let now_ns = self.at(now_ns);
        let lease_until_ns = now_ns.saturating_add(self.lease_ns);
        let member = self.seat(pass).filter(|member| member.lease_until_ns > now_ns);
        let member = member.ok_or(Ended(pass))?;
        member.lease_until_ns = lease_until_ns;
        Ok(*member)
    }

    /// A member that was joining has its shards.
    ///
    /// # Errors
    /// When its stay has ended, or it was not joining: it may drain by now.
    pub fn serve(&mut self, pass: Pass) -> Result<(), Ended> {
        let member = self.seat(pass).filter(|member| member.phase == Phase::Joining);
        member.ok_or(Ended(pass))?.phase = Phase::Serving;
        self.change();
        Ok(())
    }

    /// A member is to get no more work. Saying it again changes nothing.
    ///
    /// # Errors
    /// When its stay has ended.
    pub fn drain(&mut self, pass: Pass) -> Result<(), Ended> {
        let member = self.seat(pass).ok_or(Ended(pass))?;
        if member.phase != Phase::Draining {
            member.phase = Phase::Draining;
            self.change();
        }
        Ok(())
    }

    /// A member is out at once: it left, or the way to it broke.
    ///
    /// # Errors
    /// When its stay has ended.
    pub fn leave(&mut self, pass: Pass) -> Result<(), Ended> {
        self.seat(pass).ok_or(Ended(pass))?;
        self.seats[pass.node.index()] = None;
        self.change();
        Ok(())
    }

    /// Ends the stays whose lease has run out, and says which, in ascending order of seat.
    pub fn expire(&mut self, now_ns: u64) -> Vec<Pass> {
        let now_ns = self.at(now_ns);
        let run_out = self.members().filter(|member| member.lease_until_ns <= now_ns);
        let passes: Vec<Pass> = run_out.map(|member| member.pass).collect();
        for pass in &passes {
            self.leave(*pass).expect("it is a member");
        }
        passes
    }

    /// When the next lease runs out unless it is renewed.
    #[must_use]
    pub fn next_expiry_ns(&self) -> Option<u64> {
        self.members().map(|member| member.lease_until_ns).min()
    }

    /// The members, in ascending order of seat.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        self.seats.iter().flatten().copied()
    }

    /// The member with this pass.
    #[must_use]
    pub fn member(&self, pass: Pass) -> Option<Member> {
        self.seats.get(pass.node.index())?.filter(|member| member.pass == pass)
    }

    /// Changes so far.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn seat(&mut self, pass: Pass) -> Option<&mut Member> {
        let seat = self.seats.get_mut(pass.node.index())?.as_mut();
        seat.filter(|member| member.pass == pass)
    }

    fn change(&mut self) -> Epoch {
        self.epoch.0 += 1;
        self.epoch
    }

    fn at(&mut self, now_ns: u64) -> u64 {
        self.now_ns = self.now_ns.max(now_ns);
        self.now_ns
    }
}

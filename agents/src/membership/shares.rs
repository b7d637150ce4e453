//! Which members shall hold which shards. Pure, and the same for the same input.

use crate::ids::NodeId;
use std::collections::BTreeSet;

/// A shard that needs hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardNeed {
    /// The seats that the placement gives it to, as many as it shall have copies.
    pub planned: Vec<NodeId>,
    /// Encoded bytes.
    pub bytes: u64,
}

/// A member that shards can be given to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its seat.
    pub node: NodeId,
    /// Bytes of shards that it has room for, those that it holds included.
    pub bytes_max: u64,
    /// The shards that it holds, by place in the list of needs.
    pub held: BTreeSet<usize>,
}

/// The members that shall hold a shard, ascending.
pub type HostsOfShard = Vec<NodeId>;

/// The members have no room for a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("none of {members} members has room for the {bytes} bytes of a shard")]
pub struct NoRoom {
    /// The shard, by place in the list of needs.
    pub shard: usize,
    /// Its encoded bytes.
    pub bytes: u64,
    /// Members there are.
    pub members: usize,
}

/// Gives each shard as many hosts as are planned for it, or all members where there are fewer: first
/// the planned ones that are members, then those that hold it already, then those that are given the
/// fewest bytes, the lowest seat where they are equal. When every planned host is a member the result
/// is the plan.
///
/// What a member holds beyond its share stays there and takes room. A shard may get fewer copies than
/// are planned where room is short, but never none.
///
/// # Errors
/// The first shard that no member has room for.
pub fn shares(needs: &[ShardNeed], members: &[Share]) -> Result<Vec<HostsOfShard>, NoRoom> {
    let mut dealing = Dealing::new(needs, members);
    // The planned hosts of all shards come before any that stands in, so that they find room.
    for (shard, need) in needs.iter().enumerate() {
        for (at, member) in members.iter().enumerate() {
            if need.planned.contains(&member.node) {
                dealing.give(shard, at);
            }
        }
    }
    for (shard, need) in needs.iter().enumerate() {
        let wanted = need.planned.len().clamp(1, members.len().max(1));
        let mut stand_ins: Vec<usize> = (0..members.len()).collect();
        stand_ins.sort_by_key(|at| (!members[*at].held.contains(&shard), dealing.given[*at], *at));
        for at in stand_ins {
            if dealing.hosts[shard].len() < wanted {
                dealing.give(shard, at);
            }
        }
        if dealing.hosts[shard].is_empty() {
            return Err(NoRoom { shard, bytes: need.bytes, members: members.len() });
        }
    }
    let mut hosts = dealing.hosts;
    hosts.iter_mut().for_each(|hosts| hosts.sort_unstable());
    Ok(hosts)
}

struct Dealing<'a> {
    needs: &'a [ShardNeed],
    members: &'a [Share],
    /// Bytes in each member's store once it has its share.
    stored: Vec<u64>,
    /// Bytes of its share alone.
    given: Vec<u64>,
    hosts: Vec<HostsOfShard>,
}

impl<'a> Dealing<'a> {
    fn new(needs: &'a [ShardNeed], members: &'a [Share]) -> Self {
        let held = |member: &Share| member.held.iter().map(|shard| needs[*shard].bytes).sum();
        let stored = members.iter().map(held).collect();
        let (given, hosts) = (vec![0; members.len()], vec![Vec::new(); needs.len()]);
        Self { needs, members, stored, given, hosts }
    }

    /// Makes a member a host, unless it is one or has no room.
    fn give(&mut self, shard: usize, at: usize) {
        let (member, bytes) = (&self.members[at], self.needs[shard].bytes);
        let more = if member.held.contains(&shard) { 0 } else { bytes };
        let stored = self.stored[at].saturating_add(more);
        let fits = more == 0 || stored <= member.bytes_max;
        if fits && !self.hosts[shard].contains(&member.node) {
            self.stored[at] = stored;
            self.given[at] += bytes;
            self.hosts[shard].push(member.node);
        }
    }
}

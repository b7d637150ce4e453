//! The membership against a model that keeps no state but the history, and the shares against what
//! is promised of them.

use agents::ids::NodeId;
use agents::membership::{Ended, Epoch, Full, Membership, Pass, Phase, ShardNeed, Share, shares};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// What can be done to a membership; a stay is named by its place among all stays so far.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Join,
    Renew(usize),
    Serve(usize),
    Drain(usize),
    Leave(usize),
    Expire,
}

const LEASE_NS: u64 = 10;

/// The history: each deed that changed something for a stay, and when.
#[derive(Default)]
struct History {
    stays: Vec<Pass>,
    deeds: Vec<(u64, Deed)>,
    changes: u64,
}

impl History {
    /// What became of a stay by `now_ns`: its phase and the end of its lease, unless it has ended.
    /// `noticed` counts a lease that ran out but that nobody looked at as ended.
    fn of(&self, stay: usize, now_ns: u64, noticed: bool) -> Option<(Phase, u64)> {
        let mut joins = 0;
        let mut state = None;
        for (at_ns, deed) in &self.deeds {
            match *deed {
                Deed::Join => {
                    if joins == stay {
                        state = Some((Phase::Joining, at_ns + LEASE_NS));
                    }
                    joins += 1;
                }
                Deed::Renew(of) if of == stay => {
                    state = state.map(|(phase, _)| (phase, at_ns + LEASE_NS));
                }
                Deed::Serve(of) if of == stay => {
                    state = state.map(|(_, until)| (Phase::Serving, until));
                }
                Deed::Drain(of) if of == stay => {
                    state = state.map(|(_, until)| (Phase::Draining, until));
                }
                Deed::Leave(of) if of == stay => return None,
                Deed::Expire => state = state.filter(|(_, until)| until > at_ns),
                _ => {}
            }
            // A stay that is over before its deeds are does not come back.
            if joins > stay && state.is_none() {
                return None;
            }
        }
        state.filter(|(_, until)| !noticed || *until > now_ns)
    }

    fn members(&self, now_ns: u64) -> Vec<(Pass, Phase, u64)> {
        let state = |(stay, pass): (usize, &Pass)| {
            self.of(stay, now_ns, false).map(|(phase, until)| (*pass, phase, until))
        };
        let mut members: Vec<_> = self.stays.iter().enumerate().filter_map(state).collect();
        members.sort_unstable();
        members
    }

    fn did(&mut self, now_ns: u64, deed: Deed, changes: u64) {
        self.deeds.push((now_ns, deed));
        self.changes += changes;
    }
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => Just(Deed::Join),
        6 => (0_usize..12).prop_map(Deed::Renew),
        3 => (0_usize..12).prop_map(Deed::Serve),
        2 => (0_usize..12).prop_map(Deed::Drain),
        2 => (0_usize..12).prop_map(Deed::Leave),
        2 => Just(Deed::Expire),
    ]
}

/// Does one deed to both, and checks that both answer alike.
fn step(
    membership: &mut Membership,
    history: &mut History,
    (now_ns, deed): (u64, Deed),
    seats: usize,
) -> Result<(), TestCaseError> {
    let stay = |back: usize| history.stays.len().checked_sub(back + 1);
    match deed {
        Deed::Join => {
            let taken = history.members(now_ns);
            let free = (0..seats).find(|s| taken.iter().all(|(p, ..)| p.node.index() != *s));
            let expected = free.map(NodeId::from_index).ok_or(Full { seats });
            let found = membership.join(now_ns);
            prop_assert_eq!(found.map(|pass| pass.node), expected);
            if let Ok(pass) = found {
                prop_assert!(history.stays.iter().all(|old| old.since < pass.since));
                history.stays.push(pass);
                history.did(now_ns, Deed::Join, 1);
            }
        }
        Deed::Expire => {
            let out: Vec<Pass> =
                history.members(now_ns).iter().filter(|m| m.2 <= now_ns).map(|m| m.0).collect();
            prop_assert_eq!(membership.expire(now_ns), out.clone());
            history.did(now_ns, Deed::Expire, out.len() as u64);
        }
        Deed::Renew(back) => {
            let Some(stay) = stay(back) else { return Ok(()) };
            let pass = history.stays[stay];
            let expected = history.of(stay, now_ns, true);
            let found = membership.renew(pass, now_ns);
            let phase = expected.map(|(phase, _)| (phase, now_ns + LEASE_NS));
            prop_assert_eq!(found.map(|m| (m.phase, m.lease_until_ns)), phase.ok_or(Ended(pass)));
            if expected.is_some() {
                history.did(now_ns, Deed::Renew(stay), 0);
            }
        }
        Deed::Serve(back) | Deed::Drain(back) | Deed::Leave(back) => {
            let Some(stay) = stay(back) else { return Ok(()) };
            let pass = history.stays[stay];
            let phase = history.of(stay, now_ns, false).map(|(phase, _)| phase);
            let (found, allowed, changes, done) = match deed {
                Deed::Serve(_) => {
                    (membership.serve(pass), phase == Some(Phase::Joining), 1, Deed::Serve(stay))
                }
                Deed::Drain(_) => (
                    membership.drain(pass),
                    phase.is_some(),
                    u64::from(phase != Some(Phase::Draining)),
                    Deed::Drain(stay),
                ),
                _ => (membership.leave(pass), phase.is_some(), 1, Deed::Leave(stay)),
            };
            prop_assert_eq!(found.is_ok(), allowed);
            if allowed {
                history.did(now_ns, done, changes);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_history_leaves_the_members_and_the_epoch_that_it_says(
        seats in 1_usize..5,
        deeds in vec((0_u64..6, deed()), 1..60),
    ) {
        let mut membership = Membership::new(seats, LEASE_NS);
        let mut history = History::default();
        let mut now_ns = 0;
        for (passed_ns, deed) in deeds {
            now_ns += passed_ns;
            let before = membership.epoch();
            step(&mut membership, &mut history, (now_ns, deed), seats)?;
            prop_assert!(membership.epoch() >= before);
            prop_assert_eq!(membership.epoch(), Epoch(history.changes));
            let members: Vec<_> =
                membership.members().map(|m| (m.pass, m.phase, m.lease_until_ns)).collect();
            let expected = history.members(now_ns);
            prop_assert_eq!(&members, &expected);
            prop_assert_eq!(membership.next_expiry_ns(), expected.iter().map(|m| m.2).min());
            for (stay, pass) in history.stays.iter().enumerate() {
                let is_in = history.of(stay, now_ns, false).is_some();
                prop_assert_eq!(membership.member(*pass).is_some(), is_in);
            }
        }
    }
}

/// Needs, and members on distinct seats that hold some of the shards.
fn cluster() -> impl Strategy<Value = (Vec<ShardNeed>, Vec<Share>)> {
    let need = (btree_set(0_u32..6, 1..4), 1_u64..20).prop_map(|(planned, bytes)| ShardNeed {
        planned: planned.into_iter().map(NodeId).collect(),
        bytes,
    });
    (vec(need, 1..30), btree_set(0_u32..6, 1..6)).prop_flat_map(|(needs, seats)| {
        let count = needs.len();
        let member = move |seat: u32| {
            btree_set(0..count, 0..=count).prop_map(move |held| Share {
                node: NodeId(seat),
                bytes_max: u64::MAX,
                held,
            })
        };
        let members: Vec<_> = seats.into_iter().map(member).collect();
        (Just(needs), members)
    })
}

proptest! {
    #[test]
    fn a_shard_has_its_planned_hosts_that_are_there_and_as_many_copies_as_can_be(
        (needs, members) in cluster(),
    ) {
        let hosts = shares(&needs, &members).expect("there is room for all");
        prop_assert_eq!(&hosts, &shares(&needs, &members).expect("as before"));
        for (shard, (need, hosts)) in needs.iter().zip(&hosts).enumerate() {
            let there: BTreeSet<NodeId> = members.iter().map(|member| member.node).collect();
            prop_assert!(hosts.is_sorted_by(|a, b| a < b));
            prop_assert!(hosts.iter().all(|host| there.contains(host)));
            prop_assert_eq!(hosts.len(), need.planned.len().min(there.len()));
            let planned = need.planned.iter().filter(|host| there.contains(host));
            prop_assert!(planned.clone().all(|host| hosts.contains(host)));
            // Nothing is sent to one that stands in while another that holds it does not.
            let idle = members
                .iter()
                .any(|m| m.held.contains(&shard) && !hosts.contains(&m.node));
            let sent = members.iter().any(|m| {
                hosts.contains(&m.node)
                    && !m.held.contains(&shard)
                    && !need.planned.contains(&m.node)
            });
            prop_assert!(!(idle && sent), "shard {shard}: {hosts:?}");
        }
    }

    #[test]
    fn what_stands_in_for_one_lost_seat_is_spread_evenly(seats in 2_u32..9, lost in 0_u32..9) {
        let lost = lost % seats;
        let shard = |s: u32| ShardNeed { planned: vec![NodeId(s % seats)], bytes: 7 };
        let needs: Vec<ShardNeed> = (0..seats * (seats - 1)).map(shard).collect();
        let left = (0..seats).filter(|seat| *seat != lost);
        let member = |seat| Share {
            node: NodeId(seat),
            bytes_max: 7 * u64::from(seats),
            held: (0..needs.len()).filter(|s| needs[*s].planned[0] == NodeId(seat)).collect(),
        };
        let members: Vec<Share> = left.map(member).collect();
        let hosts = shares(&needs, &members).expect("each has room for one more");
        for member in &members {
            let given = hosts.iter().filter(|hosts| hosts.contains(&member.node)).count();
            prop_assert_eq!(given, seats as usize);
        }
    }

    #[test]
    fn no_member_is_given_more_than_it_has_room_for(
        (needs, mut members) in cluster(), room in 0_u64..200,
    ) {
        for member in &mut members {
            let held: u64 = member.held.iter().map(|shard| needs[*shard].bytes).sum();
            member.bytes_max = held.max(room);
        }
        let all: u64 = needs.iter().map(|need| need.bytes).sum();
        match shares(&needs, &members) {
            Ok(hosts) => for member in &members {
                let stores = |shard: &usize| {
                    hosts[*shard].contains(&member.node) || member.held.contains(shard)
                };
                let stored: u64 =
                    (0..needs.len()).filter(stores).map(|shard| needs[shard].bytes).sum();
                prop_assert!(stored <= member.bytes_max);
            },
            Err(no_room) => {
                prop_assert!(room < all && no_room.bytes == needs[no_room.shard].bytes);
            }
        }
    }
}

#[test]
fn a_seat_that_is_taken_again_has_another_pass_and_the_old_one_is_worth_nothing() {
    let mut membership = Membership::new(1, LEASE_NS);
    let first = membership.join(0).expect("it is free");
    assert_eq!(membership.join(1), Err(Full { seats: 1 }));
    assert_eq!(membership.renew(first, LEASE_NS), Err(Ended(first)), "it ran out at that time");
    assert_eq!(membership.expire(LEASE_NS), [first]);
    let second = membership.join(LEASE_NS).expect("it is free again");
    assert_eq!(second.node, first.node);
    assert!(second.since > first.since);
    for ended in [membership.serve(first), membership.drain(first), membership.leave(first)] {
        assert_eq!(ended, Err(Ended(first)));
    }
    membership.drain(second).expect("it is a member");
    assert_eq!(membership.serve(second), Err(Ended(second)), "it drains and gets no work");
}

#[test]
fn a_cluster_that_is_served_anew_at_later_epochs_knows_no_pass_of_before() {
    let mut before = Membership::new(3, 100);
    let passes: Vec<_> = (0..3).map(|_| before.join(0).expect("a seat")).collect();
    let mut anew = Membership::after(before.epoch(), 3, 100);
    let taken: Vec<_> = (0..3).map(|_| anew.join(0).expect("a seat")).collect();
    for pass in passes {
        assert!(!taken.contains(&pass));
        assert!(anew.renew(pass, 1).is_err(), "its holder joins anew");
    }
    assert_eq!(anew.members().count(), 3);
}

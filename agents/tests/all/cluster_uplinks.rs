//! Links that racks and pods share, in the virtual cluster: against closed forms, and their books.

#![expect(clippy::cast_possible_truncation, reason = "seeds are small")]

use crate::cluster::{busy_cluster, close, queues};
use agents::cluster::limits::constant_time;
use agents::cluster::{
    Arrivals, Copies, FaultPlan, Link, LinkKind, Noise, Passed, Report, Settings, Topology,
    Uplinks, simulate,
};

/// Bytes in a ns of ports and links, so that a message of a kilobyte takes a µs of either.
const BYTES_PER_NS: f64 = 1.0;
const MESSAGE_NS: f64 = 1_000.0;

/// Two racks of 8 nodes with a front end each; all hosts are in the first rack, and a link is busy by `busy` with
/// the questions of the second.
fn two_racks(busy: f64, blocks: u64) -> Settings {
    let mut settings = queues(16, 1, 0.5, blocks, Noise::Constant);
    settings.fronts = 16;
    settings.copies = Copies::on(&[(0..8).collect()]);
    // Half of the blocks come from the second rack.
    settings.arrivals = Arrivals::Poisson { blocks_per_ns: 2.0 * busy / MESSAGE_NS };
    settings.warm_up_ns = 0;
    settings.header_bytes = 1_000;
    settings.hardware.service.setup_ns = 1.0;
    let network = &mut settings.hardware.network;
    network.topology = Topology::Racks { rack: 8 };
    network.base_ns = [3_000; 3];
    network.bytes_per_ns = BYTES_PER_NS;
    network.uplinks.rack_bytes_per_ns = Some(BYTES_PER_NS);
    settings
}

fn of_link(settings: &Settings, report: &Report, kind: LinkKind, of: u32) -> Passed {
    let id = settings.links().id(Link { kind, of });
    *report.links.links().nth(id as usize).expect("a link")
}

#[test]
fn an_uplink_of_many_ports_is_m_d_1_within_two_percent() {
    let wait = |busy| constant_time(busy).expect("no overload") - 1.0;
    for (busy, blocks) in [(0.5, 1_000_000), (0.8, 3_000_000)] {
        let settings = two_racks(busy, blocks);
        let report = simulate(&settings);
        let out = of_link(&settings, &report, LinkKind::RackOut, 1);
        // A message waits for as long in all as if it queued at the link alone, and for a part of that at its port.
        let expected = (wait(busy) - wait(busy / 8.0)) * MESSAGE_NS;
        let found = out.wait_ns as f64 / out.messages as f64;
        close(&format!("wait at an uplink at {busy}"), found, expected, 0.02);
        close("  busy", out.busy_ns as f64 / report.end_ns as f64, busy, 0.015);
        // What one link has spaced waits at no other of the same speed.
        assert_eq!(of_link(&settings, &report, LinkKind::RackIn, 0).wait_ns, 0);
        assert_eq!(of_link(&settings, &report, LinkKind::RackIn, 1).wait_ns, 0);
    }
}

/// As [`busy_cluster`], with links of both levels that some of its messages wait for.
fn with_uplinks(partitions: u32, seed: u64) -> Settings {
    let mut settings = busy_cluster(7, partitions, seed);
    settings.hardware.network.uplinks =
        Uplinks { rack_bytes_per_ns: Some(5.0), pod_bytes_per_ns: Some(8.0) };
    settings
}

#[test]
fn what_leaves_racks_and_pods_enters_others_and_all_of_it_is_counted_once() {
    for seed in 0..6 {
        let mut settings = with_uplinks(1 + seed as u32 % 3, seed);
        settings.racks_max = [None, Some(2)][seed as usize % 2];
        settings.own_rack = seed % 3 == 0;
        let has_faults = seed % 2 == 0;
        if !has_faults {
            settings.hardware.faults = FaultPlan::default();
            settings.patience_ns = None;
        }
        let report = simulate(&settings);
        let (tally, [rack_out, rack_in, pod_out, pod_in]) = (&report.tally, report.links.total());
        assert_eq!(tally.arrived, tally.tokens.total(), "each token has one outcome");
        for (out, into) in [(rack_out, rack_in), (pod_out, pod_in)] {
            assert_eq!((out.messages, out.bytes), (into.messages, into.bytes), "seed {seed}");
            assert!(out.messages > 0 && out.wait_ns > 0, "seed {seed}: {out:?}");
        }
        assert!(pod_out.messages < rack_out.messages, "some stay in their pod");
        if !has_faults {
            // Each question is answered, on the same way back.
            assert_eq!(rack_out.messages, 2 * tally.between_racks, "seed {seed}");
        }
        let mut by_link = [Passed::default(); 4];
        for (id, passed) in (0..).zip(report.links.links()) {
            by_link[settings.links().link(id).kind as usize].add(passed);
            assert!(passed.busy_ns <= report.end_ns, "a link carries one message at a time");
        }
        assert_eq!(by_link, report.links.total(), "by link and by time are the same sums");
    }
}

#[test]
fn uplinks_that_nothing_waits_for_change_no_time() {
    let mut settings = busy_cluster(7, 2, 5);
    settings.pricing = None;
    settings.certified.clear();
    settings.row_bytes = 1_000;
    let without = simulate(&settings);
    settings.hardware.network.uplinks =
        Uplinks { rack_bytes_per_ns: Some(1e9), pod_bytes_per_ns: Some(1e9) };
    let with = simulate(&settings);
    assert_eq!(without.tally, with.tally);
    assert_eq!(without.nodes, with.nodes);
    assert!(with.events > without.events && without.links.links().count() == 0);
    settings.hardware.network.uplinks.rack_bytes_per_ns = Some(5.0);
    let slower = simulate(&settings);
    assert!(slower.tally.latency.mean_ns() > without.tally.latency.mean_ns());
}

#[test]
fn uplinks_come_to_the_same_at_any_number_of_partitions() {
    let once = simulate(&with_uplinks(1, 3));
    for partitions in [2, 5] {
        let again = simulate(&with_uplinks(partitions, 3));
        assert_eq!((once.trace, once.events), (again.trace, again.events));
        assert_eq!(once.fingerprint(), again.fingerprint(), "{partitions} partitions");
        assert_eq!(once.links, again.links);
    }
}

/// Every expert is on each of 64 nodes in eight racks, two of eight are asked, and links are what is scarce.
fn scarce(racks_max: Option<u32>, own_rack: bool) -> Report {
    let mut settings = busy_cluster(64, 1, 9);
    settings.nodes = 64;
    settings.hardware.faults = FaultPlan::default();
    settings.hardware.network.topology = Topology::Racks { rack: 8 };
    settings.hardware.network.uplinks.rack_bytes_per_ns = Some(5.0);
    settings.copies = Copies::everywhere(64, 64);
    settings.row_bytes = 1_000;
    settings.arrivals = Arrivals::Poisson { blocks_per_ns: 3e-4 };
    settings.open_max = u32::MAX;
    settings.patience_ns = None;
    settings.racks_max = racks_max;
    settings.own_rack = own_rack;
    simulate(&settings)
}

#[test]
fn blocks_that_keep_to_their_own_rack_pass_no_uplink_and_wait_for_none() {
    let (free, limited, own) = (scarce(None, false), scarce(Some(1), false), scarce(Some(1), true));
    // Of eight racks that are alike, seven are others.
    let share = free.tally.between_racks as f64 / free.tally.questions as f64;
    close("questions between racks", share, 7.0 / 8.0, 0.01);
    assert_eq!((own.tally.between_racks, own.links.total()[0].messages), (0, 0));
    // One rack has all experts, so nothing is given up, and one message a node is less to carry.
    assert_eq!((own.tally.displaced, limited.tally.displaced), (0, 0));
    let bytes = |report: &Report| report.links.total()[0].bytes;
    assert!(bytes(&limited) < bytes(&free), "{} {}", bytes(&limited), bytes(&free));
    let p99 = |report: &Report| report.tally.latency.quantile_ns(0.99).expect("blocks ended");
    eprintln!("p99: anywhere {} ns, one rack {}, the own {}", p99(&free), p99(&limited), p99(&own));
    assert!(p99(&own) < p99(&free), "{} {}", p99(&own), p99(&free));
}

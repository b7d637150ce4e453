//! The virtual cluster against what is known in closed form, and against itself.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts and times are positive and small"
)]

use agents::cluster::limits::{
    constant_time, exponential_time, slowest_exponential_mean, slowest_exponential_quantile,
    two_choices_time,
};
use agents::cluster::{
    Arrivals, Copies, ExpertBytes, Fault, FaultPlan, Hardware, Network, Noise, Popularity, Pricing,
    ReplicaChoice, Report, Service, Settings, Topology, Uplinks, simulate,
};
use agents::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const SERVICE_NS: f64 = 1e6;
/// Of each way, far below the service time, and taken from what is measured.
const WAY_NS: u64 = 500;

pub(crate) fn hardware(noise: Noise, faults: FaultPlan, seed: u64) -> Hardware {
    let service = Service {
        setup_ns: SERVICE_NS,
        pair_ns: 0.0,
        weight_byte_ns: 0.0,
        pass_byte_ns: 0.0,
        noise,
        node_deviation: 0.0,
        slowness: BTreeMap::new(),
    };
    let network = Network {
        topology: Topology::Flat,
        base_ns: [WAY_NS; 3],
        jitter_ns: 0.0,
        jitter: Noise::Constant,
        bytes_per_ns: 1e12,
        message_ns: 0,
        uplinks: Uplinks::default(),
    };
    Hardware::new(service, network, faults, 1_000_000, seed)
}

/// Blocks of one token that reach `nodes` at random, at a utilisation, each `legs` of them.
pub(crate) fn queues(nodes: u32, legs: usize, busy: f64, blocks: u64, noise: Noise) -> Settings {
    let experts = if legs == 1 { 1 } else { nodes };
    let copies = match legs {
        1 => Copies::everywhere(1, nodes),
        _ => Copies::by_share(&vec![1.0; nodes as usize], nodes, 1).expect("one each"),
    };
    let blocks_per_ns = busy * f64::from(nodes) / SERVICE_NS / legs as f64;
    Settings {
        seed: 11,
        nodes,
        fronts: 1,
        hardware: hardware(noise, FaultPlan::default(), 11),
        copies,
        popularity: Popularity::new(vec![1.0; experts as usize]),
        top_k: legs,
        candidates: legs,
        block_tokens: 1,
        blocks,
        arrivals: Arrivals::Poisson { blocks_per_ns },
        row_bytes: 0,
        header_bytes: 0,
        expert_bytes: ExpertBytes::All(0),
        choice: ReplicaChoice::Random,
        racks_max: None,
        own_rack: false,
        pricing: None,
        patience_ns: None,
        again_max: 0,
        aside_ns: 0,
        late_ns: u64::MAX,
        open_max: u32::MAX,
        warm_up_ns: (0.1 * blocks as f64 / blocks_per_ns) as u64,
        stretch_ns: u64::MAX,
        certified: BTreeSet::new(),
        partitions: 1,
    }
}

/// Mean time in the system, in service times.
fn time_in_system(report: &Report) -> f64 {
    let mean_ns = report.tally.latency.mean_ns().expect("blocks ended");
    (mean_ns - 2.0 * WAY_NS as f64) / SERVICE_NS
}

pub(crate) fn close(what: &str, found: f64, expected: f64, tolerance: f64) {
    let off = found / expected - 1.0;
    eprintln!("{what}: {found:.4}, closed form {expected:.4}, off by {:.2} %", off * 100.0);
    assert!(off.abs() <= tolerance, "{what}: {found} for {expected}");
}

/// Blocks in millions: short runs at loads where they suffice, long ones with `RUN_SLOW`.
fn loads(short: &[(f64, f64)], long: &[(f64, f64)]) -> Vec<(f64, u64)> {
    let slow = std::env::var_os("RUN_SLOW").is_some();
    if !slow {
        eprintln!("skipped: RUN_SLOW is not set; the highest loads take tens of seconds");
    }
    let of = |(busy, millions): &(f64, f64)| (*busy, (millions * 1e6) as u64);
    short.iter().chain(if slow { long } else { &[] }).map(of).collect()
}

#[test]
fn a_queue_with_exponential_service_is_m_m_1_within_one_percent() {
    for (busy, blocks) in loads(&[(0.5, 1.0), (0.8, 6.0)], &[(0.95, 120.0)]) {
        let report = simulate(&queues(64, 1, busy, blocks, Noise::Exponential));
        let expected = exponential_time(busy).expect("no overload");
        close(&format!("M/M/1 at {busy}"), time_in_system(&report), expected, 0.01);
        let p99_ns = report.tally.latency.quantile_ns(0.99).expect("blocks ended") as f64;
        // Buckets of the histogram are 3 % wide.
        close("  p99", p99_ns / SERVICE_NS, expected * 100_f64.ln(), 0.035);
        close("  utilisation", report.busy().0, busy, 0.01);
    }
}

#[test]
fn a_queue_with_constant_service_is_m_d_1_within_one_percent() {
    for (busy, blocks) in loads(&[(0.5, 1.0), (0.8, 3.0)], &[(0.95, 60.0)]) {
        let report = simulate(&queues(64, 1, busy, blocks, Noise::Constant));
        let expected = constant_time(busy).expect("no overload");
        close(&format!("M/D/1 at {busy}"), time_in_system(&report), expected, 0.01);
    }
}

#[test]
fn two_choices_are_the_supermarket_model_within_one_percent() {
    for (busy, blocks) in loads(&[(0.5, 1.0), (0.8, 2.0)], &[(0.95, 20.0)]) {
        let mut settings = queues(4000, 1, busy, blocks, Noise::Exponential);
        settings.choice = ReplicaChoice::TwoChoices;
        let report = simulate(&settings);
        let expected = two_choices_time(busy).expect("no overload");
        close(&format!("two choices at {busy}"), time_in_system(&report), expected, 0.01);
    }
}

#[test]
fn a_block_of_eight_is_as_slow_as_the_slowest_of_eight_independent_queues() {
    for (busy, blocks) in loads(&[(0.5, 0.5)], &[(0.8, 6.0)]) {
        let report = simulate(&queues(1024, 8, busy, blocks, Noise::Exponential));
        let leg = exponential_time(busy).expect("no overload");
        // Legs to queues that random fans reach are nearly independent, and F(t)^k an upper bound.
        let mean = leg * slowest_exponential_mean(8);
        close(&format!("slowest of 8 at {busy}"), time_in_system(&report), mean, 0.015);
        let p99 = leg * slowest_exponential_quantile(8, 0.99);
        let found_ns = report.tally.latency.quantile_ns(0.99).expect("blocks ended") as f64;
        close("  p99", found_ns / SERVICE_NS, p99, 0.035);
    }
}

/// Everything at once: racks, prices, few hosts, faults of each kind.
pub(crate) fn busy_cluster(fronts: u32, partitions: u32, seed: u64) -> Settings {
    let nodes = 96;
    let topology = Topology::Pods { rack: 8, racks: 4 };
    let faults = [
        Fault::RackLoss { rack: 3, when_ns: 20_000_000..60_000_000 },
        Fault::Crash { node: NodeId(5), when_ns: 10_000_000..15_000_000 },
        Fault::Slow { node: NodeId(40), when_ns: 0..80_000_000, factor: 5.0 },
        Fault::Partition { rack: 7, when_ns: 30_000_000..40_000_000 },
        Fault::Flaky { node: NodeId(70), when_ns: 0..90_000_000, lost: 0.2 },
    ];
    let plan = FaultPlan::new(&faults, nodes, |node| topology.rack(node));
    let mut hardware = hardware(Noise::LogNormal(0.5), plan, seed);
    hardware.service.setup_ns = 20_000.0;
    hardware.service.pair_ns = 2_000.0;
    hardware.service.node_deviation = 0.1;
    hardware.network.topology = topology;
    hardware.network.base_ns = [5_000, 15_000, 40_000];
    hardware.network.jitter_ns = 3_000.0;
    hardware.network.jitter = Noise::Exponential;
    hardware.network.bytes_per_ns = 5.0;
    hardware.network.message_ns = 500;
    let popularity = Popularity::skewed(64, 1.0, seed);
    let blocks = 30_000;
    Settings {
        seed,
        nodes,
        fronts,
        hardware,
        copies: Copies::by_share(popularity.shares(), nodes, 3).expect("room"),
        popularity,
        top_k: 4,
        candidates: 16,
        block_tokens: 8,
        blocks,
        arrivals: Arrivals::Poisson { blocks_per_ns: 30_000.0 / 1e8 },
        row_bytes: 256,
        header_bytes: 64,
        expert_bytes: ExpertBytes::All(100_000),
        choice: ReplicaChoice::TwoChoices,
        racks_max: None,
        own_rack: false,
        pricing: Some(Pricing {
            period_ns: 5_000_000,
            delay_ns: 1_000_000,
            fan_out: 3,
            step: 0.3,
            price_per_fair_share: 1.0,
            degree: 1.0,
        }),
        patience_ns: Some(4_000_000),
        again_max: 3,
        aside_ns: 20_000_000,
        late_ns: 1_000_000,
        open_max: 200,
        warm_up_ns: 0,
        stretch_ns: 10_000_000,
        certified: BTreeSet::from([2, 15]),
        partitions,
    }
}

#[test]
fn the_same_seed_gives_the_same_events_and_the_same_state_at_any_number_of_partitions() {
    for seed in [1, 2] {
        let once = simulate(&busy_cluster(7, 1, seed));
        assert!(once.events > 200_000, "{}", once.events);
        for partitions in [1, 2, 5, 7] {
            let again = simulate(&busy_cluster(7, partitions, seed));
            assert_eq!(once.tally.tokens, again.tally.tokens);
            assert_eq!(once.trace, again.trace, "{partitions} partitions");
            assert_eq!(once.fingerprint(), again.fingerprint(), "{partitions} partitions");
            assert_eq!((once.events, once.end_ns), (again.events, again.end_ns));
            assert_eq!(once.unions.len(), 2);
            for ((period, once), (of, again)) in once.unions.iter().zip(&again.unions) {
                assert_eq!((period, &once.rows), (of, &again.rows));
            }
        }
        let other = simulate(&busy_cluster(7, 2, seed + 10));
        assert_ne!(once.trace, other.trace);
        assert_ne!(once.fingerprint(), other.fingerprint());
    }
}

#[test]
fn partitions_that_are_played_on_threads_come_to_what_one_comes_to() {
    // Long ways make long windows, with enough events for threads.
    let far = |partitions| {
        let mut settings = busy_cluster(7, partitions, 4);
        settings.hardware.network.base_ns = [2_000_000, 3_000_000, 4_000_000];
        (settings.patience_ns, settings.late_ns) = (Some(40_000_000), 8_000_000);
        simulate(&settings)
    };
    let once = far(1);
    assert!(once.events > 1_200 * once.windows, "{} {}", once.events, once.windows);
    for partitions in [2, 3, 7] {
        let again = far(partitions);
        assert_eq!(once.trace, again.trace, "{partitions} partitions");
        assert_eq!(once.fingerprint(), again.fingerprint(), "{partitions} partitions");
    }
}

#[test]
fn whatever_goes_wrong_each_token_is_ok_late_lost_or_shed() {
    let (mut seen, mut asked_again, mut late_answers) = ([0; 4], 0, 0);
    for seed in 0..12 {
        let mut settings = busy_cluster(3 + seed as u32 % 3, 2, seed);
        settings.open_max = [10_000, 40, 8][seed as usize % 3];
        settings.patience_ns = Some([4_000_000, 900_000][seed as usize % 2]);
        settings.again_max = [3, 0][seed as usize % 2];
        settings.racks_max = [None, Some(2)][seed as usize % 2];
        let report = simulate(&settings);
        let tally = &report.tally;
        assert_eq!(tally.arrived, 30_000 * 8);
        assert_eq!(tally.arrived, tally.tokens.total());
        let by_stretch: u64 = tally.stretches.iter().map(|part| part.tokens.total()).sum();
        assert_eq!(by_stretch, tally.arrived, "each token is in one stretch");
        let kinds = [tally.tokens.ok, tally.tokens.late, tally.tokens.lost, tally.tokens.shed];
        seen.iter_mut().zip(kinds).for_each(|(seen, n)| *seen += u64::from(n > 0));
        assert!(tally.broken > 0, "seed {seed}");
        asked_again += tally.asked_again;
        late_answers += tally.late_answers;
    }
    assert!(asked_again > 0 && late_answers > 0, "{asked_again} {late_answers}");
    assert!(seen.iter().all(|runs| *runs > 0), "every kind was seen: {seen:?}");
}

#[test]
fn blocks_keep_to_few_racks_where_that_is_asked_and_send_less_between_them() {
    let free = simulate(&busy_cluster(4, 1, 3));
    let mut settings = busy_cluster(4, 1, 3);
    settings.racks_max = Some(2);
    let near = simulate(&settings);
    assert_eq!(free.tally.displaced, 0);
    assert!(near.tally.displaced > 0, "{:?}", near.tally);
    assert!(near.tally.questions < free.tally.questions, "one message a node");
}

#[test]
fn prices_bring_the_joint_play_nearer_to_the_equilibrium_and_old_ones_less_so() {
    let gap = |delay_ns, step, priced| {
        let mut settings = busy_cluster(8, 2, 4);
        settings.hardware.faults = FaultPlan::default();
        settings.open_max = u32::MAX;
        let pricing = settings.pricing.as_mut().expect("priced");
        pricing.fan_out = 7;
        pricing.delay_ns = delay_ns;
        pricing.step = if priced { step } else { 1e-12 };
        settings.certified = BTreeSet::from([18]);
        let report = simulate(&settings);
        let (_, joint) = report.certify(&settings)[0];
        assert!(joint.informed.potential <= joint.dual_bound);
        assert!(joint.informed.relative_gap < 0.02, "{joint:?}");
        joint.played.relative_gap
    };
    let (plain, fresh, stale) = (gap(0, 0.3, false), gap(0, 0.3, true), gap(60_000_000, 1.0, true));
    eprintln!("gaps: no prices {plain:.4}, fresh {fresh:.4}, stale {stale:.4}");
    assert!(fresh < 0.5 * plain && fresh < stale, "{plain} {fresh} {stale}");
}

//! Experts of several widths in the virtual cluster, against M/G/1.

use crate::cluster::{close, queues};
use agents::cluster::{
    Arrivals, Copies, ExpertBytes, Noise, Popularity, Settings, WidthsTo, dealt_widths, simulate,
};
use agents::ids::ExpertId;

/// 2 and 8 bits, in sixteenths of one.
const UNITS: [u16; 2] = [2 * 16, 8 * 16];
/// Time of an expert at 8 bits, ns.
const WIDE_NS: f64 = 2e6;

/// One expert a block, of eight of which two are wide, each on all of 64 nodes; mean and mean square of the time that
/// a node takes for one.
fn two_widths(to: WidthsTo, busy: f64, blocks: u64) -> (Settings, [f64; 2]) {
    let popularity = Popularity::new(vec![8.0, 1.0, 1.0, 4.0, 1.0, 1.0, 1.0, 1.0]);
    let widths = dealt_widths(popularity.shares(), &[6.0, 2.0], to);
    let units = widths.iter().map(|width| UNITS[*width]).collect();
    let mut settings = queues(64, 1, busy, blocks, Noise::Constant);
    // 2^20 weights: a sixteenth of a bit of each is 2^13 bytes.
    settings.expert_bytes = ExpertBytes::Each { units, unit_bytes: 8192.0 };
    let byte_ns = WIDE_NS / f64::from(1 << 20);
    let service = &mut settings.hardware.service;
    // A quarter for what is set up, half for touching the weights, and a quarter each time that a kernel reads them.
    service.setup_ns = 0.25 * WIDE_NS;
    (service.weight_byte_ns, service.pass_byte_ns) = (0.5 * byte_ns, 0.25 * byte_ns);
    let time = |expert| {
        let units = settings.expert_bytes.units(ExpertId::from_index(expert));
        settings.hardware.service.mean_ns(&settings.work(1, units))
    };
    let mean = |power| -> f64 {
        popularity.shares().iter().enumerate().map(|(e, share)| share * time(e).powi(power)).sum()
    };
    let moments = [mean(1), mean(2)];
    let blocks_per_ns = busy * 64.0 / moments[0];
    settings.arrivals = Arrivals::Poisson { blocks_per_ns };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time")]
    let warm_up_ns = (0.1 * blocks as f64 / blocks_per_ns) as u64;
    settings.warm_up_ns = warm_up_ns;
    (settings.copies, settings.popularity) = (Copies::everywhere(8, 64), popularity);
    (settings, moments)
}

#[test]
fn experts_of_two_widths_are_m_g_1_within_two_percent_whoever_has_the_wide_one() {
    let mut means = Vec::new();
    for (to, by_hand) in [
        // 12 of 18 tokens want the two wide experts, or 2 of 18 where the least wanted have them.
        (WidthsTo::Popular, (12.0 * 2.0 + 6.0 * 0.875) / 18.0),
        (WidthsTo::Rare, (2.0 * 2.0 + 16.0 * 0.875) / 18.0),
    ] {
        for (busy, blocks) in [(0.5, 1_000_000), (0.8, 3_000_000)] {
            let (settings, [mean, square]) = two_widths(to, busy, blocks);
            // 0.25 + 0.75 · 2/8 of the time of a wide one is 0.4375.
            close("time at a node", mean / 1e6, by_hand, 1e-9);
            let report = simulate(&settings);
            let wait = busy / mean * square / (2.0 * (1.0 - busy));
            let found = report.tally.latency.mean_ns().expect("blocks ended") - 1_000.0;
            close(&format!("M/G/1, {to:?} at {busy}"), found, mean + wait, 0.02);
            close("  utilisation", report.busy().0, busy, 0.01);
            means.push(found);
        }
    }
    assert!(means[0] > means[2], "narrow experts are quick where they are wanted");
}

#[test]
fn one_width_given_by_expert_is_what_all_have() {
    let (mut settings, _) = two_widths(WidthsTo::Even, 0.5, 50_000);
    settings.expert_bytes = ExpertBytes::Each { units: vec![64; 8], unit_bytes: 8192.0 };
    let each = simulate(&settings);
    settings.expert_bytes = ExpertBytes::All(64 * 8192);
    let all = simulate(&settings);
    assert_eq!((each.tally, each.nodes), (all.tally, all.nodes));
}

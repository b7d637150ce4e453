//! Latencies by interval.

use super::written::latencies;
use nashflock::measure::Latency;
use nashflock::measure::latency::{Interval, read_hlog, write_hlog};
use proptest::prelude::*;
use std::time::{Duration, UNIX_EPOCH};

#[test]
fn an_interval_log_reads_back_with_every_count() {
    let started = UNIX_EPOCH + Duration::from_millis(1_773_039_901_250);
    let intervals: Vec<Interval> = (0..3)
        .map(|part: u64| Interval {
            start_ns: part * 1_500_000_000,
            duration_ns: 1_500_000_000,
            tag: ["", "requests", "dispatch"][usize::try_from(part).expect("small")].to_owned(),
            latency: latencies((0..5_000 * part).map(|i| i * i * 100_000 * (part + 1))),
        })
        .collect();
    let mut log = Vec::new();
    write_hlog(&mut log, started, &intervals).expect("memory takes any log");
    let read = read_hlog(&log).expect("our own log");
    assert_eq!(read.len(), 3);
    for (read, written) in read.iter().zip(&intervals) {
        assert_eq!((read.start_ns, read.duration_ns), (written.start_ns, written.duration_ns));
        assert_eq!(read.tag, written.tag);
        assert_eq!(read.latency.quantiles(), written.latency.quantiles());
        for per_mille in 0..=1_000 {
            let q = f64::from(per_mille) / 1_000.0;
            assert_eq!(read.latency.quantile(q), written.latency.quantile(q));
        }
    }
    assert!(read[2].latency.quantiles().overflow > 0, "the overflow is carried");
    assert!(String::from_utf8(log).expect("text").contains("#[StartTime: 1773039901.250"));
    read_hlog(b"1.0,2.0,3.0,!!!\n").expect_err("no histogram");
    let spaced = Interval { tag: "a b".to_owned(), ..intervals[0].clone() };
    write_hlog(&mut Vec::new(), started, &[spaced]).expect_err("tags have no spaces");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn merged_parts_equal_the_whole(
        samples in prop::collection::vec(0_u64..5_000_000_000_000, 0..400),
        parts in 1_usize..6,
    ) {
        let whole = latencies(samples.iter().copied());
        let mut merged = Latency::new();
        for part in (0..parts).rev() {
            merged.merge(&latencies(samples.iter().copied().skip(part).step_by(parts)));
        }
        prop_assert_eq!(merged.quantiles(), whole.quantiles());
        prop_assert_eq!(whole.count(), samples.len() as u64);
        for percent in 0..=100 {
            let q = f64::from(percent) / 100.0;
            prop_assert_eq!(merged.quantile(q), whole.quantile(q));
        }
    }
}

//! Latency histograms: exact counts, merged by addition, written as HDR interval logs.

use std::io;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, IntervalLogWriterError, LogEntry, Tag,
};
use hdrhistogram::serialization::{
    Deserializer, Serializer as _, V2DeflateSerializer, V2Serializer,
};
use serde::{Deserialize, Serialize};

/// The smallest latency told apart from zero.
pub const LATENCY_LOW_NS: u64 = 1;
/// The largest latency with a bucket of its own: one hour. Longer ones are counted as overflow.
pub const LATENCY_HIGH_NS: u64 = 3_600_000_000_000;
/// Decimal digits kept: values in one bucket differ by at most 0.1 %.
const SIGNIFICANT_DIGITS: u8 = 3;
/// The comment line that carries the overflow of the interval after it.
const OVERFLOW_COMMENT: &str = "#overflow ";

/// A histogram of latencies in nanoseconds, with the same buckets in every process (about 270 KB).
///
/// Times count from the *intended* start, so that a stalled system cannot hide the requests it
/// delayed (coordinated omission).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Latency {
    histogram: Histogram<u64>,
    overflow: u64,
}

/// A [`Latency`] at rest: its histogram in the V2 format, which leaves empty buckets out.
#[derive(Serialize, Deserialize)]
struct Stored {
    histogram_v2: Vec<u8>,
    overflow: u64,
}

impl From<Latency> for Stored {
    fn from(latency: Latency) -> Self {
        let mut histogram_v2 = Vec::new();
        V2Serializer::new()
            .serialize(&latency.histogram, &mut histogram_v2)
            .expect("counts of less than 2^63 are written to memory");
        Self { histogram_v2, overflow: latency.overflow }
    }
}

impl TryFrom<Stored> for Latency {
    type Error = String;

    fn try_from(stored: Stored) -> Result<Self, String> {
        with_our_bounds(&stored.histogram_v2, stored.overflow)
    }
}

/// The figures of a [`Latency`] that `summary.json` carries. A quantile q is the smallest recorded
/// bucket that at least q of all samples do not exceed; below 1000 samples `p999` is the maximum,
/// so `count` belongs beside it. All but `count` and `overflow` are absent without samples.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct LatencyQuantiles {
    /// Samples, with those beyond an hour.
    pub count: u64,
    /// Median, ns.
    pub p50: Option<u64>,
    /// 90th percentile, ns.
    pub p90: Option<u64>,
    /// 99th percentile, ns.
    pub p99: Option<u64>,
    /// 99.9th percentile, ns; the maximum where `count` is below 1000.
    pub p999: Option<u64>,
    /// Largest sample, ns, to 0.1 %.
    pub max: Option<u64>,
    /// Samples beyond one hour; quantiles that fall among them read as one hour.
    #[serde(default)]
    pub overflow: u64,
}

/// Why a `.hlog` cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HlogError {
    /// A line is neither a comment nor an interval.
    #[error("byte {offset} does not start an interval line of an hdr interval log")]
    Line {
        /// Position in the file.
        offset: usize,
    },
    /// A histogram cannot be decoded, or its values do not fit our bounds.
    #[error("interval {interval} holds no histogram that can be read: {reason}")]
    Histogram {
        /// Position among the intervals, from 0.
        interval: usize,
        /// What the decoder found.
        reason: String,
    },
}

/// One stretch of a run in a `.hlog`.
#[derive(Clone, Debug)]
pub struct Interval {
    /// Nanoseconds from the start of the run; the log keeps milliseconds.
    pub start_ns: u64,
    /// Length in nanoseconds; the log keeps milliseconds.
    pub duration_ns: u64,
    /// What was measured, without commas, spaces or line breaks; empty for none.
    pub tag: String,
    /// The samples of the stretch.
    pub latency: Latency,
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

impl Latency {
    /// No samples.
    #[must_use]
    pub fn new() -> Self {
        let histogram =
            Histogram::new_with_bounds(LATENCY_LOW_NS, LATENCY_HIGH_NS, SIGNIFICANT_DIGITS)
                .expect("the bounds are constants: low is 1 and high is above 2");
        Self { histogram, overflow: 0 }
    }

    /// Records a request that was meant to start at `intended_ns` and ended at `finished_ns` (0 where
    /// the end lies before the start).
    pub fn record_from(&mut self, intended_ns: u64, finished_ns: u64) {
        self.record(finished_ns.saturating_sub(intended_ns));
    }

    /// Records one latency.
    pub fn record(&mut self, latency_ns: u64) {
        // The histogram has buckets somewhat beyond its bound; what counts as overflow must not
        // depend on that.
        if latency_ns > LATENCY_HIGH_NS || self.histogram.record(latency_ns).is_err() {
            self.overflow += 1;
        }
    }

    /// Adds all samples of `other`: exact, in any order.
    pub fn merge(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("all latency histograms share their bounds");
        self.overflow += other.overflow;
    }

    /// Samples, with those beyond the bound.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len() + self.overflow
    }

    /// The quantile q in 0..=1, ns; `None` without samples, [`LATENCY_HIGH_NS`] among the overflow.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank lies in 0..=count, and counts stay below 2^52"
    )]
    pub fn quantile(&self, q: f64) -> Option<u64> {
        let count = self.count();
        let recorded = self.histogram.len();
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).max(1);
        match (count, recorded) {
            (0, _) => None,
            _ if rank > recorded => Some(LATENCY_HIGH_NS),
            // Half a rank below, so that rounding cannot lift the library's own ceil to the next one.
            _ => Some(self.histogram.value_at_quantile((rank as f64 - 0.5) / recorded as f64)),
        }
    }

    /// The figures for the summary.
    #[must_use]
    pub fn quantiles(&self) -> LatencyQuantiles {
        LatencyQuantiles {
            count: self.count(),
            p50: self.quantile(0.5),
            p90: self.quantile(0.9),
            p99: self.quantile(0.99),
            p999: self.quantile(0.999),
            max: self.quantile(1.0),
            overflow: self.overflow,
        }
    }
}

/// Writes `intervals` as an HDR interval log (V2 with deflate, times in seconds since `started_at`,
/// maxima in milliseconds), which the HdrHistogram tools of other languages read.
///
/// # Errors
/// What `writer` reports, and a tag with a comma, space or line break.
pub fn write_hlog<W: io::Write>(
    writer: &mut W,
    started_at: SystemTime,
    intervals: &[Interval],
) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("latencies in nanoseconds from the intended start")
        .with_start_time(started_at)
        .with_base_time(started_at)
        .with_max_value_divisor(1e6)
        .begin_log_with(writer, &mut serializer)?;
    for interval in intervals {
        let tag = match interval.tag.as_str() {
            "" => None,
            tag => Some(Tag::new(tag).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("tag {tag:?} cannot be written"),
                )
            })?),
        };
        log.write_comment(&format!(
            "{}{}",
            OVERFLOW_COMMENT.trim_start_matches('#'),
            interval.latency.overflow
        ))?;
        log.write_histogram(
            &interval.latency.histogram,
            Duration::from_nanos(interval.start_ns),
            Duration::from_nanos(interval.duration_ns),
            tag,
        )
        .map_err(|error| match error {
            IntervalLogWriterError::IoError(error) => error,
            IntervalLogWriterError::SerializeError(error) => io::Error::other(error),
        })?;
    }
    Ok(())
}

/// Reads a log back. Logs of other writers are accepted where their values fit one hour.
///
/// # Errors
/// The first line or histogram that cannot be read.
pub fn read_hlog(bytes: &[u8]) -> Result<Vec<Interval>, HlogError> {
    let mut overflows = bytes.split(|byte| *byte == b'\n').filter_map(|line| {
        std::str::from_utf8(line).ok()?.strip_prefix(OVERFLOW_COMMENT)?.trim().parse::<u64>().ok()
    });
    let mut intervals = Vec::new();
    for entry in IntervalLogIterator::new(bytes) {
        let entry = entry.map_err(
            |hdrhistogram::serialization::interval_log::LogIteratorError::ParseError { offset }| {
                HlogError::Line { offset }
            },
        )?;
        let LogEntry::Interval(line) = entry else { continue };
        let latency = decode(line.encoded_histogram(), overflows.next().unwrap_or(0))
            .map_err(|reason| HlogError::Histogram { interval: intervals.len(), reason })?;
        intervals.push(Interval {
            start_ns: u64::try_from(line.start_timestamp().as_nanos()).unwrap_or(u64::MAX),
            duration_ns: u64::try_from(line.duration().as_nanos()).unwrap_or(u64::MAX),
            tag: line.tag().map(|tag| tag.as_str().to_owned()).unwrap_or_default(),
            latency,
        });
    }
    Ok(intervals)
}

/// The latencies in one interval line.
fn decode(base64: &str, overflow: u64) -> Result<Latency, String> {
    with_our_bounds(&decode_base64(base64).ok_or("not base64")?, overflow)
}

/// A histogram in any of the formats, with the buckets of every [`Latency`].
fn with_our_bounds(mut bytes: &[u8], overflow: u64) -> Result<Latency, String> {
    let histogram: Histogram<u64> =
        Deserializer::new().deserialize(&mut bytes).map_err(|error| error.to_string())?;
    let mut latency = Latency { overflow, ..Latency::new() };
    latency.histogram.add(&histogram).map_err(|error| error.to_string())?;
    Ok(latency)
}

/// RFC 4648 section 4, with or without padding. The histogram crate encodes but does not decode.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(((bits >> held) & 0xff) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_decodes_the_vectors_of_rfc_4648() {
        for (text, expected) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(decode_base64(text).as_deref(), Some(expected.as_bytes()));
        }
        assert_eq!(decode_base64("Zm9*"), None);
    }

    #[test]
    fn quantiles_agree_with_the_sorted_samples_to_three_digits() {
        for count in [1_u64, 2, 10, 999, 1_000, 1_001, 25_000] {
            let mut latency = Latency::new();
            let mut samples: Vec<u64> =
                (0..count).map(|i| 1_000 + i.wrapping_mul(2_654_435_761) % 9_000_000).collect();
            samples.iter().for_each(|sample| latency.record(*sample));
            samples.sort_unstable();
            for (per_mille, got) in [
                (500, latency.quantiles().p50),
                (900, latency.quantiles().p90),
                (990, latency.quantiles().p99),
                (999, latency.quantiles().p999),
                (1_000, latency.quantiles().max),
            ] {
                let rank = (per_mille * count).div_ceil(1_000);
                let exact = samples[usize::try_from(rank - 1).expect("small")];
                let got = got.expect("there are samples");
                assert!(got >= exact && got - exact <= exact / 1_000, "{count} {per_mille}");
            }
        }
    }

    #[test]
    fn a_latency_beyond_an_hour_is_counted_and_not_squeezed_into_the_last_bucket() {
        let mut latency = Latency::new();
        latency.record(5);
        latency.record(LATENCY_HIGH_NS);
        latency.record(LATENCY_HIGH_NS + 1);
        latency.record(u64::MAX);
        let quantiles = latency.quantiles();
        assert_eq!((quantiles.count, quantiles.overflow), (4, 2));
        assert_eq!(quantiles.max, Some(LATENCY_HIGH_NS));
        assert_eq!(latency.quantile(0.25), Some(5));
    }

    #[test]
    fn a_stored_latency_comes_back_with_every_count() {
        let mut latency = Latency::new();
        (0..5_000_u64).for_each(|i| latency.record(i.wrapping_mul(2_654_435_761) % 90_000_000));
        latency.record(u64::MAX);
        let mut back = Latency::try_from(Stored::from(latency.clone())).expect("its own format");
        assert_eq!((&back.histogram, back.overflow), (&latency.histogram, latency.overflow));
        back.record(7);
        assert_eq!(back.count(), latency.count() + 1);
        let torn = Stored { histogram_v2: vec![1, 2, 3], overflow: 0 };
        assert!(Latency::try_from(torn).is_err());
    }

    #[test]
    fn without_samples_there_are_no_quantiles() {
        assert_eq!(Latency::new().quantiles(), LatencyQuantiles::default());
    }

    #[test]
    fn latency_counts_from_the_intended_start() {
        let mut latency = Latency::new();
        latency.record_from(100, 175);
        latency.record_from(200, 150);
        assert_eq!((latency.quantile(0.5), latency.quantile(1.0)), (Some(0), Some(75)));
    }
}

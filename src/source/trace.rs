//! Arrival traces: CSV files with a column of times.

use agents::continuous::RequestLength;
use chrono::{DateTime, NaiveDateTime};
use csv::{ReaderBuilder, StringRecord, Trim};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Names of the column, in any case, the first that is there.
const COLUMNS: [&str; 4] = ["timestamp", "time", "arrived_at", "arrival_time"];

/// Names of the columns of prompt tokens and of generated ones, likewise.
const PROMPT_COLUMNS: [&str; 3] = ["contexttokens", "num_prefill_tokens", "prompt_tokens"];
const GENERATED_COLUMNS: [&str; 3] = ["generatedtokens", "num_decode_tokens", "generated_tokens"];

/// Rows that are read at most.
const ROWS_MAX: usize = 100_000_000;

/// Why a file is no arrival trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be opened or read, or is no CSV.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: csv::Error,
    },
    /// No column of times.
    #[error(
        "{} has no column of times: name one of its columns {}",
        path.display(),
        COLUMNS.join(", ")
    )]
    NoTimes {
        /// The file.
        path: PathBuf,
    },
    /// No columns of lengths.
    #[error(
        "{} has no columns of prompt and generated tokens: name them ContextTokens and GeneratedTokens",
        path.display()
    )]
    NoLengths {
        /// The file.
        path: PathBuf,
    },
    /// A length that cannot be read.
    #[error("line {line} of {}: `{text}` is no number of tokens", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What stands there.
        text: String,
    },
    /// A time that cannot be read.
    #[error(
        "line {line} of {}: `{text}` is no time: write seconds such as 12.5, or a date and time such \
         as 2023-11-16 18:17:03.98",
        path.display()
    )]
    Time {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What stands there.
        text: String,
    },
    /// Too few rows for the run.
    #[error("{} has {rows} arrivals, the run has {requests} requests: lower load.requests", path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// In the file.
        rows: usize,
        /// `load.requests`.
        requests: u32,
    },
}

/// The first `requests` arrivals of a CSV file with a header line, in ns from an origin of the file's
/// own. A time is a number of seconds, or a date and time. All rows are sorted by time before the first are
/// taken: recorders write requests when they end.
///
/// # Errors
/// When the file cannot be read, a time cannot, or there are fewer rows.
pub fn read_arrivals(path: &Path, requests: u32) -> Result<Vec<u64>, TraceError> {
    Ok(read(path, requests, false)?.0)
}

/// The same arrivals with the tokens of each request's prompt and answer; 0 counts as 1.
///
/// # Errors
/// As [`read_arrivals`], and when a column of lengths is missing or a length cannot be read.
pub fn read_requests(
    path: &Path,
    requests: u32,
) -> Result<(Vec<u64>, Vec<RequestLength>), TraceError> {
    read(path, requests, true)
}

fn read(
    path: &Path,
    requests: u32,
    with_lengths: bool,
) -> Result<(Vec<u64>, Vec<RequestLength>), TraceError> {
    let failed = |source| TraceError::Read { path: path.into(), source };
    let file = File::open(path).map_err(|error| failed(error.into()))?;
    let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(file);
    let header = reader.headers().map_err(failed)?;
    let named = |name: &&str| header.iter().position(|column| column.eq_ignore_ascii_case(name));
    let column = COLUMNS.iter().find_map(named);
    let column = column.ok_or_else(|| TraceError::NoTimes { path: path.into() })?;
    let lengths = [&PROMPT_COLUMNS, &GENERATED_COLUMNS].map(|names| names.iter().find_map(named));
    let lengths = match lengths {
        _ if !with_lengths => None,
        [Some(prompt), Some(generated)] => Some((prompt, generated)),
        _ => return Err(TraceError::NoLengths { path: path.into() }),
    };
    let mut rows = Vec::new();
    for record in reader.records().take(ROWS_MAX) {
        let record: StringRecord = record.map_err(failed)?;
        let line = record.position().map_or(0, csv::Position::line);
        let text = &record[column];
        let time = time_ns(text).ok_or_else(|| TraceError::Time {
            path: path.into(),
            line,
            text: text.to_owned(),
        })?;
        let tokens = |column: usize| {
            let text = &record[column];
            text.parse::<u32>().map(|tokens| tokens.max(1)).map_err(|_| TraceError::Length {
                path: path.into(),
                line,
                text: text.to_owned(),
            })
        };
        let (prompt, generated) = match lengths {
            None => (1, 1),
            Some((prompt, generated)) => (tokens(prompt)?, tokens(generated)?),
        };
        rows.push((time, RequestLength { prompt, generated }));
    }
    // Stable: requests of one time stay in the file's order.
    rows.sort_by_key(|(time, _)| *time);
    let origin = rows.first().map_or(0, |(time, _)| *time);
    if rows.len() < requests as usize {
        return Err(TraceError::Short { path: path.into(), rows: rows.len(), requests });
    }
    rows.truncate(requests as usize);
    Ok(rows.into_iter().map(|(time, length)| (time.abs_diff(origin), length)).unzip())
}

/// A time in ns since its origin: the first second, or 1970.
fn time_ns(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<f64>() {
        let ns = seconds * 1e9;
        // Below 2^62 ns, or 146 years, sums and differences of times stay in 64 bits.
        #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
        return (ns.abs() < 4.6e18).then_some(ns.round() as i64);
    }
    let zoned = || DateTime::parse_from_rfc3339(text).ok()?.timestamp_nanos_opt();
    let plain = |form| NaiveDateTime::parse_from_str(text, form).ok();
    let local = plain("%Y-%m-%d %H:%M:%S%.f").or_else(|| plain("%Y-%m-%dT%H:%M:%S%.f"));
    local.and_then(|time| time.and_utc().timestamp_nanos_opt()).or_else(zoned)
}

#[cfg(test)]
mod tests {
    use super::{TraceError, read_arrivals, read_requests};
    use std::io::Write as _;

    fn read(text: &str, requests: u32) -> Result<Vec<u64>, TraceError> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("it is written");
        read_arrivals(file.path(), requests)
    }

    #[test]
    fn seconds_and_dates_become_nanoseconds_in_order_of_time() {
        let seconds = "id,Time\na,2.5\nb, 1 \nc,7\n";
        assert_eq!(read(seconds, 2).expect("a trace"), [0, 1_500_000_000]);
        let dates = "TIMESTAMP,tokens\n2023-11-16 18:17:03.9799600,1\n2023-11-16T18:17:04.0319600,2\n2023-11-16T18:17:05.03196Z,2\n";
        assert_eq!(read(dates, 3).expect("a trace"), [0, 52_000_000, 1_052_000_000]);
    }

    #[test]
    fn lengths_stay_with_their_requests() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n3,7,2\n1,5,0\n1,6,9\n";
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("it is written");
        let (times, lengths) = read_requests(file.path(), 3).expect("a trace");
        assert_eq!(times, [0, 0, 2_000_000_000]);
        let lengths: Vec<_> = lengths.iter().map(|l| (l.prompt, l.generated)).collect();
        assert_eq!(lengths, [(5, 1), (6, 9), (7, 2)]);
        for (text, words) in [
            ("time,ContextTokens\n1,2\n", "no columns of prompt and generated tokens"),
            ("time,ContextTokens,GeneratedTokens\n1,2,-3\n", "line 2 of"),
        ] {
            let mut file = tempfile::NamedTempFile::new().expect("a file");
            file.write_all(text.as_bytes()).expect("it is written");
            let error = read_requests(file.path(), 1).expect_err(text).to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_place() {
        for (text, words) in [
            ("", "no column of times"),
            ("when,tokens\n1,2\n", "name one of its columns timestamp"),
            ("time\n1\nsoon\n", "line 3 of"),
            ("time\n1\n1e300\n", "`1e300` is no time"),
            ("time\nNaN\n", "`NaN` is no time"),
            ("time,tokens\n1\n", "cannot read"),
            ("time\n1\n2\n", "has 2 arrivals, the run has 3 requests"),
        ] {
            let error = read(text, 3).expect_err(text).to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }
}

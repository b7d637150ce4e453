//! `trace.json`: what happened when, in the format of Chrome's trace viewer, which Perfetto opens.
//!
//! A JSON array of events, one a line. A run that was killed leaves an array without its end, which both viewers read.

use super::ResultsError;
use serde::Serialize;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

/// Events of a trace, at most; what comes after them is counted and left out.
const EVENTS_MAX: u64 = 2_000_000;

/// Where an event is drawn: a process of the viewer and a row in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Track {
    /// 0 is the coordinator, n + 1 is node n.
    pub process: u32,
    /// Of the process.
    pub row: u32,
}

/// Writes a trace while the run goes on.
#[derive(Debug)]
pub struct TraceWriter {
    path: PathBuf,
    file: BufWriter<File>,
    written: u64,
    dropped: u64,
}

/// One event as the format has it; times in µs.
#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    cat: &'a str,
    ph: &'a str,
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    pid: u32,
    tid: u32,
    #[serde(skip_serializing_if = "Value::is_null")]
    args: Value,
}

impl TraceWriter {
    /// Starts the file.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: PathBuf) -> Result<Self, ResultsError> {
        let failed = |source: std::io::Error| ResultsError::Write {
            file: path.clone(),
            source: source.into(),
        };
        let mut file = BufWriter::new(File::create(&path).map_err(failed)?);
        file.write_all(b"[\n").map_err(failed)?;
        Ok(Self { path, file, written: 0, dropped: 0 })
    }

    /// Names a process and a row.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn name(&mut self, track: Track, process: &str, row: &str) -> Result<(), ResultsError> {
        for (what, name) in [("process_name", process), ("thread_name", row)] {
            self.meta(track, what, &json!({"name": name}))?;
        }
        Ok(())
    }

    /// Something that took from one time to another, ns.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn slice(
        &mut self,
        track: Track,
        name: &str,
        (from_ns, to_ns): (u64, u64),
        args: Value,
    ) -> Result<(), ResultsError> {
        let dur = Some(micros(to_ns.saturating_sub(from_ns)));
        self.event(track, ("stage", name), ("X", from_ns), (dur, None), args)
    }

    /// Something of which many go on at once, such as a request.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn span(
        &mut self,
        track: Track,
        name: &str,
        (from_ns, to_ns): (u64, u64),
        id: u64,
        args: Value,
    ) -> Result<(), ResultsError> {
        self.event(track, ("request", name), ("b", from_ns), (None, Some(id)), args)?;
        self.event(track, ("request", name), ("e", to_ns), (None, Some(id)), Value::Null)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> Result<(), ResultsError> {
        let end = json!({"events": self.written, "left_out": self.dropped});
        let last = Event {
            name: "trace_ended",
            cat: "__metadata",
            ph: "M",
            ts: 0.0,
            dur: None,
            id: None,
            pid: 0,
            tid: 0,
            args: end,
        };
        let line = serde_json::to_string(&last).expect("plain data");
        let written = self.file.write_all(line.as_bytes());
        let written = written.and_then(|()| self.file.write_all(b"\n]\n"));
        written.and_then(|()| self.file.flush()).map_err(|error| self.failed(error))
    }

    fn meta(&mut self, track: Track, name: &str, args: &Value) -> Result<(), ResultsError> {
        self.event(track, ("__metadata", name), ("M", 0), (None, None), args.clone())
    }

    fn event(
        &mut self,
        Track { process, row }: Track,
        (cat, name): (&str, &str),
        (ph, at_ns): (&str, u64),
        (dur, id): (Option<f64>, Option<u64>),
        args: Value,
    ) -> Result<(), ResultsError> {
        if self.written >= EVENTS_MAX {
            self.dropped += 1;
            return Ok(());
        }
        self.written += 1;
        let ts = micros(at_ns);
        let event = Event { name, cat, ph, ts, dur, id, pid: process, tid: row, args };
        let mut line = serde_json::to_vec(&event).expect("plain data");
        line.extend_from_slice(b",\n");
        self.file.write_all(&line).map_err(|error| self.failed(error))
    }

    fn failed(&self, source: std::io::Error) -> ResultsError {
        ResultsError::Write { file: self.path.clone(), source: source.into() }
    }
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}

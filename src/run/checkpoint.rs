//! Checkpoints: what a run leaves at the end of a batch or step, and how it goes on from that.
//!
//! A checkpoint is a cut through the whole run between two batches or steps: the world's memory, the
//! requests under way, the sums of the record, and the run's clock. Batches are made up by the seed, so
//! that what comes after the cut is the same bits again.

use super::decode::Begun;
use super::record::{NodeLoadTotals, RequestSums, Sums};
use super::serve::Gate;
use crate::dispatch::Served;
use crate::measure::Clock;
use crate::measure::clock::{at_unix_ns, unix_ns};
use crate::results::checkpoint::{CheckpointWriter, Cut, Latest, RunIdentity};
use crate::results::{ResultsError, RunDir};
use crate::source::Sequences;
use agents::ids::RequestId;
use agents::precision::WidthDecision;
use agents::round::{Arena, ArenaMemory};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

/// Rows that wait for a checkpoint because the disk is slow, at most: then serving waits.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// Requests that have begun and not ended.
pub(super) type BegunRequests = BTreeMap<RequestId, Begun>;

/// The end of a batch or step, as its loop sees it.
pub(super) struct Boundary<'a> {
    /// Batches or steps done.
    pub(super) steps_done: usize,
    /// Whether they are all.
    pub(super) is_last: bool,
    /// The run's.
    pub(super) clock: &'a Clock,
    pub(super) arena: &'a Arena,
    /// Who is served, where batches are.
    pub(super) gate: Option<&'a Gate>,
    /// Requests under way, where answers are decoded.
    pub(super) decoding: Option<(&'a BegunRequests, &'a Sequences)>,
    /// Widths that were decided and are not in force yet.
    pub(super) decided: Option<&'a WidthDecision>,
    /// What the nodes have done so far.
    pub(super) served: &'a dyn Fn() -> Served,
}

/// What serving goes on from.
#[derive(Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) steps_done: usize,
    /// On the run's clock, as the two below.
    pub(super) now_ns: u64,
    pub(super) serving_from_ns: u64,
    /// Wall-clock time of the run's start, ns since 1970.
    started_unix_ns: u64,
}

impl Position {
    pub(super) fn started_at(&self) -> SystemTime {
        at_unix_ns(self.started_unix_ns)
    }
}

/// The sums of a record.
pub(super) type AllSums = (Sums, NodeLoadTotals, RequestSums);

/// A checkpoint, decoded.
#[derive(Deserialize)]
pub(super) struct State {
    pub(super) position: Position,
    pub(super) arena: ArenaMemory,
    pub(super) gate: Option<Gate>,
    pub(super) decoding: Option<(BegunRequests, Sequences)>,
    pub(super) decided: Option<WidthDecision>,
    /// What the nodes had done.
    pub(super) served: Served,
    pub(super) sums: AllSums,
}

/// The same by reference: a struct and its fields are stored alike.
#[derive(Serialize)]
struct StateRef<'a> {
    position: Position,
    arena: ArenaMemory,
    gate: Option<&'a Gate>,
    decoding: Option<(&'a BegunRequests, &'a Sequences)>,
    decided: Option<&'a WidthDecision>,
    served: Served,
    sums: (&'a Sums, &'a NodeLoadTotals, &'a RequestSums),
}

impl State {
    /// # Errors
    /// The checkpoint is whole and still makes no sense: it was written by another nashflock that
    /// states the same layout.
    pub(super) fn decode(latest: &Latest, file: PathBuf) -> Result<Self, ResultsError> {
        postcard::from_bytes(latest.state()).map_err(|error| ResultsError::Malformed {
            file,
            reason: format!("the state of its newest checkpoint does not decode: {error}"),
        })
    }
}

/// When checkpoints are due, and who writes them.
pub(super) struct Checkpoints {
    every_rounds: u64,
    rounds: u64,
    writer: CheckpointWriter,
    started_unix_ns: u64,
    /// Of parts of the run before this one.
    earlier: Served,
}

impl Checkpoints {
    /// None where the scenario wants none.
    ///
    /// # Errors
    /// The files cannot be made.
    pub(super) fn start(
        every_rounds: u32,
        (dir, run): (&RunDir, RunIdentity),
        from: Option<&Latest>,
        (started_unix_ns, earlier): (u64, Served),
    ) -> Result<Option<Self>, ResultsError> {
        if every_rounds == 0 {
            return Ok(None);
        }
        let writer = CheckpointWriter::start(dir, run, from)?;
        let every_rounds = u64::from(every_rounds);
        Ok(Some(Self { every_rounds, rounds: 0, writer, started_unix_ns, earlier }))
    }

    /// A round was played.
    pub(super) fn round(&mut self) {
        self.rounds += 1;
    }

    /// Whether this is where the next one is cut. It waits while the one before is being written.
    pub(super) fn is_due(&self, at: &Boundary<'_>, waiting_bytes: usize) -> bool {
        let is_time = self.rounds >= self.every_rounds;
        let can = self.writer.is_free() || waiting_bytes > WAITING_BYTES_MAX;
        at.is_last || (is_time && can)
    }

    /// Hands a checkpoint to the writer.
    ///
    /// # Errors
    /// The one before could not be written.
    pub(super) fn cut(
        &mut self,
        at: &Boundary<'_>,
        rows: Vec<u8>,
        sums: (&Sums, &NodeLoadTotals, &RequestSums),
    ) -> Result<(), ResultsError> {
        self.rounds = 0;
        let state = StateRef {
            position: Position {
                steps_done: at.steps_done,
                now_ns: at.clock.now_ns(),
                serving_from_ns: sums.2.serving_from_ns(),
                started_unix_ns: self.started_unix_ns,
            },
            arena: at.arena.memory(),
            gate: at.gate,
            decoding: at.decoding,
            decided: at.decided,
            served: (at.served)().after(&self.earlier),
            sums,
        };
        let state = postcard::to_stdvec(&state).expect("a state is plain data");
        self.writer.write(Cut { rows, state, written_unix_ns: unix_ns(at.clock.wall_now()) })
    }

    /// Waits for the checkpoint under way.
    ///
    /// # Errors
    /// It could not be written.
    pub(super) fn finish(self) -> Result<(), ResultsError> {
        self.writer.finish()
    }
}

//! Finds the newest checkpoint that is whole.

use super::{
    CHECKPOINT_VERSION, Head, LOG, LoggedRow, MAGIC, PREAMBLE_BYTES, REQUEST, ROUND, ROW_BYTES_MAX,
    RunIdentity, hash_of, state_file,
};
use crate::results::{ResultsError, RunDir};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// Why a run cannot go on from its checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Written by a nashflock with another layout.
    #[error("{} has layout {found} and this nashflock goes on from layout {known}: use the nashflock that the run was started with, or start over with `nashflock replay`", file.display())]
    OtherLayout {
        /// The file.
        file: PathBuf,
        /// Its layout.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Of another run.
    #[error("{} is of run {} and not of run {}, which manifest.json names: put back the files of this run, or start over with `nashflock replay`", file.display(), found.run_id, expected.run_id)]
    OtherRun {
        /// The file.
        file: PathBuf,
        /// What it says.
        found: RunIdentity,
        /// What the manifest says.
        expected: RunIdentity,
    },
    /// There are some, and none is whole.
    #[error("no checkpoint is whole ({0}): start over with `nashflock replay`")]
    AllDamaged(String),
    /// The disk.
    #[error(transparent)]
    Results(#[from] ResultsError),
}

/// A checkpoint that is whole.
#[derive(Debug)]
pub struct Latest {
    head: Head,
    hasher: blake3::Hasher,
    log: PathBuf,
    state: Vec<u8>,
    passed_over: Option<String>,
}

impl Latest {
    /// Everything but the rows.
    #[must_use]
    pub fn state(&self) -> &[u8] {
        &self.state
    }

    /// Wall-clock time at which it was written, ns since 1970.
    #[must_use]
    pub fn written_unix_ns(&self) -> u64 {
        self.head.written_unix_ns
    }

    /// Why a newer one was passed over, if one was.
    #[must_use]
    pub fn passed_over(&self) -> Option<&str> {
        self.passed_over.as_deref()
    }

    /// Its rows, in the order they were written.
    ///
    /// # Errors
    /// The log cannot be read, a row does not decode, or `take` fails.
    pub fn rows(
        &self,
        mut take: impl FnMut(LoggedRow) -> Result<(), ResultsError>,
    ) -> Result<(), ResultsError> {
        let read = |source| ResultsError::Read { file: self.log.clone(), source };
        let malformed = |reason: String| ResultsError::Malformed { file: self.log.clone(), reason };
        let file = File::open(&self.log).map_err(read)?;
        let mut rows = BufReader::new(file).take(self.head.log_bytes);
        let mut row = Vec::new();
        while rows.limit() > 0 {
            let mut lead = [0; 5];
            rows.read_exact(&mut lead).map_err(read)?;
            let bytes = u32::from_le_bytes([lead[1], lead[2], lead[3], lead[4]]);
            if bytes > ROW_BYTES_MAX {
                return Err(malformed(format!("a row of {bytes} bytes")));
            }
            row.resize(bytes as usize, 0);
            rows.read_exact(&mut row).map_err(read)?;
            let decoded = match lead[0] {
                ROUND => postcard::from_bytes(&row).map(LoggedRow::Round),
                REQUEST => postcard::from_bytes(&row).map(LoggedRow::Request),
                table => return Err(malformed(format!("a row of table {table}"))),
            };
            take(decoded.map_err(|error| malformed(error.to_string()))?)?;
        }
        Ok(())
    }

    /// Where the log goes on: its length, its hash and the checkpoint's number.
    pub(super) fn goes_on(&self) -> (u64, blake3::Hasher, u64) {
        (self.head.log_bytes, self.hasher.clone(), self.head.sequence)
    }
}

/// The newest checkpoint of a run that is whole; none where none was written.
///
/// # Errors
/// They are of another layout or run, all are damaged, or the disk cannot be read.
pub fn latest(dir: &RunDir, run: &RunIdentity) -> Result<Option<Latest>, CheckpointError> {
    let log = dir.path().join(LOG);
    let (mut whole, mut damaged) = (Vec::new(), Vec::new());
    for turn in 0..2 {
        let file = dir.path().join(state_file(turn));
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(ResultsError::Read { file, source }.into()),
        };
        match state_of(&file, &bytes)? {
            Ok((head, _)) if head.run != *run => {
                let (found, expected) = (head.run, run.clone());
                return Err(CheckpointError::OtherRun { file, found, expected });
            }
            Ok(found) => whole.push(found),
            Err(reason) => damaged.push(reason),
        }
    }
    whole.sort_by_key(|(head, _)| std::cmp::Reverse(head.sequence));
    for (head, state) in whole {
        match log_prefix(&log, &head) {
            Ok(hasher) => {
                let passed_over = (!damaged.is_empty()).then(|| damaged.join("; "));
                return Ok(Some(Latest { head, hasher, log, state, passed_over }));
            }
            Err(reason) => damaged.push(reason),
        }
    }
    if damaged.is_empty() { Ok(None) } else { Err(CheckpointError::AllDamaged(damaged.join("; "))) }
}

/// Head and state, or why the file is damaged.
fn state_of(file: &Path, bytes: &[u8]) -> Result<Result<(Head, Vec<u8>), String>, CheckpointError> {
    let damaged = |what: &str| Ok(Err(format!("{} {what}", file.display())));
    let Some((preamble, body)) = bytes.split_at_checked(PREAMBLE_BYTES) else {
        return damaged("is cut short");
    };
    let found = u32::from_le_bytes([preamble[8], preamble[9], preamble[10], preamble[11]]);
    if preamble[..8] != MAGIC[..] || *hash_of(found, body).as_bytes() != preamble[12..] {
        return damaged("does not have the hash that it states");
    }
    if found != CHECKPOINT_VERSION {
        let (file, known) = (file.to_owned(), CHECKPOINT_VERSION);
        return Err(CheckpointError::OtherLayout { file, found, known });
    }
    match postcard::take_from_bytes::<Head>(body) {
        Ok((head, state)) => Ok(Ok((head, state.to_vec()))),
        Err(_) => damaged("has no head"),
    }
}

/// The hash of the log up to the length that a checkpoint names, or why it is not the one.
fn log_prefix(log: &Path, head: &Head) -> Result<blake3::Hasher, String> {
    let name = log.display();
    let mut hasher = blake3::Hasher::new();
    let file = File::open(log).map_err(|error| format!("{name} cannot be read: {error}"))?;
    hasher
        .update_reader(file.take(head.log_bytes))
        .map_err(|error| format!("{name} cannot be read: {error}"))?;
    if hasher.count() != head.log_bytes {
        return Err(format!("{name} has {} of {} bytes", hasher.count(), head.log_bytes));
    }
    if hasher.finalize() != blake3::Hash::from(head.log_blake3) {
        return Err(format!(
            "{name} does not have the hash that checkpoint {} states",
            head.sequence
        ));
    }
    Ok(hasher)
}

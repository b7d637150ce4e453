//! `checkpoint/`: what a run that was cut goes on from.
//!
//! Two state files take turns, so that the one before is whole while one is written; the rows of both
//! tables so far stand in a log that only grows. A state file names the length and the BLAKE3 of the log that
//! it belongs with: what stands beyond was written after it and is cut off when the run goes on.

mod read;
mod writer;

pub use read::{CheckpointError, Latest, latest};
pub use writer::{CheckpointWriter, Cut};

use super::{RequestRow, RoundRow};
use serde::{Deserialize, Serialize};

/// The layout of state files and log. One of another version is refused.
pub const CHECKPOINT_VERSION: u32 = 2;

const FOLDER: &str = "checkpoint";
const LOG: &str = "checkpoint/rows.log";
const MAGIC: &[u8; 8] = b"NFLCHKPT";
/// Magic, version and hash.
const PREAMBLE_BYTES: usize = 8 + 4 + 32;

/// The file of a checkpoint: those of even and of odd sequence take turns.
fn state_file(sequence: u64) -> String {
    format!("{FOLDER}/{}.state", sequence % 2)
}

/// Which run a checkpoint is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// Of the manifest.
    pub run_id: String,
    /// BLAKE3 of the resolved scenario, hex.
    pub scenario_blake3: String,
}

/// What a state file says before the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    run: RunIdentity,
    /// 1 for the first checkpoint of a run.
    sequence: u64,
    /// Wall-clock time, ns since 1970.
    written_unix_ns: u64,
    log_bytes: u64,
    log_blake3: [u8; 32],
}

/// A row of one of the tables.
#[derive(Clone, Debug, PartialEq)]
pub enum LoggedRow {
    /// Of `rounds`.
    Round(RoundRow),
    /// Of `requests`.
    Request(RequestRow),
}

/// Rows as the log holds them: which table, length and the row.
#[derive(Debug, Default)]
pub struct RowLog(Vec<u8>);

const ROUND: u8 = 0;
const REQUEST: u8 = 1;
/// Longer ones are damaged: a row has twenty numbers and a name.
const ROW_BYTES_MAX: u32 = 1 << 16;

impl RowLog {
    /// Appends a row of `rounds`.
    pub fn round(&mut self, row: &RoundRow) {
        self.append(ROUND, row);
    }

    /// Appends a row of `requests`.
    pub fn request(&mut self, row: &RequestRow) {
        self.append(REQUEST, row);
    }

    /// Takes what was appended.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    /// Bytes appended.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    fn append(&mut self, table: u8, row: &impl Serialize) {
        let start = self.0.len();
        self.0.extend_from_slice(&[table, 0, 0, 0, 0]);
        let log = std::mem::take(&mut self.0);
        self.0 = postcard::to_extend(row, log).expect("a row is plain data and memory grows");
        let bytes = u32::try_from(self.0.len() - start - 5).expect("a row is short");
        self.0[start + 1..start + 5].copy_from_slice(&bytes.to_le_bytes());
    }
}

fn hash_of(version: u32, body: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(MAGIC).update(&version.to_le_bytes()).update(body).finalize()
}

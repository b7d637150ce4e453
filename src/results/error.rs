//! What can go wrong with a run directory.

use std::error::Error;
use std::io;
use std::path::PathBuf;

/// Why a run directory cannot be made, written or read.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The directory has entries.
    #[error("{} exists and is not empty: choose another --out, or move it away first", path.display())]
    NotEmpty {
        /// The directory asked for.
        path: PathBuf,
    },
    /// Something else has the name.
    #[error("{} exists and is not a directory: choose another --out", path.display())]
    NotADirectory {
        /// The directory asked for.
        path: PathBuf,
    },
    /// The directory cannot be made, listed or written to.
    #[error("cannot write to {}: {source}; choose another --out, or check its permissions and the free space", path.display())]
    NotWritable {
        /// The directory asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be written in full.
    #[error("cannot write {}: {source}; what was written before is kept", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// What the system or the encoder said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The scenario is not the one that was run.
    #[error("{} is not the scenario that the run was started with (BLAKE3 {found}, and manifest.json has {expected}): put it back, or run it as a new run", file.display())]
    OtherScenario {
        /// The file.
        file: PathBuf,
        /// Its hash.
        found: String,
        /// The hash in the manifest.
        expected: String,
    },
    /// Another process has the directory.
    #[error("{} is in use: the run that writes it goes on; wait for it, or end it first", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error("cannot read {}: {source}; is this a run directory?", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file was read and makes no sense.
    #[error("{} is damaged or was not written by nashflock: {reason}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A file of a later nashflock.
    #[error("{} has schema version {found}, this nashflock reads up to {known}: use a newer nashflock", file.display())]
    TooNew {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
        /// The newest we read.
        known: u32,
    },
}

impl ResultsError {
    /// Whether the directory was refused before anything was written, which is the user's to mend
    /// (exit code 2).
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }
}

//! What can go wrong with a sweep and its directory.

use std::path::{Path, PathBuf};

use crate::results::ResultsError;

/// Why a sweep cannot be started, gone on with, or read.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// A file of the directory.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The system does not let the sweep hear signals, or has no threads.
    #[error("cannot start: {0}")]
    System(std::io::Error),
    /// The directory is of another sweep.
    #[error("{} holds another sweep (its scenario has BLAKE3 {found}, this one {expected}): choose another --out", path.display())]
    OtherSweep {
        /// The directory.
        path: PathBuf,
        /// Of the scenario there.
        found: String,
        /// Of the scenario that is to be played.
        expected: String,
    },
    /// The shard was started before.
    #[error("shard {shard} of {} was started before: go on with `nashflock resume {}`", path.display(), path.display())]
    Started {
        /// The directory.
        path: PathBuf,
        /// The shard, as `1-of-4`.
        shard: String,
    },
    /// Nothing is left to do.
    #[error("{} is complete: there is nothing to resume{}", path.display(), if *failed > 0 { "; `--failed` plays failed runs again" } else { "" })]
    Complete {
        /// The directory.
        path: PathBuf,
        /// Runs of it that failed.
        failed: u64,
    },
    /// Directories to merge are of different sweeps, or say different things of a run.
    #[error("{0}")]
    Unlike(String),
}

impl SweepError {
    /// Whether the input is at fault, and not the machine.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Results(error) => error.is_bad_input(),
            Self::System(_) => false,
            _ => true,
        }
    }
}

/// What the system says of a file that cannot be read.
pub(super) fn unreadable(file: &Path) -> impl Fn(std::io::Error) -> SweepError + '_ {
    |source| ResultsError::Read { file: file.to_owned(), source }.into()
}

/// What the system says of a file that cannot be written.
pub(super) fn unwritable(file: &Path) -> impl Fn(std::io::Error) -> SweepError + '_ {
    |error| ResultsError::Write { file: file.to_owned(), source: error.into() }.into()
}

/// What a reader says of a file that makes no sense.
pub(super) fn malformed(file: &Path, reason: impl ToString) -> SweepError {
    ResultsError::Malformed { file: file.to_owned(), reason: reason.to_string() }.into()
}

//! Going on with a run that was cut.

use super::checkpoint::State;
use super::serve::GoingOn;
use crate::measure::Clock;
use crate::measure::clock::{at_unix_ns, rfc3339_utc};
use crate::results::checkpoint::{CheckpointError, Latest, latest};
use crate::results::{
    FileRecord, Machine, Manifest, ResultsError, Resumption, RunDir, RunLock, Source,
};
use std::path::{Path, PathBuf};

/// A run that was cut, and can go on.
#[derive(Debug)]
pub struct CutRun {
    pub(super) dir: RunDir,
    pub(super) lock: RunLock,
    pub(super) manifest: Manifest,
    /// None where no checkpoint was written: it starts over.
    latest: Option<Latest>,
}

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The directory.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The checkpoints.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// It has come to its end.
    #[error("{} is complete (exit code {exit_code}): there is nothing to resume; `nashflock replay` plays it again", path.display())]
    Complete {
        /// The directory.
        path: PathBuf,
        /// How it ended.
        exit_code: u8,
    },
    /// Files that it read are not what they were.
    #[error("what the run read is not what it was, so it cannot go on: {0}")]
    OtherInputs(String),
}

impl ResumeError {
    /// Whether the input is at fault, and not the machine.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Results(error) | Self::Checkpoint(CheckpointError::Results(error)) => {
                error.is_bad_input()
            }
            _ => true,
        }
    }
}

impl CutRun {
    /// Takes the directory of a run that was cut: killed, interrupted, or ended by a failure.
    ///
    /// # Errors
    /// It is complete or still written to, what it read has changed, its checkpoints are of another run, or
    /// none is whole.
    pub fn open(path: &Path) -> Result<Self, ResumeError> {
        let dir = RunDir::open(path)?;
        let manifest = dir.read_manifest()?;
        if let Some(exit_code) = manifest.exit_code.filter(|_| manifest.is_complete()) {
            return Err(ResumeError::Complete { path: path.to_owned(), exit_code });
        }
        let lock = dir.lock()?;
        dir.check_scenario(&manifest)?;
        let changed = |record: &FileRecord| record.change(Path::new(&record.path));
        let changed: Vec<String> = manifest.inputs.iter().filter_map(changed).collect();
        if !changed.is_empty() {
            return Err(ResumeError::OtherInputs(changed.join("; ")));
        }
        let latest = latest(&dir, &manifest.identity())?;
        Ok(Self { dir, lock, manifest, latest })
    }

    /// The scenario that it plays, resolved.
    #[must_use]
    pub fn scenario(&self) -> PathBuf {
        self.dir.path().join("scenario.toml")
    }

    /// Where it goes on, and what may keep it from the bits of a whole run.
    #[must_use]
    pub fn says(&self) -> String {
        let mut said = match &self.latest {
            None => "no checkpoint was written: the run starts over".to_owned(),
            Some(latest) => {
                let at = rfc3339_utc(at_unix_ns(latest.written_unix_ns()));
                format!("going on from the checkpoint of {at}")
            }
        };
        if let Some(why) = self.latest.as_ref().and_then(Latest::passed_over) {
            said += &format!("; a newer checkpoint is damaged and passed over ({why})");
        }
        let notes = self.manifest.unlike_this_process();
        notes.iter().for_each(|note| said += &format!("\nnote: {note}"));
        said
    }

    /// What it goes on from, decoded.
    pub(super) fn state(&self) -> Result<Option<State>, ResultsError> {
        let folder = || self.dir.path().join("checkpoint");
        self.latest.as_ref().map(|latest| State::decode(latest, folder())).transpose()
    }

    /// How the manifest lists it.
    pub(super) fn resumption(
        &self,
        state: Option<&State>,
        command: Vec<String>,
        clock: &Clock,
    ) -> Resumption {
        let latest = self.latest.as_ref();
        Resumption {
            resumed_at: rfc3339_utc(clock.started_at()),
            checkpoint_at: latest.map(|latest| rfc3339_utc(at_unix_ns(latest.written_unix_ns()))),
            steps_kept: state.map_or(0, |state| state.position.steps_done as u64),
            passed_over: latest.and_then(|latest| latest.passed_over()).map(str::to_owned),
            command,
            source: Source::of_this_build(),
            machine: Machine::detect(),
        }
    }

    pub(super) fn latest(self) -> (RunDir, RunLock, Manifest, Option<Latest>) {
        (self.dir, self.lock, self.manifest, self.latest)
    }
}

/// Where serving goes on, of a checkpoint of this time.
pub(super) fn going_on(state: State, latest: &Latest) -> (GoingOn, Parts) {
    let State { position, arena, gate, decoding, decided, served, sums } = state;
    let written_unix_ns = latest.written_unix_ns();
    (GoingOn { position, written_unix_ns, gate, decoding, decided }, Parts { arena, served, sums })
}

/// What a checkpoint holds beside where serving goes on.
pub(super) struct Parts {
    pub(super) arena: agents::round::ArenaMemory,
    pub(super) served: crate::dispatch::Served,
    pub(super) sums: super::checkpoint::AllSums,
}

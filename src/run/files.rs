//! The files of a run: written at its start and at its end, however it ends.

use super::interrupt::Interrupted;
use super::record::Recorder;
use super::resume::CutRun;
use super::serve::ServeError;
use super::{RunEnd, RunSettings, plan};
use crate::measure::Clock;
use crate::results::checkpoint::Latest;
use crate::results::{
    Hashing, Manifest, Memory, ResultsError, ResumeFigures, Resumption, RunDir, RunLock, RunStart,
    Status, Summary,
};
use crate::scenario::{self, Scenario};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// The files of a run that are written at its start and again at its end.
pub(super) struct RunFiles {
    pub(super) dir: RunDir,
    /// Held to the end.
    _lock: RunLock,
    pub(super) manifest: Manifest,
    pub(super) summary: Summary,
    /// Of its first part.
    pub(super) started_at: SystemTime,
    /// Of what the run reads, until it is known.
    pub(super) hashing: Option<Hashing>,
}

impl RunFiles {
    pub(super) fn open(
        dir: RunDir,
        scenario: &Scenario,
        settings: &RunSettings<'_>,
        clock: &Clock,
    ) -> Result<Self, ResultsError> {
        let lock = dir.lock()?;
        let resolved = scenario::resolved(scenario);
        let start = RunStart {
            command: settings.command.clone(),
            scenario: &scenario.name,
            scenario_toml: &resolved,
            seed: scenario.seed,
            threads: scenario.compute.threads,
            nodes: plan::manifest_nodes(scenario),
        };
        let manifest = Manifest::start(start, clock);
        dir.write("scenario.toml", resolved.as_bytes())?;
        dir.write_manifest(&manifest)?;
        Ok(Self::new(dir, lock, manifest, scenario, clock.started_at()))
    }

    /// The files of a run that goes on: none is written yet.
    pub(super) fn reopen(
        cut: CutRun,
        scenario: &Scenario,
        resumption: Resumption,
        clock: &Clock,
    ) -> (Self, Option<Latest>) {
        let (dir, lock, mut manifest, latest) = cut.latest();
        manifest.resume(resumption);
        (Self::new(dir, lock, manifest, scenario, clock.started_at()), latest)
    }

    fn new(
        dir: RunDir,
        lock: RunLock,
        manifest: Manifest,
        scenario: &Scenario,
        started_at: SystemTime,
    ) -> Self {
        let nothing_yet = Memory::new(0, 0, BTreeMap::new());
        let summary = Summary::new(&scenario.name, scenario.seed, nothing_yet);
        Self { dir, _lock: lock, manifest, summary, started_at, hashing: None }
    }

    fn is_resumed(&self) -> bool {
        !self.manifest.resumes.is_empty()
    }

    /// Says in the manifest that the run goes on, where it was cut, and what it read, where that is
    /// hashed by now.
    pub(super) fn begins(&mut self) -> Result<(), ResultsError> {
        let hashing = self.hashing.take_if(|hashing| hashing.is_done());
        let is_hashed = hashing.is_some();
        if let Some(hashing) = hashing {
            self.manifest.inputs = hashing.finish()?;
        }
        let has_news = is_hashed || self.is_resumed();
        if has_news { self.dir.write_manifest(&self.manifest) } else { Ok(()) }
    }

    /// The input was bad and nothing was started: takes a new run's directory away again.
    pub(super) fn discard(self) {
        if !self.is_resumed() {
            self.dir.discard(&["scenario.toml", "manifest.json"]);
        }
    }

    /// Writes everything that is known, whatever ended the run.
    pub(super) fn end(
        mut self,
        recorder: Option<Recorder>,
        mut failure: Option<ServeError>,
        clock: &Clock,
    ) -> RunEnd {
        let has_record = recorder.is_some();
        let resumed = recorder.as_ref().map(Recorder::resumed).unwrap_or_default();
        let count = self.manifest.resumes.len() as u64;
        let Self { dir, manifest, summary, started_at, hashing, .. } = &mut self;
        summary.resumed = (count > 0).then_some(ResumeFigures { count, ..resumed });
        let recorded =
            recorder.map_or(Ok(()), |recorder| recorder.finish(dir, summary, *started_at));
        if let Err(error) = recorded {
            failure.get_or_insert(error.into());
        }
        match hashing.take().map(Hashing::finish) {
            Some(Ok(inputs)) => manifest.inputs = inputs,
            Some(Err(error)) => {
                failure.get_or_insert(error.into());
            }
            None => {}
        }
        (summary.status, summary.status_detail) = status(failure.as_ref());
        if !has_record && count > 0 && failure.is_some() {
            // Nothing was added: what the part before has written is better than nothing.
            return RunEnd { dir: self.dir, summary: self.summary, failure };
        }
        manifest.end(clock, exit_code(summary, failure.as_ref()));
        let mut written = dir
            .write_summary(summary)
            .and_then(|()| dir.write_report_with(manifest.clone()))
            .and_then(|()| {
                manifest.outputs = dir.outputs()?;
                dir.write_manifest(manifest)
            });
        if failure.is_none() {
            written = written.and_then(|()| dir.remove_checkpoints());
        }
        if let Err(error) = written {
            failure.get_or_insert(error.into());
        }
        RunEnd { dir: self.dir, summary: self.summary, failure }
    }
}

/// The exit code of a run that had started.
#[must_use]
pub fn exit_code(summary: &Summary, failure: Option<&ServeError>) -> u8 {
    match failure {
        // 128 + SIGINT, as shells report an interrupted program.
        Some(ServeError::Interrupted(_)) => 130,
        Some(_) => 4,
        None if summary.goals_met() => 0,
        None => 3,
    }
}

fn status(failure: Option<&ServeError>) -> (Status, Option<String>) {
    match failure {
        None => (Status::Complete, None),
        Some(ServeError::Interrupted(Interrupted(signal))) => {
            (Status::Interrupted, Some((*signal).to_owned()))
        }
        Some(error) => (Status::Failed, Some(error.to_string())),
    }
}

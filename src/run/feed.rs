//! The latest snapshot of a run, for any number of listeners, and the pace that they set.

use super::pace::Pace;
use super::timeline::Took;
use super::{Progress, RunEnd};
use crate::results::{SCHEMA_VERSION, Snapshot, SnapshotEnd};
use crate::scenario::Scenario;
use std::sync::Arc;
use tokio::sync::watch;

/// Keeps a run's latest snapshot. A listener that is slow misses some, and delays nobody.
pub struct Feed {
    latest: watch::Sender<Arc<Snapshot>>,
    pace: Pace,
}

impl Feed {
    /// Before a run of `scenario`.
    #[must_use]
    pub fn new(scenario: &Scenario) -> Self {
        let first = Snapshot {
            schema_version: SCHEMA_VERSION,
            scenario: scenario.name.clone(),
            seed: scenario.seed,
            router: scenario.game.router.clone(),
            phase: "starting".to_owned(),
            ..Snapshot::default()
        };
        Self { latest: watch::Sender::new(Arc::new(first)), pace: Pace::default() }
    }

    /// The latest snapshot, now and from now on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.latest.subscribe()
    }

    /// Changes the pace, and tells the listeners.
    pub fn set_pace(&self, change: impl FnOnce(&Pace)) {
        change(&self.pace);
        self.update(|_| {});
    }

    /// Tells the listeners that the run has ended.
    pub fn ended(&self, end: &RunEnd) {
        let summary = &end.summary;
        let end = SnapshotEnd {
            status: summary.status,
            detail: summary.status_detail.clone(),
            results: Some(end.dir.path().display().to_string()),
        };
        self.update(|snapshot| (snapshot.phase, snapshot.end) = ("ended".to_owned(), Some(end)));
    }

    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        self.latest.send_modify(|latest| {
            let latest = Arc::make_mut(latest);
            change(latest);
            latest.pace = self.pace.state();
        });
    }
}

impl Progress for Feed {
    fn phase(&self, name: &str) {
        self.update(|snapshot| name.clone_into(&mut snapshot.phase));
    }

    fn answered(&self, _answered: u64, _requests: u64) {}

    fn wants_snapshots(&self) -> bool {
        true
    }

    fn snapshot(&self, snapshot: &Snapshot) {
        self.update(|latest| {
            let phase = std::mem::take(&mut latest.phase);
            *latest = Snapshot { phase, ..snapshot.clone() };
        });
    }

    fn pace(&self) -> Option<&Pace> {
        Some(&self.pace)
    }
}

/// Several listeners as one; the first that sets a pace sets it.
pub struct Listeners<'a>(pub Vec<&'a dyn Progress>);

impl Progress for Listeners<'_> {
    fn phase(&self, name: &str) {
        self.0.iter().for_each(|listener| listener.phase(name));
    }

    fn answered(&self, answered: u64, requests: u64) {
        self.0.iter().for_each(|listener| listener.answered(answered, requests));
    }

    fn wants_snapshots(&self) -> bool {
        self.0.iter().any(|listener| listener.wants_snapshots())
    }

    fn snapshot(&self, snapshot: &Snapshot) {
        self.0.iter().for_each(|listener| listener.snapshot(snapshot));
    }

    fn wants_times(&self) -> bool {
        self.0.iter().any(|listener| listener.wants_times())
    }

    fn took(&self, took: &Took) {
        self.0.iter().filter(|of| of.wants_times()).for_each(|listener| listener.took(took));
    }

    fn pace(&self) -> Option<&Pace> {
        self.0.iter().find_map(|listener| listener.pace())
    }
}

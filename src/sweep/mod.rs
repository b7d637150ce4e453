//! Sweeps: the runs of an experiment played in this process, a row a run, to a directory that survives a kill.

mod compare;
mod dir;
mod error;
mod estimate;
mod journal;
mod merge;
mod play;
mod points;
mod report;
mod row;
mod status;
mod table;
mod verify;

pub use compare::{FigureDifference, SweepDifferences, compare};
pub use dir::{Shard, SweepDir, SweepHead};
pub use error::SweepError;
pub use estimate::{Estimate, estimate};
pub use merge::merge;
pub use play::PlaySettings;
pub use points::PointRuns;
pub use report::{shown_figures, write_report};
pub use row::{Parameter, Row, target_key};
pub use status::{ShardStatus, status};
pub use verify::{Verified, verify};

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use journal::Journal;
use play::{Played, Player};
use table::Columns;

use crate::run::Interrupts;
use crate::scenario::sweep::{Experiment, Method, OnFailure, Optimize};
use dir::Stage;
use error::unwritable;

/// Hears how a sweep goes.
pub trait SweepProgress: Sync {
    /// So many of a shard's runs have a row, so many of these failed.
    fn played(&self, done: u64, runs: u64, failed: u64);
}

/// How a shard ended.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ShardEnd {
    /// Runs of the shard.
    pub runs: u64,
    /// Those of them with a row.
    pub done: u64,
    /// Rows of runs that failed.
    pub failed: u64,
    /// Rows of runs that missed a goal.
    pub missed_goals: u64,
    /// The first failure that there is a row of.
    pub failure: Option<String>,
    /// Whether the user or the system asked to stop.
    pub interrupted: bool,
}

impl ShardEnd {
    /// Whether each run has a row.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.done == self.runs
    }

    fn count(&mut self, row: &Row) {
        self.done += 1;
        self.missed_goals += u64::from(row.exit_code == 3);
        if !row.is_complete() {
            self.failed += 1;
            let message = row.message.clone().unwrap_or_default();
            self.failure.get_or_insert(format!("run {}: {message}", row.run));
        }
    }
}

/// How a shard is to be played.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Which runs.
    pub shard: Shard,
    /// Runs at a time, at least 1.
    pub jobs: usize,
    /// Whether runs that failed are played again.
    pub failed_again: bool,
}

/// Starts a shard and plays it.
///
/// # Errors
/// It was started before, or files cannot be written. What runs do wrong stands in their rows.
pub fn start(
    dir: &SweepDir,
    experiment: &Experiment,
    order: Order,
    settings: &PlaySettings<'_>,
    progress: &dyn SweepProgress,
) -> Result<ShardEnd, SweepError> {
    let shard = order.shard;
    if dir.stages()?.iter().any(|(started, _)| *started == shard) {
        let (path, shard) = (dir.path().to_owned(), shard.to_string());
        return Err(SweepError::Started { path, shard });
    }
    if experiment.sweep().method == Method::Optimize && shard != Shard::whole() {
        let why =
            "an optimiser asks for points in view of all earlier ones: play it without --shard";
        return Err(SweepError::Unlike(why.to_owned()));
    }
    let journal = Journal::create(&dir.journal(shard), &dir.journal_head(shard))?;
    play((dir, experiment), order, (journal, Ledger::of(experiment, shard)), settings, progress)
}

/// Goes on with a shard: plays the runs that have no row.
///
/// # Errors
/// There is nothing to do, another process is at it, or files cannot be written.
pub fn resume(
    dir: &SweepDir,
    experiment: &Experiment,
    order: Order,
    settings: &PlaySettings<'_>,
    progress: &dyn SweepProgress,
) -> Result<ShardEnd, SweepError> {
    let shard = order.shard;
    let mut ledger = Ledger::of(experiment, shard);
    let is_kept = |row: &Row| row.is_complete() || !order.failed_again;
    let path = dir.journal(shard);
    let is_done = dir.stages()?.contains(&(shard, Stage::Done));
    if path.exists() {
        // Not while another process is at it.
        drop(Journal::reopen(&path, &dir.journal_head(shard), |_, _| {})?);
    }
    if is_done || order.failed_again {
        let failed =
            rows_of(dir, shard)?.filter(|row| row.as_ref().is_ok_and(|row| !row.is_complete()));
        let failed = failed.count() as u64;
        if is_done && (failed == 0 || !order.failed_again) {
            return Err(SweepError::Complete { path: dir.path().to_owned(), failed });
        }
        rewrite(dir, shard, is_kept)?;
    }
    let journal = Journal::reopen(&path, &dir.journal_head(shard), |_, row| ledger.take(&row))?;
    play((dir, experiment), order, (journal, ledger), settings, progress)
}

fn rows_of(
    dir: &SweepDir,
    shard: Shard,
) -> Result<Box<dyn Iterator<Item = Result<Row, SweepError>>>, SweepError> {
    Ok(Box::new(
        dir.rows()?.filter(move |row| row.as_ref().map_or(true, |row| shard.holds(row.run))),
    ))
}

/// Writes the journal of a shard anew, from the rows that are kept.
fn rewrite(dir: &SweepDir, shard: Shard, is_kept: impl Fn(&Row) -> bool) -> Result<(), SweepError> {
    let path = dir.journal(shard);
    let partial = path.with_extension("journal.partial");
    let _ = fs::remove_file(&partial);
    let mut journal = Journal::create(&partial, &dir.journal_head(shard))?;
    for row in rows_of(dir, shard)? {
        let row = row?;
        if is_kept(&row) {
            journal.append(&row)?;
        }
    }
    drop(journal);
    fs::rename(&partial, &path).map_err(unwritable(&path))
}

/// Which runs of a shard have a row, and what is known of them.
struct Ledger {
    shard: Shard,
    /// The next run that may be without a row, and where to stop.
    next: u64,
    until: u64,
    has_row: Vec<bool>,
    end: ShardEnd,
    /// Where an optimiser is at work, its figure of each run that has one.
    sought: BTreeMap<u64, f64>,
    figure: Option<String>,
}

impl Ledger {
    fn of(experiment: &Experiment, shard: Shard) -> Self {
        let runs = experiment.runs();
        let sweep = experiment.sweep();
        let optimize = sweep.optimize.as_ref().filter(|_| sweep.method == Method::Optimize);
        Self {
            shard,
            next: 0,
            until: runs,
            has_row: vec![false; usize::try_from(runs).expect("at most a million")],
            end: ShardEnd { runs: shard.runs(runs), ..ShardEnd::default() },
            sought: BTreeMap::new(),
            figure: optimize.map(|of| of.figure.clone()),
        }
    }

    fn take(&mut self, row: &Row) {
        let at = usize::try_from(row.run).ok().and_then(|run| self.has_row.get_mut(run));
        at.into_iter().for_each(|has| *has = true);
        self.end.count(row);
        let figure = self.figure.as_ref().and_then(|figure| row.figure(figure));
        self.sought.extend(figure.map(|value| (row.run, value)));
    }

    /// A run without a row, which is played from now on.
    fn next(&mut self) -> Option<u64> {
        while self.next < self.until {
            let run = self.next;
            self.next += 1;
            let has_row = usize::try_from(run).is_ok_and(|at| self.has_row[at]);
            if self.shard.holds(run) && !has_row {
                return Some(run);
            }
        }
        None
    }

    /// The mean of what is sought over the runs of a point; no number where one has none.
    fn mean(&self, runs: std::ops::Range<u64>) -> f64 {
        let count = (runs.end - runs.start) as f64;
        runs.map(|run| self.sought.get(&run).copied().unwrap_or(f64::NAN)).sum::<f64>() / count
    }
}

/// What the jobs of a shard share.
struct Desk {
    journal: Journal,
    ledger: Ledger,
    error: Option<SweepError>,
}

/// How the jobs of a shard work.
struct Session<'a> {
    order: Order,
    settings: &'a PlaySettings<'a>,
    progress: &'a dyn SweepProgress,
    scratch: PathBuf,
    desk: Mutex<Desk>,
    stops: AtomicBool,
}

fn play(
    (dir, experiment): (&SweepDir, &Experiment),
    order: Order,
    (journal, ledger): (Journal, Ledger),
    settings: &PlaySettings<'_>,
    progress: &dyn SweepProgress,
) -> Result<ShardEnd, SweepError> {
    let scratch = dir.scratch(order.shard);
    // Of a process that was killed: the journal is locked, so there is no other.
    let _ = fs::remove_dir_all(&scratch);
    progress.played(ledger.end.done, ledger.end.runs, ledger.end.failed);
    let desk = Mutex::new(Desk { journal, ledger, error: None });
    let stops = AtomicBool::new(false);
    let session = Session { order, settings, progress, scratch, desk, stops };
    let signals = Signals::listen()?;
    std::thread::scope(|scope| {
        scope.spawn(|| signals.wait(&session.stops));
        match &experiment.sweep().optimize {
            Some(of) if experiment.sweep().method == Method::Optimize => {
                session.search(experiment.clone(), of);
            }
            _ => session.jobs(experiment),
        }
        signals.done.notify_one();
    });
    let _ = fs::remove_dir_all(&session.scratch);
    let Desk { journal, ledger: Ledger { mut end, .. }, error } =
        session.desk.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = error {
        return Err(error);
    }
    end.interrupted = !end.is_complete() && signals.heard.load(Ordering::Relaxed);
    if end.is_complete() {
        seal(dir, order.shard, &journal)?;
    }
    Ok(end)
}

impl Session<'_> {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.stops.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.stops.store(true, Ordering::Relaxed);
    }

    /// Plays what the ledger lists, so many runs at a time.
    fn jobs(&self, experiment: &Experiment) {
        std::thread::scope(|scope| {
            let job = |job: usize| {
                let scratch = self.scratch.join(job.to_string());
                self.work(Player::new(self.settings, experiment.sweep(), scratch), experiment);
            };
            let others = 1..self.order.jobs.max(1);
            let others: Vec<_> = others.map(|at| scope.spawn(move || job(at))).collect();
            job(0);
            for other in others {
                // A run's own panics are caught: one that is left is a bug here.
                other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
        });
    }

    /// Plays the points that an optimiser asks for, and tells it what they came to. Runs that have a row are not played
    /// again, so that a search that was cut asks for the same points.
    fn search(&self, mut experiment: Experiment, optimize: &Optimize) {
        let seeds = u64::from(experiment.sweep().seeds);
        let axes = experiment.sweep().axis.len();
        let mut optimizer = optimize.optimizer(axes, experiment.seed());
        let mut first = 0;
        while first < experiment.points().count() && !self.is_stopped() {
            let asked = optimizer.ask();
            asked.iter().for_each(|place| experiment.points_mut().ask(place));
            let points = first..first + asked.len() as u64;
            {
                let ledger = &mut self.desk().ledger;
                (ledger.next, ledger.until) = (points.start * seeds, points.end * seeds);
            }
            self.jobs(&experiment);
            let desk = self.desk();
            let mean = |point: u64| desk.ledger.mean(point * seeds..(point + 1) * seeds);
            let costs: Vec<f64> = points.clone().map(|of| optimize.cost(mean(of))).collect();
            optimizer.tell(&asked, &costs);
            first = points.end;
        }
    }

    /// One job: a run after the other, until there is none or something says stop.
    fn work(&self, mut player: Player<'_>, experiment: &Experiment) {
        while !self.is_stopped() {
            let Some(run) = self.desk().ledger.next() else { return };
            let played = player.play(&experiment.run(run));
            let mut desk = self.desk();
            let kept = match played {
                Ok(Played::Interrupted) => return self.stop(),
                Ok(Played::Row(row)) => desk.journal.append(&row).map(|()| row),
                Err(error) => Err(error),
            };
            match kept {
                Ok(row) => {
                    desk.ledger.take(&row);
                    if !row.is_complete() && experiment.sweep().on_failure == OnFailure::FailFast {
                        self.stop();
                    }
                    let end = &desk.ledger.end;
                    self.progress.played(end.done, end.runs, end.failed);
                }
                Err(error) => {
                    desk.error.get_or_insert(error);
                    self.stop();
                }
            }
        }
    }
}

/// Makes the table of a shard that is complete from its journal, in the order of the runs.
fn seal(dir: &SweepDir, shard: Shard, _held: &Journal) -> Result<(), SweepError> {
    let path = dir.journal(shard);
    let (mut places, mut columns) = (Vec::new(), Columns::of(dir.head().keys.clone()));
    journal::scan(&path, |place, row| {
        places.push(place);
        columns.take(&row);
    })?;
    places.sort();
    let head = table_head(dir, shard);
    table::write(&dir.table(shard), &head, &columns, journal::rows_at(&path, places)?)?;
    fs::remove_file(&path).map_err(unwritable(&path))
}

/// What a table says that it is of.
fn table_head(dir: &SweepDir, shard: Shard) -> String {
    let head = dir.head();
    serde_json::json!({
        "name": head.name,
        "scenario_blake3": head.scenario_blake3,
        "shard": shard.to_string(),
    })
    .to_string()
}

/// Hears Ctrl-C and SIGTERM between runs; a run under way hears them itself.
struct Signals {
    runtime: tokio::runtime::Runtime,
    interrupts: Mutex<Interrupts<'static>>,
    done: tokio::sync::Notify,
    heard: AtomicBool,
}

impl Signals {
    fn listen() -> Result<Self, SweepError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(SweepError::System)?;
        let interrupts = runtime.block_on(async { Interrupts::listen() });
        let interrupts = Mutex::new(interrupts.map_err(SweepError::System)?);
        Ok(Self {
            runtime,
            interrupts,
            done: tokio::sync::Notify::new(),
            heard: AtomicBool::new(false),
        })
    }

    fn wait(&self, stops: &AtomicBool) {
        let mut interrupts = self.interrupts.lock().unwrap_or_else(PoisonError::into_inner);
        if self.runtime.block_on(interrupts.or(self.done.notified())).is_err() {
            self.heard.store(true, Ordering::Relaxed);
            stops.store(true, Ordering::Relaxed);
        }
    }
}

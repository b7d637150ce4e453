//! What a sweep will take, from a few of its runs.

use serde::Serialize;

use super::play::{PlaySettings, Played, Player};
use super::{Row, SweepError};
use crate::measure::memory::peak_resident_bytes;
use crate::scenario::file::Source;
use crate::scenario::sweep::{Experiment, Method};

/// What a sweep will take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Runs that were played for it, by their numbers.
    pub trials: Vec<u64>,
    /// Of them those that failed, and why.
    pub failures: Vec<String>,
    /// Time of each trial, s.
    pub trial_s: Vec<f64>,
    /// What is read and made once for all runs, s: by how much the first trial took longer the first time. A trial
    /// that needs parts of its own, such as another width of the experts, has their time in `trial_s`.
    pub once_s: f64,
    /// Mean time of a trial times the runs, over the jobs, s: as if jobs did not slow each other down. `once_s` is added.
    pub total_s: f64,
    /// The same by the fastest and by the slowest trial, s.
    pub total_s_range: (f64, f64),
    /// Peak of this process over all trials, one at a time, bytes; none where the system does not say.
    pub peak_bytes: Option<u64>,
}

/// Plays at most `trials` runs that lie evenly over the sweep, one at a time, and throws them away; none where
/// the user or the system asked to stop.
///
/// # Errors
/// Files cannot be written, or there are no threads.
pub fn estimate(
    experiment: &Experiment,
    (trials, jobs): (u64, usize),
    settings: &PlaySettings<'_>,
) -> Result<Option<Estimate>, SweepError> {
    let runs = experiment.runs();
    let trials = trials.clamp(1, runs);
    let folder = tempfile::tempdir().map_err(SweepError::System)?;
    let mut player = Player::new(settings, experiment.sweep(), folder.path().to_owned());
    // The first and the last run are among them: they are the ends of the first axis.
    let at = |trial| if trials == 1 { 0 } else { trial * (runs - 1) / (trials - 1) };
    let (mut numbers, mut failures, mut trial_s) = (Vec::new(), Vec::new(), Vec::new());
    let mut once_s = 0.0;
    for trial in 0..trials {
        let run = at(trial);
        let planned = if experiment.sweep().method == Method::Optimize {
            // Which points are asked for is not known yet: some along the diagonal.
            let place = (trial as f64 + 0.5) / trials as f64;
            let axes = experiment.sweep().axis.len();
            experiment.run_at(run, experiment.points().placed(&vec![place; axes]))
        } else {
            experiment.run(run)
        };
        let wall_s = |row: &Row| row.measured.get("wall_ns").copied().unwrap_or(0.0) / 1e9;
        let Played::Row(mut row) = player.play(&planned)? else { return Ok(None) };
        let shares = settings.shared.is_some();
        if trial == 0 && shares && matches!(planned.scenario.source, Source::Checkpoint { .. }) {
            let first_s = wall_s(&row);
            let Played::Row(again) = player.play(&planned)? else { return Ok(None) };
            once_s = (first_s - wall_s(&again)).max(0.0);
            row = again;
        }
        numbers.push(run);
        trial_s.push(wall_s(&row));
        if !row.is_complete() {
            failures.push(format!("run {run}: {}", row.message.unwrap_or_default()));
        }
    }
    let total = |of: f64| once_s + of * runs as f64 / jobs.max(1) as f64;
    let mean = trial_s.iter().sum::<f64>() / trial_s.len() as f64;
    let least = trial_s.iter().copied().fold(f64::INFINITY, f64::min);
    let most = trial_s.iter().copied().fold(0.0, f64::max);
    Ok(Some(Estimate {
        trials: numbers,
        failures,
        once_s,
        total_s: total(mean),
        total_s_range: (total(least), total(most)),
        trial_s,
        peak_bytes: peak_resident_bytes(),
    }))
}

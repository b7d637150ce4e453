//! Holds rows of a sweep against repetitions of their runs.

use serde::Serialize;
use serde_json::json;
use toml::Value;

use super::error::SweepError;
use super::play::{PlaySettings, Played, Player};
use super::{Row, SweepDir};
use crate::results::compare::{Difference, differences};
use crate::scenario::sweep::{Experiment, Method, Sweep};

/// What repetitions came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verified {
    /// Runs that were played again, by their numbers.
    pub runs: Vec<u64>,
    /// Those of them that did not end in the same state with the same figures, and what differs.
    pub unlike: Vec<(u64, Vec<Difference>)>,
}

/// Plays at most `sample` rows again that lie evenly over those that are complete, without waiting for arrivals; none
/// where the user or the system asked to stop.
///
/// # Errors
/// A file cannot be read, or there are no threads.
pub fn verify(
    dir: &SweepDir,
    experiment: &Experiment,
    sample: u64,
    settings: &PlaySettings<'_>,
) -> Result<Option<Verified>, SweepError> {
    let mut complete = 0_u64;
    for row in dir.rows()? {
        complete += u64::from(row?.is_complete());
    }
    let sample = sample.clamp(1, complete.max(1));
    // Every `complete / sample`-th, from half of that on.
    let is_drawn = |nth: u64| (nth * sample + sample / 2) % complete < sample;
    let sweep = Sweep { at_once: true, ..experiment.sweep().clone() };
    let folder = tempfile::tempdir().map_err(SweepError::System)?;
    let mut player = Player::new(settings, &sweep, folder.path().to_owned());
    let mut verified = Verified { runs: Vec::new(), unlike: Vec::new() };
    let rows = dir.rows()?.filter(|row| row.as_ref().map_or(true, Row::is_complete));
    for (nth, row) in (0..).zip(rows) {
        let row = row?;
        if !is_drawn(nth) {
            continue;
        }
        let planned = if sweep.method == Method::Optimize {
            experiment.run_at(row.run, row.parameters.iter().map(Value::from).collect())
        } else {
            experiment.run(row.run)
        };
        let Played::Row(again) = player.play(&planned)? else { return Ok(None) };
        let of = |row: &Row| {
            json!({
                "id": row.id,
                "seed": row.seed,
                "state_hash": row.state_hash,
                "inputs": row.inputs,
                "failure": row.message,
                "figures": row.figures,
            })
        };
        let found = differences(&of(&row), &of(&again));
        verified.runs.push(row.run);
        if !found.is_empty() {
            verified.unlike.push((row.run, found));
        }
    }
    Ok(Some(verified))
}

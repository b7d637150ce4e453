//! How far a sweep is.

use serde::Serialize;

use super::{Shard, SweepDir, SweepError};

/// One shard of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShardStatus {
    /// As `1-of-4`.
    pub shard: String,
    /// Whether it was started.
    pub started: bool,
    /// Its runs.
    pub runs: u64,
    /// Those of them with a row.
    pub done: u64,
    /// Rows of runs that failed.
    pub failed: u64,
    /// Rows of runs that missed a goal.
    pub missed_goals: u64,
    /// Time that the runs with a row took, summed, s.
    pub wall_s: f64,
}

/// Of every shard of the division that was started, and the messages of the first failures.
///
/// # Errors
/// A file cannot be read.
pub fn status(dir: &SweepDir) -> Result<(Vec<ShardStatus>, Vec<String>), SweepError> {
    const MESSAGES_MAX: usize = 5;
    let started = dir.started()?;
    let division = started.iter().max_by_key(|shard| shard.count()).copied();
    let shards: Vec<Shard> = division.unwrap_or(Shard::whole()).all().collect();
    let of = |shard: &Shard| ShardStatus {
        shard: shard.to_string(),
        started: started.contains(shard),
        runs: shard.runs(dir.head().runs),
        done: 0,
        failed: 0,
        missed_goals: 0,
        wall_s: 0.0,
    };
    let mut found: Vec<ShardStatus> = shards.iter().map(of).collect();
    let mut messages = Vec::new();
    for row in dir.rows()? {
        let row = row?;
        let Some(at) = shards.iter().position(|shard| shard.holds(row.run)) else { continue };
        let status = &mut found[at];
        status.done += 1;
        status.missed_goals += u64::from(row.exit_code == 3);
        status.wall_s += row.measured.get("wall_ns").copied().unwrap_or(0.0) / 1e9;
        if !row.is_complete() {
            status.failed += 1;
            if messages.len() < MESSAGES_MAX {
                messages.push(format!("run {}: {}", row.run, row.message.unwrap_or_default()));
            }
        }
    }
    Ok((found, messages))
}

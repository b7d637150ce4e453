//! Several directories of one sweep to one.

use std::path::Path;

use super::dir::{Shard, SweepDir, merged};
use super::error::SweepError;
use super::table::{self, Columns};
use super::{Row, table_head};
use crate::scenario::Scenario;

/// Writes the rows of all directories, in the order of the runs, to one table in a new directory: what one process
/// would have left that played all of it. Gives the runs that no directory has a row of.
///
/// # Errors
/// The directories are of different sweeps, two say different things of a run, or a file cannot be read or written.
pub fn merge(parts: &[SweepDir], scenario: &Scenario, out: &Path) -> Result<u64, SweepError> {
    let first = &parts[0];
    for part in parts {
        if part.head().scenario_blake3 != first.head().scenario_blake3 {
            return Err(SweepError::Unlike(format!(
                "{} and {} are of different sweeps: merge shards of one scenario",
                first.path().display(),
                part.path().display()
            )));
        }
    }
    let mut columns = Columns::of(first.head().keys.clone());
    let mut rows = 0;
    for row in checked(parts)? {
        columns.take(&row?);
        rows += 1;
    }
    if SweepDir::is_at(out) {
        let (path, shard) = (out.to_owned(), Shard::whole().to_string());
        return Err(SweepError::Started { path, shard });
    }
    let to = SweepDir::create(out, scenario)?;
    let whole = Shard::whole();
    table::write(&to.table(whole), &table_head(&to, whole), &columns, checked(parts)?)?;
    Ok(first.head().runs - rows)
}

/// The rows of all parts, each run once.
fn checked(
    parts: &[SweepDir],
) -> Result<impl Iterator<Item = Result<Row, SweepError>> + use<>, SweepError> {
    let mut all: Vec<Box<dyn Iterator<Item = Result<Row, SweepError>>>> = Vec::new();
    for part in parts {
        all.push(Box::new(part.rows()?));
    }
    let mut before: Option<Row> = None;
    Ok(merged(all).filter_map(move |row| {
        let row = match row {
            Ok(row) => row,
            Err(error) => return Some(Err(error)),
        };
        if let Some(before) = before.as_ref().filter(|before| before.run == row.run) {
            let same = (&before.id, &before.state_hash, &before.figures)
                == (&row.id, &row.state_hash, &row.figures);
            let unlike = format!(
                "run {} has two rows that differ (states {:?} and {:?}): play it again with one binary on one kind of machine",
                row.run, before.state_hash, row.state_hash
            );
            return (!same).then_some(Err(SweepError::Unlike(unlike)));
        }
        before = Some(row.clone());
        Some(Ok(row))
    }))
}

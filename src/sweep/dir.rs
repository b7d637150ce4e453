//! The directory of a sweep: its scenario, and of each shard a journal while it is played and one Parquet file
//! when it is done.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{SweepError, malformed, unreadable, unwritable};
use super::journal::{self, Head};
use super::row::Row;
use super::table::TableRows;
use crate::results::{ResultsError, SCHEMA_VERSION, Source};
use crate::scenario::sweep::Experiment;
use crate::scenario::{self, Scenario};

const HEAD: &str = "sweep.json";
const SCENARIO: &str = "scenario.toml";

/// Which runs one process plays: those whose number leaves `index - 1` when divided by `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shard {
    /// 1 to `count`.
    index: u32,
    /// Shards in all, at most 65536.
    count: u32,
}

impl Shard {
    /// All runs.
    #[must_use]
    pub fn whole() -> Self {
        Self { index: 1, count: 1 }
    }

    /// Whether a run is one of its own.
    #[must_use]
    pub fn holds(self, run: u64) -> bool {
        run % u64::from(self.count) == u64::from(self.index - 1)
    }

    /// How many of `runs` are its own.
    #[must_use]
    pub fn runs(self, runs: u64) -> u64 {
        (runs + u64::from(self.count - self.index)) / u64::from(self.count)
    }

    /// Shards in all.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// The others of the same division, and this one.
    pub fn all(self) -> impl Iterator<Item = Self> {
        (1..=self.count).map(move |index| Self { index, count: self.count })
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-of-{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const COUNT_MAX: u32 = 65_536;
        let wrong = || format!("\"{text}\" is no shard: write I/N with I from 1 to N, such as 1/4");
        let (index, count) =
            text.split_once('/').or_else(|| text.split_once("-of-")).ok_or_else(wrong)?;
        let (index, count) = (index.parse(), count.parse());
        match (index, count) {
            (Ok(index), Ok(count)) if (1..=count).contains(&index) && count <= COUNT_MAX => {
                Ok(Self { index, count })
            }
            _ => Err(wrong()),
        }
    }
}

/// `sweep.json`: what the directory is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepHead {
    /// Version of this layout.
    pub schema_version: u32,
    /// Name of the scenario.
    pub name: String,
    /// BLAKE3 of `scenario.toml`, hex.
    pub scenario_blake3: String,
    /// Points of the sweep.
    pub points: u64,
    /// Runs, all repetitions counted.
    pub runs: u64,
    /// The keys that are varied, in the order of the axes.
    pub keys: Vec<String>,
    /// What the binary was built from that started it.
    pub source: Source,
}

/// A directory that holds a sweep.
#[derive(Clone, Debug)]
pub struct SweepDir {
    path: PathBuf,
    head: SweepHead,
}

/// What there is of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A journal: it is under way, or was cut.
    Begun,
    /// A table of all its rows.
    Done,
}

type Rows = Box<dyn Iterator<Item = Result<Row, SweepError>>>;

impl SweepDir {
    /// Whether there is one.
    #[must_use]
    pub fn is_at(path: &Path) -> bool {
        path.join(HEAD).is_file()
    }

    /// Makes the directory of a sweep, or takes the one in which another shard of it was started.
    ///
    /// # Errors
    /// Something else is there, or it cannot be written to.
    pub fn create(path: &Path, scenario: &Scenario) -> Result<Self, SweepError> {
        let text = scenario::resolved(scenario);
        let experiment = Experiment::new(scenario);
        let head = SweepHead {
            schema_version: SCHEMA_VERSION,
            name: scenario.name.clone(),
            scenario_blake3: blake3::hash(text.as_bytes()).to_hex().to_string(),
            points: experiment.points().count(),
            runs: experiment.runs(),
            keys: experiment.keys(),
            source: Source::of_this_build(),
        };
        if Self::is_at(path) {
            let there = Self::open(path)?;
            let (found, expected) = (there.head.scenario_blake3.clone(), head.scenario_blake3);
            return if found == expected {
                Ok(there)
            } else {
                Err(SweepError::OtherSweep { path: path.to_owned(), found, expected })
            };
        }
        let not_writable = |source| ResultsError::NotWritable { path: path.to_owned(), source };
        if path.exists() && !path.is_dir() {
            return Err(ResultsError::NotADirectory { path: path.to_owned() }.into());
        }
        fs::create_dir_all(path).map_err(not_writable)?;
        // Another shard may be at it at the same moment: what it writes is the same.
        let is_own = |name: &str| name == SCENARIO || name.starts_with('.');
        for entry in fs::read_dir(path).map_err(not_writable)? {
            let name = entry.map_err(not_writable)?.file_name();
            if !is_own(&name.to_string_lossy()) && !Self::is_at(path) {
                return Err(ResultsError::NotEmpty { path: path.to_owned() }.into());
            }
        }
        write_whole(&path.join(SCENARIO), text.as_bytes())?;
        let json = serde_json::to_string_pretty(&head).expect("all keys are strings") + "\n";
        write_whole(&path.join(HEAD), json.as_bytes())?;
        Ok(Self { path: path.to_owned(), head })
    }

    /// Opens one.
    ///
    /// # Errors
    /// It is none, of a later version, or its scenario was changed.
    pub fn open(path: &Path) -> Result<Self, SweepError> {
        let file = path.join(HEAD);
        let bytes = fs::read(&file).map_err(unreadable(&file))?;
        let head: SweepHead =
            serde_json::from_slice(&bytes).map_err(|error| malformed(&file, error))?;
        if head.schema_version > SCHEMA_VERSION {
            let (found, known) = (head.schema_version, SCHEMA_VERSION);
            return Err(ResultsError::TooNew { file, found, known }.into());
        }
        let file = path.join(SCENARIO);
        let text = fs::read(&file).map_err(unreadable(&file))?;
        let found = blake3::hash(&text).to_hex().to_string();
        if found != head.scenario_blake3 {
            let expected = head.scenario_blake3;
            return Err(ResultsError::OtherScenario { file, found, expected }.into());
        }
        Ok(Self { path: path.to_owned(), head })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is of.
    #[must_use]
    pub fn head(&self) -> &SweepHead {
        &self.head
    }

    /// Its scenario, resolved, with the section `[sweep]`.
    #[must_use]
    pub fn scenario(&self) -> PathBuf {
        self.path.join(SCENARIO)
    }

    pub(super) fn journal(&self, shard: Shard) -> PathBuf {
        self.path.join(format!("shard-{shard}.journal"))
    }

    pub(super) fn table(&self, shard: Shard) -> PathBuf {
        self.path.join(format!("shard-{shard}.parquet"))
    }

    /// Where runs of a shard leave their files until their figures are taken.
    pub(super) fn scratch(&self, shard: Shard) -> PathBuf {
        self.path.join(format!(".scratch-{shard}"))
    }

    pub(super) fn journal_head(&self, shard: Shard) -> Head {
        Head::new(self.head.scenario_blake3.clone(), shard)
    }

    /// The shards that were started, ascending.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn started(&self) -> Result<Vec<Shard>, SweepError> {
        Ok(self.stages()?.into_iter().map(|(shard, _)| shard).collect())
    }

    /// Of these the ones with runs that have no row.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn unfinished(&self) -> Result<Vec<Shard>, SweepError> {
        let begun = |(shard, stage)| (stage == Stage::Begun).then_some(shard);
        Ok(self.stages()?.into_iter().filter_map(begun).collect())
    }

    pub(super) fn stages(&self) -> Result<Vec<(Shard, Stage)>, SweepError> {
        let failed = unreadable(&self.path);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(&failed)? {
            let name = entry.map_err(&failed)?.file_name();
            let name = name.to_string_lossy();
            let Some(name) = name.strip_prefix("shard-") else { continue };
            let parsed = |name: &str| name.parse::<Shard>().ok();
            let begun = name.strip_suffix(".journal").and_then(parsed);
            let done = name.strip_suffix(".parquet").and_then(parsed);
            found.extend(begun.map(|shard| (shard, Stage::Begun)));
            found.extend(done.map(|shard| (shard, Stage::Done)));
        }
        // A kill between the last two acts of a shard leaves both: the journal counts.
        found.sort_by_key(|(shard, stage)| (*shard, *stage == Stage::Done));
        found.dedup_by_key(|(shard, _)| *shard);
        Ok(found)
    }

    /// All rows that there are, in the order of the runs.
    ///
    /// # Errors
    /// A file is missing or damaged; later rows may say so, too.
    pub fn rows(
        &self,
    ) -> Result<impl Iterator<Item = Result<Row, SweepError>> + use<>, SweepError> {
        let mut parts: Vec<Rows> = Vec::new();
        for (shard, stage) in self.stages()? {
            parts.push(match stage {
                Stage::Done => Box::new(TableRows::open(&self.table(shard))?.0),
                Stage::Begun => {
                    let path = self.journal(shard);
                    let mut places = Vec::new();
                    journal::scan(&path, |place, _| places.push(place))?;
                    places.sort();
                    Box::new(journal::rows_at(&path, places)?)
                }
            });
        }
        Ok(merged(parts))
    }
}

/// Rows of several parts that ascend, as one that does.
pub(super) fn merged(parts: Vec<Rows>) -> impl Iterator<Item = Result<Row, SweepError>> {
    let mut parts: Vec<_> = parts.into_iter().map(Iterator::peekable).collect();
    std::iter::from_fn(move || {
        // An error stands before all rows.
        let first = parts.iter_mut().enumerate().filter_map(|(at, part)| {
            part.peek().map(|row| (row.as_ref().map_or(0, |row| row.run + 1), at))
        });
        let (_, at) = first.min()?;
        parts[at].next()
    })
}

/// Writes a file that takes its name when all of it is on the disk.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), SweepError> {
    // Hidden: one that a kill leaves is not in the way of who starts again.
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&partial);
        unwritable(path)(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_is_in_one_shard() {
        for count in 1..9 {
            let first: Shard = format!("1/{count}").parse().expect("a shard");
            for runs in 0..40 {
                let held: Vec<u64> = first.all().map(|shard| shard.runs(runs)).collect();
                assert_eq!(held.iter().sum::<u64>(), runs, "{count} shards");
                for shard in first.all() {
                    let own = (0..runs).filter(|run| shard.holds(*run)).count() as u64;
                    assert_eq!(own, shard.runs(runs), "{shard}, {runs} runs");
                }
            }
        }
    }

    #[test]
    fn shards_read_back_as_printed_and_others_are_refused() {
        let shard: Shard = "3/4".parse().expect("a shard");
        assert_eq!((shard.to_string().as_str(), shard.to_string().parse()), ("3-of-4", Ok(shard)));
        for text in ["", "1", "0/4", "5/4", "1/0", "a/b", "1/65537", "-1/4"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}

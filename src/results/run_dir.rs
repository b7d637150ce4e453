//! The run directory: made before anything starts, every file whole or absent.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;

use super::error::ResultsError;
use super::files::{FileRecord, records_under};
use super::layers::Layers;
use super::manifest::Manifest;
use super::parquet::{Row, TableWriter, read_table};
use super::report::{self, RunRecord};
use super::summary::Summary;
use super::timeline::Timeline;
use super::{RoundRow, SCHEMA_VERSION};
use crate::measure::clock::compact_utc;
use crate::measure::latency::{Interval, Latency, read_hlog, write_hlog};

/// Held by the process that writes the directory.
const LOCK: &str = "checkpoint/lock";

/// The histogram of request latencies, under `hist/`.
const REQUESTS_HLOG: &str = "requests";

/// Keeps other processes from writing to a run directory as long as it lives, or its process does.
#[derive(Debug)]
pub struct RunLock(#[expect(dead_code, reason = "the lock is that of the open file")] File);

/// A directory that holds one run: `manifest.json`, `scenario.toml`, `summary.json`, `layers.json`,
/// `rounds.parquet`, `requests.parquet`, `hist/*.hlog` and `report.html`.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Directories that were not there before, innermost first.
    made: Vec<PathBuf>,
    is_scratch: bool,
}

impl RunDir {
    /// Where a run goes without `--out`: `runs/SCENARIO-SEED-TIME`, time in UTC. Characters of the
    /// scenario's name that are awkward in a file name become `_`.
    #[must_use]
    pub fn default_path(scenario: &str, seed: u64, started_at: SystemTime) -> PathBuf {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name: String = scenario.chars().map(|c| if plain(c) { c } else { '_' }).collect();
        Path::new("runs").join(format!("{name}-{seed}-{}", compact_utc(started_at)))
    }

    /// Makes the directory, or takes an empty one, and proves that files can be written there.
    ///
    /// # Errors
    /// Something is there already, or it cannot be written to; nothing was changed then but for
    /// empty directories.
    pub fn create(path: &Path) -> Result<Self, ResultsError> {
        let not_writable = |source| ResultsError::NotWritable { path: path.to_owned(), source };
        let is_new = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let made = path.ancestors().take_while(is_new).map(Path::to_owned).collect();
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(ResultsError::NotADirectory { path: path.to_owned() });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path).map_err(not_writable)?;
            }
            Err(error) => return Err(not_writable(error)),
        }
        if fs::read_dir(path).map_err(not_writable)?.next().is_some() {
            return Err(ResultsError::NotEmpty { path: path.to_owned() });
        }
        let probe = path.join(".writable");
        File::create_new(&probe)
            .and_then(|mut file| file.write_all(b"nashflock"))
            .map_err(not_writable)?;
        fs::remove_file(&probe).map_err(not_writable)?;
        fs::create_dir(path.join("hist")).map_err(not_writable)?;
        Ok(Self { path: path.to_owned(), made, is_scratch: false })
    }

    /// Takes away the given files and every directory that [`RunDir::create`] made, as far as that
    /// is empty then.
    pub fn discard(self, files: &[&str]) {
        // What cannot be removed stays: the caller has an error of its own to report.
        for file in files {
            let _ = fs::remove_file(self.path.join(file));
        }
        let _ = fs::remove_dir(self.path.join("hist"));
        let _ = fs::remove_dir_all(self.path.join("checkpoint"));
        for folder in self.made {
            let _ = fs::remove_dir(folder);
        }
    }

    /// The same for a run whose files are thrown away once its figures are taken: nothing waits for the disk, and
    /// neither a report nor the hashes of the files are made.
    #[must_use]
    pub fn as_scratch(self) -> Self {
        Self { is_scratch: true, ..self }
    }

    /// A directory that a run has left.
    ///
    /// # Errors
    /// It has no `manifest.json`.
    pub fn open(path: &Path) -> Result<Self, ResultsError> {
        let manifest = path.join("manifest.json");
        match fs::metadata(&manifest) {
            Ok(_) => Ok(Self { path: path.to_owned(), made: Vec::new(), is_scratch: false }),
            Err(source) => Err(ResultsError::Read { file: manifest, source }),
        }
    }

    /// Locks the directory for this process.
    ///
    /// # Errors
    /// Another process has it, or the lock cannot be made.
    pub fn lock(&self) -> Result<RunLock, ResultsError> {
        let not_writable = |source| ResultsError::NotWritable { path: self.path.clone(), source };
        fs::create_dir_all(self.path.join("checkpoint")).map_err(not_writable)?;
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        let file = options.open(self.path.join(LOCK)).map_err(not_writable)?;
        match file.try_lock() {
            Ok(()) => Ok(RunLock(file)),
            Err(TryLockError::WouldBlock) => Err(ResultsError::InUse { path: self.path.clone() }),
            Err(TryLockError::Error(error)) => Err(not_writable(error)),
        }
    }

    /// Removes `checkpoint/`: the run is complete.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub fn remove_checkpoints(&self) -> Result<(), ResultsError> {
        let file = self.path.join("checkpoint");
        fs::remove_dir_all(&file)
            .map_err(|error| ResultsError::Write { file, source: error.into() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file whole: to a `.partial` file first, which takes the name when all of it is on
    /// the disk. `name` is relative to the directory.
    ///
    /// # Errors
    /// The file cannot be written; an older one of that name is kept.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), ResultsError> {
        let target = self.path.join(name);
        let partial = partial_name(&target);
        let write = || {
            let mut file = File::create(&partial)?;
            file.write_all(bytes)?;
            if !self.is_scratch {
                file.sync_all()?;
            }
            fs::rename(&partial, &target)
        };
        write().map_err(|error: io::Error| {
            // Half a text file is of no use, and on a full disk it is in the way.
            let _ = fs::remove_file(&partial);
            ResultsError::Write { file: target.clone(), source: error.into() }
        })
    }

    /// Writes `manifest.json`: once at the start and again at the end.
    ///
    /// # Errors
    /// See [`RunDir::write`].
    pub fn write_manifest(&self, manifest: &Manifest) -> Result<(), ResultsError> {
        self.write("manifest.json", to_json(manifest).as_bytes())
    }

    /// Writes `summary.json`.
    ///
    /// # Errors
    /// See [`RunDir::write`].
    pub fn write_summary(&self, summary: &Summary) -> Result<(), ResultsError> {
        self.write("summary.json", summary.to_json().as_bytes())
    }

    /// Writes `timeline.json`.
    ///
    /// # Errors
    /// See [`RunDir::write`].
    pub fn write_timeline(&self, timeline: &Timeline) -> Result<(), ResultsError> {
        self.write("timeline.json", to_json(timeline).as_bytes())
    }

    /// Writes `layers.json`.
    ///
    /// # Errors
    /// See [`RunDir::write`].
    pub fn write_layers(&self, layers: &Layers) -> Result<(), ResultsError> {
        self.write("layers.json", to_json(layers).as_bytes())
    }

    /// Writes `hist/NAME.hlog`; the report draws the one named `requests`.
    ///
    /// # Errors
    /// See [`RunDir::write`], and a tag that cannot be written.
    pub fn write_hlog(
        &self,
        name: &str,
        started_at: SystemTime,
        intervals: &[Interval],
    ) -> Result<(), ResultsError> {
        let file = format!("hist/{name}.hlog");
        let mut bytes = Vec::new();
        write_hlog(&mut bytes, started_at, intervals).map_err(|error| ResultsError::Write {
            file: self.path.join(&file),
            source: error.into(),
        })?;
        self.write(&file, &bytes)
    }

    /// Starts a Parquet table, `rounds` or `requests` by the type of its rows.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn table<R: Row>(&self) -> Result<TableWriter<R>, ResultsError> {
        TableWriter::create(&self.path, !self.is_scratch)
    }

    /// Writes `report.html` from the other files, as the command `report` does again later.
    ///
    /// # Errors
    /// What [`RunDir::read_record`] and [`RunDir::write`] report.
    pub fn write_report(&self) -> Result<(), ResultsError> {
        self.write_report_with(self.read_manifest()?)
    }

    /// The same with a manifest that is written only when the report is: so that a run whose manifest
    /// says how it ended has all its files.
    ///
    /// # Errors
    /// See [`RunDir::write_report`].
    pub fn write_report_with(&self, manifest: Manifest) -> Result<(), ResultsError> {
        if self.is_scratch {
            return Ok(());
        }
        let record = self.record_with(manifest)?;
        self.write("report.html", report::render(&record).as_bytes())
    }

    /// Reads back what the report shows. `layers.json`, `rounds.parquet` and the histogram may be
    /// missing, as after an interrupted run: what rests on them is then left out.
    ///
    /// # Errors
    /// `manifest.json` or `summary.json` is missing, or any file is damaged or too new.
    pub fn read_record(&self) -> Result<RunRecord, ResultsError> {
        self.record_with(self.read_manifest()?)
    }

    fn record_with(&self, manifest: Manifest) -> Result<RunRecord, ResultsError> {
        Ok(RunRecord {
            manifest,
            summary: self.read_summary()?,
            layers: or_missing(self.read_json("layers.json"))?,
            timeline: or_missing(self.read_json("timeline.json"))?,
            rounds: or_missing(read_table::<RoundRow>(&self.path))?.unwrap_or_default(),
            latency: or_missing(self.read_latency())?,
        })
    }

    /// Reads `manifest.json`.
    ///
    /// # Errors
    /// Missing, damaged or too new.
    pub fn read_manifest(&self) -> Result<Manifest, ResultsError> {
        self.read_json("manifest.json")
    }

    /// Reads `summary.json`.
    ///
    /// # Errors
    /// Missing, damaged or too new.
    pub fn read_summary(&self) -> Result<Summary, ResultsError> {
        self.read_json("summary.json")
    }

    /// Reads `layers.json`.
    ///
    /// # Errors
    /// Missing, damaged or too new.
    pub fn read_layers(&self) -> Result<Layers, ResultsError> {
        self.read_json("layers.json")
    }

    /// Holds `scenario.toml` against the hash in the manifest.
    ///
    /// # Errors
    /// It is missing, or another.
    pub fn check_scenario(&self, manifest: &Manifest) -> Result<(), ResultsError> {
        let found = blake3::hash(&self.read("scenario.toml")?).to_hex().to_string();
        if found == manifest.scenario_blake3 {
            return Ok(());
        }
        let (file, expected) = (self.path.join("scenario.toml"), manifest.scenario_blake3.clone());
        Err(ResultsError::OtherScenario { file, found, expected })
    }

    /// Every file of the run as it is now, but for the manifest and checkpoints, ascending.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn outputs(&self) -> Result<Vec<FileRecord>, ResultsError> {
        if self.is_scratch {
            return Ok(Vec::new());
        }
        let is_result = |name: &str| name != "manifest.json" && !name.starts_with("checkpoint/");
        records_under(&self.path, is_result)
    }

    /// Reads a Parquet table.
    ///
    /// # Errors
    /// Missing, damaged or too new.
    pub fn read_table<R: Row>(&self) -> Result<Vec<R>, ResultsError> {
        read_table(&self.path)
    }

    /// The request latencies of all intervals in `hist/requests.hlog`.
    ///
    /// # Errors
    /// Missing or damaged.
    pub fn read_latency(&self) -> Result<Latency, ResultsError> {
        let name = format!("hist/{REQUESTS_HLOG}.hlog");
        let intervals = read_hlog(&self.read(&name)?).map_err(|error| ResultsError::Malformed {
            file: self.path.join(&name),
            reason: error.to_string(),
        })?;
        let mut all = Latency::new();
        intervals.iter().for_each(|interval| all.merge(&interval.latency));
        Ok(all)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, ResultsError> {
        let file = self.path.join(name);
        fs::read(&file).map_err(|source| ResultsError::Read { file, source })
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T, ResultsError> {
        /// Read first: a newer layout may not fit `T` at all.
        #[derive(serde::Deserialize)]
        struct Version {
            schema_version: u32,
        }
        let bytes = self.read(name)?;
        let malformed = |error: serde_json::Error| ResultsError::Malformed {
            file: self.path.join(name),
            reason: error.to_string(),
        };
        let Version { schema_version: found } =
            serde_json::from_slice(&bytes).map_err(malformed)?;
        if found > SCHEMA_VERSION {
            let file = self.path.join(name);
            return Err(ResultsError::TooNew { file, found, known: SCHEMA_VERSION });
        }
        serde_json::from_slice(&bytes).map_err(malformed)
    }
}

/// The name of a file while it is written.
pub(super) fn partial_name(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("all keys are strings") + "\n"
}

/// A file that is not there is `None`.
fn or_missing<T>(read: Result<T, ResultsError>) -> Result<Option<T>, ResultsError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(ResultsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

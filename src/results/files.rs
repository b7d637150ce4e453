//! Hashes of the files that a run reads and writes.

use super::ResultsError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

/// One file as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileRecord {
    /// As the resolved scenario names it, or for what a run wrote relative to its directory.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3, hex.
    pub blake3: String,
}

impl FileRecord {
    /// Reads the whole file, 64 KiB at a time.
    ///
    /// # Errors
    /// It cannot be read.
    fn of(file: &Path, path: String) -> Result<Self, ResultsError> {
        let read = |source| ResultsError::Read { file: file.to_owned(), source };
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(file).map_err(read)?).map_err(read)?;
        Ok(Self { path, bytes: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
    }

    /// What is different about the file at `file` now; none where nothing is.
    #[must_use]
    pub fn change(&self, file: &Path) -> Option<String> {
        match Self::of(file, self.path.clone()) {
            Ok(now) if now == *self => None,
            Ok(now) if now.bytes != self.bytes => {
                Some(format!("{}: {} bytes, and it had {}", self.path, now.bytes, self.bytes))
            }
            Ok(_) => Some(format!("{}: as long as before, with other bytes", self.path)),
            Err(_) if !file.exists() => Some(format!("{}: it is gone", self.path)),
            Err(error) => Some(error.to_string()),
        }
    }
}

/// Hashes on a thread of its own, so that a run does not wait for it.
#[derive(Debug)]
pub struct Hashing(JoinHandle<Result<Vec<FileRecord>, ResultsError>>);

impl Hashing {
    /// Starts with these files, in this order.
    ///
    /// # Panics
    /// When the system has no thread left.
    #[must_use]
    pub fn start(files: Vec<PathBuf>) -> Self {
        let name = |file: &Path| file.to_string_lossy().into_owned();
        let work = move || files.iter().map(|file| FileRecord::of(file, name(file))).collect();
        let thread = thread::Builder::new().name("hashing".to_owned()).spawn(work);
        Self(thread.expect("a run has few threads"))
    }

    /// Whether [`Self::finish`] would not wait.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.is_finished()
    }

    /// The hashes; waits for them.
    ///
    /// # Errors
    /// The first file that cannot be read.
    pub fn finish(self) -> Result<Vec<FileRecord>, ResultsError> {
        self.0.join().expect("hashing does not panic")
    }
}

/// The files under a directory whose path below it is wanted, ascending.
///
/// # Errors
/// The first that cannot be read.
pub(super) fn records_under(
    dir: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<FileRecord>, ResultsError> {
    let mut names = Vec::new();
    names_under(dir, "", &mut names)
        .map_err(|source| ResultsError::Read { file: dir.to_owned(), source })?;
    names.sort();
    let names = names.into_iter().filter(|name| wanted(name));
    names.map(|name| FileRecord::of(&dir.join(&name), name.clone())).collect()
}

fn names_under(dir: &Path, below: &str, names: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir.join(below))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let name = if below.is_empty() { name } else { format!("{below}/{name}") };
        if entry.file_type()?.is_dir() {
            names_under(dir, &name, names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}

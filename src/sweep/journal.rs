//! The journal of a shard: a row a run, appended as runs end. What a kill leaves half-written is cut off
//! when the shard goes on, so that at most the runs under way are lost.

use std::fs::{File, TryLockError};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Shard;
use super::error::{SweepError, malformed, unreadable, unwritable};
use super::row::Row;
use crate::results::ResultsError;

/// The layout of journals. One of another version is refused.
const VERSION: u32 = 1;
/// Length and CRC-32.
const LEAD_BYTES: usize = 8;
/// A row is some kilobytes; a longer one is damage.
const FRAME_BYTES_MAX: u32 = 16 << 20;

/// What a journal is of: its first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    version: u32,
    /// BLAKE3 of the sweep's scenario, hex.
    pub(super) scenario_blake3: String,
    pub(super) shard: Shard,
}

impl Head {
    pub(super) fn new(scenario_blake3: String, shard: Shard) -> Self {
        Self { version: VERSION, scenario_blake3, shard }
    }
}

/// Where the row of a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) run: u64,
    at: u64,
}

/// A journal that is written to. Its file is locked as long as it lives.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Starts one; there is none yet.
    pub(super) fn create(path: &Path, head: &Head) -> Result<Self, SweepError> {
        let failed = unwritable(path);
        let file = File::create_new(path).map_err(&failed)?;
        lock(&file, path)?;
        let mut journal = Self { file, path: path.to_owned() };
        journal.write(head)?;
        Ok(journal)
    }

    /// Goes on with one: cuts off what is torn and hands every whole row to `row`.
    pub(super) fn reopen(
        path: &Path,
        head: &Head,
        row: impl FnMut(Place, Row),
    ) -> Result<Self, SweepError> {
        let failed = unwritable(path);
        let file = File::options().read(true).append(true).open(path).map_err(&failed)?;
        lock(&file, path)?;
        let (found, end) = scan(path, row)?;
        let mut journal = Self { file, path: path.to_owned() };
        journal.file.set_len(end).map_err(&failed)?;
        match found {
            // Killed before the head was written whole.
            None => journal.write(head)?,
            Some(found) if found == *head => {}
            Some(_) => return Err(malformed(path, "it is the journal of another sweep")),
        }
        Ok(journal)
    }

    /// Appends a row; it is on the disk when this returns.
    pub(super) fn append(&mut self, row: &Row) -> Result<(), SweepError> {
        self.write(row)
    }

    fn write(&mut self, value: &impl Serialize) -> Result<(), SweepError> {
        let body = postcard::to_stdvec(value).expect("rows have no type that postcard lacks");
        let length = u32::try_from(body.len()).expect("a row is some kilobytes");
        let mut frame = Vec::with_capacity(LEAD_BYTES + body.len());
        frame.extend(length.to_le_bytes());
        frame.extend(crc32fast::hash(&body).to_le_bytes());
        frame.extend(body);
        let mut write = || {
            self.file.write_all(&frame)?;
            self.file.sync_data()
        };
        write().map_err(unwritable(&self.path))
    }
}

fn lock(file: &File, path: &Path) -> Result<(), SweepError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(ResultsError::InUse { path: path.to_owned() }.into()),
        Err(TryLockError::Error(error)) => Err(unwritable(path)(error)),
    }
}

/// Reads a journal from its start: its head, none where not even that is whole, and where the whole frames end.
/// Rows are handed on one by one.
pub(super) fn scan(
    path: &Path,
    mut row: impl FnMut(Place, Row),
) -> Result<(Option<Head>, u64), SweepError> {
    let failed = unreadable(path);
    let mut reader = BufReader::new(File::open(path).map_err(&failed)?);
    let Some((head, mut end)) = next::<Head>(&mut reader, 0).map_err(&failed)? else {
        return Ok((None, 0));
    };
    if head.version > VERSION {
        let (found, known) = (head.version, VERSION);
        return Err(ResultsError::TooNew { file: path.to_owned(), found, known }.into());
    }
    while let Some((found, after)) = next::<Row>(&mut reader, end).map_err(&failed)? {
        row(Place { run: found.run, at: end }, found);
        end = after;
    }
    Ok((Some(head), end))
}

/// The frame that begins at `at` and where it ends; none where it is torn or there is none.
fn next<T: DeserializeOwned>(reader: &mut impl Read, at: u64) -> io::Result<Option<(T, u64)>> {
    let whole = |read: io::Result<()>| match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    };
    let mut lead = [0; LEAD_BYTES];
    if !whole(reader.read_exact(&mut lead))? {
        return Ok(None);
    }
    let [a, b, c, d, e, f, g, h] = lead;
    let (length, crc) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    if length > FRAME_BYTES_MAX {
        return Ok(None);
    }
    let mut body = vec![0; length as usize];
    if !whole(reader.read_exact(&mut body))? || crc32fast::hash(&body) != crc {
        return Ok(None);
    }
    let value = postcard::from_bytes(&body).ok();
    Ok(value.map(|value| (value, at + LEAD_BYTES as u64 + u64::from(length))))
}

/// The rows of a journal that no process writes, in the order of `places`; one is in memory at a time.
pub(super) fn rows_at(
    path: &Path,
    places: Vec<Place>,
) -> Result<impl Iterator<Item = Result<Row, SweepError>> + use<>, SweepError> {
    let path = path.to_owned();
    let mut reader = BufReader::new(File::open(&path).map_err(unreadable(&path))?);
    Ok(places.into_iter().map(move |place| {
        reader.seek(SeekFrom::Start(place.at)).map_err(unreadable(&path))?;
        let found = next(&mut reader, place.at).map_err(unreadable(&path))?;
        found.map(|(row, _)| row).ok_or_else(|| malformed(&path, "a row is gone"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;

    fn row(run: u64) -> Row {
        Row {
            run,
            point: run,
            replicate: 0,
            seed: 7 * run,
            id: format!("{run:032x}"),
            parameters: Vec::new(),
            exit_code: 0,
            message: None,
            state_hash: Some("ab".repeat(32)),
            inputs: None,
            figures: BTreeMap::from([("x".to_owned(), 0.1 + run as f64)]),
            measured: BTreeMap::new(),
        }
    }

    fn head() -> Head {
        Head::new("00".repeat(32), Shard::whole())
    }

    fn read(path: &Path) -> Vec<Row> {
        let mut rows = Vec::new();
        scan(path, |_, row| rows.push(row)).expect("readable");
        rows
    }

    #[test]
    fn a_journal_that_is_cut_anywhere_keeps_its_whole_rows_and_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut journal = Journal::create(&path, &head()).expect("written");
        (0..4).for_each(|run| journal.append(&row(run)).expect("written"));
        drop(journal);
        let bytes = fs::read(&path).expect("readable");
        let (mut places, mut whole) = (Vec::new(), Vec::new());
        scan(&path, |place, row| {
            places.push(place);
            whole.push(row);
        })
        .expect("readable");
        assert_eq!(whole, [0, 1, 2, 3].map(row));
        for cut in 0..=bytes.len() {
            fs::write(&path, &bytes[..cut]).expect("written");
            let ends = places.iter().skip(1).map(|place| place.at).chain([bytes.len() as u64]);
            let kept = ends.filter(|end| *end <= cut as u64).count();
            let mut found = Vec::new();
            let mut journal =
                Journal::reopen(&path, &head(), |_, row| found.push(row)).expect("goes on");
            assert_eq!(found, whole[..kept], "cut at byte {cut}");
            journal.append(&row(9)).expect("written");
            drop(journal);
            assert_eq!(read(&path), [&whole[..kept], &[row(9)]].concat(), "cut at byte {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_ends_a_journal_before_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut journal = Journal::create(&path, &head()).expect("written");
        (0..3).for_each(|run| journal.append(&row(run)).expect("written"));
        drop(journal);
        let bytes = fs::read(&path).expect("readable");
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 4;
            fs::write(&path, &bytes).expect("written");
            let rows = read(&path);
            assert!(rows.len() < 3 && rows == [0, 1, 2].map(row)[..rows.len()], "byte {at}");
        }
    }

    #[test]
    fn rows_come_back_in_the_order_that_is_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut journal = Journal::create(&path, &head()).expect("written");
        [2, 0, 1].iter().for_each(|run| journal.append(&row(*run)).expect("written"));
        let mut places = Vec::new();
        scan(&path, |place, _| places.push(place)).expect("readable");
        places.sort();
        let rows: Result<Vec<_>, _> = rows_at(&path, places).expect("readable").collect();
        assert_eq!(rows.expect("whole"), [0, 1, 2].map(row));
        let other = Journal::reopen(&path, &head(), |_, _| {});
        assert!(other.is_err(), "it is written to");
    }
}

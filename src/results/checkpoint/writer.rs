//! Writes checkpoints on a thread of its own: serving never waits for the disk.

use super::{FOLDER, Head, LOG, Latest, MAGIC, RunIdentity, hash_of, state_file};
use crate::results::{CHECKPOINT_VERSION, ResultsError, RunDir};
use std::fs::{self, File};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// One checkpoint, as it is handed over.
#[derive(Debug)]
pub struct Cut {
    /// Rows since the one before.
    pub rows: Vec<u8>,
    /// Everything else.
    pub state: Vec<u8>,
    /// Wall-clock time, ns since 1970.
    pub written_unix_ns: u64,
}

/// Writes the checkpoints of a run, one after the other. Dropped, it ends the one under way first.
#[derive(Debug)]
pub struct CheckpointWriter {
    to: Option<SyncSender<Cut>>,
    busy: Arc<AtomicBool>,
    failure: Arc<Mutex<Option<ResultsError>>>,
    thread: Option<JoinHandle<()>>,
}

impl CheckpointWriter {
    /// Starts the log of a run, or goes on with that of the checkpoint that the run goes on from.
    ///
    /// # Errors
    /// The folder or the log cannot be made.
    pub fn start(
        dir: &RunDir,
        run: RunIdentity,
        from: Option<&Latest>,
    ) -> Result<Self, ResultsError> {
        let folder = dir.path().join(FOLDER);
        let log = dir.path().join(LOG);
        let failed =
            |error: std::io::Error| ResultsError::Write { file: log.clone(), source: error.into() };
        fs::create_dir_all(&folder).map_err(failed)?;
        let file = File::options().append(true).create(true).open(&log).map_err(failed)?;
        let (log_bytes, hasher, sequence) =
            from.map_or_else(|| (0, blake3::Hasher::new(), 0), Latest::goes_on);
        file.set_len(log_bytes).map_err(failed)?;
        let (dir, folder) = (dir.clone(), File::open(folder).map_err(failed)?);
        let files = Files { dir, folder, log: file, log_bytes, hasher, run, sequence };
        let (to, from) = sync_channel(1);
        let (busy, failure) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let thread = {
            let (busy, failure) = (Arc::clone(&busy), Arc::clone(&failure));
            thread::Builder::new()
                .name("checkpoint".to_owned())
                .spawn(move || files.write_all(&from, &busy, &failure))
                .map_err(failed)?
        };
        Ok(Self { to: Some(to), busy, failure, thread: Some(thread) })
    }

    /// Whether the checkpoint before is on the disk.
    #[must_use]
    pub fn is_free(&self) -> bool {
        !self.busy.load(Ordering::Acquire)
    }

    /// Hands a checkpoint over; waits where two are under way.
    ///
    /// # Errors
    /// The one before could not be written. Those before that one are kept, and no further one is
    /// written.
    pub fn write(&mut self, cut: Cut) -> Result<(), ResultsError> {
        self.failure()?;
        self.busy.store(true, Ordering::Release);
        let to = self.to.as_ref().expect("it is taken when the writer ends");
        // The thread has ended only where it has failed.
        if to.send(cut).is_err() { self.failure() } else { Ok(()) }
    }

    /// Waits for the checkpoint under way.
    ///
    /// # Errors
    /// One could not be written.
    pub fn finish(mut self) -> Result<(), ResultsError> {
        self.join();
        self.failure()
    }

    fn failure(&mut self) -> Result<(), ResultsError> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(()), Err)
    }

    fn join(&mut self) {
        drop(self.to.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("writing does not panic");
        }
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        self.join();
    }
}

/// What the thread writes to.
struct Files {
    dir: RunDir,
    /// Synchronised after a file took its name.
    folder: File,
    log: File,
    log_bytes: u64,
    hasher: blake3::Hasher,
    run: RunIdentity,
    sequence: u64,
}

impl Files {
    fn write_all(
        mut self,
        from: &Receiver<Cut>,
        busy: &AtomicBool,
        failure: &Mutex<Option<ResultsError>>,
    ) {
        while let Ok(cut) = from.recv() {
            if let Err(error) = self.write(&cut) {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                busy.store(false, Ordering::Release);
                return;
            }
            busy.store(false, Ordering::Release);
        }
    }

    /// The rows first: a state is never on the disk without them.
    fn write(&mut self, cut: &Cut) -> Result<(), ResultsError> {
        let of_log = |error: std::io::Error| ResultsError::Write {
            file: self.dir.path().join(LOG),
            source: error.into(),
        };
        self.log.write_all(&cut.rows).and_then(|()| self.log.sync_data()).map_err(of_log)?;
        self.hasher.update(&cut.rows);
        self.log_bytes += cut.rows.len() as u64;
        self.sequence += 1;
        let head = Head {
            run: self.run.clone(),
            sequence: self.sequence,
            written_unix_ns: cut.written_unix_ns,
            log_bytes: self.log_bytes,
            log_blake3: self.hasher.finalize().into(),
        };
        let mut body = postcard::to_stdvec(&head).expect("a head is plain data");
        body.extend_from_slice(&cut.state);
        let hash = hash_of(CHECKPOINT_VERSION, &body);
        let version = CHECKPOINT_VERSION.to_le_bytes();
        let bytes = [&MAGIC[..], &version, hash.as_bytes(), &body].concat();
        let name = state_file(self.sequence);
        self.dir.write(&name, &bytes)?;
        let of_state = |error: std::io::Error| ResultsError::Write {
            file: self.dir.path().join(&name),
            source: error.into(),
        };
        self.folder.sync_all().map_err(of_state)
    }
}

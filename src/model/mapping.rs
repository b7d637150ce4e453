//! Memory-mapped files: the one unsafe call of the loader.
#![allow(
    unsafe_code,
    reason = "a mapped file can be changed by others, which no type can rule out"
)]

use memmap2::Mmap;
use std::{fs::File, io, path::Path};

/// Maps a file for reading, so that weights that are never read never take memory.
///
/// The file must not be changed or shortened while it is mapped; checkpoints are written once.
///
/// # Errors
/// When the file cannot be opened or mapped.
pub(super) fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    // SAFETY: the mapping is private and read-only, and lives as long as every borrow of it. That
    // no other process changes the file meanwhile is the documented condition above: bytes are
    // only ever copied out and checked as values, so a change could spoil weights, not memory.
    unsafe { Mmap::map(&file) }
}

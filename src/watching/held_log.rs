//! Standard error, held back while a dashboard is drawn on it.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that are held at most: what was said first is dropped.
const HELD_BYTES_MAX: usize = 64 << 10;

static HELD: Mutex<Option<Vec<u8>>> = Mutex::new(None);

/// Where logs go: standard error, or memory while a dashboard is drawn.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeldLog;

impl HeldLog {
    /// Holds back what is said from now on.
    pub fn hold() {
        held().get_or_insert_default();
    }

    /// Says what was held back, and holds nothing from now on.
    pub fn release() {
        if let Some(said) = held().take() {
            // Standard error may be closed.
            let _ = io::stderr().write_all(&said);
        }
    }

    /// The last line that is held.
    #[must_use]
    pub fn latest() -> Option<String> {
        let held = held();
        let said = String::from_utf8_lossy(held.as_deref()?);
        said.lines().next_back().map(|line| line.chars().filter(|c| !c.is_control()).collect())
    }
}

impl Write for HeldLog {
    fn write(&mut self, said: &[u8]) -> io::Result<usize> {
        let mut held = held();
        let Some(held) = held.as_mut() else { return io::stderr().write(said) };
        held.extend_from_slice(said);
        let beyond = held.len().saturating_sub(HELD_BYTES_MAX);
        held.drain(..beyond);
        Ok(said.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn held() -> MutexGuard<'static, Option<Vec<u8>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

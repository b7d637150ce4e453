//! What benches share: the words of their figures, and runs of the binary.

#![allow(dead_code, reason = "each bench uses a part")]

pub(crate) mod figures;
pub(crate) mod runs;

use std::error::Error;

/// Why a bench ends early.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Sections of a page that are asked for, by their names after `--`.
pub(crate) struct Sections(Vec<String>);

impl Sections {
    pub(crate) fn asked() -> Self {
        Self(std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect())
    }

    /// Whether the page is to be whole.
    pub(crate) fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.is_all() || self.0.iter().any(|asked| asked == name)
    }
}

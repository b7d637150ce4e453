//! The sections of the page.

mod cache;
mod game;
mod quality;
mod speed;

pub(crate) use cache::cache;
pub(crate) use game::equilibrium;
pub(crate) use quality::{open_ends, size_and_loss};
pub(crate) use speed::time_and_memory;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) use crate::shared::Failure;

pub(crate) const DENSE: &str = "scenarios/models/books-dense";
pub(crate) const MOE: &str = "scenarios/models/books-moe-8e2k";

/// Texts that are not in the repository.
pub(crate) struct Texts {
    train: PathBuf,
    held_out: PathBuf,
    wikitext: PathBuf,
}

impl Texts {
    /// None where one is missing.
    pub(crate) fn of(data: &Path) -> Option<Self> {
        let text = |name: &str| Some(data.join(name)).filter(|path| path.exists());
        Some(Self {
            train: text("books/train.txt")?,
            held_out: text("books/valid.txt")?,
            wikitext: text("wikitext-2/test.txt")?,
        })
    }
}

/// What a command of the binary prints as JSON. A goal that was missed is no failure.
fn nashflock(words: &[&str]) -> Result<Value, Failure> {
    eprintln!("nashflock {}", words.join(" "));
    let ended = Command::new(env!("CARGO_BIN_EXE_nashflock")).args(words).arg("--json").output()?;
    if !matches!(ended.status.code(), Some(0 | 3)) {
        return Err(String::from_utf8_lossy(&ended.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&ended.stdout)?)
}

/// A number of an answer by its path, as `evaluation.loss`.
fn number(of: &Value, path: &str) -> Result<f64, Failure> {
    let pointer = format!("/{}", path.replace('.', "/"));
    let found = of.pointer(&pointer).and_then(Value::as_f64);
    found.ok_or_else(|| format!("no number at {path}").into())
}

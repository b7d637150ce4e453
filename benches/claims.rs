//! Writes docs/claims.md: what is left of the claims of the prototype.
//!
//! `cargo bench --bench claims [-- --data DIR] > docs/claims.md`, where DIR has `books` and `wikitext-2`; with `size`,
//! `game`, `speed` or `open` after `--`, these sections alone.
//!
//! What the binary can say it is asked for, as JSON; the rest is measured here.
#![allow(clippy::print_stdout, reason = "the page is the output")]

mod pass;
mod settled;
mod shared;
#[allow(dead_code, reason = "other benches route the other matrices")]
mod sources;

use settled::{Failure, Texts};
use std::env;
use std::path::PathBuf;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

fn main() -> Result<(), Failure> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let (mut data, mut asked) = (root.join("../shared/data"), Vec::new());
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--data" => data = PathBuf::from(words.next().ok_or("--data takes a folder")?),
            word if word.starts_with('-') => {}
            _ => asked.push(word),
        }
    }
    let is_asked = |name: &str| asked.is_empty() || asked.iter().any(|of| of == name);
    let Some(texts) = Texts::of(&data) else {
        eprintln!("skipped: {} has not the texts", data.display());
        return Ok(());
    };
    env::set_current_dir(&root)?;
    if asked.is_empty() {
        println!("{}", include_str!("claims.md").trim_end());
    }
    if is_asked("size") {
        settled::size_and_loss(&texts)?;
    }
    if is_asked("game") {
        settled::equilibrium()?;
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    if is_asked("speed") {
        pool.install(|| runtime.block_on(settled::time_and_memory()))?;
        pool.install(settled::cache)?;
    }
    if is_asked("open") {
        settled::open_ends(&texts)?;
    }
    Ok(())
}

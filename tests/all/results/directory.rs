//! What is refused and what is kept when it cannot be written.

use super::written::{round, run_dir};
use crate::binary::skipped;
use nashflock::results::RunDir;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

#[test]
fn a_run_directory_is_refused_before_anything_is_written() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let taken = temporary.path().join("taken");
    fs::create_dir(&taken).expect("can be made");
    fs::write(taken.join("summary.json"), "precious").expect("can be written");
    let file = temporary.path().join("file");
    fs::write(&file, "precious").expect("can be written");
    for (path, message) in [
        (taken.clone(), "exists and is not empty"),
        (file.clone(), "exists and is not a directory"),
        (file.join("below"), "cannot write to"),
        (PathBuf::from("/proc/nashflock/run"), "cannot write to"),
    ] {
        let error = RunDir::create(&path).expect_err("refused");
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.to_string().contains("choose another --out"), "{error}");
        assert!(error.is_bad_input());
    }
    assert_eq!(fs::read_dir(&taken).expect("readable").count(), 1);
    assert_eq!(fs::read_to_string(taken.join("summary.json")).expect("readable"), "precious");

    let empty = temporary.path().join("empty");
    fs::create_dir(&empty).expect("can be made");
    RunDir::create(&empty).expect("an empty directory is taken");
    RunDir::create(&temporary.path().join("a/b/c")).expect("parents are made");
}

#[test]
fn a_write_that_fails_names_its_file_and_keeps_the_old_one() {
    let (_temporary, dir) = run_dir();
    dir.write("summary.json", b"first").expect("can be written");
    // A directory under the name of the temporary file stops the write as a full disk would.
    fs::create_dir(dir.path().join("summary.json.partial")).expect("can be made");
    let error = dir.write("summary.json", b"second").expect_err("cannot be written");
    assert!(error.to_string().contains("summary.json"), "{error}");
    assert!(!error.is_bad_input());
    assert_eq!(fs::read(dir.path().join("summary.json")).expect("readable"), b"first");
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    let Ok(()) = fs::metadata("/dev/full").map(|_| ()) else {
        return skipped("no /dev/full");
    };
    let (_temporary, dir) = run_dir();
    dir.write("scenario.toml", b"seed = 1").expect("can be written");
    #[cfg(unix)]
    std::os::unix::fs::symlink("/dev/full", dir.path().join("rounds.parquet.partial"))
        .expect("can be linked");
    let mut table = dir.table().expect("the device opens");
    let written = (0..40_000).try_for_each(|at| table.push(round(at)));
    let error = written.and_then(|()| table.finish()).expect_err("the device is full");
    assert!(error.to_string().contains("rounds.parquet"), "{error}");
    assert!(error.to_string().contains("what was written before is kept"), "{error}");
    assert_eq!(fs::read(dir.path().join("scenario.toml")).expect("readable"), b"seed = 1");
}

#[test]
fn files_of_a_newer_nashflock_are_refused_by_name() {
    let (_temporary, dir) = run_dir();
    dir.write("summary.json", br#"{"schema_version": 2, "shape": "unknown"}"#).expect("writable");
    let error = dir.read_summary().expect_err("newer");
    assert!(error.to_string().contains("schema version 2"), "{error}");
    let error = dir.read_manifest().expect_err("missing");
    assert!(error.to_string().contains("manifest.json"), "{error}");
    let error = RunDir::open(dir.path()).expect_err("no manifest");
    assert!(error.to_string().contains("is this a run directory?"), "{error}");
}

#[test]
fn the_default_directory_is_named_after_scenario_seed_and_time() {
    let path = RunDir::default_path("a/b scenario", 7, UNIX_EPOCH + Duration::from_secs(1));
    assert_eq!(path, Path::new("runs/a_b_scenario-7-19700101T000001Z"));
}

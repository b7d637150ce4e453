//! Runs that are stopped or lose something: exit codes, what is left on the disk, and no worker
//! that outlives its run.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nashflock::results::{RunDir, Status};
use tempfile::TempDir;

use crate::binary::{Ended, Folder, Running, SYNTHETIC, is_alive, signal, skipped, until};
use crate::cli_run::check_run_dir;

/// Requests of a run that goes on for minutes unless it is stopped.
const REQUESTS: u64 = 10_000;

/// A run into `out` on two workers that has answered a few requests.
fn serving(folder: &Folder) -> (Running, Vec<u32>) {
    let args = ["run", "scenario.toml", "--out", "out", "--json", "--nodes", "local:2"];
    fs::create_dir(folder.path("tmp")).expect("a new folder");
    let mut command = folder.command(&args);
    command.env("TMPDIR", folder.path("tmp"));
    let run = Running::start(command);
    let workers = run.workers(2);
    assert_eq!(temporary_files(folder), 1, "a folder of sockets");
    until("the tables are opened", || folder.path("out/requests.parquet.partial").exists());
    // A batch closes each 50 ms.
    std::thread::sleep(Duration::from_millis(1_500));
    (run, workers)
}

fn temporary_files(folder: &Folder) -> usize {
    fs::read_dir(folder.path("tmp")).expect("it is there").count()
}

fn slow() -> Folder {
    let slow = SYNTHETIC
        .replace("rate_per_s = 2000.0", "rate_per_s = 50.0")
        .replace("requests = 24", &format!("requests = {REQUESTS}"));
    Folder::with(&slow)
}

#[test]
fn an_interrupted_run_keeps_what_it_has_and_leaves_no_worker() {
    for (name, said) in [("INT", "Ctrl-C"), ("TERM", "SIGTERM")] {
        let folder = slow();
        let (run, workers) = serving(&folder);
        signal(name, run.pid());
        let ended = run.end();
        assert_eq!(ended.code, Some(130), "{name}: {}", ended.stderr);
        assert_eq!(ended.stderr, format!("interrupted by {said}\n"));
        assert!(!workers.iter().any(|pid| is_alive(*pid)), "{name}: the run waits for its workers");
        assert_eq!(temporary_files(&folder), 0, "{name}: the sockets are removed");
        let summary = check_run_dir(&folder.path("out"), 1, REQUESTS - 1);
        assert_eq!(summary, ended.json());
        assert_eq!(summary["status"], "interrupted");
        assert_eq!(summary["status_detail"], said);
        // 10 000 requests at 50 a second have not come to their last quarter.
        let reason = summary["null_reasons"]["flock.relative_gap"].as_str().expect("it is null");
        assert!(reason.starts_with("not measured"), "{reason}");
        assert!(summary["nodes"].as_array().expect("a list").iter().all(|n| n["alive"] == true));
        assert_eq!(exit_code_in_manifest(&folder), Some(130));
    }
}

#[test]
fn a_run_interrupted_before_it_serves_says_so_in_its_summary() {
    let folder = Folder::with_checkpoint();
    let args = ["run", "scenario.toml", "--out", "out", "--json", "--nodes", "local:2"];
    let run = Running::start(folder.command(&args));
    // Calibrating and quantizing follow, which take longer than a signal.
    until("the run has begun", || folder.path("out/manifest.json").exists());
    signal("INT", run.pid());
    let ended = run.end();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(130), "interrupted by Ctrl-C\n"));
    let dir = RunDir::open(&folder.path("out")).expect("a run directory");
    let summary = dir.read_summary().expect("readable");
    assert_eq!((summary.status, summary.outcomes.ok), (Status::Interrupted, 0));
    assert_eq!(ended.json()["status"], "interrupted");
    assert!(folder.path("out/report.html").exists());
    assert_eq!(exit_code_in_manifest(&folder), Some(130));
}

#[test]
fn a_lost_worker_ends_the_run_with_4_and_a_message_that_names_it() {
    let folder = slow();
    let (run, workers) = serving(&folder);
    signal("KILL", workers[1]);
    let ended = run.end();
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(!workers.iter().any(|pid| is_alive(*pid)), "the other worker is stopped");
    assert_eq!(temporary_files(&folder), 0, "the socket of the lost worker is removed as well");

    let summary = check_run_dir(&folder.path("out"), 1, REQUESTS - 1);
    assert_eq!(summary, ended.json());
    assert_eq!(summary["status"], "failed");
    assert!(summary["outcomes"]["error"].as_u64() >= Some(1), "{}", summary["outcomes"]);
    assert!(summary["outcomes"]["ok"].as_u64() >= Some(1), "{}", summary["outcomes"]);
    assert!(summary["pairs"]["missing"].as_u64() >= Some(1), "{}", summary["pairs"]);
    let nodes = summary["nodes"].as_array().expect("a list");
    let lost: Vec<_> = nodes.iter().filter(|node| node["alive"] == false).collect();
    assert_eq!((nodes.len(), lost.len()), (2, 1), "{nodes:?}");
    let node = &lost[0]["node"];
    let message = format!("node {node} was lost: its process ended (signal: 9 (SIGKILL))");
    assert!(ended.stderr.contains(&message), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("step "), "it says when: {}", ended.stderr);
    assert_eq!(exit_code_in_manifest(&folder), Some(4));
}

#[test]
fn workers_end_by_themselves_and_leave_no_socket_when_their_run_is_killed() {
    let folder = slow();
    let (run, workers) = serving(&folder);
    signal("KILL", run.pid());
    assert_eq!(run.end().code, None, "a signal ended it");
    until("the lifeline ends the workers", || !workers.iter().any(|pid| is_alive(*pid)));
    assert_eq!(temporary_files(&folder), 0);
    let manifest = RunDir::open(&folder.path("out")).expect("a run directory").read_manifest();
    assert_eq!(manifest.expect("readable").exit_code, None, "it tells that the run was killed");
}

#[test]
fn a_full_disk_ends_the_run_with_4_and_names_the_file() {
    // Room for no file, for the first ones, and for all but the last one.
    for bytes in [8 << 10, 24 << 10, 60 << 10] {
        let Some(disk) = SmallDisk::mount(bytes) else {
            return skipped("this process may not mount a tmpfs");
        };
        let folder = Folder::with(SYNTHETIC);
        let out = disk.0.path().join("out");
        let out_text = out.to_str().expect("a plain path");
        let ended = folder.nashflock(&["run", "scenario.toml", "--out", out_text]);
        let said = &ended.stderr;
        assert_eq!(ended.code, Some(4), "{bytes} bytes: {said}");
        assert!(said.starts_with(&format!("cannot write {out_text}/")), "{bytes} bytes: {said}");
        assert!(said.contains("No space left on device"), "{bytes} bytes: {said}");
        assert_eq!(said.lines().count(), 1, "{bytes} bytes: {said}");
    }
}

#[test]
fn output_that_cannot_be_written_ends_with_4_and_is_named() {
    let folder = Folder::with(SYNTHETIC);
    let full = || fs::File::options().write(true).open("/dev/full").expect("a device of Linux");
    for args in [&["schema"][..], &["check", "scenario.toml"], &["run", "scenario.toml"]] {
        let ended = folder.command(args).stdout(full()).output().expect("the binary runs").into();
        let Ended { code, stderr, .. } = ended;
        assert_eq!(code, Some(4), "{args:?}: {stderr}");
        assert!(stderr.starts_with("cannot write to standard output: No space"), "{stderr}");
    }
}

/// A tmpfs, unmounted when dropped.
pub(crate) struct SmallDisk(pub(crate) TempDir);

impl SmallDisk {
    pub(crate) fn mount(bytes: u32) -> Option<Self> {
        let folder = TempDir::new().expect("a temporary folder");
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(folder.path());
        mount.output().is_ok_and(|ended| ended.status.success()).then(|| Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        assert!(unmounted.expect("umount runs").success());
    }
}

fn exit_code_in_manifest(folder: &Folder) -> Option<u8> {
    let dir = RunDir::open(&folder.path("out")).expect("a run directory");
    dir.read_manifest().expect("readable").exit_code
}

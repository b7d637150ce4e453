//! Processes of the binary, and what the system says of them.

use super::Failure;
use nashflock::results::{RunDir, Summary};
use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// The binary, silent.
pub(crate) fn nashflock() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nashflock"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// `run` of a scenario into a new directory, with what is set.
pub(crate) fn run<S: AsRef<str>>(scenario: &Path, out: &Path, sets: &[S]) -> Command {
    let mut command = nashflock();
    command.arg("run").arg(scenario).arg("--out").arg(out);
    sets.iter().for_each(|set| {
        command.args(["--set", set.as_ref()]);
    });
    command
}

/// The run directory of a run that ended well, and its summary.
pub(crate) fn ended(status: ExitStatus, out: &Path) -> Result<(RunDir, Summary), Failure> {
    if !status.success() {
        return Err(format!("the run into {} ended with {status}", out.display()).into());
    }
    let dir = RunDir::open(out)?;
    let summary = dir.read_summary()?;
    Ok((dir, summary))
}

/// Makes room for a run directory.
pub(crate) fn clear(out: &Path) -> Result<(), Failure> {
    if out.exists() {
        fs::remove_dir_all(out)?;
    }
    Ok(())
}

/// A process that is killed when dropped.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Result<Self, Failure> {
        Ok(Self(command.spawn()?))
    }

    /// Those that it started, by id.
    pub(crate) fn children(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let is_child = |pid: &u32| stat(*pid).is_some_and(|(_, parent)| parent == self.0.id());
        let mut found: Vec<u32> = pids.filter(is_child).collect();
        found.sort_unstable();
        found
    }

    /// A figure of `/proc/PID/status` in bytes, such as `VmHWM`; none once it has ended.
    pub(crate) fn memory_bytes(&self, key: &str) -> Option<u64> {
        memory_bytes(&self.0.id().to_string(), key)
    }
}

impl Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A figure of a process in bytes; `self` is this one.
pub(crate) fn memory_bytes(pid: &str, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(1024 * value.split_whitespace().next()?.parse::<u64>().ok()?)
}

/// State and parent of a process; none where there is none of this id.
pub(crate) fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

//! Runs the nashflock binary on scenarios in folders of their own.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nashflock::measure::Clock;
use serde_json::Value;
use tempfile::TempDir;

/// 24 requests of 16 tokens over two layers of 12 quantized experts, done in less than a second.
pub(crate) const SYNTHETIC: &str = r#"schema_version = 1
name = "small"
seed = 7
[source]
kind = "synthetic"
experts = 12
layers = 2
skew = 1.0
width = 32
expert_hidden = 32
[game]
router = "equilibrium"
top_k = 3
[precision]
budget = "4.5bpw"
[load]
arrival = "constant"
rate_per_s = 2000.0
requests = 24
tokens_per_request = 16
batch_requests_max = 4
"#;

/// Says why a test did not run, past the capture of the test harness: what was left out is seen where
/// the tests pass.
pub(crate) fn skipped(why: &str) {
    let test = std::thread::current();
    let said = format!("skipped: {}: {why}\n", test.name().unwrap_or("a test"));
    std::io::stderr().write_all(said.as_bytes()).expect("standard error is open");
}

/// A Python that can do `imports`: what a variable names, the environment that `.ci/run` makes, or the system's.
pub(crate) fn python(variable: &str, imports: &str) -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_nashflock")).ancestors().nth(2);
    let made = target.map(|target| target.join("grpc-venv/bin/python"));
    let found = [std::env::var_os(variable).map(PathBuf::from), made, Some("python3".into())];
    found.into_iter().flatten().find(|python| {
        let tried = Command::new(python).args(["-c", imports]).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    })
}

/// A folder with one scenario.
pub(crate) struct Folder {
    folder: TempDir,
}

impl Folder {
    pub(crate) fn with(scenario: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        fs::write(folder.path().join("scenario.toml"), scenario).expect("the file is written");
        Self { folder }
    }

    /// 6 requests of 16 tokens of a book, on the 64 experts of a trained checkpoint.
    pub(crate) fn with_checkpoint() -> Self {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/models");
        let checkpoint = models.join("books-moe-64e8k");
        let text = SYNTHETIC
            .replace("experts = 12\nlayers = 2\nskew = 1.0\nwidth = 32\nexpert_hidden = 32\n", "")
            .replace(
                "kind = \"synthetic\"",
                &format!(
                    "kind = \"checkpoint\"\ncheckpoint = {checkpoint:?}\ntext = [\"text.txt\"]"
                ),
            )
            .replace("top_k = 3\n", "")
            .replace(
                "\"4.5bpw\"",
                "\"4.5bpw\"\nwidths = [2, 4]\ncalibration_text = \"calibration.txt\"\ncalibration_tokens = 128",
            )
            .replace("requests = 24", "requests = 6");
        let folder = Self::with(&text);
        for (from, to) in [("murmuration.txt", "text.txt"), ("calibration.txt", "calibration.txt")]
        {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/text").join(from);
            let text = fs::read_to_string(from).expect("the text is in the repository");
            let short: String = text.chars().take(2_000).collect();
            fs::write(folder.path(to), short).expect("the file is written");
        }
        folder
    }

    /// Has the scenario decode answers of four tokens.
    #[cfg(any(feature = "prometheus", feature = "otel"))]
    pub(crate) fn decodes(&self) {
        const LENGTHS: &str =
            "[load.generation]\nlengths = \"fixed\"\nprompt_tokens = 8\ngenerated_tokens = 4\n";
        let file = self.path("scenario.toml");
        let text = fs::read_to_string(&file).expect("it was written");
        fs::write(file, text + LENGTHS).expect("writable");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Names in the folder, hidden ones too, ascending.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).expect("the folder is readable");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// The binary with this folder as its working directory.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nashflock"));
        command.args(args).current_dir(self.folder.path()).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the binary to its end.
    pub(crate) fn nashflock(&self, args: &[&str]) -> Ended {
        Ended::from(self.command(args).output().expect("the binary runs"))
    }

    /// Runs `scenario.toml` into `out` and gives what `--json` printed.
    pub(crate) fn summary(&self, out: &str, args: &[&str]) -> Value {
        let args = [&["run", "scenario.toml", "--json", "--out", out], args].concat();
        let ended = self.nashflock(&args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        ended.json()
    }
}

/// How the binary ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit code; none when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("the binary prints UTF-8");
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Ended {
    /// Standard output as one JSON object with nothing before or after it.
    pub(crate) fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.stdout, self.stderr));
        assert!(value.is_object(), "{value}");
        value
    }
}

/// A run in the background; killed when dropped.
pub(crate) struct Running {
    child: Option<Child>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        Self { child: Some(command.spawn().expect("the binary runs")) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it is kept until its end").id()
    }

    /// Waits until the run has this many children and gives their process ids.
    pub(crate) fn workers(&self, count: usize) -> Vec<u32> {
        let mut found = Vec::new();
        until("the workers are started", || {
            found = children(self.pid());
            found.len() == count
        });
        found
    }

    pub(crate) fn end(mut self) -> Ended {
        let child = self.child.take().expect("it is kept until its end");
        Ended::from(child.wait_with_output().expect("the binary ends"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends a signal, such as `INT`.
pub(crate) fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
    assert!(sent.expect("kill runs").success(), "signal {name} to {pid}");
}

/// Waits at most 20 s for something that happens soon.
pub(crate) fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let clock = Clock::start();
    while !happened() {
        assert!(clock.now_ns() < 60_000_000_000, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process runs; one that has ended but was not waited for does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("these tests need a Linux /proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| state_and_parent(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

fn state_and_parent(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

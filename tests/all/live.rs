//! `run --live` in a terminal of its own, and where there is none.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nashflock::results::{RunDir, Status};

use crate::binary::{Folder, SYNTHETIC, signal, skipped, until};

const ROWS: u16 = 30;
const COLUMNS: u16 = 110;

/// A run that lasts minutes unless it is stopped: a batch each 50 ms.
fn long() -> Folder {
    let slow = SYNTHETIC
        .replace("rate_per_s = 2000.0", "rate_per_s = 50.0")
        .replace("requests = 24", "requests = 10000");
    Folder::with(&slow)
}

/// A run in a terminal, as `script` makes one.
struct InTerminal {
    child: Child,
    screen: Arc<Mutex<vt100::Parser>>,
    reader: JoinHandle<()>,
}

impl InTerminal {
    /// None where there is no `script`.
    fn run(folder: &Folder, args: &str) -> Option<Self> {
        let program = env!("CARGO_BIN_EXE_nashflock");
        let command = format!(
            "stty rows {ROWS} cols {COLUMNS}; exec {program} run scenario.toml --out out --live {args}"
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"]);
        script.current_dir(folder.path("")).env("TERM", "xterm-256color").env("SHELL", "/bin/sh");
        script.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = match script.spawn() {
            Ok(child) => child,
            Err(error) => {
                skipped(&format!("no terminal without `script`: {error}"));
                return None;
            }
        };
        let screen = Arc::new(Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0)));
        let (mut output, drawn) = (child.stdout.take().expect("it is piped"), Arc::clone(&screen));
        let reader = std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut part) {
                drawn.lock().expect("nothing panics").process(&part[..read]);
            }
        });
        Some(Self { child, screen, reader })
    }

    fn press(&mut self, key: &str) {
        let input = self.child.stdin.as_mut().expect("it is piped");
        input.write_all(key.as_bytes()).and_then(|()| input.flush()).expect("it reads");
    }

    fn shows(&self) -> String {
        self.screen.lock().expect("nothing panics").screen().contents()
    }

    fn until_shows(&self, what: &str) -> String {
        until(&format!("the screen shows `{what}`"), || self.shows().contains(what));
        self.shows()
    }

    /// Batches that are done, as the screen says.
    fn batches(&self) -> u32 {
        let shows = self.shows();
        let (_, after) = shows.split_once("batch ").expect("it says so");
        after.split(' ').next().and_then(|count| count.parse().ok()).expect("a count")
    }

    /// Waits for the end: exit code, what is on the screen, and whether it is the dashboard's.
    fn end(mut self) -> (Option<i32>, String, bool) {
        let code = self.child.wait().expect("it ends").code();
        self.reader.join().expect("it reads to the end");
        let screen = self.screen.lock().expect("nothing panics");
        let is_dashboard = screen.screen().alternate_screen() || screen.screen().hide_cursor();
        (code, screen.screen().contents(), is_dashboard)
    }
}

#[test]
fn keys_pause_step_and_stop_a_run_that_is_drawn_and_the_terminal_is_given_back() {
    let folder = long();
    let Some(mut run) = InTerminal::run(&folder, "") else { return };
    let shows = run.until_shows("tokens by expert, layer 0 of 2");
    assert!(shows.contains("small  seed 7  router equilibrium"), "{shows}");
    run.press(" ");
    run.until_shows("paused");
    until("it stands still", || {
        let before = run.batches();
        std::thread::sleep(std::time::Duration::from_millis(400));
        run.batches() == before
    });
    let before = run.batches();
    run.press("s");
    until("one batch is played", || run.batches() == before + 1);
    std::thread::sleep(std::time::Duration::from_millis(400));
    assert_eq!(run.batches(), before + 1, "and no other");
    run.press("?");
    run.until_shows("exit code 130");
    run.press("?");
    run.press("q");
    let (code, shows, is_dashboard) = run.end();
    assert_eq!((code, is_dashboard), (Some(130), false), "{shows}");
    assert!(shows.contains("interrupted by q"), "{shows}");
    let summary = RunDir::open(&folder.path("out")).expect("a run").read_summary().expect("whole");
    assert_eq!(
        (summary.status, summary.status_detail.as_deref()),
        (Status::Interrupted, Some("q"))
    );
    assert!(summary.paused_ns.is_some_and(|paused_ns| paused_ns > 400_000_000));
    assert!(summary.outcomes.ok > 0 && folder.path("out/report.html").exists());
}

#[test]
fn a_signal_ends_a_drawn_run_as_any_other_and_gives_the_terminal_back() {
    for (key, said) in [(Some("\u{3}"), "Ctrl-C"), (None, "SIGTERM")] {
        let folder = long();
        let Some(mut run) = InTerminal::run(&folder, "") else { return };
        run.until_shows("tokens by expert");
        match key {
            Some(key) => run.press(key),
            None => {
                let of = run.child.id().to_string();
                let child = Command::new("pgrep").args(["--parent", &of]).output();
                let pids = child.expect("pgrep is there").stdout;
                let pid = String::from_utf8_lossy(&pids).trim().parse().expect("one child");
                signal("TERM", pid);
            }
        }
        let (code, shows, is_dashboard) = run.end();
        assert_eq!((code, is_dashboard), (Some(130), false), "{shows}");
        assert!(shows.contains(&format!("interrupted by {said}")), "{shows}");
    }
}

#[test]
fn a_drawn_run_that_completes_leaves_its_table_on_the_screen() {
    let folder = Folder::with(SYNTHETIC);
    let Some(run) = InTerminal::run(&folder, "") else { return };
    let (code, shows, is_dashboard) = run.end();
    assert_eq!((code, is_dashboard), (Some(0), false), "{shows}");
    assert!(shows.contains("results in out"), "{shows}");
}

#[test]
fn without_a_terminal_a_run_prints_lines_and_the_same_summary() {
    let folder = Folder::with(&SYNTHETIC.replace("rate_per_s = 2000.0", "rate_per_s = 20.0"));
    let ended = folder.nashflock(&["run", "scenario.toml", "--live", "--json", "--out", "out"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let mut lines = ended.stderr.lines();
    assert_eq!(lines.next(), Some("note: --live prints lines: standard error is no terminal"));
    assert!(lines.any(|line| line.starts_with("serving")), "{}", ended.stderr);
    assert_eq!(ended.json()["outcomes"]["ok"], 24);
    let quiet = folder.nashflock(&["run", "scenario.toml", "--out", "quiet"]);
    assert_eq!(quiet.stderr, "", "nothing is said where nobody asked");
}

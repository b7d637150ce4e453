//! `run --serve`: a run as a web page while it goes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStderr};
use std::time::Duration;

use nashflock::measure::Clock;
use nashflock::results::{PaceState, RunDir, Snapshot, Status};

use crate::binary::{Folder, SYNTHETIC};
use crate::http::{self, Page};

/// A run that is served, and where.
struct Served {
    child: Child,
    stderr: BufReader<ChildStderr>,
    at: String,
}

/// A batch each 50 ms, for 1.2 s.
fn short() -> Folder {
    Folder::with(&SYNTHETIC.replace("rate_per_s = 2000.0", "rate_per_s = 20.0"))
}

impl Served {
    fn run(folder: &Folder) -> Self {
        let mut command = folder.command(&["run", "scenario.toml", "--out", "out", "--serve"]);
        let mut child = command.spawn().expect("the binary starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("it says where");
        let at = line.trim().strip_prefix("watch at http://").and_then(|at| at.strip_suffix('/'));
        let at = at.unwrap_or_else(|| panic!("no address: {line}")).to_owned();
        assert!(at.starts_with("127.0.0.1:"), "{at}");
        Self { child, stderr, at }
    }

    fn connected(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.at).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        stream
    }

    fn ask(&self, request: &str, headers: &str) -> Page {
        http::ask(&self.at, request, headers).expect("it answers")
    }

    fn host(&self) -> String {
        format!("Host: {}\r\n", self.at)
    }

    fn snapshot(&self) -> Snapshot {
        let page = self.ask("GET /snapshot.json", &self.host());
        assert_eq!(page.status, 200);
        serde_json::from_str(&page.body).expect("a snapshot")
    }

    fn until(&self, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let mut snapshot = self.snapshot();
        crate::binary::until(what, || {
            snapshot = self.snapshot();
            holds(&snapshot)
        });
        snapshot
    }

    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).expect("text");
        (self.child.wait().expect("it ends").code(), said)
    }
}

#[test]
fn events_tell_a_run_to_its_end_and_the_last_says_what_the_summary_says() {
    let folder = short();
    let served = Served::run(&folder);
    let mut stream = served.connected();
    let request = format!("GET /events HTTP/1.1\r\n{}\r\n", served.host());
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it is told to the end");
    assert!(text.contains("content-type: text/event-stream"), "{text}");
    let snapshots: Vec<Snapshot> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).expect("a snapshot"))
        .collect();
    assert!(snapshots.len() > 5, "{} snapshots", snapshots.len());
    for pair in snapshots.windows(2) {
        let counts = |of: &Snapshot| [of.rounds, of.answered, of.tokens_answered, of.elapsed_ns];
        let (before, after) = (counts(&pair[0]), counts(&pair[1]));
        assert!(before.iter().zip(after).all(|(a, b)| *a <= b), "{before:?} {after:?}");
    }
    assert_eq!(served.end().0, Some(0));
    let summary = RunDir::open(&folder.path("out")).expect("a run").read_summary().expect("whole");
    let last = snapshots.last().expect("some");
    assert_eq!(last.end.as_ref().map(|end| end.status), Some(Status::Complete));
    assert_eq!((last.outcomes, &last.latency_ns), (summary.outcomes, &summary.latency_ns));
    assert_eq!(last.tokens_per_s, summary.throughput.tokens_per_s);
    assert_eq!((last.rounds, last.pace), (summary.convergence.rounds, PaceState::Running));
    assert_eq!(last.epsilon_nash_worst, summary.convergence.epsilon_nash);
}

#[test]
fn the_page_carries_all_it_needs_and_strangers_are_refused() {
    let folder = short();
    let served = Served::run(&folder);
    let Page { status, head, body } = served.ask("GET /", &served.host());
    assert_eq!(status, 200, "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    for foreign in ["src=", "href=", "@import", "http:", "https:"] {
        let text = body.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains(foreign), "{foreign}");
    }
    let port = served.at.rsplit(':').next().expect("a port");
    let own = served.host();
    let origin = format!("{own}Origin: http://{}\r\n", served.at);
    let strange = format!("{own}Origin: http://evil.example\r\n");
    let rebound = format!("Host: evil.example:{port}\r\n");
    let rebound_page = format!("{rebound}Origin: http://evil.example:{port}\r\n");
    for (line, headers, expected) in [
        ("GET /", &rebound, 421),
        ("GET /events", &rebound, 421),
        ("GET /snapshot.json", &rebound, 421),
        ("GET /", &String::new(), 421),
        ("POST /pause", &rebound_page, 421),
        ("POST /pause", &own, 403),
        ("POST /pause", &strange, 403),
        ("GET /pause", &origin, 405),
        ("DELETE /", &origin, 405),
        ("POST /", &origin, 405),
        ("GET /etc/passwd", &own, 404),
    ] {
        let Page { status, head, .. } = served.ask(line, headers);
        assert_eq!(status, expected, "{line} {headers}: {head}");
    }
    assert_eq!(served.end(), (Some(0), String::new()), "nobody paused it");
}

#[test]
fn the_page_itself_pauses_steps_and_goes_on() {
    let folder = short();
    let served = Served::run(&folder);
    let tell = |what: &str| {
        let headers = format!("{}Origin: http://{}\r\n", served.host(), served.at);
        assert_eq!(served.ask(&format!("POST /{what}"), &headers).status, 204, "{what}");
    };
    tell("pause");
    let stands = |of: &Snapshot| of.phase == "serving" && of.pace == PaceState::Paused;
    served.until("it stands still", stands);
    std::thread::sleep(Duration::from_millis(300));
    let before = served.snapshot();
    assert!(before.steps_done < before.steps, "it had not ended");
    tell("step");
    let next = before.steps_done + 1;
    let after = served.until("a batch more", |snapshot| snapshot.steps_done == next);
    assert_eq!((after.pace, after.phase.as_str()), (PaceState::Paused, "serving"));
    tell("go-on");
    assert_eq!(served.end().0, Some(0));
    let summary = RunDir::open(&folder.path("out")).expect("a run").read_summary().expect("whole");
    assert_eq!((summary.status, summary.outcomes.ok), (Status::Complete, 24));
    assert!(summary.paused_ns.is_some_and(|paused_ns| paused_ns > 300_000_000));
}

#[test]
fn readers_that_read_nothing_do_not_hold_a_run_up() {
    let folder = short();
    let alone = folder.summary("alone", &[]);
    let clock = Clock::start();
    let served = Served::run(&folder);
    // More than may be connected at once.
    let readers: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = served.connected();
            let request = format!("GET /events HTTP/1.1\r\n{}\r\n", served.host());
            // Those beyond are closed.
            let _ = stream.write_all(request.as_bytes());
            stream
        })
        .collect();
    assert_eq!(served.end().0, Some(0));
    assert!(clock.now_ns() < 20_000_000_000, "it ended without waiting for them");
    drop(readers);
    let summary = RunDir::open(&folder.path("out")).expect("a run").read_summary().expect("whole");
    assert_eq!(summary.outcomes.ok, 24);
    assert_eq!(summary.state_hash, alone["state_hash"]);
}

#[test]
fn an_address_that_is_taken_or_no_address_is_said_before_anything_starts() {
    let folder = short();
    let served = Served::run(&folder);
    let second =
        |at: &str| folder.nashflock(&["run", "scenario.toml", "--out", "two", "--serve", at]);
    let taken = second(&served.at);
    assert_eq!(taken.code, Some(2));
    let said = format!("--serve: cannot listen on {}: ", served.at);
    assert!(taken.stderr.starts_with(&said) && taken.stderr.contains("help: "), "{}", taken.stderr);
    let none = second("nowhere");
    assert_eq!(none.code, Some(2));
    assert!(none.stderr.contains("--serve at the end"), "{}", none.stderr);
    assert!(!folder.path("two").exists(), "nothing was started");
    assert_eq!(served.end().0, Some(0));
}

//! Prints the page of watched runs: how one is watched, and what that costs it.
//!
//! `cargo bench --bench watching --features prometheus > docs/watching.md`
#![allow(clippy::print_stdout, reason = "the page is the output")]

use agents::game::Registries;
use nashflock::export::{MetricsAddress, RunPage};
use nashflock::measure::Clock;
use nashflock::results::Snapshot;
use nashflock::run::timeline::Took;
use nashflock::run::{self, Feed, Listeners, Progress, RunSettings};
use nashflock::scenario::{self, Known, Scenario};
use nashflock::transport::RunToken;
use nashflock::watching::{View, WebPage};
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};
use std::error::Error;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

type Failure = Box<dyn Error + Send + Sync>;

/// Times that each way is played; odd, for a median that is one of them.
const TIMES: usize = 9;

/// Two runs: rounds as short as they get, where what is done each round weighs most, and as long as those of
/// scenarios/quickstart.toml.
const SCENARIOS: [(&str, &str); 2] = [
    (
        "rounds of 64 tokens, 12 experts",
        r#"# Question: what does watching cost where rounds are short?
schema_version = 1
name = "short-rounds"
seed = 7
[source]
kind = "synthetic"
experts = 12
skew = 1.0
width = 16
expert_hidden = 16
[game]
router = "equilibrium"
top_k = 3
[load]
arrival = "constant"
rate_per_s = 1000000.0
requests = 40000
tokens_per_request = 16
batch_requests_max = 4
[compute]
threads = 1
"#,
    ),
    (
        "rounds of 1024 tokens, 64 experts",
        r#"# Question: what does watching cost where rounds are as long as usual?
schema_version = 1
name = "usual-rounds"
seed = 7
[source]
kind = "synthetic"
experts = 64
layers = 2
skew = 1.0
width = 128
expert_hidden = 128
[game]
router = "equilibrium"
top_k = 8
[load]
arrival = "constant"
rate_per_s = 1000000.0
requests = 960
tokens_per_request = 64
batch_requests_max = 16
[compute]
threads = 1
"#,
    ),
];

/// Who watches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Nobody,
    Again,
    Live,
    Serve,
    Read,
    Metrics,
    Scraped,
}

impl Way {
    const ALL: [Self; 7] = [
        Self::Nobody,
        Self::Again,
        Self::Live,
        Self::Serve,
        Self::Read,
        Self::Metrics,
        Self::Scraped,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Again => "nobody, again: the control",
            Self::Live => "`--live`",
            Self::Serve => "`--serve`, nobody reads",
            Self::Read => "`--serve`, one reader",
            Self::Metrics => "`--metrics`, nobody reads",
            Self::Scraped => "`--metrics`, a scrape a second",
        }
    }
}

/// Counts what a listener is told.
#[derive(Default)]
struct Told {
    snapshots: AtomicU64,
    times: AtomicU64,
}

struct Counted<'a> {
    listener: &'a dyn Progress,
    told: &'a Told,
}

impl Progress for Counted<'_> {
    fn phase(&self, name: &str) {
        self.listener.phase(name);
    }

    fn answered(&self, answered: u64, requests: u64) {
        self.listener.answered(answered, requests);
    }

    fn wants_snapshots(&self) -> bool {
        self.listener.wants_snapshots()
    }

    fn snapshot(&self, snapshot: &Snapshot) {
        self.told.snapshots.fetch_add(1, Ordering::Relaxed);
        self.listener.snapshot(snapshot);
    }

    fn wants_times(&self) -> bool {
        self.listener.wants_times()
    }

    fn took(&self, took: &Took) {
        self.told.times.fetch_add(1, Ordering::Relaxed);
        self.listener.took(took);
    }
}

/// What one run came to.
struct Played {
    serving_s: f64,
    rounds: u64,
    snapshots: u64,
    times: u64,
    state_hash: String,
}

fn main() -> Result<(), Failure> {
    print!("{}", include_str!("watching.md"));
    let folder = tempfile::tempdir()?;
    let registries = Registries::standard();
    for (name, text) in SCENARIOS {
        let file = folder.path().join("scenario.toml");
        fs::write(&file, text)?;
        let routers = registries.routers.names().map(str::to_owned).collect();
        let Registries { costs, allocators, motions, migrations, .. } = &registries;
        let known = Known { routers, costs, allocators, motions, migrations };
        let scenario = scenario::load(&file, &[], &known).map_err(|_| "a bad scenario")?;
        let play = |way| play(&scenario, &registries, folder.path(), way);
        play(Way::Nobody)?;
        let mut runs: Vec<Vec<Played>> = Way::ALL.iter().map(|_| Vec::new()).collect();
        for time in 0..TIMES {
            // Another goes first each time.
            for at in 0..Way::ALL.len() {
                let at = (at + time) % Way::ALL.len();
                runs[at].push(play(Way::ALL[at])?);
            }
        }
        table(name, &runs)?;
    }
    println!(
        "\nThe run waits while it fills a snapshot, at most ten times a second, and hands it over; with `--metrics` it also \
         counts every stage and order of every round. Nobody who is slow holds it up: each gets the latest there \
         is."
    );
    Ok(())
}

fn play(
    scenario: &Scenario,
    registries: &Registries,
    folder: &Path,
    way: Way,
) -> Result<Played, Failure> {
    let told = Told::default();
    let out = folder.join("run");
    let played = listened(scenario, way, &told, &|progress| {
        let settings = RunSettings {
            command: vec!["bench".to_owned()],
            program: Path::new(env!("CARGO_BIN_EXE_nashflock")),
            out: Some(out.clone()),
            registries,
            progress,
            run_token: RunToken::default(),
            hosts_worker: false,
            at_once: true,
            trace: false,
            observe: false,
            is_scratch: true,
            shared: None,
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let end = pool.install(|| {
            runtime.block_on(async { run::run(scenario, settings, &Clock::start()).await })
        })?;
        match end.failure {
            Some(failure) => Err(failure.into()),
            None => Ok(end.summary),
        }
    });
    fs::remove_dir_all(&out)?;
    let summary = played?;
    Ok(Played {
        serving_s: summary.throughput.elapsed_ns as f64 / 1e9,
        rounds: summary.convergence.rounds,
        snapshots: told.snapshots.into_inner(),
        times: told.times.into_inner(),
        state_hash: summary.state_hash,
    })
}

/// Does the work while somebody listens.
fn listened<T>(
    scenario: &Scenario,
    way: Way,
    told: &Told,
    work: &dyn Fn(&dyn Progress) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let listened = |listener: &dyn Progress| work(&Counted { listener, told });
    match way {
        Way::Nobody | Way::Again => listened(&Listeners(Vec::new())),
        Way::Live => {
            let feed = Feed::new(scenario);
            let ends = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| draw(&feed, &ends));
                let done = listened(&feed);
                ends.store(true, Ordering::Relaxed);
                done
            })
        }
        Way::Serve | Way::Read => {
            let feed = Arc::new(Feed::new(scenario));
            let page = WebPage::start(LOOPBACK, Arc::clone(&feed))?;
            let at = page.address();
            thread::scope(|scope| {
                if way == Way::Read {
                    let mut stream = asked(at, "/events")?;
                    scope.spawn(move || io::copy(&mut stream, &mut io::sink()));
                }
                let done = listened(&*feed);
                page.end();
                done
            })
        }
        Way::Metrics | Way::Scraped => {
            let page = RunPage::serve(MetricsAddress(LOOPBACK))?;
            let at = page.address();
            let ends = AtomicBool::new(false);
            thread::scope(|scope| {
                if way == Way::Scraped {
                    scope.spawn(|| scrape(at, &ends));
                }
                let done = listened(&page);
                ends.store(true, Ordering::Relaxed);
                done
            })
        }
    }
}

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What the dashboard does, on a terminal that goes nowhere.
fn draw(feed: &Feed, ends: &AtomicBool) {
    let area = Rect::new(0, 0, 110, 30);
    let options = TerminalOptions { viewport: Viewport::Fixed(area) };
    let backend = CrosstermBackend::new(io::sink());
    let mut terminal = Terminal::with_options(backend, options).expect("it has no size to ask for");
    let mut view = View::default();
    let mut latest = feed.subscribe();
    while !ends.load(Ordering::Relaxed) {
        view.see(&latest.borrow_and_update());
        let drawn = terminal.draw(|frame| view.draw(frame.area(), frame.buffer_mut()));
        drawn.expect("nothing is written");
        thread::sleep(Duration::from_millis(100));
    }
}

fn asked(at: SocketAddr, path: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(at)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n")?;
    Ok(stream)
}

fn scrape(at: SocketAddr, ends: &AtomicBool) {
    const LOOK: Duration = Duration::from_millis(10);
    let mut looks = 0_u64;
    while !ends.load(Ordering::Relaxed) {
        if looks.is_multiple_of(100) {
            let mut page = String::new();
            let read =
                asked(at, "/metrics").and_then(|mut stream| stream.read_to_string(&mut page));
            read.expect("the page is there");
            assert!(page.contains("nashflock_rounds_total"), "{page}");
        }
        looks += 1;
        thread::sleep(LOOK);
    }
}

fn table(name: &str, runs: &[Vec<Played>]) -> Result<(), Failure> {
    let first = &runs[0][0];
    if runs.iter().flatten().any(|run| run.state_hash != first.state_hash) {
        return Err("somebody who watches changed the game".into());
    }
    println!("\n**{name}**, {} rounds a run, {TIMES} runs each, one `state_hash`:\n", first.rounds);
    println!(
        "| who watches | serving, s: median | least to most | beside nobody, %: median | least to most | µs a round | snapshots a run | times told a round |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (way, of_way) in Way::ALL.iter().zip(runs) {
        let serving: Vec<f64> = of_way.iter().map(|run| run.serving_s).collect();
        let beside = |(run, nobody): (&Played, &Played)| run.serving_s / nobody.serving_s - 1.0;
        let percent: Vec<f64> = of_way.iter().zip(&runs[0]).map(beside).map(|p| 1e2 * p).collect();
        let added_us: Vec<f64> = of_way
            .iter()
            .zip(&runs[0])
            .map(|(run, nobody)| (run.serving_s - nobody.serving_s) * 1e6 / first.rounds as f64)
            .collect();
        let [serving, percent, added] = [serving, percent, added_us].map(spread);
        let times = of_way[0].times as f64 / first.rounds as f64;
        let beside = match way {
            Way::Nobody => "– | – | –".to_owned(),
            _ => format!(
                "{:+.1} | {:+.1} to {:+.1} | {:+.2}",
                percent[1], percent[0], percent[2], added[1]
            ),
        };
        let mean = of_way.iter().map(|run| run.snapshots).sum::<u64>() as f64 / TIMES as f64;
        println!(
            "| {} | {:.3} | {:.3} to {:.3} | {beside} | {mean:.0} | {times:.1} |",
            way.name(),
            serving[1],
            serving[0],
            serving[2],
        );
    }
    Ok(())
}

/// Least, median and most.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

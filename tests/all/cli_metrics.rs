//! `--metrics`: figures for Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use agents::game::Registries;
use nashflock::export::{MetricsAddress, RunPage};
use nashflock::measure::Clock;
use nashflock::results::Summary;
use nashflock::run::{self, RunSettings};
use nashflock::scenario::{self, Known};
use nashflock::transport::RunToken;
use proto::ShardChunk;
use proto::expert_service_client::ExpertServiceClient;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::binary::{Folder, Running, SYNTHETIC, is_alive, signal, skipped, until};
use crate::scrape::{
    Prometheus, Scraped, ask, families, free_address, promtool, scraping, scraping_every,
};

/// A worker that serves its figures; killed when dropped.
struct Worker {
    child: Child,
    listening: String,
    metrics: String,
}

impl Worker {
    fn start(folder: &Folder) -> Self {
        let args = ["worker", "--listen", "127.0.0.1:0", "--threads", "1", "--metrics", "0"];
        let mut command = folder.command(&args);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the binary runs");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("one line");
        let said: Value = serde_json::from_str(&line).expect("one JSON line");
        let address = |key: &str| said[key].as_str().expect("an address").to_owned();
        Self { child, listening: address("listening"), metrics: address("metrics") }
    }

    fn figures(&self) -> Scraped {
        Scraped::from(&self.metrics).expect("it serves")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn count(of: &Value) -> f64 {
    of.as_f64().unwrap_or_else(|| panic!("{of} is a number"))
}

#[test]
fn a_workers_figures_agree_with_the_summary_of_the_run_that_it_served() {
    let folder = Folder::with(SYNTHETIC);
    let worker = Worker::start(&folder);
    let config = scraping(&[("worker", &worker.metrics)]);
    let prometheus = Prometheus::start(&folder.path("."), &config);
    let before = worker.figures();
    assert_eq!(before.get("nashflock_worker_orders_total"), 0.0);
    assert_eq!(before.get("nashflock_worker_shards"), 0.0);

    let alone = folder.summary("alone", &[]);
    let nodes = format!("peers:{}", worker.listening);
    let summary = folder.summary("out", &["--nodes", &nodes]);
    assert_eq!(summary["state_hash"], alone["state_hash"], "who looks on changes nothing");
    let figures = worker.figures();
    let node = &summary["nodes"][0];
    let pairs = count(&summary["pairs"]["dispatched"]);
    assert_eq!(figures.get("nashflock_worker_token_experts_total"), pairs);
    assert_eq!(figures.get("nashflock_worker_shards_loaded_total"), count(&node["experts"]));
    let orders = figures.get("nashflock_worker_orders_total");
    assert_eq!(figures.get("nashflock_worker_compute_seconds_count"), orders);
    let last = "nashflock_worker_compute_seconds_bucket{le=\"+Inf\"}";
    assert_eq!(figures.get(last), orders);
    assert!(figures.get("nashflock_worker_compute_seconds_sum") > 0.0);
    assert_eq!(figures.sum("nashflock_worker_orders_refused_total"), 0.0);
    assert_eq!(figures.get("nashflock_worker_draining"), 0.0);

    let Some(prometheus) = prometheus else { return skipped("there is no prometheus") };
    prometheus.until("nashflock_worker_token_experts_total", pairs);
    prometheus.until("up{job=\"worker\"}", 1.0);
    let quantile = "histogram_quantile(0.5, nashflock_worker_compute_seconds_bucket)";
    assert!(prometheus.query(quantile).is_some_and(|seconds| seconds > 0.0 && seconds < 10.0));
    let formats = [
        ("", "text/plain; version=0.0.4"),
        ("Accept: application/openmetrics-text;version=1.0.0\r\n", "application/openmetrics-text"),
    ];
    for (asked, format) in formats {
        let page = ask(&worker.metrics, "GET /metrics", asked).expect("it serves");
        assert!(page.head.contains(&format!("content-type: {format}")), "{}", page.head);
        assert_eq!(page.body.ends_with("# EOF\n"), !asked.is_empty(), "{}", page.body);
        if asked.is_empty() {
            let checked = promtool(&page.body).expect("it comes with prometheus");
            assert_eq!(checked, Ok(()), "{}", page.body);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_worker_that_drains_says_so_until_it_has_ended() {
    let folder = Folder::with(SYNTHETIC);
    let worker = Worker::start(&folder);
    let endpoint = nashflock::dispatch::endpoint(&worker.listening).expect("an address");
    let channel = endpoint.connect().await.expect("it listens");
    let mut client = ExpertServiceClient::new(channel);
    // An upload of which nothing comes keeps it from ending at once.
    let (chunks, upload) = mpsc::channel::<ShardChunk>(1);
    let mut uploads = client.clone();
    let stalled =
        tokio::spawn(async move { uploads.load_shard(ReceiverStream::new(upload)).await });
    until("the upload is under way", || worker.figures().get("nashflock_worker_calls") == 1.0);
    assert_eq!(worker.figures().get("nashflock_worker_connections{peer=\"known\"}"), 1.0);
    signal("TERM", worker.child.id());
    until("it drains", || worker.figures().get("nashflock_worker_draining") == 1.0);
    let refused = client.load_shard(tokio_stream::empty()).await.expect_err("it is draining");
    assert_eq!(refused.code(), Code::Unavailable);
    let turned_away = "nashflock_worker_calls_refused_total{reason=\"draining\"}";
    assert_eq!(worker.figures().get(turned_away), 1.0);
    drop(chunks);
    let failed = stalled.await.expect("it does not panic").expect_err("it was no upload");
    assert_eq!(failed.code(), Code::InvalidArgument);
    until("it has ended", || !is_alive(worker.child.id()));
    assert!(Scraped::from(&worker.metrics).is_none(), "the page ends with it");
}

#[test]
fn who_asks_for_something_else_or_says_nothing_costs_nobody_the_figures() {
    let folder = Folder::with(SYNTHETIC);
    let worker = Worker::start(&folder);
    let status = |request: &str| ask(&worker.metrics, request, "").map(|page| page.status);
    assert_eq!(status("GET /"), Some(404));
    assert_eq!(status("POST /metrics"), Some(405));
    assert_eq!(status("HEAD /metrics"), Some(200));
    let long = format!("GET /{}", "a".repeat(1 << 17));
    assert!(status(&long).is_none_or(|status| status >= 400));
    // Fewer than there is room for, and none of them ever says what it wants.
    let mut silent: Vec<TcpStream> =
        (0..12).map(|_| TcpStream::connect(&worker.metrics).expect("it listens")).collect();
    silent.iter_mut().for_each(|silent| silent.write_all(b"GET /met").expect("it is taken"));
    assert_eq!(status("GET /metrics"), Some(200));
    // All of the room: others are turned away, and come in once it is free again.
    silent.extend((0..8).filter_map(|_| TcpStream::connect(&worker.metrics).ok()));
    drop(silent);
    until("there is room again", || status("GET /metrics") == Some(200));
}

#[test]
fn an_address_that_is_taken_or_none_is_bad_input() {
    let folder = Folder::with(SYNTHETIC);
    let worker = Worker::start(&folder);
    let args = ["worker", "--listen", "127.0.0.1:0", "--metrics"];
    let taken = folder.nashflock(&[&args[..], &[&worker.metrics]].concat());
    assert_eq!(taken.code, Some(2), "{}", taken.stderr);
    assert!(taken.stderr.contains("cannot listen on"), "{}", taken.stderr);
    let none = folder.nashflock(&[&args[..], &["localhost"]].concat());
    assert_eq!(none.code, Some(2), "{}", none.stderr);
    assert!(none.stderr.contains("nor IP:PORT"), "{}", none.stderr);
}

/// What the page of the book lists below a heading.
fn listed(heading: &str) -> BTreeMap<String, String> {
    let page = source("docs/observing.md");
    let section = page.split(heading).nth(1).expect("the section is there");
    let section = section.split("\n## ").next().and_then(|of| of.split("\n### ").next());
    let rows = section.expect("it has an end").lines().filter(|line| line.starts_with("| `nash"));
    rows.map(|row| {
        let mut cells = row.split('|').map(str::trim).skip(1);
        let mut cell = || cells.next().expect("three cells").trim_matches('`').to_owned();
        (cell(), cell())
    })
    .collect()
}

fn source(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn page(address: &str) -> String {
    ask(address, "GET /metrics", "").expect("it serves").body
}

/// A run in this process, whose page outlives it.
async fn play(folder: &Folder, sets: &[&str], page: &RunPage) -> Summary {
    let registries = Registries::standard();
    let routers = registries.routers.names().map(str::to_owned).collect();
    let Registries { costs, allocators, motions, migrations, .. } = &registries;
    let known = Known { routers, costs, allocators, motions, migrations };
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let scenario = scenario::load(&folder.path("scenario.toml"), &sets, &known).expect("good");
    let settings = RunSettings {
        command: vec!["test".to_owned()],
        program: Path::new(env!("CARGO_BIN_EXE_nashflock")),
        out: Some(folder.path("out")),
        registries: &registries,
        progress: page,
        run_token: RunToken::default(),
        hosts_worker: false,
        at_once: false,
        trace: false,
        observe: false,
        is_scratch: false,
        shared: None,
    };
    let end = run::run(&scenario, settings, &Clock::start()).await.expect("good input");
    assert!(end.failure.is_none());
    end.summary
}

fn agree(figures: &Scraped, summary: &Summary) {
    let is = |series: &str, value: f64| assert_eq!(figures.get(series), value, "{series}");
    for (outcome, count) in summary.outcomes.rows() {
        is(&format!("nashflock_requests_total{{outcome=\"{outcome}\"}}"), count as f64);
    }
    let answered = (summary.outcomes.ok + summary.outcomes.late) as f64;
    is("nashflock_run_requests", summary.outcomes.total() as f64);
    is("nashflock_request_seconds_count", answered);
    is("nashflock_rounds_total", summary.convergence.rounds as f64);
    is("nashflock_stage_seconds_count{stage=\"respond\"}", summary.convergence.rounds as f64);
    is("nashflock_epsilon_nash_worst", summary.convergence.epsilon_nash.expect("certified"));
    is("nashflock_relative_gap_worst", summary.convergence.relative_gap.expect("certified"));
    is("nashflock_nodes", summary.nodes.len() as f64);
    for node in &summary.nodes {
        let of = |name: &str| format!("nashflock_node_{name}{{node=\"{}\"}}", node.node);
        is(&of("token_experts_total"), node.tokens as f64);
        is(&of("experts"), node.experts as f64);
        is(&of("shards_bytes"), node.bytes as f64);
        let up = format!("nashflock_node_state{{node=\"{}\",state=\"up\"}}", node.node);
        is(&up, f64::from(u8::from(node.alive)));
    }
    // Of each request its own latency: the largest is below the first bound that holds them all.
    let bound = |q_ns: Option<u64>| q_ns.expect("requests were answered") as f64 / 1e9;
    let (p50, most) = (bound(summary.latency_ns.p50), bound(summary.latency_ns.max));
    let buckets: Vec<(f64, f64)> = figures.buckets("nashflock_request_seconds_bucket");
    let within = |share: f64| buckets.iter().find(|(_, count)| *count >= share * answered);
    assert!(within(1.0).is_some_and(|(bound, _)| *bound >= most), "{buckets:?} {most}");
    assert!(within(0.5).is_some_and(|(bound, _)| *bound >= p50 * 0.99), "{buckets:?} {p50}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_runs_figures_agree_with_its_summary_and_prometheus_reads_them() {
    let folder = Folder::with(SYNTHETIC);
    let run_page = RunPage::serve(MetricsAddress(([127, 0, 0, 1], 0).into())).expect("a free port");
    let address = run_page.address().to_string();
    let config = scraping(&[("run", &address)]);
    let prometheus = Prometheus::start(&folder.path("."), &config);
    let started = Scraped::from(&address).expect("it serves");
    assert_eq!(started.get("nashflock_run_phase{phase=\"starting\"}"), 1.0);
    let engine = ["nodes.engine=\"local\"", "nodes.count=2"];
    let summary = play(&folder, &engine, &run_page).await;
    let text = page(&address);
    let figures = Scraped::parse(&text);
    agree(&figures, &summary);
    let loads = |layer: u32| format!("nashflock_expert_tokens{{layer=\"{layer}\",expert=\"11\"}}");
    assert!(figures.get(&loads(0)) >= 0.0 && figures.get(&loads(1)) >= 0.0);
    assert_eq!(figures.get("nashflock_faults_total{kind=\"lost_node\"}"), 0.0);
    let Some(prometheus) = prometheus else { return skipped("there is no prometheus") };
    assert_eq!(promtool(&text).expect("it comes with prometheus"), Ok(()), "{text}");
    let rounds = summary.convergence.rounds as f64;
    prometheus.until("nashflock_rounds_total", rounds);
    prometheus.until("sum(nashflock_requests_total)", summary.outcomes.total() as f64);
    let pairs: u64 = summary.nodes.iter().map(|node| node.tokens).sum();
    prometheus.until("sum(nashflock_node_token_experts_total)", pairs as f64);
    prometheus.until("max(nashflock_run_info{scenario=\"small\",router=\"equilibrium\"})", 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn times_of_answers_that_are_decoded_are_told() {
    let folder = Folder::with_checkpoint();
    folder.decodes();
    let run_page = RunPage::serve(MetricsAddress(([127, 0, 0, 1], 0).into())).expect("a free port");
    let address = run_page.address().to_string();
    let summary = play(&folder, &[], &run_page).await;
    let figures = Scraped::from(&address).expect("it serves");
    agree(&figures, &summary);
    let answered = (summary.outcomes.ok + summary.outcomes.late) as f64;
    assert_eq!(figures.get("nashflock_first_token_seconds_count"), answered);
    assert_eq!(figures.get("nashflock_token_seconds_count"), answered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn of_many_experts_only_the_largest_load_is_told() {
    let folder = Folder::with(&SYNTHETIC.replace("experts = 12", "experts = 300"));
    let run_page = RunPage::serve(MetricsAddress(([127, 0, 0, 1], 0).into())).expect("a free port");
    let summary = play(&folder, &[], &run_page).await;
    let figures = Scraped::from(&run_page.address().to_string()).expect("it serves");
    agree(&figures, &summary);
    assert!(!figures.0.keys().any(|series| series.starts_with("nashflock_expert_tokens")));
    assert!(figures.get("nashflock_max_over_mean{layer=\"1\"}") >= 1.0);
}

#[test]
fn a_run_that_prometheus_scrapes_stays_until_it_has_the_figures_of_the_summary() {
    let folder = Folder::with_checkpoint();
    let (at, joined_at) = (free_address(), free_address());
    // A scrape may take as long as the machine likes.
    let config = scraping_every("2s", &[("run", &at)]);
    let Some(prometheus) = Prometheus::start(&folder.path("."), &config) else {
        return skipped("there is no prometheus");
    };
    let command = |args: &[&str]| {
        let mut command = folder.command(args);
        command.env("NASHFLOCK_RUN_TOKEN", "of this run");
        command
    };
    let nodes = format!("join:{joined_at}:1");
    let args = ["run", "scenario.toml", "--json", "--out", "watched", "--nodes", &nodes];
    let run = Running::start(command(&[&args[..], &["--metrics", &at]].concat()));
    let phase =
        |name: &str| format!("count_over_time(nashflock_run_phase{{phase=\"{name}\"}}[10m])");
    let has_seen = |name: &str| prometheus.query(&phase(name)).is_some();
    until("the run is scraped while it waits", || has_seen("waiting for workers"));
    let args = ["worker", "--listen", "127.0.0.1:0", "--threads", "1", "--join", &joined_at];
    let worker = Running::start(command(&args));
    let ended = run.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("until they are read once more"), "{}", ended.stderr);
    assert_eq!(worker.end().code, Some(0));
    let summary = ended.json();
    let alone = folder.summary("alone", &[]);
    assert_eq!(summary["state_hash"], alone["state_hash"], "who looks on changes nothing");

    until("what was scraped is stored", || has_seen("over"));
    let last = |series: &str| prometheus.query(&format!("last_over_time({series}[10m])"));
    let rounds = count(&summary["convergence"]["rounds"]);
    assert_eq!(last("nashflock_rounds_total"), Some(rounds));
    let outcome = "nashflock_requests_total{outcome=\"ok\"}";
    assert_eq!(last(outcome), Some(count(&summary["outcomes"]["ok"])));
    let pairs = count(&summary["nodes"][0]["tokens"]);
    assert_eq!(last("nashflock_node_token_experts_total{node=\"0\"}"), Some(pairs));
    assert!(last("nashflock_sent_bytes_total").is_some_and(|bytes| bytes > 0.0));
}

#[test]
fn a_run_that_nobody_scrapes_and_one_that_is_stopped_wait_for_nobody() {
    let folder = Folder::with(SYNTHETIC);
    let ended = folder.nashflock(&["run", "scenario.toml", "--out", "unread", "--metrics", "0"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("read once more"), "{}", ended.stderr);

    let (at, nodes) = (free_address(), format!("join:{}:1", free_address()));
    let args = ["run", "scenario.toml", "--out", "stopped", "--nodes", &nodes, "--metrics", &at];
    let run = Running::start(folder.command(&args));
    let scrape = "X-Prometheus-Scrape-Timeout-Seconds: 10\r\n";
    until("it is scraped", || ask(&at, "GET /metrics", scrape).is_some());
    signal("INT", run.pid());
    let ended = run.end();
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    assert!(!ended.stderr.contains("read once more"), "{}", ended.stderr);
}

/// Names of figures within an expression of Prometheus.
fn named(expression: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    expression.split(move |c| !is_part(c)).filter(|word| word.starts_with("nashflock_"))
}

/// Every expression below a value of JSON.
fn expressions(of: &Value) -> Vec<String> {
    match of {
        Value::Object(keys) => {
            let own = keys.get("expr").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(keys.values().flat_map(expressions)).collect()
        }
        Value::Array(values) => values.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}

/// Which say what something is, and of which another panel already shows the part that changes.
const NOT_DRAWN: [&str; 5] = [
    "nashflock_build_info",
    "nashflock_run_info",
    "nashflock_run_phase",
    "nashflock_paused",
    "nashflock_serving_seconds",
];

#[test]
fn the_book_lists_the_figures_that_are_served_and_the_dashboard_draws_them() {
    let folder = Folder::with(SYNTHETIC);
    let worker = Worker::start(&folder);
    let run_page = RunPage::serve(MetricsAddress(([127, 0, 0, 1], 0).into())).expect("a free port");
    let of_run = families(&page(&run_page.address().to_string()));
    let of_node = families(&page(&worker.metrics));
    let build = ("nashflock_build_info".to_owned(), "gauge".to_owned());
    assert_eq!(of_node, listed("### A node"));
    assert_eq!(of_run, listed("### A run").into_iter().chain([build]).collect());

    let dashboard: Value =
        serde_json::from_str(&source("deploy/grafana/nashflock.json")).expect("JSON");
    let drawn = expressions(&dashboard["panels"]);
    assert!(drawn.len() > 20, "{}", drawn.len());
    let all: BTreeMap<String, String> = of_run.into_iter().chain(of_node).collect();
    let family = |name: &str| {
        let parts = ["_bucket", "_sum", "_count"].into_iter();
        let whole = parts
            .filter_map(|part| name.strip_suffix(part))
            .find(|of| all.get(*of).is_some_and(|kind| kind == "histogram"));
        whole.unwrap_or(name).to_owned()
    };
    let shown: BTreeSet<String> = drawn.iter().flat_map(|of| named(of)).map(family).collect();
    let stale: Vec<_> = shown.iter().filter(|name| !all.contains_key(*name)).collect();
    assert!(stale.is_empty(), "nobody serves {stale:?}");
    let is_missing = |name: &&String| !shown.contains(*name) && !NOT_DRAWN.contains(&name.as_str());
    let missing: Vec<_> = all.keys().filter(is_missing).collect();
    assert!(missing.is_empty(), "no panel draws {missing:?}");

    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus.yml");
    let Some(prometheus) = Prometheus::start(&folder.path("."), &scraping(&[])) else {
        return skipped("there is no prometheus");
    };
    for expression in &drawn {
        let plain = expression.replace("$__rate_interval", "1m").replace("$instance", ".*");
        assert!(prometheus.understands(&plain), "{plain}");
    }
    let checked = Command::new("promtool").args(["check", "config"]).arg(example).output();
    let checked = checked.expect("it comes with prometheus");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

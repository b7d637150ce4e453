//! `--metrics`: figures for Prometheus.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};

use proto::ShardChunk;
use proto::expert_service_client::ExpertServiceClient;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::binary::{Folder, SYNTHETIC, is_alive, signal, skipped, until};
use crate::scrape::{Prometheus, Scraped, ask, promtool};

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
    let prometheus = Prometheus::start(
        &folder.path("."),
        &format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs:\n- job_name: worker\n  \
             static_configs: [{{targets: [\"{}\"]}}]\n",
            worker.metrics
        ),
    );
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

/// Families by name, counters with their suffix, and their kind.
fn families(text: &str) -> BTreeSet<(String, String)> {
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    kinds.map(|line| line.split_once(' ').expect("a name and a kind")).map(owned).collect()
}

fn owned((name, kind): (&str, &str)) -> (String, String) {
    (name.to_owned(), kind.to_owned())
}

/// What the page of the book lists below a heading.
fn listed(heading: &str) -> BTreeSet<(String, String)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/observing.md");
    let page = fs::read_to_string(file).expect("the page is there");
    let section = page.split(heading).nth(1).expect("the section is there");
    let section = section.split("\n## ").next().and_then(|of| of.split("\n### ").next());
    let rows = section.expect("it has an end").lines().filter(|line| line.starts_with("| `nash"));
    rows.map(|row| {
        let mut cells = row.split('|').map(str::trim).skip(1);
        let mut cell = || cells.next().expect("three cells").trim_matches('`');
        owned((cell(), cell()))
    })
    .collect()
}

#[test]
fn the_book_lists_the_figures_that_are_served_and_no_others() {
    let folder = Folder::with(SYNTHETIC);
    let worker = Worker::start(&folder);
    let page = ask(&worker.metrics, "GET /metrics", "").expect("it serves");
    assert_eq!(families(&page.body), listed("### A node"));
}

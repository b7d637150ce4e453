//! Runs over networks that delay, throttle, drop and hold what they carry: the state hash is that of the
//! undisturbed run, and no token is lost.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::binary::{Ended, Folder, Running, SYNTHETIC, skipped, until};

/// Batches for some seconds.
fn folder(requests: u32) -> Folder {
    let scenario = SYNTHETIC
        .replace("rate_per_s = 2000.0", "rate_per_s = 100.0")
        .replace("requests = 24", &format!("requests = {requests}"));
    Folder::with(&scenario)
}

fn is_undisturbed(folder: &Folder, ended: &Ended, requests: u64) -> Value {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let summary = ended.json();
    let alone = folder.summary("alone", &["--set", "load.rate_per_s=100000"]);
    assert_eq!(summary["state_hash"], alone["state_hash"]);
    assert_eq!(summary["status"], "complete");
    let outcomes = &summary["outcomes"];
    let answered = outcomes["ok"].as_u64().zip(outcomes["late"].as_u64()).map(|(a, b)| a + b);
    assert_eq!(answered, Some(requests), "{outcomes}");
    assert_eq!(summary["pairs"]["missing"], 0, "{}", summary["pairs"]);
    summary
}

/// What a way does to what it carries.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weather {
    Clear,
    /// Each piece comes so much later.
    Delay(Duration),
    /// So many bytes a second.
    Throttle(u32),
    /// Both ends believe that they are connected, and nothing comes through.
    HalfOpen,
}

/// The way to one worker: a proxy whose connections all have the same weather.
struct Way {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    /// Connections that began before the latest number are reset.
    breaks: watch::Sender<u64>,
}

impl Way {
    fn to(runtime: &Runtime, worker: String) -> Self {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (weather, breaks) = (watch::Sender::new(Weather::Clear), watch::Sender::new(0));
        let (seen, broken) = (weather.subscribe(), breaks.subscribe());
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&worker).await else { continue };
                for stream in [&near, &far] {
                    stream.set_nodelay(true).expect("it is open");
                }
                tokio::spawn(carry(near, far, seen.clone(), broken.clone()));
            }
        });
        Self { address, weather, breaks }
    }

    fn becomes(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    fn breaks(&self) {
        self.breaks.send_modify(|breaks| *breaks += 1);
    }
}

/// Carries both directions until either ends or the connection is reset.
async fn carry(
    near: TcpStream,
    far: TcpStream,
    weather: watch::Receiver<Weather>,
    mut breaks: watch::Receiver<u64>,
) {
    breaks.borrow_and_update();
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = pump(near_in, far_out, weather.clone()) => {}
        () = pump(far_in, near_out, weather) => {}
        _ = breaks.changed() => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = [0; 4096];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        let now = *weather.borrow_and_update();
        match now {
            Weather::Clear => {}
            Weather::Delay(time) => sleep(time).await,
            Weather::Throttle(per_s) => {
                sleep(Duration::from_secs_f64(bytes as f64 / f64::from(per_s))).await;
            }
            Weather::HalfOpen => {
                if weather.wait_for(|weather| *weather != Weather::HalfOpen).await.is_err() {
                    return;
                }
            }
        }
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}

/// A worker process, and where it listens.
fn worker(folder: &Folder) -> (KilledAtEnd, String) {
    let args = ["worker", "--listen", "127.0.0.1:0", "--threads", "1"];
    let mut command = folder.command(&args);
    let mut child = command.stderr(Stdio::null()).spawn().expect("the binary runs");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut line).expect("one line");
    let said: Value = serde_json::from_str(&line).expect("one JSON line");
    (KilledAtEnd(child), said["listening"].as_str().expect("an address").to_owned())
}

struct KilledAtEnd(std::process::Child);

impl Drop for KilledAtEnd {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ways_that_delay_throttle_break_and_go_silent_change_no_result() {
    let folder = folder(500);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map(Arc::new)
        .expect("a runtime");
    let (_workers, ways): (Vec<_>, Vec<_>) = (0..4)
        .map(|_| {
            let (worker, address) = worker(&folder);
            (worker, Way::to(&runtime, address))
        })
        .unzip();
    let peers: Vec<String> = ways.iter().map(|way| way.address.to_string()).collect();
    let nodes = format!("peers:{}", peers.join(","));
    let args = ["run", "scenario.toml", "--json", "--out", "out", "--set", "nodes.replicas=2"];
    let run = Running::start(folder.command(&[&args[..], &["--nodes", &nodes]].concat()));
    until("the tables are opened", || folder.path("out/requests.parquet.partial").exists());

    let pause = || std::thread::sleep(Duration::from_millis(500));
    pause();
    ways.iter().for_each(|way| way.becomes(Weather::Delay(Duration::from_millis(2))));
    pause();
    // One way at a time is worse: each expert has a node behind another.
    ways[1].becomes(Weather::Delay(Duration::from_millis(60)));
    pause();
    ways.iter().for_each(|way| way.becomes(Weather::Clear));
    ways[2].breaks();
    pause();
    ways[2].breaks();
    ways[3].becomes(Weather::Throttle(20_000));
    pause();
    ways[3].becomes(Weather::Clear);
    ways[0].becomes(Weather::HalfOpen);
    std::thread::sleep(Duration::from_millis(1_200));
    ways[0].becomes(Weather::Clear);

    let summary = is_undisturbed(&folder, &run.end(), 500);
    let faults = &summary["faults"];
    assert!(
        faults["redelivered_orders"].as_u64() >= Some(1),
        "a stream broke and was opened anew: {faults}"
    );
    assert!(
        faults["hedges_won"].as_u64() >= Some(1),
        "others answered for a silent node: {faults}"
    );
    assert_eq!(faults["lost_nodes"], 0, "{faults}");
}

/// In a network of its own, whose loopback interface drops packets: by netem, with delay, else, where the kernel
/// has none, because more comes than a token bucket lets through.
const DROPPING: &str = "set -e
ip link set lo mtu 1500 up
tc qdisc add dev lo root netem delay 1ms 1ms loss 1% 2>/dev/null ||
    tc qdisc add dev lo root tbf rate 20mbit burst 4kb latency 2ms
\"$@\" || exit
tc -s qdisc show dev lo >&2
";

#[test]
fn a_network_that_drops_packets_changes_no_result() {
    let namespaces = ["--user", "--map-root-user", "--net"];
    let probe = "ip link set lo up && { tc qdisc add dev lo root netem loss 1% 2>/dev/null || \
                 tc qdisc add dev lo root tbf rate 20mbit burst 4kb latency 2ms; }";
    let tried = Command::new("unshare").args(namespaces).args(["bash", "-c", probe]).output();
    match tried {
        Ok(tried) if tried.status.success() => {}
        Ok(tried) => {
            skipped(String::from_utf8_lossy(&tried.stderr).trim());
            return;
        }
        Err(error) => {
            skipped(&format!("unshare: {error}"));
            return;
        }
    }
    let folder = folder(60);
    let inner = folder.command(&[]);
    let mut command = Command::new("unshare");
    command
        .args(namespaces)
        .args(["bash", "-c", DROPPING, "bash"])
        .arg(inner.get_program())
        .args(["run", "scenario.toml", "--json", "--out", "out", "--nodes", "local:4"])
        .args(["--set", "nodes.replicas=2", "--set", "nodes.sockets=tcp"])
        .current_dir(folder.path("."))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    let ended = Ended::from(command.output().expect("unshare ran above"));
    is_undisturbed(&folder, &ended, 60);
    let dropped = ended.stderr.split("dropped ").nth(1).and_then(|rest| rest.split(',').next());
    let dropped: u64 = dropped.and_then(|count| count.parse().ok()).expect("tc says how many");
    assert!(dropped > 0, "{}", ended.stderr);
}

//! Workers that join a run and leave it: whoever comes and goes, the state hash is that of the run in
//! one process.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::binary::{Ended, Folder, Running, SYNTHETIC, signal, until};

/// Batches for some seconds; leases of 300 ms.
fn folder(requests: u32) -> Folder {
    let scenario = SYNTHETIC
        .replace("rate_per_s = 2000.0", "rate_per_s = 100.0")
        .replace("requests = 24", &format!("requests = {requests}"));
    Folder::with(&(scenario + "[nodes]\nlease_ms = 300\njoin_wait_s = 20\n"))
}

fn free_address() -> String {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
    port.expect("a free port").to_string()
}

/// A coordinator and how to join it.
struct Cluster<'a> {
    folder: &'a Folder,
    address: String,
}

impl<'a> Cluster<'a> {
    fn new(folder: &'a Folder) -> Self {
        Self { folder, address: free_address() }
    }

    fn run(&self, seats: u32, more: &[&str]) -> Running {
        let nodes = format!("join:{}:{seats}", self.address);
        let args = ["run", "scenario.toml", "--json", "--out", "out", "--nodes", &nodes];
        Running::start(self.command(&[&args[..], more].concat()))
    }

    fn worker(&self, more: &[&str]) -> Running {
        let args = ["worker", "--listen", "127.0.0.1:0", "--threads", "1", "--join", &self.address];
        Running::start(self.command(&[&args[..], more].concat()))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.folder.command(args);
        command.env("NASHFLOCK_RUN_TOKEN", "of this run").stdout(Stdio::piped());
        command
    }

    fn until_serving(&self) {
        let table = self.folder.path("out/requests.parquet.partial");
        until("the tables are opened", || table.exists());
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn undisturbed(folder: &Folder) -> Value {
    folder.summary("alone", &["--set", "load.rate_per_s=100000"])["state_hash"].clone()
}

fn nothing_is_lost(summary: &Value, requests: u32) {
    assert_eq!(summary["status"], "complete");
    let outcomes = &summary["outcomes"];
    let answered = outcomes["ok"].as_u64().zip(outcomes["late"].as_u64()).map(|(a, b)| a + b);
    assert_eq!(answered, Some(u64::from(requests)), "{outcomes}");
    assert_eq!(summary["pairs"]["missing"], 0, "{}", summary["pairs"]);
}

fn ended_well(worker: Running) {
    let Ended { code, stderr, .. } = worker.end();
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn a_run_waits_for_its_workers_and_they_end_when_it_is_over() {
    let folder = folder(200);
    let cluster = Cluster::new(&folder);
    // Workers may be there before the run is.
    let early = cluster.worker(&[]);
    let run = cluster.run(3, &["--set", "nodes.replicas=2"]);
    let mut others = vec![cluster.worker(&[]), cluster.worker(&[])];
    cluster.until_serving();
    // One too many: it waits for a seat until it hears that the run is over.
    others.push(cluster.worker(&[]));
    let ended = run.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let summary = ended.json();
    assert_eq!(summary["state_hash"], undisturbed(&folder));
    nothing_is_lost(&summary, 200);
    let membership = &summary["membership"];
    for (key, expected) in [("joined", 3), ("epoch", 6), ("left", 0), ("expired", 0)] {
        assert_eq!(membership[key], expected, "{key}: {membership}");
    }
    assert!(summary["placement"]["served"]["max_over_mean"].is_number());
    ended_well(early);
    others.into_iter().for_each(ended_well);
}

#[test]
fn widths_that_follow_the_loads_reach_workers_that_join_and_survive_those_that_die() {
    const FOLLOWED: [&str; 4] =
        ["--set", "precision.reallocate.every_steps=1", "--set", "game.router=top_k"];
    let folder = folder(400);
    let cluster = Cluster::new(&folder);
    let first = [cluster.worker(&[]), cluster.worker(&[])];
    let min = ["--set", "nodes.min_workers=2"];
    let run = cluster.run(3, &[&FOLLOWED[..], &min].concat());
    cluster.until_serving();
    let third = cluster.worker(&[]);
    std::thread::sleep(Duration::from_millis(800));
    signal("KILL", first[0].pid());
    let ended = run.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let summary = ended.json();
    let alone = [&FOLLOWED[..], &["--set", "load.rate_per_s=100000"]].concat();
    let alone = folder.summary("alone", &alone);
    assert_eq!(summary["state_hash"], alone["state_hash"]);
    nothing_is_lost(&summary, 400);
    for key in ["moves", "bytes_moved", "cost"] {
        assert_eq!(summary["reallocation"][key], alone["reallocation"][key], "{key}");
    }
    assert!(summary["reallocation"]["moves"].as_u64() > Some(0), "{summary}");
    assert_eq!(summary["membership"]["joined"], 3, "{}", summary["membership"]);
    drop(third);
}

#[test]
fn experts_move_between_workers_that_join_and_one_that_dies_and_no_bit_changes() {
    const MOVING: [&str; 6] = [
        "--set",
        "nodes.migration.policy=greedy",
        "--set",
        "nodes.migration.every_steps=2",
        "--set",
        "game.router=top_k",
    ];
    let folder = folder(400);
    let cluster = Cluster::new(&folder);
    let first = [cluster.worker(&[]), cluster.worker(&[])];
    let min = ["--set", "nodes.min_workers=2"];
    let run = cluster.run(3, &[&MOVING[..], &min].concat());
    cluster.until_serving();
    let third = cluster.worker(&[]);
    std::thread::sleep(Duration::from_millis(800));
    signal("KILL", first[0].pid());
    let ended = run.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let summary = ended.json();
    let alone = ["--set", "game.router=top_k", "--set", "load.rate_per_s=100000"];
    assert_eq!(summary["state_hash"], folder.summary("alone", &alone)["state_hash"]);
    nothing_is_lost(&summary, 400);
    let moved = &summary["migration"];
    assert!(moved["copies"].as_u64() > Some(0), "{moved}");
    assert!(moved["bytes_sent"].as_u64() > Some(0), "{moved}");
    assert_eq!(summary["membership"]["joined"], 3, "{}", summary["membership"]);
    drop(third);
}

#[test]
fn workers_join_leave_and_die_during_a_run_and_no_bit_changes() {
    let folder = folder(600);
    let cluster = Cluster::new(&folder);
    let first = [cluster.worker(&[]), cluster.worker(&[])];
    // No replicas: what a dead worker held alone is brought to others before the round goes on.
    let run = cluster.run(4, &["--set", "nodes.min_workers=2"]);
    cluster.until_serving();
    let third = cluster.worker(&[]);
    std::thread::sleep(Duration::from_millis(700));
    let [dies, drains] = first;
    signal("KILL", dies.pid());
    std::thread::sleep(Duration::from_millis(700));
    signal("TERM", drains.pid());
    ended_well(drains);
    let fourth = cluster.worker(&[]);
    std::thread::sleep(Duration::from_millis(700));
    let ended = run.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let summary = ended.json();
    assert_eq!(summary["state_hash"], undisturbed(&folder));
    nothing_is_lost(&summary, 600);
    let membership = &summary["membership"];
    assert_eq!(membership["joined"], 4, "{membership}");
    assert_eq!(membership["left"], 1, "{membership}");
    let lost = membership["expired"].as_u64().zip(membership["dropped"].as_u64());
    assert_eq!(lost.map(|(expired, dropped)| expired + dropped), Some(1), "{membership}");
    let faults = &summary["faults"];
    assert_eq!(faults["lost_nodes"], 1, "{faults}");
    assert!(faults["recovery_ns_max"].as_u64().is_some_and(|ns| ns < 1_000_000_000), "{faults}");
    assert_eq!(summary["placement"]["served"]["max_over_mean"], Value::Null);
    let ended = dies.end();
    assert_eq!(ended.code, None, "it was killed");
    ended_well(third);
    ended_well(fourth);
}

#[test]
fn stand_ins_drop_what_the_worker_that_was_planned_for_it_holds() {
    let folder = folder(300);
    let cluster = Cluster::new(&folder);
    let first = [cluster.worker(&[]), cluster.worker(&[])];
    let run = cluster.run(3, &["--set", "nodes.min_workers=2"]);
    cluster.until_serving();
    let third = cluster.worker(&[]);
    let ended = run.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let summary = ended.json();
    assert_eq!(summary["state_hash"], undisturbed(&folder));
    nothing_is_lost(&summary, 300);
    // A third of the experts of both layers was planned for the third seat.
    assert_eq!(summary["membership"]["copies_dropped"], 8, "{}", summary["membership"]);
    let nodes = summary["nodes"].as_array().expect("a list");
    let held: Vec<_> = nodes.iter().map(|node| node["experts"].as_u64()).collect();
    assert_eq!(held, [Some(8); 3], "{nodes:?}");
    first.into_iter().chain([third]).for_each(ended_well);
}

#[test]
fn a_worker_that_sleeps_through_its_lease_is_out_and_what_it_says_late_is_dropped() {
    let folder = folder(500);
    let cluster = Cluster::new(&folder);
    let [sleeps, stays] = [cluster.worker(&[]), cluster.worker(&[])];
    let run = cluster.run(2, &[]);
    cluster.until_serving();
    signal("STOP", sleeps.pid());
    std::thread::sleep(Duration::from_millis(1_500));
    signal("CONT", sleeps.pid());
    let ended = run.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let summary = ended.json();
    assert_eq!(summary["state_hash"], undisturbed(&folder));
    nothing_is_lost(&summary, 500);
    let membership = &summary["membership"];
    assert_eq!(membership["expired"], 1, "{membership}");
    assert_eq!(membership["joined"], 3, "it joins anew: {membership}");
    let faults = &summary["faults"];
    assert!(faults["stale_replies"].as_u64() >= Some(1), "{faults}");
    ended_well(sleeps);
    ended_well(stays);
}

#[test]
fn a_worker_of_another_run_is_refused_and_a_run_without_workers_says_how_to_start_them() {
    let folder = folder(60);
    let cluster = Cluster::new(&folder);
    let run = cluster.run(1, &["--set", "nodes.join_wait_s=2"]);
    let stranger = cluster.worker(&["--run-token", "of another run"]).end();
    assert_eq!(stranger.code, Some(2), "{}", stranger.stderr);
    assert!(
        stranger.stderr.contains("the run token is not that of this run"),
        "{}",
        stranger.stderr
    );
    let ended = run.end();
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    let says = format!("nashflock worker --join {}", cluster.address);
    assert!(ended.stderr.contains(&says), "{}", ended.stderr);
    assert!(ended.stderr.contains("0 of at least 1 workers joined"), "{}", ended.stderr);
    assert_eq!(ended.json()["membership"], Value::Null, "it never began");
}

#[test]
fn a_worker_without_a_coordinator_gives_up_after_its_patience() {
    let folder = folder(60);
    let ended = Cluster::new(&folder).worker(&["--join-patience-s", "1"]).end();
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("no answer from the coordinator"), "{}", ended.stderr);
    let ended = folder.nashflock(&["worker", "--join", "nowhere"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("\"nowhere\" is not HOST:PORT"), "{}", ended.stderr);
}

//! `nashflock resume`: 100 rounds are 50 rounds, a kill, and 50 more.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nashflock::results::{Layers, Manifest, RequestRow, RoundRow, RunDir, Status, Summary};
use serde_json::{Value, json};

use crate::binary::{Ended, Folder, Running, SYNTHETIC, signal, skipped, until};
use crate::cli_ended_early::SmallDisk;
use crate::cli_run::check_run_dir;

const REQUESTS: u64 = 160;

/// 40 batches of two layers in 1.6 s, with prices that are two batches old: what is lost between two
/// batches changes the play. A checkpoint after every third batch.
fn slow() -> Folder {
    let scenario = SYNTHETIC
        .replace("rate_per_s = 2000.0", "rate_per_s = 100.0")
        .replace("requests = 24", &format!("requests = {REQUESTS}"))
        .replace("[precision]", "information = { kind = \"stale\", batches = 2 }\n[precision]");
    Folder::with(&(scenario + "[run]\ncheckpoint_every_rounds = 6\n"))
}

/// The same requests in the same batches, at once.
const AT_ONCE: [&str; 2] = ["--set", "load.rate_per_s=100000"];

/// Everything in a run directory that time does not enter.
#[derive(Debug, PartialEq)]
struct Played {
    rounds: Vec<RoundRow>,
    requests: Vec<RequestRow>,
    layers: Layers,
    figures: Value,
}

fn played(path: &Path) -> (Played, Summary, Manifest) {
    let dir = RunDir::open(path).expect("a run directory");
    let mut rounds: Vec<RoundRow> = dir.read_table().expect("rounds.parquet is readable");
    rounds.iter_mut().for_each(|row| (row.route_ns, row.dispatch_ns) = (0, 0));
    let mut requests: Vec<RequestRow> = dir.read_table().expect("requests.parquet is readable");
    for row in &mut requests {
        (row.intended_ns, row.started_ns, row.finished_ns) = (0, None, 0);
        (row.latency_ns, row.first_token_ns) = (0, None);
        row.outcome = row.outcome.replace("late", "ok");
    }
    let layers = fs::read(path.join("layers.json")).expect("readable");
    let layers = serde_json::from_slice(&layers).expect("layers.json is JSON");
    let summary = dir.read_summary().expect("readable");
    let mut convergence = summary.convergence.clone();
    convergence.route_ns = 0;
    let nodes: Vec<_> = summary.nodes.iter().map(|node| (node.experts, node.bytes)).collect();
    let tokens: u64 = summary.nodes.iter().map(|node| node.tokens).sum();
    let generation = summary.generation.as_ref().map(|of| {
        (of.steps, of.prompt_tokens, of.generated_tokens, of.tokens_per_step, of.cache_bytes_max)
    });
    let mut reallocation = summary.reallocation.clone();
    if let Some(of) = &mut reallocation {
        // Whoever goes on brings what is in force to new workers, and takes its time.
        (of.pause_ns_max, of.bytes_sent) = (None, 0);
    }
    let figures = json!({
        "state_hash": summary.state_hash,
        "convergence": convergence,
        "flock": summary.flock,
        "motion": summary.motion,
        "reallocation": reallocation,
        "pairs": summary.pairs,
        "memory": summary.memory,
        "precision": summary.precision,
        "quality": summary.quality,
        "placement": summary.placement,
        "answered": summary.outcomes.ok + summary.outcomes.late,
        "batches": summary.theory.as_ref().and_then(|of| of.queue.as_ref()).map(|of| of.batches),
        "hottest": summary.theory.as_ref().and_then(|of| of.hottest_expert.as_ref()).map(|of| of.shares),
        "latencies": summary.latency_ns.count,
        "released": summary.generator_lag_ns.as_ref().map(|of| of.count),
        "nodes": nodes,
        "tokens": tokens,
        "generation": generation,
    });
    let manifest = dir.read_manifest().expect("readable");
    (Played { rounds, requests, layers, figures }, summary, manifest)
}

/// What a run that is never cut comes to.
fn whole(folder: &Folder, args: &[&str]) -> Played {
    folder.summary("whole", args);
    played(&folder.path("whole")).0
}

fn start(folder: &Folder, args: &[&str]) -> Running {
    Running::start(folder.command(&[&["run", "scenario.toml", "--out", "out"], args].concat()))
}

fn kill(run: Running) {
    signal("KILL", run.pid());
    assert_eq!(run.end().code, None, "a signal ended it");
}

fn resume(folder: &Folder) -> Ended {
    folder.nashflock(&["resume", "out", "--json"])
}

/// Resumes to the end, and gives what was played.
fn resumed(folder: &Folder) -> (Played, Summary, Manifest) {
    let ended = resume(folder);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    check_run_dir(&folder.path("out"), 1, u64::MAX);
    let (played, summary, manifest) = played(&folder.path("out"));
    assert_eq!(summary.status, Status::Complete);
    assert!(!folder.path("out/checkpoint").exists(), "it is of no use any more");
    (played, summary, manifest)
}

fn checkpoints(folder: &Folder) -> [PathBuf; 2] {
    ["out/checkpoint/0.state", "out/checkpoint/1.state"].map(|name| folder.path(name))
}

fn until_two_checkpoints(folder: &Folder) {
    until("two checkpoints are written", || checkpoints(folder).iter().all(|file| file.exists()));
}

#[test]
fn a_run_that_is_killed_at_any_moment_goes_on_to_the_state_of_a_whole_one() {
    let folder = slow();
    let expected = whole(&folder, &AT_ONCE);
    let first = || checkpoints(&folder)[1].exists();
    let rows = || fs::metadata(folder.path("out/checkpoint/rows.log")).map_or(0, |of| of.len());
    type Moment<'a> = (&'a str, &'a dyn Fn() -> bool, u64);
    let moments: [Moment<'_>; 6] = [
        ("the manifest is written", &|| folder.path("out/manifest.json").exists(), 0),
        ("the tables are opened", &|| folder.path("out/rounds.parquet.partial").exists(), 0),
        ("the first rows are logged", &|| rows() > 0, 0),
        ("there is a checkpoint", &first, 0),
        ("there is a checkpoint, a while ago", &first, 370),
        ("there are some checkpoints", &first, 700),
    ];
    for (moment, has_come, wait_ms) in moments {
        let run = start(&folder, &[]);
        until(moment, has_come);
        std::thread::sleep(Duration::from_millis(wait_ms));
        kill(run);
        let kept = checkpoints(&folder).iter().any(|file| file.exists());
        let (got, summary, manifest) = resumed(&folder);
        assert_eq!(got, expected, "{moment}");
        let resumed = summary.resumed.expect("it says that it was cut");
        assert_eq!((resumed.count, manifest.resumes.len()), (1, 1), "{moment}");
        assert_eq!(manifest.resumes[0].steps_kept > 0, kept, "{moment}");
        let steps = manifest.resumes[0].steps_kept;
        // And after the last, should the machine have slept longer than this.
        assert!(steps % 3 == 0 || steps == 40, "{moment}: {steps}, not after every third batch");
        assert_eq!(manifest.resumes[0].checkpoint_at.is_some(), kept, "{moment}");
        assert_eq!(resumed.gap_ns > 0, kept, "{moment}");
        fs::remove_dir_all(folder.path("out")).expect("it is there");
    }
}

#[test]
fn a_run_that_is_cut_again_and_again_counts_it_and_the_gap_is_in_no_latency() {
    let folder = slow();
    let expected = whole(&folder, &AT_ONCE);
    let run = start(&folder, &[]);
    until_two_checkpoints(&folder);
    kill(run);
    std::thread::sleep(Duration::from_millis(3_000));
    let run = Running::start(folder.command(&["resume", "out"]));
    std::thread::sleep(Duration::from_millis(700));
    // By Ctrl-C this time: it ends in good order, and can go on all the same.
    signal("INT", run.pid());
    let interrupted = run.end();
    assert_eq!(interrupted.code, Some(130), "{}", interrupted.stderr);
    assert!(interrupted.stderr.starts_with("going on from the checkpoint of 2"));
    let (got, summary, manifest) = resumed(&folder);
    assert_eq!(got, expected);
    let resumed = summary.resumed.expect("it says that it was cut");
    assert_eq!((resumed.count, manifest.resumes.len()), (2, 2));
    assert!(resumed.gap_ns > 3_000_000_000, "{resumed:?}");
    assert!(summary.latency_ns.max < Some(2_000_000_000), "{:?}", summary.latency_ns);
    assert!(summary.throughput.elapsed_ns < 3_000_000_000, "{:?}", summary.throughput);
    assert!(manifest.resumes.iter().all(|of| of.command[1..3] == ["resume", "out"]));
    let report = fs::read_to_string(folder.path("out/report.html")).expect("readable");
    assert!(report.contains("was cut and went on 2 times"), "it is said in the report");
}

#[test]
fn answers_that_were_being_decoded_go_on_where_they_were() {
    let folder = Folder::with_checkpoint();
    let sets = [
        "load.requests=24",
        "load.generation.lengths=fixed",
        "load.generation.prompt_tokens=21",
        "load.generation.generated_tokens=30",
        "load.generation.step_tokens_max=32",
        "load.generation.running_max=8",
        "load.generation.step_us=8000",
        "run.checkpoint_every_rounds=10",
        "precision.budget=f32",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let expected = whole(&folder, &sets);
    let run = start(&folder, &sets);
    until_two_checkpoints(&folder);
    std::thread::sleep(Duration::from_millis(150));
    kill(run);
    let (got, summary, manifest) = resumed(&folder);
    assert_eq!(got, expected);
    assert!(manifest.resumes[0].steps_kept >= 10, "{:?}", manifest.resumes[0]);
    let across = summary.resumed.expect("it was cut").requests_across;
    assert!((1..=24).contains(&across), "{across} requests were under way");
    assert!(expected.figures["generation"][4].as_u64() > Some(0), "there were keys and values");
}

#[test]
fn the_loss_of_a_text_and_its_controls_are_those_of_a_whole_run() {
    let folder = Folder::with_checkpoint();
    // Rows that move at random: a random stream goes on as well.
    let sets = [
        "load.requests=48",
        "load.rate_per_s=60",
        "run.checkpoint_every_rounds=4",
        "flock.motion=random_step",
        "flock.motion_turn_max_rad=0.1",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let expected = whole(&folder, &sets);
    assert!(expected.figures["quality"]["loss_f32_routed"].is_number(), "{}", expected.figures);
    assert_eq!(expected.figures["motion"]["rule"], "random_step");
    let run = start(&folder, &sets);
    until_two_checkpoints(&folder);
    kill(run);
    let text = fs::read_to_string(folder.path("text.txt")).expect("readable");
    fs::write(folder.path("text.txt"), text.replacen('e', "a", 1)).expect("writable");
    let refused = resume(&folder);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let words = "what the run read is not what it was, so it cannot go on";
    assert!(refused.stderr.contains(words), "{}", refused.stderr);
    fs::write(folder.path("text.txt"), text).expect("writable");
    assert_eq!(resumed(&folder).0, expected);
}

/// A decision after every second batch, in force from the second after it on: cuts fall before, between and
/// after.
#[test]
fn widths_that_follow_the_loads_are_those_of_a_whole_run() {
    let folder = slow();
    let mut args = vec!["--nodes", "local:2"];
    for set in [
        "game.router=top_k",
        "precision.reallocate.every_steps=2",
        "precision.reallocate.load_step=1.0",
        "run.checkpoint_every_rounds=2",
    ] {
        args.extend(["--set", set]);
    }
    let expected = whole(&folder, &args);
    let moves = |of: &Played| of.figures["reallocation"]["moves"].as_u64().expect("they follow");
    assert!(moves(&expected) > 20, "{}", expected.figures["reallocation"]);
    for wait_ms in [90, 130, 450] {
        let run = start(&folder, &args);
        until_two_checkpoints(&folder);
        std::thread::sleep(Duration::from_millis(wait_ms));
        kill(run);
        let (got, summary, manifest) = resumed(&folder);
        assert!(manifest.resumes[0].steps_kept >= 2, "{:?}", manifest.resumes[0]);
        assert_eq!(got, expected, "{wait_ms} ms after two checkpoints");
        let sent = summary.reallocation.expect("they follow").bytes_sent;
        assert!(sent > 0, "they were brought to the workers");
        fs::remove_dir_all(folder.path("out")).expect("it is there");
    }
}

#[test]
fn a_run_goes_on_on_other_nodes_if_they_are_as_many() {
    let folder = slow();
    let expected = whole(&folder, &AT_ONCE).figures["state_hash"].clone();
    let run = start(&folder, &["--nodes", "local:2"]);
    until_two_checkpoints(&folder);
    kill(run);
    let on = |nodes: &str| folder.nashflock(&["resume", "out", "--nodes", nodes]);
    let refused = on("local:3");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let said = "cut on 2 nodes, and 3 are named";
    assert!(refused.stderr.contains(said), "{}", refused.stderr);
    let ended = on("in-process");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let (got, _, manifest) = played(&folder.path("out"));
    assert_eq!(got.figures["state_hash"], expected);
    assert!(manifest.resumes[0].command.contains(&"in-process".to_owned()), "it is noted");
}

#[test]
fn on_worker_processes_on_peers_and_on_workers_that_join_it_is_the_same() {
    let folder = slow();
    let expected = whole(&folder, &AT_ONCE).figures["state_hash"].clone();
    let free = || {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
        port.expect("a free port").to_string()
    };
    let with_token = |args: &[&str]| -> Command {
        let mut command = folder.command(args);
        command.env("NASHFLOCK_RUN_TOKEN", "of this run");
        command
    };
    let (peer, coordinator) = (free(), free());
    let worker = |args: &[&str]| Running::start(with_token(&[&["worker"], args].concat()));
    let nodes = [
        ("local:2".to_owned(), vec![]),
        (format!("peers:{peer}"), vec![worker(&["--listen", &peer])]),
        (
            format!("join:{coordinator}:2"),
            vec![
                worker(&["--listen", "127.0.0.1:0", "--join", &coordinator]),
                worker(&["--listen", "127.0.0.1:0", "--join", &coordinator]),
            ],
        ),
    ];
    for (nodes, workers) in nodes {
        let args = ["run", "scenario.toml", "--out", "out", "--nodes", &nodes];
        let run = Running::start(with_token(&args));
        until_two_checkpoints(&folder);
        kill(run);
        let ended: Ended =
            with_token(&["resume", "out", "--json"]).output().expect("it runs").into();
        assert_eq!(ended.code, Some(0), "{nodes}: {}", ended.stderr);
        let (got, summary, _) = played(&folder.path("out"));
        assert_eq!(got.figures["state_hash"], expected, "{nodes}");
        let pairs = summary.pairs.expect("pairs are counted");
        assert_eq!((pairs.missing, pairs.dispatched), (0, pairs.combined), "{nodes}");
        assert_eq!(got.figures["tokens"], pairs.combined, "{nodes}: of both parts");
        let steps = summary.theory.and_then(|of| of.steps).expect("nodes have times");
        assert_eq!(steps.steps + steps.incomplete, 80, "{nodes}: of both parts");
        if nodes.starts_with("join") {
            let membership = summary.membership.expect("they joined");
            assert_eq!(membership.joined, 4, "each joined both parts: {membership:?}");
        }
        for worker in workers {
            if nodes.starts_with("peers") {
                signal("TERM", worker.pid());
            }
            assert_eq!(worker.end().code, Some(0), "{nodes}");
        }
        fs::remove_dir_all(folder.path("out")).expect("it is there");
    }
}

#[test]
fn under_admission_every_request_ends_once_whenever_the_run_is_cut() {
    for admission in ["deadline", "codel"] {
        let folder = slow();
        let admission = format!("load.admission={admission}");
        let run = start(&folder, &["--set", &admission, "--set", "load.deadline_ms=60"]);
        until_two_checkpoints(&folder);
        kill(run);
        let (got, summary, _) = resumed(&folder);
        assert_eq!(summary.outcomes.total(), REQUESTS, "{:?}", summary.outcomes);
        let mut ids: Vec<u64> = got.requests.iter().map(|row| row.request).collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..REQUESTS), "each once");
    }
}

/// A run that was killed after its second checkpoint, and its newest state file.
fn killed(folder: &Folder) -> PathBuf {
    let run = start(folder, &[]);
    until_two_checkpoints(folder);
    kill(run);
    let written = |file: &PathBuf| fs::metadata(file).and_then(|of| of.modified()).expect("there");
    checkpoints(folder).into_iter().max_by_key(written).expect("there are two")
}

#[test]
fn a_torn_or_flipped_checkpoint_is_found_and_the_one_before_is_used() {
    let folder = slow();
    let expected = whole(&folder, &AT_ONCE);
    type Damage = (&'static str, fn(&mut Vec<u8>));
    let damages: [Damage; 4] = [
        ("cut short", |bytes| bytes.truncate(bytes.len() * 2 / 3)),
        ("empty", Vec::clear),
        ("a bit flipped in the state", |bytes| *bytes.last_mut().expect("not empty") ^= 1),
        ("a bit flipped in the version", |bytes| bytes[8] ^= 4),
    ];
    for (damage, apply) in damages {
        let newest = killed(&folder);
        let mut bytes = fs::read(&newest).expect("readable");
        apply(&mut bytes);
        fs::write(&newest, bytes).expect("writable");
        let (got, _, manifest) = resumed(&folder);
        assert_eq!(got, expected, "{damage}");
        let said = manifest.resumes[0].passed_over.as_deref().unwrap_or_default();
        assert!(said.contains(".state"), "{damage}: {said}");
        fs::remove_dir_all(folder.path("out")).expect("it is there");
    }
    // The last rows of the log are those of the newest checkpoint.
    killed(&folder);
    let log = folder.path("out/checkpoint/rows.log");
    let mut rows = fs::read(&log).expect("readable");
    *rows.last_mut().expect("not empty") ^= 1;
    fs::write(&log, &rows).expect("writable");
    let (got, _, manifest) = resumed(&folder);
    assert_eq!(got, expected);
    let said = manifest.resumes[0].passed_over.as_deref().unwrap_or_default();
    assert!(said.contains("rows.log"), "{said}");
}

#[test]
fn what_cannot_go_on_is_refused_with_2_and_a_reason_and_nothing_is_changed() {
    let folder = slow();
    let refused = |words: &str| {
        let before = fs::read(folder.path("out/manifest.json")).expect("readable");
        let ended = resume(&folder);
        assert_eq!(ended.code, Some(2), "{words}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{words}: {}", ended.stderr);
        assert_eq!(fs::read(folder.path("out/manifest.json")).expect("readable"), before);
    };
    let none = resume(&folder);
    assert_eq!(none.code, Some(2), "{}", none.stderr);
    assert!(none.stderr.contains("is this a run directory?"), "{}", none.stderr);

    let run = start(&folder, &[]);
    until_two_checkpoints(&folder);
    refused("is in use");
    kill(run);

    let scenario = folder.path("out/scenario.toml");
    let text = fs::read_to_string(&scenario).expect("readable");
    fs::write(&scenario, text.replace("top_k = 3", "top_k = 4")).expect("writable");
    refused("is not the scenario that the run was started with");
    fs::write(&scenario, &text).expect("writable");

    let states = checkpoints(&folder).map(|file| fs::read(file).expect("readable"));
    for (file, bytes) in checkpoints(&folder).iter().zip(&states) {
        let mut bytes = bytes.clone();
        bytes[8] += 1;
        let hash = blake3::hash(&[&bytes[..12], &bytes[44..]].concat());
        bytes[12..44].copy_from_slice(hash.as_bytes());
        fs::write(file, bytes).expect("writable");
    }
    refused("has layout 3 and this nashflock goes on from layout 2");
    checkpoints(&folder).iter().for_each(|file| fs::write(file, b"NFLCHKPT").expect("writable"));
    refused("no checkpoint is whole");
    for (file, bytes) in checkpoints(&folder).iter().zip(&states) {
        fs::write(file, bytes).expect("writable");
    }

    let manifest = folder.path("out/manifest.json");
    let text = fs::read_to_string(&manifest).expect("readable");
    let id =
        RunDir::open(&folder.path("out")).expect("a run").read_manifest().expect("whole").run_id;
    fs::write(&manifest, text.replace(&id, "0123456789abcdef")).expect("writable");
    refused("and not of run 0123456789abcdef");
    fs::write(&manifest, &text).expect("writable");

    resumed(&folder);
    refused("is complete (exit code 0): there is nothing to resume");
}

#[test]
fn a_run_that_a_full_disk_ended_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(64 << 10) else {
        return skipped("this process may not mount a tmpfs");
    };
    let folder = slow();
    let expected = whole(&folder, &AT_ONCE);
    let out = disk.0.path().join("out");
    let out = out.to_str().expect("a plain path");
    let ended = folder.nashflock(&["run", "scenario.toml", "--out", out]);
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("No space left on device"), "{}", ended.stderr);
    let kept = Path::new(out).join("checkpoint/1.state").exists();
    assert!(kept, "a checkpoint was written before the disk was full");
    let grown = Command::new("mount").args(["-o", "remount,size=4m"]).arg(disk.0.path()).status();
    assert!(grown.expect("mount runs").success());
    let ended = folder.nashflock(&["resume", out, "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let (got, _, manifest) = played(Path::new(out));
    assert_eq!(got, expected);
    assert!(manifest.resumes[0].steps_kept > 0, "{:?}", manifest.resumes[0]);
}

#[test]
fn without_checkpoints_there_is_no_folder_left_and_a_cut_run_starts_over() {
    let folder = slow();
    let expected = whole(&folder, &AT_ONCE);
    let run = start(&folder, &["--set", "run.checkpoint_every_rounds=0"]);
    std::thread::sleep(Duration::from_millis(900));
    kill(run);
    assert!(!checkpoints(&folder).iter().any(|file| file.exists()));
    let (got, _, manifest) = resumed(&folder);
    assert_eq!(got, expected);
    assert_eq!(manifest.resumes[0].checkpoint_at, None);
}

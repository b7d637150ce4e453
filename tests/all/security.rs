//! Runs over mutual TLS, and what is refused before anything starts.

use crate::binary::{Folder, Running, SYNTHETIC};
use crate::certificates::{Authority, NAME, flags};
use nashflock::transport::TlsFiles;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::Child;

const TOKEN: &str = "of this run";

fn folder() -> (Folder, TlsFiles) {
    let folder = Folder::with(SYNTHETIC);
    let files = Authority::new(&folder.path("."), "authority").issue(NAME, 2999);
    (folder, files)
}

/// The overrides that stand for `[nodes.tls]`.
fn sets(files: &TlsFiles) -> Vec<String> {
    let path = |path: &Path| format!("{:?}", path.display().to_string());
    let pairs = [
        ("certificate", path(&files.certificate)),
        ("key", path(&files.key)),
        ("ca", path(&files.ca)),
        ("peers", format!("[\"{NAME}\"]")),
    ];
    pairs
        .into_iter()
        .flat_map(|(key, value)| ["--set".into(), format!("nodes.tls.{key}={value}")])
        .collect()
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// A worker that listens, and where.
struct Worker(Child, String);

impl Worker {
    fn start(folder: &Folder, arguments: &[String]) -> Self {
        let fixed = ["worker", "--listen", "127.0.0.1:0", "--threads", "1"];
        let mut command = folder.command(&[&fixed[..], &strs(arguments)].concat());
        command.env("NASHFLOCK_RUN_TOKEN", TOKEN).stderr(std::process::Stdio::null());
        let mut child = command.spawn().expect("the program runs");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut line).expect("one line");
        let said: serde_json::Value = serde_json::from_str(&line).expect("one JSON line");
        let address = said["listening"].as_str().expect("an address").to_owned();
        Self(child, address)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_run_over_mutual_tls_has_the_hash_of_the_run_in_one_process() {
    let (folder, files) = folder();
    let alone = folder.summary("alone", &[])["state_hash"].clone();
    let workers: Vec<Worker> = (0..2).map(|_| Worker::start(&folder, &flags(&files))).collect();
    let nodes = format!("peers:{},{}", workers[0].1, workers[1].1);
    let sets = sets(&files);
    let args = ["run", "scenario.toml", "--json", "--out", "out", "--nodes", &nodes];
    let mut command = folder.command(&[&args[..], &strs(&sets)].concat());
    let ended = Running::start({
        command.env("NASHFLOCK_RUN_TOKEN", TOKEN);
        command
    })
    .end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.json()["state_hash"], alone);

    let mut plain = folder.command(&["run", "scenario.toml", "--out", "plain", "--nodes", &nodes]);
    let ended = Running::start({
        plain.env("NASHFLOCK_RUN_TOKEN", TOKEN);
        plain
    })
    .end();
    assert_eq!(ended.code, Some(4), "in plain text nobody gets in: {}", ended.stdout);
}

#[test]
fn workers_join_over_mutual_tls_and_one_with_another_authority_does_not() {
    let (folder, files) = folder();
    let alone = folder.summary("alone", &[])["state_hash"].clone();
    let port = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
    let address = port.expect("a free port").to_string();
    let nodes = format!("join:{address}:1");
    let sets = sets(&files);
    let args = ["run", "scenario.toml", "--json", "--out", "out", "--nodes", &nodes];
    let mut run = folder.command(&[&args[..], &strs(&sets)].concat());
    run.env("NASHFLOCK_RUN_TOKEN", TOKEN);
    let run = Running::start(run);
    let join = ["worker", "--listen", "127.0.0.1:0", "--threads", "1", "--join", &address];
    let worker = |files: &TlsFiles, patience: &str| {
        let flags = flags(files);
        let mut command =
            folder.command(&[&join[..], &["--join-patience-s", patience], &strs(&flags)].concat());
        command.env("NASHFLOCK_RUN_TOKEN", TOKEN);
        Running::start(command)
    };
    std::fs::create_dir(folder.path("other")).expect("a folder");
    let other = Authority::new(&folder.path("other"), "other").issue(NAME, 2999);
    let stranger = worker(&TlsFiles { ca: files.ca.clone(), ..other }, "1").end();
    assert_eq!(stranger.code, Some(4), "{}", stranger.stderr);
    let welcome = worker(&files, "20");
    let ended = run.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.json()["state_hash"], alone);
    assert_eq!(ended.json()["membership"]["joined"], 1);
    assert_eq!(welcome.end().code, Some(0));
}

#[test]
fn what_is_wrong_with_certificates_is_said_before_anything_starts() {
    let (folder, files) = folder();
    std::fs::write(folder.path("empty.pem"), "").expect("written");
    let other = Authority::new(&folder.path("."), "other").issue("other.run", 2999);
    let with = |key: &str, value: &str| {
        [sets(&files), vec!["--set".into(), format!("nodes.tls.{key}={value}")]].concat()
    };
    for (sets, says) in [
        (with("certificate", "\"empty.pem\""), "no certificate in PEM is in it"),
        (with("certificate", "\"nowhere.pem\""), "nowhere.pem cannot be used"),
        (with("key", "\"empty.pem\""), "the key"),
        (with("key", &format!("{:?}", other.key.display().to_string())), "the key"),
        (with("ca", "\"empty.pem\""), "the authority"),
        (with("peers", "[]"), "0 names of peers"),
        (with("peers", "[\"a b\"]"), "\"a b\" is no DNS name"),
        (sets(&files)[..2].to_vec(), "`nodes.tls.key` is missing"),
    ] {
        let args = ["run", "scenario.toml", "--nodes", "peers:node3.example:5001"];
        let ended = folder.nashflock(&[&args[..], &strs(&sets)].concat());
        assert_eq!(ended.code, Some(2), "{sets:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(says), "{says}: {}", ended.stderr);
    }
    let flags = flags(&TlsFiles { key: other.key, ..files.clone() });
    let args = [&["worker", "--listen", "127.0.0.1:0"][..], &strs(&flags)].concat();
    assert_eq!(folder.nashflock(&args).code, Some(2), "a key of another certificate");
    let ended = folder.nashflock(&["worker", "--listen", "127.0.0.1:0", "--tls-key", "x.key"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("--tls-certificate"), "{}", ended.stderr);
    let all = sets(&files);
    let local = [&["check", "scenario.toml", "--set", "nodes.engine=local"][..], &strs(&all)];
    let ended = folder.nashflock(&local.concat());
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("talks to nobody outside this machine"), "{}", ended.stderr);
}

#[test]
fn plain_text_to_other_machines_has_to_be_asked_for() {
    let folder = Folder::with(SYNTHETIC);
    let ended = folder.nashflock(&["run", "scenario.toml", "--nodes", "peers:node3.example:5001"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("insecure_non_loopback = true"), "{}", ended.stderr);
    let join = ["worker", "--listen", "127.0.0.1:0", "--join", "node3.example:5000"];
    let ended = folder.nashflock(&join);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("refusing to join node3.example:5000"), "{}", ended.stderr);
}

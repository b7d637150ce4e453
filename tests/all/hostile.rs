//! Peers that mean harm: each is refused and logged, memory stays bounded, and others are served
//! meanwhile.

use crate::attacks::{Held, garbage, giants, hold, rapid_reset, without_certificate};
use crate::certificates::{Authority, NAME, access, flags};
use crate::nodes::{
    PATIENCE, PROGRAM, WIDTH, bits, eventually, numbers, orders, place, row_by_row, shards,
};
use nashflock::dispatch::{Dispatch as _, Remote, RemoteSettings};
use nashflock::transport::{Access, TlsFiles};
use proto::{StatusRequest, expert_service_client::ExpertServiceClient};
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tonic::Code;
use tonic::metadata::BinaryMetadataValue;

const TOKEN: &str = "of this run";
const RSS_GROWTH_MAX_KIB: u64 = 32 << 10;

/// A worker of a run, whose log is kept.
struct Target {
    child: Child,
    address: String,
    log: PathBuf,
    folder: TempDir,
    tls: Option<TlsFiles>,
}

impl Target {
    async fn plain() -> Self {
        Self::start(TempDir::new().expect("a folder"), None, "").await
    }

    /// With TLS, by a certificate of the folder's first authority.
    async fn with_tls() -> (Self, Authority) {
        let folder = TempDir::new().expect("a folder");
        let authority = Authority::new(folder.path(), "first");
        let files = authority.issue(NAME, 2999);
        (Self::start(folder, Some(files), "").await, authority)
    }

    async fn start(folder: TempDir, tls: Option<TlsFiles>, before: &str) -> Self {
        let log = folder.path().join("log");
        let mut flags = tls.as_ref().map(flags).unwrap_or_default();
        flags.extend(["--run-token".to_owned(), TOKEN.to_owned()]);
        let words: Vec<String> = flags.iter().map(|flag| format!("'{flag}'")).collect();
        let script = format!(
            "{before} exec '{PROGRAM}' worker --listen 127.0.0.1:0 --lifeline --threads 1 {}",
            words.join(" ")
        );
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).expect("a log"))
            .kill_on_drop(true)
            .spawn()
            .expect("the program runs");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut line).await.expect("one line");
        let said: serde_json::Value = serde_json::from_str(&line).expect("one JSON line");
        let address = said["listening"].as_str().expect("an address").to_owned();
        Self { child, address, log, folder, tls }
    }

    fn access(&self) -> Access {
        access(self.tls.as_ref(), TOKEN)
    }

    /// A coordinator of the run, with its shards loaded.
    async fn coordinator(&self) -> Remote {
        let settings = RemoteSettings { access: self.access(), ..RemoteSettings::default() };
        let address = std::slice::from_ref(&self.address);
        let mut remote = Remote::connect(address, settings).await.expect("it serves its run");
        remote.load(shards(place(1))).await.expect("they fit");
        remote
    }

    fn rss_kib(&self) -> u64 {
        let pid = self.child.id().expect("it runs");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("readable");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("readable")
    }

    async fn until_logged(&self, says: &str) {
        eventually(says, async || self.log().contains(says)).await;
    }
}

/// A coordinator that was there before gets its answers, right to the last bit.
async fn is_served(remote: &mut Remote) {
    let (orders, hidden) = (orders(place(1), 8, 1), numbers(5, 8 * WIDTH));
    let sent = timeout(PATIENCE, remote.send(&orders, &hidden, WIDTH)).await;
    let replies = sent.expect("in time").expect("it goes on");
    assert_eq!(bits(&orders, &replies), row_by_row(&orders, &hidden));
}

/// During an attack: who was there is served, and who comes now, and memory has not grown.
async fn goes_on(target: &Target, remote: &mut Remote, rss_before_kib: u64) {
    is_served(remote).await;
    is_served(&mut target.coordinator().await).await;
    let growth = target.rss_kib().saturating_sub(rss_before_kib);
    assert!(growth < RSS_GROWTH_MAX_KIB, "memory grew by {growth} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_announce_4_gib_are_refused_by_their_header() {
    let target = Target::plain().await;
    let mut remote = target.coordinator().await;
    is_served(&mut remote).await;
    let before = target.rss_kib();
    let out_of_range = i32::from(Code::OutOfRange).to_string();
    for _ in 0..10 {
        let codes = giants(&target.address, TOKEN, 8).await.expect("it answers");
        assert_eq!(codes, vec![out_of_range.clone(); 8]);
    }
    // Without the token nobody gets that far.
    let denied = i32::from(Code::PermissionDenied).to_string();
    let codes = giants(&target.address, "of another", 10).await.expect("it answers");
    assert_eq!(codes, vec![denied; 10]);
    target.until_logged("the run token is not that of this run").await;
    goes_on(&target, &mut remote, before).await;
    // A connection that does it again and again ends, though it shows the token.
    if let Ok(codes) = giants(&target.address, TOKEN, 40).await {
        // All that it said was read at once.
        assert_eq!(codes, vec![out_of_range; 40]);
    }
    goes_on(&target, &mut remote, before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_held_open_keep_nobody_out() {
    let target = Target::plain().await;
    let mut remote = target.coordinator().await;
    is_served(&mut remote).await;
    let before = target.rss_kib();
    let mut held = Vec::new();
    for how in [Held::Nothing, Held::HalfPreface, Held::HalfHeaders].repeat(100) {
        held.push(hold(&target.address, how).await.expect("it accepts"));
    }
    goes_on(&target, &mut remote, before).await;
    // Of 300 the oldest had to go; what is left of them has no more time than any stranger.
    eventually("the oldest are gone", async || {
        let mut gone = 0;
        for stream in &mut held {
            let mut byte = [0; 64];
            let read = timeout(std::time::Duration::from_millis(1), stream.read(&mut byte)).await;
            gone += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
        }
        gone >= 200
    })
    .await;
    target.until_logged("it showed no token of this run in time").await;
    is_served(&mut remote).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_resets_its_streams_at_once_loses_its_connection() {
    let target = Target::plain().await;
    let mut remote = target.coordinator().await;
    is_served(&mut remote).await;
    let before = target.rss_kib();
    for _ in 0..20 {
        let streams = rapid_reset(&target.address, "of another", 100_000).await;
        assert!(streams < 50_000, "{streams} streams were taken");
    }
    target.until_logged("refused: ").await;
    goes_on(&target, &mut remote, before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_http_end_their_connection() {
    let target = Target::plain().await;
    let mut remote = target.coordinator().await;
    is_served(&mut remote).await;
    let before = target.rss_kib();
    for _ in 0..60 {
        timeout(PATIENCE, garbage(&target.address))
            .await
            .expect("it hangs up")
            .expect("it accepts");
    }
    goes_on(&target, &mut remote, before).await;
    let (target, _) = Target::with_tls().await;
    timeout(PATIENCE, garbage(&target.address)).await.expect("it hangs up").expect("it accepts");
    target.until_logged("TLS: ").await;
    is_served(&mut target.coordinator().await).await;
}

/// What a call to a node comes to.
async fn status_of(address: &str, access: &Access) -> tonic::Status {
    let mut client = ExpertServiceClient::new(access.channel(address).expect("an address"));
    let mut request = tonic::Request::new(StatusRequest {});
    if !access.token.is_none() {
        let token = BinaryMetadataValue::from_bytes(access.token.reveal().as_bytes());
        request.metadata_mut().insert_bin("nashflock-run-token-bin", token);
    }
    let called = timeout(PATIENCE, client.status(request)).await.expect("in time");
    called.expect_err("it is refused")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_with_the_token_of_another_run_or_none_are_refused() {
    let target = Target::plain().await;
    let other = status_of(&target.address, &access(None, "of another run")).await;
    assert_eq!(other.code(), Code::PermissionDenied, "{other}");
    let none = status_of(&target.address, &access(None, "")).await;
    assert_eq!(none.code(), Code::Unauthenticated, "{none}");
    assert!(none.message().contains("NASHFLOCK_RUN_TOKEN"), "{none}");
    let settings = RemoteSettings { access: access(None, "other"), ..RemoteSettings::default() };
    let refused = Remote::connect(std::slice::from_ref(&target.address), settings).await;
    let refused = refused.expect_err("a coordinator of another run").to_string();
    assert!(refused.contains("the run token is not that of this run"), "{refused}");
    target.until_logged("the run token is not that of this run").await;
    is_served(&mut target.coordinator().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_current_certificates_of_the_authority_with_a_name_on_the_list_get_in() {
    let cases: [(&str, &str, i32, &str); 4] = [
        ("another authority", "second", 2999, "UnknownIssuer"),
        ("expired", "first", 2021, "certificate expired"),
        ("another name", "stranger.run", 2999, "certificate not valid for name \"worker.run\""),
        ("the right one", "first", 2999, ""),
    ];
    for (what, from, until, says) in cases {
        let (target, authority) = Target::with_tls().await;
        let files = match from {
            "second" => {
                let second = Authority::new(target.folder.path(), "second");
                // It trusts the worker; the worker does not trust it.
                TlsFiles { ca: authority.ca().to_owned(), ..second.issue(NAME, until) }
            }
            "first" => authority.issue(NAME, until),
            name => authority.issue(name, until),
        };
        let shown = access(Some(&files), TOKEN);
        if says.is_empty() {
            is_served(&mut target.coordinator().await).await;
            continue;
        }
        let refused = status_of(&target.address, &shown).await;
        // The client may hear the alert, or that the connection is gone.
        let broken = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
        assert!(broken.contains(&refused.code()), "{what}: {refused:?}");
        target.until_logged("refused: 127.0.0.1").await;
        assert!(target.log().contains(says), "{what}: {}", target.log());
        is_served(&mut target.coordinator().await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_certificate_or_without_tls_is_refused() {
    let (target, authority) = Target::with_tls().await;
    let said = without_certificate(&target.address, authority.ca(), NAME).await;
    let said = said.expect("the server refuses").to_lowercase();
    assert!(said.contains("certificate"), "{said}");
    target.until_logged("peer sent no certificates").await;
    let plain = status_of(&target.address, &access(None, TOKEN)).await;
    assert_ne!(plain.code(), Code::Ok);
    is_served(&mut target.coordinator().await).await;
}

/// A worker that is not the one meant learns nothing: neither the token nor a shard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_refuses_a_worker_of_another_authority() {
    let (target, _) = Target::with_tls().await;
    let other = Authority::new(target.folder.path(), "other");
    let refused = status_of(&target.address, &access(Some(&other.issue(NAME, 2999)), TOKEN)).await;
    assert!(format!("{refused:?}").contains("UnknownIssuer"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_ran_out_of_files_serves_again_once_it_has_some() {
    let target = Target::start(TempDir::new().expect("a folder"), None, "ulimit -n 40;").await;
    let mut remote = target.coordinator().await;
    is_served(&mut remote).await;
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(hold(&target.address, Held::Nothing).await.expect("the backlog takes it"));
    }
    target.until_logged("Too many open files").await;
    is_served(&mut remote).await;
    let lines = target.log().lines().filter(|line| line.contains("refused")).count();
    assert!(lines <= 12, "{lines} lines of log");
    drop(held);
    is_served(&mut target.coordinator().await).await;
}

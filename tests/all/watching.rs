//! Runs that are watched while they go: snapshots, and the pace that whoever watches sets.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use agents::game::Registries;
use nashflock::measure::Clock;
use nashflock::results::{NodeState, PaceState, Snapshot, Status, Summary};
use nashflock::run::{self, Feed, Interrupted, Pace, Progress, RunEnd, RunSettings, ServeError};
use nashflock::scenario::{self, Known, Scenario};
use nashflock::transport::RunToken;

use crate::binary::{Folder, SYNTHETIC};

/// Keeps every snapshot.
#[derive(Default)]
struct Album(Mutex<Vec<Snapshot>>);

impl Progress for Album {
    fn phase(&self, _: &str) {}
    fn answered(&self, _: u64, _: u64) {}
    fn wants_snapshots(&self) -> bool {
        true
    }
    fn snapshot(&self, snapshot: &Snapshot) {
        self.0.lock().expect("nothing panics").push(snapshot.clone());
    }
}

struct Nobody;

impl Progress for Nobody {
    fn phase(&self, _: &str) {}
    fn answered(&self, _: u64, _: u64) {}
    fn snapshot(&self, _: &Snapshot) {
        panic!("it was not asked for");
    }
}

fn scenario_of(folder: &Folder) -> Scenario {
    let registries = Registries::standard();
    let routers = registries.routers.names().map(str::to_owned).collect();
    let Registries { costs, allocators, motions, migrations, .. } = &registries;
    let known = Known { routers, costs, allocators, motions, migrations };
    scenario::load(&folder.path("scenario.toml"), &[], &known).expect("a good scenario")
}

async fn play(folder: &Folder, out: &str, progress: &dyn Progress) -> RunEnd {
    let scenario = scenario_of(folder);
    let registries = Registries::standard();
    let settings = RunSettings {
        command: vec!["test".to_owned()],
        program: Path::new(env!("CARGO_BIN_EXE_nashflock")),
        out: Some(folder.path(out)),
        registries: &registries,
        progress,
        run_token: RunToken::default(),
        hosts_worker: false,
        at_once: false,
        trace: false,
        observe: false,
        is_scratch: false,
        shared: None,
    };
    let clock = if progress.pace().is_some() { Clock::start().pausable() } else { Clock::start() };
    run::run(&scenario, settings, &clock).await.expect("good input")
}

/// Six batches of four requests, one each 100 ms.
fn lasting() -> Folder {
    let slow = "rate_per_s = 40.0\nbatch_window_ms = 200";
    Folder::with(&SYNTHETIC.replace("rate_per_s = 2000.0", slow))
}

fn agrees(last: &Snapshot, summary: &Summary) {
    assert_eq!(last.outcomes, summary.outcomes);
    assert_eq!(last.answered, summary.outcomes.ok + summary.outcomes.late);
    assert_eq!(last.latency_ns, summary.latency_ns);
    assert_eq!(last.rounds, summary.convergence.rounds);
    assert_eq!(last.epsilon_nash_worst, summary.convergence.epsilon_nash);
    assert_eq!(last.relative_gap_worst, summary.convergence.relative_gap);
    assert_eq!(last.tokens_per_s, summary.throughput.tokens_per_s);
    assert_eq!(last.elapsed_ns, summary.throughput.elapsed_ns);
    assert_eq!(last.nodes.len(), summary.nodes.len());
    for (node, of) in last.nodes.iter().zip(&summary.nodes) {
        let seen = (node.node, node.experts, node.shard_bytes, node.token_experts);
        assert_eq!(seen, (of.node, of.experts, of.bytes, of.tokens));
        assert_eq!(node.state == NodeState::Lost, !of.alive);
    }
}

#[tokio::test]
async fn watching_changes_nothing_and_the_last_snapshot_says_what_the_summary_says() {
    let folder = lasting();
    let alone = play(&folder, "alone", &Nobody).await;
    let album = Album::default();
    let watched = play(&folder, "watched", &album).await;
    assert_eq!(watched.summary.state_hash, alone.summary.state_hash);
    assert!(watched.failure.is_none());
    assert_eq!((watched.summary.paused_ns, watched.summary.outcomes.ok), (None, 24));

    let snapshots = album.0.into_inner().expect("nothing panicked");
    let last = snapshots.last().expect("there are some");
    agrees(last, &watched.summary);
    assert_eq!((last.steps, last.steps_done, last.requests), (6, 6, 24));
    assert_eq!(last.tokens_played, 24 * 16);
    // Half a second at ten a second, and the last.
    assert!((4..=20).contains(&snapshots.len()), "{} snapshots", snapshots.len());
    for pair in snapshots.windows(2) {
        let counts = |of: &Snapshot| {
            [
                of.rounds,
                of.answered,
                of.tokens_played,
                of.tokens_answered,
                of.steps_done,
                of.elapsed_ns,
            ]
        };
        let (before, after) = (counts(&pair[0]), counts(&pair[1]));
        assert!(
            before.iter().zip(after).all(|(before, after)| *before <= after),
            "{before:?} {after:?}"
        );
    }
    for layer in &last.layers {
        assert_eq!((layer.tokens, layer.loads.len()), (64, 12));
        assert_eq!(layer.loads.iter().sum::<u32>(), 64 * 3);
        assert_eq!(layer.loads_top_k.iter().sum::<u32>(), 64 * 3);
        let most = f64::from(*layer.loads.iter().max().expect("experts"));
        assert!((layer.max_over_mean - most / layer.fair_share).abs() < 1e-12);
        assert_eq!(layer.fair_share.to_bits(), 16.0_f64.to_bits());
        assert!(layer.epsilon_nash.is_some_and(|epsilon| epsilon <= last.epsilon_nash.expect("ε")));
    }
}

#[tokio::test]
async fn a_paused_run_plays_batch_by_batch_on_a_clock_that_stands_still() {
    const PAUSE: Duration = Duration::from_millis(700);
    let folder = lasting();
    let alone = play(&folder, "alone", &Nobody).await;
    let feed = Feed::new(&scenario_of(&folder));
    feed.set_pace(Pace::pause);
    let mut latest = feed.subscribe();
    let watching = async {
        let at = |steps| {
            move |snapshot: &std::sync::Arc<Snapshot>| {
                snapshot.phase == "serving"
                    && snapshot.nodes_up == 1
                    && snapshot.steps_done == steps
            }
        };
        for steps in 0..3 {
            let snapshot = latest.wait_for(at(steps)).await.expect("it goes on").clone();
            assert_eq!(snapshot.pace, PaceState::Paused);
            assert_eq!((snapshot.rounds, snapshot.answered), (2 * steps, 4 * steps));
            tokio::time::sleep(PAUSE / 3).await;
            let still = latest.borrow().clone();
            assert_eq!((still.rounds, still.elapsed_ns), (snapshot.rounds, snapshot.elapsed_ns));
            feed.set_pace(if steps == 2 { Pace::go_on } else { Pace::step });
        }
    };
    let (end, ()) = tokio::join!(play(&folder, "paused", &feed), watching);
    assert!(end.failure.is_none());
    assert_eq!(end.summary.state_hash, alone.summary.state_hash);
    let pause_ns = u64::try_from(PAUSE.as_nanos()).expect("less than a second");
    let paused_ns = end.summary.paused_ns.expect("it was paused");
    assert!(paused_ns > pause_ns * 9 / 10, "{paused_ns}");
    // Six batches that are 100 ms apart.
    assert!(end.summary.throughput.elapsed_ns < 600_000_000 + pause_ns / 3);
    feed.ended(&end);
    let last = latest.borrow().clone();
    agrees(&last, &end.summary);
    assert_eq!((last.phase.as_str(), last.pace), ("ended", PaceState::Running));
    assert_eq!(last.end.as_ref().map(|end| end.status), Some(Status::Complete));
}

#[tokio::test]
async fn a_paused_run_can_be_ended_and_its_summary_is_whole() {
    let folder = lasting();
    let feed = Feed::new(&scenario_of(&folder));
    feed.set_pace(Pace::step);
    let mut latest = feed.subscribe();
    let watching = async {
        latest.wait_for(|snapshot| snapshot.steps_done == 1).await.expect("it goes on");
        feed.set_pace(|pace| pace.stop("q"));
    };
    let (end, ()) = tokio::join!(play(&folder, "out", &feed), watching);
    assert!(matches!(end.failure, Some(ServeError::Interrupted(Interrupted("q")))));
    assert_eq!(run::exit_code(&end.summary, end.failure.as_ref()), 130);
    assert_eq!((end.summary.status, end.summary.outcomes.ok), (Status::Interrupted, 4));
    assert_eq!(end.summary.status_detail.as_deref(), Some("q"));
    assert!(end.dir.path().join("report.html").exists());
    agrees(&latest.borrow().clone(), &end.summary);
}

//! Router rows that move in whole runs.

use crate::binary::{Folder, SYNTHETIC};

const MOVING: [&str; 4] = ["--set", "flock.motion=boids", "--set", "flock.motion_turn_max_rad=0.1"];

#[test]
fn rows_move_in_a_run_and_the_summary_says_how_far_and_what_it_cost() {
    let folder = Folder::with_checkpoint();
    let still = folder.summary("still", &[]);
    assert!(still.get("motion").is_none(), "rows stand unless asked: {still}");
    let summary = folder.summary("moving", &MOVING);
    let motion = &summary["motion"];
    assert_eq!((motion["rule"].as_str(), motion["undone"].as_u64()), (Some("boids"), Some(0)));
    assert_eq!(motion["moves"].as_u64(), Some(4), "two layers, two batches: {motion}");
    let turned = |key: &str| motion[key].as_f64().expect("an angle");
    assert!(turned("turned_mean_rad") > 1e-3 && turned("turned_max_rad") <= 0.21, "{motion}");
    assert_ne!(summary["state_hash"], still["state_hash"]);
    assert_ne!(summary["quality"]["loss"], still["quality"]["loss"]);
    assert_eq!(summary["quality"]["loss_f32"], still["quality"]["loss_f32"], "the control stands");

    let tight = [&MOVING[..], &["--set", "flock.motion_score_loss_max=0"]].concat();
    let guarded = &folder.summary("tight", &tight)["motion"];
    assert!(guarded["undone"].as_u64() > Some(0), "hardly a move is free: {guarded}");
    let least = guarded["turned_max_rad"].as_f64().expect("an angle");
    assert!(least < turned("turned_max_rad"), "{guarded}");
}

#[test]
fn moving_rows_are_the_same_at_any_number_of_threads_and_nodes() {
    let folder = Folder::with_checkpoint();
    let hash = |out: &str, more: &[&str]| {
        folder.summary(out, &[&MOVING[..], more].concat())["state_hash"].clone()
    };
    let one = hash("one", &["--set", "compute.threads=1"]);
    assert_eq!(one, hash("two", &["--set", "compute.threads=2"]));
    assert_eq!(one, hash("nodes", &["--nodes", "local:2"]));
}

#[test]
fn motion_that_cannot_be_is_refused_before_anything_starts() {
    let synthetic = Folder::with(SYNTHETIC);
    let refused = synthetic.nashflock(&[&["check", "scenario.toml"], &MOVING[..]].concat());
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("a synthetic source has none"), "{}", refused.stderr);
    let folder = Folder::with_checkpoint();
    let refused = folder.nashflock(&["check", "scenario.toml", "--set", "flock.motion=boid"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("did you mean \"boids\""), "{}", refused.stderr);
}

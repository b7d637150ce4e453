//! The book: every page has its place, every link leads somewhere, the reference is what the code says, and the
//! tutorial goes as it is written.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::binary::{Ended, Folder, skipped};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Targets of the links of a page, those of the web and of code blocks left out.
fn links(text: &str) -> Vec<String> {
    let mut code = false;
    let mut found = Vec::new();
    for line in text.lines() {
        code ^= line.trim_start().starts_with("```");
        let targets = line.split("](").skip(1).filter(|_| !code);
        found.extend(targets.filter_map(|rest| rest.split([')', ' ']).next()).map(str::to_owned));
    }
    found.retain(|target| !target.starts_with("http") && !target.starts_with('#'));
    found
}

fn pages_of(folder: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(root().join(folder)).expect("the folder is there");
    let names = entries.map(|entry| entry.expect("readable").file_name());
    names.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".md"))
}

#[test]
fn every_page_has_its_place_in_the_book() {
    let listed: BTreeSet<String> = links(&page("docs/SUMMARY.md")).into_iter().collect();
    let there: BTreeSet<String> = pages_of("docs").filter(|name| name != "SUMMARY.md").collect();
    assert_eq!(listed, there);
}

#[test]
fn every_link_of_the_pages_leads_to_a_file() {
    let docs = pages_of("docs").map(|name| format!("docs/{name}"));
    let others = ["README.md", "ARCHITECTURE.md", "MODEL.md", "scenarios/README.md"];
    let mut seen = 0;
    for name in docs.chain(others.map(str::to_owned)) {
        let folder = PathBuf::from(&name).parent().expect("a page lies in a folder").to_owned();
        for link in links(&page(&name)) {
            let file = link.split('#').next().unwrap_or_default();
            assert!(root().join(&folder).join(file).exists(), "{name}: {link}");
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen}");
}

#[test]
fn the_reference_is_what_the_code_says() {
    let folder = Folder::with("");
    for of in ["scenario", "commands", "results"] {
        let said = folder.nashflock(&["reference", of]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let file = format!("docs/reference-{of}.md");
        let is_same = said.stdout == page(&file);
        assert!(is_same, "print it anew: nashflock reference {of} > {file}");
    }
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    let folder = Folder::with("");
    let commands = ["run", "resume", "worker", "quantize", "reference"];
    let script = folder.nashflock(&["completions", "bash"]).stdout;
    fs::write(folder.path("completions"), &script).expect("writable");
    let parsed = Command::new("bash").arg("-n").arg(folder.path("completions")).status();
    assert!(parsed.expect("bash runs").success());
    let ended = folder.nashflock(&["man", "--out", "man"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for command in commands {
        assert!(script.contains(&format!("nashflock__subcmd__{command}")), "{command}");
        let manual = folder.path(&format!("man/nashflock-{command}.1"));
        assert!(fs::read_to_string(manual).expect("written").contains(".TH"), "{command}");
    }
    let none = folder.nashflock(&["man", "--out", "completions/within-a-file"]);
    assert_eq!(none.code, Some(4), "{}", none.stderr);
}

/// The scenario that the tutorial has its reader save.
pub(crate) fn of_the_tutorial() -> String {
    let page = page("docs/tutorial.md");
    let block = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("the tutorial shows a scenario").to_owned()
}

#[test]
fn the_tutorials_scenario_and_router_run_as_it_says() {
    let folder = Folder::with("");
    fs::write(folder.path("mine.toml"), of_the_tutorial()).expect("writable");
    let checked = folder.nashflock(&["check", "mine.toml"]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    let even = folder.nashflock(&["run", "mine.toml", "--out", "runs/mine"]);
    assert_eq!(even.code, Some(0), "{}", even.stderr);
    let flock = ["run", "mine.toml", "--set", "game.router=flock", "--seed", "2"];
    let flock = folder.nashflock(&[&flock[..], &["--out", "runs/flock"]].concat());
    assert_eq!(flock.code, Some(3), "a flock misses the goal: {}", flock.stderr);

    let example = Path::new(env!("CARGO_BIN_EXE_nashflock")).with_file_name("examples/own_router");
    if !example.exists() {
        return skipped("the examples are not built: run cargo test without --test");
    }
    let mut own = Command::new(example);
    own.current_dir(folder.path(".")).args(["run", "mine.toml", "--json", "--out", "runs/own"]);
    let own: Ended = own.args(["--set", "game.router=in_turn"]).output().expect("it runs").into();
    let said: Value = serde_json::from_str(&own.stdout).expect("one JSON object");
    assert_eq!(said["convergence"]["router"], "in_turn");
    // The last tokens find fewer than k experts open, and exceed a quota.
    let most = said["convergence"]["max_over_mean"].as_f64().expect("it was played");
    assert!((1.0..1.5).contains(&most) && own.code == Some(3), "{said}");
    assert!(said["convergence"]["relative_gap"].is_null(), "{said}");
    let ours = page("examples/own_router.rs");
    let code = ours.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("//!"));
    assert!(code.count() <= 40, "an own router is forty lines");
}

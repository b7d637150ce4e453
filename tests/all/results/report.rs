//! The report as a page of its own.

use super::written::{
    full_summary, layers, manifest, request_latency, run_dir, settling, written_run,
};
use nashflock::results::{Memory, RunDir, Status, Summary, report};
use std::collections::BTreeMap;
use std::fs;

#[test]
fn the_report_shows_every_section_and_loads_nothing() {
    let (_temporary, dir) = written_run(10_000);
    let html = fs::read_to_string(dir.path().join("report.html")).expect("readable");
    for section in [
        "goals",
        "convergence",
        "certificate",
        "flock",
        "load",
        "quality",
        "latency",
        "outcomes",
        "nodes",
        "precision",
        "again",
    ] {
        assert!(html.contains(&format!("<section id=\"{section}\">")), "{section}");
    }
    for outside in ["http:", "https:", "<script", "<link", "<img", "@import", "url(", "src="] {
        assert!(!html.contains(outside), "{outside}");
    }
    for shown in [
        "2.9301",
        "6.9078",
        "ln V",
        "plain top-k",
        "Node load by planned",
        "1.724",
        "10 000 steps are drawn as at most 2 000",
    ] {
        assert!(html.contains(shown), "{shown}");
    }
    assert!(
        html.contains("nashflock run scenarios/demo.toml --set &#39;name=a b&#39;")
            || html.contains("--set 'name=a b'")
    );
    // ε of the last steps is zero, and the caption must say where those points went.
    assert!(html.contains("values are zero"), "zeros on a log axis are admitted");
    assert!(html.len() < 1_000_000, "{} bytes", html.len());
    // To look at the page: NASHFLOCK_TEST_REPORT=/tmp/report.html cargo test …
    if let Some(keep) = std::env::var_os("NASHFLOCK_TEST_REPORT") {
        fs::write(keep, html).expect("can be written");
    }
}

#[test]
fn a_report_rebuilt_from_its_directory_is_the_same_bytes() {
    let (_temporary, dir) = written_run(50);
    let first = fs::read(dir.path().join("report.html")).expect("readable");
    fs::remove_file(dir.path().join("report.html")).expect("can be removed");
    RunDir::open(dir.path()).expect("a run directory").write_report().expect("can be written");
    assert!(fs::read(dir.path().join("report.html")).expect("readable") == first);

    let record = report::RunRecord {
        manifest: dir.read_manifest().expect("readable"),
        summary: full_summary(),
        layers: Some(layers()),
        timeline: None,
        rounds: (0..100).map(|at| settling(at, 50)).collect(),
        latency: Some(request_latency()),
    };
    assert!(report::render(&record).as_bytes() == first, "files lose nothing that is shown");
}

#[test]
fn a_run_that_failed_early_still_has_a_report() {
    let (_temporary, dir) = run_dir();
    let mut summary = Summary::new("early <b>", 1, Memory::new(0, 0, BTreeMap::new()));
    summary.status = Status::Failed;
    summary.status_detail = Some("node 3 refused its shard".to_owned());
    dir.write_manifest(&manifest()).expect("can be written");
    dir.write_summary(&summary).expect("can be written");
    dir.write_report().expect("can be written");
    let html = fs::read_to_string(dir.path().join("report.html")).expect("readable");
    for shown in ["This run failed.", "node 3 refused its shard", "early &lt;b&gt;", "No rounds"] {
        assert!(html.contains(shown), "{shown}");
    }
}

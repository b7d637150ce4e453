//! Run directories: what is written can be read back, and nothing is lost or overwritten.

use crate::binary::{Folder, SYNTHETIC, python, skipped};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nashflock::measure::latency::{Interval, read_hlog, write_hlog};
use nashflock::measure::{Clock, Latency};
use nashflock::results::{
    Convergence, FlockComparison, Goal, LayerFigures, Layers, Manifest, ManifestNode, Memory,
    NodeFigures, Outcomes, Pairs, PlacementFigures, PrecisionFigures, PruningFigures, Quality,
    RequestRow, ResultsError, RoundRow, RunDir, RunStart, ServedNodeLoads, SocialFigures, Status,
    Summary, Throughput, report, summary_table,
};
use proptest::prelude::*;

/// Why a test of another reader is left out.
const NO_PYARROW: &str = "no Python with pyarrow; .ci/run puts it into target/grpc-venv, and PYARROW_PYTHON names another";

/// The keys of `summary.json` that other programs rely on.
const SUMMARY_KEYS: &str = "
    schema_version scenario seed state_hash status
    convergence.router convergence.rounds convergence.iterations convergence.epsilon_nash
    convergence.relative_gap convergence.max_over_mean convergence.score_loss convergence.converged
    convergence.max_over_mean_top_k
    throughput.tokens_per_s throughput.token_experts_per_s throughput.bytes_per_s
    latency_ns.count latency_ns.p50 latency_ns.p90 latency_ns.p99 latency_ns.p999 latency_ns.max
    outcomes.ok outcomes.late outcomes.timeout outcomes.shed outcomes.error outcomes.partial
    memory.expert_bytes memory.expert_bytes_f32 memory.bits_per_weight memory.saving
    memory.base_type memory.widths
    quality.loss quality.loss_f32 quality.loss_uniform quality.tokens
    nodes.0.experts nodes.0.bytes nodes.0.tokens nodes.0.busy_share goals";

#[test]
fn the_summary_has_every_key_that_others_rely_on_even_where_nothing_was_measured() {
    let mut bare = Summary::new("bare", 1, Memory::new(0, 0, BTreeMap::new()));
    bare.quality = Some(Quality::default());
    bare.nodes = vec![node(0, false)];
    bare.nodes[0].busy_share = None;
    for summary in [bare, full_summary()] {
        let value: serde_json::Value = serde_json::from_str(&summary.to_json()).expect("JSON");
        for key in SUMMARY_KEYS.split_whitespace() {
            let pointer = format!("/{}", key.replace('.', "/"));
            let found = value.pointer(&pointer).unwrap_or_else(|| panic!("{key} is missing"));
            let reason = value["null_reasons"].get(key);
            assert_eq!(found.is_null(), reason.is_some(), "{key}");
        }
    }
    let read: Summary = serde_json::from_str(&full_summary().to_json()).expect("JSON");
    assert_eq!(read, full_summary());
}

#[test]
fn rows_survive_parquet_over_several_row_groups() {
    let (_temporary, dir) = run_dir();
    let rounds: Vec<RoundRow> = (0..40_000).map(round).collect();
    let requests: Vec<RequestRow> = (0..20_000).map(request).collect();
    let mut table = dir.table().expect("rounds can be made");
    rounds.iter().for_each(|row| table.push(row.clone()).expect("rounds can be written"));
    assert!(!dir.path().join("rounds.parquet").exists(), "half a table has no name yet");
    table.finish().expect("rounds can be ended");
    let mut table = dir.table().expect("requests can be made");
    requests.iter().for_each(|row| table.push(row.clone()).expect("requests can be written"));
    table.finish().expect("requests can be ended");

    assert!(dir.read_table::<RoundRow>().expect("readable") == rounds);
    assert!(dir.read_table::<RequestRow>().expect("readable") == requests);
    assert!(!dir.path().join("rounds.parquet.partial").exists());
    let bytes = fs::read(dir.path().join("rounds.parquet")).expect("readable");
    fs::write(dir.path().join("rounds.parquet"), &bytes[..bytes.len() / 2]).expect("writable");
    let cut = dir.read_table::<RoundRow>().expect_err("half a file is no table");
    assert!(matches!(cut, ResultsError::Malformed { .. }), "{cut}");
}

#[test]
fn an_empty_table_reads_back_empty() {
    let (_temporary, dir) = run_dir();
    dir.table::<RoundRow>().expect("can be made").finish().expect("can be ended");
    assert_eq!(dir.read_table::<RoundRow>().expect("readable"), []);
}

#[test]
fn other_parquet_readers_see_the_same_columns_and_sums() {
    let (_temporary, dir) = run_dir();
    let mut table = dir.table().expect("rounds can be made");
    (0..20_000).for_each(|at| table.push(round(at)).expect("writable"));
    table.finish().expect("rounds can be ended");
    let Some(python) = python("PYARROW_PYTHON", "import pyarrow.parquet") else {
        return skipped(NO_PYARROW);
    };
    let script = "import sys\nimport pyarrow.parquet as p\n\
        t = p.read_table(sys.argv[1])\n\
        d = t.to_pydict()\n\
        print(t.num_rows, sum(d['tokens']), d['relative_gap'].count(None), d['router'][5], \
        t.schema.field('step').type, t.schema.metadata[b'nashflock.schema_version'].decode())";
    let file = dir.path().join("rounds.parquet");
    let output = Command::new(python).arg("-c").arg(script).arg(&file).output().expect("it runs");
    let rows: Vec<RoundRow> = (0..20_000).map(round).collect();
    let tokens: u64 = rows.iter().map(|row| row.tokens).sum();
    let absent = rows.iter().filter(|row| row.relative_gap.is_none()).count();
    let expected = format!("20000 {tokens} {absent} {} uint64 1\n", rows[5].router);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn another_reader_of_parquet_finds_in_a_runs_columns_what_its_summary_says() {
    let Some(python) = python("PYARROW_PYTHON", "import pyarrow.parquet") else {
        return skipped(NO_PYARROW);
    };
    let folder = Folder::with(SYNTHETIC);
    let summary = folder.summary("out", &[]);
    let script = "import json, sys\nimport pyarrow.parquet as p\n\
        of = lambda name: p.read_table(sys.argv[1] + '/' + name + '.parquet').to_pydict()\n\
        requests, rounds = of('requests'), of('rounds')\n\
        outcomes = {name: requests['outcome'].count(name) for name in ('ok', 'late', 'shed', 'error')}\n\
        print(json.dumps({'outcomes': outcomes, 'tokens': sum(requests['tokens']),\n\
        'latency_ns_max': max(requests['latency_ns']), 'rounds': len(rounds['layer']),\n\
        'agrees': all(f - i == l for f, i, l in\n\
        zip(requests['finished_ns'], requests['intended_ns'], requests['latency_ns'])),\n\
        'epsilon_nash': max(rounds['epsilon_nash']), 'relative_gap': max(rounds['relative_gap']),\n\
        'route_ns': sum(rounds['route_ns']), 'max_over_mean': max(rounds['max_over_mean'])}))";
    let out = folder.path("out");
    let output = Command::new(python).arg("-c").arg(script).arg(&out).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    for outcome in ["ok", "late", "shed", "error"] {
        assert_eq!(read["outcomes"][outcome], summary["outcomes"][outcome], "{outcome}");
    }
    let convergence = &summary["convergence"];
    for key in ["rounds", "epsilon_nash", "relative_gap", "route_ns"] {
        assert_eq!(read[key], convergence[key], "{key}");
    }
    assert_eq!(read["max_over_mean"], convergence["max_over_mean_worst"]);
    assert_eq!((read["tokens"].as_u64(), read["agrees"].as_bool()), (Some(24 * 16), Some(true)));
    // The histogram keeps three digits.
    let largest = |of: &serde_json::Value| of.as_f64().expect("a number");
    let (exact, kept) = (largest(&read["latency_ns_max"]), largest(&summary["latency_ns"]["max"]));
    assert!((kept - exact).abs() <= exact * 1e-3, "{kept} {exact}");
}

#[test]
fn an_interval_log_reads_back_with_every_count() {
    let started = UNIX_EPOCH + Duration::from_millis(1_773_039_901_250);
    let intervals: Vec<Interval> = (0..3)
        .map(|part: u64| Interval {
            start_ns: part * 1_500_000_000,
            duration_ns: 1_500_000_000,
            tag: ["", "requests", "dispatch"][usize::try_from(part).expect("small")].to_owned(),
            latency: latencies((0..5_000 * part).map(|i| i * i * 100_000 * (part + 1))),
        })
        .collect();
    let mut log = Vec::new();
    write_hlog(&mut log, started, &intervals).expect("memory takes any log");
    let read = read_hlog(&log).expect("our own log");
    assert_eq!(read.len(), 3);
    for (read, written) in read.iter().zip(&intervals) {
        assert_eq!((read.start_ns, read.duration_ns), (written.start_ns, written.duration_ns));
        assert_eq!(read.tag, written.tag);
        assert_eq!(read.latency.quantiles(), written.latency.quantiles());
        for per_mille in 0..=1_000 {
            let q = f64::from(per_mille) / 1_000.0;
            assert_eq!(read.latency.quantile(q), written.latency.quantile(q));
        }
    }
    assert!(read[2].latency.quantiles().overflow > 0, "the overflow is carried");
    assert!(String::from_utf8(log).expect("text").contains("#[StartTime: 1773039901.250"));
    read_hlog(b"1.0,2.0,3.0,!!!\n").expect_err("no histogram");
    let spaced = Interval { tag: "a b".to_owned(), ..intervals[0].clone() };
    write_hlog(&mut Vec::new(), started, &[spaced]).expect_err("tags have no spaces");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn merged_parts_equal_the_whole(
        samples in prop::collection::vec(0_u64..5_000_000_000_000, 0..400),
        parts in 1_usize..6,
    ) {
        let whole = latencies(samples.iter().copied());
        let mut merged = Latency::new();
        for part in (0..parts).rev() {
            merged.merge(&latencies(samples.iter().copied().skip(part).step_by(parts)));
        }
        prop_assert_eq!(merged.quantiles(), whole.quantiles());
        prop_assert_eq!(whole.count(), samples.len() as u64);
        for percent in 0..=100 {
            let q = f64::from(percent) / 100.0;
            prop_assert_eq!(merged.quantile(q), whole.quantile(q));
        }
    }
}

#[test]
fn a_run_directory_is_refused_before_anything_is_written() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let taken = temporary.path().join("taken");
    fs::create_dir(&taken).expect("can be made");
    fs::write(taken.join("summary.json"), "precious").expect("can be written");
    let file = temporary.path().join("file");
    fs::write(&file, "precious").expect("can be written");
    for (path, message) in [
        (taken.clone(), "exists and is not empty"),
        (file.clone(), "exists and is not a directory"),
        (file.join("below"), "cannot write to"),
        (PathBuf::from("/proc/nashflock/run"), "cannot write to"),
    ] {
        let error = RunDir::create(&path).expect_err("refused");
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.to_string().contains("choose another --out"), "{error}");
        assert!(error.is_bad_input());
    }
    assert_eq!(fs::read_dir(&taken).expect("readable").count(), 1);
    assert_eq!(fs::read_to_string(taken.join("summary.json")).expect("readable"), "precious");

    let empty = temporary.path().join("empty");
    fs::create_dir(&empty).expect("can be made");
    RunDir::create(&empty).expect("an empty directory is taken");
    RunDir::create(&temporary.path().join("a/b/c")).expect("parents are made");
}

#[test]
fn a_write_that_fails_names_its_file_and_keeps_the_old_one() {
    let (_temporary, dir) = run_dir();
    dir.write("summary.json", b"first").expect("can be written");
    // A directory under the name of the temporary file stops the write as a full disk would.
    fs::create_dir(dir.path().join("summary.json.partial")).expect("can be made");
    let error = dir.write("summary.json", b"second").expect_err("cannot be written");
    assert!(error.to_string().contains("summary.json"), "{error}");
    assert!(!error.is_bad_input());
    assert_eq!(fs::read(dir.path().join("summary.json")).expect("readable"), b"first");
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    let Ok(()) = fs::metadata("/dev/full").map(|_| ()) else {
        return skipped("no /dev/full");
    };
    let (_temporary, dir) = run_dir();
    dir.write("scenario.toml", b"seed = 1").expect("can be written");
    #[cfg(unix)]
    std::os::unix::fs::symlink("/dev/full", dir.path().join("rounds.parquet.partial"))
        .expect("can be linked");
    let mut table = dir.table().expect("the device opens");
    let written = (0..40_000).try_for_each(|at| table.push(round(at)));
    let error = written.and_then(|()| table.finish()).expect_err("the device is full");
    assert!(error.to_string().contains("rounds.parquet"), "{error}");
    assert!(error.to_string().contains("what was written before is kept"), "{error}");
    assert_eq!(fs::read(dir.path().join("scenario.toml")).expect("readable"), b"seed = 1");
}

#[test]
fn files_of_a_newer_nashflock_are_refused_by_name() {
    let (_temporary, dir) = run_dir();
    dir.write("summary.json", br#"{"schema_version": 2, "shape": "unknown"}"#).expect("writable");
    let error = dir.read_summary().expect_err("newer");
    assert!(error.to_string().contains("schema version 2"), "{error}");
    let error = dir.read_manifest().expect_err("missing");
    assert!(error.to_string().contains("manifest.json"), "{error}");
    let error = RunDir::open(dir.path()).expect_err("no manifest");
    assert!(error.to_string().contains("is this a run directory?"), "{error}");
}

#[test]
fn the_default_directory_is_named_after_scenario_seed_and_time() {
    let path = RunDir::default_path("a/b scenario", 7, UNIX_EPOCH + Duration::from_secs(1));
    assert_eq!(path, Path::new("runs/a_b_scenario-7-19700101T000001Z"));
}

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

#[test]
fn the_table_fits_a_screen_and_shows_each_figure_with_its_control() {
    let mut summary = full_summary();
    summary.goals = (0..30)
        .map(|at| Goal { name: format!("g{at}"), limit: 1.0, measured: None, met: at % 2 == 0 })
        .collect();
    let table = summary_table(&summary);
    assert!(table.lines().count() <= 25, "{table}");
    for shown in [
        "2.418 by plain top-k",
        "2.9176 f32, 6.9078 ln V",
        "90.6 % saved",
        "0.0312  by flock: 4.00 % above exact, 0.0299 at least, 0.0551 uniform bits",
        "32  of 128 experts by reap: 2.9188 f32 under top-k, 2.9351 had frequency chosen",
        "1.041  max over mean by planned; 1.724 round robin, 1.183 split evenly, at least 1.017",
        "2 560 offered",
        "MISSED",
    ] {
        assert!(table.contains(shown), "{shown} in\n{table}");
    }
    let bare = summary_table(&Summary::new("bare", 1, Memory::new(0, 0, BTreeMap::new())));
    assert!(bare.contains("n/a") && !bare.contains("NaN") && !bare.contains("inf"), "{bare}");
}

fn run_dir() -> (tempfile::TempDir, RunDir) {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let dir = RunDir::create(&temporary.path().join("run")).expect("a new directory");
    (temporary, dir)
}

/// A directory with everything in it: two layers over `steps` steps.
fn written_run(steps: u64) -> (tempfile::TempDir, RunDir) {
    let (temporary, dir) = run_dir();
    dir.write_manifest(&manifest()).expect("can be written");
    let mut table = dir.table().expect("can be made");
    (0..2 * steps).for_each(|at| table.push(settling(at, steps)).expect("can be written"));
    table.finish().expect("can be ended");
    let interval = Interval {
        start_ns: 0,
        duration_ns: 60_000_000_000,
        tag: String::new(),
        latency: request_latency(),
    };
    dir.write_hlog("requests", SystemTime::UNIX_EPOCH, &[interval]).expect("can be written");
    dir.write_layers(&layers()).expect("can be written");
    dir.write_summary(&full_summary()).expect("can be written");
    dir.write_report().expect("can be written");
    (temporary, dir)
}

fn manifest() -> Manifest {
    let command = ["nashflock", "run", "scenarios/demo.toml", "--set", "name=a b", "--seed", "7"];
    let mut manifest = Manifest::start(
        RunStart {
            command: command.map(str::to_owned).to_vec(),
            scenario: "demo",
            scenario_toml: "seed = 7",
            seed: 7,
            threads: 8,
            nodes: (0..4)
                .map(|node| ManifestNode { node, address: format!("n{node}:1") })
                .collect(),
        },
        &Clock::start(),
    );
    manifest.end(&Clock::start(), 0);
    manifest
}

fn full_summary() -> Summary {
    let widths = BTreeMap::from([(2, 70), (3, 16), (4, 38), (8, 4)]);
    let mut summary = Summary::new("demo", 7, Memory::new(2_765_952, 7_356_416, widths));
    summary.memory.saving = Some(0.906);
    summary.state_hash = "9f2c5a1be0d34786".repeat(4);
    summary.convergence = Convergence {
        router: "auction".to_owned(),
        rounds: 20_000,
        iterations: 312_345,
        passes: 61_002,
        route_ns: 8_123_456_789,
        epsilon_nash: Some(0.0),
        relative_gap: Some(0.000_213),
        max_over_mean: Some(1.004),
        max_over_mean_top_k: Some(2.418),
        score_loss: Some(0.0312),
        converged: true,
        max_over_mean_worst: Some(1.018),
        kept_share_min: Some(0.61),
        dropped_pairs: 0,
        extra_pairs: 0,
        social: Some(SocialFigures {
            cost: Some(81.5),
            optimum: Some(64.25),
            optimum_bound: Some(64.25),
            price_of_anarchy: Some(1.2685),
        }),
    };
    summary.flock = Some(FlockComparison {
        epsilon_nash: Some(0.041),
        relative_gap: Some(0.062),
        max_over_mean_first: Some(2.21),
        max_over_mean_last: Some(1.32),
    });
    summary.throughput = Throughput {
        goodput_tokens_per_s: Some(3_000.0),
        tokens_per_s: Some(48_210.0),
        token_experts_per_s: Some(771_360.0),
        bytes_per_s: Some(1.91e8),
        elapsed_ns: 61_000_000_000,
        offered_tokens_per_s: Some(2_560.0),
    };
    summary.latency_ns = request_latency().quantiles();
    summary.outcomes =
        Outcomes { ok: 19_402, late: 401, timeout: 12, shed: 180, error: 0, partial: 5 };
    summary.pairs = Some(Pairs { dispatched: 1_000, combined: 990, missing: 8, shed: 2 });
    summary.quality = Some(Quality {
        loss: Some(2.9301),
        loss_f32: Some(2.9176),
        loss_uniform: Some(1000_f64.ln()),
        loss_top_k: Some(2.9244),
        loss_top_k_uniform_bits: Some(2.9361),
        loss_widths_kept: Some(2.9333),
        output_error: Some(0.031),
        output_error_widths_kept: Some(0.044),
        loss_f32_routed: Some(2.9201),
        loss_f32_pruned: Some(2.9188),
        loss_f32_pruned_by_frequency: Some(2.9351),
        tokens: 65_536,
    });
    summary.precision = Some(PrecisionFigures {
        budget_bytes: 2_765_952,
        allocator: "flock".to_owned(),
        sensitivity: "output".to_owned(),
        unit: "expert".to_owned(),
        cost: 0.0312,
        bytes: Some(2_764_800),
        exact_cost: Some(0.03),
        gap_to_exact: Some(0.04),
        dual_bound: 0.0299,
        exact: true,
        uniform_cost: Some(0.0551),
        uniform_bytes: Some(2_700_000),
    });
    summary.pruning = Some(PruningFigures {
        by: "reap".to_owned(),
        share: 0.25,
        experts: 128,
        pruned: 32,
        unlike_frequency: Some(25),
    });
    let served = ServedNodeLoads {
        max_over_mean: Some(1.041),
        dispatch_lower_bound: Some(1.041),
        lower_bound: Some(1.017),
        max_over_mean_even_split: Some(1.183),
        max_over_mean_round_robin: Some(1.724),
    };
    let name = "planned".to_owned();
    summary.placement = Some(PlacementFigures { name, replica_slots: 8, expected: None, served });
    summary.nodes = (0..4).map(|at| node(at, at != 2)).collect();
    summary.goals = vec![
        Goal { name: "p99_ms".to_owned(), limit: 50.0, measured: Some(31.2), met: true },
        Goal { name: "saving".to_owned(), limit: 0.91, measured: Some(0.906), met: false },
    ];
    summary
}

fn node(node: u32, alive: bool) -> NodeFigures {
    NodeFigures {
        node,
        address: format!("10.0.0.{node}:7070"),
        experts: 32 + u64::from(node),
        bytes: 691_488,
        tokens: 192_000 - u64::from(node) * 1_111,
        busy_share: Some(0.71 - f64::from(node) * 0.05),
        alive,
    }
}

fn layers() -> Layers {
    let figures = |layer: u32| LayerFigures {
        layer,
        loads_top_k: (0..64).map(|e| 240_000 / (e + 2 + u64::from(layer)) + 3_000).collect(),
        loads: (0..64).map(|e: u64| 10_000 + e * 37 % 97).collect(),
        bits: (0..64)
            .map(|e: u32| [2, 2, 3, 4, 2, 4, 2, 8][(e * (layer + 5) % 8) as usize])
            .collect(),
        bits_end: Vec::new(),
        places: Vec::new(),
        steps: Vec::new(),
    };
    Layers::new(vec![figures(0), figures(1)])
}

fn latencies(samples: impl Iterator<Item = u64>) -> Latency {
    let mut latency = Latency::new();
    samples.for_each(|sample| latency.record(sample));
    latency
}

fn request_latency() -> Latency {
    latencies((1..20_000_u64).map(|i| 4_000_000 + 60_000_000_000 / (i * 7 % 20_011 + 3)))
}

/// Rounds of two layers that converge: ε falls to zero, loads even out.
fn settling(at: u64, steps: u64) -> RoundRow {
    let step = at / 2;
    let t = step as f64 / steps as f64;
    let noise = (at * 7_919 % 101) as f64 / 101.0;
    RoundRow {
        step,
        layer: (at % 2) as u32,
        epsilon_nash: if t > 0.7 { 0.0 } else { 0.3 * (-12.0 * t).exp() * (0.5 + noise) },
        relative_gap: Some(2e-4 + 0.05 * (-9.0 * t).exp() * (0.5 + noise)),
        max_over_mean: 1.0 + 0.02 * noise + 0.6 * (-10.0 * t).exp(),
        max_over_mean_top_k: Some(2.3 + 0.3 * noise),
        flock_max_over_mean: Some(1.3 + 0.1 * noise + 0.9 * (-6.0 * t).exp()),
        flock_epsilon_nash: Some(0.03 + 0.3 * (-5.0 * t).exp() * (0.6 + noise)),
        flock_relative_gap: Some(0.04 + 0.2 * (-5.0 * t).exp() * (0.6 + noise)),
        ..round(at)
    }
}

fn round(at: u64) -> RoundRow {
    let fraction = at as f64 / 7.0;
    RoundRow {
        step: at,
        layer: (at % 3) as u32,
        tokens: 256 + at % 5,
        router: ["auction", "top-k", "größer ✓"][(at % 3) as usize].to_owned(),
        iterations: at * 3,
        passes: 1 + at % 4,
        epsilon_nash: fraction,
        relative_gap: (!at.is_multiple_of(4)).then_some(fraction * 1e-9),
        potential: -fraction,
        dual_bound: (!at.is_multiple_of(4)).then_some(fraction),
        max_over_mean: 1.0 + fraction,
        max_over_mean_top_k: (at < 30_000).then_some(2.0),
        score_loss: None,
        flock_max_over_mean: (at > 35_000).then_some(1.5),
        flock_epsilon_nash: Some(0.1),
        flock_relative_gap: (at.is_multiple_of(2)).then_some(0.2),
        route_ns: u64::MAX - at,
        dispatch_ns: at << 40,
        bytes_sent: at * 1_024,
        bytes_received: 0,
    }
}

fn request(at: u64) -> RequestRow {
    RequestRow {
        request: at,
        step: (!at.is_multiple_of(11)).then_some(at / 8),
        tokens: 32,
        intended_ns: at * 1_000,
        started_ns: (!at.is_multiple_of(11)).then_some(at * 1_000 + 5),
        finished_ns: at * 1_000 + 900,
        latency_ns: 900,
        outcome: if at.is_multiple_of(11) { "shed" } else { "ok" }.to_owned(),
        loss_sum: (at.is_multiple_of(2)).then_some(at as f64 * 0.1),
        first_token_ns: None,
        generated: None,
    }
}

//! Rows in Parquet, read back here and by other programs.

use super::written::{request, round, run_dir};
use crate::binary::{Folder, SYNTHETIC, python, skipped};
use nashflock::results::{RequestRow, ResultsError, RoundRow};
use std::fs;
use std::process::Command;

/// Why a test of another reader is left out.
const NO_PYARROW: &str = "no Python with pyarrow; .ci/run puts it into target/grpc-venv, and PYARROW_PYTHON names another";

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

//! `nashflock sweep`, `plan`, `status` and `resume` of a sweep: a row a run, whatever happens to the process.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nashflock::results::RunDir;
use nashflock::results::compare::game_figures;
use nashflock::sweep::{Row, SweepDir};

use crate::binary::{Ended, Folder, Running, SYNTHETIC, signal, until};

/// 3 × 2 points; a run takes some milliseconds.
fn swept(sweep: &str) -> String {
    let small = SYNTHETIC
        .replace("requests = 24", "requests = 8")
        .replace("[precision]\nbudget = \"4.5bpw\"\n", "");
    format!(
        "{small}[compute]\nthreads = 1\n[sweep]\nat_once = true\n{sweep}\n\
         [[sweep.axis]]\nkey = \"game.router\"\nvalues = [\"equilibrium\", \"top_k\", \"sinkhorn\"]\n\
         [[sweep.axis]]\nkey = \"source.skew\"\nvalues = [0, 1.5]\n"
    )
}

fn sweep(folder: &Folder, out: &str, args: &[&str]) -> Ended {
    folder.nashflock(&[&["sweep", "scenario.toml", "--json", "--out", out], args].concat())
}

fn complete(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.json()["complete"], true, "{}", ended.stdout);
}

fn rows(path: &Path) -> Vec<Row> {
    let dir = SweepDir::open(path).expect("a sweep");
    let rows: Result<Vec<Row>, _> = dir.rows().expect("readable").collect();
    rows.expect("whole rows")
}

/// The rows without what a clock enters, as bytes: no digit is left out.
fn played(path: &Path) -> Vec<Vec<u8>> {
    let bytes = |row: Row| {
        let row = Row { measured: BTreeMap::new(), ..row };
        postcard::to_stdvec(&row).expect("a row has a binary form")
    };
    rows(path).into_iter().map(bytes).collect()
}

#[test]
fn each_row_is_the_run_that_its_parameters_and_seed_name() {
    let folder = Folder::with(&swept("seeds = 2"));
    complete(&sweep(&folder, "out", &[]));
    assert_eq!(folder.names(), ["out", "scenario.toml"]);
    let mut names: Vec<String> = fs::read_dir(folder.path("out"))
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["report.html", "scenario.toml", "shard-1-of-1.parquet", "sweep.json"]);
    let rows = rows(&folder.path("out"));
    let at = |row: &Row| (row.run, row.point, row.replicate);
    let expected: Vec<_> = (0..12).map(|run| (run, run / 2, u32::from(run % 2 == 1))).collect();
    assert_eq!(rows.iter().map(at).collect::<Vec<_>>(), expected);
    for row in [&rows[0], &rows[3], &rows[11]] {
        let [router, skew] = [&row.parameters[0], &row.parameters[1]];
        let (router, skew) = (format!("game.router={router}"), format!("source.skew={skew}"));
        let (seed, out) = (row.seed.to_string(), format!("run {}", row.run));
        let summary = folder.summary(&out, &["--set", &router, "--set", &skew, "--seed", &seed]);
        assert_eq!(summary["state_hash"].as_str(), row.state_hash.as_deref(), "{row:?}");
        let gap = &summary["convergence"]["max_over_mean"];
        assert_eq!(gap.as_f64(), row.figure("convergence.max_over_mean"));
        let resolved = fs::read(folder.path(&out).join("scenario.toml")).expect("readable");
        assert_eq!(blake3::hash(&resolved).to_hex()[..32], row.id);
    }
}

/// Points that have in common some of what they read and make of it.
const ON_A_CHECKPOINT: &str = r#"
[compute]
threads = 1
[sweep]
method = "latin_hypercube"
samples = 8
seeds = 2
at_once = true
[[sweep.axis]]
key = "game.router"
values = ["equilibrium", "top_k"]
[[sweep.axis]]
key = "precision.budget"
values = ["3.5bpw", "f32"]
[[sweep.axis]]
key = "precision.prune"
values = [0.0, 0.25]
[[sweep.axis]]
key = "game.top_k"
values = [8, 4]
[[sweep.axis]]
key = "precision.calibration_tokens"
values = [128, 64]
[[sweep.axis]]
key = "load.tokens_per_request"
values = [16, 8]
"#;

#[test]
fn rows_over_a_trained_checkpoint_are_what_single_runs_of_it_come_to() {
    let folder = Folder::with_checkpoint();
    let file = folder.path("scenario.toml");
    let text = fs::read_to_string(&file).expect("readable") + ON_A_CHECKPOINT;
    fs::write(&file, text).expect("written");
    complete(&sweep(&folder, "out", &["--jobs", "2"]));
    let rows = rows(&folder.path("out"));
    assert!(rows.len() >= 12, "{} runs", rows.len());
    let keys = SweepDir::open(&folder.path("out")).expect("a sweep").head().keys.clone();
    for row in rows.iter().filter(|row| u64::from(row.replicate) == row.point % 2) {
        let sets = keys.iter().zip(&row.parameters).map(|(key, value)| format!("{key}={value}"));
        let sets: Vec<String> = sets.collect();
        let mut args: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let (seed, out) = (row.seed.to_string(), format!("run {}", row.run));
        args.extend(["--seed", &seed]);
        let summary = folder.summary(&out, &args);
        assert_eq!(summary["state_hash"].as_str(), row.state_hash.as_deref(), "{row:?}");
        let resolved = fs::read(folder.path(&out).join("scenario.toml")).expect("readable");
        assert_eq!(blake3::hash(&resolved).to_hex()[..32], row.id);
        let single = RunDir::open(&folder.path(&out)).expect("a run").read_summary();
        let figures = game_figures(&single.expect("readable"));
        for (key, value) in &row.figures {
            let of = key.split('.').fold(&figures, |of, key| &of[key]);
            let of = of.as_f64().or_else(|| of.as_bool().map(|of| f64::from(u8::from(of))));
            assert_eq!(of.map(f64::to_bits), Some(value.to_bits()), "{key} of run {}", row.run);
        }
        assert!(row.figure("quality.loss_f32").is_some(), "{row:?}");
    }
}

#[test]
fn a_sweep_that_is_killed_at_any_moment_goes_on_to_the_rows_of_a_whole_one() {
    let folder = Folder::with(&swept("seeds = 12"));
    complete(&sweep(&folder, "whole", &[]));
    let expected = played(&folder.path("whole"));
    assert_eq!(expected.len(), 72);
    let journal = folder.path("out/shard-1-of-1.journal");
    let bytes = || fs::metadata(&journal).map_or(0, |of| of.len());
    type Moment<'a> = (&'a str, &'a dyn Fn() -> bool, u64);
    let moments: [Moment<'_>; 6] = [
        ("the directory is made", &|| folder.path("out").exists(), 0),
        ("the head is written", &|| folder.path("out/sweep.json").exists(), 0),
        ("the journal is there", &|| journal.exists(), 0),
        ("the first rows are written", &|| bytes() > 4_000, 0),
        ("some rows are written", &|| bytes() > 20_000, 3),
        ("many rows are written", &|| bytes() > 60_000, 7),
    ];
    for (moment, has_come, wait_ms) in moments {
        let args = ["sweep", "scenario.toml", "--out", "out", "--jobs", "2"];
        let run = Running::start(folder.command(&args));
        until(moment, has_come);
        std::thread::sleep(Duration::from_millis(wait_ms));
        signal("KILL", run.pid());
        assert_eq!(run.end().code, None, "{moment}: a signal ended it");
        if !journal.exists() {
            // Nothing was played: it is started as any other.
            complete(&sweep(&folder, "out", &[]));
        } else {
            let kept = rows(&folder.path("out")).len();
            // Twice: the second time in the middle of the resumption.
            let again = Running::start(folder.command(&["resume", "out"]));
            until("it goes on", || rows(&folder.path("out")).len() > kept || !journal.exists());
            // It may have ended.
            let _ = std::process::Command::new("kill")
                .args(["-KILL", &again.pid().to_string()])
                .status();
            again.end();
            if journal.exists() {
                complete(&folder.nashflock(&["resume", "out", "--json"]));
            }
        }
        assert!(played(&folder.path("out")) == expected, "{moment}");
        assert!(!journal.exists() && !folder.path("out/.scratch-1-of-1").exists(), "{moment}");
        let refused = folder.nashflock(&["resume", "out"]);
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains("is complete"), "{}", refused.stderr);
        fs::remove_dir_all(folder.path("out")).expect("it is there");
    }
}

#[test]
fn ctrl_c_ends_a_sweep_in_good_order_and_it_goes_on() {
    let folder = Folder::with(&swept("seeds = 40"));
    let run = Running::start(folder.command(&["sweep", "scenario.toml", "--out", "out"]));
    let journal = folder.path("out/shard-1-of-1.journal");
    until("rows are written", || fs::metadata(&journal).is_ok_and(|of| of.len() > 10_000));
    signal("INT", run.pid());
    let ended = run.end();
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    assert!(ended.stderr.contains("nashflock resume out"), "{}", ended.stderr);
    assert!(!folder.path("out/.scratch-1-of-1").exists());
    let status = folder.nashflock(&["status", "out", "--json"]).json();
    assert_eq!(status["complete"], false, "{status}");
    assert_eq!(status["done"].as_u64(), Some(rows(&folder.path("out")).len() as u64));
    complete(&folder.nashflock(&["resume", "out", "--json"]));
    assert_eq!(rows(&folder.path("out")).len(), 240);
}

#[test]
fn a_further_value_moves_no_seed_and_common_random_numbers_are_common() {
    let folder = Folder::with(&swept("seeds = 2"));
    complete(&sweep(&folder, "two", &[]));
    let text = swept("seeds = 3").replace("[0, 1.5]", "[1, 0, 3.0, 1.5]");
    fs::write(folder.path("scenario.toml"), text).expect("written");
    complete(&sweep(&folder, "four", &[]));
    let four: BTreeMap<String, Row> =
        rows(&folder.path("four")).into_iter().map(|row| (row.id.clone(), row)).collect();
    for row in rows(&folder.path("two")) {
        let same = four.get(&row.id).unwrap_or_else(|| panic!("{row:?} is gone"));
        assert_eq!((same.seed, &same.state_hash), (row.seed, &row.state_hash));
    }
    let seeds: std::collections::BTreeSet<u64> = four.values().map(|row| row.seed).collect();
    assert_eq!(seeds.len(), 36, "each run has its own");
    complete(&sweep(&folder, "common", &["--set", "sweep.common_random_numbers=true"]));
    for row in rows(&folder.path("common")) {
        let first = &rows(&folder.path("common"))[row.replicate as usize];
        assert_eq!(row.seed, first.seed);
    }
}

#[test]
fn shards_in_one_directory_are_the_whole_sweep() {
    let folder = Folder::with(&swept("seeds = 2"));
    complete(&sweep(&folder, "whole", &[]));
    for shard in ["2/3", "3/3", "1/3"] {
        complete(&sweep(&folder, "out", &["--shard", shard]));
        let again = sweep(&folder, "out", &["--shard", shard]);
        assert_eq!(again.code, Some(2), "{}", again.stderr);
        assert!(again.stderr.contains("was started before"), "{}", again.stderr);
    }
    assert!(played(&folder.path("out")) == played(&folder.path("whole")));
    let other = sweep(&folder, "out", &["--set", "sweep.seeds=3", "--shard", "1/2"]);
    assert_eq!(other.code, Some(2), "{}", other.stderr);
    assert!(other.stderr.contains("another sweep"), "{}", other.stderr);
}

/// A budget that no width keeps is found when the experts are fitted: that run fails, as `run` would.
fn with_failures(on_failure: &str) -> Folder {
    let text = swept(on_failure).replace(
        "key = \"source.skew\"\nvalues = [0, 1.5]",
        "key = \"precision.budget\"\nvalues = [\"4.5bpw\", \"2.1bpw\"]",
    );
    Folder::with(&text)
}

#[test]
fn a_run_that_fails_keeps_its_message_and_the_others_go_on() {
    let folder = with_failures("");
    let ended = sweep(&folder, "out", &[]);
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("3 runs failed; run 1: "), "{}", ended.stderr);
    let rows = rows(&folder.path("out"));
    assert_eq!(rows.len(), 6);
    let alone = ["run", "scenario.toml", "--set", "precision.budget=2.1bpw", "--out", "alone"];
    let alone = folder.nashflock(&alone);
    assert_eq!(alone.code, Some(2));
    for row in &rows {
        assert_eq!(row.is_complete(), row.run % 2 == 0, "{row:?}");
        assert_eq!(row.state_hash.is_some(), row.is_complete());
        let message = row.message.as_deref().unwrap_or_default();
        assert!(row.is_complete() || alone.stderr.contains(message), "{row:?} {}", alone.stderr);
        assert_eq!(row.message.is_none(), row.is_complete());
    }
    let status = folder.nashflock(&["status", "out", "--json"]).json();
    assert_eq!((status["failed"].as_u64(), status["done"].as_u64()), (Some(3), Some(6)));
    let watched = folder.nashflock(&["resume", "out", "--failed", "--metrics", "0"]);
    assert_eq!(watched.code, Some(2), "there is no page of a sweep: {}", watched.stderr);
    let again = folder.nashflock(&["resume", "out", "--failed", "--json"]);
    assert_eq!(again.code, Some(4), "they fail again: {}", again.stderr);
    assert_eq!(again.json()["done"], 6);
}

#[test]
fn the_first_failure_stops_a_sweep_that_wants_it_and_others_try_again() {
    let folder = with_failures("on_failure = \"fail_fast\"");
    let ended = sweep(&folder, "out", &["--jobs", "1"]);
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert_eq!(
        (ended.json()["done"].as_u64(), ended.json()["complete"].as_bool()),
        (Some(2), Some(false))
    );
    let folder = with_failures("on_failure = { retry = 2 }");
    assert_eq!(sweep(&folder, "out", &[]).code, Some(4));
    let attempts = |row: &Row| row.figure("attempts");
    for row in rows(&folder.path("out")) {
        assert_eq!(attempts(&row), Some(if row.is_complete() { 1.0 } else { 3.0 }), "{row:?}");
    }
}

#[test]
fn a_plan_counts_and_estimates_and_writes_nothing() {
    let folder = Folder::with(&swept("seeds = 5"));
    let ended = folder.nashflock(&["plan", "scenario.toml", "--json", "--jobs", "2"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let plan = ended.json();
    assert_eq!((plan["points"].as_u64(), plan["runs"].as_u64()), (Some(6), Some(30)));
    let estimate = &plan["estimate"];
    assert_eq!(estimate["trials"], serde_json::json!([0, 14, 29]));
    let times: Vec<f64> = estimate["trial_s"]
        .as_array()
        .expect("times")
        .iter()
        .filter_map(|of| of.as_f64())
        .collect();
    let total = times.iter().sum::<f64>() / 3.0 * 30.0 / 2.0;
    assert!((estimate["total_s"].as_f64().expect("a time") - total).abs() < 1e-9 * total);
    assert_eq!(folder.names(), ["scenario.toml"]);
}

#[test]
fn a_single_run_of_a_swept_scenario_leaves_the_sweep_out() {
    let folder = Folder::with(&swept("seeds = 2"));
    let ended = folder.nashflock(&["run", "scenario.toml", "--out", "out"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("[sweep] is left out"), "{}", ended.stderr);
    let resolved = fs::read_to_string(folder.path("out/scenario.toml")).expect("readable");
    assert!(!resolved.contains("sweep"), "{resolved}");
    let refused = Folder::with(SYNTHETIC).nashflock(&["sweep", "scenario.toml"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("has no section [sweep]"), "{}", refused.stderr);
}

/// Axes one by one; what points make of the scenario is found when these are good.
#[test]
fn everything_that_is_wrong_with_a_sweep_is_said_at_once_with_place_and_remedy() {
    let text = format!(
        "{SYNTHETIC}[sweep]\nbaseline = [\"game.router=topk\"]\nfigures = [\"convergence.max_over_men\"]\n\
         [[sweep.axis]]\nkey = \"game.top_kk\"\nvalues = [1, 2]\n\
         [[sweep.axis]]\nkey = \"game.router\"\nvalues = [\"top_k\", 3, \"top_k\"]\n\
         [[sweep.axis]]\nkey = \"source.skew\"\nlow = 2\nhigh = 1\n\
         [[sweep.axis]]\nkey = \"source.experts\"\nlow = 4\nhigh = 8.5\nsteps = 3\n\
         [[sweep.axis]]\nkey = \"flock.neighbours\"\nlow = 1\nhigh = 3\nsteps = 4\n\
         [[sweep.axis]]\nkey = \"seed\"\nvalues = [1]\n\
         [[sweep.axis]]\nkey = \"game.cost\"\n\
         [[sweep.axis]]\nkey = \"game.router\"\nvalues = [\"bip\"]\n"
    );
    let folder = Folder::with(&text);
    let ended = folder.nashflock(&["check", "scenario.toml", "--json"]);
    assert_eq!(ended.code, Some(2));
    let problems = ended.json()["problems"].clone();
    let said: Vec<String> = problems
        .as_array()
        .expect("a list")
        .iter()
        .map(|of| {
            format!("{} | {} | {}", of["key"], of["message"], of["help"]).replace(['"', '\\'], "")
        })
        .collect();
    let expected = [
        ("sweep.baseline[0]", "topk is no value of the axis", "top_k"),
        (
            "sweep.figures[0]",
            "no summary has the figure",
            "did you mean `convergence.max_over_mean`?",
        ),
        ("sweep.axis[0].key", "there is no key `game.top_kk`", "did you mean `game.top_k`?"),
        ("sweep.axis[1].values[1]", "`game.router` must be a string", "put it in quotes"),
        ("sweep.axis[1].values[2]", "has the value top_k twice", "take one out"),
        ("sweep.axis[2]", "`source.skew` has no `steps`", "add `steps = N`"),
        ("sweep.axis[2].high", "range of `source.skew` is empty", "write a `high` above `low`"),
        ("sweep.axis[3].high", "takes whole numbers, not 8.5", "write a whole number"),
        (
            "sweep.axis[4].steps",
            "4 steps of `flock.neighbours` fall on 3 whole numbers",
            "fewer steps",
        ),
        ("sweep.axis[5].key", "`seed` cannot be varied", "seeds = N"),
        ("sweep.axis[6]", "the axis of `game.cost` has no values", "values"),
        ("sweep.axis[7].key", "set the same key", "one axis"),
    ];
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for ((key, message, help), said) in expected.iter().zip(&said) {
        let holds = said.starts_with(key) && said.contains(message) && said.contains(help);
        assert!(holds, "{key} | {message} | {help}: {said}");
    }
    let lines = problems.as_array().expect("a list").iter().all(|of| of["line"].is_u64());
    assert!(lines, "{problems}");
}

#[test]
fn a_point_that_contradicts_itself_is_found_before_anything_starts() {
    let text = swept("")
        .replace("[0, 1.5]", "[0, 1.5]\n[[sweep.axis]]\nkey = \"game.top_k\"\nvalues = [2, 13]");
    let folder = Folder::with(&text);
    let ended = sweep(&folder, "out", &[]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    let said = "at the point game.router=\"equilibrium\", source.skew=0.0, game.top_k=13: `game.top_k` is 13 but `source.experts` is 12";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
    assert_eq!(folder.names(), ["scenario.toml"]);
    let zipped = swept("method = \"zip\"");
    fs::write(folder.path("scenario.toml"), zipped).expect("written");
    let ended = sweep(&folder, "out", &[]);
    assert!(ended.stderr.contains("`source.skew` has 2 values to zip"), "{}", ended.stderr);
}

/// 4 points under 6 common seeds, the first router the baseline.
const BASELINE: &str = "seeds = 6\ncommon_random_numbers = true\nbaseline = [\"game.router=top_k\"]\n\
     [sweep.target]\nfigure = \"max_over_mean\"\nat_most = [3.0, 1.2]";

#[test]
fn shards_of_different_directories_merge_to_the_whole_sweep() {
    let folder = Folder::with(&swept("seeds = 3"));
    complete(&sweep(&folder, "whole", &[]));
    for shard in ["1/2", "2/2"] {
        complete(&sweep(&folder, &shard.replace('/', "-"), &["--shard", shard]));
    }
    let merged = folder.nashflock(&["merge", "2-2", "1-2", "--out", "merged", "--json"]);
    assert_eq!(merged.code, Some(0), "{}", merged.stderr);
    assert_eq!(
        (merged.json()["runs"].as_u64(), merged.json()["missing"].as_u64()),
        (Some(18), Some(0))
    );
    assert!(played(&folder.path("merged")) == played(&folder.path("whole")));
    let text =
        |out: &str| fs::read_to_string(folder.path(out).join("report.html")).expect("a page");
    assert_eq!(text("merged"), text("whole"), "the page shows nothing that a clock enters");
    // A part alone says what it lacks, and a row that was changed is found.
    let part = folder.nashflock(&["merge", "1-2", "--out", "part"]);
    assert_eq!(part.code, Some(3), "{}", part.stderr);
    assert!(part.stderr.contains("9 of 18 runs are in none"), "{}", part.stderr);
    let other = Folder::with(&swept("seeds = 2"));
    complete(&sweep(&other, "out", &[]));
    let path = other.path("out").display().to_string();
    let unlike = folder.nashflock(&["merge", "1-2", &path, "--out", "unlike"]);
    assert_eq!(unlike.code, Some(2), "{}", unlike.stderr);
    assert!(unlike.stderr.contains("different sweeps"), "{}", unlike.stderr);
}

#[test]
fn runs_of_a_sweep_are_verified_and_one_that_was_not_played_so_is_found() {
    let folder = Folder::with(&swept("seeds = 3"));
    complete(&sweep(&folder, "out", &[]));
    let verified = folder.nashflock(&["verify", "out", "--sample", "5", "--json"]);
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
    assert_eq!(verified.json()["runs"].as_array().map(Vec::len), Some(5));
    // Rows of another seed under the same names: what a changed table would say.
    let text = fs::read_to_string(folder.path("scenario.toml")).expect("readable");
    let other = text.replace("seed = 7", "seed = 8");
    fs::write(folder.path("scenario.toml"), other).expect("written");
    complete(&sweep(&folder, "other", &[]));
    let name = "shard-1-of-1.parquet";
    fs::copy(folder.path("other").join(name), folder.path("out").join(name)).expect("copied");
    let unlike = folder.nashflock(&["verify", "out", "--sample", "5"]);
    assert_eq!(unlike.code, Some(3), "{}", unlike.stderr);
    assert!(unlike.stderr.contains("5 of 5 runs are not what they were"), "{}", unlike.stderr);
}

#[test]
fn the_page_of_a_sweep_shows_means_differences_and_targets_of_its_rows() {
    let folder = Folder::with(&swept(BASELINE));
    complete(&sweep(&folder, "out", &[]));
    let page = fs::read_to_string(folder.path("out/report.html")).expect("a page");
    for word in ["http://", "https://", "<script", "src="] {
        assert!(!page.contains(word), "{word} in a page that is to work offline");
    }
    for section in ["points", "effects", "baseline", "targets"] {
        assert!(page.contains(&format!("<section id=\"{section}\">")), "{section}");
    }
    let rows = rows(&folder.path("out"));
    let values = |point: u64| -> Vec<f64> {
        let of = rows.iter().filter(|row| row.point == point);
        of.filter_map(|row| row.figure("convergence.max_over_mean")).collect()
    };
    // Point 0 is equilibrium and point 2 top_k, both without skew. By hand: t of 5 degrees of freedom at 97.5 % is 2.570582.
    let differences: Vec<f64> = values(0).iter().zip(values(2)).map(|(a, b)| a - b).collect();
    let mean = differences.iter().sum::<f64>() / 6.0;
    let variance = differences.iter().map(|of| (of - mean).powi(2)).sum::<f64>() / 5.0;
    let half = 2.570_582 * (variance / 6.0).sqrt();
    let baseline = &page[page.find("id=\"baseline\"").expect("it is there")..];
    let cells: Vec<&str> = baseline.split("<td>").collect();
    let shown =
        |value: f64| if value.abs() < 1.0 { format!("{value:.4}") } else { format!("{value:.3}") };
    assert!(
        cells[3].contains(&shown(mean)) && cells[3].contains(&shown(half)),
        "{mean} ± {half}: {}",
        cells[3]
    );
    // Even in the first step, or never: what the target says of a row is in its rounds.
    let reached = |row: &Row| row.figure("target.max_over_mean.1.2.steps").is_some();
    assert!(rows.iter().filter(|row| row.point < 2).all(reached), "equilibrium is even");
    assert!(!rows.iter().filter(|row| row.point == 3).any(reached), "top_k under skew is not");
    let again = folder.nashflock(&["report", "out"]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(fs::read_to_string(folder.path("out/report.html")).expect("a page"), page);
}

#[test]
fn two_sweeps_are_held_against_each_other_point_by_point() {
    let folder = Folder::with(&swept(BASELINE));
    complete(&sweep(&folder, "a", &[]));
    complete(&sweep(&folder, "same", &["--set", "compute.threads=2"]));
    complete(&sweep(&folder, "b", &["--set", "game.top_k=6"]));
    let same = folder.nashflock(&["diff", "a", "same", "--json"]).json();
    assert_eq!(same["scenario"][0]["key"], "compute.threads");
    assert_eq!(
        (
            same["points"].as_u64(),
            same["figures"].as_array().map(|of| of.iter().filter(|of| of["moved"] == true).count())
        ),
        (Some(6), Some(0)),
        "{same}"
    );
    let ended =
        folder.nashflock(&["diff", "a", "b", "--figure", "convergence.max_over_mean", "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let found = ended.json();
    assert_eq!(found["scenario"][0]["key"], "game.top_k");
    let figures = found["figures"].as_array().expect("a list");
    assert_eq!(figures.len(), 6);
    for of in figures {
        let is_top_k = of["parameters"]["game.router"] == "top_k";
        let moved = of["moved"].as_bool();
        // The equilibrium is even with any k; top_k is not.
        assert!(
            is_top_k || of["parameters"]["game.router"] == "sinkhorn" || moved == Some(false),
            "{of}"
        );
        assert_eq!(of["paired"], true);
        let mean = |side: &str| of[side]["mean"].as_f64().expect("a number");
        assert!((mean("b") - mean("a") - mean("difference")).abs() < 1e-12, "{of}");
    }
    folder.summary("run", &[]);
    let mixed = folder.nashflock(&["diff", "a", "run"]);
    assert_eq!(mixed.code, Some(2), "{}", mixed.stderr);
    assert!(mixed.stderr.contains("run is no sweep"), "{}", mixed.stderr);
}

#[test]
fn a_larger_price_step_evens_out_a_flock_under_skew_until_it_overshoots() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/sweep-price-step.toml");
    let folder = Folder::with(&fs::read_to_string(root).expect("it is shipped"));
    let sets = ["--set", "sweep.seeds=2", "--set", "load.requests=96"];
    complete(&sweep(&folder, "out", &sets));
    let mean = |step: &str, skew: &str| -> f64 {
        let of = rows(&folder.path("out"));
        let of: Vec<f64> = of
            .iter()
            .filter(|row| {
                row.parameters[0].to_string() == step && row.parameters[1].to_string() == skew
            })
            .filter_map(|row| row.figure("flock.max_over_mean_last"))
            .collect();
        assert_eq!(of.len(), 2, "{step} {skew}");
        of.iter().sum::<f64>() / 2.0
    };
    for skew in ["0.25", "1", "2"] {
        let best = mean("0.01", skew);
        assert!(best < 0.85 * mean("0.0003", skew), "too small a step is too slow: skew {skew}");
        assert!(best < 0.6 * mean("0.1", skew), "too large a one overshoots: skew {skew}");
    }
    assert!(mean("0.01", "2") < 0.6 * mean("0.003", "2"), "the default is slow under skew");
}

/// The hottest expert is the cooler the dearer congestion is, up to the end of the range.
fn search(optimizer: &str, samples: u32) -> String {
    let small = SYNTHETIC
        .replace("requests = 24", "requests = 8")
        .replace("top_k = 3", "top_k = 3\ncost = \"linear\"")
        .replace("[precision]\nbudget = \"4.5bpw\"\n", "");
    format!(
        "{small}[compute]\nthreads = 1\n[sweep]\nat_once = true\nmethod = \"optimize\"\nsamples = {samples}\nseeds = 2\n\
         common_random_numbers = true\n[sweep.optimize]\nfigure = \"convergence.max_over_mean\"\noptimizer = \"{optimizer}\"\n\
         [[sweep.axis]]\nkey = \"game.price_per_fair_share\"\nlow = 0.0001\nhigh = 1\nscale = \"log\"\n\
         [[sweep.axis]]\nkey = \"flock.neighbours\"\nlow = 1\nhigh = 11\n"
    )
}

#[test]
fn an_optimiser_asks_for_points_and_a_search_that_is_killed_asks_for_the_same() {
    let folder = Folder::with(&search("spso_2011", 100));
    complete(&sweep(&folder, "whole", &[]));
    let expected = rows(&folder.path("whole"));
    assert_eq!(expected.len(), 160, "two generations of 40 points under 2 seeds");
    let mean = |row: &Row| row.figure("convergence.max_over_mean").expect("a figure");
    let of = |rows: &[Row]| rows.iter().map(mean).sum::<f64>() / rows.len() as f64;
    assert!(
        of(&expected[80..]) < of(&expected[..80]),
        "the second generation is nearer to the least"
    );
    let page = fs::read_to_string(folder.path("whole/report.html")).expect("a page");
    assert!(page.contains("id=\"search\"") && page.contains("spso_2011"));
    let verified = folder.nashflock(&["verify", "whole", "--sample", "6"]);
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
    let journal = folder.path("out/shard-1-of-1.journal");
    for bytes in [5_000, 330_000] {
        let run = Running::start(folder.command(&["sweep", "scenario.toml", "--out", "out"]));
        until("rows are written", || {
            fs::metadata(&journal).is_ok_and(|of| of.len() > bytes)
                || folder.path("out/report.html").exists()
        });
        // It may have ended.
        let _ = std::process::Command::new("kill").args(["-KILL", &run.pid().to_string()]).status();
        run.end();
        if journal.exists() {
            complete(&folder.nashflock(&["resume", "out", "--json"]));
        }
        assert!(played(&folder.path("out")) == played(&folder.path("whole")), "at {bytes} bytes");
        fs::remove_dir_all(folder.path("out")).expect("it is there");
    }
    let parts = sweep(&folder, "parts", &["--shard", "1/2"]);
    assert_eq!(parts.code, Some(2), "{}", parts.stderr);
    fs::write(folder.path("scenario.toml"), search("spso_2011", 39)).expect("written");
    let few = sweep(&folder, "few", &[]);
    assert!(few.stderr.contains("asks for 40 points at a time"), "{}", few.stderr);
}

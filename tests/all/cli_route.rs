//! `nashflock route`: assignments and certificate, recomputed here from the scores alone.

use std::fs;
use std::path::Path;

use agents::game::RouterRegistry;
use agents::rng;
use npyz::WriterBuilder as _;
use rand::RngExt as _;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::binary::Folder;

/// A score matrix, row-major.
struct Matrix {
    name: &'static str,
    values: Vec<f32>,
    experts: usize,
    top_k: usize,
}

impl Matrix {
    fn tokens(&self) -> usize {
        self.values.len() / self.experts
    }

    fn fair_share(&self) -> f64 {
        (self.tokens() * self.top_k) as f64 / self.experts as f64
    }

    fn score(&self, token: usize, expert: usize) -> f64 {
        f64::from(self.values[token * self.experts + expert])
    }
}

fn matrices() -> [Matrix; 4] {
    [
        Matrix { name: "random", values: random(4096, 64, 0.0), experts: 64, top_k: 8 },
        Matrix { name: "skewed", values: random(501, 16, 1.0), experts: 16, top_k: 3 },
        Matrix {
            name: "ties",
            values: random(512, 32, 0.5).iter().map(|v| (v * 100.0).round() / 100.0).collect(),
            experts: 32,
            top_k: 4,
        },
        Matrix { name: "constant", values: vec![0.25; 300 * 16], experts: 16, top_k: 2 },
    ]
}

/// Uniform in 0..1 plus `skew` on the last expert, falling to none on the first.
fn random(tokens: usize, experts: usize, skew: f32) -> Vec<f32> {
    let mut rng = rng::stream(11, "route test scores");
    (0..tokens * experts)
        .map(|at| rng.random::<f32>() + skew * (at % experts) as f32 / experts as f32)
        .collect()
}

/// A congestion cost as the definition has it: c_e(l), the same for all experts.
#[derive(Clone, Copy, Debug)]
enum Cost {
    Quota {
        capacity: f64,
    },
    Power {
        price: f64,
        fair_share: f64,
        degree: i32,
    },
    /// M/M/1 with a service time of 1 ms and a price of 0.05 a ms.
    Queue {
        window_ms: f64,
    },
}

impl Cost {
    fn at(self, load: usize) -> f64 {
        match self {
            Self::Quota { capacity } if load as f64 <= capacity => 0.0,
            Self::Quota { .. } => f64::INFINITY,
            Self::Power { price, fair_share, degree } => {
                price * (load as f64 / fair_share).powi(degree)
            }
            Self::Queue { window_ms } if load as f64 >= window_ms => f64::INFINITY,
            Self::Queue { window_ms } => 0.05 * load as f64 / (window_ms - load as f64),
        }
    }
}

fn costs(matrix: &Matrix) -> [(&'static [&'static str], Cost); 5] {
    let q = matrix.fair_share();
    let power = |price, degree| Cost::Power { price, fair_share: q, degree };
    [
        (&["--cost", "quota"], Cost::Quota { capacity: q.ceil() }),
        (&["--capacity-factor", "1.25"], Cost::Quota { capacity: (1.25 * q).ceil() }),
        (&["--cost", "linear", "--price-per-fair-share", "0.3"], power(0.3, 1)),
        (
            &["--cost", "polynomial", "--price-per-fair-share", "0.2", "--degree", "3"],
            power(0.2, 3),
        ),
        (
            &[
                "--cost",
                "latency",
                "--service-ms",
                "1",
                "--window-ms",
                "800",
                "--price-per-ms",
                "0.05",
            ],
            Cost::Queue { window_ms: 800.0 },
        ),
    ]
}

/// What the definitions give for an assignment.
struct Expected {
    epsilon_nash: f64,
    potential: f64,
    score: f64,
    score_top_k: f64,
    max_over_mean: f64,
}

fn by_definition(matrix: &Matrix, choices: &[Vec<usize>], cost: Cost) -> Expected {
    let mut loads = vec![0; matrix.experts];
    choices.iter().flatten().for_each(|expert| loads[*expert] += 1);
    let (mut epsilon_nash, mut score, mut score_top_k) = (0.0_f64, 0.0, 0.0);
    for (token, chosen) in choices.iter().enumerate() {
        let value = |expert: usize| {
            let joins = usize::from(!chosen.contains(&expert));
            matrix.score(token, expert) - cost.at(loads[expert] + joins)
        };
        let best = largest_sum((0..matrix.experts).map(value), matrix.top_k);
        let own: f64 = chosen.iter().map(|expert| value(*expert)).sum();
        if best > own {
            epsilon_nash = epsilon_nash.max(best - own);
        }
        score += chosen.iter().map(|expert| matrix.score(token, *expert)).sum::<f64>();
        score_top_k +=
            largest_sum((0..matrix.experts).map(|e| matrix.score(token, e)), matrix.top_k);
    }
    let congestion: f64 =
        loads.iter().map(|load| (1..=*load).map(|l| cost.at(l)).sum::<f64>()).sum();
    let hottest = loads.iter().copied().max().expect("there are experts");
    Expected {
        epsilon_nash,
        potential: score - congestion,
        score,
        score_top_k,
        max_over_mean: hottest as f64 / matrix.fair_share(),
    }
}

fn largest_sum(values: impl Iterator<Item = f64>, k: usize) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values[..k].iter().sum()
}

#[test]
fn assignments_and_certificate_hold_by_the_definitions() {
    let folder = Folder::with("");
    for matrix in matrices() {
        write_npy(&folder.path("scores.npy"), &matrix);
        for router in ["top_k", "equilibrium"] {
            for (flags, cost) in costs(&matrix) {
                let what = format!("{}, {router}, {flags:?}", matrix.name);
                let printed = route(&folder, &matrix, router, flags);
                let choices = read_assignments(&folder.path("out.npy"), &matrix);
                check(&printed, &by_definition(&matrix, &choices, cost), &what);
                if router == "equilibrium" {
                    let gap = printed["relative_gap"].as_f64().expect(&what);
                    assert!(gap < 1e-3, "{what}: gap {gap}");
                    let regret = printed["epsilon_nash"].as_f64().expect(&what);
                    assert!(regret < 0.05, "{what}: regret {regret}");
                }
            }
        }
    }
}

fn check(printed: &Value, expected: &Expected, what: &str) {
    let same = |key: &str, expected: f64| {
        let found = &printed[key];
        if expected.is_finite() {
            let found = found.as_f64().unwrap_or_else(|| panic!("{what}: {key} is {found}"));
            let near = (found - expected).abs() <= 1e-9 * expected.abs().max(1.0);
            assert!(near, "{what}: {key} is {found}, by definition {expected}");
        } else {
            assert!(found.is_null(), "{what}: {key} is {found}, but it is not finite");
        }
    };
    same("epsilon_nash", expected.epsilon_nash);
    same("potential", expected.potential);
    same("score", expected.score);
    same("max_over_mean", expected.max_over_mean);
    same("score_loss", (expected.score_top_k - expected.score) / expected.score_top_k);
    let dual_bound = printed["dual_bound"].as_f64().expect("prices are finite");
    let slack = 1e-9 * dual_bound.abs();
    assert!(dual_bound + slack >= expected.potential, "{what}: D is a bound of Φ");
    same("relative_gap", (dual_bound - expected.potential) / dual_bound.abs());
}

/// Routes `scores.npy` into `out.npy`.
fn route(folder: &Folder, matrix: &Matrix, router: &str, flags: &[&str]) -> Value {
    let top_k = matrix.top_k.to_string();
    let args = ["route", "--scores", "scores.npy", "--top-k", &top_k, "--router", router];
    let args = [&args, flags, &["--assignments", "out.npy", "--json"]].concat();
    let ended = folder.nashflock(&args);
    assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
    let printed = ended.json();
    assert_eq!(printed["router"], router);
    printed
}

/// Reads int32 `[T, k]` and checks that each row has k distinct experts in range.
fn read_assignments(path: &Path, matrix: &Matrix) -> Vec<Vec<usize>> {
    let bytes = fs::read(path).expect("the assignments are written");
    let file = npyz::NpyFile::new(&bytes[..]).expect("an .npy file");
    assert_eq!(file.shape(), [matrix.tokens() as u64, matrix.top_k as u64]);
    assert_eq!(file.dtype().descr(), "'<i4'");
    let ids: Vec<i32> = file.into_vec().expect("int32");
    let row = |ids: &[i32]| {
        let mut row: Vec<usize> =
            ids.iter().map(|id| usize::try_from(*id).expect("an expert, not a filler")).collect();
        row.sort_unstable();
        assert!(row.windows(2).all(|pair| pair[0] < pair[1]), "{row:?} repeats");
        assert!(row.iter().all(|expert| *expert < matrix.experts), "{row:?}");
        row
    };
    ids.chunks(matrix.top_k).map(row).collect()
}

#[test]
fn a_safetensors_file_plays_the_same_game_as_an_npy_file_at_any_thread_count() {
    let folder = Folder::with("");
    let matrix = &matrices()[1];
    write_npy(&folder.path("scores.npy"), matrix);
    let expected = route(&folder, matrix, "equilibrium", &["--threads", "1"]);
    let assigned = fs::read(folder.path("out.npy")).expect("written");

    let shape = vec![matrix.tokens(), matrix.experts];
    let bytes: Vec<u8> = matrix.values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = |shape, bytes| TensorView::new(Dtype::F32, shape, bytes).expect("it fits");
    let one = [("layer.0", view(shape.clone(), &bytes))];
    let two = [("a", view(vec![1, 16], &bytes[..64])), ("layer.0", view(shape, &bytes))];
    safetensors::serialize_to_file(one, None, &folder.path("one.safetensors")).expect("written");
    safetensors::serialize_to_file(two, None, &folder.path("two.safetensors")).expect("written");
    for file in [&["one.safetensors"][..], &["two.safetensors", "--tensor", "layer.0"]] {
        fs::remove_file(folder.path("out.npy")).expect("removable");
        let args = ["--top-k", "3", "--router", "equilibrium", "--threads", "3", "--json"];
        let args = [&["route", "--scores"], file, &args, &["--assignments", "out.npy"]].concat();
        let ended = folder.nashflock(&args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        let mut printed = ended.json();
        printed["time_ms"] = expected["time_ms"].clone();
        assert_eq!(printed, expected, "{args:?}");
        assert!(fs::read(folder.path("out.npy")).expect("written") == assigned, "{args:?}");
    }
    let ended = folder.nashflock(&[
        "route",
        "--scores",
        "two.safetensors",
        "--top-k",
        "3",
        "--router",
        "equilibrium",
    ]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("choose one with --tensor: a, layer.0"), "{}", ended.stderr);
}

#[test]
fn repeats_give_times_in_order_and_the_table_shows_the_same_figures() {
    let folder = Folder::with("");
    let matrix = &matrices()[3];
    write_npy(&folder.path("scores.npy"), matrix);
    let printed = route(&folder, matrix, "equilibrium", &["--repeat", "5"]);
    let time_ms = |key: &str| printed["time_ms"][key].as_f64().expect(key);
    assert!(0.0 < time_ms("min") && time_ms("min") <= time_ms("p50"));
    assert!(time_ms("p50") <= time_ms("max"));
    assert!(printed["passes"].as_u64() >= Some(1) && printed["tokens"] == 300);

    let args = ["route", "--scores", "scores.npy", "--top-k", "2", "--router", "equilibrium"];
    let table = folder.nashflock(&[&args[..], &["--repeat", "5"]].concat());
    assert_eq!(table.code, Some(0), "{}", table.stderr);
    let max_over_mean = printed["max_over_mean"].as_f64().expect("a number");
    let score = printed["score"].as_f64().expect("a number");
    for line in [
        "router         equilibrium".to_owned(),
        format!("max over mean  {max_over_mean:.4}"),
        format!("score          {score:.4},"),
        "median of 5,".to_owned(),
    ] {
        assert!(table.stdout.contains(&line), "{line}\n{}", table.stdout);
    }
}

#[test]
fn assignments_that_cannot_be_written_end_with_4_and_the_name_of_the_file() {
    let folder = Folder::with("");
    write_npy(&folder.path("scores.npy"), &matrices()[3]);
    let args = ["route", "--scores", "scores.npy", "--top-k", "2", "--router", "top_k"];
    for path in ["/dev/full", "nosuch/out.npy"] {
        let ended = folder.nashflock(&[&args[..], &["--assignments", path]].concat());
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(4), ""), "{}", ended.stderr);
        let says = format!("cannot write {path}: No s");
        assert!(ended.stderr.starts_with(&says), "{}", ended.stderr);
    }
}

#[test]
fn several_routers_print_a_line_each_with_the_figures_of_one_alone() {
    let folder = Folder::with("");
    let matrix = &matrices()[1];
    write_npy(&folder.path("scores.npy"), matrix);
    let args = ["route", "--scores", "scores.npy", "--top-k", "3", "--cost", "linear"];
    let run = |more: &[&str]| {
        let ended = folder.nashflock(&[&args[..], more].concat());
        assert_eq!(ended.code, Some(0), "{more:?}: {}", ended.stderr);
        ended
    };
    let without_times = |mut printed: Value| {
        printed["time_ms"] = Value::Null;
        printed
    };
    let all = run(&["--all", "--json"]).json()["routers"].clone();
    let all: Vec<Value> =
        all.as_array().expect("a list").iter().cloned().map(without_times).collect();
    let names: Vec<String> =
        all.iter().map(|one| one["router"].as_str().expect("named").to_owned()).collect();
    assert!(names.len() >= 20 && names.is_sorted(), "{names:?}");
    for (name, of_all) in names.iter().zip(&all) {
        let alone = without_times(run(&["--router", name, "--json"]).json());
        assert_eq!(&alone, of_all, "{name}");
    }

    let table = run(&["--router", "top_k,equilibrium", "--social-optimum"]).stdout;
    let lines: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].starts_with(&["router", "ε-Nash"]), "{table}");
    assert_eq!((lines[1][0], lines[1].last()), ("top_k", Some(&"unknown")), "no equilibrium");
    let table = run(&["--router", "top_k_capacity"]).stdout;
    let dropping = all.iter().find(|one| one["router"] == "top_k_capacity").expect("listed");
    let pairs = format!("{} dropped, 0 extra", dropping["dropped"]);
    assert!(dropping["dropped"].as_u64() > Some(0) && table.contains(&pairs), "{table}");
    let equilibrium = all.iter().find(|one| one["router"] == "equilibrium").expect("listed");
    let max_over_mean = equilibrium["max_over_mean"].as_f64().expect("a number");
    assert_eq!((lines[2][0], lines[2][3]), ("equilibrium", &*format!("{max_over_mean:.4}")));
}

#[test]
fn the_social_optimum_is_the_play_under_marginal_cost_prices() {
    let folder = folder_with(&matrices()[1]);
    let matrix = &matrices()[1];
    let linear = |price: &str| {
        let flags = ["--cost", "linear", "--price-per-fair-share", price, "--social-optimum"];
        route(&folder, matrix, "equilibrium", &flags)
    };
    // n·c(n) of a linear cost has the marginal 2·c(n) − c(1): twice the price but for a constant
    // that every token pays k times alike.
    let (selfish, planned) = (linear("0.3"), linear("0.6"));
    let of = |printed: &Value, key: &str| printed["social"][key].as_f64().expect(key);
    let slope = 0.3 / matrix.fair_share();
    let pairs = (matrix.tokens() * matrix.top_k) as f64;
    let top_k = planned["score"].as_f64().expect("a number")
        / (1.0 - planned["score_loss"].as_f64().expect("a number"));
    let welfare = planned["potential"].as_f64().expect("a number") + slope * pairs;
    let optimum = top_k - welfare;
    assert!((of(&selfish, "optimum") - optimum).abs() < 1e-9 * optimum, "{selfish} {optimum}");
    assert!((of(&selfish, "optimum_bound") - optimum).abs() < 1e-9 * optimum, "{selfish}");
    let ratio = of(&selfish, "price_of_anarchy");
    assert!(ratio > 1.0 && ratio < 4.0 / 3.0, "linear, with many small tokens: {ratio}");
    assert!((ratio - of(&selfish, "cost") / optimum).abs() < 1e-9, "{ratio}");
}

#[test]
fn under_stale_prices_the_last_batch_is_causal_and_shares_are_played_apart() {
    let matrix = &matrices()[1];
    let folder = folder_with(matrix);
    let stale = ["--information", "stale", "--batch-tokens", "100", "--cost", "linear"];
    let printed = route(&folder, matrix, "equilibrium", &stale);
    assert_eq!(printed["tokens"], 100, "501 tokens: the last whole batch");
    let assigned = read_assignments(&folder.path("out.npy"), matrix);
    // A later token changes nothing before it.
    let mut changed = Matrix { values: matrix.values.clone(), ..*matrix };
    changed.values[499 * matrix.experts..500 * matrix.experts].reverse();
    write_npy(&folder.path("scores.npy"), &changed);
    route(&folder, &changed, "equilibrium", &stale);
    let again = read_assignments(&folder.path("out.npy"), &changed);
    assert_eq!(assigned[..499], again[..499]);
    assert_ne!(assigned[499], again[499]);
    // In the first batch no prices are in force, in the second those of the first are.
    write_npy(&folder.path("scores.npy"), matrix);
    route(&folder, matrix, "top_k", &[]);
    let plain = read_assignments(&folder.path("out.npy"), matrix);
    assert_eq!(assigned[..100], plain[..100]);
    assert_ne!(assigned[100..200], plain[100..200]);

    let partial = ["--information", "partial", "--dispatchers", "3", "--cost", "linear"];
    let shared = route(&folder, matrix, "equilibrium", &partial);
    let whole = route(&folder, matrix, "equilibrium", &partial[4..]);
    let potential = |printed: &Value| printed["potential"].as_f64().expect("a number");
    assert!(potential(&shared) < potential(&whole), "{shared} {whole}");
    assert!(shared["dual_bound"].as_f64() >= whole["potential"].as_f64(), "{shared} {whole}");
}

#[test]
fn every_router_plays_under_every_kind_of_information_and_prints_the_same_figures() {
    let folder = folder_with(&matrices()[1]);
    let registry = RouterRegistry::standard();
    for information in [
        &["--information", "in-batch"][..],
        &["--information", "stale", "--batches", "2", "--batch-tokens", "100"],
        &["--information", "partial", "--dispatchers", "3"],
    ] {
        let args = ["route", "--scores", "scores.npy", "--top-k", "3", "--cost", "linear"];
        let args = [&args, information, &["--all", "--json"]].concat();
        let ended = folder.nashflock(&args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        let printed = ended.json();
        let lines = printed["routers"].as_array().expect("a list");
        let names = lines.iter().filter_map(|line| line["router"].as_str());
        assert!(names.eq(registry.names()), "{args:?}: {printed}");
        let keys = |line: &Value| -> Vec<String> {
            line.as_object().expect("an object").keys().cloned().collect()
        };
        for line in lines {
            assert_eq!(keys(line), keys(&lines[0]), "{line}");
            for key in ["epsilon_nash", "relative_gap", "max_over_mean", "score_loss", "passes"] {
                assert!(line[key].is_number(), "{key}: {line}");
            }
        }
    }
}

/// A folder with the matrix as `scores.npy`.
fn folder_with(matrix: &Matrix) -> Folder {
    let folder = Folder::with("");
    write_npy(&folder.path("scores.npy"), matrix);
    folder
}

fn write_npy(path: &Path, matrix: &Matrix) {
    let mut bytes = Vec::new();
    let shape = [matrix.tokens() as u64, matrix.experts as u64];
    let options = npyz::WriteOptions::new().default_dtype().shape(&shape);
    let mut writer = options.writer(&mut bytes).begin_nd().expect("memory takes it");
    writer.extend(matrix.values.iter().copied()).expect("memory takes it");
    writer.finish().expect("memory takes it");
    fs::write(path, bytes).expect("the file is written");
}

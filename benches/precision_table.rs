//! Writes docs/flock-precision.md: widths decided node by node after a shift of domain, beside allocators that see all.
//!
//! `cargo bench --bench precision_table > docs/flock-precision.md`
#![allow(clippy::print_stdout, reason = "the page is the output")]

mod shared;

use agents::flock::graph::Graph;
use agents::flock::precision::{FlockPrecision, Holdings, bytes_by_node};
use agents::ids::NodeId;
use agents::precision::{
    Allocator as _, Hull, Problem, ReallocateLimits, RunningLoads, Unit, allocate, evaluate,
    reallocate, reweigh,
};
use agents::rng::stream;
use rand::RngExt as _;
use serde_json::Value;
use shared::Failure;
use shared::figures::spread;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const NODES: usize = 8;
const BATCHES: usize = 20;
const PAIRS_A_BATCH: usize = 2048 * 8;
const BITS: [u32; 4] = [2, 3, 4, 8];
/// Weights of an expert of OLMoE-1B-7B.
const WEIGHTS: u64 = 3 * 2048 * 1024;
/// Bits of scale and minimum a weight, in groups of 64.
const SCALE_BITS: u64 = WEIGHTS / 64 * 32;
const COMPANIONS: usize = 7;

fn main() -> Result<(), Failure> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/olmoe-routing");
    if !folder.exists() {
        eprintln!("skipped: {} is not there", folder.display());
        return Ok(());
    }
    print!("{}", include_str!("precision_table.md"));
    let counts: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("expert-counts.json"))?)?;
    let layers = counts["layers"].as_array().ok_or("layers")?.clone();
    let domains = counts["counts"]["olmoe-1b-7b"].as_object().ok_or("domains")?;
    let mut rows: Vec<(&str, Vec<Outcome>)> =
        WAYS.iter().map(|(name, _)| (*name, Vec::new())).collect();
    for (layer, id) in layers.iter().enumerate() {
        let file = folder.join(format!("token-expert-wikipedia-layer{id}.csv"));
        let companions = companions(&file)?;
        for (from, before) in domains {
            for (to, after) in domains.iter().filter(|(to, _)| *to != from) {
                let shift = Shift::new(loads(&before[layer])?, loads(&after[layer])?, &companions);
                let seed = format!("{from} to {to} in layer {id}");
                for ((_, way), (_, outcomes)) in WAYS.iter().zip(&mut rows) {
                    outcomes.push(shift.play(*way, &seed)?);
                }
            }
        }
    }
    println!("| way | cost ÷ exact | loaded ÷ all bytes |");
    println!("|---|---:|---:|");
    for (name, outcomes) in rows {
        let of = |figure: fn(&Outcome) -> f64| spread(outcomes.iter().map(figure), 3);
        println!("| {name} | {} | {} |", of(|outcome| outcome.cost), of(|outcome| outcome.loaded));
    }
    print!("{}", include_str!("precision_runs.md"));
    ["exact", "flock"].into_iter().try_for_each(run)
}

/// A run of the shipped scenario, its batches one after the other.
fn run(policy: &str) -> Result<(), Failure> {
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/drift.toml");
    let folder = tempfile::TempDir::new()?;
    let policy_set = format!("precision.reallocate.policy={policy}");
    let ended = Command::new(env!("CARGO_BIN_EXE_nashflock"))
        .args(["run", "--json", "--nodes", "in-process", "--set", "load.rate_per_s=100000"])
        .args(["--set", &policy_set, "--out"])
        .arg(folder.path().join("out"))
        .arg(scenario)
        .output()?;
    let summary: Value = serde_json::from_slice(&ended.stdout)
        .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&ended.stderr)))?;
    let (moved, quality) = (&summary["reallocation"], &summary["quality"]);
    let of = |figures: &Value, key: &str| figures[key].as_f64().ok_or_else(|| format!("no {key}"));
    let cost = of(moved, "cost")?;
    println!(
        "| `{policy}` | {cost:.4} | {:.4} | {:.4} | {} | {:.3} | {:.3} |",
        of(moved, "cost_exact").unwrap_or(cost),
        of(moved, "cost_kept")?,
        of(moved, "bytes_moved")?,
        100.0 * of(quality, "output_error")?,
        100.0 * of(quality, "output_error_widths_kept")?,
    );
    Ok(())
}

#[derive(Clone, Copy)]
enum Way {
    Stay,
    Flock(f64),
    SeesAll,
    HullAnew,
    ExactAnew,
    Uniform,
}

const WAYS: [(&str, Way); 8] = [
    ("widths stay", Way::Stay),
    ("flock", Way::Flock(0.2)),
    ("flock, more vouching", Way::Flock(0.5)),
    ("flock, no companions", Way::Flock(0.0)),
    ("one that sees all", Way::SeesAll),
    ("hull anew", Way::HullAnew),
    ("exact anew", Way::ExactAnew),
    ("uniform 3 bits", Way::Uniform),
];

struct Outcome {
    cost: f64,
    loaded: f64,
}

/// A shift of domain in one layer.
struct Shift<'c> {
    before: Vec<f64>,
    after: Vec<f64>,
    units: Vec<Unit>,
    start: Vec<usize>,
    nodes: Vec<NodeId>,
    budgets: Vec<u64>,
    companions: &'c [Vec<usize>],
}

/// Experts with the costs that they have under `loads`.
fn units(loads: &[f64]) -> Vec<Unit> {
    let bytes = BITS.map(|bits| (WEIGHTS * u64::from(bits) + SCALE_BITS) / 8).to_vec();
    let costs = |load: &f64| BITS.map(|bits| load * 0.25_f64.powi(bits.cast_signed())).to_vec();
    loads.iter().map(|load| Unit { costs: costs(load), bytes: bytes.clone() }).collect()
}

impl<'c> Shift<'c> {
    /// Loads are brought to pairs of a batch.
    fn new(before: Vec<f64>, after: Vec<f64>, companions: &'c [Vec<usize>]) -> Self {
        let scaled = |loads: Vec<f64>| {
            let sum: f64 = loads.iter().sum();
            loads.iter().map(|load| load * PAIRS_A_BATCH as f64 / sum).collect::<Vec<f64>>()
        };
        let (before, after) = (scaled(before), scaled(after));
        let units = units(&before);
        let whole: u64 = units.iter().map(|unit| unit.bytes[1]).sum();
        let start = allocate(&units, whole).expect("feasible").options;
        let nodes: Vec<NodeId> = (0..units.len()).map(|e| NodeId::from_index(e % NODES)).collect();
        let budgets = bytes_by_node(&units, &start, &nodes, NODES);
        Self { before, after, units, start, nodes, budgets, companions }
    }

    fn play(&self, way: Way, seed: &str) -> Result<Outcome, Failure> {
        let mut rng = stream(0, seed);
        let mut running = RunningLoads::new(self.units.len(), 0.3);
        let mut options =
            if let Way::Uniform = way { vec![1; self.units.len()] } else { self.start.clone() };
        let (mut cost, mut loaded) = (0.0, 0);
        let budget = self.budgets.iter().sum();
        let exact = allocate(&units(&self.after), budget)?.cost * BATCHES as f64;
        for batch in 0..2 * BATCHES {
            let truth = if batch < BATCHES { &self.before } else { &self.after };
            if batch >= BATCHES {
                cost += evaluate(&units(truth), options.clone(), u64::MAX).cost;
            }
            running.absorb(&draw(truth, &mut rng));
            let next = self.next(way, running.loads(), &options, budget)?;
            let changed =
                next.iter().zip(&options).zip(&self.units).filter(|((to, from), _)| to != from);
            if batch >= BATCHES {
                loaded += changed.map(|((to, _), unit)| unit.bytes[*to]).sum::<u64>();
            }
            options = next;
        }
        let all: u64 = self.budgets.iter().sum();
        Ok(Outcome { cost: cost / exact, loaded: loaded as f64 / all as f64 })
    }

    fn next(
        &self,
        way: Way,
        loads: &[f64],
        options: &[usize],
        budget: u64,
    ) -> Result<Vec<usize>, Failure> {
        let now = reweigh(&self.units, &self.before, loads);
        // A change of width takes some megabytes.
        let cost_per_byte =
            1e-4 * evaluate(&self.units, self.start.clone(), budget).cost / budget as f64 * 64.0;
        let problem = Problem { units: &now, budget, widths: &[], neighbours: &[], seed: 0 };
        Ok(match way {
            Way::Stay | Way::Uniform => options.to_vec(),
            Way::HullAnew => Hull.allocate(&problem)?.options,
            Way::ExactAnew => allocate(&now, budget)?.options,
            Way::SeesAll => {
                let limits = ReallocateLimits { budget, bytes_moved_max: u64::MAX, cost_per_byte };
                reallocate(&now, options, limits)?.options
            }
            Way::Flock(vouching) => {
                let rule = FlockPrecision { vouching, node_bytes_max: u64::MAX, cost_per_byte };
                let holdings = Holdings {
                    units: &self.units,
                    calibrated: &self.before,
                    nodes: &self.nodes,
                    budgets: &self.budgets,
                    companions: self.companions,
                };
                let mut next = options.to_vec();
                rule.round(&holdings, loads, options)?
                    .iter()
                    .for_each(|step| next[step.unit] = step.to);
                next
            }
        })
    }
}

/// A batch's loads, drawn pair by pair.
fn draw(loads: &[f64], rng: &mut impl rand::Rng) -> Vec<u32> {
    let ends: Vec<f64> = loads
        .iter()
        .scan(0.0, |end, load| {
            *end += load;
            Some(*end)
        })
        .collect();
    let sum = ends[ends.len() - 1];
    let mut drawn = vec![0; loads.len()];
    for _ in 0..PAIRS_A_BATCH {
        let at = rng.random::<f64>() * sum;
        drawn[ends.partition_point(|end| *end <= at).min(loads.len() - 1)] += 1;
    }
    drawn
}

fn loads(layer: &Value) -> Result<Vec<f64>, Failure> {
    let counts = layer.as_array().ok_or("counts by expert")?;
    counts.iter().map(|count| count.as_f64().ok_or_else(|| "a count".into())).collect()
}

/// The experts whose tokens are most alike: the angle between their counts by token id.
fn companions(file: &Path) -> Result<Vec<Vec<usize>>, Failure> {
    let mut table: BTreeMap<usize, Vec<(usize, f32)>> = BTreeMap::new();
    for line in std::fs::read_to_string(file)?.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let [token, expert, count] = fields[..] else { return Err("three columns".into()) };
        table.entry(token.parse()?).or_default().push((expert.parse()?, count.parse()?));
    }
    let experts = table.values().flatten().map(|(expert, _)| expert + 1).max().ok_or("rows")?;
    let mut positions = vec![0.0; experts * table.len()];
    for (column, row) in table.values().enumerate() {
        row.iter().for_each(|(expert, count)| positions[expert * table.len() + column] = *count);
    }
    let near = Graph::Nearest.neighbourhoods(&positions, experts, COMPANIONS, 0);
    Ok(near
        .into_iter()
        .map(|near| near.into_iter().map(agents::ids::ExpertId::index).collect())
        .collect())
}

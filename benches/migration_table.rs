//! Writes docs/migration.md: copies moved after a shift of domains, beside fresh plans.
//!
//! `cargo bench --bench migration_table > docs/migration.md`
#![allow(clippy::print_stdout, reason = "the page is the output")]

mod shared;
mod shift;

use agents::flock::migration::{MigrationSettings, migrate};
use agents::placement::{
    EplbShape, Placement, PlanSettings, Previous, dispatch, eplb, placement_lower_bound, plan,
};
use serde_json::Value;
use shared::Failure;
use shared::figures::{most, spread, verdict};
use std::path::Path;

const ROUNDS: u64 = 24;
const BALANCE_LIMIT: f64 = 1.10;
const BYTES_LIMIT: f64 = 0.25;

/// Model, nodes and spare copies of each.
const SHAPES: [(&str, usize, usize); 5] = [
    ("olmoe-1b-7b", 8, 1),
    ("olmoe-1b-7b", 8, 2),
    ("olmoe-1b-7b", 16, 1),
    ("olmoe-1b-7b", 16, 2),
    ("mixtral-8x7b", 4, 1),
];

/// Loads of a layer before and after.
type Shift = (Vec<f64>, Vec<f64>);

fn main() -> Result<(), Failure> {
    print!("{}", include_str!("migration_table.md"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/data/olmoe-routing/expert-counts.json");
    let counts: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    for (model, nodes, spare) in SHAPES {
        table(&counts["counts"][model], model, nodes, spare)?;
    }
    print!("{}", include_str!("shift/shift.md"));
    shift::of_texts(1)?.table()?;
    shift::of_texts(2)?.table()?;
    shift::of_counts(&counts["counts"]["olmoe-1b-7b"], ["book", "github"], 1)?.table()?;
    Ok(())
}

/// What one way of moving did, by pair.
#[derive(Default)]
struct Row {
    balance: Vec<f64>,
    sent: Vec<f64>,
    rounds: Vec<f64>,
}

impl Row {
    fn print(&self, name: &str) {
        let rounds = if self.rounds.is_empty() { String::new() } else { spread(&self.rounds, 0) };
        println!(
            "| {name} | {} | {} | {rounds} |",
            spread(&self.balance, 3),
            spread(&self.sent, 3)
        );
    }
}

fn table(domains: &Value, model: &str, nodes: usize, spare: usize) -> Result<(), Failure> {
    let pairs = shifts(domains)?;
    let experts = pairs[0].0.len();
    let slots = vec![experts.div_ceil(nodes) + spare; nodes];
    let copies: usize = slots.iter().sum();
    println!("\n## {model}: {experts} experts on {nodes} nodes, {} copies a node\n", slots[0]);
    println!("| way | largest node load ÷ mean | copies sent ÷ fresh `eplb` | rounds |");
    println!("|---|---:|---:|---:|");
    let shape = EplbShape { replicas: copies, groups: 1, servers: 1, gpus: nodes };
    let bytes = vec![1_u64; experts];
    let [mut still, mut fresh, mut own, mut flock, mut bound] = [(); 5].map(|()| Row::default());
    for (before, after) in &pairs {
        let start = eplb(before, shape)?.placement();
        let anew = eplb(after, shape)?.placement();
        let all = anew.moved_bytes(&start, &bytes) as f64;
        let mean = after.iter().sum::<f64>() / nodes as f64;
        let balance = |placement: &Placement| -> Result<f64, Failure> {
            Ok(dispatch(placement, after, None)?.max_load() / mean)
        };
        still.balance.push(balance(&start)?);
        still.sent.push(0.0);
        fresh.balance.push(balance(&anew)?);
        fresh.sent.push(1.0);
        let previous =
            Previous { placement: &start, shard_bytes: &bytes, load_per_byte: 1e-3 * mean };
        let settings =
            PlanSettings { slots: &slots, evaluations_max: 2000, previous: Some(previous) };
        let planned = plan(after, &settings)?;
        own.balance.push(planned.dispatch.max_load() / mean);
        own.sent.push(planned.moved_bytes as f64 / all);
        bound.balance.push(placement_lower_bound(after, &slots)? / mean);
        let (mut placement, mut sent, mut last) = (start, 0, 0);
        for round in 0..ROUNDS {
            let settings = MigrationSettings::default();
            let next = migrate(&placement, after, &slots, round, None, &settings)?;
            if !next.moves.is_empty() {
                (sent, last) = (sent + next.moves.len(), round + 1);
            }
            placement = next.placement;
        }
        flock.balance.push(balance(&placement)?);
        flock.sent.push(sent as f64 / all);
        flock.rounds.push(last as f64);
    }
    still.print("doing nothing");
    fresh.print("fresh `eplb` plan");
    own.print("own plan, sees all");
    flock.print("flock");
    println!("| lower bound | {} | | |", spread(&bound.balance, 3));
    let (balance, sent) = (most(&flock.balance), most(&flock.sent));
    println!(
        "\nAt the worst of {} pairs the flock leaves {balance:.3}, {} the limit of {BALANCE_LIMIT}, and \
         sends {sent:.3} of what a fresh plan does, {} the limit of {BYTES_LIMIT}; in the mean {:.3}.",
        pairs.len(),
        verdict(balance, BALANCE_LIMIT),
        verdict(sent, BYTES_LIMIT),
        flock.sent.iter().sum::<f64>() / flock.sent.len() as f64,
    );
    Ok(())
}

/// Loads of each layer in one domain and then in another.
fn shifts(domains: &Value) -> Result<Vec<Shift>, Failure> {
    let domains = domains.as_object().ok_or("counts by domain")?;
    let loads = |layer: &Value| -> Result<Vec<f64>, Failure> {
        let counts = layer.as_array().ok_or("counts by expert")?;
        counts.iter().map(|count| count.as_f64().ok_or_else(|| "a count".into())).collect()
    };
    let mut pairs = Vec::new();
    for (from, before) in domains {
        for (_, after) in domains.iter().filter(|(to, _)| *to != from) {
            let layers = before.as_array().ok_or("layers")?.iter();
            for (before, after) in layers.zip(after.as_array().ok_or("layers")?) {
                pairs.push((loads(before)?, loads(after)?));
            }
        }
    }
    Ok(pairs)
}

//! Copies that follow the loads of a run whose domain shifts and shifts back, by the rules that runs use.

use agents::expert::BitWidth;
use agents::flock::migration::{
    Migrating, MigratingLayer, MigratingSettings, MigrationRegistry, Rehearsal,
};
use agents::ids::LayerId;
use agents::placement::{EplbShape, Placement, dispatch_tokens, eplb, placement_lower_bound};
use agents::rng::stream;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::experts::{LocalExperts, top_k};
use nashflock::model::tokenizer::{Tokenizer, read_text, windows};
use rand::{Rng, RngExt as _};
use rand_distr::weighted::WeightedIndex;
use serde_json::Value;
use std::path::Path;

use crate::shared::Failure;
use crate::shared::figures::{spread, verdict};
use crate::{BALANCE_LIMIT, BYTES_LIMIT};

const SEEDS: u64 = 20;
/// Of each of three phases: one domain, another, and the first again.
const PHASE_STEPS: usize = 60;
/// After a shift, before a phase counts as settled.
const SETTLE_STEPS: usize = 20;
const STEP_TOKENS: usize = 512;
const WINDOW_TOKENS: usize = 64;
const NODES: usize = 8;
const RULES: [&str; 3] = ["eplb", "greedy", "flock"];

/// Loads of a layer's experts in a step, by layer.
type StepLoads = Vec<Vec<u32>>;

/// Where the loads of a domain come from.
enum Domain {
    /// Requests that a model read: of each the loads by layer.
    Read(Vec<StepLoads>),
    /// Counts by layer, from which pairs are drawn.
    Counted(Vec<Vec<f64>>, usize),
}

impl Domain {
    fn step(&self, rng: &mut impl Rng) -> StepLoads {
        match self {
            Self::Read(requests) => {
                let mut sums: StepLoads = requests[0].iter().map(|of| vec![0; of.len()]).collect();
                for _ in 0..STEP_TOKENS / WINDOW_TOKENS {
                    let request = &requests[rng.random_range(0..requests.len())];
                    for (sums, loads) in sums.iter_mut().zip(request) {
                        sums.iter_mut().zip(loads).for_each(|(sum, load)| *sum += load);
                    }
                }
                sums
            }
            Self::Counted(layers, top_k) => {
                let draw = |counts: &Vec<f64>| {
                    let index = WeightedIndex::new(counts).expect("counts are weights");
                    let mut loads = vec![0; counts.len()];
                    (0..STEP_TOKENS * top_k).for_each(|_| loads[rng.sample(&index)] += 1);
                    loads
                };
                layers.iter().map(draw).collect()
            }
        }
    }

    /// Of the whole domain.
    fn loads(&self) -> Vec<Vec<f64>> {
        match self {
            Self::Counted(layers, _) => layers.clone(),
            Self::Read(requests) => {
                let mut sums: Vec<Vec<f64>> =
                    requests[0].iter().map(|of| vec![0.0; of.len()]).collect();
                for request in requests {
                    for (sums, loads) in sums.iter_mut().zip(request) {
                        sums.iter_mut().zip(loads).for_each(|(s, load)| *s += f64::from(*load));
                    }
                }
                sums
            }
        }
    }
}

/// What one way did with one seed.
#[derive(Clone, Copy, Default)]
struct Outcome {
    /// Largest node loads over mean ones, from the first shift on.
    balance: f64,
    /// The same of settled steps alone.
    settled: f64,
    /// Bytes sent.
    sent: f64,
}

/// Sums of largest node loads and of mean ones.
#[derive(Clone, Copy, Default)]
struct Sums {
    all: (f64, f64),
    settled: (f64, f64),
}

impl Sums {
    fn add(&mut self, step: usize, largest: f64, loads: &[u32]) {
        let mean = f64::from(loads.iter().sum::<u32>()) / NODES as f64;
        if step >= PHASE_STEPS {
            self.all = (self.all.0 + largest, self.all.1 + mean);
            if step % PHASE_STEPS >= SETTLE_STEPS {
                self.settled = (self.settled.0 + largest, self.settled.1 + mean);
            }
        }
    }

    fn outcome(&self, sent: f64) -> Outcome {
        let [balance, settled] = [self.all, self.settled].map(|(largest, mean)| largest / mean);
        Outcome { balance, settled, sent }
    }
}

/// A run whose domain shifts.
pub(crate) struct Shift {
    title: String,
    domains: [Domain; 2],
    /// Expected before the run.
    planned: Vec<Vec<f64>>,
    /// By layer and expert.
    shard_bytes: Vec<Vec<u64>>,
    spare: usize,
    every_steps: u64,
    load_step: f64,
}

impl Shift {
    fn steps(&self, seed: u64) -> Vec<StepLoads> {
        let mut rng = stream(seed, "domain shift");
        let domain = |step: usize| &self.domains[usize::from(step / PHASE_STEPS == 1)];
        (0..3 * PHASE_STEPS).map(|step| domain(step).step(&mut rng)).collect()
    }

    fn slots(&self) -> Vec<usize> {
        vec![self.planned[0].len().div_ceil(NODES) + self.spare; NODES]
    }

    fn plans(&self, loads: &[Vec<f64>]) -> Result<Vec<Placement>, Failure> {
        let replicas = self.slots().iter().sum();
        let shape = EplbShape { replicas, groups: 1, servers: 1, gpus: NODES };
        loads.iter().map(|loads| Ok(eplb(loads, shape)?.placement())).collect()
    }

    fn by_rule(&self, rule: &str, seed: u64, steps: &[StepLoads]) -> Result<Outcome, Failure> {
        let registry = MigrationRegistry::standard();
        let layer = |(layer, shard_bytes): (u64, &Vec<u64>)| {
            let rule = registry.build(rule, 1000 * seed + layer)?;
            Some(MigratingLayer { rule, slots: self.slots(), shard_bytes: shard_bytes.clone() })
        };
        let layers: Option<Vec<_>> = (0..).zip(&self.shard_bytes).map(layer).collect();
        let (every_steps, load_step) = (self.every_steps, self.load_step);
        let settings =
            MigratingSettings { every_steps, load_step, bytes_max: u64::MAX, copies_min: 1 };
        let migrating = layers.map(|layers| Migrating::new(settings, layers));
        let mut rehearsal = Rehearsal::new(self.plans(&self.planned)?, migrating);
        let mut sums = Sums::default();
        for (step, layers) in steps.iter().enumerate() {
            for (layer, loads) in (0..).map(LayerId).zip(layers) {
                sums.add(step, rehearsal.play(layer, loads).max_load() as f64, loads);
            }
        }
        Ok(sums.outcome(rehearsal.sent().1 as f64))
    }

    /// One fresh plan at each shift, for the true loads of the domain that comes.
    fn at_shifts(&self, steps: &[StepLoads]) -> Result<Outcome, Failure> {
        let mut placements = self.plans(&self.planned)?;
        let (mut sums, mut sent) = (Sums::default(), 0);
        for (step, layers) in steps.iter().enumerate() {
            let phase = step / PHASE_STEPS;
            if phase > 0 && step % PHASE_STEPS == 0 {
                let next = self.plans(&self.domains[phase % 2].loads())?;
                for ((next, before), bytes) in next.iter().zip(&placements).zip(&self.shard_bytes) {
                    sent += next.moved_bytes(before, bytes);
                }
                placements = next;
            }
            for (placement, loads) in placements.iter().zip(layers) {
                sums.add(step, dispatch_tokens(placement, loads)?.max_load() as f64, loads);
            }
        }
        Ok(sums.outcome(sent as f64))
    }

    fn bound(&self, steps: &[StepLoads]) -> Result<Outcome, Failure> {
        let mut sums = Sums::default();
        for (step, layers) in steps.iter().enumerate() {
            for loads in layers {
                let real: Vec<f64> = loads.iter().map(|load| f64::from(*load)).collect();
                sums.add(step, placement_lower_bound(&real, &self.slots())?, loads);
            }
        }
        Ok(sums.outcome(0.0))
    }

    /// Prints the table.
    pub(crate) fn table(&self) -> Result<(), Failure> {
        let slots = self.slots()[0];
        println!(
            "\n## {}: {} experts on {NODES} nodes, {slots} copies a node\n",
            self.title,
            self.planned[0].len()
        );
        println!(
            "| way | largest node load ÷ mean | settled | bytes sent ÷ one fresh plan a shift | ÷ a fresh plan each time |"
        );
        println!("|---|---:|---:|---:|---:|");
        let mut rows: Vec<(String, Vec<Outcome>)> = vec![("doing nothing".into(), Vec::new())];
        rows.push(("fresh `eplb` plan at each shift, told of it".into(), Vec::new()));
        let name = |rule: &&str| format!("`{rule}`, every {} steps", self.every_steps);
        rows.extend(RULES.iter().map(|rule| (name(rule), Vec::new())));
        rows.push(("lower bound".into(), Vec::new()));
        for seed in 0..SEEDS {
            let steps = self.steps(seed);
            let mut outcomes = vec![self.by_rule("none", seed, &steps)?, self.at_shifts(&steps)?];
            for rule in RULES {
                outcomes.push(self.by_rule(rule, seed, &steps)?);
            }
            outcomes.push(self.bound(&steps)?);
            rows.iter_mut().zip(outcomes).for_each(|(row, outcome)| row.1.push(outcome));
        }
        let sent = |row: usize| rows[row].1.iter().map(|of| of.sent).collect::<Vec<_>>();
        let (once, each) = (sent(1), sent(2));
        let over = |outcomes: &[Outcome], of: &[f64]| -> Vec<f64> {
            outcomes.iter().zip(of).map(|(outcome, of)| outcome.sent / of).collect()
        };
        for (name, outcomes) in &rows {
            let balance: Vec<f64> = outcomes.iter().map(|of| of.balance).collect();
            let settled: Vec<f64> = outcomes.iter().map(|of| of.settled).collect();
            let (balance, settled) = (spread(&balance, 3), spread(&settled, 3));
            let [once, each] = [&once, &each].map(|of| spread(over(outcomes, of), 3));
            println!("| {name} | {balance} | {settled} | {once} | {each} |");
        }
        let flock = &rows[4].1;
        let worst = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let balance = worst(&mut flock.iter().map(|of| of.balance));
        let sent = worst(&mut over(flock, &once).into_iter());
        println!(
            "\nAt the worst of {SEEDS} seeds the flock holds {balance:.3}, {} the limit of {BALANCE_LIMIT}, and sends \
             {sent:.3} of what one fresh plan a shift does, {} the limit of {BYTES_LIMIT}.",
            verdict(balance, BALANCE_LIMIT),
            verdict(sent, BYTES_LIMIT),
        );
        Ok(())
    }
}

/// The shipped model on the shipped texts: a story, source code, and the story again.
pub(crate) fn of_texts(spare: usize) -> Result<Shift, Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let folder = root.join("models/books-moe-64e8k");
    let checkpoint = Checkpoint::open(&folder)?;
    let tokenizer = Tokenizer::open(&folder)?;
    let (trunk, experts) =
        (checkpoint.trunk()?, LocalExperts::load(&checkpoint, BitWidth::Full, 32)?);
    let moe = checkpoint.config.moe.ok_or("a Mixture-of-Experts model")?;
    let count = moe.experts;
    let read = |name: &str| -> Result<Domain, Failure> {
        let document = tokenizer.encode_document(&read_text(&root.join("text").join(name))?)?;
        let cut = windows(&document.ids, WINDOW_TOKENS);
        let mut pass = trunk.begin(cut.inputs, WINDOW_TOKENS)?;
        let requests = cut.inputs.len() / WINDOW_TOKENS;
        let mut loads: Vec<StepLoads> = vec![Vec::new(); requests];
        for layer in 0..checkpoint.config.layers {
            let input = pass.up_to_router(layer).ok_or("every layer is routed")?;
            let choices = top_k(input.router_logits, moe.experts, moe.top_k);
            loads.iter_mut().for_each(|request| request.push(vec![0; count]));
            for token in 0..choices.tokens() {
                let of_layer = loads[token / WINDOW_TOKENS].last_mut().expect("pushed above");
                choices.row(token).iter().for_each(|expert| of_layer[expert.index()] += 1);
            }
            let (hidden, logits) = (input.hidden, input.router_logits);
            let output = experts.forward_chosen(layer, hidden, logits, &choices);
            pass.add_moe(layer, &output.output);
        }
        Ok(Domain::Read(loads))
    };
    let planned = read("calibration.txt")?.loads();
    let layers = planned.len();
    Ok(Shift {
        title: "books-moe-64e8k, a story, source code and the story again".into(),
        domains: [read("murmuration.txt")?, read("source-code.txt")?],
        planned,
        shard_bytes: vec![vec![1; count]; layers],
        spare,
        every_steps: 4,
        load_step: 0.2,
    })
}

/// Counted loads of one domain, of another and of the first again.
pub(crate) fn of_counts(counts: &Value, pair: [&str; 2], spare: usize) -> Result<Shift, Failure> {
    let domain = |name: &str| -> Result<Vec<Vec<f64>>, Failure> {
        let layers = counts[name].as_array().ok_or("counts by layer")?;
        let layer = |layer: &Value| -> Result<Vec<f64>, Failure> {
            let counts = layer.as_array().ok_or("counts by expert")?;
            counts.iter().map(|count| count.as_f64().ok_or_else(|| "a count".into())).collect()
        };
        layers.iter().map(layer).collect()
    };
    let domains = [domain(pair[0])?, domain(pair[1])?];
    let planned = domains[0].clone();
    let shard_bytes = planned.iter().map(|of| vec![1; of.len()]).collect();
    Ok(Shift {
        title: format!("olmoe-1b-7b, {}, {} and {} again", pair[0], pair[1], pair[0]),
        domains: domains.map(|layers| Domain::Counted(layers, 8)),
        planned,
        shard_bytes,
        spare,
        every_steps: 4,
        load_step: 0.2,
    })
}

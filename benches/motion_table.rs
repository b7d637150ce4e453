//! Writes docs/motion.md: what router rows that move do to loads and to the loss.
//!
//! `cargo bench --bench motion_table > docs/motion.md`
#![allow(clippy::print_stdout, reason = "the page is the output")]

mod shared;

use agents::expert::BitWidth;
use agents::flock::motion::{LayerMotion, MotionRegistry, MotionSettings};
use agents::game::{Choices, CostSettings, Game, RouterRegistry, Scores};
use nashflock::measure::Clock;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::config::MoeConfig;
use nashflock::model::eval::{Scored, WINDOW_TOKENS, evaluate};
use nashflock::model::experts::{LocalExperts, top_k};
use nashflock::model::tokenizer::{Document, Tokenizer, read_text};
use nashflock::model::trunk::{FeedForwardWeights, Trunk};
use shared::Failure;
use shared::figures::spread;
use std::path::Path;

const CHECKPOINTS: [&str; 2] = ["books-moe-8e2k", "books-moe-64e8k"];
const SEEDS: usize = 20;
/// Windows of a batch: 2048 tokens.
const BATCH_WINDOWS: usize = 8;
/// Batches that rows move in.
const BATCHES: usize = 24;
/// Windows of other text that are scored with the rows at rest.
const SCORED_WINDOWS: usize = 16;
const FROZEN: &str = "frozen";
const EXACT: &str = "frozen, `equilibrium`";

fn main() -> Result<(), Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let texts = ["train.txt", "valid.txt"].map(|name| root.join("../shared/data/books").join(name));
    if let Some(missing) = texts.iter().find(|text| !text.exists()) {
        eprintln!("skipped: {} is not there", missing.display());
        return Ok(());
    }
    print!("{}", include_str!("motion_table.md"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    for name in CHECKPOINTS {
        let folder = root.join("scenarios/models").join(name);
        let checkpoint = Checkpoint::open(&folder)?;
        let tokenizer = Tokenizer::open(&folder)?;
        let [train, valid] = &texts;
        let bench = Bench {
            trunk: checkpoint.trunk()?,
            experts: LocalExperts::load(&checkpoint, BitWidth::Full, 32)?,
            moe: checkpoint.config.moe.ok_or("a Mixture-of-Experts model")?,
            train: tokenizer.encode_document(&read_text(train)?)?,
            valid: tokenizer.encode_document(&read_text(valid)?)?,
        };
        pool.install(|| bench.table(name))?;
    }
    Ok(())
}

struct Bench {
    trunk: Trunk,
    experts: LocalExperts,
    moe: MoeConfig,
    train: Document,
    valid: Document,
}

/// What one rule did with one seed.
#[derive(Default)]
struct Outcome {
    loss: f64,
    /// Worst layer, mean over batches.
    balance: f64,
    score_loss: f64,
    turned: f64,
    undone: u64,
    ms_a_batch: f64,
}

impl Bench {
    fn table(&self, name: &str) -> Result<(), Failure> {
        let registry = MotionRegistry::standard();
        let mut rules = vec![FROZEN, EXACT];
        rules.extend(registry.names());
        let seeds = std::env::var("SEEDS").map_or(SEEDS, |n| n.parse().expect("a number"));
        println!("\n## {name}: {} experts, top {}\n", self.moe.experts, self.moe.top_k);
        println!(
            "| rule | largest load ÷ mean | loss, nats | above frozen, % | trained scores lost, % | turned, rad | \
             moves undone | ms a batch |"
        );
        println!("|---|---:|---:|---:|---:|---:|---:|---:|");
        let mut frozen: Vec<f64> = Vec::new();
        for rule in rules {
            let outcomes: Vec<Outcome> = (0..seeds)
                .map(|seed| self.play(rule, seed, &registry))
                .collect::<Result<_, _>>()?;
            if rule == FROZEN {
                frozen = outcomes.iter().map(|outcome| outcome.loss).collect();
            }
            let of = |value: &dyn Fn(&Outcome) -> f64, digits| {
                spread(outcomes.iter().map(value), digits)
            };
            let above = outcomes.iter().zip(&frozen).map(|(o, f)| 100.0 * (o.loss / f - 1.0));
            let code = if rule.starts_with(FROZEN) { rule.to_owned() } else { format!("`{rule}`") };
            println!(
                "| {code} | {} | {} | {} | {} | {} | {} | {} |",
                of(&|o| o.balance, 3),
                of(&|o| o.loss, 4),
                spread(above, 2),
                of(&|o| 100.0 * o.score_loss, 2),
                of(&|o| o.turned, 3),
                of(&|o| o.undone as f64, 0),
                of(&|o| o.ms_a_batch, 1),
            );
        }
        Ok(())
    }

    /// Moves on one text, then scores another.
    fn play(&self, rule: &str, seed: usize, registry: &MotionRegistry) -> Result<Outcome, Failure> {
        let mut layers: Vec<Option<LayerMotion>> = self
            .trunk
            .layers
            .iter()
            .enumerate()
            .map(|(layer, weights)| {
                let FeedForwardWeights::Routed { router, .. } = &weights.feed_forward else {
                    return None;
                };
                let rule = registry.build(rule, (seed * 100 + layer) as u64)?;
                let routing = (self.moe.routing, self.moe.top_k);
                let width = self.trunk.config.width;
                Some(LayerMotion::new(
                    &router.rows(),
                    width,
                    routing,
                    MotionSettings::default(),
                    rule,
                ))
            })
            .collect();
        let clock = Clock::start();
        let mut observed_ns = 0;
        if layers.iter().any(Option::is_some) {
            let text = cut(&self.train, seed, SEEDS, BATCHES * BATCH_WINDOWS);
            let mut moe = |layer: usize, x: &[f32], _: &[f32]| {
                let motion = layers[layer].as_mut().expect("a routed layer");
                let logits = motion.logits(x);
                let choices = self.top(&logits);
                let began_ns = clock.now_ns();
                motion.observe(x, &logits, &choices);
                observed_ns += clock.now_ns() - began_ns;
                self.experts.forward_chosen(layer, x, &logits, &choices)
            };
            evaluate(Scored { trunk: &self.trunk, moe: &mut moe }, None, &text, |_, _| ())?;
        }
        let text = cut(&self.valid, seed, SEEDS, SCORED_WINDOWS);
        let mut balances: Vec<Vec<f64>> = vec![Vec::new(); layers.len()];
        let (mut kept, mut most) = (0.0, 0.0);
        let mut moe = |layer: usize, x: &[f32], trained: &[f32]| {
            let logits =
                layers[layer].as_ref().map_or_else(|| trained.to_vec(), |motion| motion.logits(x));
            let choices = if rule == EXACT { self.equilibrium(&logits) } else { self.top(&logits) };
            let loads = choices.loads(self.moe.experts);
            let mean = choices.experts().len() as f64 / loads.len() as f64;
            balances[layer].push(f64::from(loads.into_iter().max().unwrap_or(0)) / mean);
            let mut scores = trained.to_vec();
            self.moe.routing.score(&mut scores, self.moe.experts);
            kept += self.sum(&scores, &choices);
            most += self.sum(&scores, &self.top(trained));
            self.experts.forward_chosen(layer, x, &logits, &choices)
        };
        let loss =
            evaluate(Scored { trunk: &self.trunk, moe: &mut moe }, None, &text, |_, _| ())?.loss;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let balances = balances.iter().filter(|layer| !layer.is_empty()).map(|layer| mean(layer));
        let turned: Vec<f64> = layers.iter().flatten().flat_map(LayerMotion::turned).collect();
        Ok(Outcome {
            loss,
            balance: balances.fold(0.0, f64::max),
            score_loss: 1.0 - kept / most,
            turned: if turned.is_empty() { 0.0 } else { mean(&turned) },
            undone: layers.iter().flatten().map(|motion| motion.counts().1).sum(),
            ms_a_batch: observed_ns as f64 / 1e6 / BATCHES as f64,
        })
    }

    fn top(&self, logits: &[f32]) -> Choices {
        top_k(logits, self.moe.experts, self.moe.top_k)
    }

    fn equilibrium(&self, logits: &[f32]) -> Choices {
        let mut values = logits.to_vec();
        self.moe.routing.score(&mut values, self.moe.experts);
        let scores = Scores::new(&values, self.moe.experts).expect("finite scores");
        let cost = CostSettings::Quota { capacity_factor: 1.0 };
        let cost = cost.build(scores.tokens(), self.moe.experts, self.moe.top_k);
        let router = RouterRegistry::standard().get("equilibrium").expect("a standard router");
        router.route(&Game { scores, top_k: self.moe.top_k, cost: cost.as_ref() }, None).choices
    }

    fn sum(&self, scores: &[f32], choices: &Choices) -> f64 {
        let rows = scores.chunks_exact(self.moe.experts).enumerate();
        rows.map(|(token, row)| {
            choices.row(token).iter().map(|e| f64::from(row[e.index()])).sum::<f64>()
        })
        .sum()
    }
}

/// Whole windows of a text; seeds begin at equal distances.
fn cut(document: &Document, seed: usize, seeds: usize, windows: usize) -> Document {
    let length = windows * WINDOW_TOKENS + 1;
    let room = document.ids.len().saturating_sub(length);
    let first = room * seed / seeds;
    let ids = document.ids[first..(first + length).min(document.ids.len())].to_vec();
    let characters = document.characters * ids.len() / document.ids.len();
    Document { ids, characters }
}

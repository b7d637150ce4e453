//! Writes the table of docs/routers.md: every router on score matrices of several sources.
//!
//! `cargo bench --bench router_table > docs/routers.md`
//!
//! Each play starts cold; the time is the median of the repeats on this machine, with two threads.
#![allow(clippy::print_stdout, reason = "the table is the output")]

use agents::expert::BitWidth;
use agents::game::{
    Choices, CostSettings, Game, Router as _, RouterRegistry, Scores, TopK, certify,
};
use agents::rng::stream;
use nashflock::measure::Clock;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::experts::LocalExperts;
use nashflock::model::tokenizer::{Tokenizer, read_text, windows};
use rand::RngExt as _;
use rand_distr::StandardNormal;
use rand_distr::weighted::WeightedIndex;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

const TOKENS: usize = 4096;
const REPEATS: usize = 15;
/// A router slower than this is timed once.
const SLOW_MS: f64 = 250.0;

type Failure = Box<dyn Error + Send + Sync>;

struct Source {
    title: String,
    values: Vec<f32>,
    experts: usize,
    top_k: usize,
}

fn main() -> Result<(), Failure> {
    println!("{}", include_str!("router_table.md"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    let mut sources = vec![synthetic()];
    for name in ["books-moe-64e8k", "books-moe-8e2k"] {
        sources.extend(pool.install(|| checkpoint(name))?);
    }
    match olmoe() {
        Ok(found) => sources.extend(found),
        Err(why) => eprintln!("skipped: OLMoE affinities: {why}"),
    }
    pool.install(|| rules(&sources[0]))?;
    for source in &sources {
        pool.install(|| table(source))?;
    }
    Ok(())
}

/// What each router is, and whether later tokens of a batch change what earlier ones choose: the
/// second half of the batch is put in reverse order and its scores in each row as well.
fn rules(source: &Source) -> Result<(), Failure> {
    let Source { values, experts, top_k, .. } = source;
    let kept = TOKENS / 2;
    let mut other = values.clone();
    other[kept * experts..].reverse();
    let cost = CostSettings::Quota { capacity_factor: 1.0 }.build(TOKENS, *experts, *top_k);
    println!("\n## The rules\n");
    println!("| router | rule | label | causal in a batch |");
    println!("|---|---|---|---|");
    let routers = RouterRegistry::standard();
    for name in routers.names() {
        let summary = routers.summary(name).ok_or("every router has a summary")?;
        let (rule, label) = summary.rsplit_once(" (").ok_or("a summary ends with a label")?;
        let router = routers.get(name).ok_or("the registry names its routers")?;
        let play = |values: &[f32]| -> Result<Choices, Failure> {
            let scores = Scores::new(values, *experts)?;
            Ok(router.route(&Game { scores, top_k: *top_k, cost: cost.as_ref() }, None).choices)
        };
        let (one, other) = (play(values)?, play(&other)?);
        let causal = (0..kept).all(|token| one.row(token) == other.row(token));
        let causal = if causal { "yes" } else { "no" };
        println!("| `{name}` | {rule} | {} | {causal} |", label.trim_end_matches(')'));
    }
    Ok(())
}

fn table(source: &Source) -> Result<(), Failure> {
    let Source { title, values, experts, top_k } = source;
    let scores = Scores::new(values, *experts)?;
    let cost =
        CostSettings::Quota { capacity_factor: 1.0 }.build(scores.tokens(), *experts, *top_k);
    let game = Game { scores, top_k: *top_k, cost: cost.as_ref() };
    println!("\n## {title}\n\nT = {}, E = {experts}, k = {top_k}.\n", scores.tokens());
    println!(
        "| router | max over mean | score loss | dropped | extra | ε-Nash | relative gap | passes \
         | time |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    let reference = TopK.route(&game, None).choices;
    assert_eq!(reference.tokens(), scores.tokens());
    let routers = RouterRegistry::standard();
    let names: Vec<String> = routers.names().map(str::to_owned).collect();
    for name in names {
        let router = routers.get(&name).ok_or("the registry names its routers")?;
        let clock = Clock::start();
        let mut times_ms = Vec::new();
        let mut play = None;
        while times_ms.len() < REPEATS {
            let start_ns = clock.now_ns();
            play = Some(router.route(&game, None));
            times_ms.push((clock.now_ns() - start_ns) as f64 / 1e6);
            if times_ms[0] > SLOW_MS {
                break;
            }
        }
        times_ms.sort_by(f64::total_cmp);
        let median_ms = times_ms[times_ms.len() / 2];
        let play = play.ok_or("every router played")?;
        let certificate = certify(&game, &play.choices, &play.prices);
        let gap = certificate.relative_gap;
        let gap = if gap.is_finite() { format!("{gap:.1e}") } else { "over quota".to_owned() };
        let epsilon = certificate.epsilon_nash;
        let epsilon =
            if epsilon.is_finite() { format!("{epsilon:.1e}") } else { "over quota".to_owned() };
        let share = |pairs: usize| 100.0 * pairs as f64 / (scores.tokens() * top_k) as f64;
        println!(
            "| `{name}` | {:.3} | {:.2} % | {:.1} % | {:.1} % | {epsilon} | {gap} | {} | \
             {median_ms:.2} ms |",
            certificate.max_over_mean,
            certificate.score_loss * 100.0,
            share(certificate.dropped),
            share(certificate.extra),
            play.passes,
        );
    }
    Ok(())
}

/// sigmoid(N(0,1) + 0.5·N_e).
#[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
fn synthetic() -> Source {
    let (experts, top_k) = (64, 8);
    let mut rng = stream(1, "router table");
    let bias: Vec<f64> = (0..experts).map(|_| 0.5 * rng.sample::<f64, _>(StandardNormal)).collect();
    let values = (0..TOKENS * experts)
        .map(|i| {
            let logit = rng.sample::<f64, _>(StandardNormal) + bias[i % experts];
            (1.0 / (1.0 + (-logit).exp())) as f32
        })
        .collect();
    let title = "Synthetic: sigmoid(N(0,1) + 0.5·N_e)".to_owned();
    Source { title, values, experts, top_k }
}

/// Router probabilities of each layer of a shipped checkpoint on the shipped story.
fn checkpoint(name: &str) -> Result<Vec<Source>, Failure> {
    const WINDOW: usize = 256;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let folder = root.join("models").join(name);
    let checkpoint = Checkpoint::open(&folder)?;
    let moe = checkpoint.config.moe.ok_or("a Mixture-of-Experts model")?;
    let (trunk, experts) =
        (checkpoint.trunk()?, LocalExperts::load(&checkpoint, BitWidth::Full, 32)?);
    let text = read_text(&root.join("text/murmuration.txt"))?;
    let document = Tokenizer::open(&folder)?.encode_document(&text)?;
    let ids = &windows(&document.ids, WINDOW).inputs[..TOKENS];
    let mut pass = trunk.begin(ids, WINDOW)?;
    let mut sources = Vec::new();
    for layer in 0..checkpoint.config.layers {
        let input = pass.up_to_router(layer).ok_or("every layer is routed")?;
        let mut values = input.router_logits.to_vec();
        let output = experts.forward(layer, input.hidden, input.router_logits).output;
        moe.routing.score(&mut values, moe.experts);
        pass.add_moe(layer, &output);
        let title = format!("{name}, layer {layer}, router probabilities on a story");
        sources.push(Source { title, values, experts: moe.experts, top_k: moe.top_k });
    }
    Ok(sources)
}

/// Tokens drawn by frequency; a row is the share of its expert counts in OLMoE-1B-7B.
#[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
fn olmoe() -> Result<Vec<Source>, Failure> {
    let (experts, top_k) = (64, 8);
    let folder: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/olmoe-routing");
    let mut sources = Vec::new();
    for layer in [0, 7, 15] {
        let text =
            fs::read_to_string(folder.join(format!("token-expert-wikipedia-layer{layer}.csv")))?;
        let mut counts: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        for line in text.lines().skip(1) {
            let mut cells = line.split(',');
            let mut cell = || cells.next().ok_or("three columns");
            let (token, expert, count) = (cell()?.parse()?, cell()?.parse::<usize>()?, cell()?);
            counts.entry(token).or_insert_with(|| vec![0.0; experts])[expert] = count.parse()?;
        }
        let rows: Vec<&Vec<f64>> = counts.values().collect();
        let frequencies = WeightedIndex::new(rows.iter().map(|row| row.iter().sum::<f64>()))?;
        let mut rng = stream(u64::try_from(layer)?, "olmoe tokens");
        let mut values = Vec::with_capacity(TOKENS * experts);
        for _ in 0..TOKENS {
            let row = rows[rng.sample(&frequencies)];
            let total: f64 = row.iter().sum();
            values.extend(row.iter().map(|count| (count / total) as f32));
        }
        let title = format!("OLMoE-1B-7B, layer {layer}, share of each expert by token id");
        sources.push(Source { title, values, experts, top_k });
    }
    Ok(sources)
}

//! Writes the table of docs/routers.md: every router on score matrices of several sources.
//!
//! `cargo bench --bench router_table > docs/routers.md`
//!
//! Each play starts cold; the time is the median of the repeats on this machine, with two threads.
#![allow(clippy::print_stdout, reason = "the table is the output")]

mod shared;
mod sources;

use agents::game::{
    Choices, CostSettings, Game, Router as _, RouterRegistry, Scores, TopK, certify,
};
use nashflock::measure::Clock;
use shared::Failure;
use shared::figures::median;
use sources::{Source, TOKENS, checkpoint, olmoe, synthetic};

const REPEATS: usize = 15;
/// A router slower than this is timed once.
const SLOW_MS: f64 = 250.0;

fn main() -> Result<(), Failure> {
    println!("{}", include_str!("router_table.md"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    let mut sources = vec![synthetic(1)];
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
        let median_ms = median(&times_ms);
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

//! Writes docs/flock.md: the flock beside the exact optimum and the rules of the field.
//!
//! `cargo bench --bench flock_table > docs/flock.md`
#![allow(clippy::print_stdout, reason = "the page is the output")]

mod shared;
mod sources;

use agents::flock::graph::Graph;
use agents::flock::rule::Clearing;
use agents::game::routers::FlockPrices;
use agents::game::{Certificate, CostSettings, Game, Router, RouterRegistry, Scores, certify};
use agents::rng::stream;
use nashflock::measure::Clock;
use rand::RngExt as _;
use rand::seq::index::sample;
use shared::Failure;
use shared::figures::{median, most, spread, verdict};
use sources::{Source, checkpoint, olmoe, synthetic};

const SEEDS: u64 = 20;
const TOKENS: usize = 2048;
const ROUNDS: u32 = 30;
const EVEN: f64 = 1.05;
const LATE_LIMIT: f64 = 1.10;
const GAP_LIMIT: f64 = 1e-3;
const QUOTA: CostSettings = CostSettings::Quota { capacity_factor: 1.0 };
const LINEAR: CostSettings = CostSettings::Linear { price_per_fair_share: 1.0 };
/// Rules of the field beside the flock.
const CONTROLS: [&str; 5] =
    ["top_k", "loss_free_bias", "quantile_balancing", "flock_excess", "equilibrium"];

/// Experts of the growth table; the tokens of each.
const GROWTH: [usize; 4] = [64, 256, 1024, 4096];
const GROWTH_TOKENS: usize = 65_536;
const GROWTH_CANDIDATES: usize = 15;
const GROWTH_LIMIT: f64 = 1.3;

fn main() -> Result<(), Failure> {
    print!("{}", include_str!("flock_table.md"));
    let clock = Clock::start();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    pool.install(|| {
        let mut sources = checkpoint("books-moe-64e8k")?;
        sources.push(synthetic(1));
        match olmoe() {
            Ok(found) => sources.extend(found.into_iter().nth(1)),
            Err(why) => eprintln!("skipped: OLMoE affinities: {why}"),
        }
        for source in &sources {
            table(&clock, source)?;
        }
        growth(&clock)
    })
}

type Make = dyn Fn() -> FlockPrices;

/// Settings of the flock, by name.
fn settings() -> Vec<(&'static str, Box<Make>)> {
    let flock = FlockPrices::default;
    let on = |graph| -> Box<Make> { Box::new(move || FlockPrices { graph, ..flock() }) };
    let aligned = |alignment| -> Box<Make> {
        let rule = move || Box::new(Clearing { step: 0.8, alignment });
        Box::new(move || FlockPrices { rule: rule(), ..flock() })
    };
    let few = |candidates| -> Box<Make> {
        Box::new(move || FlockPrices { candidates: Some(candidates), ..flock() })
    };
    let hearing = |delay_rounds, lost_share| -> Box<Make> {
        Box::new(move || FlockPrices { delay_rounds, lost_share, ..flock() })
    };
    vec![
        ("flock: 7 nearest", on(Graph::Nearest)),
        ("on a ring of 7", on(Graph::Ring)),
        ("7 at random", on(Graph::Random)),
        ("complete graph", on(Graph::Complete)),
        ("no alignment", aligned(0.0)),
        ("alignment 0.3", aligned(0.3)),
        ("alignment 0.6", aligned(0.6)),
        ("32 candidates a token", few(32)),
        ("15 candidates a token", few(15)),
        ("messages 4 rounds old", hearing(4, 0.0)),
        ("a tenth of messages lost", hearing(0, 0.1)),
        ("4 rounds old, a tenth lost", hearing(4, 0.1)),
    ]
}

/// What one setting did, by seed.
#[derive(Default)]
struct Row {
    even: Vec<f64>,
    balance: Vec<f64>,
    later: Vec<f64>,
    gap: Vec<f64>,
    loss: Vec<f64>,
    messages: Vec<f64>,
    times_ms: Vec<f64>,
}

impl Row {
    fn print(&self, name: &str) {
        let rounds = match self.even.len() {
            0 => String::new(),
            _ if self.even.iter().any(|rounds| rounds.is_infinite()) => {
                format!("{} of {SEEDS}", self.even.iter().filter(|r| r.is_finite()).count())
            }
            _ => spread(&self.even, 0),
        };
        let later = if self.later.is_empty() { String::new() } else { spread(&self.later, 3) };
        let messages = self.messages.first().map_or(String::new(), |m| format!("{:.1}", m / 1e3));
        println!(
            "| {name} | {rounds} | {} | {later} | {} | {} | {messages} | {} |",
            spread(&self.balance, 3),
            gaps(&self.gap),
            spread(self.loss.iter().map(|loss| 100.0 * loss), 2),
            spread(&self.times_ms, 1),
        );
    }
}

fn table(clock: &Clock, source: &Source) -> Result<(), Failure> {
    let Source { title, experts, top_k, .. } = source;
    println!("\n## {title}\n\nT = {TOKENS}, E = {experts}, k = {top_k}.\n");
    println!(
        "| rule | rounds to 1.05 | at 30 | worst to 60 | gap | loss, % | messages, 10³ | ms |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    let batches: Vec<Vec<f32>> = (0..SEEDS).map(|seed| batch(source, seed)).collect();
    let [quota, linear] = [QUOTA, LINEAR].map(|cost| cost.build(TOKENS, *experts, *top_k));
    let [quota, linear] = [quota.as_ref(), linear.as_ref()];
    let mut verdicts = Vec::new();
    for (name, make) in settings() {
        let mut row = Row::default();
        for (seed, values) in (0..).zip(&batches) {
            let scores = Scores::new(values, *experts)?;
            let game = |cost| Game { scores, top_k: *top_k, cost };
            let flock = |rounds| FlockPrices { rounds, seed, ..make() };
            let start_ns = clock.now_ns();
            let short = flock(ROUNDS).fly(&game(quota), None);
            row.times_ms.push((clock.now_ns() - start_ns) as f64 / 1e6);
            let long = flock(2 * ROUNDS).fly(&game(quota), None).rounds;
            let even = long.iter().position(|round| round.max_over_mean <= EVEN);
            row.even.push(even.map_or(f64::INFINITY, |round| round as f64));
            let certificate = certify(&game(quota), &short.play.choices, &short.play.prices);
            row.balance.push(certificate.max_over_mean);
            row.loss.push(certificate.score_loss);
            let after = long.iter().skip(ROUNDS as usize).map(|round| round.max_over_mean);
            row.later.push(after.fold(0.0, f64::max));
            row.messages
                .push(short.rounds.last().map_or(0.0, |r| r.messages as f64) / f64::from(ROUNDS));
            let play = flock(ROUNDS).route(&game(linear), None);
            row.gap.push(certify(&game(linear), &play.choices, &play.prices).relative_gap);
        }
        row.print(name);
        let (balance, later, gap) = (most(&row.balance), most(&row.later), most(&row.gap));
        match name {
            "flock: 7 nearest" => verdicts.push(format!(
                "In all seeds the largest load of `flock: 7 nearest` after 30 rounds is {balance:.3}, \
                 {} the limit of {EVEN}, and its gap {gap:.1e}, {} the limit of {GAP_LIMIT:.0e}.",
                verdict(balance, EVEN),
                verdict(gap, GAP_LIMIT),
            )),
            "4 rounds old, a tenth lost" => verdicts.push(format!(
                "With messages 4 rounds old and a tenth of them lost it is {later:.3} at the worst of \
                 rounds 30 to 60, {} the limit of {LATE_LIMIT}.",
                verdict(later, LATE_LIMIT),
            )),
            _ => {}
        }
    }
    let routers = RouterRegistry::standard();
    for name in CONTROLS {
        let router = routers.get(name).ok_or("the registry names its routers")?;
        let mut row = Row::default();
        for values in &batches {
            let scores = Scores::new(values, *experts)?;
            let game = |cost| Game { scores, top_k: *top_k, cost };
            let start_ns = clock.now_ns();
            let play = router.route(&game(quota), None);
            row.times_ms.push((clock.now_ns() - start_ns) as f64 / 1e6);
            let certificate = certify(&game(quota), &play.choices, &play.prices);
            row.balance.push(certificate.max_over_mean);
            row.loss.push(certificate.score_loss);
            row.gap.push(certificate_of(router.as_ref(), &game(linear)).relative_gap);
        }
        row.print(&format!("`{name}`"));
    }
    println!("\n{}", verdicts.join(" "));
    Ok(())
}

fn certificate_of(router: &dyn Router, game: &Game<'_>) -> Certificate {
    let play = router.route(game, None);
    certify(game, &play.choices, &play.prices)
}

/// A batch of the source's tokens, in their order.
fn batch(source: &Source, seed: u64) -> Vec<f32> {
    let experts = source.experts;
    let mut rng = stream(seed, "flock batch");
    let mut rows = sample(&mut rng, source.values.len() / experts, TOKENS).into_vec();
    rows.sort_unstable();
    rows.iter().flat_map(|row| source.values[row * experts..][..experts].iter().copied()).collect()
}

/// Time of a round at a fixed number of candidates, from few experts to many.
fn growth(clock: &Clock) -> Result<(), Failure> {
    println!("\n## Growth: {GROWTH_CANDIDATES} candidates a token, 7 neighbours\n");
    println!(
        "T = {GROWTH_TOKENS}, k = 8, scores at random. A round is a tenth of what 10 more rounds take; \
         finding each token's candidates once, in one pass over all scores, is apart.\n"
    );
    println!("| E | ns a token and round | ÷ E = 64 | candidates, ns a token |");
    println!("|---:|---:|---:|---:|");
    let mut first = None;
    for experts in GROWTH {
        let mut rng = stream(1, "flock growth");
        let values: Vec<f32> = (0..GROWTH_TOKENS * experts).map(|_| rng.random()).collect();
        let cost = QUOTA.build(GROWTH_TOKENS, experts, 8);
        let scores = Scores::new(&values, experts)?;
        let game = Game { scores, top_k: 8, cost: cost.as_ref() };
        let (mut rounds_ns, mut once_ns) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let time = |rounds: u32| {
                let candidates = Some(GROWTH_CANDIDATES);
                // Who is nearest takes E² dot products, once: a ring has neighbours for nothing.
                let graph = Graph::Ring;
                let flock = FlockPrices { candidates, graph, rounds, ..FlockPrices::default() };
                let start_ns = clock.now_ns();
                let play = flock.route(&game, None);
                assert_eq!(play.iterations, rounds);
                (clock.now_ns() - start_ns) as f64 / GROWTH_TOKENS as f64
            };
            let (few, many) = (time(2), time(12));
            rounds_ns.push((many - few) / 10.0);
            once_ns.push(few - 3.0 * (many - few) / 10.0);
        }
        let own = median(&rounds_ns);
        let ratio = own / *first.get_or_insert(own);
        let verdict = verdict(ratio, GROWTH_LIMIT);
        println!(
            "| {experts} | {} | {ratio:.2}, {verdict} the limit of {GROWTH_LIMIT} | {} |",
            spread(&rounds_ns, 1),
            spread(&once_ns, 0)
        );
    }
    Ok(())
}

fn gaps(values: &[f64]) -> String {
    format!("{:.1e} (to {:.1e})", median(values), most(values))
}

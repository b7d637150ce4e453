//! Writes docs/router-speed.md: routing beside PyTorch, its growth and memory, small batches, replica
//! dispatch; each figure with its limit.
//!
//! `cargo bench --bench router_speed -- --python PYTHON > docs/router-speed.md`
//!
//! PYTHON is one that has torch; without it the own rows alone are measured.
#![allow(clippy::print_stdout, reason = "the page is the output")]

mod shared;
mod speed;

use agents::game::{Certificate, Equilibrium, Router, TopK, certify};
use agents::placement::{EplbShape, certify_dispatch, dispatch, eplb};
use agents::rng::stream;
use nashflock::measure::Clock;
use rand::RngExt as _;
use rand_distr::LogNormal;
use shared::Failure;
use shared::figures::{median, spread, verdict};
use speed::Case;
use speed::allocated::{Counting, now_bytes, peak_bytes};
use speed::torch::Torch;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROUNDS: usize = 15;
/// Plays of a round, of which the median counts.
const REPEATS: usize = 9;
/// Batches that are measured in turn; one more comes before them.
const BATCHES: usize = 3;

/// (T, E, k).
const SHAPES: [(usize, usize, usize); 2] = [(4096, 64, 8), (8192, 256, 8)];
/// Times over that of PyTorch's top-k.
const TOP_K_LIMIT: f64 = 0.35;
const COLD_LIMIT: f64 = 1.0;
const WARM_LIMIT: f64 = 0.6;
const GAP_LIMIT: f64 = 1e-6;

const GROWTH_TOKENS: [usize; 5] = [4096, 16_384, 65_536, 262_144, 1_048_576];
/// Time per token over that of the smallest batch.
const GROWTH_LIMIT: f64 = 1.1;
/// Peak memory over the bytes of the scores.
const MEMORY_LIMIT: f64 = 1.5;

/// (T, limit in µs).
const SMALL: [(usize, f64); 2] = [(64, 50.0), (256, 200.0)];
const SMALL_EXPERTS: [usize; 2] = [64, 256];
const SMALL_BATCHES: usize = 32;

const DISPATCH_LIMIT_US: f64 = 20.0;

fn main() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1);
    let mut python = None;
    while let Some(word) = words.next() {
        if word == "--python" {
            python = Some(words.next().ok_or("--python takes a path")?);
        }
    }
    let mut torch = match python {
        Some(python) => Torch::start(&python)?,
        None => None,
    };
    print!("{}", include_str!("router_speed.md"));
    match &torch {
        Some(torch) => println!("\nPyTorch {}.", torch.version),
        None => println!("\nPyTorch was not there: no row and no ratio of it."),
    }
    let clock = Clock::start();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    pool.install(|| {
        for shape in SHAPES {
            compare(&clock, torch.as_mut(), shape)?;
        }
        growth(&clock);
        small(&clock);
        replica_dispatch(&clock)
    })
}

/// What one router did in all rounds.
struct Row {
    name: &'static str,
    /// Its name in benches/torch_routers.py, if it is one of those.
    torch: Option<&'static str>,
    limit: Option<f64>,
    times_ms: Vec<f64>,
    ratios: Vec<f64>,
    certificates: Vec<Certificate>,
}

impl Row {
    fn new(name: &'static str, torch: Option<&'static str>, limit: Option<f64>) -> Self {
        let (times_ms, ratios, certificates) = Default::default();
        Self { name, torch, limit, times_ms, ratios, certificates }
    }

    fn worst(&self, of: fn(&Certificate) -> f64) -> f64 {
        self.certificates.iter().map(of).fold(f64::NEG_INFINITY, f64::max)
    }

    fn print(&self) {
        let ratio = match (self.ratios.is_empty(), self.limit) {
            (true, _) => "not measured".to_owned(),
            (false, None) => spread(&self.ratios, 3),
            (false, Some(limit)) => {
                let word = verdict(median(&self.ratios), limit);
                format!("{}, {word} the limit of {limit}", spread(&self.ratios, 3))
            }
        };
        let gap = self.worst(|c| c.relative_gap);
        let gap = if gap.is_finite() { format!("{gap:.1e}") } else { "over quota".to_owned() };
        println!(
            "| {} | {} | {ratio} | {:.3} | {:.2} % | {gap} |",
            self.name,
            spread(&self.times_ms, 3),
            self.worst(|c| c.max_over_mean),
            100.0 * self.worst(|c| c.score_loss),
        );
    }
}

fn compare(
    clock: &Clock,
    mut torch: Option<&mut Torch>,
    shape: (usize, usize, usize),
) -> Result<(), Failure> {
    let cases: Vec<Case> = (0..=BATCHES as u64).map(|batch| Case::new(shape, batch)).collect();
    let (tokens, experts, top_k) = shape;
    let file = |batch: usize| format!("{tokens}x{experts}-{batch}");
    // The first row is what the others are compared with.
    let mut rows = Vec::new();
    if let Some(torch) = torch.as_deref() {
        for (batch, case) in cases.iter().enumerate() {
            torch.give(&file(batch), case)?;
        }
        rows.extend([
            Row::new("PyTorch `topk` alone", Some("top_k"), None),
            Row::new("PyTorch Sinkhorn, 8 iterations", Some("sinkhorn"), None),
            Row::new("PyTorch quantile balancing, 16 sweeps", Some("quantile_balancing"), None),
            Row::new("PyTorch sign bias, 100 steps", Some("sign_bias"), None),
        ]);
    }
    rows.extend([
        Row::new("`top_k`", None, Some(TOP_K_LIMIT)),
        Row::new("`equilibrium`, cold", None, Some(COLD_LIMIT)),
        Row::new("`equilibrium`, warm: prices of the batch before", None, Some(WARM_LIMIT)),
    ]);
    let equilibrium = Equilibrium::default();
    let earlier: Vec<Vec<f64>> =
        cases.iter().map(|case| equilibrium.route(&case.game(), None).prices).collect();
    for round in 0..ROUNDS {
        let batch = 1 + round % BATCHES;
        let case = &cases[batch];
        let mut beside_ms = None;
        for row in &mut rows {
            let (time_ms, certificate) = if let Some(name) = row.torch {
                let torch = torch.as_deref_mut().ok_or("its rows are there if it is")?;
                let slow = ["quantile_balancing", "sign_bias"].contains(&name);
                let repeats = if slow { (0, 1) } else { (2, REPEATS) };
                let times_ms = torch.times_ms(name, &file(batch), case, repeats)?;
                (median(&times_ms), torch.certificate(case)?)
            } else {
                let router: &dyn Router = if row.name == "`top_k`" { &TopK } else { &equilibrium };
                let warm = row.name.contains("warm").then(|| &earlier[batch - 1][..]);
                let play = router.route(&case.game(), warm);
                let certificate = certify(&case.game(), &play.choices, &play.prices);
                (case.median_ms(clock, router, warm, REPEATS), certificate)
            };
            row.times_ms.push(time_ms);
            row.certificates.push(certificate);
            if torch.is_some() {
                row.ratios.push(time_ms / *beside_ms.get_or_insert(time_ms));
            }
        }
    }
    println!("\n## T = {tokens}, E = {experts}, k = {top_k}\n");
    println!("| router | ms | ÷ PyTorch `topk` | max over mean | score loss | relative gap |");
    println!("|---|---:|---:|---:|---:|---:|");
    rows.iter().for_each(Row::print);
    let most_balance = 1.0 + experts as f64 / (tokens * top_k) as f64;
    for row in rows.iter().filter(|row| row.name.contains("equilibrium")) {
        let (balance, gap) = (row.worst(|c| c.max_over_mean), row.worst(|c| c.relative_gap));
        println!(
            "\n{}: max over mean {balance:.4}, {} the limit of 1 + E/(Tk) = {most_balance:.4}; \
             relative gap {gap:.1e}, {} the limit of {GAP_LIMIT:.0e}.",
            row.name,
            verdict(balance, most_balance),
            verdict(gap, GAP_LIMIT),
        );
    }
    Ok(())
}

fn growth(clock: &Clock) {
    let equilibrium = Equilibrium::default();
    let cases: Vec<Case> =
        GROWTH_TOKENS.iter().map(|tokens| Case::new((*tokens, 64, 8), 1)).collect();
    let mut times_ns = vec![Vec::new(); cases.len()];
    let mut growths = vec![Vec::new(); cases.len()];
    for _ in 0..ROUNDS {
        let mut smallest_ns = None;
        for (at, (case, tokens)) in cases.iter().zip(GROWTH_TOKENS).enumerate() {
            let repeats = if tokens > 100_000 { 1 } else { REPEATS };
            let time_ms = case.median_ms(clock, &equilibrium, None, repeats);
            let time_ns = 1e6 * time_ms / tokens as f64;
            times_ns[at].push(time_ns);
            growths[at].push(time_ns / *smallest_ns.get_or_insert(time_ns));
        }
    }
    println!("\n## Growth: `equilibrium`, cold, E = 64, k = 8\n");
    println!("Memory is the most that was allocated at once, the scores among it.\n");
    println!("| T | ns a token | ÷ T = {} | memory ÷ scores |", GROWTH_TOKENS[0]);
    println!("|---:|---:|---:|---:|");
    for ((case, tokens), (times_ns, growths)) in
        cases.iter().zip(GROWTH_TOKENS).zip(times_ns.iter().zip(&growths))
    {
        let before = now_bytes();
        let peak = peak_bytes(|| drop(equilibrium.route(&case.game(), None)));
        let memory = 1.0 + (peak - before) as f64 / size_of_val(&case.values[..]) as f64;
        println!(
            "| {tokens} | {} | {}, {} the limit of {GROWTH_LIMIT} | {memory:.2}, {} the limit of \
             {MEMORY_LIMIT} |",
            spread(times_ns, 3),
            spread(growths, 3),
            verdict(median(growths), GROWTH_LIMIT),
            verdict(memory, MEMORY_LIMIT),
        );
    }
}

fn small(clock: &Clock) {
    println!("\n## Small batches: `equilibrium`, k = 8\n");
    println!(
        "The median of {SMALL_BATCHES} batches of one source in each round, and the slowest of them; \
         the limit is for the median.\n"
    );
    println!("| T | E | prices | µs | slowest, µs | worst relative gap |");
    println!("|---:|---:|---|---:|---:|---:|");
    let equilibrium = Equilibrium::default();
    for ((tokens, limit_us), experts) in
        SMALL.into_iter().flat_map(|small| SMALL_EXPERTS.map(|experts| (small, experts)))
    {
        let cases: Vec<Case> =
            (0..=SMALL_BATCHES as u64).map(|b| Case::new((tokens, experts, 8), b)).collect();
        let earlier: Vec<Vec<f64>> =
            cases.iter().map(|case| equilibrium.route(&case.game(), None).prices).collect();
        for prices in ["cold", "warm"] {
            let (mut medians_us, mut slowest_us) = (Vec::new(), Vec::new());
            let mut gap = f64::NEG_INFINITY;
            for _ in 0..=ROUNDS {
                let mut times_us = Vec::new();
                for (case, earlier) in cases[1..].iter().zip(&earlier) {
                    let warm = (prices == "warm").then_some(&earlier[..]);
                    let (play, time_ms) = case.play(clock, &equilibrium, warm);
                    times_us.push(1e3 * time_ms);
                    let certificate = certify(&case.game(), &play.choices, &play.prices);
                    gap = gap.max(certificate.relative_gap);
                }
                medians_us.push(median(&times_us));
                slowest_us.push(times_us.into_iter().fold(0.0, f64::max));
            }
            // The first round warms up.
            println!(
                "| {tokens} | {experts} | {prices} | {}, {} the limit of {limit_us} | {} | {gap:.1e} |",
                spread(&medians_us[1..], 3),
                verdict(median(&medians_us[1..]), limit_us),
                spread(&slowest_us[1..], 3),
            );
        }
    }
}

fn replica_dispatch(clock: &Clock) -> Result<(), Failure> {
    const EXPERTS: usize = 256;
    let shape = EplbShape { replicas: 288, groups: 1, servers: 2, gpus: 32 };
    let mut rng = stream(11, "speed loads");
    let mut draw = |sigma: f64| -> Result<Vec<f64>, Failure> {
        let factors = LogNormal::new(0.0, sigma)?;
        Ok((0..EXPERTS).map(|_| rng.sample(factors)).collect())
    };
    let fresh: Vec<f64> = draw(0.7)?.iter().map(|factor| (1000.0 * factor).round()).collect();
    let stale: Vec<f64> =
        fresh.iter().zip(draw(0.5)?).map(|(load, factor)| (load * factor).round()).collect();
    let placement = eplb(&fresh, shape)?.placement();
    let before = dispatch(&placement, &fresh, None)?;
    println!("\n## Replica dispatch: 288 replicas of {EXPERTS} experts on 32 nodes\n");
    println!(
        "Log-normal loads, σ = 0.7, placed by `eplb`; the other loads are these times log-normal \
         factors, σ = 0.5.\n"
    );
    println!("| loads | µs | relative gap |");
    println!("|---|---:|---:|");
    for (name, loads, warm) in [
        ("those placed for", &fresh, None),
        ("others", &stale, None),
        ("others, from the split of those placed for", &stale, Some(&before)),
    ] {
        let mut medians_us = Vec::new();
        for _ in 0..=ROUNDS {
            let mut times_us = Vec::new();
            for _ in 0..20 * REPEATS {
                let start_ns = clock.now_ns();
                let split = dispatch(&placement, loads, warm);
                times_us.push((clock.now_ns() - start_ns) as f64 / 1e3);
                drop(split?);
            }
            medians_us.push(median(&times_us));
        }
        let split = dispatch(&placement, loads, warm)?;
        let gap = certify_dispatch(&placement, loads, &split)?.relative_gap;
        println!(
            "| {name} | {}, {} the limit of {DISPATCH_LIMIT_US} | {gap:.1e} |",
            spread(&medians_us[1..], 3),
            verdict(median(&medians_us[1..]), DISPATCH_LIMIT_US),
        );
    }
    Ok(())
}

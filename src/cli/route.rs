//! `nashflock route`: plays one game on a score matrix and prints its certificate.

use super::{Failure, Outcome, print, print_json};
use crate::measure::Clock;
use crate::source::matrix::{ScoreMatrix, read_scores, write_assignments};
use agents::game::{
    Certificate, CostSettings, Game, GameError, Play, Router, RouterRegistry, Scores, certify,
};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct RouteArgs {
    /// Affinities, f32 [T, E]: a .npy or .safetensors file
    #[arg(long, value_name = "FILE")]
    scores: PathBuf,
    /// Tensor to read, where a safetensors file holds several
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    /// Experts that a token picks
    #[arg(long, value_name = "K")]
    top_k: usize,
    /// Router
    #[arg(long, value_name = "NAME")]
    router: String,
    /// Congestion cost
    #[arg(long, value_enum, default_value_t = CostName::Quota)]
    cost: CostName,
    /// Cost quota: capacity of an expert in fair shares Tk/E, at least 1
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    capacity_factor: f64,
    /// Cost linear: price of a load of one fair share, in units of affinity
    #[arg(long, value_name = "PRICE", default_value_t = 0.1)]
    price_per_fair_share: f64,
    /// Write the assignment as int32 [T, k]
    #[arg(long, value_name = "OUT.npy")]
    assignments: Option<PathBuf>,
    /// Play so often, each time from a cold start, and report the times
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeat: u32,
    /// Threads [default: the cores of the machine]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum CostName {
    /// Free up to a capacity, then barred
    Quota,
    /// Proportional to the load
    Linear,
}

/// Times of the repeated plays, in ms.
struct TimesMs {
    p50: f64,
    min: f64,
    max: f64,
}

pub(super) fn route(args: &RouteArgs, routers: &RouterRegistry) -> Outcome {
    let router = routers.get(&args.router).ok_or_else(|| {
        let known: Vec<&str> = routers.names().collect();
        Failure::BadInput(format!(
            "--router {}: there is no such router; known are {}",
            args.router,
            known.join(", ")
        ))
    })?;
    let cost = match args.cost {
        CostName::Quota => CostSettings::Quota { capacity_factor: args.capacity_factor },
        CostName::Linear => {
            CostSettings::Linear { price_per_fair_share: args.price_per_fair_share }
        }
    };
    cost.check().map_err(Failure::bad_input)?;
    let ScoreMatrix { values, experts } =
        read_scores(&args.scores, args.tensor.as_deref()).map_err(Failure::bad_input)?;
    let in_file =
        |error: GameError| Failure::bad_input(format!("{}: {error}", args.scores.display()));
    let scores = Scores::new(&values, experts).map_err(in_file)?;
    if args.top_k == 0 || args.top_k > experts {
        return Err(in_file(GameError::TopK { top_k: args.top_k, experts }));
    }
    let cost = cost.build(scores.tokens(), experts, args.top_k);
    let game = Game { scores, top_k: args.top_k, cost: cost.as_ref() };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads.unwrap_or(0) as usize)
        .build()
        .map_err(|error| Failure::Dependency(format!("cannot start threads: {error}")))?;
    let (play, certificate, times) = pool.install(|| {
        let (play, times) = repeat(router.as_ref(), &game, args.repeat);
        let certificate = certify(&game, &play.choices, &play.prices);
        (play, certificate, times)
    });
    if let Some(path) = &args.assignments {
        write_assignments(path, &play.choices).map_err(|error| {
            Failure::Dependency(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    if args.json {
        print_json(&as_json(args, &play, &certificate, &times))
    } else {
        print(&as_table(args, &play, &certificate, &times))
    }
}

fn repeat(router: &dyn Router, game: &Game<'_>, times: u32) -> (Play, TimesMs) {
    let clock = Clock::start();
    let mut time_ms = Vec::with_capacity(times as usize);
    let mut timed = || {
        let start_ns = clock.now_ns();
        let play = router.route(game, None);
        time_ms.push((clock.now_ns() - start_ns) as f64 / 1e6);
        play
    };
    let mut play = timed();
    for _ in 1..times {
        play = timed();
    }
    time_ms.sort_by(f64::total_cmp);
    let (min, max) = (time_ms[0], time_ms[time_ms.len() - 1]);
    (play, TimesMs { p50: time_ms[time_ms.len() / 2], min, max })
}

fn as_json(
    args: &RouteArgs,
    play: &Play,
    certificate: &Certificate,
    times: &TimesMs,
) -> serde_json::Value {
    // JSON has no infinity: an assignment over quota has no finite potential, and the gap is null.
    json!({
        "router": args.router,
        "epsilon_nash": certificate.epsilon_nash,
        "relative_gap": certificate.relative_gap,
        "max_over_mean": certificate.max_over_mean,
        "score": certificate.score,
        "score_loss": certificate.score_loss,
        "potential": certificate.potential,
        "dual_bound": certificate.dual_bound,
        "dropped": certificate.dropped,
        "extra": certificate.extra,
        "passes": play.passes,
        "iterations": play.iterations,
        "tokens": play.choices.tokens(),
        "time_ms": {"p50": times.p50, "min": times.min, "max": times.max},
    })
}

fn as_table(args: &RouteArgs, play: &Play, certificate: &Certificate, times: &TimesMs) -> String {
    format!(
        "router         {}\n\
         ε-Nash         {:.3e}\n\
         relative gap   {:.3e}\n\
         max over mean  {:.4}\n\
         score          {:.4}, {:.3} % below plain top-k\n\
         passes         {} over T × E\n\
         time           {:.3} ms median of {}, {:.3} to {:.3}\n",
        args.router,
        certificate.epsilon_nash,
        certificate.relative_gap,
        certificate.max_over_mean,
        certificate.score,
        certificate.score_loss * 100.0,
        play.passes,
        times.p50,
        args.repeat,
        times.min,
        times.max,
    )
}

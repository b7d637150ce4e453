//! `nashflock route`: plays games on a score matrix and prints their certificates.

use super::{Failure, Outcome, print, print_json};
use crate::measure::Clock;
use crate::source::matrix::{ScoreMatrix, read_scores, write_assignments};
use agents::game::{
    Certificate, Choices, CongestionCost, CostOfGame, CostParameters, Dynamics, Game, GameError,
    GameShape, Information, Play, Registries, RouterRegistry, Scores, SocialReport, certify,
};
use agents::ids::ExpertId;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
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
    /// Router, or several as `a,b,c`: a table with one line each
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required_unless_present = "all")]
    router: Vec<String>,
    /// All routers, one line each
    #[arg(long, conflicts_with = "router")]
    all: bool,
    #[command(flatten)]
    cost: CostArgs,
    #[command(flatten)]
    information: InformationArgs,
    /// Find the social optimum too, and print the price of anarchy
    #[arg(long)]
    social_optimum: bool,
    /// Write the assignment of one router as int32 [T, k]
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

#[derive(Args)]
struct CostArgs {
    /// Congestion cost: quota, linear, polynomial, latency
    #[arg(long, value_name = "NAME", default_value = "quota")]
    cost: String,
    /// Cost quota: capacity of an expert in fair shares Tk/E, at least 1
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    capacity_factor: f64,
    /// Costs linear and polynomial: price of a load of one fair share, in units of affinity
    #[arg(long, value_name = "PRICE", default_value_t = 0.1)]
    price_per_fair_share: f64,
    /// Cost polynomial: power of the load in fair shares
    #[arg(long, value_name = "POWER", default_value_t = 4.0)]
    degree: f64,
    /// Cost latency: service time of a token in ms, one for all experts or one each as `a,b,c`
    #[arg(long, value_name = "MS", value_delimiter = ',', required_if_eq("cost", "latency"))]
    service_ms: Vec<f64>,
    /// Cost latency: time in ms in which a batch is to be served
    #[arg(long, value_name = "MS", required_if_eq("cost", "latency"))]
    window_ms: Option<f64>,
    /// Cost latency: standard deviation of service times over their mean
    #[arg(long, value_name = "RATIO", default_value_t = 1.0)]
    variation: f64,
    /// Cost latency: price of a ms of waiting, in units of affinity
    #[arg(long, value_name = "PRICE", default_value_t = 0.01)]
    price_per_ms: f64,
}

impl CostArgs {
    fn parameters(&self) -> CostParameters {
        CostParameters {
            capacity_factor: self.capacity_factor,
            price_per_fair_share: self.price_per_fair_share,
            degree: self.degree,
            service_ms: self.service_ms.clone(),
            window_ms: self.window_ms.unwrap_or_default(),
            variation: self.variation,
            price_per_ms: self.price_per_ms,
        }
    }
}

#[derive(Args)]
struct InformationArgs {
    /// What a router may know when a batch is routed
    #[arg(long, value_enum, default_value_t = InformationKind::InBatch)]
    information: InformationKind,
    /// Information stale: age of the prices in batches
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batches: u32,
    /// Information partial: dispatchers that share each batch
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    dispatchers: u32,
    /// Play the rows in batches of so many, each a game of its own; the figures are those of the
    /// last whole batch [default: one batch of all rows]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..))]
    batch_tokens: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum InformationKind {
    /// The whole batch; not causal
    InBatch,
    /// Prices of earlier batches and the token itself; causal from batch to batch
    Stale,
    /// A share of the batch for each dispatcher; not causal within a share
    Partial,
}

impl InformationArgs {
    fn get(&self) -> Information {
        match self.information {
            InformationKind::InBatch => Information::InBatch,
            InformationKind::Stale => Information::Stale { batches: self.batches as usize },
            InformationKind::Partial => {
                Information::Partial { dispatchers: self.dispatchers as usize }
            }
        }
    }

    /// Tokens of a batch, where the matrix has `tokens`.
    fn batch_tokens(&self, tokens: usize) -> Result<usize, Failure> {
        let bad = |message: String| Err(Failure::BadInput(message));
        let batch = self.batch_tokens.map_or(tokens, |batch| batch as usize);
        if batch > tokens {
            return bad(format!(
                "--batch-tokens is {batch} but there are {tokens} tokens: choose 1 to {tokens}"
            ));
        }
        let count = tokens / batch;
        match self.get() {
            Information::Stale { batches } if batches >= count => bad(format!(
                "--batches is {batches} but {tokens} tokens make {count} whole batches of {batch}: \
                 no prices would come into force, choose fewer --batches or --batch-tokens"
            )),
            Information::Partial { dispatchers } if dispatchers > batch => bad(format!(
                "--dispatchers is {dispatchers} but a batch has {batch} tokens: choose 1 to {batch}"
            )),
            _ => Ok(batch),
        }
    }
}

/// The games to play: the matrix in batches.
struct Games<'a> {
    scores: Scores<'a>,
    batch_tokens: usize,
    top_k: usize,
    cost: Box<CostOfGame>,
}

/// What one router came to.
struct Played {
    router: String,
    /// The last whole batch.
    play: Play,
    certificate: Certificate,
    /// Where it was asked for; none inside where the game or the play has none.
    social: Option<Option<SocialReport>>,
    /// Every row's choices, the last incomplete batch's too.
    rows: Choices,
    times: TimesMs,
}

/// Times of the repeated plays, in ms.
struct TimesMs {
    p50: f64,
    min: f64,
    max: f64,
}

pub(super) fn route(args: &RouteArgs, registries: &Registries) -> Outcome {
    let named = routers(args, &registries.routers)?;
    let ScoreMatrix { values, experts } =
        read_scores(&args.scores, args.tensor.as_deref()).map_err(Failure::bad_input)?;
    let in_file =
        |error: GameError| Failure::bad_input(format!("{}: {error}", args.scores.display()));
    let scores = Scores::new(&values, experts).map_err(in_file)?;
    let top_k = args.top_k;
    if top_k == 0 || top_k > experts {
        return Err(in_file(GameError::TopK { top_k, experts }));
    }
    let batch_tokens = args.information.batch_tokens(scores.tokens())?;
    let (name, parameters) = (&args.cost.cost, args.cost.parameters());
    let shape = GameShape { tokens: batch_tokens, experts, top_k };
    registries.costs.build(name, &parameters, shape).map_err(Failure::bad_input)?;
    let cost = registries.costs.of_games(name, parameters).expect("built above");
    let games = Games { scores, batch_tokens, top_k, cost };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads.unwrap_or(0) as usize)
        .build()
        .map_err(|error| Failure::Dependency(format!("cannot start threads: {error}")))?;
    let play = |router| pool.install(|| play(router, &games, args, &registries.routers));
    let played: Vec<Played> = named.into_iter().map(play).collect();
    if let (Some(path), [one]) = (&args.assignments, &played[..]) {
        write_assignments(path, &one.rows).map_err(|error| {
            Failure::Dependency(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    match (&played[..], args.json) {
        ([one], true) if !args.all => print_json(&as_json(one)),
        ([one], false) if !args.all => print(&as_table(one, args.repeat)),
        (all, true) => print_json(&json!({"routers": all.iter().map(as_json).collect::<Vec<_>>()})),
        (all, false) => print(&as_lines(all)),
    }
}

/// The routers that the arguments name.
fn routers(args: &RouteArgs, registry: &RouterRegistry) -> Result<Vec<String>, Failure> {
    let known: Vec<&str> = registry.names().collect();
    let named: Vec<String> = if args.all {
        known.iter().map(|name| (*name).to_owned()).collect()
    } else {
        args.router.clone()
    };
    for (place, name) in named.iter().enumerate() {
        if !known.contains(&name.as_str()) {
            return Err(Failure::BadInput(format!(
                "--router {name}: there is no such router; known are {}",
                known.join(", ")
            )));
        }
        if named[..place].contains(name) {
            return Err(Failure::BadInput(format!("--router lists {name} twice: name it once")));
        }
    }
    if args.assignments.is_some() && named.len() != 1 {
        return Err(Failure::BadInput(format!(
            "--assignments takes those of one router, not of {}: name one with --router",
            named.len()
        )));
    }
    Ok(named)
}

/// One repetition.
struct Replay<'a> {
    /// The last whole batch, and what was played there in how many ms.
    scores: Scores<'a>,
    play: Play,
    play_ms: f64,
    /// The choices of every row, where there are several batches.
    rows: Vec<Vec<ExpertId>>,
}

impl<'a> Games<'a> {
    /// Plays every batch in turn, from a cold start.
    fn replay(&self, mut dynamics: Dynamics, clock: &Clock) -> Replay<'a> {
        let experts = self.scores.experts();
        let one_batch = self.batch_tokens == self.scores.tokens();
        let (mut rows, mut last) = (Vec::new(), None);
        for values in self.scores.values().chunks(self.batch_tokens * experts) {
            let scores = Scores::new(values, experts).expect("whole rows of checked scores");
            let cost = self.cost_of(&scores);
            let game = Game { scores, top_k: self.top_k, cost: cost.as_ref() };
            let start_ns = clock.now_ns();
            let play = dynamics.play(&game);
            let play_ms = (clock.now_ns() - start_ns) as f64 / 1e6;
            if !one_batch {
                rows.extend((0..scores.tokens()).map(|token| play.choices.row(token).to_vec()));
            }
            if scores.tokens() == self.batch_tokens {
                last = Some((scores, play, play_ms));
            }
        }
        let (scores, play, play_ms) = last.expect("the first batch is whole");
        Replay { scores, play, play_ms, rows }
    }

    fn cost_of(&self, scores: &Scores<'_>) -> Box<dyn CongestionCost> {
        let (tokens, experts) = (scores.tokens(), scores.experts());
        (self.cost)(GameShape { tokens, experts, top_k: self.top_k })
    }
}

fn play(router: String, games: &Games<'_>, args: &RouteArgs, routers: &RouterRegistry) -> Played {
    let clock = Clock::start();
    let mut time_ms = Vec::with_capacity(args.repeat as usize);
    let mut timed = || {
        let built = routers.get(&router).expect("its name was checked");
        let replay = games.replay(Dynamics::new(built, args.information.get()), &clock);
        time_ms.push(replay.play_ms);
        replay
    };
    let mut replay = timed();
    for _ in 1..args.repeat {
        replay = timed();
    }
    time_ms.sort_by(f64::total_cmp);
    let (min, max) = (time_ms[0], time_ms[time_ms.len() - 1]);
    let times = TimesMs { p50: time_ms[time_ms.len() / 2], min, max };

    let Replay { scores, play, rows, .. } = replay;
    let cost = games.cost_of(&scores);
    let game = Game { scores, top_k: games.top_k, cost: cost.as_ref() };
    let certificate = certify(&game, &play.choices, &play.prices);
    let social = || SocialReport::new(&game, &play.choices, &certificate);
    let social = args.social_optimum.then(social);
    let rows = if rows.is_empty() { play.choices.clone() } else { Choices::ragged(&rows) };
    Played { router, play, certificate, social, rows, times }
}

fn as_json(played: &Played) -> Value {
    let Played { router, play, certificate, social, times, .. } = played;
    // JSON has no infinity: an assignment over quota has no finite potential, and the gap is null.
    let mut printed = json!({
        "router": router,
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
    });
    if let Some(social) = social {
        printed["social"] = json!({
            "cost": social.map(|social| social.cost),
            "optimum": social.map(|social| social.optimum),
            "optimum_bound": social.map(|social| social.optimum_bound),
            "price_of_anarchy": social.and_then(|social| social.price_of_anarchy()),
        });
    }
    printed
}

fn as_table(played: &Played, repeat: u32) -> String {
    let Played { router, play, certificate, social, times, .. } = played;
    let mut table = format!(
        "router         {router}\n\
         ε-Nash         {:.3e}\n\
         relative gap   {:.3e}\n\
         max over mean  {:.4}\n\
         score          {:.4}, {:.3} % below plain top-k\n\
         pairs          {} dropped, {} extra\n\
         passes         {} over T × E\n\
         time           {:.3} ms median of {repeat}, {:.3} to {:.3}\n",
        certificate.epsilon_nash,
        certificate.relative_gap,
        certificate.max_over_mean,
        certificate.score,
        certificate.score_loss * 100.0,
        certificate.dropped,
        certificate.extra,
        play.passes,
        times.p50,
        times.min,
        times.max,
    );
    match social {
        None => {}
        Some(None) => {
            table +=
                "social cost    no optimum: a token has not k experts, or the cost is not convex\n"
        }
        Some(Some(social)) => {
            let figure =
                |figure: Option<f64>| figure.map_or("unknown".into(), |f| format!("{f:.4}"));
            let ratio = figure(social.price_of_anarchy());
            table += &format!(
                "social cost    {:.4}, {:.4} at the social optimum, price of anarchy {ratio}\n",
                social.cost, social.optimum
            );
        }
    }
    table
}

/// One line a router. Plays with dropped or extra pairs are certified in the game that allows them,
/// so these stand beside the gap.
fn as_lines(all: &[Played]) -> String {
    let name = |played: &Played| played.router.chars().count();
    let width = all.iter().map(name).max().unwrap_or(0).max("router".len());
    let with_social = all.iter().any(|played| played.social.is_some());
    let mut lines = format!(
        "{:width$}  {:>9}  {:>12}  {:>13}  {:>12}  {:>7}  {:>7}  {:>6}  {:>10}",
        "router",
        "ε-Nash",
        "relative gap",
        "max over mean",
        "score loss %",
        "dropped",
        "extra",
        "passes",
        "time ms"
    );
    lines += if with_social { "  price of anarchy\n" } else { "\n" };
    for Played { router, play, certificate, social, times, .. } in all {
        lines += &format!(
            "{router:width$}  {:>9.3e}  {:>12.3e}  {:>13.4}  {:>12.3}  {:>7}  {:>7}  {:>6}  {:>10.3}",
            certificate.epsilon_nash,
            certificate.relative_gap,
            certificate.max_over_mean,
            certificate.score_loss * 100.0,
            certificate.dropped,
            certificate.extra,
            play.passes,
            times.p50,
        );
        let ratio = social.flatten().and_then(|social| social.price_of_anarchy());
        lines += &match (with_social, ratio) {
            (false, _) => "\n".to_owned(),
            (true, None) => format!("  {:>16}\n", "unknown"),
            (true, Some(ratio)) => format!("  {ratio:>16.4}\n"),
        };
    }
    lines
}

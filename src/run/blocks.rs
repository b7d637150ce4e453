//! Runs whose requests are blocks of tokens at many front ends: no expert is computed.

use super::demand::Arrivals;
use super::files::RunFiles;
use super::goals::goals;
use super::materials::files_of;
use super::memory::{self, MemoryExceeded};
use super::uplinks;
use super::virtual_nodes::{hardware, whole};
use super::widths;
use super::{CutRun, PlanError, RunEnd, RunSettings};
use crate::measure::{Clock, LatencyQuantiles};
use crate::results::{
    BlockFigures, Convergence, Hashing, JointFigures, JointPlayFigures, LimitFigure, NodeMemory,
    Outcomes, RunDir, StretchFigures, Summary, Throughput, TokenFigures, VirtualTime,
};
use crate::scenario::Scenario;
use crate::scenario::file::Source;
use agents::cluster::joint::{JointCertificate, JointPlay};
use agents::cluster::limits::largest_random_load;
use agents::cluster::{
    self as virtual_cluster, Copies, Popularity, Pricing, ReplicaChoice, Report, Settings, Tally,
    TokenCounts,
};
use agents::queueing::Times;

const MS: f64 = 1e6;

/// Simulates a scenario of blocks and writes its results.
///
/// # Errors
/// What is wrong with the input: nothing was started then.
pub(super) fn run(
    scenario: &Scenario,
    settings: &RunSettings<'_>,
    clock: &Clock,
) -> Result<RunEnd, PlanError> {
    settings.progress.phase("planning arrivals");
    let cluster = cluster(scenario)?;
    let memory = memory(scenario, &cluster)?;
    let path = settings
        .out
        .clone()
        .unwrap_or_else(|| RunDir::default_path(&scenario.name, scenario.seed, clock.started_at()));
    let record = RunFiles::open(RunDir::create(&path)?, scenario, settings, clock)?;
    play(scenario, settings, (&cluster, memory), record, clock)
}

/// Starts one over that was cut: there are no checkpoints of it.
///
/// # Errors
/// What is wrong with the input: then the directory is left as it was.
pub(super) fn resume(
    scenario: &Scenario,
    cut: CutRun,
    settings: &RunSettings<'_>,
    clock: &Clock,
) -> Result<RunEnd, PlanError> {
    settings.progress.phase("planning arrivals");
    let cluster = cluster(scenario)?;
    let memory = memory(scenario, &cluster)?;
    let resumption = cut.resumption(None, settings.command.clone(), clock);
    let (record, _) = RunFiles::reopen(cut, scenario, resumption, clock);
    play(scenario, settings, (&cluster, memory), record, clock)
}

fn play(
    scenario: &Scenario,
    settings: &RunSettings<'_>,
    (cluster, memory): (&Settings, NodeMemory),
    mut record: RunFiles,
    clock: &Clock,
) -> Result<RunEnd, PlanError> {
    record.hashing = Some(Hashing::start(files_of(scenario)));
    record.begins()?;
    settings.progress.phase("simulating");
    let machine = Clock::start();
    let report = virtual_cluster::simulate(cluster);
    let machine_ns = machine.now_ns();
    settings.progress.phase("certifying");
    let joint = report.certify(cluster);
    clock.advance_to_ns(report.end_ns);
    let summary = &mut record.summary;
    fill(summary, scenario, cluster, (&report, &joint), (memory, machine_ns));
    Ok(record.end(None, None, clock))
}

/// What its nodes hold, if they can.
fn memory(scenario: &Scenario, cluster: &Settings) -> Result<NodeMemory, MemoryExceeded> {
    let resident = cluster.copies.resident_bytes(cluster.nodes, |e| cluster.expert_bytes.of(e));
    memory::of_nodes(&scenario.virtual_nodes, &resident)
}

/// The cluster that a scenario describes.
fn cluster(scenario: &Scenario) -> Result<Settings, PlanError> {
    let (with, load) = (&scenario.virtual_nodes, &scenario.load);
    let blocks = &with.blocks;
    let Source::Synthetic { experts, skew, width, expert_hidden, .. } = scenario.source else {
        unreachable!("the scenario's checks demand a synthetic source")
    };
    let demand = Arrivals::of(scenario, None)?;
    let times = demand.of_scenario(scenario).intended_ns;
    let end_ns = times.last().copied().unwrap_or(0);
    let popularity = Popularity::skewed(experts as usize, skew, scenario.seed);
    let nodes = scenario.nodes.count;
    let copies = Copies::by_share(popularity.shares(), nodes, blocks.expert_slots)?;
    let weights = 3.0 * f64::from(width) * f64::from(expert_hidden);
    let expert_bytes = widths::expert_bytes(blocks, popularity.shares(), weights);
    let degree = if scenario.game.cost == "linear" { 1.0 } else { scenario.game.degree };
    let pricing = blocks.prices.then(|| Pricing {
        period_ns: whole(blocks.period_ms * MS).max(1),
        delay_ns: whole(blocks.delay_ms * MS),
        fan_out: blocks.fan_out,
        step: blocks.step,
        price_per_fair_share: scenario.game.price_per_fair_share,
        degree,
    });
    let whole_periods = pricing.as_ref().map_or(0, |pricing| end_ns / pricing.period_ns);
    let first = whole_periods.saturating_sub(u64::from(blocks.certified));
    Ok(Settings {
        seed: scenario.seed,
        nodes,
        fronts: blocks.front_ends,
        hardware: hardware(with, nodes, scenario.seed, end_ns),
        copies,
        popularity,
        top_k: scenario.game.top_k.unwrap_or(1) as usize,
        candidates: blocks.candidates as usize,
        block_tokens: load.tokens_per_request,
        blocks: times.len() as u64,
        arrivals: virtual_cluster::Arrivals::Planned(times.into()),
        row_bytes: u64::from(width) * size_of::<f32>() as u64,
        header_bytes: 128,
        expert_bytes,
        choice: if blocks.two_choices { ReplicaChoice::TwoChoices } else { ReplicaChoice::Random },
        racks_max: (blocks.racks_max > 0).then_some(blocks.racks_max),
        own_rack: blocks.own_rack,
        pricing,
        patience_ns: blocks.patience_ms.map(|ms| whole(ms * MS)),
        again_max: blocks.again_max,
        aside_ns: whole(blocks.aside_ms * MS),
        late_ns: u64::from(load.deadline_ms) * 1_000_000,
        open_max: blocks.open_max,
        warm_up_ns: whole(blocks.warm_up_ms * MS),
        stretch_ns: whole(blocks.stretch_ms * MS).max(1),
        certified: (first..whole_periods).collect(),
        partitions: scenario.compute.threads,
    })
}

fn fill(
    summary: &mut Summary,
    scenario: &Scenario,
    cluster: &Settings,
    (report, joint): (&Report, &[(u64, JointCertificate)]),
    (memory, machine_ns): (NodeMemory, u64),
) {
    let tally = &report.tally;
    summary.state_hash = blake3::hash(report.fingerprint()).to_hex().to_string();
    summary.latency_ns = quantiles(&tally.latency);
    let blocks = |tokens: u64| tokens / u64::from(cluster.block_tokens);
    let TokenCounts { ok, late, lost, shed } = tally.tokens;
    summary.outcomes = Outcomes {
        ok: blocks(ok),
        late: blocks(late),
        error: blocks(lost),
        shed: blocks(shed),
        ..Outcomes::default()
    };
    let seconds = report.end_ns.max(1) as f64 / 1e9;
    let pairs: u64 = report.nodes.iter().map(|node| node.pairs).sum();
    summary.throughput = Throughput {
        tokens_per_s: Some((ok + late) as f64 / seconds),
        goodput_tokens_per_s: Some(ok as f64 / seconds),
        offered_tokens_per_s: Some(
            scenario.load.rate_per_s * f64::from(scenario.load.tokens_per_request),
        ),
        token_experts_per_s: Some(pairs as f64 / seconds),
        bytes_per_s: None,
        elapsed_ns: report.end_ns,
    };
    let last = joint.last().map(|(_, joint)| joint);
    summary.convergence = Convergence {
        router: scenario.game.router.clone(),
        rounds: joint.len() as u64,
        epsilon_nash: last.map(|joint| joint.played.epsilon_nash),
        relative_gap: last.map(|joint| joint.played.relative_gap),
        max_over_mean: last.map(|joint| joint.played.max_over_mean),
        max_over_mean_worst: joint
            .iter()
            .map(|(_, joint)| joint.played.max_over_mean)
            .max_by(f64::total_cmp),
        max_over_mean_top_k: last.map(|joint| joint.plain.max_over_mean),
        converged: scenario.goals.relative_gap_max.is_some_and(|most| {
            let within = |joint: &JointCertificate| joint.played.relative_gap <= most;
            !joint.is_empty() && joint.iter().all(|(_, joint)| within(joint))
        }),
        ..Convergence::default()
    };
    for (key, reason) in [
        ("convergence.score_loss", "it is under virtual_time.blocks.joint"),
        ("convergence.kept_share_min", "it is not measured of blocks"),
        ("throughput.bytes_per_s", "it is not measured of blocks"),
    ] {
        summary.null_reasons.insert(key.to_owned(), reason.to_owned());
    }
    let figures = figures(cluster, (report, joint), machine_ns);
    let nodes = u64::from(cluster.nodes);
    let links: Vec<_> = report.links.links().copied().collect();
    let stretches = (report.links.stretches(), cluster.stretch_ns);
    let network = &cluster.hardware.network;
    let uplinks = uplinks::figures(network, cluster.nodes, &links, report.end_ns, stretches);
    summary.virtual_time = Some(VirtualTime {
        nodes,
        span_ns: report.end_ns,
        blocks: Some(figures),
        memory: Some(memory),
        uplinks,
    });
    summary.goals = goals(&scenario.goals, summary);
}

fn figures(
    cluster: &Settings,
    (report, joint): (&Report, &[(u64, JointCertificate)]),
    machine_ns: u64,
) -> BlockFigures {
    let tally = &report.tally;
    let [a, b] = report.trace;
    let stretches = (0..).zip(&tally.stretches).map(|(at, of): (u64, _)| StretchFigures {
        from_ns: at * cluster.stretch_ns,
        tokens: tokens(of.tokens.total(), of.tokens),
        latency_mean_ns: (of.answered > 0).then(|| of.latency_sum_ns as f64 / of.answered as f64),
        latency_max_ns: of.latency_max_ns,
    });
    BlockFigures {
        front_ends: cluster.fronts.into(),
        events: report.events,
        trace_hash: format!("{a:016x}{b:016x}"),
        machine_ns,
        bytes: report.bytes,
        tokens: tokens(tally.arrived, tally.tokens),
        questions: tally.questions,
        between_racks: tally.between_racks,
        asked_again: tally.asked_again,
        late_answers: tally.late_answers,
        broken: tally.broken,
        uncertain: tally.uncertain,
        displaced: tally.displaced,
        widths: widths::figures(cluster),
        limits: limits(cluster, report, tally),
        joint: joint.iter().map(joint_figures).collect(),
        stretches: stretches.collect(),
    }
}

fn tokens(arrived: u64, TokenCounts { ok, late, lost, shed }: TokenCounts) -> TokenFigures {
    TokenFigures { arrived, ok, late, lost, shed }
}

fn joint_figures((period, of): &(u64, JointCertificate)) -> JointFigures {
    let play = |of: &JointPlay| JointPlayFigures {
        epsilon_nash: of.epsilon_nash,
        regret_mean: of.regret_mean,
        relative_gap: of.relative_gap,
        max_over_mean: of.max_over_mean,
        score_loss: of.score_loss,
    };
    JointFigures {
        period: *period,
        tokens: of.tokens,
        dual_bound: of.dual_bound,
        played: play(&of.played),
        plain: play(&of.plain),
        informed: play(&of.informed),
    }
}

/// Measured figures beside what theory says of them.
fn limits(cluster: &Settings, report: &Report, tally: &Tally) -> Vec<LimitFigure> {
    let figure = |name: &str, measured: Option<f64>, limit: Option<f64>, says: &str| LimitFigure {
        name: name.to_owned(),
        measured,
        limit,
        says: says.to_owned(),
    };
    let (busy, busiest) = report.busy();
    let messages: u64 = report.nodes.iter().map(|node| u64::from(node.messages)).sum();
    let busy_ns: u64 = report.nodes.iter().map(|node| node.busy_ns).sum();
    let service_ns = busy_ns as f64 / messages.max(1) as f64;
    let spread = cluster.hardware.service.noise.squared_variation();
    let wait = (busy < 1.0).then(|| busy / (1.0 - busy) * f64::midpoint(1.0, spread) * service_ns);
    let legs = |q: f64| {
        // The quantile of one leg at which k independent ones reach q.
        let share = q.powf(1.0 / cluster.top_k as f64);
        tally.legs.quantile_ns(share).map(|ns| ns as f64)
    };
    let p99 = tally.latency.quantile_ns(0.99).map(|ns| ns as f64);
    let seconds = report.end_ns.max(1) as f64 / 1e9;
    let rate = (tally.tokens.ok + tally.tokens.late) as f64 / seconds;
    let most = report.nodes.iter().map(|node| node.messages).max().unwrap_or(0);
    let nodes = f64::from(cluster.nodes);
    let bytes_per_s = cluster.hardware.network.bytes_per_ns * 1e9;
    let wire =
        f64::from(cluster.fronts) * bytes_per_s / (cluster.top_k as f64 * cluster.row_bytes as f64);
    let links = report.links.links().map(|link| link.busy_ns).max().unwrap_or(0);
    let busiest_link = links as f64 / report.end_ns.max(1) as f64;
    let shared = (busiest_link > 0.0).then(|| {
        figure(
            "tokens a second, uplinks",
            Some(rate),
            Some(rate / busiest_link),
            "at which the busiest link of a rack or pod would never rest",
        )
    });
    let mut figures = vec![
        figure(
            "wait at a node, ns",
            Some(report.wait_mean_ns()),
            wait,
            "M/G/1 were all nodes equally busy: below it only if arrivals are evener than at random",
        ),
        figure(
            "request p99, ns",
            p99,
            legs(0.99),
            "F(t)^k of the messages' own times: above it only if those of a request slow each other",
        ),
        figure(
            "messages of the busiest node",
            Some(f64::from(most)),
            Some(largest_random_load(messages as f64, nodes)),
            "were they spread at random: popularity and placement make up what is above",
        ),
        figure(
            "tokens a second",
            Some(rate),
            (busiest > 0.0).then(|| rate / busiest),
            "at which the busiest node, with the hottest experts, would never rest",
        ),
        figure(
            "tokens a second, wire",
            Some(rate),
            Some(wire),
            "at which the front ends' ports would never rest: k rows a token each way",
        ),
    ];
    figures.extend(shared);
    figures
}

/// Quantiles of times in buckets that are 3 % wide, each rounded up.
fn quantiles(times: &Times) -> LatencyQuantiles {
    LatencyQuantiles {
        count: times.count(),
        p50: times.quantile_ns(0.5),
        p90: times.quantile_ns(0.9),
        p99: times.quantile_ns(0.99),
        p999: times.quantile_ns(0.999),
        max: times.quantile_ns(1.0),
        overflow: 0,
    }
}

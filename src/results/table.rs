//! The short table at the end of a run.

use std::fmt::Write;

use super::format::{bytes, bytes_per_s, count, duration, mean_duration, nats, number, percent};
use super::summary::{FaultFigures, GeneratorLag, MembershipFigures, Quality, Status, Summary};
use super::{BlockFigures, UplinkFigures};

/// At most 25 lines of plain text: what was measured, the figure, and what to hold it against.
#[must_use]
pub fn summary_table(summary: &Summary) -> String {
    let mut rows: Vec<[String; 3]> = Vec::new();
    let mut row = |name: &str, figure: String, control: String| {
        rows.push([name.to_owned(), figure, control]);
    };
    let play = &summary.convergence;
    let found = if play.converged { "converged" } else { "did not converge" };
    row("router", play.router.clone(), format!("{found}, {} games", count(play.rounds)));
    row("ε-Nash", number(play.epsilon_nash), "0 at equilibrium".to_owned());
    row("gap to optimum", percent(play.relative_gap), "certified upper bound".to_owned());
    row(
        "max over mean",
        number(play.max_over_mean),
        format!("{} by plain top-k, 1 is even", number(play.max_over_mean_top_k)),
    );
    row("score loss", percent(play.score_loss), "0 % by plain top-k".to_owned());
    if let Some(social) = &play.social {
        let control = format!(
            "{} at the social optimum, price of anarchy {}",
            number(social.optimum),
            number(social.price_of_anarchy)
        );
        row("social cost", number(social.cost), control);
    }
    if let Some(flock) = &summary.flock {
        row(
            "flock alone",
            number(flock.max_over_mean_last),
            format!(
                "max over mean, last quarter; {} in the first",
                number(flock.max_over_mean_first)
            ),
        );
    }
    if let Some(motion) = &summary.motion {
        row(
            "rows turned",
            format!("{} rad", number(Some(motion.turned_mean_rad))),
            format!("by {}; {} of {} moves undone", motion.rule, motion.undone, motion.moves),
        );
    }
    if let Some(quality) = &summary.quality {
        row("loss", format!("{} nats", nats(quality.loss)), loss_controls(quality));
        if let Some(routed) = quality.loss_f32_routed {
            let of_routing = format!("{} f32 under this router", nats(Some(routed)));
            let uniform = quality.loss_top_k_uniform_bits.map_or_else(String::new, |loss| {
                format!(", {} uniform bits under top-k", nats(Some(loss)))
            });
            row("", String::new(), of_routing + &uniform);
        }
    }
    let memory = &summary.memory;
    if memory.expert_bytes_f32 > 0 {
        row(
            "expert bytes",
            bytes(memory.expert_bytes),
            format!(
                "{} in {}: {} saved, {} bits a weight",
                bytes(memory.expert_bytes_f32),
                memory.base_type,
                percent(memory.saving),
                number(memory.bits_per_weight)
            ),
        );
    }
    if let Some(precision) = &summary.precision {
        let uniform = precision.uniform_cost.map_or_else(String::new, |uniform| {
            format!(", {} uniform bits", number(Some(uniform)))
        });
        let text = format!(
            "by {}: {} above exact, {} at least{uniform}",
            precision.allocator,
            percent(precision.gap_to_exact),
            number(Some(precision.dual_bound))
        );
        row("bits cost", number(Some(precision.cost)), text);
    }
    if let Some(moved) = &summary.reallocation {
        let exact = moved.cost_exact.map_or_else(String::new, |cost| {
            format!(", {} by one that sees all nodes", number(Some(cost)))
        });
        let text = format!(
            "{} changed, cost {} where {} had they stayed{exact}",
            bytes(moved.bytes_moved),
            number(moved.cost),
            number(moved.cost_kept)
        );
        row("widths moved", count(moved.moves), text);
        if let Some(quality) = summary.quality.as_ref().filter(|q| q.output_error.is_some()) {
            let text = format!(
                "{} had widths stayed; loss {} nats then",
                percent(quality.output_error_widths_kept),
                nats(quality.loss_widths_kept)
            );
            row("output error", percent(quality.output_error), text);
        }
    }
    if let Some(pruning) = &summary.pruning {
        let quality = summary.quality.as_ref();
        let losses = quality.filter(|quality| quality.loss_f32_pruned.is_some()).map(|quality| {
            let by_frequency = quality.loss_f32_pruned_by_frequency;
            let by_frequency = by_frequency.map_or_else(String::new, |loss| {
                format!(", {} had frequency chosen", nats(Some(loss)))
            });
            format!(": {} f32 under top-k{by_frequency}", nats(quality.loss_f32_pruned))
        });
        let (of, by) = (count(pruning.experts), &pruning.by);
        let text = format!("of {of} experts by {by}{}", losses.unwrap_or_default());
        row("pruned", count(pruning.pruned), text);
    }
    if let Some(of) = &summary.virtual_time {
        let span = duration(Some(of.span_ns));
        let text = format!("{} virtual nodes: times and rates below are theirs", count(of.nodes));
        row("virtual time", span, text);
        if let Some(blocks) = &of.blocks {
            block_rows(blocks, &mut row);
        }
        if let Some(memory) = &of.memory {
            let limit = memory.memory_bytes.map_or_else(|| "no limit".to_owned(), bytes);
            let text = format!(
                "at node {}, the fullest, of {limit}; mean {}, all nodes {}",
                memory.fullest,
                bytes(memory.resident_bytes / of.nodes.max(1)),
                bytes(memory.resident_bytes)
            );
            row("node memory", bytes(memory.resident_bytes_max), text);
        }
        uplink_rows(&of.uplinks, &mut row);
    }
    let rate = &summary.throughput;
    row(
        "throughput",
        format!("{} tokens/s", number(rate.tokens_per_s)),
        format!(
            "{} offered, {} token-experts/s, {} of payload",
            number(rate.offered_tokens_per_s),
            number(rate.token_experts_per_s),
            bytes_per_s(rate.bytes_per_s)
        ),
    );
    let latency = &summary.latency_ns;
    row(
        "latency p50",
        duration(latency.p50),
        format!("p90 {}, {} requests", duration(latency.p90), count(latency.count)),
    );
    row("latency p99", duration(latency.p99), format!("max {}", duration(latency.max)));
    let few = if (1..1_000).contains(&latency.count) {
        "the maximum: fewer than 1 000 requests"
    } else {
        ""
    };
    row("latency p99.9", duration(latency.p999), few.to_owned());
    if let (Some(ttft), Some(tpot), Some(of)) =
        (&summary.ttft_ns, &summary.tpot_ns, &summary.generation)
    {
        let cut = if of.cut_requests > 0 {
            format!(", {} requests cut to {} tokens", count(of.cut_requests), count(of.context))
        } else {
            String::new()
        };
        row("first token p50", duration(ttft.p50), format!("p99 {}{cut}", duration(ttft.p99)));
        let steps = format!(
            "p99 {}; a step takes {}, {} by the virtual clock",
            duration(tpot.p99),
            duration(of.step_ns.p50),
            duration(of.virtual_step_ns)
        );
        row("token p50", duration(tpot.p50), steps);
    }
    if let Some(lag) = summary.generator_lag_ns.as_ref().filter(|lag| lag.lagged) {
        row("generator lag", duration(lag.p99), lag_text(lag));
    }
    let ended: Vec<String> = summary
        .outcomes
        .rows()
        .iter()
        .filter(|(name, count)| *name != "ok" && *count > 0)
        .map(|(name, number)| format!("{} {name}", count(*number)))
        .collect();
    let of = format!("of {}", count(summary.outcomes.total()));
    row(
        "requests ok",
        count(summary.outcomes.ok),
        std::iter::once(of).chain(ended).collect::<Vec<_>>().join(", "),
    );
    if let Some(resumed) = &summary.resumed {
        let gap = duration(Some(resumed.gap_ns));
        let across = count(resumed.requests_across);
        let text = format!("times; {gap} are in no latency, {across} requests lay across");
        row("resumed", count(resumed.count), text);
    }
    if let Some(placement) = summary.placement.as_ref().filter(|placement| placement.is_chosen()) {
        let served = &placement.served;
        row(
            "node load",
            number(served.max_over_mean),
            format!(
                "max over mean by {}; {} round robin, {} split evenly, at least {} by any",
                placement.name,
                number(served.max_over_mean_round_robin),
                number(served.max_over_mean_even_split),
                number(served.lower_bound)
            ),
        );
    }
    if let Some(moved) = &summary.migration {
        let eplb = moved.bytes_eplb.map_or_else(String::new, |sent| {
            format!("; {} at {} by fresh EPLB plans", number(moved.max_over_mean_eplb), bytes(sent))
        });
        row(
            "copies moved",
            count(moved.copies),
            format!(
                "{} by {}: node load {}, {} had none moved{eplb}",
                bytes(moved.bytes_moved),
                moved.policy,
                number(moved.max_over_mean),
                number(moved.max_over_mean_frozen)
            ),
        );
    }
    if !summary.nodes.is_empty() {
        let alive = summary.nodes.iter().filter(|node| node.alive).count();
        row("nodes alive", alive.to_string(), format!("of {}", summary.nodes.len()));
    }
    if let Some(MembershipFigures { joined, left, expired, dropped, .. }) = &summary.membership {
        row(
            "workers joined",
            joined.to_string(),
            format!("{left} left, {expired} leases ran out, {dropped} were dropped"),
        );
    }
    if let Some(faults) = summary.faults.as_ref().filter(|faults| **faults != calm(faults)) {
        row(
            "rerouted pairs",
            faults.rerouted_pairs.to_string(),
            format!(
                "{} hedges, {} of them won, {} of all pairs; slow nodes set aside {} times",
                faults.hedges,
                faults.hedges_won,
                percent(faults.hedged_share),
                faults.set_aside
            ),
        );
    }
    aligned(summary, &rows)
}

/// What a lag that is too large means.
pub(super) fn lag_text(lag: &GeneratorLag) -> String {
    format!(
        "p99 of batches, max {}: above {}, 1 % of the median latency, so latencies are the generator's too",
        duration(lag.max),
        duration(lag.p99_limit)
    )
}

/// The figures of a run of as many pairs without faults.
fn calm(faults: &FaultFigures) -> FaultFigures {
    FaultFigures {
        hedged_share: faults.hedged_share,
        spot_checks: faults.spot_checks,
        spot_checks_skipped: faults.spot_checks_skipped,
        ..FaultFigures::default()
    }
}

fn loss_controls(quality: &Quality) -> String {
    let mut text = format!("{} f32, {} ln V", nats(quality.loss_f32), nats(quality.loss_uniform));
    if quality.loss_top_k.is_some() {
        write!(text, ", {} plain top-k", nats(quality.loss_top_k))
            .expect("a string takes any text");
    }
    text
}

/// Goals listed before the rest of the lines is summed up.
const GOALS_SHOWN: usize = 3;

fn aligned(summary: &Summary, rows: &[[String; 3]]) -> String {
    let status = match summary.status {
        Status::Complete => "complete",
        Status::Interrupted => "interrupted",
        Status::Failed => "failed",
    };
    let mut text = format!("{}  seed {}  {status}", summary.scenario, summary.seed);
    if let Some(detail) = &summary.status_detail {
        write!(text, ": {}", detail.replace('\n', " ")).expect("a string takes any text");
    }
    text.push('\n');
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let (names, figures) = (width(0).unwrap_or(0), width(1).unwrap_or(0));
    for [name, figure, control] in rows {
        let line = format!("  {name:<names$}  {figure:>figures$}  {control}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    for goal in summary.goals.iter().take(GOALS_SHOWN) {
        let met = if goal.met { "met" } else { "MISSED" };
        writeln!(
            text,
            "  goal {}: {} against {}: {met}",
            goal.name,
            number(goal.measured),
            number(Some(goal.limit))
        )
        .expect("a string takes any text");
    }
    let rest = summary.goals.iter().skip(GOALS_SHOWN);
    let missed = rest.clone().filter(|goal| !goal.met).count();
    if rest.len() > 0 {
        writeln!(text, "  and {} more goals, {missed} missed", rest.len())
            .expect("a string takes any text");
    }
    writeln!(text, "  state {}", summary.state_hash).expect("a string takes any text");
    text
}

/// What blocks of tokens at many front ends came to.
fn uplink_rows(uplinks: &[UplinkFigures], row: &mut impl FnMut(&str, String, String)) {
    for of in uplinks {
        let text = format!(
            "of the time, {} the busiest, {} to 1; a message waits {}; {}",
            percent(Some(of.busy_max)),
            number(Some(of.oversubscription)),
            mean_duration(of.wait_mean_ns),
            bytes(of.bytes)
        );
        row(&format!("{} links, {}", of.level, of.direction), percent(Some(of.busy_mean)), text);
    }
}

fn block_rows(blocks: &BlockFigures, row: &mut impl FnMut(&str, String, String)) {
    let seconds = blocks.machine_ns.max(1) as f64 / 1e9;
    let text = format!(
        "{} events in {} of this machine, {} of memory",
        count(blocks.events),
        duration(Some(blocks.machine_ns)),
        bytes(blocks.bytes)
    );
    let rate = format!("{} a second", number(Some(blocks.events as f64 / seconds)));
    row("events", rate, text);
    let tokens = &blocks.tokens;
    let text = format!(
        "of {}: {} late, {} lost, {} shed",
        count(tokens.arrived),
        count(tokens.late),
        count(tokens.lost),
        count(tokens.shed)
    );
    row("tokens ok", count(tokens.ok), text);
    let text = format!(
        "{} between racks, {} asked anew, {} answers too late",
        count(blocks.between_racks),
        count(blocks.asked_again),
        count(blocks.late_answers)
    );
    row("messages", count(blocks.questions), text);
    for of in &blocks.widths {
        let text = format!(
            "experts, {} copies of {}; {} of tokens want one most, a message for one takes {}",
            count(of.copies),
            bytes(of.resident_bytes),
            percent(Some(of.popularity)),
            mean_duration(Some(of.service_ns))
        );
        row(&format!("{} bits", of.bits), count(of.experts), text);
    }
    if let Some(joint) = blocks.joint.last() {
        let of = |gap: f64| percent(Some(gap));
        let text = format!(
            "{} by plain top-k, {} by who knows all; {} front ends",
            of(joint.plain.relative_gap),
            of(joint.informed.relative_gap),
            count(blocks.front_ends)
        );
        row("joint play, gap", of(joint.played.relative_gap), text);
    }
    for limit in &blocks.limits {
        row(&limit.name, number(limit.measured), format!("{} {}", number(limit.limit), limit.says));
    }
}

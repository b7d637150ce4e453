//! The cards at the top: one figure each, its controls below it.

use maud::{Markup, html};

use super::html::blocks_of;
use crate::results::format::{bytes, bytes_per_s, count, duration, nats, number, percent};
use crate::results::{BlockFigures, JointFigures, JointPlayFigures, Summary};

/// All cards of a run.
pub(super) fn cards(summary: &Summary) -> Markup {
    if let Some(blocks) = blocks_of(summary) {
        return of_blocks(summary, blocks);
    }
    let play = &summary.convergence;
    let rate = &summary.throughput;
    html! {
        div.cards {
            (card("Largest regret, ε-Nash", number(play.epsilon_nash), &[
                ("at equilibrium", "0".to_owned()),
                ("gap to the optimum", percent(play.relative_gap)),
                ("score loss", percent(play.score_loss)),
                ("flock alone", number(summary.flock.as_ref().and_then(|flock| flock.epsilon_nash))),
            ]))
            (card("Load, max over mean", number(play.max_over_mean), &[
                ("plain top-k", number(play.max_over_mean_top_k)),
                ("flock alone", number(summary.flock.as_ref().and_then(|flock| flock.max_over_mean_last))),
                ("even", "1".to_owned()),
            ]))
            (node_load(summary))
            (migration(summary))
            (loss(summary))
            (card("Expert bytes", bytes(summary.memory.expert_bytes), &[
                (&format!("in {}", summary.memory.base_type), bytes(summary.memory.expert_bytes_f32)),
                ("saved", percent(summary.memory.saving)),
                ("bits a weight", number(summary.memory.bits_per_weight)),
            ]))
            (widths(summary))
            (latency(summary))
            (answers(summary))
            (card("Tokens a second", number(rate.tokens_per_s), &[
                ("token-experts a second", number(rate.token_experts_per_s)),
                ("payload", bytes_per_s(rate.bytes_per_s)),
                ("over", duration(Some(rate.elapsed_ns))),
            ]))
        }
    }
}

/// Of a run of token blocks, of which no expert is computed.
fn of_blocks(summary: &Summary, blocks: &BlockFigures) -> Markup {
    let tokens = &blocks.tokens;
    let last = blocks.joint.last();
    let gap = |of: fn(&JointFigures) -> &JointPlayFigures| {
        percent(last.map(|joint| of(joint).relative_gap))
    };
    let load = |of: fn(&JointFigures) -> &JointPlayFigures| {
        number(last.map(|joint| of(joint).max_over_mean))
    };
    html! {
        div.cards {
            (card("Gap of the joint play", gap(|joint| &joint.played), &[
                ("by plain top-k", gap(|joint| &joint.plain)),
                ("by who knows all", gap(|joint| &joint.informed)),
                ("front ends", count(blocks.front_ends)),
            ]))
            (card("Load, max over mean", load(|joint| &joint.played), &[
                ("plain top-k", load(|joint| &joint.plain)),
                ("by who knows all", load(|joint| &joint.informed)),
                ("even", "1".to_owned()),
            ]))
            (latency(summary))
            (card("Tokens in time", count(tokens.ok), &[
                ("of", count(tokens.arrived)),
                ("late", count(tokens.late)),
                ("lost", count(tokens.lost)),
                ("shed", count(tokens.shed)),
            ]))
            (card("Tokens a second", number(summary.throughput.tokens_per_s), &[
                ("offered", number(summary.throughput.offered_tokens_per_s)),
                ("over", duration(Some(summary.throughput.elapsed_ns))),
            ]))
            (card("Events", count(blocks.events), &[
                ("time of this machine", duration(Some(blocks.machine_ns))),
                ("memory", bytes(blocks.bytes)),
            ]))
        }
    }
}

fn node_load(summary: &Summary) -> Markup {
    let placement = summary.placement.as_ref().filter(|placement| placement.is_chosen());
    let Some(placement) = placement else { return html! {} };
    let served = &placement.served;
    card(
        &format!("Node load by {}, max over mean", placement.name),
        number(served.max_over_mean),
        &[
            ("round robin, no replicas", number(served.max_over_mean_round_robin)),
            ("same copies, split evenly", number(served.max_over_mean_even_split)),
            ("at least, by any placement", number(served.lower_bound)),
        ],
    )
}

fn migration(summary: &Summary) -> Markup {
    let Some(moved) = &summary.migration else { return html! {} };
    let eplb = moved.bytes_eplb.map_or_else(|| "n/a".to_owned(), bytes);
    card(
        &format!("Node load with copies moved by {}", moved.policy),
        number(moved.max_over_mean),
        &[
            ("had none moved", number(moved.max_over_mean_frozen)),
            ("by a fresh EPLB plan each time", number(moved.max_over_mean_eplb)),
            ("bytes moved", bytes(moved.bytes_moved)),
            ("by those plans", eplb),
            ("copies moved", count(moved.copies)),
            ("bytes sent", bytes(moved.bytes_sent)),
            ("longest pause", duration(moved.pause_ns_max)),
            ("nodes a token", number(moved.nodes_per_token)),
            ("had none moved", number(moved.nodes_per_token_frozen)),
        ],
    )
}

fn loss(summary: &Summary) -> Markup {
    let Some(quality) = &summary.quality else {
        return card(
            "Loss, nats a token",
            "n/a".to_owned(),
            &[("no text was scored", String::new())],
        );
    };
    card(
        "Loss, nats a token",
        nats(quality.loss),
        &[
            ("f32 model", nats(quality.loss_f32)),
            ("same experts, plain top-k", nats(quality.loss_top_k)),
            ("uniform, ln V", nats(quality.loss_uniform)),
            ("tokens", count(quality.tokens)),
        ],
    )
}

fn widths(summary: &Summary) -> Markup {
    let Some(moved) = &summary.reallocation else { return html! {} };
    let quality = summary.quality.as_ref();
    card(
        "Widths moved",
        count(moved.moves),
        &[
            ("decisions", count(moved.decisions)),
            ("bytes changed", bytes(moved.bytes_moved)),
            ("bytes sent", bytes(moved.bytes_sent)),
            ("longest pause", duration(moved.pause_ns_max)),
            ("bits cost", number(moved.cost)),
            ("by one that sees all nodes", number(moved.cost_exact.or(moved.cost))),
            ("had widths stayed", number(moved.cost_kept)),
            ("output error", percent(quality.and_then(|quality| quality.output_error))),
            ("had widths stayed", percent(quality.and_then(|q| q.output_error_widths_kept))),
            ("loss had widths stayed", nats(quality.and_then(|q| q.loss_widths_kept))),
        ],
    )
}

fn latency(summary: &Summary) -> Markup {
    let latency = &summary.latency_ns;
    let p999 = if latency.count < 1_000 { "p99.9 (the maximum)" } else { "p99.9" };
    let is_virtual = summary.virtual_time.is_some();
    card(
        if is_virtual { "Latency p99, virtual time" } else { "Latency p99" },
        duration(latency.p99),
        &[
            ("p50", duration(latency.p50)),
            (p999, duration(latency.p999)),
            ("max", duration(latency.max)),
            ("requests", count(latency.count)),
            (
                "generator lag p99",
                duration(summary.generator_lag_ns.as_ref().and_then(|lag| lag.p99)),
            ),
        ],
    )
}

fn answers(summary: &Summary) -> Markup {
    let (Some(ttft), Some(tpot), Some(of)) =
        (&summary.ttft_ns, &summary.tpot_ns, &summary.generation)
    else {
        return html! {};
    };
    card(
        "Time to first token p99",
        duration(ttft.p99),
        &[
            ("p50", duration(ttft.p50)),
            ("time of a further token, p50", duration(tpot.p50)),
            ("p99", duration(tpot.p99)),
            ("a step, p50", duration(of.step_ns.p50)),
            ("by the virtual clock", duration(of.virtual_step_ns)),
            ("requests cut to the context", count(of.cut_requests)),
        ],
    )
}

fn card(title: &str, figure: String, controls: &[(&str, String)]) -> Markup {
    html! {
        section {
            h3 { (title) }
            strong { (figure) }
            dl { @for (name, value) in controls { dt { (name) } dd { (value) } } }
        }
    }
}

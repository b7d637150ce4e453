//! The sections with pictures: which rows go into each, and what its caption must admit.

use maud::{Markup, PreEscaped, html};
use std::collections::BTreeSet;

use super::RunRecord;
use super::heat;
use super::html::nothing;
use super::murmuration::{TOKEN, in_flight, seconds};
use super::plots::{self, BLUE, GREY, Line, ORANGE};
use super::series::{POINTS_MAX, Points, floored, thin, worst_layer};
use crate::results::format::{count, number};
use crate::results::{LayerFigures, RoundRow};

/// Layers drawn one by one at most; a large model would make the page long.
const LAYERS_DRAWN: usize = 8;

/// ε and gap over steps.
pub(super) fn convergence(record: &RunRecord) -> Markup {
    let epsilon = worst_layer(&record.rounds, |row| Some(row.epsilon_nash));
    if epsilon.is_empty() {
        return nothing("No rounds were recorded in this run.");
    }
    let gap = worst_layer(&record.rounds, |row| row.relative_gap);
    html! {
        (log_figure("largest regret, ε-Nash", vec![("router", BLUE, epsilon), ("flock alone", ORANGE, worst_layer(&record.rounds, |row| row.flock_epsilon_nash))]))
        @if gap.is_empty() { (nothing("No dual bound was recorded, so there is no gap to the optimum.")) }
        @else { (log_figure("relative gap (D − Φ)/|D|", vec![("router", BLUE, gap), ("flock alone", ORANGE, worst_layer(&record.rounds, |row| row.flock_relative_gap))])) }
    }
}

/// Max over mean of router, flock and plain top-k over steps.
pub(super) fn flock(record: &RunRecord) -> Markup {
    let of = |value: fn(&RoundRow) -> Option<f64>| worst_layer(&record.rounds, value);
    let lines = vec![
        ("plain top-k", GREY, of(|row| row.max_over_mean_top_k)),
        ("flock alone", ORANGE, of(|row| row.flock_max_over_mean)),
        ("router", BLUE, of(|row| Some(row.max_over_mean))),
    ];
    let without =
        if lines[1].2.is_empty() { "The flock rules were not played in this run. " } else { "" };
    if lines.iter().all(|(_, _, points)| points.is_empty()) {
        return nothing("No rounds were recorded in this run.");
    }
    let (keys, lines, thinned) = prepared(lines);
    html! {
        (figure(
            &plots::lines(&lines, 1.0, "load, max over mean"),
            "load, max over mean, by step",
            html! { (keys) p { "Worst layer of each step; 1 is even. " (without) (thinned) } },
        ))
        (flight(record))
    }
}

/// The experts of the first layer that kept steps, in motion.
fn flight(record: &RunRecord) -> Markup {
    let layers = measured(record, |layer| !layer.steps.is_empty());
    let Some((layer, svg)) = layers.iter().find_map(|layer| Some((layer, in_flight(layer)?)))
    else {
        return html! {};
    };
    let seconds = format!("{:.1}", seconds(layer));
    figure(
        &svg,
        "loads of experts, step by step",
        html! {
            @if layer.bits.len() == layer.steps[0].loads.len() {
                @for bits in layer.bits.iter().collect::<BTreeSet<_>>() { (key(plots::bit_colour(*bits), &format!("{bits} bits"))) }
            }
            @if layer.steps.iter().all(|step| !step.tokens.is_empty()) { (key(TOKEN, "a token")) }
            p {
                "The first " (layer.steps.len()) " steps of layer " (layer.layer) ", one after the other. A dot is an expert, its area the tokens it got; the ring around it is the fair share. "
                @if layer.places.is_empty() { "Places mean nothing. " }
                @else { "Experts lie where their router rows do, in the plane in which these differ most; tokens where their hidden states turn in it, at a scale of their own. " }
                label { "Step " input type="range" min="0" max=(seconds) step="0.1" value="0" oninput="const s=this.closest('figure').querySelector('svg');s.pauseAnimations();s.setCurrentTime(Number(this.value))"; }
            }
        },
    )
}

/// Sorted loads before and after, layer by layer.
pub(super) fn load(record: &RunRecord) -> Markup {
    let mut layers: Vec<&LayerFigures> = measured(record, |layer| !layer.loads.is_empty());
    let skew = |layer: &LayerFigures| {
        let loads = if layer.loads_top_k.is_empty() { &layer.loads } else { &layer.loads_top_k };
        let total = loads.iter().map(|load| u128::from(*load)).sum::<u128>().max(1);
        // Largest load times experts over the total, in thousandths: no floats to compare.
        let largest = loads.iter().max().copied().unwrap_or(0);
        u128::from(largest) * 1_000 * loads.len() as u128 / total
    };
    let all = layers.len();
    if all == 0 {
        return nothing("Loads per expert were not recorded in this run.");
    }
    layers.sort_by_key(|layer| (std::cmp::Reverse(skew(layer)), layer.layer));
    layers.truncate(LAYERS_DRAWN);
    layers.sort_by_key(|layer| layer.layer);
    html! {
        p { "Tokens over the whole run, so an expert that is hot in one step and cold in the next looks even here; the figure above shows single steps."
            @if all > layers.len() { " The " (layers.len()) " most skewed of " (all) " layers are drawn." } }
        @for layer in layers {
            (figure(
                &plots::sorted_loads(&layer.loads_top_k, &layer.loads),
                &format!("sorted expert loads of layer {}", layer.layer),
                html! { (key(GREY, "before: plain top-k")) (key(BLUE, "after: router")) p { "Layer " (layer.layer) ". Each is sorted on its own; the line is the fair share." } },
            ))
            @if !layer.steps.is_empty() {
                (figure(
                    &heat::map(&layer.steps),
                    &format!("expert loads of layer {} by step", layer.layer),
                    html! {
                        @for (_, colour, name) in heat::SHADES { (key(colour, name)) }
                        p { "Layer " (layer.layer) ": an expert a row, the hottest under plain top-k first; a step a column, the first " (layer.steps.len()) ". Shades are of the load over the fair share."
                        @if layer.loads.len() > heat::ROWS_MAX { " The coldest experts are left out." } }
                    },
                ))
            }
        }
    }
}

/// The percentile curve.
pub(super) fn latency(record: &RunRecord) -> Markup {
    let Some((latency, svg)) =
        record.latency.as_ref().and_then(|all| Some((all, plots::percentile_curve(all)?)))
    else {
        return nothing("No request latency was recorded in this run.");
    };
    let overflow = latency.quantiles().overflow;
    figure(
        &svg,
        "request latency by percentile",
        html! {
            (key(BLUE, "request latency")) p { (count(latency.count())) " requests, counted from their intended start. The curve ends at the maximum, drawn where one request is left."
            @if latency.count() < 1_000 { " With fewer than 1 000 requests p99.9 is the maximum." }
            @if overflow > 0 { " " strong { (count(overflow)) " took more than an hour" } " and are drawn at one hour." } }
        },
    )
}

/// Bits of every expert, and how many have which width.
pub(super) fn precision(record: &RunRecord) -> Markup {
    let layers = measured(record, |layer| !layer.bits.is_empty());
    let widths = &record.summary.memory.widths;
    if layers.is_empty() && widths.is_empty() {
        return nothing("Bit widths were not recorded in this run.");
    }
    let rows: Vec<(u32, &[u32])> =
        layers.iter().map(|layer| (layer.layer, layer.bits.as_slice())).collect();
    figure(
        &if rows.is_empty() { String::new() } else { plots::bit_map(&rows) },
        "bits of every expert",
        html! {
            @for (bits, experts) in widths {
                (key(plots::bit_colour(*bits), &format!("{bits} bits: {}", count(*experts))))
            }
            p { "One cell an expert, in the order of their ids. With scales " (number(record.summary.memory.bits_per_weight)) " bits a weight." }
        },
    )
}

/// The layers for which something was measured, in their order.
fn measured(record: &RunRecord, has: impl Fn(&LayerFigures) -> bool) -> Vec<&LayerFigures> {
    record.layers.iter().flat_map(|layers| &layers.layers).filter(|layer| has(layer)).collect()
}

type Named = (&'static str, &'static str, Points);

fn log_figure(name: &str, lines: Vec<Named>) -> Markup {
    let values: usize = lines.iter().map(|(_, _, points)| points.len()).sum();
    let (mut names, mut points) = (Vec::new(), Vec::new());
    for (name, colour, line) in lines {
        names.push((name, colour));
        points.push(line);
    }
    let floored = floored(points);
    let named = names.into_iter().zip(floored.lines);
    let (keys, lines, thinned) =
        prepared(named.map(|((name, colour), points)| (name, colour, points)).collect());
    figure(
        &plots::log_lines(&lines, floored.floor, name),
        &format!("{name} by step"),
        html! {
            (keys)
            p {
                "Worst layer of each step. " (thinned)
                @if floored.moved > 0 {
                    (count(floored.moved as u64)) " of " (count(values as u64))
                    " values are zero (below 1e-12), which a log axis cannot show: they lie on the lower edge, at "
                    (number(Some(floored.floor))) "."
                }
            }
        },
    )
}

/// The keys of all lines with points, the lines thinned, and a sentence where that changed them.
fn prepared(lines: Vec<Named>) -> (Markup, Vec<Line>, String) {
    let lines: Vec<Named> = lines.into_iter().filter(|(_, _, points)| !points.is_empty()).collect();
    let keys = html! { @for (name, colour, _) in &lines { (key(colour, name)) } };
    let longest = lines.iter().map(|(_, _, points)| points.len()).max().unwrap_or(0);
    let run = longest.div_ceil(POINTS_MAX / 2);
    let thinned = if longest > POINTS_MAX {
        format!(
            "{} steps are drawn as at most {} points a line: the lowest and the highest of every {run}. ",
            count(longest as u64),
            count(POINTS_MAX as u64)
        )
    } else {
        String::new()
    };
    let lines = lines
        .into_iter()
        .map(|(_, colour, points)| Line { colour, points: thin(points) })
        .collect();
    (keys, lines, thinned)
}

pub(super) fn key(colour: &str, name: &str) -> Markup {
    html! { span.key style={ "background:" (colour) } {} (name) }
}

pub(super) fn figure(svg: &str, label: &str, caption: Markup) -> Markup {
    html! {
        figure {
            div role="img" aria-label=(label) { (PreEscaped(svg)) }
            figcaption { (caption) }
        }
    }
}

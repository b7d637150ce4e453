//! Runs of token blocks at many front ends: what became of tokens in time, what was played together, and what
//! theory says of the tail.

use maud::{Markup, html};

use super::html::{nothing, table};
use super::pictures::{figure, key};
use super::plots::{self, BLUE, GREY, Line, ORANGE};
use super::series::Points;
use crate::results::format::{bytes, count, duration, mean_duration, number, percent};
use crate::results::{BlockFigures, JointPlayFigures, StretchFigures};

const SHED: &str = "#8b2f7d";

/// What became of tokens, and how long blocks took, by when they arrived.
#[expect(clippy::cast_precision_loss, reason = "positions on an axis")]
pub(super) fn in_time(blocks: &BlockFigures) -> Markup {
    let arrived: Vec<&StretchFigures> =
        blocks.stretches.iter().filter(|stretch| stretch.tokens.arrived > 0).collect();
    if arrived.len() < 2 {
        return nothing(
            "The run is over within one stretch of time (`virtual.blocks.stretch_ms`).",
        );
    }
    let points = |of: &dyn Fn(&StretchFigures) -> Option<f64>| -> Points {
        let point = |stretch: &&StretchFigures| Some((stretch.from_ns as f64 / 1e6, of(stretch)?));
        arrived.iter().filter_map(point).collect()
    };
    let share = |of: fn(&StretchFigures) -> u64| {
        points(&|stretch| Some(of(stretch) as f64 / stretch.tokens.arrived as f64))
    };
    let fates = [
        ("in time", BLUE, share(|of| of.tokens.ok)),
        ("late", ORANGE, share(|of| of.tokens.late)),
        ("lost", "#b91c1c", share(|of| of.tokens.lost)),
        ("shed", SHED, share(|of| of.tokens.shed)),
    ];
    let latency = [
        ("slowest block", GREY, points(&|of| Some(of.latency_max_ns.max(1) as f64))),
        ("mean", BLUE, points(&|of| of.latency_mean_ns.map(|ns| ns.max(1.0)))),
    ];
    let tokens = &blocks.tokens;
    html! {
        (drawn(&fates, plots::shares_in_time, "what became of tokens", html! {
            "Share of the tokens that arrived in a stretch of time. In all " (count(tokens.arrived)) " = "
            (count(tokens.ok)) " in time + " (count(tokens.late)) " late + " (count(tokens.lost)) " lost + "
            (count(tokens.shed)) " shed."
        }))
        (drawn(&latency, plots::latency_in_time, "how long blocks took", html! {
            "Of the blocks that were answered, by when they arrived."
        }))
    }
}

pub(super) fn drawn(
    lines: &[(&str, &'static str, Points)],
    draw: fn(&[Line]) -> String,
    label: &str,
    says: Markup,
) -> Markup {
    let drawn: Vec<Line> =
        lines.iter().map(|(_, colour, points)| Line { colour, points: points.clone() }).collect();
    figure(
        &draw(&drawn),
        label,
        html! { @for (name, colour, _) in lines { (key(colour, name)) } p { (says) } },
    )
}

/// The plays of all front ends together, each beside its controls.
pub(super) fn joint(blocks: &BlockFigures) -> Markup {
    if blocks.joint.is_empty() {
        return nothing("No period was certified (`virtual.blocks.certified`).");
    }
    let row = |name: String, of: &JointPlayFigures| {
        [
            html! { (name) },
            html! { (percent(Some(of.relative_gap))) },
            html! { (number(Some(of.epsilon_nash))) },
            html! { (number(Some(of.regret_mean))) },
            html! { (number(Some(of.max_over_mean))) },
            html! { (percent(Some(of.score_loss))) },
        ]
    };
    let rows = blocks.joint.iter().flat_map(|joint| {
        let of = |who: &str| format!("period {}, {who}", joint.period);
        [
            row(of("as played"), &joint.played),
            row(of("plain top-k"), &joint.plain),
            row(of("who knows all"), &joint.informed),
        ]
    });
    html! {
        p {
            "The tokens of all " (count(blocks.front_ends)) " front ends in a period as one game, and how far what they played is from its "
            "optimum: the gap is certified by a bound on any play. What plain top-k would have come to, and what one that knows all prices "
            "reaches, are the controls."
        }
        (table(["", "gap to the optimum", "largest regret", "mean regret", "max over mean", "score loss"], rows.collect()))
    }
}

/// Experts by their bits.
pub(super) fn widths(blocks: &BlockFigures) -> Markup {
    let rows = blocks.widths.iter().map(|of| {
        [
            html! { (number(Some(of.bits))) " bits" },
            html! { (count(of.experts)) },
            html! { (count(of.copies)) },
            html! { (bytes(of.resident_bytes)) },
            html! { (percent(Some(of.popularity))) },
            html! { (mean_duration(Some(of.service_ns))) },
        ]
    });
    let head = ["", "experts", "copies", "bytes of these", "wanted most by", "a message takes"];
    table(head, rows.collect())
}

/// Measured figures beside what theory says of them.
pub(super) fn limits(blocks: &BlockFigures) -> Markup {
    let value = |name: &str, value: Option<f64>| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time")]
        let text = match name.strip_suffix(", ns") {
            Some(_) => duration(value.map(|ns| ns.round() as u64)),
            None => number(value),
        };
        html! { (text) }
    };
    let rows = blocks.limits.iter().map(|of| {
        let name = of.name.trim_end_matches(", ns");
        [
            html! { (name) },
            value(&of.name, of.measured),
            value(&of.name, of.limit),
            html! { span.soft { (of.says) } },
        ]
    });
    table(["", "measured", "by theory", ""], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::TokenFigures;

    #[test]
    fn stretches_are_drawn_by_when_they_were_and_the_books_are_said() {
        let stretch = |at: u64, lost: u64| StretchFigures {
            from_ns: at * 1_000_000,
            tokens: TokenFigures { arrived: 100, ok: 100 - lost, lost, ..TokenFigures::default() },
            latency_mean_ns: Some(1e6),
            latency_max_ns: 4_000_000,
        };
        let tokens = TokenFigures { arrived: 300, ok: 270, lost: 30, ..TokenFigures::default() };
        let stretches = vec![stretch(0, 0), stretch(1, 30), stretch(2, 0)];
        let blocks = BlockFigures { tokens, stretches, ..BlockFigures::default() };
        let page = in_time(&blocks).into_string();
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(page.contains("In all 300 = 270 in time + 0 late + 30 lost + 0 shed."), "{page}");
        assert!(joint(&blocks).into_string().contains("No period was certified"));
    }
}

//! What each node did in time: a row a node, a column a slice of time.

use maud::{Markup, html};
use std::fmt::Write as _;

use super::pictures::{figure, key};
use super::plots::SIZE;
use crate::results::format::{count, duration};
use crate::results::{TIMELINE_NODES_MAX, Timeline};

const LEFT: usize = 80;
const TOP: usize = 8;
const AXIS: usize = 36;
/// Marks of time below the rows.
const TICKS: u64 = 5;

/// Shades by the least share of a slice that they stand for.
const SHADES: [(f64, &str, &str); 5] = [
    (0.0, "#eef2f7", "asked, hardly busy"),
    (0.1, "#cfe0f7", "a tenth of the time"),
    (0.3, "#9dc0ee", "a third"),
    (0.6, "#4a86d8", "most"),
    (0.9, "#123f86", "all of it"),
];
const FAULT: &str = "#b3420c";

/// The figure; nothing where no node was asked anything.
pub(super) fn nodes_in_time(timeline: &Timeline) -> Markup {
    let slices = timeline.nodes.iter().map(|node| node.busy_ns.len()).max().unwrap_or(0);
    if slices == 0 {
        return html! {};
    }
    let unanswered: u64 = timeline
        .nodes
        .iter()
        .flat_map(|node| &node.unanswered)
        .map(|count| u64::from(*count))
        .sum();
    figure(
        &map(timeline, slices),
        "nodes in time",
        html! {
            @for (_, colour, name) in SHADES { (key(colour, name)) }
            (key(FAULT, "did not answer"))
            p {
                "A node a row, " (duration(Some(timeline.slice_ns))) " a column, from when serving starts; white where a node was asked nothing. "
                (count(unanswered)) " orders were answered by another node, or asked again: the first was lost, too late, or beaten by a hedge."
                @if timeline.nodes.len() == TIMELINE_NODES_MAX as usize { " Of further nodes nothing is kept." }
            }
        },
    )
}

fn map(timeline: &Timeline, slices: usize) -> String {
    let rows = timeline.nodes.len();
    let row = (320 / rows).clamp(6, 26);
    let column = (SIZE.0 as usize - LEFT - 10) as f64 / slices as f64;
    let (width, height) = (SIZE.0, TOP + rows * row + AXIS);
    let mut svg =
        format!(r#"<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">"#);
    let mut write = |text: std::fmt::Arguments<'_>| {
        svg.write_fmt(text).expect("a string takes any text");
    };
    for (at, node) in timeline.nodes.iter().enumerate() {
        let y = TOP + at * row;
        if row >= 12 || at % 4 == 0 {
            let text_y = y + row / 2 + 5;
            write(format_args!(
                r##"<text x="4" y="{text_y}" font-family="sans-serif" font-size="12" fill="#1f2937">node {}</text>"##,
                node.node
            ));
        }
        // Neighbours of one shade are one rectangle: most of a long run is alike.
        let shades: Vec<Option<&str>> =
            timeline.busy(node).into_iter().map(|share| share.map(shade)).collect();
        let mut from = 0;
        for run in shades.chunk_by(|a, b| a == b) {
            if let Some(colour) = run[0] {
                let (x, across) = (LEFT as f64 + from as f64 * column, run.len() as f64 * column);
                write(format_args!(
                    r#"<rect x="{x:.1}" y="{y}" width="{across:.1}" height="{}" fill="{colour}"/>"#,
                    row - 1
                ));
            }
            from += run.len();
        }
        for (slice, missed) in node.unanswered.iter().enumerate().filter(|(_, missed)| **missed > 0)
        {
            let x = LEFT as f64 + slice as f64 * column;
            write(format_args!(
                r#"<rect class="fault" x="{x:.1}" y="{y}" width="{:.1}" height="{}" fill="{FAULT}"><title>{missed} unanswered</title></rect>"#,
                column.max(3.0),
                row - 1
            ));
        }
    }
    let y = TOP + rows * row + 20;
    let span_ns = timeline.slice_ns * slices as u64;
    for tick in 0..=TICKS {
        let x = LEFT as f64 + (SIZE.0 as usize - LEFT - 10) as f64 * tick as f64 / TICKS as f64;
        let anchor = if tick == TICKS { "end" } else { "start" };
        write(format_args!(
            r##"<text x="{x:.0}" y="{y}" font-family="sans-serif" font-size="12" text-anchor="{anchor}" fill="#1f2937">{}</text>"##,
            duration(Some(span_ns * tick / TICKS))
        ));
    }
    svg + "</svg>"
}

fn shade(share: f64) -> &'static str {
    let reached = SHADES.iter().rev().find(|(least, ..)| share >= *least);
    reached.map_or(SHADES[0].1, |(_, colour, _)| colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_slices_are_dark_idle_ones_white_and_what_was_not_answered_is_marked() {
        let mut timeline = Timeline::default();
        for slice in 0..10 {
            let at_ns = slice * timeline.slice_ns;
            timeline.asked(0, at_ns, true);
            timeline.computed(0, (at_ns, at_ns + timeline.slice_ns));
            if slice < 4 {
                timeline.asked(1, at_ns, slice != 3);
            }
        }
        let page = nodes_in_time(&timeline).into_string();
        assert_eq!(page.matches(r#"class="fault""#).count(), 1);
        assert!(
            page.contains("1 unanswered") && page.contains("1 orders were answered by another")
        );
        // One dark bar over all of the first row, a pale one over four tenths of the second.
        assert_eq!(page.matches(r##"fill="#123f86""##).count(), 1);
        let pale = format!(r##"width="{:.1}" height="25" fill="#eef2f7""##, 4.0 * 67.0);
        assert!(page.contains(&pale), "{page}");
        assert_eq!(nodes_in_time(&Timeline::default()).into_string(), "");
    }
}

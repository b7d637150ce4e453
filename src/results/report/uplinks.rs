//! Links that racks and pods share: how busy they are, and what waits for them.

use maud::{Markup, html};

use super::blocks::drawn;
use super::html::table;
use super::plots::{self, BLUE, GREY, ORANGE};
use super::series::Points;
use crate::results::UplinkFigures;
use crate::results::format::{bytes, count, mean_duration, number, percent};

/// All levels and directions that are limited.
pub(super) fn uplinks(of: &[UplinkFigures]) -> Markup {
    let rows = of.iter().map(|of| {
        [
            html! { (name(of)) },
            html! { (number(Some(of.oversubscription))) " to 1" },
            html! { (count(of.messages)) },
            html! { (bytes(of.bytes)) },
            html! { (percent(Some(of.busy_mean))) },
            html! { (percent(Some(of.busy_max))) span.soft { " " (of.level) " " (of.busiest) } },
            html! { (mean_duration(of.wait_mean_ns)) },
            html! { (mean_duration(of.busiest_wait_mean_ns)) },
        ]
    });
    let head = [
        "",
        "oversubscribed",
        "messages",
        "bytes",
        "busy",
        "busiest",
        "a message waits",
        "at the busiest",
    ];
    html! {
        @if of.iter().any(|of| of.stretches.len() > 1) { (in_time(of)) }
        (table(head, rows.collect()))
        p.soft {
            "Links of racks and pods carry one message after the other. Oversubscribed: what the ports of the nodes that share a link "
            "could send together, over what the link carries."
        }
    }
}

fn name(of: &UplinkFigures) -> String {
    match of.direction.as_str() {
        "out" => format!("out of a {}", of.level),
        _ => format!("into a {}", of.level),
    }
}

#[expect(clippy::cast_precision_loss, reason = "positions on an axis")]
fn in_time(of: &[UplinkFigures]) -> Markup {
    let names: Vec<String> = of.iter().map(name).collect();
    let points = |of: &UplinkFigures| -> Points {
        of.stretches
            .iter()
            .map(|part| (part.from_ns as f64 / 1e6, part.busy_mean.min(1.0)))
            .collect()
    };
    const COLOURS: [&str; 4] = [BLUE, ORANGE, GREY, "#8b2f7d"];
    let lines: Vec<(&str, &'static str, Points)> = names
        .iter()
        .zip(COLOURS)
        .zip(of)
        .map(|((name, colour), of)| (name.as_str(), colour, points(of)))
        .collect();
    drawn(
        &lines,
        plots::shares_in_time,
        "how busy shared links are",
        html! {
            "Share of the time in which links carried something, their mean, by when messages passed."
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::UplinkStretch;

    #[test]
    fn each_link_has_a_row_and_those_that_were_watched_a_line() {
        let stretch =
            |from_ns| UplinkStretch { from_ns, busy_mean: 0.5, ..UplinkStretch::default() };
        let of = |direction: &str, stretches| UplinkFigures {
            level: "rack".into(),
            direction: direction.into(),
            oversubscription: 4.0,
            wait_mean_ns: Some(1_500.4),
            stretches,
            ..UplinkFigures::default()
        };
        let page =
            uplinks(&[of("out", vec![stretch(0), stretch(1_000_000)]), of("in", Vec::new())]);
        let page = page.into_string();
        assert_eq!(page.matches("<svg").count(), 1);
        assert!(page.contains("out of a rack") && page.contains("into a rack"), "{page}");
        assert!(page.contains("1.50 µs") && page.contains("4.000 to 1"), "{page}");
        assert!(!uplinks(&[of("out", Vec::new())]).into_string().contains("<svg"));
    }
}

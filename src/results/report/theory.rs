//! Measured tails, each beside what queueing theory says of it.

use maud::{Markup, html};

use super::html::{nothing, table};
use super::pictures::{figure, key};
use super::plots::{self, BLUE, Line, ORANGE};
use crate::results::format::{ABSENT, count, duration, number, percent};
use crate::results::{QueueTheory, ResponseQuantile, Summary};

/// A row: what, measured, bound, and whether the bound is kept and has to be.
fn row(
    what: &str,
    measured: String,
    bound: String,
    within: Option<bool>,
    holds: bool,
) -> [Markup; 4] {
    let verdict = match (within, holds) {
        (Some(true), true) => html! { span.good { "within" } },
        (Some(false), true) => html! { span.bad { "above" } },
        (Some(true), false) => html! { span.soft { "within; it need not be" } },
        (Some(false), false) => html! { span.soft { "above; it may be" } },
        (None, _) => html! { span.soft { (ABSENT) } },
    };
    [html! { (what) }, html! { (measured) }, html! { (bound) }, verdict]
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a time is not negative, and one of centuries may be cut"
)]
fn time(ns: Option<f64>) -> String {
    duration(ns.map(|ns| ns.round() as u64))
}

/// From closing to end by percentile, beside what M/G/1 says of it.
fn response(queue: &QueueTheory) -> Markup {
    // As many nines as the share has.
    let nines = |share: f64| -(1.0 - share).log10();
    let line = |colour, of: fn(&ResponseQuantile) -> Option<f64>| Line {
        colour,
        points: queue
            .response
            .iter()
            .filter_map(|at| Some((nines(at.quantile), of(at)?)))
            .collect(),
    };
    let lines = [
        line(ORANGE, |at| at.mg1_ns),
        #[expect(clippy::cast_precision_loss, reason = "a position on an axis")]
        line(BLUE, |at| Some(at.measured_ns as f64)),
    ];
    let Some(svg) = plots::over_percentiles(&lines, "percentile of batches") else {
        return html! {};
    };
    figure(
        &svg,
        "batches from closing to end by percentile, measured and by theory",
        html! {
            (key(BLUE, "batches, measured"))
            @if lines[0].points.is_empty() { p { "Under overload there is no bound." } }
            @else { (key(ORANGE, "M/G/1, from the measured rate and service times")) }
            p { "From when a batch closes to its last answer, without the load generator's lag. One run's far percentiles lie around the expected ones." }
        },
    )
}

/// The section.
pub(super) fn theory(summary: &Summary) -> Markup {
    let Some(theory) = &summary.theory else {
        return nothing("Nothing was served in this run.");
    };
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    if let Some(queue) = &theory.queue {
        let within = queue.wait_mean_ns.zip(queue.wait_mean_mg1_ns).map(|(found, by)| found <= by);
        rows.push(row(
            "batch, mean wait / M/G/1",
            time(queue.wait_mean_ns),
            time(queue.wait_mean_mg1_ns),
            within,
            // It is no bound but an expectation.
            false,
        ));
        let (measured, holds) = (duration(queue.response_p99_ns), queue.condition_holds);
        let bound = time(queue.response_p99_mg1_ns);
        rows.push(row(
            "batch, p99 from closing to end / M/G/1",
            measured,
            bound,
            queue.within,
            holds,
        ));
        notes.push(html! {
            "Batches: " (count(queue.batches)) ", " (number(queue.rate_per_s)) " a second, "
            (percent(queue.utilisation)) " of the time busy; squared variation of service "
            (number(queue.service_squared_variation)) ", of gaps " (number(queue.gap_squared_variation))
            "; p99 " (time(queue.response_p99_mm1_ns)) " were service exponential. " (queue.condition) "."
        });
    }
    if let Some(steps) = &theory.steps {
        rows.push(row(
            "layer, p99 of its slowest node / independent nodes, F(t)^k",
            duration(steps.slowest_p99_ns),
            duration(steps.independent_p99_ns),
            steps.within,
            steps.condition_holds,
        ));
        notes.push(html! {
            "Layers: " (count(steps.steps)) " on " (count(steps.nodes)) " nodes; one node's p99 alone is "
            (duration(steps.leg_p99_ns)) ", less is not possible. " (steps.condition) "."
        });
    }
    if let Some(hottest) = &theory.hottest_expert {
        rows.push(row(
            "tokens a second / cap of the hottest expert",
            number(hottest.tokens_per_s),
            number(hottest.tokens_per_s_cap),
            hottest.within,
            hottest.condition_holds,
        ));
        notes.push(html! {
            "The hottest experts get " (number(Some(hottest.shares))) " tokens a token, summed over layers, "
            (number(Some(hottest.shares_even))) " were loads even; the cap were "
            (number(hottest.tokens_per_s_cap_even)) " then. " (hottest.condition) "."
        });
    }
    let curve = theory.queue.as_ref().map_or_else(|| html! {}, response);
    html! {
        (curve)
        (table(["measured / bound", "measured", "bound", ""], rows))
        @for note in notes { p.soft { (note) } }
    }
}

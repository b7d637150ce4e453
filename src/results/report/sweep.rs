//! The page of a sweep: points with their intervals, what each axis does, what differs from the baseline, and how
//! soon targets are reached.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::html::nothing;
use super::plots::{self, BLUE, Mark};
use super::sweep_plots::{self, COLOURS};
use crate::results::format::{count, number};
use crate::results::statistics::Interval;

/// Points that the tables list at most; a longer page is of no use, and the Parquet files have all.
pub const POINTS_SHOWN_MAX: usize = 400;

/// What the page of a sweep shows.
#[derive(Clone, Debug, Default)]
pub struct SweepRecord {
    /// Name of the scenario.
    pub name: String,
    /// How points were made, in words.
    pub method: String,
    /// Runs of each point.
    pub seeds: u32,
    /// Whether all points have the same seeds.
    pub common_random_numbers: bool,
    /// Runs in all, those with a row, and those of them that failed.
    pub runs: (u64, u64, u64),
    /// Messages of the first failures.
    pub failures: Vec<String>,
    /// The keys that are varied.
    pub keys: Vec<String>,
    /// The keys of the summary that are shown.
    pub figures: Vec<String>,
    /// Every point.
    pub points: Vec<PointRecord>,
    /// What each axis does to each figure.
    pub effects: Vec<Effect>,
    /// The baseline in words and the points that are held against theirs; none where none was named.
    pub baseline: Option<(String, Vec<PointRecord>)>,
    /// What an optimiser found; none where none was at work.
    pub search: Option<SearchRecord>,
    /// How soon targets are reached: the figure, what work is counted in, the bounds, and a curve a group.
    pub targets: Option<(String, String, Vec<f64>, Vec<TargetCurve>)>,
}

/// A point, or what it has more than its baseline.
#[derive(Clone, Debug)]
pub struct PointRecord {
    /// What is set there, in the order of the keys.
    pub parameters: Vec<String>,
    /// Runs that failed.
    pub failed: u64,
    /// Mean over seeds of each figure.
    pub figures: Vec<Option<Interval>>,
}

/// What an axis does to a figure, averaged over all other axes.
#[derive(Clone, Debug)]
pub struct Effect {
    /// The axis.
    pub key: String,
    /// The figure.
    pub figure: String,
    /// Value by value: its name, its place where it is a number, and the mean.
    pub values: Vec<(String, Option<f64>, Interval)>,
}

/// What an optimiser found.
#[derive(Clone, Debug)]
pub struct SearchRecord {
    /// The optimiser.
    pub optimizer: String,
    /// Key of the summary that was sought, and which of its values, in words.
    pub sought: (String, String),
    /// What the best point sets, and its mean.
    pub best: Option<(Vec<String>, Interval)>,
    /// Points tried, and the best mean until then.
    pub curve: Vec<(f64, f64)>,
}

/// Of one group of runs the share of targets that is reached by so much work.
#[derive(Clone, Debug)]
pub struct TargetCurve {
    /// What the group has in common.
    pub name: String,
    /// Work, and the share reached by then, ascending.
    pub points: Vec<(f64, f64)>,
    /// Runs of the group times targets.
    pub trials: u64,
}

/// The page as text: the same bytes for the same record. It loads nothing and runs nothing.
#[must_use]
pub fn render_sweep(record: &SweepRecord) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (record.name) ", a sweep – nashflock" }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body { main {
                (header(record))
                @if let Some(found) = &record.search { (section("search", "What was found", search(record, found))) }
                (section("points", "Points", points(record)))
                (section("effects", "What each axis does", effects(record)))
                (section("against", "Figures against each other", against(record)))
                (section("baseline", "Against the baseline", baseline(record)))
                (section("targets", "Work until a target is reached", targets(record)))
                (section("again", "Run it again", again()))
            } }
        }
    }
    .into_string()
}

fn section(id: &str, title: &str, body: Markup) -> Markup {
    html! { section id=(id) { h2 { (title) } (body) } }
}

fn header(record: &SweepRecord) -> Markup {
    let (runs, done, failed) = record.runs;
    html! {
        header {
            h1 { (record.name) }
            p.soft {
                (record.method) " · " (count(record.points.len() as u64)) " points under " (record.seeds)
                " seeds · " (count(done)) " of " (count(runs)) " runs"
            }
            @if done < runs {
                p.banner { strong { "This sweep is not complete. " } "The figures cover the runs that have ended." }
            }
            @if failed > 0 {
                p.banner {
                    strong { (count(failed)) " runs failed" } " and are in no mean."
                    @for message in &record.failures { br; (message) }
                }
            }
        }
    }
}

/// The mean and its interval; without one where there is a single run.
fn cell(interval: Option<&Interval>) -> Markup {
    let Some(of) = interval else { return html! { span.soft { "–" } } };
    html! {
        (number(Some(of.mean)))
        @if let Some(half) = of.half_width { span.soft { " ± " (number(Some(half))) } }
    }
}

fn rows(
    record: &SweepRecord,
    points: &[PointRecord],
    cell: impl Fn(Option<&Interval>) -> Markup,
) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                @for key in &record.keys { th scope="col" { (key) } }
                @for figure in &record.figures { th scope="col" { (figure) } }
            } }
            tbody {
                @for point in points.iter().take(POINTS_SHOWN_MAX) { tr {
                    @for parameter in &point.parameters { td { (parameter) } }
                    @for figure in &point.figures { td { (cell(figure.as_ref())) } }
                } }
            }
        } }
        @if points.len() > POINTS_SHOWN_MAX {
            p.soft { "The first " (POINTS_SHOWN_MAX) " of " (count(points.len() as u64)) " points; the Parquet files have all." }
        }
    }
}

fn points(record: &SweepRecord) -> Markup {
    if record.points.is_empty() {
        return nothing("No run has ended yet.");
    }
    html! {
        p {
            "Mean over seeds ± half of its 95 % interval, by Student's t. Each interval is for itself: of twenty, one "
            "misses its mean on average."
            @if record.seeds == 1 { " There is one run a point, so there are no intervals." }
        }
        (rows(record, &record.points, cell))
    }
}

fn search(record: &SweepRecord, found: &SearchRecord) -> Markup {
    let (figure, sought) = &found.sought;
    html! {
        p {
            (found.optimizer) " looked for the " (sought) " mean of " (figure) " over the seeds of a point. The mean of the best of many points is better "
            "than what that point will do under other seeds; and a search says little without the same one by " code { "random_search" } " beside it."
        }
        @if let Some((parameters, mean)) = &found.best {
            p {
                @for (key, value) in record.keys.iter().zip(parameters) { strong { (key) " = " (value) } " " }
                ": " (cell(Some(mean)))
            }
        }
        figure {
            div role="img" aria-label="best so far" { (PreEscaped(sweep_plots::search(&found.curve, figure))) }
            figcaption { "Best mean so far by points tried." }
        }
    }
}

fn effects(record: &SweepRecord) -> Markup {
    if record.effects.is_empty() {
        return nothing("No axis was varied, or no run has ended yet.");
    }
    html! {
        p {
            "Mean over all points that have a value, each point counting once, with the 95 % interval that the spread over "
            "seeds gives it; of values that were drawn, each point by itself. A figure that depends on two axes together does not show here."
        }
        @for effect in &record.effects {
            figure {
                div role="img" aria-label={ (effect.figure) " by " (effect.key) } {
                    (PreEscaped(sweep_plots::effect(effect)))
                }
                figcaption { (effect.figure) " by " (effect.key) }
            }
        }
    }
}

/// Pairs of figures drawn at most.
const PAIRS_MAX: usize = 4;

/// The first figure and each of the next ones, a mark a point.
fn against(record: &SweepRecord) -> Markup {
    let of = |interval: &Interval| (interval.mean, interval.half_width.unwrap_or(0.0));
    let marks = |other: usize| -> Vec<Mark> {
        let mark = |point: &PointRecord| {
            let figure = |at: usize| point.figures.get(at)?.as_ref().map(of);
            Some(Mark { colour: BLUE, x: figure(0)?, y: figure(other)? })
        };
        record.points.iter().filter_map(mark).collect()
    };
    let pairs = (1..record.figures.len()).map(|other| (&record.figures[other], marks(other)));
    let drawn: Vec<_> = pairs.filter(|(_, marks)| marks.len() > 1).take(PAIRS_MAX).collect();
    let Some(first) = record.figures.first().filter(|_| !drawn.is_empty()) else {
        return nothing("There are not two figures of two points (`sweep.figures`).");
    };
    let label = |value: &f64| number(Some(*value));
    html! {
        p { "Each mark is a point of the sweep, with the intervals of its means. What lies lower or further left than all others, "
            "where less is better, is a choice; the rest are not." }
        @for (name, marks) in drawn {
            figure {
                div role="img" aria-label={ (name) " against " (first) } {
                    (PreEscaped(plots::scatter(&marks, [first, name], [&label, &label])))
                }
                figcaption { (name) " against " (first) }
            }
        }
    }
}

fn baseline(record: &SweepRecord) -> Markup {
    let Some((named, points)) = &record.baseline else {
        return nothing("The sweep names no baseline (`sweep.baseline`).");
    };
    let difference = |interval: Option<&Interval>| {
        let moved = interval.is_some_and(Interval::excludes_zero);
        html! { @if moved { strong { (cell(interval)) } } @else { (cell(interval)) } }
    };
    html! {
        p {
            "Each point less the one that has " (named) " and is like it otherwise, "
            @if record.common_random_numbers { "over pairs of runs of the same seeds (paired t). " }
            @else { "as means of independent runs (Welch). " }
            "In bold where the 95 % interval excludes zero, each for itself: of twenty that did not move, one is bold on average."
        }
        (rows(record, points, difference))
    }
}

fn targets(record: &SweepRecord) -> Markup {
    let Some((figure, work, bounds, curves)) = &record.targets else {
        return nothing("The sweep states no target (`sweep.target`).");
    };
    let bounds = bounds.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
    html! {
        figure {
            div role="img" aria-label="share of targets reached by work" {
                (PreEscaped(sweep_plots::targets(curves, work)))
            }
            figcaption {
                @for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
                    span.key style={ "background:" (colour) } {} (curve.name)
                }
                p {
                    "Share of all pairs of a run and a target that are reached within so many " (work) ", from the first step on: "
                    (figure) " of a step's worst layer at most " (bounds)
                    ". A curve that ends below 1 says how many were never reached."
                }
            }
        }
    }
}

fn again() -> Markup {
    html! {
        pre { code { "nashflock sweep scenario.toml" br; "nashflock verify ." } }
        p.soft { "From the directory of the sweep. Same scenario, same seeds: the same states on the same processor type." }
    }
}

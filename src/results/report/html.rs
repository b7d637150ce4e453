//! The page: every section always stands, and says so where nothing was measured.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::RunRecord;
use super::blocks;
use super::cards::cards;
use super::pictures::{convergence, figure, flock, key, latency, load, precision};
use super::plots::{self, BLUE, GREY, Mark, ORANGE};
use super::theory::theory;
use super::timeline::nodes_in_time;
use super::uplinks::uplinks;
use crate::results::format::{ABSENT, bytes, count, duration, nats, number, percent};
use crate::results::table::lag_text;
use crate::results::{BlockFigures, Manifest, Quality, Status, Summary};

/// The page as text: the same bytes for the same record. It loads nothing and runs nothing.
#[must_use]
pub fn render(record: &RunRecord) -> String {
    let RunRecord { manifest, summary, .. } = record;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (summary.scenario) ", seed " (summary.seed) " – nashflock" }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body { main {
                (header(manifest, summary))
                (cards(summary))
                (goals(summary))
                @match blocks_of(summary) {
                    Some(of) => (of_blocks(of)),
                    None => (of_rounds(record)),
                }
                @if let Some(of) = &summary.virtual_time && !of.uplinks.is_empty() {
                    (section("uplinks", "Uplinks", uplinks(&of.uplinks)))
                }
                (section("outcomes", "Outcomes", outcomes(summary)))
                (section("again", "Run it again", again(manifest, summary)))
            } }
        }
    }
    .into_string()
}

/// What a run of token blocks came to; none of another run.
pub(super) fn blocks_of(summary: &Summary) -> Option<&BlockFigures> {
    summary.virtual_time.as_ref()?.blocks.as_ref()
}

fn of_blocks(of: &BlockFigures) -> Markup {
    html! {
        (section("time", "Tokens and blocks in time", blocks::in_time(of)))
        (section("joint", "Joint play", blocks::joint(of)))
        @if !of.widths.is_empty() { (section("widths", "Bits per expert", blocks::widths(of))) }
        (section("theory", "Tail and theory", blocks::limits(of)))
    }
}

fn of_rounds(record: &RunRecord) -> Markup {
    let summary = &record.summary;
    html! {
        (section("convergence", "Convergence", convergence(record)))
        (section("certificate", "Certificate", certificate(summary)))
        (section("flock", "Flock and equilibrium", flock(record)))
        (section("load", "Load per expert", load(record)))
        (section("quality", "Loss", quality(summary)))
        (section("latency", "Latency", html! { (lag(summary)) (latency(record)) }))
        (section("theory", "Tail and theory", theory(summary)))
        (section("nodes", "Nodes", html! { (nodes(summary)) (in_time(record)) }))
        (section("precision", "Bits per expert", precision(record)))
    }
}

/// A sentence where a section has nothing to show.
pub(super) fn nothing(why: &str) -> Markup {
    html! { p.soft { (why) } }
}

/// A table whose first column names its rows.
pub(super) fn table<const N: usize>(head: [&str; N], rows: Vec<[Markup; N]>) -> Markup {
    html! {
        div.scroll { table {
            @if head.iter().any(|name| !name.is_empty()) { thead { tr { @for name in head { th scope="col" { (name) } } } } }
            tbody {
                @for row in rows { tr { @for cell in row { td { (cell) } } } }
            }
        } }
    }
}

fn section(id: &str, title: &str, body: Markup) -> Markup {
    html! { section id=(id) { h2 { (title) } (body) } }
}

fn header(manifest: &Manifest, summary: &Summary) -> Markup {
    html! {
        header {
            h1 { (summary.scenario) }
            p.soft {
                "seed " (summary.seed) " · " (manifest.nodes.len()) " nodes · "
                (manifest.threads) " threads · started " (manifest.started_at)
                @if let Some(ended) = &manifest.ended_at { " · ended " (ended) }
            }
            @if let Some(resumed) = &summary.resumed {
                p.banner {
                    strong { "This run was cut and went on " (count(resumed.count)) " times. " }
                    "Its clock stood still for " (duration(Some(resumed.gap_ns)))
                    ", which is in no latency; " (count(resumed.requests_across))
                    " requests were under way or waiting across a cut."
                }
            }
            @if summary.status != Status::Complete {
                p.banner {
                    strong {
                        @match summary.status {
                            Status::Interrupted => "This run was interrupted. ",
                            _ => "This run failed. ",
                        }
                    }
                    "The figures cover what was played until then."
                    @if let Some(detail) = &summary.status_detail { br; (detail) }
                }
            }
        }
    }
}

fn goals(summary: &Summary) -> Markup {
    if summary.goals.is_empty() {
        return section("goals", "Goals", nothing("The scenario states no goals."));
    }
    let rows = summary.goals.iter().map(|goal| {
        let verdict = if goal.met {
            html! { span.good { "met" } }
        } else {
            html! { span.bad { "missed" } }
        };
        [
            html! { (goal.name) },
            html! { (number(Some(goal.limit))) },
            html! { (number(goal.measured)) },
            verdict,
        ]
    });
    section("goals", "Goals", table(["goal", "limit", "measured", ""], rows.collect()))
}

fn certificate(summary: &Summary) -> Markup {
    let play = &summary.convergence;
    let flock = summary.flock.clone().unwrap_or_default();
    let text = |text: String| html! { (text) };
    let name = |name: &str| html! { (name) };
    let none = || html! { span.soft { "–" } };
    // Φ and D differ in digits that a rounded figure would hide.
    let mut rows = vec![
        [
            name("ε-Nash: largest regret of a token"),
            text(number(play.epsilon_nash)),
            text(number(flock.epsilon_nash)),
            none(),
        ],
        [
            name("relative gap (D − Φ)/|D|"),
            text(percent(play.relative_gap)),
            text(percent(flock.relative_gap)),
            none(),
        ],
        [
            name("load, max over mean"),
            text(number(play.max_over_mean)),
            text(number(flock.max_over_mean_last)),
            text(number(play.max_over_mean_top_k)),
        ],
        [name("score loss"), text(percent(play.score_loss)), none(), name("0 %")],
        [name("games"), text(count(play.rounds)), none(), none()],
        [name("iterations"), text(count(play.iterations)), none(), none()],
        [name("passes over the scores"), text(count(play.passes)), none(), none()],
        [
            name("time a game"),
            text(duration(play.route_ns.checked_div(play.rounds))),
            none(),
            none(),
        ],
    ];
    if let Some(social) = &play.social {
        let mut figure = |what, value| rows.push([name(what), text(number(value)), none(), none()]);
        figure("social cost: affinity given up and congestion", social.cost);
        figure("the same at the social optimum", social.optimum);
        figure("price of anarchy, at least", social.price_of_anarchy);
    }
    html! {
        p {
            "The certificate is computed from the assignment itself, whatever the router claims: no token can gain more than ε by "
            "changing its experts, and no assignment has a potential above D. The router "
            strong { (play.router) }
            @if play.converged { " converged." } @else { " did " strong.bad { "not converge" } "." }
        }
        (table(["", "router", "flock alone", "plain top-k"], rows))
    }
}

fn quality(summary: &Summary) -> Markup {
    let Some(quality) = &summary.quality else {
        return nothing("No text was scored in this run.");
    };
    let against = |loss: Option<f64>| {
        let difference = quality.loss.zip(loss).map(|(loss, control)| loss - control);
        html! { (difference.map_or_else(|| ABSENT.to_owned(), |nats| format!("{nats:+.4}"))) }
    };
    let rows = [
        ("this run: quantized experts, its router", quality.loss),
        ("quantized experts, plain top-k", quality.loss_top_k),
        ("uniform bits, plain top-k", quality.loss_top_k_uniform_bits),
        ("f32 experts, this router", quality.loss_f32_routed),
        ("f32 experts, pruned, plain top-k", quality.loss_f32_pruned),
        ("f32 experts, pruned by frequency, plain top-k", quality.loss_f32_pruned_by_frequency),
        ("f32 model, plain top-k", quality.loss_f32),
        ("uniform predictor, ln V", quality.loss_uniform),
    ]
    .into_iter()
    .filter(|(name, loss)| loss.is_some() || !name.contains("pruned"))
    .map(|(name, loss)| [html! { (name) }, html! { (nats(loss)) }, against(loss)]);
    html! {
        p { "Cross-entropy in nats a token over " (count(quality.tokens)) " tokens; lower is better. The last column is this run minus the control." }
        (table(["model", "nats a token", "this run − it"], rows.collect()))
        (bytes_against_loss(summary, quality))
    }
}

/// Bytes of the experts and the loss that they come to.
#[expect(clippy::cast_precision_loss, reason = "a position on an axis")]
fn bytes_against_loss(summary: &Summary, quality: &Quality) -> Markup {
    let memory = &summary.memory;
    let marks = [
        (BLUE, "this run", memory.expert_bytes, quality.loss),
        (ORANGE, "the same experts, plain top-k", memory.expert_bytes, quality.loss_top_k),
        (GREY, "f32 model, plain top-k", memory.expert_bytes_f32, quality.loss_f32),
    ];
    let marks: Vec<_> = marks
        .into_iter()
        .filter_map(|(colour, name, bytes, loss)| Some((colour, name, bytes as f64 / 1e6, loss?)))
        .collect();
    if marks.len() < 2 {
        return html! {};
    }
    let drawn: Vec<Mark> = marks
        .iter()
        .map(|(colour, _, megabytes, loss)| Mark { colour, x: (*megabytes, 0.0), y: (*loss, 0.0) })
        .collect();
    let names = ["bytes of all experts, MB", "loss, nats a token"];
    let labels: [&dyn Fn(&f64) -> String; 2] = [&|x| number(Some(*x)), &|y| format!("{y:.3}")];
    figure(
        &plots::scatter(&drawn, names, labels),
        "bytes of the experts against the loss",
        html! { @for (colour, name, ..) in &marks { (key(colour, name)) } },
    )
}

/// A sentence where the load generator was too late for its latencies to be the system's.
fn lag(summary: &Summary) -> Markup {
    let lag = summary.generator_lag_ns.as_ref().filter(|lag| lag.lagged);
    html! {
        @if let Some(lag) = lag {
            p.banner { strong { "The load generator lagged. " } (duration(lag.p99)) " " (lag_text(lag)) "." }
        }
    }
}

fn outcomes(summary: &Summary) -> Markup {
    let total = summary.outcomes.total();
    if total == 0 {
        return nothing("No requests were counted in this run.");
    }
    let rows = summary.outcomes.rows().into_iter().map(|(name, number)| {
        #[expect(clippy::cast_precision_loss, reason = "a share in percent")]
        let share = number as f64 / total as f64;
        let width = format!("width:{:.0}px", 160.0 * share);
        [
            html! { (name) },
            html! { (count(number)) },
            html! { (percent(Some(share))) },
            html! { @if number > 0 { span.bar style=(width) {} } },
        ]
    });
    html! {
        (table(["outcome", "requests", "share", ""], rows.collect()))
        @if let Some(pairs) = &summary.pairs {
            p style="margin-top:12px" {
                "Token–expert pairs: " (count(pairs.dispatched)) " dispatched = " (count(pairs.combined)) " combined + "
                (count(pairs.missing)) " missing + " (count(pairs.shed)) " shed"
                @if pairs.dispatched != pairs.combined + pairs.missing + pairs.shed {
                    ": " span.bad { "the books do not balance" }
                }
                "."
            }
        }
    }
}

fn nodes(summary: &Summary) -> Markup {
    if summary.nodes.is_empty() {
        return nothing("No node was listed in this run.");
    }
    let rows = summary.nodes.iter().map(|node| {
        [
            html! { (node.node) " " span.soft { (node.address) } },
            html! { (count(node.experts)) },
            html! { (bytes(node.bytes)) },
            html! { (count(node.tokens)) },
            html! { (percent(node.busy_share)) },
            html! { @if node.alive { "alive" } @else { span.bad { "lost" } } },
        ]
    });
    table(["node", "experts", "bytes", "token-experts", "busy", ""], rows.collect())
}

fn in_time(record: &RunRecord) -> Markup {
    record.timeline.as_ref().map_or_else(|| html! {}, nodes_in_time)
}

fn again(manifest: &Manifest, summary: &Summary) -> Markup {
    let source = &manifest.source;
    let dirty = match source.git_dirty {
        Some(true) => " with local changes",
        Some(false) => "",
        None => " (not built in a checkout)",
    };
    let line = |name: &str, value: String| [html! { (name) }, html! { (value) }];
    let rows = vec![
        line("state hash", summary.state_hash.clone()),
        line("scenario (BLAKE3)", manifest.scenario_blake3.clone()),
        line("run", manifest.run_id.clone()),
        line("commit", format!("{}{dirty}", source.git_commit)),
        line("Cargo.lock (BLAKE3)", source.cargo_lock_blake3.clone()),
        line("compiler", format!("{}, {}, {}", source.rustc, source.target, source.profile)),
        line("processor", manifest.machine.cpu.clone()),
        line("instruction sets", manifest.machine.cpu_features.join(" ")),
    ];
    html! {
        p { "The command of this run:" }
        pre { code { (manifest.command_line()) } }
        p { "To replay this run, from the resolved scenario in its directory, and to hold a repetition against it:" }
        pre { code { "nashflock replay ." br; "nashflock verify ." } }
        p.soft { "Same scenario and seed give the same state hash on the same processor type, at any number of threads and nodes." }
        div.text { (table(["", ""], rows)) }
        @if !summary.null_reasons.is_empty() {
            h3 { "Figures that are missing" }
            div.text { (table(
                ["figure", "why"],
                summary.null_reasons.iter().map(|(path, why)| [html! { (path) }, html! { (why) }]).collect(),
            )) }
        }
    }
}

//! Tokens a second, times, nodes and faults.

use super::frame;
use crate::measure::LatencyQuantiles;
use crate::results::{FaultFigures, NodeSnapshot, NodeState, Snapshot};
use crate::watching::History;
use crate::watching::figures::{bytes, time, time_or_dash};
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Sparkline, Table, Widget as _};

/// Rows of times below their heading, at most.
const TIMES: u16 = 3;

/// Rows that the lower part takes of a screen of `height`.
pub(super) fn height(snapshot: &Snapshot, height: u16) -> u16 {
    let nodes = u16::try_from(snapshot.nodes.len()).unwrap_or(u16::MAX);
    // Frame, heading and faults.
    nodes.saturating_add(4).clamp(TIMES + 6, (height / 2).max(TIMES + 6))
}

/// Tokens a second and percentiles.
pub(super) fn times(snapshot: &Snapshot, history: &History, area: Rect, buffer: &mut Buffer) {
    let latest = history.points().last().map_or(0.0, |point| point.tokens_per_s);
    let block = frame(format!(
        " tokens/s {latest:.0} now, {:.0} answered ",
        snapshot.tokens_per_s.unwrap_or(0.0)
    ));
    let inside = block.inner(area);
    block.render(area, buffer);
    let rows = [
        ("request", Some(&snapshot.latency_ns)),
        ("first token", snapshot.ttft_ns.as_ref()),
        ("each token", snapshot.tpot_ns.as_ref()),
    ];
    let rows: Vec<Row<'_>> =
        rows.iter().filter_map(|(name, times)| Some(quantiles(name, (*times)?))).collect();
    let below = u16::try_from(rows.len()).unwrap_or(TIMES) + 1;
    let [rates, times] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(below)]).areas(inside);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    let data: Vec<u64> = history.points().iter().map(|point| point.tokens_per_s as u64).collect();
    let newest = data.len().saturating_sub(rates.width.into());
    let style = Style::new().fg(Color::Blue);
    Sparkline::default().data(&data[newest..]).style(style).render(rates, buffer);
    let columns = [11, 7, 7, 7, 7, 7].map(Constraint::Max);
    let heading = heading(&["", "p50", "p90", "p99", "p99.9", "max"]);
    Table::new(rows, columns).header(heading).render(times, buffer);
}

fn quantiles(name: &str, of: &LatencyQuantiles) -> Row<'static> {
    let times = [of.p50, of.p90, of.p99, of.p999, of.max].map(time_or_dash);
    Row::new(std::iter::once(name.to_owned()).chain(times))
}

/// A row a node, those in trouble first where not all fit; and faults.
pub(super) fn nodes(snapshot: &Snapshot, area: Rect, buffer: &mut Buffer) {
    let Snapshot { nodes_up, nodes_total, nodes, .. } = snapshot;
    let block = frame(format!(
        " {nodes_up} of {nodes_total} nodes up  sent {}  received {} ",
        bytes(snapshot.sent_bytes),
        bytes(snapshot.received_bytes)
    ));
    let inside = block.inner(area);
    block.render(area, buffer);
    let [rows, below] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(1)]).areas(inside);
    let room = usize::from(rows.height.saturating_sub(1));
    let mut shown: Vec<&NodeSnapshot> = nodes.iter().collect();
    if shown.len() > room {
        shown.sort_by_key(|node| node.state == NodeState::Up);
        shown.truncate(room);
    }
    let columns = [4, 5, 7, 6, 7, 8, 8].map(Constraint::Max);
    let heading = heading(&["node", "state", "experts", "pairs", "pending", "answer", "computed"]);
    Table::new(shown.into_iter().map(row), columns).header(heading).render(rows, buffer);
    faults(snapshot.faults.as_ref()).render(below, buffer);
}

fn row(node: &NodeSnapshot) -> Row<'static> {
    let (state, colour) = match node.state {
        NodeState::Up => ("up", Color::Green),
        NodeState::Aside => ("aside", Color::Yellow),
        NodeState::Lost => ("lost", Color::Red),
    };
    Row::new([
        Cell::new(node.node.to_string()),
        Cell::new(state).style(Style::new().fg(colour)),
        Cell::new(node.experts.to_string()),
        Cell::new(node.round_pairs.to_string()),
        Cell::new(node.pending_pairs.to_string()),
        Cell::new(time_or_dash(node.answer_ns)),
        Cell::new(time(node.compute_ns)),
    ])
}

/// Faults that there were.
fn faults(of: Option<&FaultFigures>) -> Line<'static> {
    let dim = Style::new().add_modifier(Modifier::DIM);
    let Some(of) = of else { return Line::styled("all experts are in this process", dim) };
    let counts = [
        (of.lost_nodes, "lost"),
        (of.quarantined_nodes, "quarantined"),
        (of.set_aside, "set aside"),
        (of.rerouted_pairs, "pairs rerouted"),
        (of.hedges, "hedges"),
        (of.redelivered_orders, "sent again"),
        (of.stale_replies + of.late_replies + of.duplicate_replies, "replies dropped"),
    ];
    let there: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if there.is_empty() {
        return Line::styled("no faults", dim);
    }
    Line::styled(format!("faults: {}", there.join(", ")), Style::new().fg(Color::Yellow))
}

fn heading(names: &[&'static str]) -> Row<'static> {
    Row::new(names.to_vec()).style(Style::new().add_modifier(Modifier::DIM))
}

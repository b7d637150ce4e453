//! Loads by expert as bars, with the fair share and the capacity.

use super::frame;
use crate::results::Snapshot;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Sparkline, Widget as _};

pub(super) fn draw(snapshot: &Snapshot, layer: usize, area: Rect, buffer: &mut Buffer) {
    let layers = snapshot.layers.len();
    let title = match layers {
        0 | 1 => " tokens by expert ".to_owned(),
        _ => format!(" tokens by expert, layer {layer} of {layers} "),
    };
    let block = frame(title);
    let inside = block.inner(area);
    ratatui::widgets::Widget::render(block, area, buffer);
    let Some(layer) = snapshot.layers.get(layer).filter(|layer| layer.tokens > 0) else { return };
    let [bars, says] = Layout::vertical([Constraint::Fill(1), Constraint::Length(2)]).areas(inside);

    let columns = columns(&layer.loads, bars.width.into());
    let highest = layer.loads.iter().chain(&layer.loads_top_k).copied().max().unwrap_or(0);
    let largest = layer.loads.iter().copied().max().unwrap_or(0);
    // Room above the fair share, so that even loads do not look like the most that can be.
    let top = f64::from(largest).max(1.5 * layer.fair_share).max(1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of tokens"
    )]
    let most = top.ceil() as u64;
    let data: Vec<u64> = columns.iter().map(|load| u64::from(*load)).collect();
    let wide = (usize::from(bars.width) / data.len().max(1)).max(1);
    let data: Vec<u64> = data.iter().flat_map(|load| std::iter::repeat_n(*load, wide)).collect();
    let style = Style::new().fg(Color::Green);
    Sparkline::default().data(&data).max(most).style(style).render(bars, buffer);
    if let Some(capacity) = layer.capacity {
        across(capacity as f64 / top, '╌', Color::Red, bars, buffer);
    }
    across(layer.fair_share / top, '─', Color::Yellow, bars, buffer);

    let bold = Style::new().add_modifier(Modifier::BOLD);
    let capacity = layer.capacity.map(|capacity| format!("  ╌ capacity {capacity}"));
    Line::from(vec![
        Span::raw("max over mean "),
        Span::styled(format!("{:.3}", layer.max_over_mean), bold),
        Span::raw(format!(", plain top-k {:.3}", layer.max_over_mean_top_k)),
    ])
    .render(Rect { height: 1, ..says }, buffer);
    let experts = layer.loads.len();
    let each = experts.div_ceil(columns.len().max(1));
    let each = if each > 1 { format!("  {each} experts a column") } else { String::new() };
    let text = format!(
        "max {largest} (top-k {highest})  ─ fair share {:.1}{}{each}",
        layer.fair_share,
        capacity.unwrap_or_default()
    );
    let below = Rect { y: says.y + 1, height: says.height.saturating_sub(1), ..says };
    Line::styled(text, Style::new().add_modifier(Modifier::DIM)).render(below, buffer);
}

/// A column an expert, or the largest of neighbours where there are more experts than columns.
fn columns(loads: &[u32], width: usize) -> Vec<u32> {
    let each = loads.len().div_ceil(width.max(1)).max(1);
    loads.chunks(each).map(|loads| loads.iter().copied().max().unwrap_or(0)).collect()
}

/// A line across the empty cells at a share of the height.
fn across(share: f64, with: char, colour: Color, area: Rect, buffer: &mut Buffer) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rows are few")]
    let above = (share * f64::from(area.height)) as u16;
    if above >= area.height {
        return;
    }
    let row = area.bottom() - 1 - above;
    for column in area.left()..area.right() {
        let cell = &mut buffer[(column, row)];
        if cell.symbol() == " " {
            cell.set_char(with).set_fg(colour);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::columns;

    #[test]
    fn experts_that_do_not_fit_share_a_column_which_shows_the_largest() {
        assert_eq!(columns(&[3, 1, 2], 8), [3, 1, 2]);
        assert_eq!(columns(&[3, 1, 2, 9, 4], 2), [3, 9]);
        assert_eq!(columns(&[], 8), [0_u32; 0]);
    }
}

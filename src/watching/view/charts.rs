//! ε and the gap over time, on a logarithmic scale.

use super::frame;
use crate::watching::History;
use crate::watching::figures::small;
use crate::watching::history::Point;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::symbols::Marker;
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, LegendPosition, Widget as _};

/// Rounding leaves certificates of about this much: less is drawn as this.
const FLOOR: f64 = 1e-12;

pub(super) fn draw(history: &History, area: Rect, buffer: &mut Buffer) {
    let points = history.points();
    let of = |figure: fn(&Point) -> Option<f64>| -> Vec<(f64, f64)> {
        let at = |point: &Point| Some((point.at_s, figure(point)?.max(FLOOR).log10()));
        points.iter().filter_map(at).collect()
    };
    let (epsilon, gap) = (of(|point| point.epsilon_nash), of(|point| point.relative_gap));
    let latest = |figure: fn(&Point) -> Option<f64>| small(points.last().and_then(figure));
    let title = format!(
        " ε {}  gap {} ",
        latest(|point| point.epsilon_nash),
        latest(|point| point.relative_gap)
    );
    let (low, high) = decades(epsilon.iter().chain(&gap).map(|(_, exponent)| *exponent));
    let end_s = points.last().map_or(1.0, |point| point.at_s);
    let start_s = points.first().map_or(0.0, |point| point.at_s).min(end_s - 1e-3);
    let line = |name: &'static str, colour, data| {
        Dataset::default()
            .name(name)
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(Style::new().fg(colour))
            .data(data)
    };
    let dim = Style::new().fg(Color::DarkGray);
    let exponent =
        |of: f64| if of <= FLOOR.log10() { "0".to_owned() } else { format!("1e{of:.0}") };
    let middle = f64::midpoint(low, high);
    let levels = [exponent(low), exponent(middle.round()), exponent(high)];
    let times = [format!("{start_s:.1} s"), format!("{end_s:.1} s")];
    Chart::new(vec![line("ε", Color::Magenta, &epsilon), line("gap", Color::Cyan, &gap)])
        .block(frame(title))
        .x_axis(Axis::default().bounds([start_s, end_s]).labels(times).style(dim))
        .y_axis(Axis::default().bounds([low, high]).labels(levels).style(dim))
        .legend_position(Some(LegendPosition::TopRight))
        .render(area, buffer);
}

/// The decades that hold all exponents, an even number of them so that the middle is one too.
fn decades(exponents: impl Iterator<Item = f64>) -> (f64, f64) {
    let ends = exponents.fold(None, |ends: Option<(f64, f64)>, exponent| {
        let (low, high) = ends.unwrap_or((exponent, exponent));
        Some((low.min(exponent), high.max(exponent)))
    });
    let (low, high) = ends.unwrap_or((FLOOR.log10(), 0.0));
    let (low, high) = (low.floor(), high.ceil());
    let high = high.max(low + 2.0);
    (low, high + (high - low) % 2.0)
}

#[cfg(test)]
mod tests {
    use super::decades;

    #[test]
    fn the_scale_is_whole_decades_with_one_in_the_middle() {
        for (exponents, ends) in [
            (vec![], (-12.0, 0.0)),
            (vec![-3.5], (-4.0, -2.0)),
            (vec![-12.0, -1.2], (-12.0, 0.0)),
            (vec![-6.3, -3.9], (-7.0, -3.0)),
            (vec![2.0, 2.0], (2.0, 4.0)),
        ] {
            assert_eq!(decades(exponents.iter().copied()), ends, "{exponents:?}");
        }
    }
}

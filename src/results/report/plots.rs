//! Pictures as SVG text, in dark ink: the page gives them a white card.

use std::error::Error;
use std::fmt::Write;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::series::Points;
use crate::measure::Latency;
use crate::results::format::duration;

/// Colours that stay apart for colour-blind readers and on white.
pub(super) const BLUE: &str = "#1f5fbf";
pub(super) const ORANGE: &str = "#c2570c";
pub(super) const GREY: &str = "#8a919c";
const INK: RGBColor = RGBColor(31, 41, 55);
const GRID: RGBColor = RGBColor(229, 231, 235);
pub(super) const SIZE: (u32, u32) = (760, 300);

/// One line of a plot.
pub(super) struct Line {
    pub(super) colour: &'static str,
    pub(super) points: Points,
}

type Drawn = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b, X, Y> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<<X as AsRangedCoord>::CoordDescType, <Y as AsRangedCoord>::CoordDescType>,
>;

/// Lines over steps on a log axis, from the decade of `floor` up.
pub(super) fn log_lines(lines: &[Line], floor: f64, y_name: &str) -> String {
    let top = lines.iter().flat_map(|line| &line.points).map(|point| point.1).fold(floor, f64::max);
    let decades = floor.log10().floor()..(top.log10() + 1e-9).ceil();
    let range = 10f64.powf(decades.start)..10f64.powf(decades.end.max(decades.start + 1.0));
    let ranges = (x_range(lines), range.log_scale());
    picture(|area| chart(area, ranges, ["step", y_name], [&whole, &power], lines))
}

/// Lines over steps on a plain axis that starts at `bottom`.
pub(super) fn lines(lines: &[Line], bottom: f64, y_name: &str) -> String {
    let top =
        lines.iter().flat_map(|line| &line.points).map(|point| point.1).fold(bottom, f64::max);
    let ranges = (x_range(lines), bottom..bottom + ((top - bottom) * 1.08).max(0.1));
    let label = |y: &f64| format!("{y:.2}");
    picture(|area| chart(area, ranges, ["step", y_name], [&whole, &label], lines))
}

/// Shares over milliseconds.
pub(super) fn shares_in_time(lines: &[Line]) -> String {
    let label = |share: &f64| format!("{:.0} %", share * 100.0);
    let ranges = (x_range(lines), 0.0..1.02);
    picture(|area| chart(area, ranges, [TIME, "share"], [&whole, &label], lines))
}

/// Latencies in ns over milliseconds, on a log axis.
pub(super) fn latency_in_time(lines: &[Line]) -> String {
    let values = || lines.iter().flat_map(|line| &line.points).map(|point| point.1);
    let low = values().fold(f64::INFINITY, f64::min);
    let low = if low.is_finite() { low.max(1.0).log10().floor() } else { 0.0 };
    let high = (values().fold(1.0, f64::max).log10() + 1e-9).ceil().max(low + 1.0);
    let y = (10f64.powf(low)..10f64.powf(high)).log_scale();
    let label = |ns: &f64| nanoseconds(*ns);
    let ranges = (x_range(lines), y);
    picture(|area| chart(area, ranges, [TIME, "latency"], [&whole, &label], lines))
}

const TIME: &str = "virtual time, ms";

/// Latency over the percentile, each further nine as wide as the one before. The curve ends at the
/// maximum, drawn where one sample is left.
#[expect(clippy::cast_precision_loss, reason = "positions on an axis")]
pub(super) fn percentile_curve(latency: &Latency) -> Option<String> {
    let nines = (latency.count() as f64).log10();
    let quantiles = (0..400).map(|at| nines * f64::from(at) / 400.0);
    let points: Points = quantiles
        .map(|x| (x, 1.0 - 10f64.powf(-x)))
        .chain([(nines, 1.0)])
        .filter_map(|(x, q)| Some((x, latency.quantile(q)?.max(1) as f64)))
        .collect();
    over_percentiles(&[Line { colour: BLUE, points }], "percentile of requests")
}

/// Times over percentiles, x as many nines as the percentile has; none without points.
pub(super) fn over_percentiles(lines: &[Line], x_name: &str) -> Option<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let (low, high) = (
        points().map(|point| point.1).min_by(f64::total_cmp)?.max(1.0),
        points().map(|point| point.1).max_by(f64::total_cmp)?,
    );
    let decades = low.log10().floor()..(high.log10() + 1e-9).ceil();
    let y = 10f64.powf(decades.start)..10f64.powf(decades.end.max(decades.start + 1.0));
    let percentile = |x: &f64| {
        if (x - x.round()).abs() > 1e-6 {
            return String::new();
        }
        match x.round() {
            0.0 => "0 %".to_owned(),
            1.0 => "90 %".to_owned(),
            nines => format!("99.{} %", "9".repeat(nine_count(nines))).replace("99. ", "99 "),
        }
    };
    let nines = points().map(|point| point.0).fold(0.0, f64::max);
    let x = 0.0..nines.ceil().max(1.0);
    Some(picture(|area| {
        let label = |y: &f64| nanoseconds(*y);
        chart(area, (x, y.log_scale()), [x_name, "latency"], [&percentile, &label], lines)
    }))
}

/// A measured point, each value with half of its interval, 0 for none.
pub(super) struct Mark {
    pub(super) colour: &'static str,
    pub(super) x: (f64, f64),
    pub(super) y: (f64, f64),
}

/// Points with bars as long as their intervals.
pub(super) fn scatter(
    marks: &[Mark],
    names: [&str; 2],
    labels: [&dyn Fn(&f64) -> String; 2],
) -> String {
    let range = |of: fn(&Mark) -> (f64, f64)| {
        let ends = || marks.iter().map(of);
        let low = ends().map(|(mean, half)| mean - half).fold(f64::INFINITY, f64::min);
        let high = ends().map(|(mean, half)| mean + half).fold(f64::NEG_INFINITY, f64::max);
        let room = (0.08 * (high - low)).max(1e-9 + 1e-3 * high.abs());
        if low <= high { low - room..high + room } else { 0.0..1.0 }
    };
    picture(|area| {
        let (x, y) = (range(|mark| mark.x), range(|mark| mark.y));
        let mut chart = axes(area, WIDE_LABELS, (x, y), names, labels)?;
        for Mark { colour, x, y } in marks {
            let colour = rgb(colour);
            let bars = [[(x.0 - x.1, y.0), (x.0 + x.1, y.0)], [(x.0, y.0 - y.1), (x.0, y.0 + y.1)]];
            chart.draw_series(
                bars.map(|bar| PathElement::new(bar.to_vec(), colour.stroke_width(1))),
            )?;
            chart.draw_series(std::iter::once(Circle::new((x.0, y.0), 4, colour.filled())))?;
        }
        Ok(())
    })
}

/// Loads over their mean, each list sorted on its own, the control behind.
#[expect(clippy::cast_precision_loss, reason = "bar heights")]
pub(super) fn sorted_loads(control: &[u64], loads: &[u64]) -> String {
    let relative = |loads: &[u64]| {
        let mean = loads.iter().map(|load| *load as f64).sum::<f64>() / loads.len().max(1) as f64;
        let mut heights: Vec<f64> =
            loads.iter().map(|load| if mean > 0.0 { *load as f64 / mean } else { 0.0 }).collect();
        heights.sort_by(|a, b| b.total_cmp(a));
        heights
    };
    let (before, after) = (relative(control), relative(loads));
    let experts = before.len().max(after.len()) as f64;
    let top = before.iter().chain(&after).copied().fold(1.0, f64::max) * 1.08;
    picture(|area| {
        let margins = Margins { right: 10, ..LABELS };
        let names = ["experts, hottest first", "load ÷ mean"];
        let ranges = (0.0..experts, 0.0..top);
        let mut chart = axes(area, margins, ranges, names, [&whole, &|y| format!("{y:.1}")])?;
        for (heights, colour, inset) in [(&before, GREY, 0.04), (&after, BLUE, 0.24)] {
            let style = rgb(colour).filled();
            chart.draw_series(heights.iter().enumerate().map(|(at, height)| {
                let x = at as f64;
                Rectangle::new([(x + inset, 0.0), (x + 1.0 - inset, *height)], style)
            }))?;
        }
        let even = PathElement::new(vec![(0.0, 1.0), (experts, 1.0)], INK.stroke_width(1));
        chart.draw_series(std::iter::once(even))?;
        Ok(())
    })
}

/// One cell an expert, one row a layer; more bits, darker. Returns the picture and the widths found.
pub(super) fn bit_map(layers: &[(u32, &[u32])]) -> String {
    const LEFT: usize = 80;
    const ROW: usize = 24;
    let experts = layers.iter().map(|(_, bits)| bits.len()).max().unwrap_or(0).max(1);
    let cell = ((SIZE.0 as usize - LEFT - 10) / experts).clamp(1, 40);
    let (width, height) = (SIZE.0, layers.len() * (ROW + 4) + 8);
    let mut svg =
        format!(r#"<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">"#);
    for (at, (layer, bits)) in layers.iter().enumerate() {
        let y = 4 + at * (ROW + 4);
        let text_y = y + ROW / 2 + 5;
        write!(svg, r##"<text x="4" y="{text_y}" font-family="sans-serif" font-size="13" fill="#1f2937">layer {layer}</text>"##)
            .expect("a string takes any text");
        for (expert, bits) in bits.iter().enumerate() {
            let x = LEFT + expert * cell;
            let gap = usize::from(cell > 3);
            write!(svg, r#"<rect x="{x}" y="{y}" width="{}" height="{ROW}" fill="{}"><title>expert {expert}: {bits} bits</title></rect>"#, cell - gap, bit_colour(*bits))
                .expect("a string takes any text");
            if cell >= 16 {
                let ink = if *bits >= 4 { "#ffffff" } else { "#1f2937" };
                let middle = x + (cell - gap) / 2;
                write!(svg, r#"<text x="{middle}" y="{text_y}" font-family="sans-serif" font-size="12" text-anchor="middle" fill="{ink}">{bits}</text>"#)
                    .expect("a string takes any text");
            }
        }
    }
    svg + "</svg>"
}

/// Light to dark with the bit width; `bit_map` writes dark on the light ones, below 4 bits.
pub(super) fn bit_colour(bits: u32) -> &'static str {
    match bits {
        0 => "#f3f4f6",
        1 | 2 => "#cfe0f7",
        3 => "#9dc0ee",
        4 => "#4a86d8",
        5..=8 => "#1f5fbf",
        9..=16 => "#123f86",
        _ => "#0a2450",
    }
}

/// A chart with lines; points are marked as well where there are few.
fn chart<Y>(
    area: &Area<'_>,
    ranges: (Range<f64>, Y),
    names: [&str; 2],
    labels: [&dyn Fn(&f64) -> String; 2],
    lines: &[Line],
) -> Drawn
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = axes(area, LABELS, ranges, names, labels)?;
    for line in lines {
        let colour = rgb(line.colour);
        chart.draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?;
        if line.points.len() <= 60 {
            let mark = |point: &(f64, f64)| Circle::new(*point, 3, colour.filled());
            chart.draw_series(line.points.iter().map(mark))?;
        }
    }
    Ok(())
}

/// Room beside a chart, pixels: for the labels of y on the left, and on the right.
#[derive(Clone, Copy)]
pub(super) struct Margins {
    left: u32,
    right: u32,
}

pub(super) const LABELS: Margins = Margins { left: 64, right: 24 };
/// Where labels of y are long.
pub(super) const WIDE_LABELS: Margins = Margins { left: 72, right: 24 };

/// An empty chart with its axes.
pub(super) fn axes<'a, 'b, X, Y>(
    area: &'a Area<'b>,
    margins: Margins,
    (x, y): (X, Y),
    [x_name, y_name]: [&str; 2],
    [x_label, y_label]: [&dyn Fn(&f64) -> String; 2],
) -> Result<Chart<'a, 'b, X, Y>, Box<dyn Error>>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(margins.right)
        .x_label_area_size(40)
        .y_label_area_size(margins.left)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(("sans-serif", 13, &INK))
        .axis_desc_style(("sans-serif", 14, &INK))
        .x_labels(8)
        .y_labels(7)
        .x_desc(x_name)
        .y_desc(y_name)
        .x_label_formatter(&x_label)
        .y_label_formatter(&y_label)
        .draw()?;
    Ok(chart)
}

/// The label of a whole number.
pub(super) fn whole(value: &f64) -> String {
    format!("{value:.0}")
}

/// Draws into a string. The name space of an SVG inside HTML is implied, and without it the page
/// holds no address at all.
pub(super) fn picture(draw: impl FnOnce(&Area<'_>) -> Drawn) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw(&area).expect("drawing into a string cannot fail");
        area.present().expect("drawing into a string cannot fail");
    }
    svg.replace(r#" xmlns="http://www.w3.org/2000/svg""#, "")
}

/// The steps of all lines; never empty.
fn x_range(lines: &[Line]) -> Range<f64> {
    let xs = || lines.iter().flat_map(|line| &line.points).map(|point| point.0);
    let (low, high) = (xs().fold(f64::INFINITY, f64::min), xs().fold(0.0, f64::max));
    let low = if low.is_finite() { low } else { 0.0 };
    low..high.max(low + 1.0)
}

pub(super) fn rgb(hex: &str) -> RGBColor {
    let channel = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("our own constants");
    RGBColor(channel(1), channel(3), channel(5))
}

/// `1e-4` for powers of ten, else two digits.
fn power(value: &f64) -> String {
    let exponent = value.log10();
    if (exponent - exponent.round()).abs() < 1e-6 && exponent.abs() > 2.5 {
        format!("1e{exponent:.0}")
    } else {
        format!("{value}")
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a latency within an hour"
)]
fn nanoseconds(value: f64) -> String {
    duration(Some(value.round() as u64))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "2 to 19 nines")]
fn nine_count(nines: f64) -> usize {
    (nines as usize).saturating_sub(2)
}

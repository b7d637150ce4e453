//! The pictures of a sweep.

use std::ops::Range;

use plotters::prelude::*;

use super::plots::{BLUE, GREY, LABELS, ORANGE, WIDE_LABELS, axes, picture, rgb, whole};
use super::sweep::{Effect, TargetCurve};
use crate::results::format::number;

/// Colours of groups, in their order.
pub(super) const COLOURS: [&str; 8] =
    [BLUE, ORANGE, "#17693b", "#8b2f7d", "#0e7490", "#a16207", GREY, "#1f2937"];

/// Values with names of their own on the axis, at most; more are dots by their place.
const NAMED_MAX: usize = 12;

/// Mean of a figure by the values of an axis, with intervals.
pub(super) fn effect(effect: &Effect) -> String {
    let is_scale = effect.values.len() > NAMED_MAX
        && effect.values.iter().all(|(_, place, _)| place.is_some());
    let place = |at: usize| match effect.values[at].1 {
        Some(place) if is_scale => place,
        _ => at as f64,
    };
    let ends = effect.values.iter().map(|(_, _, of)| {
        let half = of.half_width.unwrap_or(0.0);
        (of.mean - half, of.mean + half)
    });
    let y = around(ends.clone().map(|of| of.0), ends.map(|of| of.1));
    let places = || (0..effect.values.len()).map(place);
    let x = around(places(), places());
    let x = if is_scale { x } else { -0.5..effect.values.len() as f64 - 0.5 };
    let name = |x: &f64| {
        if is_scale {
            return number(Some(*x));
        }
        let at = (0..effect.values.len()).find(|at| (*at as f64 - x).abs() < 1e-6);
        at.map_or_else(String::new, |at| short(&effect.values[at].0))
    };
    picture(|area| {
        let names = [effect.key.as_str(), effect.figure.as_str()];
        let mut chart = axes(area, WIDE_LABELS, (x, y), names, [&name, &figure])?;
        let colour = rgb(BLUE);
        for (at, (_, _, of)) in effect.values.iter().enumerate() {
            let x = place(at);
            if let Some(half) = of.half_width {
                let bar = vec![(x, of.mean - half), (x, of.mean + half)];
                chart
                    .draw_series(std::iter::once(PathElement::new(bar, colour.stroke_width(2))))?;
            }
            chart.draw_series(std::iter::once(Circle::new((x, of.mean), 4, colour.filled())))?;
        }
        Ok(())
    })
}

/// The best so far by points tried.
pub(super) fn search(curve: &[(f64, f64)], of: &str) -> String {
    let y = around(curve.iter().map(|point| point.1), curve.iter().map(|point| point.1));
    let y = if curve.is_empty() { 0.0..1.0 } else { y };
    let last = curve.last().map_or(1.0, |point| point.0);
    picture(|area| {
        let (ranges, names) = ((0.0..last + 1.0, y), ["points tried", of]);
        let mut chart = axes(area, WIDE_LABELS, ranges, names, [&whole, &figure])?;
        let line = curve.iter().copied();
        chart.draw_series(LineSeries::new(line, rgb(BLUE).stroke_width(2)))?;
        Ok(())
    })
}

/// Share of targets reached by work, on a log axis.
pub(super) fn targets(curves: &[TargetCurve], work: &str) -> String {
    let works = || curves.iter().flat_map(|curve| &curve.points).map(|point| point.0);
    let low = works().fold(f64::INFINITY, f64::min);
    let low = if low.is_finite() { low.max(1.0) } else { 1.0 };
    let high = works().fold(low * 10.0, f64::max) * 1.2;
    picture(|area| {
        let ranges = ((low..high).log_scale(), 0.0..1.02);
        let names = [work, "share of targets reached"];
        let mut chart = axes(area, LABELS, ranges, names, [&figure, &|y| format!("{y:.1}")])?;
        for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
            let mut steps = vec![(low, 0.0)];
            for (work, share) in &curve.points {
                let before = steps.last().map_or(0.0, |step| step.1);
                steps.extend([(work.max(low), before), (work.max(low), *share)]);
            }
            steps.push((high, steps.last().map_or(0.0, |step| step.1)));
            chart.draw_series(LineSeries::new(steps, rgb(colour).stroke_width(2)))?;
        }
        Ok(())
    })
}

fn figure(value: &f64) -> String {
    number(Some(*value))
}

/// A range that holds all of it, with some room.
fn around(low: impl Iterator<Item = f64>, high: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = (low.fold(f64::INFINITY, f64::min), high.fold(f64::NEG_INFINITY, f64::max));
    let room = (0.08 * (high - low)).max(1e-9 + 1e-3 * high.abs());
    low - room..high + room
}

fn short(text: &str) -> String {
    const LONG: usize = 18;
    if text.chars().count() <= LONG {
        return text.to_owned();
    }
    text.chars().take(LONG - 1).chain(['…']).collect()
}

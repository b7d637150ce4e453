//! How figures are summed up and said.

use std::borrow::Borrow;

pub(crate) fn ascending(values: impl IntoIterator<Item: Borrow<f64>>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().map(|value| *value.borrow()).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The middle one; of an even number the upper of the two.
pub(crate) fn median(values: impl IntoIterator<Item: Borrow<f64>>) -> f64 {
    let values = ascending(values);
    values[values.len() / 2]
}

pub(crate) fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// Median, least and most.
pub(crate) fn spread(values: impl IntoIterator<Item: Borrow<f64>>, digits: usize) -> String {
    let values = ascending(values);
    let (least, median, most) = (values[0], values[values.len() / 2], values[values.len() - 1]);
    format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
}

/// Where a figure is to its limit.
pub(crate) fn verdict(value: f64, limit: f64) -> &'static str {
    if value <= limit { "within" } else { "above" }
}

//! Loads of every expert, step by step: rows are experts, columns steps.

use super::plots::SIZE;
use crate::results::StepLoads;
use std::fmt::Write as _;

/// Rows drawn at most: where there are more experts, the coldest are left out.
pub(super) const ROWS_MAX: usize = 128;

const LEFT: usize = 12;
const TOP: usize = 24;
const BETWEEN: usize = 24;

/// Shades up to twice the fair share and more, each with the least load ÷ fair share that it stands for.
pub(super) const SHADES: [(f64, &str, &str); 7] = [
    (0.0, "#f3f4f6", "none or nearly"),
    (0.25, "#cfe0f7", "a quarter"),
    (0.5, "#9dc0ee", "half"),
    (0.9, "#4a86d8", "about the fair share"),
    (1.1, "#f6c28b", "a tenth more"),
    (1.5, "#e8833a", "half more"),
    (2.0, "#b3420c", "twice and more"),
];

/// Plain top-k on the left, the router on the right, experts in the same order: the hottest under plain top-k first.
pub(super) fn map(steps: &[StepLoads]) -> String {
    let experts = steps.iter().map(|step| step.loads.len()).max().unwrap_or(0);
    let mut order: Vec<usize> = (0..experts).collect();
    let total = |expert: usize| -> u64 {
        let of = |step: &StepLoads| step.loads_top_k.get(expert).copied().map_or(0, u64::from);
        steps.iter().map(of).sum()
    };
    order.sort_by_key(|expert| (std::cmp::Reverse(total(*expert)), *expert));
    order.truncate(ROWS_MAX);
    let row = (320 / order.len().max(1)).clamp(3, 24);
    let panel = (SIZE.0 as usize - 2 * LEFT - BETWEEN) / 2;
    let cells = steps.len().max(1);
    let column = (panel / cells).clamp(2, 24);
    let (width, height) = (SIZE.0, TOP + order.len() * row + 8);
    let mut svg =
        format!(r#"<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">"#);
    let right = LEFT + panel + BETWEEN;
    for (name, left, is_control) in [("plain top-k", LEFT, true), ("router", right, false)] {
        write!(svg, r##"<text x="{left}" y="16" font-family="sans-serif" font-size="13" fill="#1f2937">{name}</text>"##)
            .expect("a string takes any text");
        for (at, step) in steps.iter().enumerate() {
            let loads = if is_control { &step.loads_top_k } else { &step.loads };
            let share =
                loads.iter().map(|load| f64::from(*load)).sum::<f64>() / loads.len().max(1) as f64;
            for (place, expert) in order.iter().enumerate() {
                let load = loads.get(*expert).copied().unwrap_or(0);
                let relative = if share > 0.0 { f64::from(load) / share } else { 0.0 };
                let (x, y) = (left + at * column, TOP + place * row);
                write!(
                    svg,
                    r#"<rect x="{x}" y="{y}" width="{column}" height="{row}" fill="{}"/>"#,
                    shade(relative)
                )
                .expect("a string takes any text");
            }
        }
    }
    svg + "</svg>"
}

fn shade(relative: f64) -> &'static str {
    let reached = SHADES.iter().rev().find(|(least, ..)| relative >= *least);
    reached.map_or(SHADES[0].1, |(_, colour, _)| colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_a_cell_an_expert_and_step_on_both_sides_and_shades_by_the_fair_share() {
        let step = |loads_top_k: &[u32], loads: &[u32]| StepLoads {
            loads_top_k: loads_top_k.to_vec(),
            loads: loads.to_vec(),
            ..StepLoads::default()
        };
        // The fair share is 4: nothing, twice, and even on the right.
        let svg = map(&[step(&[0, 8, 4], &[4, 4, 4]), step(&[0, 8, 4], &[4, 4, 4])]);
        assert_eq!(svg.matches("<rect").count(), 2 * 2 * 3);
        assert_eq!(svg.matches(SHADES[6].1).count(), 2);
        assert_eq!(svg.matches(SHADES[0].1).count(), 2);
        assert_eq!(svg.matches(SHADES[3].1).count(), 2 + 6);
        let first = svg.split("<rect").nth(1).expect("there are cells");
        assert!(first.contains(SHADES[6].1), "the hottest expert comes first: {first}");
        let many = map(&[step(&[1; 300], &[1; 300])]);
        assert_eq!(many.matches("<rect").count(), 2 * ROWS_MAX);
        assert_eq!(map(&[]).matches("<rect").count(), 0);
    }
}

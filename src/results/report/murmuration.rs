//! The flock in flight: loads of experts, step by step, as a picture that moves by itself.

use std::fmt::Write as _;

use crate::results::LayerFigures;

/// Seconds that a step is shown.
const STEP_S: f64 = 0.6;
/// Width and height of a panel.
const SIDE: f64 = 420.0;
/// The angle between neighbours on a sunflower's spiral.
const GOLDEN: f64 = 2.399_963_229_728_653;

/// A layer's experts as dots, plain top-k on the left and the router on the right: the area of a dot is
/// its load, a ring the fair share. None without two steps.
pub(super) fn in_flight(layer: &LayerFigures) -> Option<String> {
    let experts = layer.steps.first()?.loads.len();
    if layer.steps.len() < 2 || experts == 0 {
        return None;
    }
    let mut svg = format!(r#"<svg viewBox="0 0 {} {SIDE}">"#, 2.0 * SIDE);
    let seconds = STEP_S * layer.steps.len() as f64;
    let panels: [(f64, &str, &str); 2] =
        [(0.0, "plain top-k", super::plots::GREY), (SIDE, "router", super::plots::BLUE)];
    for (left, name, colour) in panels {
        write!(svg, r##"<text x="{}" y="18" font-family="sans-serif" font-size="14" fill="#1f2937">{name}</text>"##, left + 10.0)
            .expect("a string takes any text");
        for expert in 0..experts {
            let loads: Vec<f64> = layer
                .steps
                .iter()
                .map(|step| {
                    let loads = if left > 0.0 { &step.loads } else { &step.loads_top_k };
                    let mean = loads.iter().map(|n| f64::from(*n)).sum::<f64>() / experts as f64;
                    loads.get(expert).map_or(0.0, |n| f64::from(*n)) / mean.max(f64::MIN_POSITIVE)
                })
                .collect();
            let (x, y) = place(expert, experts);
            dot(&mut svg, (left + x, y), fair_radius(experts), &loads, (colour, seconds));
        }
    }
    Some(svg + "</svg>")
}

/// On a sunflower's spiral, all dots equally far from each other.
fn place(expert: usize, experts: usize) -> (f64, f64) {
    let out = 0.42 * SIDE * ((expert as f64 + 0.5) / experts as f64).sqrt();
    let angle = expert as f64 * GOLDEN;
    (SIDE / 2.0 + out * angle.cos(), SIDE / 2.0 + 10.0 + out * angle.sin())
}

/// Radius of a dot with the fair share: half of the room it has.
fn fair_radius(experts: usize) -> f64 {
    0.3 * 0.42 * SIDE * (std::f64::consts::PI / experts as f64).sqrt()
}

fn dot(
    svg: &mut String,
    (x, y): (f64, f64),
    fair: f64,
    loads: &[f64],
    (colour, seconds): (&str, f64),
) {
    let mut radii = String::new();
    for load in loads.iter().chain(loads.first()) {
        let end = if radii.is_empty() { "" } else { ";" };
        write!(radii, "{end}{:.1}", fair * load.sqrt()).expect("a string takes any text");
    }
    let first = fair * loads.first().copied().unwrap_or(0.0).sqrt();
    write!(
        svg,
        r##"<circle cx="{x:.1}" cy="{y:.1}" r="{first:.1}" fill="{colour}" fill-opacity="0.7"><animate attributeName="r" values="{radii}" dur="{seconds:.1}s" repeatCount="indefinite"/></circle><circle cx="{x:.1}" cy="{y:.1}" r="{fair:.1}" fill="none" stroke="#1f2937" stroke-opacity="0.35"/>"##
    )
    .expect("a string takes any text");
}

#[cfg(test)]
mod tests {
    use super::in_flight;
    use crate::results::{LayerFigures, StepLoads};

    #[test]
    fn dots_grow_with_their_share_and_a_run_of_one_step_has_no_picture() {
        let step = |loads: [u32; 2]| StepLoads { loads_top_k: vec![8, 0], loads: loads.to_vec() };
        let mut layer = LayerFigures { steps: vec![step([4, 4])], ..LayerFigures::default() };
        assert_eq!(in_flight(&layer), None);
        layer.steps.push(step([2, 6]));
        let svg = in_flight(&layer).expect("two steps");
        assert_eq!(svg.matches("<animate").count(), 4, "two experts in two panels");
        let fair = super::fair_radius(2);
        assert!(
            svg.contains(&format!("{:.1};{:.1};{:.1}", fair, fair * 0.5_f64.sqrt(), fair)),
            "{svg}"
        );
        assert!(!svg.contains("script") && !svg.contains("http"));
    }
}

//! The flock in flight: loads of experts, step by step, as a picture that moves by itself.

use std::fmt::Write as _;

use crate::results::LayerFigures;

/// Seconds that a step is shown.
const STEP_S: f64 = 0.6;
/// Width and height of a panel.
const SIDE: f64 = 420.0;
/// Colour of tokens.
pub(super) const TOKEN: &str = "#c2570c";
/// Experts whose fair share is drawn as a ring, at most: more rings hide the dots.
const RINGED_MAX: usize = 512;
/// The angle between neighbours on a sunflower's spiral.
const GOLDEN: f64 = 2.399_963_229_728_653;

/// Seconds that the picture takes.
pub(super) fn seconds(layer: &LayerFigures) -> f64 {
    STEP_S * layer.steps.len() as f64
}

/// A layer's experts as dots, plain top-k on the left and the router on the right: the area of a dot is
/// its load, a ring the fair share, on the right the colour its bits. They lie where their router rows do, or on a
/// spiral where that is not known; small dots are tokens, at a scale of their own. None without two steps.
pub(super) fn in_flight(layer: &LayerFigures) -> Option<String> {
    let experts = layer.steps.first()?.loads.len();
    if layer.steps.len() < 2 || experts == 0 {
        return None;
    }
    let places = places(layer, experts);
    let mut svg = format!(r#"<svg viewBox="0 0 {} {SIDE}">"#, 2.0 * SIDE);
    let seconds = seconds(layer);
    let panels = [(0.0, "plain top-k"), (SIDE, "router")];
    for (left, name) in panels {
        write!(svg, r##"<text x="{}" y="18" font-family="sans-serif" font-size="14" fill="#1f2937">{name}</text>"##, left + 10.0)
            .expect("a string takes any text");
        for (expert, (x, y)) in places.iter().enumerate() {
            let loads: Vec<f64> = layer
                .steps
                .iter()
                .map(|step| {
                    let loads = if left > 0.0 { &step.loads } else { &step.loads_top_k };
                    let mean = loads.iter().map(|n| f64::from(*n)).sum::<f64>() / experts as f64;
                    loads.get(expert).map_or(0.0, |n| f64::from(*n)) / mean.max(f64::MIN_POSITIVE)
                })
                .collect();
            let bits = layer.bits.get(expert).filter(|_| layer.bits.len() == experts);
            let colour = match bits {
                Some(bits) if left > 0.0 => super::plots::bit_colour(*bits),
                None if left > 0.0 => super::plots::BLUE,
                _ => super::plots::GREY,
            };
            dot(&mut svg, (left + x, *y), experts, &loads, (colour, seconds));
        }
        tokens(&mut svg, left, layer, seconds);
    }
    Some(svg + "</svg>")
}

/// Where each expert is drawn within a panel.
fn places(layer: &LayerFigures, experts: usize) -> Vec<(f64, f64)> {
    if layer.places.len() != experts {
        return (0..experts).map(|expert| place(expert, experts)).collect();
    }
    let most = farthest(&layer.places);
    layer.places.iter().map(|at| within(*at, most)).collect()
}

/// The largest coordinate, at least 1.
fn farthest(places: &[[i16; 2]]) -> f64 {
    let sizes = places.iter().flatten().map(|at| f64::from(at.unsigned_abs()));
    sizes.fold(1.0, f64::max)
}

fn within([x, y]: [i16; 2], most: f64) -> (f64, f64) {
    let on = |at: i16| SIDE / 2.0 + 0.44 * SIDE * f64::from(at) / most;
    (on(x), on(y) + 10.0)
}

/// The tokens that every step has, each moving from step to step.
fn tokens(svg: &mut String, left: f64, layer: &LayerFigures, seconds: f64) {
    let count = layer.steps.iter().map(|step| step.tokens.len()).min().unwrap_or(0);
    let all: Vec<[i16; 2]> = layer.steps.iter().flat_map(|step| step.tokens.clone()).collect();
    let most = farthest(&all);
    for token in 0..count {
        let at = layer.steps.iter().chain(layer.steps.first());
        // Where it is drawn by what shows no motion.
        let (x, y) = within(layer.steps[0].tokens[token], most);
        let first = format!(r#"cx="{:.0}" cy="{y:.0}""#, left + x);
        let (mut xs, mut ys) = (String::new(), String::new());
        for (x, y) in at.map(|step| within(step.tokens[token], most)) {
            let end = if xs.is_empty() { "" } else { ";" };
            write!(xs, "{end}{:.0}", left + x).expect("a string takes any text");
            write!(ys, "{end}{y:.0}").expect("a string takes any text");
        }
        write!(
            svg,
            r##"<circle {first} r="1.6" fill="{TOKEN}" fill-opacity="0.8"><animate attributeName="cx" values="{xs}" dur="{seconds:.1}s" calcMode="discrete" repeatCount="indefinite"/><animate attributeName="cy" values="{ys}" dur="{seconds:.1}s" calcMode="discrete" repeatCount="indefinite"/></circle>"##
        )
        .expect("a string takes any text");
    }
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
    experts: usize,
    loads: &[f64],
    (colour, seconds): (&str, f64),
) {
    let fair = fair_radius(experts);
    let mut radii = String::new();
    for load in loads.iter().chain(loads.first()) {
        let end = if radii.is_empty() { "" } else { ";" };
        write!(radii, "{end}{:.1}", fair * load.sqrt()).expect("a string takes any text");
    }
    let first = fair * loads.first().copied().unwrap_or(0.0).sqrt();
    write!(
        svg,
        r##"<circle cx="{x:.1}" cy="{y:.1}" r="{first:.1}" fill="{colour}" fill-opacity="0.7"><animate attributeName="r" values="{radii}" dur="{seconds:.1}s" repeatCount="indefinite"/></circle>"##
    )
    .expect("a string takes any text");
    if experts <= RINGED_MAX {
        write!(svg, r##"<circle cx="{x:.1}" cy="{y:.1}" r="{fair:.1}" fill="none" stroke="#1f2937" stroke-opacity="0.35"/>"##)
            .expect("a string takes any text");
    }
}

#[cfg(test)]
mod tests {
    use super::in_flight;
    use crate::results::{LayerFigures, StepLoads};

    #[test]
    fn dots_grow_with_their_share_and_a_run_of_one_step_has_no_picture() {
        let step = |loads: [u32; 2]| StepLoads {
            loads_top_k: vec![8, 0],
            loads: loads.to_vec(),
            tokens: vec![[500, -500]],
        };
        let mut layer = LayerFigures { steps: vec![step([4, 4])], ..LayerFigures::default() };
        assert_eq!(in_flight(&layer), None);
        layer.steps.push(step([2, 6]));
        let svg = in_flight(&layer).expect("two steps");
        let moving = 2 * (2 + 2);
        assert_eq!(svg.matches("<animate").count(), moving, "two experts and a token, twice");
        layer.places = vec![[900, 0], [-450, 450]];
        layer.bits = vec![2, 8];
        let placed = in_flight(&layer).expect("two steps");
        let (right, _) = super::within([900, 0], 900.0);
        assert!(placed.contains(&format!(r#"<circle cx="{right:.1}" cy="220.0""#)), "{placed}");
        assert!(placed.contains(super::super::plots::bit_colour(8)), "coloured by bits");
        let fair = super::fair_radius(2);
        assert!(
            svg.contains(&format!("{:.1};{:.1};{:.1}", fair, fair * 0.5_f64.sqrt(), fair)),
            "{svg}"
        );
        assert!(!svg.contains("script") && !svg.contains("http"));
    }
}

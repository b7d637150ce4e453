//! Writes docs/swarm.md: points to a target for each optimiser, beside random draws.
//!
//! `cargo bench --bench swarm_table > docs/swarm.md`
#![allow(clippy::print_stdout, reason = "the page is the output")]

mod shared;

use agents::swarm::landscape::{Landscape, Shape};
use agents::swarm::{Bounds, Kind, advance};
use rayon::prelude::*;
use shared::figures::ascending;

const DIMENSIONS: usize = 10;
const HALF_WIDTH: f64 = 5.0;
const REACH: f64 = 4.0;
const SEEDS: u64 = 20;
const POINTS_MAX: usize = 100_000;
const TARGETS: [f64; 3] = [1e1, 1e-1, 1e-8];

/// One search: points until each target, and the cost at the end.
struct Search {
    hits: [Option<usize>; TARGETS.len()],
    left: f64,
}

fn main() {
    print!("{}", include_str!("swarm_table.md"));
    for shape in Shape::ALL {
        println!("\n## {}\n", shape.name());
        let heads = TARGETS.map(|target| format!("solved to {target:e} | points |"));
        println!("| search | {} cost left |", heads.join(" "));
        println!("|---|{}---:|", "---:|---:|".repeat(TARGETS.len()));
        for kind in Kind::ALL {
            let searches: Vec<Search> =
                (0..SEEDS).into_par_iter().map(|seed| search(kind, shape, seed)).collect();
            row(kind, &searches);
        }
    }
}

fn search(kind: Kind, shape: Shape, seed: u64) -> Search {
    let landscape = Landscape::new(shape, DIMENSIONS, REACH, seed);
    let bounds = vec![(-HALF_WIDTH, HALF_WIDTH); DIMENSIONS];
    let mut optimizer = kind.build(Bounds::new(bounds).expect("in order"), seed);
    let mut hits = [None; TARGETS.len()];
    let (mut points, mut least) = (0, f64::INFINITY);
    while points < POINTS_MAX && hits.contains(&None) {
        advance(optimizer.as_mut(), |x| {
            let cost = landscape.at(x);
            points += 1;
            least = least.min(cost);
            let missed = hits.iter_mut().zip(TARGETS).filter(|(hit, _)| hit.is_none());
            missed.filter(|(_, target)| least <= *target).for_each(|(hit, _)| *hit = Some(points));
            cost
        });
    }
    Search { hits, left: least }
}

fn row(kind: Kind, searches: &[Search]) {
    let cells: Vec<String> = (0..TARGETS.len())
        .map(|target| {
            let solved = searches.iter().filter(|search| search.hits[target].is_some()).count();
            let spent: usize =
                searches.iter().map(|search| search.hits[target].unwrap_or(POINTS_MAX)).sum();
            let expected =
                spent.checked_div(solved).map_or("never".into(), |points| points.to_string());
            format!("{solved} | {expected}")
        })
        .collect();
    let left = ascending(searches.iter().map(|search| search.left));
    let (median, last) = (left[left.len() / 2], left[left.len() - 1]);
    println!(
        "| `{}` | {} | {median:.1e} ({:.1e} to {last:.1e}) |",
        kind.name(),
        cells.join(" | "),
        left[0]
    );
}

//! `report.html`: one file that loads nothing, made from the other files of the run.

mod blocks;
mod cards;
mod heat;
mod html;
mod murmuration;
mod pictures;
mod plots;
mod series;
pub mod sweep;
mod sweep_plots;
mod theory;
mod timeline;
mod uplinks;

use crate::measure::Latency;
use crate::results::{Layers, Manifest, RoundRow, Summary, Timeline};

pub use html::render;

/// What a report shows.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// `manifest.json`.
    pub manifest: Manifest,
    /// `summary.json`.
    pub summary: Summary,
    /// `layers.json`, where it was written.
    pub layers: Option<Layers>,
    /// `timeline.json`, where it was written.
    pub timeline: Option<Timeline>,
    /// `rounds.parquet`; empty where it was not finished.
    pub rounds: Vec<RoundRow>,
    /// `hist/requests.hlog`, where it was written.
    pub latency: Option<Latency>,
}

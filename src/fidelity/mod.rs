//! How near virtual time is to real time: what a run observed, parameters fitted to it, and predicted times beside
//! measured ones.

mod fitted;
mod times;

pub use fitted::{fitted_text, fitted_toml};
pub use times::{Comparison, Figure, Statistic, Times};

use crate::results::{ObservedRow, ResultsError, RunDir};
use agents::cluster::Work;
use agents::cluster::fit::{Leg, Watched};
use agents::ids::NodeId;
use std::path::PathBuf;

/// Why a run says nothing of times.
#[derive(Debug, thiserror::Error)]
pub enum FidelityError {
    /// It was not observed.
    #[error(
        "{} has no observed.parquet, which `nashflock run --observe` writes: play the run with it",
        path.display()
    )]
    NotObserved {
        /// The run.
        path: PathBuf,
    },
    /// It answered nothing.
    #[error("{} observed no whole round, so there is nothing to learn from", path.display())]
    Empty {
        /// The run.
        path: PathBuf,
    },
    /// Its files.
    #[error(transparent)]
    Results(#[from] ResultsError),
}

/// The rounds that a run observed, without those in which an order was hedged or asked again.
///
/// # Errors
/// It was not observed, or its table cannot be read.
pub fn rounds(dir: &RunDir) -> Result<Vec<Watched>, FidelityError> {
    let path = || dir.path().to_owned();
    if !dir.path().join("observed.parquet").exists() {
        return Err(FidelityError::NotObserved { path: path() });
    }
    let rows: Vec<ObservedRow> = dir.read_table()?;
    let rounds: Vec<Watched> = rows
        .chunk_by(|a, b| (a.step, a.layer) == (b.step, b.layer))
        .filter(|round| round.len() == round[0].orders as usize)
        .map(watched)
        .collect();
    if rounds.is_empty() { Err(FidelityError::Empty { path: path() }) } else { Ok(rounds) }
}

fn watched(rows: &[ObservedRow]) -> Watched {
    let leg = |row: &ObservedRow| Leg {
        node: NodeId(row.node),
        work: Work {
            pairs: row.pairs,
            weight_bytes: row.weight_bytes,
            pass_bytes: row.pass_bytes,
            request_bytes: row.request_bytes,
            reply_bytes: row.reply_bytes,
        },
        compute_ns: row.compute_ns,
        leg_ns: row.leg_ns,
    };
    Watched {
        tokens: rows[0].tokens,
        is_first: rows[0].layer == 0,
        coordinator_ns: rows[0].coordinator_ns,
        legs: rows.iter().map(leg).collect(),
    }
}

//! Who hears whom: the graph along which experts tell each other what they do.

use super::neighbours::nearest;
use crate::ids::ExpertId;
use crate::rng::stream;
use rand::seq::index::sample;

/// A rule by which each expert gets its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Graph {
    /// The experts at the smallest angle: the flock's own graph.
    Nearest,
    /// The next ones by number on both sides, a control that knows nothing of the tokens.
    Ring,
    /// Others drawn at random, each expert the same number of them; a control.
    Random,
    /// All others: no locality, the control that costs most messages.
    Complete,
}

impl Graph {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Nearest, Self::Ring, Self::Random, Self::Complete];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Ring => "ring",
            Self::Random => "random",
            Self::Complete => "complete",
        }
    }

    /// The experts that each expert hears. `positions` is row-major `[experts, width]`, what the
    /// angle is between; it is read by `Nearest` alone. With fewer than `count + 1` experts each
    /// hears all the others.
    ///
    /// # Panics
    /// When `positions` does not hold whole rows.
    #[must_use]
    pub fn neighbourhoods(
        self,
        positions: &[f32],
        experts: usize,
        count: usize,
        seed: u64,
    ) -> Vec<Vec<ExpertId>> {
        let count = count.min(experts - 1);
        match self {
            Self::Nearest => nearest(positions, experts, count),
            Self::Ring => {
                let step = |e: usize, n: usize| {
                    let far = n / 2 + 1;
                    ExpertId::from_index(
                        if n.is_multiple_of(2) { e + far } else { e + experts - far } % experts,
                    )
                };
                (0..experts).map(|e| (0..count).map(|n| step(e, n)).collect()).collect()
            }
            Self::Random => {
                let mut rng = stream(seed, "flock graph");
                let mut draw = |e: usize| {
                    let others = sample(&mut rng, experts - 1, count).into_iter();
                    others.map(|o| ExpertId::from_index(o + usize::from(o >= e))).collect()
                };
                (0..experts).map(&mut draw).collect()
            }
            Self::Complete => {
                let others = |e: usize| (0..experts).filter(move |o| *o != e);
                (0..experts).map(|e| others(e).map(ExpertId::from_index).collect()).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Graph;
    use std::collections::BTreeSet;

    #[test]
    fn nobody_hears_itself_or_anybody_twice_and_all_hear_as_many() {
        let positions: Vec<f32> = (0..9_u8).flat_map(|e| [f32::from(e), 1.0]).collect();
        for (graph, count) in Graph::ALL.into_iter().flat_map(|g| [1, 4, 7, 20].map(|c| (g, c))) {
            let near = graph.neighbourhoods(&positions, 9, count, 3);
            let expected = if graph == Graph::Complete { 8 } else { count.min(8) };
            for (expert, heard) in near.iter().enumerate() {
                let set: BTreeSet<usize> = heard.iter().map(|h| h.index()).collect();
                assert_eq!((set.len(), heard.len()), (expected, expected), "{graph:?}");
                assert!(!set.contains(&expert), "{graph:?}");
            }
        }
        assert!(Graph::Ring.neighbourhoods(&[], 1, 7, 0)[0].is_empty(), "a lone expert");
    }
}

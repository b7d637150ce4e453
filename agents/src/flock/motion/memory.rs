//! What rows in motion carry from batch to batch.

use super::{LayerMotion, scaled};
use crate::linear::Weights;
use serde::{Deserialize, Serialize};

/// What a rule carries from batch to batch beside what it sees.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RuleMemory {
    /// Tables of its own.
    #[serde(with = "crate::plain_bytes")]
    pub tables: Vec<Vec<f32>>,
    /// Where its random stream stands: words drawn.
    pub draws: u128,
}

/// The rows of one layer, and what their rule carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MotionMemory {
    /// Directions and velocities.
    #[serde(with = "crate::plain_bytes")]
    tables: Vec<Vec<f32>>,
    moves: u64,
    undone: u64,
    rule: RuleMemory,
}

impl LayerMotion {
    /// What the batches so far have left.
    #[must_use]
    pub fn memory(&self) -> MotionMemory {
        MotionMemory {
            tables: vec![self.rows.clone(), self.velocities.clone()],
            moves: self.moves,
            undone: self.undone,
            rule: self.rule.memory(),
        }
    }

    /// Whether the memory is that of a layer with as many and as long rows.
    #[must_use]
    pub fn fits(&self, memory: &MotionMemory) -> bool {
        memory.tables.len() == 2 && memory.tables.iter().all(|of| of.len() == self.rows.len())
    }

    /// Goes on from a memory.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn recall(&mut self, memory: MotionMemory) {
        assert!(self.fits(&memory), "a memory of this layer");
        let mut tables = memory.tables.into_iter();
        let mut table = || tables.next().expect("rows and velocities");
        (self.rows, self.velocities) = (table(), table());
        (self.moves, self.undone) = (memory.moves, memory.undone);
        // Rows that never moved are the trained ones, to the last bit.
        if self.moves > self.undone {
            let rows = scaled(&self.rows, &self.lengths, self.width);
            self.weights = Weights::from_rows(&rows, self.width);
        }
        self.rule.recall(memory.rule);
    }
}

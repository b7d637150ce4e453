//! BLAKE3 of a stream that can be stopped, stored and gone on with: the library's own hasher cannot be
//! stored.

use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use blake3::{Hash, Hasher};
use serde::{Deserialize, Serialize};

/// Bytes that are hashed together: 16 chunks, as many as the widest kernel takes.
const PIECE_BYTES: usize = 16 << 10;

/// The tree of BLAKE3 (section 2.1 of its paper) over whole pieces, and the bytes after them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::run) struct StateHash {
    /// Chaining values of complete subtrees, the largest first: one for each bit of `pieces`.
    subtrees: Vec<ChainingValue>,
    /// Whole pieces so far.
    pieces: u64,
    /// Not hashed yet: at least a byte after the first update, for the last piece is finished otherwise.
    tail: Vec<u8>,
}

impl StateHash {
    pub(in crate::run) fn update(&mut self, mut bytes: &[u8]) {
        while self.tail.len() + bytes.len() > PIECE_BYTES {
            let (now, later) = bytes.split_at(PIECE_BYTES - self.tail.len());
            self.tail.extend_from_slice(now);
            self.fold();
            bytes = later;
        }
        self.tail.extend_from_slice(bytes);
    }

    /// The hash of all bytes so far.
    pub(in crate::run) fn finalize(&self) -> Hash {
        let Some((first, between)) = self.subtrees.split_first() else {
            return blake3::hash(&self.tail);
        };
        let join = |right, left: &ChainingValue| merge_subtrees_non_root(left, &right, Mode::Hash);
        let right = between.iter().rev().fold(self.tail_value(), join);
        merge_subtrees_root(first, &right, Mode::Hash)
    }

    /// Makes a full tail part of the tree.
    fn fold(&mut self) {
        let mut value = self.tail_value();
        self.tail.clear();
        self.pieces += 1;
        for _ in 0..self.pieces.trailing_zeros() {
            let left = self.subtrees.pop().expect("one for each bit of the pieces before");
            value = merge_subtrees_non_root(&left, &value, Mode::Hash);
        }
        self.subtrees.push(value);
    }

    fn tail_value(&self) -> ChainingValue {
        let offset = self.pieces * PIECE_BYTES as u64;
        let mut hasher = Hasher::new();
        if offset > 0 {
            hasher.set_input_offset(offset);
        }
        hasher.update(&self.tail).finalize_non_root()
    }
}

#[cfg(test)]
mod tests {
    use super::{PIECE_BYTES, StateHash};

    #[test]
    fn it_is_blake3_wherever_it_was_stored_and_gone_on_with() {
        let bytes: Vec<u8> = (0..251).cycle().take(PIECE_BYTES * 9 + 77).collect();
        let edges = [0, 1, 1_024, PIECE_BYTES];
        let pieces = [2, 3, 4, 5, 7, 8, 9].map(|pieces| pieces * PIECE_BYTES);
        let lengths =
            edges.iter().chain(&pieces).flat_map(|at| [at.saturating_sub(1), *at, at + 1]);
        for length in lengths.chain([bytes.len()]) {
            for step in [PIECE_BYTES * 3 + 5, 4_099, PIECE_BYTES] {
                let mut hash = StateHash::default();
                for part in bytes[..length].chunks(step) {
                    hash.update(part);
                    let stored = postcard::to_stdvec(&hash).expect("plain data");
                    hash = postcard::from_bytes(&stored).expect("its own bytes");
                }
                assert_eq!(hash.finalize(), blake3::hash(&bytes[..length]), "{length} by {step}");
                assert!(hash.tail.len() <= PIECE_BYTES);
            }
        }
    }
}

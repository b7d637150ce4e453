//! Random streams of which there may be millions: eight bytes each, made from a named stream of the seed.

use crate::rng;
use rand::{Rng, RngExt as _, TryRng};
use std::convert::Infallible;

/// SplitMix64 (Steele, Lea and Flood 2014): a counter behind a mixing function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A permutation of 64 bits in which each bit of the argument moves half of the result's.
#[must_use]
pub(super) fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What all streams of one purpose have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamKey(u64);

impl StreamKey {
    /// Of `seed`, for a purpose: see [`crate::rng`].
    #[must_use]
    pub fn new(seed: u64, purpose: &str) -> Self {
        Self(rng::stream(seed, purpose).random())
    }

    /// The stream of one entity, or of one entity's event: the same for the same numbers.
    #[must_use]
    pub fn stream(self, entity: u64, event: u64) -> Stream {
        Stream(mixed(mixed(self.0 ^ mixed(entity.wrapping_add(GOLDEN))).wrapping_add(event)))
    }
}

impl Stream {
    /// A number above 0 and at most 1.
    pub(super) fn above_zero(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1_u64 << 53) as f64;
        ((self.next_u64() >> 11) + 1) as f64 * STEP
    }

    /// An index below `bound`, with a bias of at most `bound` in 2^64 (Lemire 2019).
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let high = (u128::from(self.next_u64()) * bound as u128) >> 64;
        usize::try_from(high).expect("below a usize")
    }
}

impl TryRng for Stream {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::try_from(self.try_next_u64()? >> 32).expect("32 bits"))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_add(GOLDEN);
        Ok(mixed(self.0))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            let word = self.try_next_u64()?.to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::StreamKey;
    use rand::Rng as _;

    #[test]
    fn streams_repeat_by_purpose_entity_and_event_and_are_even() {
        let key = StreamKey::new(1, "a");
        assert_eq!(key.stream(3, 4), key.stream(3, 4));
        for other in [key.stream(4, 4), key.stream(3, 5), StreamKey::new(1, "b").stream(3, 4)] {
            assert_ne!(key.stream(3, 4), other);
        }
        // Neighbouring entities, one draw each: as even as draws of one stream.
        let mut cells = [0_u32; 64];
        (0..64_000).for_each(|entity| cells[(key.stream(entity, 0).next_u64() % 64) as usize] += 1);
        let squares: f64 = cells.iter().map(|n| (f64::from(*n) - 1000.0).powi(2) / 1000.0).sum();
        assert!((25.0..=115.0).contains(&squares), "chi-squared of 63 degrees: {squares}");
        let mut stream = key.stream(0, 0);
        let mean = (0..100_000).map(|_| stream.above_zero()).sum::<f64>() / 1e5;
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
        assert!((0..1000).all(|_| stream.below(7) < 7));
    }
}

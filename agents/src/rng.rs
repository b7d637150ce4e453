//! Named random streams: one for each purpose, all from the scenario's seed.
//!
//! Drawing more from one stream never shifts another, so a new consumer of randomness leaves every
//! earlier result where it was.

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// The stream of `seed` for one purpose. Two names give independent streams of the same key.
#[must_use]
pub fn stream(seed: u64, purpose: &str) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(fnv1a(purpose.as_bytes()));
    rng
}

/// FNV-1a, 64 bit: a fixed hash, because the standard library's may change between releases.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::stream;
    use rand::RngExt as _;

    #[test]
    fn streams_repeat_by_name_and_seed_and_differ_otherwise() {
        let draw = |seed, name| stream(seed, name).random::<u64>();
        assert_eq!(draw(1, "arrivals"), draw(1, "arrivals"));
        assert_ne!(draw(1, "arrivals"), draw(1, "scores"));
        assert_ne!(draw(1, "arrivals"), draw(2, "arrivals"));
    }
}

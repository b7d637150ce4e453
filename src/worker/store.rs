//! The shards of one node, under a byte limit.

use agents::{
    expert::Expert,
    ids::{ExpertId, LayerId},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

/// Experts by layer and id. Their encoded bytes, and those of uploads under way, never exceed the
/// limit.
#[derive(Debug)]
pub struct Store {
    bytes_max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    shards: BTreeMap<(LayerId, ExpertId), Shard>,
    stored_bytes: usize,
    reserved_bytes: usize,
}

#[derive(Debug)]
struct Shard {
    expert: Arc<Expert>,
    bytes: usize,
}

/// A shard does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expert {expert} of layer {layer} needs {bytes} bytes but {free} of {bytes_max} are free: \
     use more nodes, fewer bits or a larger --shard-bytes-max"
)]
pub struct OverLimit {
    layer: LayerId,
    expert: ExpertId,
    bytes: usize,
    free: usize,
    bytes_max: usize,
}

/// Room kept for one upload; given back when dropped.
#[derive(Debug)]
pub struct Reservation<'a> {
    store: &'a Store,
    key: (LayerId, ExpertId),
    bytes: usize,
}

impl Store {
    /// An empty store of at most `bytes_max` encoded bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, held: Mutex::default() }
    }

    /// Keeps room for a shard. A shard that is already stored under the same ids will be replaced,
    /// so its bytes count as free.
    ///
    /// # Errors
    /// When the shard does not fit beside what is stored and on its way.
    pub fn reserve(
        &self,
        layer: LayerId,
        expert: ExpertId,
        bytes: usize,
    ) -> Result<Reservation<'_>, OverLimit> {
        let mut held = self.held();
        let replaced = held.shards.get(&(layer, expert)).map_or(0, |shard| shard.bytes);
        let free = (self.bytes_max + replaced)
            .saturating_sub(held.stored_bytes)
            .saturating_sub(held.reserved_bytes);
        if bytes > free {
            return Err(OverLimit { layer, expert, bytes, free, bytes_max: self.bytes_max });
        }
        held.reserved_bytes += bytes;
        Ok(Reservation { store: self, key: (layer, expert), bytes })
    }

    /// The expert, if this node holds it.
    #[must_use]
    pub fn get(&self, layer: LayerId, expert: ExpertId) -> Option<Arc<Expert>> {
        self.held().shards.get(&(layer, expert)).map(|shard| shard.expert.clone())
    }

    /// The encoded bytes of an expert, if this node holds it.
    #[must_use]
    pub fn bytes(&self, layer: LayerId, expert: ExpertId) -> Option<usize> {
        self.held().shards.get(&(layer, expert)).map(|shard| shard.bytes)
    }

    /// Takes an expert away, and says whether it was here. Whoever computes with it goes on with it.
    pub fn remove(&self, layer: LayerId, expert: ExpertId) -> bool {
        let mut held = self.held();
        let removed = held.shards.remove(&(layer, expert));
        held.stored_bytes -= removed.as_ref().map_or(0, |shard| shard.bytes);
        // An expert that nobody else uses is dropped after the lock.
        drop(held);
        removed.is_some()
    }

    /// Shards held and their encoded bytes.
    #[must_use]
    pub fn usage(&self) -> (usize, usize) {
        let held = self.held();
        (held.shards.len(), held.stored_bytes)
    }

    /// The limit.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no holder of this lock can panic")
    }
}

impl Reservation<'_> {
    /// Stores the expert whose encoding has the reserved length.
    pub fn store(self, expert: Expert) {
        let shard = Shard { expert: Arc::new(expert), bytes: self.bytes };
        let mut held = self.store.held();
        let replaced = held.shards.insert(self.key, shard);
        held.stored_bytes += self.bytes;
        held.stored_bytes -= replaced.as_ref().map_or(0, |shard| shard.bytes);
        // The reservation and then an expert that nobody else uses are dropped after the lock.
        drop(held);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.store.held().reserved_bytes -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::Store;
    use agents::{
        expert::{BitWidth, Expert, ExpertShape},
        ids::{ExpertId, LayerId},
    };

    fn expert() -> Expert {
        let shape = ExpertShape { width: 32, hidden: 32 };
        let part = vec![0.5; 32 * 32];
        Expert::quantize(shape, &part, &part, &part, BitWidth::Full, 32)
    }

    #[test]
    fn uploads_and_shards_share_one_limit_and_a_replaced_shard_frees_its_bytes() {
        let store = Store::new(100);
        let (layer, [a, b]) = (LayerId(0), [ExpertId(0), ExpertId(1)]);
        store.reserve(layer, a, 60).expect("fits an empty store").store(expert());
        assert_eq!(store.usage(), (1, 60));
        let refused = store.reserve(layer, b, 41).expect_err("60 + 41 is over 100").to_string();
        assert!(refused.contains("needs 41 bytes but 40 of 100 are free"), "{refused}");
        let pending = store.reserve(layer, b, 40).expect("fits exactly");
        assert!(store.reserve(LayerId(1), b, 1).is_err(), "the upload under way counts");
        drop(pending);
        store.reserve(layer, a, 100).expect("replaces the 60").store(expert());
        assert_eq!(store.usage(), (1, 100));
        assert!(store.get(layer, a).is_some() && store.get(layer, b).is_none());
        assert!(store.remove(layer, a) && !store.remove(layer, a));
        assert_eq!(store.usage(), (0, 0));
        assert!(store.get(layer, a).is_none() && store.reserve(layer, b, 100).is_ok());
    }
}

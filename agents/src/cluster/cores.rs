//! Cores that nodes of one host share.

/// When each core of a host is free; none where every node has as many as it needs.
///
/// Who has waited longest takes the core that is free first and keeps it to its end, as an operating system does
/// with work that is shorter than its time slices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cores {
    free_ns: Vec<u64>,
}

impl Cores {
    /// So many; 0: as many as are needed.
    #[must_use]
    pub fn of(cores: u32) -> Self {
        Self { free_ns: vec![0; cores as usize] }
    }

    /// When work that is there at `ready_ns` can have a core.
    pub(super) fn free_ns(&self, ready_ns: u64) -> u64 {
        self.free_ns.iter().min().map_or(ready_ns, |free_ns| ready_ns.max(*free_ns))
    }

    /// Takes the core that is free first until a time.
    pub(super) fn take(&mut self, until_ns: u64) {
        if let Some(free_ns) = self.free_ns.iter_mut().min() {
            *free_ns = until_ns;
        }
    }
}

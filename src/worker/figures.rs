//! What a node has done since it started and how it stands, for whoever watches it while it serves.

use super::serve::Shared;
use crate::measure::{BucketCounts, Buckets};
use crate::transport::{Attendance, Attending};
use proto::ComputeFault;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use tonic::Code;

/// Bounds of the computing times that are told apart, ns: from 10 µs to 10 s.
pub const COMPUTE_BOUNDS_NS: [u64; 13] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    10_000_000,
    50_000_000,
    250_000_000,
    1_000_000_000,
    10_000_000_000,
];

/// Why orders are answered without outputs.
const FAULTS: [(ComputeFault, &str); 7] = [
    (ComputeFault::UnknownExpert, "unknown_expert"),
    (ComputeFault::BadShape, "bad_shape"),
    (ComputeFault::Expired, "expired"),
    (ComputeFault::NotFinite, "not_finite"),
    (ComputeFault::OverLimit, "over_limit"),
    (ComputeFault::Corrupt, "corrupt"),
    (ComputeFault::Duplicate, "duplicate"),
];

/// Why calls are turned away at the door.
const CALLS: [&str; 2] = ["draining", "full"];

/// Why uploads of shards fail.
const UPLOADS: [&str; 5] = ["damaged", "no_room", "malformed", "stalled", "broken"];

/// The counters of a node; cheap enough to be counted whether or not anybody reads them.
#[derive(Debug)]
pub struct Figures {
    pub(super) orders: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) token_experts: AtomicU64,
    pub(super) computing: Buckets,
    pub(super) shards_loaded: AtomicU64,
    pub(super) shard_bytes_loaded: AtomicU64,
    pub(super) shards_dropped: AtomicU64,
    faults: [AtomicU64; FAULTS.len()],
    calls: [AtomicU64; CALLS.len()],
    uploads: [AtomicU64; UPLOADS.len()],
    node: OnceLock<Weak<Shared>>,
    attendance: OnceLock<Attendance>,
}

/// The same at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFigures {
    /// Orders that came, whatever became of them.
    pub orders: u64,
    /// Orders of these that were not computed because they had come before.
    pub duplicates: u64,
    /// Pairs of token and expert that were computed.
    pub token_experts: u64,
    /// Computing times of orders.
    pub computing: BucketCounts,
    /// Shards that arrived whole, those that replaced others included.
    pub shards_loaded: u64,
    /// Their encoded bytes.
    pub shard_bytes_loaded: u64,
    /// Shards that were taken away because the coordinator said so.
    pub shards_dropped: u64,
    /// Orders that were answered without outputs, by reason.
    pub orders_refused: Vec<(&'static str, u64)>,
    /// Calls that were turned away, by reason.
    pub calls_refused: Vec<(&'static str, u64)>,
    /// Uploads that failed, by reason.
    pub uploads_failed: Vec<(&'static str, u64)>,
    /// How it stands.
    pub standing: Standing,
    /// Who is connected; nobody where the node does not listen itself.
    pub attending: Attending,
}

/// How a node stands at a moment; all zero before it has started and after it has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Shards that it holds.
    pub shards: usize,
    /// Their encoded bytes.
    pub shard_bytes: usize,
    /// The most that these may be.
    pub shard_bytes_max: usize,
    /// Streams and uploads under way.
    pub calls: usize,
    /// Whether it takes nothing new.
    pub is_draining: bool,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            orders: AtomicU64::default(),
            duplicates: AtomicU64::default(),
            token_experts: AtomicU64::default(),
            computing: Buckets::new(&COMPUTE_BOUNDS_NS),
            shards_loaded: AtomicU64::default(),
            shard_bytes_loaded: AtomicU64::default(),
            shards_dropped: AtomicU64::default(),
            faults: Default::default(),
            calls: Default::default(),
            uploads: Default::default(),
            node: OnceLock::new(),
            attendance: OnceLock::new(),
        }
    }
}

impl Figures {
    /// What they are now.
    #[must_use]
    pub fn now(&self) -> NodeFigures {
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        let named = |names: &[&'static str], counters: &[AtomicU64]| {
            names.iter().copied().zip(counters.iter().map(load)).collect()
        };
        let node = self.node.get().and_then(Weak::upgrade);
        NodeFigures {
            orders: load(&self.orders),
            duplicates: load(&self.duplicates),
            token_experts: load(&self.token_experts),
            computing: self.computing.now(),
            shards_loaded: load(&self.shards_loaded),
            shard_bytes_loaded: load(&self.shard_bytes_loaded),
            shards_dropped: load(&self.shards_dropped),
            orders_refused: named(&FAULTS.map(|(_, name)| name), &self.faults),
            calls_refused: named(&CALLS, &self.calls),
            uploads_failed: named(&UPLOADS, &self.uploads),
            standing: node.map(|node| node.standing()).unwrap_or_default(),
            attending: self.attendance.get().map(Attendance::now).unwrap_or_default(),
        }
    }

    /// These are of that node. Of the first, should more than one be told.
    pub(super) fn are_of(&self, node: &Arc<Shared>) {
        let _ = self.node.set(Arc::downgrade(node));
    }

    /// The node listens there.
    pub(super) fn listens(&self, attendance: Attendance) {
        let _ = self.attendance.set(attendance);
    }

    /// An order is answered without outputs.
    pub(super) fn order_refused(&self, fault: ComputeFault) {
        if let Some(at) = FAULTS.iter().position(|(of, _)| *of == fault) {
            self.faults[at].fetch_add(1, Relaxed);
        }
    }

    /// A call is turned away.
    pub(super) fn call_refused(&self, is_draining: bool) {
        self.calls[usize::from(!is_draining)].fetch_add(1, Relaxed);
    }

    /// An upload failed.
    pub(super) fn upload_failed(&self, code: Code) {
        let at = match code {
            Code::DataLoss => 0,
            Code::ResourceExhausted => 1,
            Code::InvalidArgument => 2,
            Code::DeadlineExceeded => 3,
            _ => 4,
        };
        self.uploads[at].fetch_add(1, Relaxed);
    }
}

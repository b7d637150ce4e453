//! A cluster that takes no time: nodes, ways between them, faults and many front ends, in virtual time.
//!
//! Discrete events: a block of tokens arrives at a front end, which chooses experts and asks nodes; each node
//! serves in order of arrival; the block ends with its last expert's answer. There is no clock, socket or
//! thread in it but for the partitions of [`simulate`], on which results do not depend: events are taken in an
//! order that follows from who caused them, and every random number from a stream of whom it
//! concerns. What is idle takes bytes and no time, and nothing has a place for each expert on each node.
//!
//! [`Hardware`] serves single messages too: the virtual nodes of a run compute real experts with its times.

mod calendar;
mod choose;
mod copies;
mod cores;
pub mod demand;
mod engine;
mod faults;
pub mod fit;
mod fork;
mod front;
pub mod joint;
pub mod limits;
mod network;
mod node;
mod noise;
mod outcome;
mod prices;
mod settings;
mod stream;
mod uplinks;
mod widths;

pub use copies::{Copies, TooSmall};
pub use cores::Cores;
pub use demand::{Candidates, Popularity};
pub use engine::{Report, simulate};
pub use faults::{CrashRate, Fault, FaultPlan};
pub use fork::Fork;
pub use network::{Network, Port, Topology};
pub use node::{Hardware, Node, Served, Service, Work};
pub use noise::Noise;
pub use outcome::{Stretch, Tally, TokenCounts};
pub use prices::Pricing;
pub use settings::{Arrivals, ReplicaChoice, Settings};
pub use stream::{Stream, StreamKey};
pub use uplinks::{Link, LinkIds, LinkKind, LinkUse, Passed, Uplinks};
pub use widths::{ExpertBytes, WidthsTo, dealt as dealt_widths};

/// A time that was computed, as nanoseconds.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn whole_ns(time: f64) -> u64 {
    time.round() as u64
}

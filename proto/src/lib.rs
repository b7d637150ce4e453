//! Wire types of the expert and the membership service, generated from `nashflock/v1/*.proto`.
//!
//! A leaf crate: it names no type of `agents`. The translation lives in the root package's `wire`.
#![allow(missing_docs, unreachable_pub, reason = "generated code")]
#![allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated code")]

tonic::include_proto!("nashflock.v1");

/// Sizes and codec of the messages.
pub use prost::Message;

/// Encoded file descriptor set of the expert service, served by a worker's reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The same of the membership service, for a coordinator's.
pub const MEMBERSHIP_DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/membership.bin"));

//! Wire types of the expert service, generated from `nashflock/v1/expert.proto`.
//!
//! A leaf crate: it names no type of `agents`. The translation lives in the root package's `wire`.
#![allow(missing_docs, unreachable_pub, reason = "generated code")]
#![allow(clippy::all, clippy::undocumented_unsafe_blocks, reason = "generated code")]

tonic::include_proto!("nashflock.v1");

/// Sizes and codec of the messages.
pub use prost::Message;

/// Encoded file descriptor set, served by the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

//! What names the messages of a run, so that nodes compute none twice and no reply counts twice.

use crate::wire::Ticket;
use agents::ids::NodeId;
use agents::membership::Epoch;
use agents::orders::Orders;
use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};

/// Messages that are remembered as answered, to tell a second answer from a late one.
const ANSWERED_MAX: usize = 256;

/// The names that a dispatcher gave so far.
#[derive(Debug)]
pub(super) struct Identity {
    /// Drawn at random; not 0, which names none.
    run: u64,
    /// Sendings of layers so far.
    round: u64,
    /// Messages so far, to all nodes.
    sequence: u64,
    /// The messages that were answered last.
    answered: VecDeque<u64>,
}

/// A reply that no message awaits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unawaited {
    /// Its message was answered before.
    Duplicate,
    /// Its message was given up, or beaten by a hedge.
    Late,
    /// There was no such message; the last one was this.
    Unsent(u64),
}

impl Identity {
    /// Another run for each call.
    pub(super) fn new() -> Self {
        // The keys of this are drawn by the system.
        let run = RandomState::new().hash_one("run") | 1;
        Self { run, round: 0, sequence: 0, answered: VecDeque::with_capacity(ANSWERED_MAX) }
    }

    /// What is named from here on belongs to another sending of a layer.
    pub(super) fn begin_round(&mut self) {
        self.round += 1;
    }

    /// The name of the next message, when `awaited_from` is the earliest that is awaited beside it.
    pub(super) fn next(
        &mut self,
        orders: &Orders,
        node: NodeId,
        epoch: Epoch,
        awaited_from: Option<u64>,
    ) -> Ticket {
        self.sequence += 1;
        Ticket {
            run: self.run,
            epoch,
            step: orders.step,
            layer: orders.layer,
            round: self.round,
            node,
            sequence: self.sequence,
            awaited_from: awaited_from.unwrap_or(self.sequence),
        }
    }

    /// A message has its answer.
    pub(super) fn note_answered(&mut self, sequence: u64) {
        if self.answered.len() == ANSWERED_MAX {
            self.answered.pop_front();
        }
        self.answered.push_back(sequence);
    }

    /// Why nobody awaits a reply.
    pub(super) fn unawaited(&self, sequence: u64) -> Unawaited {
        if self.answered.contains(&sequence) {
            Unawaited::Duplicate
        } else if (1..=self.sequence).contains(&sequence) {
            Unawaited::Late
        } else {
            Unawaited::Unsent(self.sequence)
        }
    }
}

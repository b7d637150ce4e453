//! What a virtual cluster is made of.

use super::copies::Copies;
use super::demand::Popularity;
use super::node::{Hardware, Work};
use super::prices::Pricing;
use super::stream::StreamKey;
use crate::expert::passes;
use std::collections::BTreeSet;
use std::sync::Arc;

/// When token blocks arrive. Open loop: they come whether or not earlier ones were answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// At each front end a Poisson process; at this rate over all of them.
    Poisson {
        /// Blocks in a ns, above 0.
        blocks_per_ns: f64,
    },
    /// At these times in ns, ascending, one for each block; dealt to the front ends in turn.
    Planned(Arc<[u64]>),
}

/// Which host of an expert is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplicaChoice {
    /// One that is drawn.
    #[default]
    Random,
    /// Of two that are drawn the one with fewer of the front end's own messages under way.
    TwoChoices,
}

/// A cluster and what it is asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seed of every stream.
    pub seed: u64,
    /// N, ≥ 1.
    pub nodes: u32,
    /// F, ≥ 1. Front ends stand beside nodes, evenly spread.
    pub fronts: u32,
    /// How nodes compute, how messages travel, what goes wrong.
    pub hardware: Hardware,
    /// Which nodes hold which experts.
    pub copies: Copies,
    /// How popular experts are.
    pub popularity: Popularity,
    /// k, 1 to 64 and to E.
    pub top_k: usize,
    /// Experts that are listed for a block, k to E; see [`super::demand`].
    pub candidates: usize,
    /// Tokens of a block: they have the same affinities and choose alike.
    pub block_tokens: u32,
    /// Blocks that arrive, over all front ends.
    pub blocks: u64,
    /// When.
    pub arrivals: Arrivals,
    /// Bytes of a token's row, in questions and in answers.
    pub row_bytes: u64,
    /// Bytes of a message besides.
    pub header_bytes: u64,
    /// Encoded bytes of an expert's weights.
    pub expert_bytes: u64,
    /// Which host is asked.
    pub choice: ReplicaChoice,
    /// Racks that a block's experts are in, at most; none for no limit.
    pub racks_max: Option<u32>,
    /// How front ends learn prices; none for plain top-k.
    pub pricing: Option<Pricing>,
    /// A message without an answer for this long is given up, ns; none for never.
    pub patience_ns: Option<u64>,
    /// Times that a block asks anew before it is lost.
    pub again_max: u32,
    /// A node that broke off is avoided for this long, ns.
    pub aside_ns: u64,
    /// A block that takes longer is late, ns.
    pub late_ns: u64,
    /// Blocks that a front end has under way at most; more are shed.
    pub open_max: u32,
    /// Blocks that arrive before this time do not count in latencies, ns.
    pub warm_up_ns: u64,
    /// Length of the stretches of time that are told apart, ns.
    pub stretch_ns: u64,
    /// Periods of [`Pricing`] whose joint play is certified.
    pub certified: BTreeSet<u64>,
    /// Partitions that are simulated at the same time, ≥ 1. Results do not depend on it.
    pub partitions: u32,
}

impl Settings {
    /// The streams of a purpose.
    #[must_use]
    pub fn key(&self, purpose: &str) -> StreamKey {
        StreamKey::new(self.seed, purpose)
    }

    /// The place of a front end.
    #[must_use]
    pub fn place_of_front(&self, front: u32) -> u32 {
        let at = u64::from(front) * u64::from(self.nodes) / u64::from(self.fronts);
        u32::try_from(at).expect("below the nodes") % self.nodes
    }

    /// What a message with so many experts of a block asks.
    #[must_use]
    pub fn work(&self, experts: u32) -> Work {
        let pairs = experts * self.block_tokens;
        Work {
            pairs,
            weight_bytes: u64::from(experts) * self.expert_bytes,
            pass_bytes: u64::from(experts)
                * self.expert_bytes
                * passes(self.block_tokens as usize) as u64,
            request_bytes: self.header_bytes + u64::from(self.block_tokens) * self.row_bytes,
            reply_bytes: self.header_bytes + u64::from(pairs) * self.row_bytes,
        }
    }

    pub(super) fn check(&self) {
        let experts = self.popularity.shares().len();
        assert!(self.nodes > 0 && self.fronts > 0 && self.partitions > 0, "somebody is there");
        assert!((1..=64.min(experts)).contains(&self.top_k), "k is 1 to 64 and to E");
        assert!((self.top_k..=experts).contains(&self.candidates), "candidates are k to E");
        assert_eq!(self.copies.experts(), experts, "each expert has a popularity and copies");
        assert!(self.nodes.checked_add(self.fronts).is_some(), "ids fit 32 bits");
        assert!(self.block_tokens > 0 && self.stretch_ns > 0, "positive lengths");
        if let Arrivals::Planned(times) = &self.arrivals {
            assert_eq!(times.len() as u64, self.blocks, "one time a block");
        }
    }
}

//! What took how long in a run, as whoever draws or counts it is told.

use super::decode::{Answer, StepDone};
use super::rounds::Round;
use super::serve::StageEnds;
use agents::orders::NodeOrder;
use agents::round::Stage;
use std::ops::Range;

/// Something that took from one time to another, on the run's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Took {
    /// What it was.
    pub what: What,
    /// When it began, ns.
    pub from_ns: u64,
    /// When it ended, ns.
    pub to_ns: u64,
}

/// What took time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A stage of a round, one of [`STAGES`].
    Stage {
        /// The batch or step.
        step: u64,
        /// The layer.
        layer: u32,
        /// Its name.
        name: &'static str,
    },
    /// An order, from when it went out to its answer: a part of the round's stage `dispatch`, which was told before.
    Order {
        /// The batch or step.
        step: u64,
        /// The layer.
        layer: u32,
        /// Whose.
        node: u32,
        /// Pairs of token and expert.
        pairs: Option<usize>,
    },
    /// A node's computing: the last part of its order, which was told right before. Clocks of other processes are
    /// not read, so it is laid up to the arrival of the answer.
    Computing {
        /// Whose.
        node: u32,
    },
    /// A batch: the rounds that were told since the one before.
    Batch {
        /// Which.
        step: u64,
        /// Requests that it answered.
        requests: usize,
    },
    /// A step of decoding: the rounds that were told since the one before.
    Step {
        /// Rows that it computed.
        tokens: u32,
    },
    /// A request, from its intended arrival to its whole answer, after the batch or step that ended it.
    Request {
        /// Which.
        request: u64,
        /// Where answers are decoded, token by token.
        decoded: Option<Decoded>,
    },
}

/// How a request was decoded. Times are of the run's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The start of its first step, ns.
    pub started_ns: u64,
    /// The end of the step that gave its first token, ns.
    pub first_token_ns: u64,
    /// Tokens of its answer.
    pub tokens: u32,
}

/// The stages of a round, in order: those of a decision, then `dispatch` and `absorb`.
pub const STAGES: [&str; 9] = [
    "arrive",
    "perceive",
    "respond",
    "certify",
    "flock",
    "precision",
    "order",
    "dispatch",
    "absorb",
];

const _: () = assert!(STAGES.len() == Stage::DECIDE.len() + 2);

/// The stages of a round, then the order of each node with its computing.
pub(super) fn round(round: &Round<'_>, stages: &StageEnds, tell: &mut dyn FnMut(Took)) {
    let times = &round.times;
    let (step, layer) = (u64::from(round.step.0), round.layer.0);
    let mut from_ns = times.decide_ns;
    let ends = stages.0.into_iter().chain([times.replied_ns, times.combined_ns]);
    for (name, ended_ns) in STAGES.into_iter().zip(ends) {
        if name == "dispatch" {
            from_ns = times.sent_ns;
        }
        tell(Took { what: What::Stage { step, layer, name }, from_ns, to_ns: ended_ns });
        from_ns = ended_ns;
    }
    for (node, compute_ns) in round.computed {
        let leg = round.legs.iter().find(|(of, _)| of == node);
        let took_ns = leg.map_or(*compute_ns, |(_, took_ns)| *took_ns);
        let answered_ns = times.sent_ns + took_ns;
        let order = round.decision.orders.nodes.iter().find(|order| order.node == *node);
        let (node, pairs) = (node.0, order.map(NodeOrder::pairs));
        let what = What::Order { step, layer, node, pairs };
        tell(Took { what, from_ns: times.sent_ns, to_ns: answered_ns });
        let from_ns = answered_ns.saturating_sub(*compute_ns);
        tell(Took { what: What::Computing { node }, from_ns, to_ns: answered_ns });
    }
}

/// A batch, then its requests with their intended arrivals.
pub(super) fn batch(
    step: u64,
    (from_ns, to_ns): (u64, u64),
    requests: impl ExactSizeIterator<Item = (u64, u64)>,
    tell: &mut dyn FnMut(Took),
) {
    tell(Took { what: What::Batch { step, requests: requests.len() }, from_ns, to_ns });
    for (request, intended_ns) in requests {
        let what = What::Request { request, decoded: None };
        tell(Took { what, from_ns: intended_ns, to_ns });
    }
}

impl From<&StepDone> for Took {
    fn from(step: &StepDone) -> Self {
        let Range { start, end } = step.times_ns;
        Self { what: What::Step { tokens: step.tokens }, from_ns: start, to_ns: end }
    }
}

impl From<&Answer> for Took {
    fn from(answer: &Answer) -> Self {
        let Answer { started_ns, first_token_ns, .. } = *answer;
        let decoded = Decoded { started_ns, first_token_ns, tokens: answer.length.generated };
        let request = answer.request.index() as u64;
        let what = What::Request { request, decoded: Some(decoded) };
        Self { what, from_ns: answer.intended_ns, to_ns: answer.finished_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::STAGES;
    use agents::round::Stage;

    #[test]
    fn stages_are_named_as_the_schedule_names_them() {
        let named = Stage::DECIDE.map(|stage| format!("{stage:?}").to_lowercase());
        assert_eq!(named[..], STAGES[..Stage::DECIDE.len()]);
    }
}

//! What became of token blocks, and when.

use crate::queueing::Times;

/// Tokens by what became of them. Each token that arrives is in exactly one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// All experts answered, in time.
    pub ok: u64,
    /// All experts answered, after the deadline.
    pub late: u64,
    /// An expert was not to be had.
    pub lost: u64,
    /// Not begun, because too much was under way.
    pub shed: u64,
}

impl TokenCounts {
    /// All that arrived.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ok + self.late + self.lost + self.shed
    }

    fn add(&mut self, other: &Self) {
        self.ok += other.ok;
        self.late += other.late;
        self.lost += other.lost;
        self.shed += other.shed;
    }
}

/// What became of the tokens that arrived in one stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// By what became of them.
    pub tokens: TokenCounts,
    /// Blocks that were answered.
    pub answered: u64,
    /// Their times from arrival to answer, summed, ns.
    pub latency_sum_ns: u64,
    /// The longest, ns.
    pub latency_max_ns: u64,
}

/// What front ends count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Tokens that arrived.
    pub arrived: u64,
    /// What became of them.
    pub tokens: TokenCounts,
    /// From a block's arrival to its last expert's answer.
    pub latency: Times,
    /// From a question to its whole answer.
    pub legs: Times,
    /// Questions sent.
    pub questions: u64,
    /// Of these, to another rack.
    pub between_racks: u64,
    /// Questions asked anew of another node, since the first broke off or was silent.
    pub asked_again: u64,
    /// Answers that came after they had been given up.
    pub late_answers: u64,
    /// Connections seen to break.
    pub broken: u64,
    /// Blocks for which an expert that was not listed might have been wanted more.
    pub uncertain: u64,
    /// Blocks that took other experts than they wanted, to stay within few racks.
    pub displaced: u64,
    /// By time of arrival.
    pub stretches: Vec<Stretch>,
}

impl Tally {
    /// Adds what another front end counted.
    pub fn add(&mut self, other: &Self) {
        self.arrived += other.arrived;
        self.tokens.add(&other.tokens);
        self.latency.merge(&other.latency);
        self.legs.merge(&other.legs);
        self.questions += other.questions;
        self.between_racks += other.between_racks;
        self.asked_again += other.asked_again;
        self.late_answers += other.late_answers;
        self.broken += other.broken;
        self.uncertain += other.uncertain;
        self.displaced += other.displaced;
        if self.stretches.len() < other.stretches.len() {
            self.stretches.resize(other.stretches.len(), Stretch::default());
        }
        for (sum, other) in self.stretches.iter_mut().zip(&other.stretches) {
            sum.tokens.add(&other.tokens);
            sum.answered += other.answered;
            sum.latency_sum_ns += other.latency_sum_ns;
            sum.latency_max_ns = sum.latency_max_ns.max(other.latency_max_ns);
        }
    }

    /// The stretch of a time.
    pub(super) fn stretch(&mut self, arrived_ns: u64, stretch_ns: u64) -> &mut Stretch {
        let at = usize::try_from(arrived_ns / stretch_ns.max(1)).expect("stretches in memory");
        let at = at.min(STRETCHES_MAX - 1);
        if self.stretches.len() <= at {
            self.stretches.resize(at + 1, Stretch::default());
        }
        &mut self.stretches[at]
    }
}

/// The last stretch takes all that comes later.
const STRETCHES_MAX: usize = 4096;

impl Tally {
    /// Bytes of the histogram and the stretches.
    pub(super) fn latency_bytes(&self) -> usize {
        const HISTOGRAM_BYTES: usize = 2 * 1920 * 8;
        HISTOGRAM_BYTES + self.stretches.capacity() * size_of::<Stretch>()
    }

    /// Gives its whole numbers.
    pub(super) fn fingerprint(&self, mut take: impl FnMut(u64)) {
        let TokenCounts { ok, late, lost, shed } = self.tokens;
        let latency = self.latency.mean_ns().unwrap_or(0.0).to_bits();
        [self.arrived, ok, late, lost, shed, self.questions, self.asked_again, latency]
            .into_iter()
            .for_each(&mut take);
    }
}

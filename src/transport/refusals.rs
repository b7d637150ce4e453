//! A log of refusals that a flood of them cannot fill.

use crate::measure::Clock;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard};

/// At most one line in this time.
const PAUSE_NS: u64 = 1_000_000_000;

/// Refusals of one listener: the first of each second is logged, the others are counted and the next
/// line says how many they were.
#[derive(Debug)]
pub(crate) struct Refusals {
    clock: Clock,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    at_ns: Option<u64>,
    unsaid: u64,
    all: u64,
}

impl Refusals {
    pub(crate) fn new() -> Self {
        Self { clock: Clock::start(), told: Mutex::default() }
    }

    /// Somebody or something was refused.
    pub(crate) fn note(&self, what: impl Display) {
        if let Some(unsaid) = self.count(self.clock.now_ns()) {
            match unsaid {
                0 => tracing::warn!("refused: {what}"),
                unsaid => tracing::warn!("refused: {what}; and {unsaid} others before"),
            }
        }
    }

    /// How many there were.
    pub(crate) fn all(&self) -> u64 {
        self.told().all
    }

    /// Whether a refusal is logged, and how many before it were not.
    fn count(&self, now_ns: u64) -> Option<u64> {
        let mut told = self.told();
        told.all += 1;
        if told.at_ns.is_some_and(|at_ns| now_ns.saturating_sub(at_ns) < PAUSE_NS) {
            told.unsaid += 1;
            return None;
        }
        told.at_ns = Some(now_ns);
        Some(std::mem::take(&mut told.unsaid))
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("no holder of this lock can panic")
    }
}

#[cfg(test)]
mod tests {
    use super::{PAUSE_NS, Refusals};

    #[test]
    fn a_flood_of_refusals_is_one_line_a_second_and_none_is_lost() {
        let refusals = Refusals::new();
        assert_eq!(refusals.count(5), Some(0));
        assert!((0..1000).all(|i| refusals.count(6 + i).is_none()));
        assert_eq!(refusals.count(5 + PAUSE_NS), Some(1000));
        assert_eq!(refusals.count(5 + 2 * PAUSE_NS), Some(0));
        assert_eq!(refusals.all(), 1003);
    }
}

//! Slows accepting down while those that are let in turn out not to belong.

/// Connections a second of which none has to belong.
const PER_S: f64 = 20.0;
/// Those beyond that may come at once.
const AT_ONCE: f64 = 32.0;
/// More are not held against those that come later: they wait for two seconds at most.
const HELD_MAX: f64 = AT_ONCE + 2.0 * PER_S;

/// A leaky bucket of strangers. Those that turn out to belong are taken out again, so that however many
/// members come at once are let in at once, and a flood of others costs members who are in no more than
/// so many strangers a second do.
#[derive(Debug, Default)]
pub(super) struct Brake {
    held: f64,
    at_ns: u64,
}

impl Brake {
    /// A stranger is let in.
    pub(super) fn stranger(&mut self, now_ns: u64) {
        self.leak(now_ns);
        self.held = (self.held + 1.0).min(HELD_MAX);
    }

    /// One of them belongs.
    pub(super) fn belongs(&mut self) {
        self.held = (self.held - 1.0).max(0.0);
    }

    /// How long nobody is to be let in, ns.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "two seconds at most and not negative"
    )]
    pub(super) fn wait_ns(&mut self, now_ns: u64) -> u64 {
        self.leak(now_ns);
        ((self.held + 1.0 - AT_ONCE).max(0.0) / PER_S * 1e9).ceil() as u64
    }

    fn leak(&mut self, now_ns: u64) {
        let passed_s = now_ns.saturating_sub(self.at_ns) as f64 / 1e9;
        self.held = (self.held - passed_s * PER_S).max(0.0);
        self.at_ns = now_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::Brake;

    const SECOND_NS: u64 = 1_000_000_000;

    /// Who are let in of a crowd that never ends, in so many seconds.
    fn let_in(seconds: u64, belongs: bool) -> u32 {
        let (mut brake, mut now_ns, mut count) = (Brake::default(), 0, 0);
        while now_ns < seconds * SECOND_NS && count < 100_000 {
            match brake.wait_ns(now_ns) {
                0 => {
                    brake.stranger(now_ns);
                    count += 1;
                    if belongs {
                        brake.belongs();
                    }
                }
                wait_ns => now_ns += wait_ns,
            }
        }
        count
    }

    #[test]
    fn strangers_are_let_in_at_a_bounded_rate_and_members_as_they_come() {
        assert!((230..=233).contains(&let_in(10, false)), "{}", let_in(10, false));
        assert_eq!(let_in(10, true), 100_000);
    }

    #[test]
    fn after_a_flood_nobody_waits_longer_than_two_seconds() {
        let mut brake = Brake::default();
        (0..10_000).for_each(|_| brake.stranger(7));
        let wait_ns = brake.wait_ns(7);
        assert!(wait_ns > SECOND_NS && wait_ns <= 2 * SECOND_NS + SECOND_NS / 10, "{wait_ns}");
        assert_eq!(brake.wait_ns(7 + wait_ns), 0);
    }
}

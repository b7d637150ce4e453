//! The only file that reads time. Everything else is given nanoseconds since the start of the run.
#![allow(clippy::disallowed_methods, reason = "this is the file the ban points to")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The clock of one run: monotonic nanoseconds since its start, and the wall-clock time of that start.
///
/// It runs on tokio's time, so that a paused and advanced runtime drives it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: tokio::time::Instant,
    /// What the clock showed at `start`.
    shown_ns: u64,
    started_at: SystemTime,
    /// What it shows where nothing but [`Clock::advance_to_ns`] moves it.
    simulated_ns: Option<&'static AtomicU64>,
    /// Where it can stand still: while it goes, how long it stood; while it stands, [`STANDING`] and the time since
    /// `start` that it shows. One number, so that whoever reads it in between sees the one or the other.
    stands: Option<&'static AtomicU64>,
}

/// No clock goes for the 292 years that this bit stands for.
const STANDING: u64 = 1 << 63;

/// It is about to stand still, at a time that is read only now: nobody who reads it may be told a later one.
const STOPPING: u64 = u64::MAX;

/// A clock that stands still, until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Standing(Option<Clock>);

impl Drop for Standing {
    fn drop(&mut self) {
        let Some(clock) = self.0 else { return };
        let (_, stood_ns) = clock.goes_and_stood_ns();
        clock.stands.iter().for_each(|stands| stands.store(stood_ns, Ordering::SeqCst));
    }
}

impl Clock {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self::going_on(0, SystemTime::now())
    }

    /// Shows zero, and then what it is told: the clock of a run in virtual time. Copies are the same clock;
    /// its eight bytes are never freed, and a process makes one a run.
    #[must_use]
    pub fn simulated() -> Self {
        let simulated_ns: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
        Self { simulated_ns: Some(simulated_ns), ..Self::start() }
    }

    /// Can stand still; copies stand still with it. Its eight bytes are never freed, and a process makes one a
    /// run.
    #[must_use]
    pub fn pausable(self) -> Self {
        Self { stands: Some(Box::leak(Box::new(AtomicU64::new(0)))), ..self }
    }

    /// Stands still from now on, for all who read it. Does nothing where it is not [`Clock::pausable`], or stands still
    /// already.
    pub fn stand_still(&self) -> Standing {
        let Some(stands) = self.stands else { return Standing(None) };
        let goes = |state: u64| (state & STANDING == 0).then_some(STOPPING);
        let Ok(stood_ns) = stands.fetch_update(Ordering::SeqCst, Ordering::SeqCst, goes) else {
            return Standing(None);
        };
        let goes_ns = self.since_ns().saturating_sub(stood_ns);
        stands.store(STANDING | goes_ns, Ordering::SeqCst);
        Standing(Some(*self))
    }

    /// How long it stood still, ns.
    #[must_use]
    pub fn stood_ns(&self) -> u64 {
        self.goes_and_stood_ns().1
    }

    /// Since `start`: how long it went, and how long it stood still.
    fn goes_and_stood_ns(&self) -> (u64, u64) {
        let Some(stands) = self.stands else { return (self.since_ns(), 0) };
        loop {
            let state = stands.load(Ordering::SeqCst);
            let since_ns = self.since_ns();
            if state == STOPPING {
                std::thread::yield_now();
            } else if state & STANDING != 0 {
                let goes_ns = state & !STANDING;
                return (goes_ns, since_ns.saturating_sub(goes_ns));
            } else if stands.load(Ordering::SeqCst) == state {
                return (since_ns.saturating_sub(state), state);
            }
            // It stopped or went on in between: the time may be of the one and the state of the other.
        }
    }

    fn since_ns(&self) -> u64 {
        // Below both marks.
        nanos(self.start.elapsed()).min(STANDING / 2)
    }

    /// Whether it shows virtual time.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        self.simulated_ns.is_some()
    }

    /// Has a clock of virtual time show at least this; any other goes by itself.
    pub fn advance_to_ns(&self, at_ns: u64) {
        if let Some(simulated_ns) = self.simulated_ns {
            simulated_ns.fetch_max(at_ns, Ordering::Relaxed);
        }
    }

    /// Goes on, from now, with a clock that was stopped when it showed `shown_ns`: the time that it stood
    /// still is not counted.
    #[must_use]
    pub fn going_on(shown_ns: u64, started_at: SystemTime) -> Self {
        let start = tokio::time::Instant::now();
        Self { start, shown_ns, started_at, simulated_ns: None, stands: None }
    }

    /// Nanoseconds since the start, without those that it stood still; saturates after 584 years.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        if let Some(simulated_ns) = self.simulated_ns {
            return simulated_ns.load(Ordering::Relaxed);
        }
        self.shown_ns.saturating_add(self.goes_and_stood_ns().0)
    }

    /// Sleeps until `at_ns` nanoseconds after the start; returns at once where that has passed.
    ///
    /// tokio rounds up to its millisecond, which would delay whatever is released by this clock: the
    /// last two milliseconds the thread itself sleeps, which is right to some tens of microseconds.
    pub async fn sleep_until_ns(&self, at_ns: u64) {
        const ROUNDED_NS: u64 = 2_000_000;
        if self.is_simulated() {
            return self.advance_to_ns(at_ns);
        }
        let stood_ns = self.stood_ns();
        let instant = |at_ns: u64| {
            let since_ns = at_ns.saturating_sub(self.shown_ns).saturating_add(stood_ns);
            self.start + Duration::from_nanos(since_ns)
        };
        tokio::time::sleep_until(instant(at_ns.saturating_sub(ROUNDED_NS))).await;
        std::thread::sleep(Duration::from_nanos(at_ns.saturating_sub(self.now_ns())));
        // Where tokio's time is simulated, the thread's sleep does not move it.
        // It is not asked otherwise: it takes up to its millisecond for an instant that has passed, too.
        if self.now_ns() < at_ns {
            tokio::time::sleep_until(instant(at_ns)).await;
        }
    }

    /// The wall-clock time of the start.
    #[must_use]
    pub fn started_at(&self) -> SystemTime {
        self.started_at
    }

    /// The wall-clock time now, also where [`Clock::now_ns`] runs on simulated time; never before the
    /// start, should the system's clock have been set back.
    #[must_use]
    pub fn wall_now(&self) -> SystemTime {
        SystemTime::now().max(self.started_at)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds since 1970, 0 for times before; saturates in the year 2554.
#[must_use]
pub fn unix_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The time that lies so many nanoseconds after 1970.
#[must_use]
pub fn at_unix_ns(ns: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(ns)
}

/// RFC 3339 in UTC to the millisecond: `2026-03-09T07:05:01.250Z`. Times before 1970 print as 1970.
#[must_use]
pub fn rfc3339_utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let ([year, month, day], [hour, minute, second]) = civil_utc(since.as_secs());
    let milli = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// The same time for a file name: `20260309T070501Z`.
#[must_use]
pub fn compact_utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let ([year, month, day], [hour, minute, second]) = civil_utc(since.as_secs());
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Seconds since 1970 as [year, month, day] and [hour, minute, second], in the proleptic Gregorian
/// calendar (Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`).
/// A date crate would be the only other thing these lines replace.
fn civil_utc(seconds: u64) -> ([u64; 3], [u64; 3]) {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Years start in March here, so that the leap day is their last.
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    ([year, month, day], [second / 3_600, second / 60 % 60, second % 60])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_the_calendar() {
        // Expected values from `date -u -d @SECONDS`.
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339_utc(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
        let time = UNIX_EPOCH + Duration::from_millis(1_773_039_901_250);
        assert_eq!(rfc3339_utc(time), "2026-03-09T07:05:01.250Z");
        assert_eq!(compact_utc(time), "20260309T070501Z");
    }

    #[tokio::test]
    async fn a_clock_that_goes_on_counts_from_where_it_stood() {
        let started_at = at_unix_ns(1_773_039_901_250_000_000);
        let clock = Clock::going_on(5_000_000_000, started_at);
        assert!((5_000_000_000..6_000_000_000).contains(&clock.now_ns()));
        clock.sleep_until_ns(4_000_000_000).await;
        clock.sleep_until_ns(5_003_000_000).await;
        assert!((5_003_000_000..6_000_000_000).contains(&clock.now_ns()));
        assert_eq!(unix_ns(clock.started_at()), 1_773_039_901_250_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_stood_still_does_not_show_it_and_nor_do_its_copies() {
        let clock = Clock::start().pausable();
        let copy = clock;
        clock.sleep_until_ns(5_000_000_000).await;
        let standing = clock.stand_still();
        let stands_at = copy.now_ns();
        for second in 1..=100 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(copy.now_ns(), stands_at, "for whoever reads it meanwhile");
            assert!(copy.stood_ns() >= 1_000_000_000 * second);
            drop(clock.stand_still());
        }
        drop(standing);
        assert!(copy.now_ns() >= stands_at, "nor does it jump back");
        let shown = copy.now_ns();
        assert!((5_000_000_000..5_100_000_000).contains(&shown), "{shown}");
        copy.sleep_until_ns(6_000_000_000).await;
        assert!((6_000_000_000..6_100_000_000).contains(&clock.now_ns()));
        assert!((100_000_000_000..100_100_000_000).contains(&clock.stood_ns()));
        let other = Clock::start();
        drop(other.stand_still());
        assert_eq!(other.stood_ns(), 0);
    }

    #[test]
    fn a_clock_never_goes_back_for_whoever_reads_it_while_it_stops_and_goes() {
        let clock = Clock::start().pausable();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    drop(clock.stand_still());
                }
                done.store(true, Ordering::Relaxed);
            });
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                let now = clock.now_ns();
                assert!(now >= last, "{now} after {last}");
                last = now;
            }
        });
        assert!(clock.stood_ns() > 0);
    }

    #[tokio::test]
    async fn a_clock_of_virtual_time_shows_what_it_is_told_and_sleeps_at_once() {
        let clock = Clock::simulated();
        let copy = clock;
        clock.advance_to_ns(7);
        copy.sleep_until_ns(3_600_000_000_000).await;
        copy.advance_to_ns(9);
        assert_eq!(clock.now_ns(), 3_600_000_000_000);
        assert!(clock.is_simulated() && !Clock::start().is_simulated());
    }

    #[tokio::test]
    async fn sleeping_never_ends_before_its_time() {
        let clock = Clock::start();
        clock.sleep_until_ns(2_000_000).await;
        assert!(clock.now_ns() >= 2_000_000);
        assert!(clock.wall_now() >= clock.started_at());
    }
}

//! Lets whoever watches a run have it stand still, go on batch by batch, or end.

use super::interrupt::Interrupted;
use crate::results::PaceState;
use tokio::sync::watch;

/// The pace of a run: asked before each batch or step.
#[derive(Debug)]
pub struct Pace {
    told: watch::Sender<Told>,
}

/// What a run was told.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    paused: bool,
    /// Batches or steps that a paused run may still play.
    steps: u32,
    stop: Option<Interrupted>,
}

/// How a batch or step is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// The run goes.
    Free,
    /// It stands still but for this one.
    Step,
}

impl Default for Pace {
    fn default() -> Self {
        Self { told: watch::Sender::new(Told::default()) }
    }
}

impl Pace {
    /// Has the run stand still before its next batch or step. Its clock stands still too.
    pub fn pause(&self) {
        self.told.send_modify(|told| told.paused = true);
    }

    /// Has it go on.
    pub fn go_on(&self) {
        self.told.send_modify(|told| (told.paused, told.steps) = (false, 0));
    }

    /// Has it play one batch or step more and then stand still.
    pub fn step(&self) {
        self.told.send_modify(|told| {
            told.paused = true;
            told.steps = told.steps.saturating_add(1);
        });
    }

    /// Has it end as a signal does, paused or not; `by` is named in the summary.
    pub fn stop(&self, by: &'static str) {
        self.told.send_modify(|told| told.stop = Some(Interrupted(by)));
    }

    /// What it was told.
    #[must_use]
    pub fn state(&self) -> PaceState {
        match *self.told.borrow() {
            Told { stop: Some(_), .. } => PaceState::Stopping,
            Told { paused: true, .. } => PaceState::Paused,
            Told { .. } => PaceState::Running,
        }
    }

    /// Whether the next batch or step may start; takes what it is granted for.
    pub(super) fn pass(&self) -> Option<Pass> {
        let mut pass = None;
        self.told.send_if_modified(|told| {
            pass = match told {
                Told { paused: false, .. } => Some(Pass::Free),
                Told { steps: 0, .. } => None,
                Told { steps, .. } => {
                    *steps -= 1;
                    Some(Pass::Step)
                }
            };
            false
        });
        pass
    }

    /// Waits until [`Self::pass`] lets something through.
    pub(super) async fn opens(&self) {
        self.until(|told| !told.paused || told.steps > 0).await;
    }

    /// Waits until the run is to stand still.
    pub(super) async fn pauses(&self) {
        self.until(|told| told.paused).await;
    }

    /// Waits until the run is to end.
    pub(super) async fn stopped(&self) -> Interrupted {
        self.until(|told| told.stop.is_some()).await;
        self.told.borrow().stop.expect("nothing takes it back")
    }

    async fn until(&self, is_so: impl Fn(&Told) -> bool) {
        let mut told = self.told.subscribe();
        told.wait_for(|told| is_so(told)).await.expect("the sender is in self");
    }
}

#[cfg(test)]
mod tests {
    use super::{Pace, Pass};
    use crate::results::PaceState;
    use crate::run::Interrupted;

    #[tokio::test]
    async fn a_paused_run_plays_as_many_batches_as_it_is_granted() {
        let pace = Pace::default();
        assert_eq!((pace.pass(), pace.state()), (Some(Pass::Free), PaceState::Running));
        pace.pause();
        assert_eq!((pace.pass(), pace.state()), (None, PaceState::Paused));
        pace.step();
        pace.step();
        pace.opens().await;
        assert_eq!(
            [pace.pass(), pace.pass(), pace.pass()],
            [Some(Pass::Step), Some(Pass::Step), None]
        );
        pace.pauses().await;
        pace.step();
        pace.go_on();
        assert_eq!([pace.pass(), pace.pass()], [Some(Pass::Free); 2]);
        pace.pause();
        assert_eq!(pace.pass(), None, "steps that were granted before do not outlive going on");
    }

    #[tokio::test]
    async fn a_run_is_told_who_stopped_it() {
        let pace = Pace::default();
        pace.pause();
        pace.stop("q");
        assert_eq!((pace.stopped().await, pace.state()), (Interrupted("q"), PaceState::Stopping));
    }
}

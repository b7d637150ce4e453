//! Members that are out, as they are heard of.

use agents::membership::Pass;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// A stay that ended, and why.
pub(super) type Departure = (Pass, String);

/// Yields every stay that ends without the dispatcher having ended it; none where nodes do not come
/// and go.
#[derive(Debug, Default)]
pub(super) struct Departures(Option<mpsc::Receiver<Departure>>);

impl Departures {
    /// At most `departures_max` wait to be heard of.
    pub(super) fn channel(departures_max: usize) -> (mpsc::Sender<Departure>, Self) {
        let (sender, receiver) = mpsc::channel(departures_max);
        (sender, Self(Some(receiver)))
    }

    /// One that is known already.
    pub(super) fn next(&mut self) -> Option<Departure> {
        self.0.as_mut()?.try_recv().ok()
    }

    /// The next one. Never ready where there will be none.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Departure> {
        match self.0.as_mut().map(|receiver| receiver.poll_recv(cx)) {
            Some(Poll::Ready(Some(departure))) => Poll::Ready(departure),
            _ => Poll::Pending,
        }
    }
}

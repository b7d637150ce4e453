//! Events to come, window by window.
//!
//! A message takes at least the network's least latency, so nothing that happens within one window of that
//! length has an effect elsewhere within it (Chandy and Misra 1979, lookahead). A window's events are therefore
//! taken together, by whom they concern: near ones lie in a ring with a place for each window (a calendar
//! queue, Brown 1988), far ones in a heap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Windows that the ring reaches ahead.
const RING: usize = 32_768;

/// Something that happens to somebody. The order is that in which a window's events are taken: by addressee,
/// then by time, then by who caused it and that one's own count, which no other event shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Event {
    pub(super) to: u32,
    pub(super) at_ns: u64,
    pub(super) from: u32,
    pub(super) count: u32,
    pub(super) what: What,
    /// Whom it is for in the end: `to` is a link on the way while there is one.
    pub(super) goal: u32,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// The first byte of a question is at a node, or at a link: message `leg` of a block, so many experts, which come to so many
    /// units of [`super::widths::ExpertBytes`].
    Question { block: u32, generation: u32, leg: u16, experts: u16, units: u16 },
    /// The first byte of an answer is back, or at a link.
    Answer { block: u32, generation: u32, leg: u16, experts: u16 },
    /// The connection to a node broke while an answer was awaited.
    Broken { block: u32, generation: u32, leg: u16 },
    /// A front end has something to do of its own.
    Wake,
}

/// Orders far events by time alone; the rest of the order is that of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Far(Event);

impl Ord for Far {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.at_ns, self.0).cmp(&(other.0.at_ns, other.0))
    }
}

impl PartialOrd for Far {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Events by window.
#[derive(Debug)]
pub(super) struct Calendar {
    window_ns: u64,
    /// Of the windows from `first` on, by window modulo their number.
    ring: Vec<Vec<Event>>,
    first: u64,
    /// No window from `first` on and before this one has an event in the ring.
    empty_before: u64,
    near: usize,
    far: BinaryHeap<Reverse<Far>>,
    /// Room of windows that are over, for those to come: what is in use stays small and near.
    spare: Vec<Vec<Event>>,
}

impl Calendar {
    /// Empty, of windows that last `window_ns` ≥ 1.
    pub(super) fn new(window_ns: u64) -> Self {
        let ring = vec![Vec::new(); RING];
        let (far, spare) = (BinaryHeap::new(), Vec::new());
        Self { window_ns, ring, first: 0, empty_before: 0, near: 0, far, spare }
    }

    /// Adds an event of the window that is next or a later one.
    pub(super) fn push(&mut self, event: Event) {
        let window = event.at_ns / self.window_ns;
        debug_assert!(window >= self.first, "an event of the past");
        if window - self.first < RING as u64 {
            self.place(window, event);
        } else {
            self.far.push(Reverse(Far(event)));
        }
    }

    fn place(&mut self, window: u64, event: Event) {
        self.near += 1;
        self.empty_before = self.empty_before.min(window);
        let events = &mut self.ring[place(window)];
        if events.capacity() == 0
            && let Some(spare) = self.spare.pop()
        {
            *events = spare;
        }
        events.push(event);
    }

    /// The first window with an event, if there is one. Others may yet send events of earlier windows.
    pub(super) fn next_window(&mut self) -> Option<u64> {
        let far = self.far.peek().map(|Reverse(Far(next))| next.at_ns / self.window_ns);
        if self.near == 0 {
            return far;
        }
        while self.ring[place(self.empty_before)].is_empty() {
            self.empty_before += 1;
        }
        Some(far.map_or(self.empty_before, |far| far.min(self.empty_before)))
    }

    /// How many events a window has.
    pub(super) fn waiting(&self, window: u64) -> usize {
        let is_near = window >= self.first && window - self.first < RING as u64;
        if is_near { self.ring[place(window)].len() } else { 0 }
    }

    /// Swaps out the events of a window that is not before the next with one, unsorted; what comes from now on
    /// is of later ones.
    pub(super) fn take(&mut self, window: u64, events: &mut Vec<Event>) {
        self.first = window;
        self.bring_near();
        let mut over = std::mem::replace(events, std::mem::take(&mut self.ring[place(window)]));
        if over.capacity() > 0 {
            over.clear();
            self.spare.push(over);
        }
        self.near -= events.len();
        self.first = window + 1;
        self.empty_before = self.empty_before.max(self.first);
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let all = self.ring.iter().chain(&self.spare);
        let near: usize = all.map(|events| events.capacity() + 1).sum();
        (near + self.far.capacity()) * size_of::<Event>()
    }

    fn bring_near(&mut self) {
        while let Some(Reverse(Far(next))) = self.far.peek()
            && next.at_ns / self.window_ns - self.first < RING as u64
        {
            let event = *next;
            self.far.pop();
            self.place(event.at_ns / self.window_ns, event);
        }
    }
}

fn place(window: u64) -> usize {
    usize::try_from(window % RING as u64).expect("below the ring's length")
}

#[cfg(test)]
mod tests {
    use super::{Calendar, Event, RING, What};
    use crate::cluster::StreamKey;

    #[test]
    fn windows_come_in_order_with_all_their_events_however_far_they_were() {
        let mut stream = StreamKey::new(1, "calendar").stream(0, 0);
        let mut calendar = Calendar::new(10);
        let mut expected = Vec::new();
        let mut count = 0;
        let mut add = |calendar: &mut Calendar, expected: &mut Vec<Event>, at_ns| {
            count += 1;
            let event = Event { to: 0, at_ns, from: 1, count, what: What::Wake, goal: 0 };
            calendar.push(event);
            expected.push(event);
        };
        for _ in 0..1000 {
            let at_ns = stream.below(100 * RING) as u64;
            add(&mut calendar, &mut expected, at_ns);
        }
        let (mut taken, mut events, mut last) = (Vec::new(), Vec::new(), None);
        while let Some(window) = calendar.next_window() {
            assert!(last.is_none_or(|last| window > last));
            // Another partition has events sooner, of which some come here.
            let sooner = last.map_or(0, |last| last + 1);
            if sooner + 1 < window && stream.below(2) == 0 {
                calendar.take(sooner, &mut events);
                assert!(events.is_empty(), "nothing was due in {sooner}");
                last = Some(sooner);
                if taken.len() < 5000 {
                    add(&mut calendar, &mut expected, (sooner + 1) * 10);
                }
                continue;
            }
            last = Some(window);
            calendar.take(window, &mut events);
            assert!(!events.is_empty() && events.iter().all(|event| event.at_ns / 10 == window));
            taken.append(&mut events);
            if taken.len() % 3 == 0 && taken.len() < 5000 {
                let ahead = [1, 5, RING as u64 + 3][stream.below(3)];
                add(&mut calendar, &mut expected, (window + ahead) * 10);
            }
        }
        taken.sort_unstable_by_key(|event| event.count);
        assert_eq!(taken, expected);
        assert!(size_of::<Event>() <= 40, "{}", size_of::<Event>());
    }
}

//! No order of a run is computed twice: what has come before is answered with the reply to the first.
//!
//! Memory is bounded without forgetting what may still come. Each order says from which attempt on its
//! coordinator awaits replies; what lies before is dropped, and refused if it comes again. In a run
//! without faults that leaves the replies to one round.

use crate::wire::WireError;
use proto::{ComputeFault, ComputeReply, ComputeRequest};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// Runs that are remembered. One that is forgotten for newer ones starts anew if it comes back.
const RUNS_MAX: usize = 64;

/// Orders of a run that are remembered; the earliest are taken for given up beyond these.
const ORDERS_MAX: usize = 256;

/// Replies to one order that wait for its computation at the same time.
const WAITING_MAX: usize = 8;

/// The pieces of a reply, at least one.
pub(super) type Answer = Vec<ComputeReply>;

/// The orders that a node took.
pub(super) struct Once {
    book: Mutex<Book>,
    reply_bytes_max: usize,
}

#[derive(Default)]
struct Book {
    runs: BTreeMap<u64, Run>,
    /// Of all replies that are kept.
    reply_bytes: usize,
    /// Orders that came, to tell which run was heard of last.
    heard: u64,
}

#[derive(Default)]
struct Run {
    orders: BTreeMap<u64, Order>,
    /// Orders before this one are not awaited any more.
    awaited_from: u64,
    heard: u64,
}

struct Order {
    /// Of the request: another one that has the same name would have another.
    header_crc32: u32,
    state: State,
}

enum State {
    UnderWay(Vec<oneshot::Sender<Answer>>),
    Answered(Answer),
    /// Answered, and the reply is not kept.
    Forgotten,
}

/// What to do with an order.
pub(super) enum Admission {
    /// Compute it, and say so to [`Once::answered`] or [`Once::dropped`].
    Compute,
    /// It was answered before.
    Answered(Answer),
    /// It is under way; the reply comes when that ends.
    UnderWay(oneshot::Receiver<Answer>),
    /// It is answered with this fault.
    Refused(WireError),
}

impl Once {
    /// Nothing has come. Of answered orders at most so many bytes of outputs are kept.
    pub(super) fn new(reply_bytes_max: usize) -> Self {
        Self { book: Mutex::default(), reply_bytes_max }
    }

    /// Takes an order whose header was checked, and which has an identity.
    pub(super) fn admit(&self, request: &ComputeRequest) -> Admission {
        let mut book = self.book();
        let (sequence, header_crc32) = (request.sequence, request.header_crc32);
        book.heard += 1;
        let heard = book.heard;
        if !book.runs.contains_key(&request.run) && book.runs.len() >= RUNS_MAX {
            book.forget_a_run();
        }
        let Book { runs, reply_bytes, .. } = &mut *book;
        let run = runs.entry(request.run).or_default();
        run.heard = heard;
        run.await_from(request.awaited_from, reply_bytes);
        let duplicate = |what: &str| {
            let detail = format!("order {sequence} of the run {what}");
            Admission::Refused(WireError::new(ComputeFault::Duplicate, detail))
        };
        match run.orders.get_mut(&sequence) {
            Some(order) if order.header_crc32 != header_crc32 => {
                let detail = format!("order {sequence} of the run was another one before");
                Admission::Refused(WireError::new(ComputeFault::BadShape, detail))
            }
            Some(Order { state: State::Answered(reply), .. }) => Admission::Answered(reply.clone()),
            Some(Order { state: State::Forgotten, .. }) => duplicate("was answered before"),
            Some(Order { state: State::UnderWay(waiting), .. }) => {
                if waiting.len() >= WAITING_MAX {
                    return duplicate("is under way and asked for too often");
                }
                let (done, reply) = oneshot::channel();
                waiting.push(done);
                Admission::UnderWay(reply)
            }
            None if sequence < run.awaited_from => duplicate("is not awaited any more"),
            None => {
                let state = State::UnderWay(Vec::new());
                run.orders.insert(sequence, Order { header_crc32, state });
                run.bound(reply_bytes);
                Admission::Compute
            }
        }
    }

    /// The reply to an order that was under way, for whoever else waits for it and for later.
    pub(super) fn answered(&self, run: u64, sequence: u64, answer: &Answer) {
        let mut book = self.book();
        let Some(found) = book.runs.get_mut(&run) else { return };
        let awaited_from = found.awaited_from;
        let Some(order) = found.orders.get_mut(&sequence) else { return };
        let State::UnderWay(waiting) = std::mem::replace(&mut order.state, State::Forgotten) else {
            return;
        };
        for waiting in waiting {
            // An error means that its stream ended meanwhile.
            let _ = waiting.send(answer.clone());
        }
        let bytes = output_bytes(answer);
        if answer.iter().any(|piece| piece.fault != 0) || sequence < awaited_from {
            // Nothing was computed, or nobody asks for it again.
            found.orders.remove(&sequence);
        } else if bytes <= self.reply_bytes_max {
            order.state = State::Answered(answer.clone());
            book.reply_bytes += bytes;
            while book.reply_bytes > self.reply_bytes_max {
                book.forget_a_reply();
            }
        }
    }

    /// An order that will not be answered. Whoever else waits for it is told so.
    pub(super) fn dropped(&self, run: u64, sequence: u64) {
        if let Some(run) = self.book().runs.get_mut(&run) {
            run.orders.remove(&sequence);
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no holder of this lock can panic")
    }
}

impl Book {
    /// The run that was not heard of for longest, but none with orders under way.
    fn forget_a_run(&mut self) {
        let idle = |run: &&Run| !run.orders.values().any(Order::is_under_way);
        let oldest = self.runs.iter().filter(|(_, run)| idle(run)).min_by_key(|(_, r)| r.heard);
        let Some(id) = oldest.map(|(id, _)| *id) else { return };
        let run = self.runs.remove(&id).expect("found above");
        self.reply_bytes -= run.orders.values().map(Order::reply_bytes).sum::<usize>();
    }

    /// The earliest reply of the run that was not heard of for longest.
    fn forget_a_reply(&mut self) {
        let answered = |order: &Order| matches!(order.state, State::Answered(_));
        let runs = self.runs.values_mut().filter(|run| run.orders.values().any(answered));
        let run = runs.min_by_key(|run| run.heard).expect("there are replies that have bytes");
        let order = run.orders.values_mut().find(|order| answered(order)).expect("filtered");
        self.reply_bytes -= order.reply_bytes();
        order.state = State::Forgotten;
    }
}

impl Run {
    fn await_from(&mut self, from: u64, reply_bytes: &mut usize) {
        if from <= self.awaited_from {
            return;
        }
        self.awaited_from = from;
        self.orders.retain(|sequence, order| {
            let stays = *sequence >= from || order.is_under_way();
            *reply_bytes -= if stays { 0 } else { order.reply_bytes() };
            stays
        });
    }

    fn bound(&mut self, reply_bytes: &mut usize) {
        if self.orders.len() > ORDERS_MAX {
            let (earliest, _) = self.orders.first_key_value().expect("it is not empty");
            self.await_from(earliest + 1, reply_bytes);
        }
    }
}

impl Order {
    fn is_under_way(&self) -> bool {
        matches!(self.state, State::UnderWay(_))
    }

    fn reply_bytes(&self) -> usize {
        match &self.state {
            State::Answered(answer) => output_bytes(answer),
            State::UnderWay(_) | State::Forgotten => 0,
        }
    }
}

fn output_bytes(answer: &Answer) -> usize {
    answer.iter().map(|piece| piece.outputs.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::{Admission, Answer, ORDERS_MAX, Once, RUNS_MAX};
    use agents::rng::stream;
    use proto::{ComputeFault, ComputeReply, ComputeRequest};
    use rand::RngExt as _;
    use std::collections::BTreeSet;

    fn request(run: u64, sequence: u64, awaited_from: u64) -> ComputeRequest {
        let header_crc32 = u32::try_from(sequence % 1000).expect("small");
        ComputeRequest { run, sequence, awaited_from, header_crc32, ..ComputeRequest::default() }
    }

    /// In two pieces.
    fn reply(sequence: u64, bytes: usize) -> Answer {
        let piece = |bytes| ComputeReply {
            sequence,
            outputs: vec![1; bytes].into(),
            ..ComputeReply::default()
        };
        vec![piece(bytes / 2), piece(bytes - bytes / 2)]
    }

    fn fault(admission: Admission) -> Option<ComputeFault> {
        match admission {
            Admission::Refused(error) => Some(error.fault),
            _ => None,
        }
    }

    #[test]
    fn an_answer_is_given_again_until_it_is_not_awaited_and_refused_from_then_on() {
        let once = Once::new(1000);
        assert!(matches!(once.admit(&request(1, 5, 5)), Admission::Compute));
        let Admission::UnderWay(mut waiting) = once.admit(&request(1, 5, 5)) else {
            panic!("it is under way")
        };
        once.answered(1, 5, &reply(5, 10));
        assert_eq!(waiting.try_recv(), Ok(reply(5, 10)));
        for _ in 0..2 {
            let Admission::Answered(again) = once.admit(&request(1, 5, 5)) else {
                panic!("it was answered")
            };
            assert_eq!(again, reply(5, 10));
        }
        let other = ComputeRequest { header_crc32: 9, ..request(1, 5, 5) };
        assert_eq!(fault(once.admit(&other)), Some(ComputeFault::BadShape));
        assert!(matches!(once.admit(&request(2, 5, 5)), Admission::Compute), "of another run");
        // The next order says that the answer has arrived.
        assert!(matches!(once.admit(&request(1, 6, 6)), Admission::Compute));
        assert_eq!(fault(once.admit(&request(1, 5, 5))), Some(ComputeFault::Duplicate));
        assert_eq!(fault(once.admit(&request(1, 4, 1))), Some(ComputeFault::Duplicate));
        assert_eq!(once.book().reply_bytes, 0);
    }

    #[test]
    fn what_failed_may_come_again_and_what_is_too_large_to_keep_is_refused() {
        let once = Once::new(100);
        let Admission::Compute = once.admit(&request(1, 1, 1)) else { panic!("new") };
        let failed =
            ComputeReply { fault: ComputeFault::Expired.into(), ..ComputeReply::default() };
        once.answered(1, 1, &vec![failed]);
        let Admission::Compute = once.admit(&request(1, 1, 1)) else { panic!("it failed") };
        let Admission::UnderWay(mut waiting) = once.admit(&request(1, 1, 1)) else {
            panic!("it is under way")
        };
        once.dropped(1, 1);
        assert!(waiting.try_recv().is_err(), "whoever waits is told");
        let Admission::Compute = once.admit(&request(1, 1, 1)) else { panic!("it was dropped") };
        once.answered(1, 1, &reply(1, 101));
        assert_eq!(fault(once.admit(&request(1, 1, 1))), Some(ComputeFault::Duplicate));
    }

    /// Many coordinators, messages again and again in any order, answers of any size.
    #[test]
    fn whatever_comes_no_order_is_computed_twice_and_memory_is_bounded() {
        for seed in 0..200 {
            let mut rng = stream(seed, "once");
            let once = Once::new(500);
            let mut computed = BTreeSet::new();
            let mut under_way = Vec::new();
            for at in 0..2_000_u64 {
                let run = rng.random_range(1..5);
                let sequence = 1 + (at / 4 + rng.random_range(0..20)).saturating_sub(10);
                let awaited_from = sequence.saturating_sub(rng.random_range(0..30));
                match once.admit(&request(run, sequence, awaited_from)) {
                    Admission::Compute => {
                        assert!(computed.insert((run, sequence)), "seed {seed}: computed twice");
                        under_way.push((run, sequence));
                    }
                    Admission::Answered(reply) => {
                        assert!(computed.contains(&(run, sequence)));
                        assert_eq!(reply[0].sequence, sequence, "seed {seed}");
                    }
                    Admission::UnderWay(_) => assert!(under_way.contains(&(run, sequence))),
                    Admission::Refused(error) => assert_eq!(error.fault, ComputeFault::Duplicate),
                }
                if rng.random_range(0..3) > 0 && !under_way.is_empty() {
                    let (run, sequence) =
                        under_way.swap_remove(rng.random_range(0..under_way.len()));
                    once.answered(run, sequence, &reply(sequence, rng.random_range(0..200)));
                }
                let book = once.book();
                let kept = book.runs.values().flat_map(|run| run.orders.values());
                assert_eq!(kept.map(super::Order::reply_bytes).sum::<usize>(), book.reply_bytes);
                assert!(book.reply_bytes <= 500);
            }
        }
    }

    #[test]
    fn orders_and_runs_are_bounded_even_if_a_coordinator_never_says_what_it_awaits() {
        let once = Once::new(1000);
        for sequence in 1..=3 * ORDERS_MAX as u64 {
            let Admission::Compute = once.admit(&request(1, sequence, 0)) else { panic!("new") };
            once.answered(1, sequence, &reply(sequence, 1));
        }
        assert!(once.book().runs[&1].orders.len() <= ORDERS_MAX);
        assert_eq!(fault(once.admit(&request(1, 1, 0))), Some(ComputeFault::Duplicate));
        for run in 2..=4 * RUNS_MAX as u64 {
            let Admission::Compute = once.admit(&request(run, 1, 0)) else { panic!("new") };
            once.answered(run, 1, &reply(1, 1));
        }
        let book = once.book();
        assert_eq!(book.runs.len(), RUNS_MAX);
        assert_eq!(book.reply_bytes, RUNS_MAX);
    }
}

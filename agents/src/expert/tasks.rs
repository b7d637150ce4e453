//! A list of tasks that threads take from.

use rayon::prelude::*;
use std::cmp::Reverse;
use std::sync::Mutex;

/// Cost below which other threads are not worth waking, in bytes of weights times the panels that they
/// meet.
const SERIAL_COST: usize = 1 << 18;

/// Who works on the tasks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    Caller,
    Pool,
}

impl Threads {
    /// Does all tasks, each with its cost, the costliest first. A thread takes as many from the list
    /// as make up its part of a quarter of the cost that is left, so that it comes back seldom, and often
    /// at the end. Each has a `state` of its own.
    pub(super) fn each<T: Send, S>(
        self,
        mut tasks: Vec<(usize, T)>,
        state: impl Fn() -> S + Sync,
        run: impl Fn(&mut S, T) + Sync,
    ) {
        let cost: usize = tasks.iter().map(|(cost, _)| cost).sum();
        let threads = rayon::current_num_threads();
        if self == Self::Caller || cost < SERIAL_COST || tasks.len() == 1 || threads == 1 {
            let mut state = state();
            return tasks.into_iter().for_each(|(_, task)| run(&mut state, task));
        }
        tasks.sort_by_key(|(cost, _)| Reverse(*cost));
        let left = Mutex::new((tasks.into_iter(), cost));
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            let mut state = state();
            let mut taken = Vec::new();
            loop {
                let mut left = left.lock().expect("no task is taken by a thread that panics");
                let part = left.1 / (4 * threads);
                let mut cost = 0;
                for (of_task, task) in left.0.by_ref() {
                    cost += of_task;
                    taken.push(task);
                    if cost >= part {
                        break;
                    }
                }
                left.1 -= cost;
                drop(left);
                if taken.is_empty() {
                    break;
                }
                taken.drain(..).for_each(|task| run(&mut state, task));
            }
        });
    }
}

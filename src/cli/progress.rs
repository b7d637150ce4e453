//! The progress bar of a run, on standard error; nothing is drawn where that is no terminal.

use crate::run::Progress;
use crate::sweep::SweepProgress;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// Draws phases as a spinner and requests as a bar.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::no_length();
        bar.set_style(style("{spinner} {msg}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn phase(&self, name: &str) {
        self.0.set_style(style("{spinner} {msg}"));
        self.0.set_message(name.to_owned());
    }

    fn answered(&self, answered: u64, requests: u64) {
        if self.0.length() != Some(requests) {
            self.0.set_length(requests);
        }
        self.0.set_style(style("{msg} {wide_bar} {pos}/{len} requests, {elapsed}"));
        self.0.set_position(answered);
    }
}

/// The same of a sweep: its runs.
pub(super) struct SweepBar(ProgressBar);

impl SweepBar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::no_length();
        bar.set_style(style("{wide_bar} {pos}/{len} runs, {msg}{elapsed}, {eta} to go"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl SweepProgress for SweepBar {
    fn played(&self, done: u64, runs: u64, failed: u64) {
        self.0.set_length(runs);
        self.0.set_position(done);
        if failed > 0 {
            self.0.set_message(format!("{failed} failed, "));
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are well formed")
}

//! `--live` and `--serve`: a run that is watched while it goes.

use super::Failure;
use crate::export::MetricsAddress;
use crate::run::{Feed, RunEnd};
use crate::scenario::Scenario;
use crate::watching::{Dashboard, HeldLog, Lines, WebPage};
use clap::Args;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

#[derive(Args, Clone, Copy, Default)]
pub(super) struct WatchArgs {
    /// Draw a dashboard while it runs, on standard error: loads, certificates, times, nodes; keys pause, step and stop.
    /// Lines instead where that is no terminal
    #[arg(long)]
    live: bool,
    /// Serve the same as a web page while it runs: at PORT of 127.0.0.1, or IP:PORT; a free port where none is named
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "0", value_parser = address)]
    serve: Option<SocketAddr>,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let MetricsAddress(address) = text
        .parse()
        .map_err(|error| format!("{error}; without an address, write --serve at the end"))?;
    Ok(address)
}

/// What listens to a run.
pub(super) struct Watching {
    pub(super) feed: Arc<Feed>,
    shown: Option<Shown>,
    page: Option<WebPage>,
}

/// How it is shown here.
enum Shown {
    Dashboard { _until_dropped: Dashboard },
    Lines { _until_dropped: Lines },
}

impl Watching {
    /// Starts to listen; none where nobody asked.
    pub(super) fn start(args: WatchArgs, scenario: &Scenario) -> Result<Option<Self>, Failure> {
        let failed =
            |error: io::Error| Failure::Dependency(format!("cannot start a thread: {error}"));
        if !args.live && args.serve.is_none() {
            return Ok(None);
        }
        let feed = Arc::new(Feed::new(scenario));
        let page = args.serve.map(|address| page(address, &feed)).transpose()?;
        let shown = match args.live.then(|| dashboard(&feed, scenario)) {
            None => None,
            Some(Ok(dashboard)) => Some(Shown::Dashboard { _until_dropped: dashboard }),
            Some(Err(why)) => {
                say(&format!("note: --live prints lines: {why}"));
                Some(Shown::Lines { _until_dropped: Lines::start(&feed).map_err(failed)? })
            }
        };
        if let Some(page) = &page {
            let at = page.address();
            say(&format!("watch at http://{at}/"));
            if !at.ip().is_loopback() {
                say(
                    "warning: whoever reaches this address can read there what the run does: it asks for no password",
                );
            }
        }
        Ok(Some(Self { feed, shown, page }))
    }

    /// Whether this shows the progress of the run itself.
    pub(super) fn is_shown(&self) -> bool {
        self.shown.is_some()
    }

    /// Tells whoever listens how the run ended, and gives the terminal back.
    pub(super) fn end(mut self, end: Option<&RunEnd>) {
        if let Some(end) = end {
            self.feed.ended(end);
        }
        self.shown = None;
        if let Some(page) = self.page {
            page.end();
        }
    }
}

/// Says it, past a dashboard that is drawn. Standard error may be closed.
fn say(text: &str) {
    let _ = writeln!(HeldLog, "{text}");
}

fn page(address: SocketAddr, feed: &Arc<Feed>) -> Result<WebPage, Failure> {
    WebPage::start(address, Arc::clone(feed)).map_err(|error| {
        let help = "choose another port; 0, or none, takes a free one";
        Failure::BadInput(format!("--serve: cannot listen on {address}: {error}\nhelp: {help}"))
    })
}

/// A dashboard, or why there is none.
fn dashboard(feed: &Arc<Feed>, scenario: &Scenario) -> Result<Dashboard, String> {
    if !scenario.virtual_nodes.blocks.is_off() {
        return Err("blocks are simulated at one go".to_owned());
    }
    if !io::stderr().is_terminal() {
        return Err("standard error is no terminal".to_owned());
    }
    Dashboard::start(Arc::clone(feed)).map_err(|error| format!("no terminal: {error}"))
}

//! The dashboard on a terminal, and its keys.

use super::held_log::HeldLog;
use super::view::View;
use crate::measure::Clock;
use crate::results::{PaceState, Snapshot};
use crate::run::{Feed, Pace};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use std::io::{self, Stderr};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender, TryRecvError};
use std::sync::{Arc, Once};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::watch;

/// How long a key may wait, and the time between two pictures.
const LOOK: Duration = Duration::from_millis(100);

/// Whether the terminal is ours, to be given back by whoever comes first.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Draws a run on standard error until this is dropped; the terminal is then as it was.
#[derive(Debug)]
pub struct Dashboard {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Dashboard {
    /// Takes the terminal.
    ///
    /// # Errors
    /// Standard error is no terminal, or there is no further thread.
    pub fn start(feed: Arc<Feed>) -> io::Result<Self> {
        take()?;
        let terminal = Terminal::new(CrosstermBackend::new(io::stderr()));
        let (stop, stopped) = mpsc::channel::<()>();
        let spawned = terminal.and_then(|mut terminal| {
            let draw = move || {
                let latest = feed.subscribe();
                let goes_on = || stopped.try_recv() == Err(TryRecvError::Empty);
                let drawn = show(&feed, latest, &mut terminal, goes_on);
                give_back();
                if let Err(error) = drawn {
                    tracing::warn!("the dashboard ended: {error}");
                }
            };
            thread::Builder::new().name("dashboard".to_owned()).spawn(draw)
        });
        match spawned {
            Ok(thread) => Ok(Self { stop: Some(stop), thread: Some(thread) }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Should it have panicked, that is on standard error.
            let _ = thread.join();
        }
        give_back();
    }
}

/// Draws what comes and does what keys say.
fn show(
    feed: &Feed,
    mut latest: watch::Receiver<Arc<Snapshot>>,
    terminal: &mut Terminal<CrosstermBackend<Stderr>>,
    goes_on: impl Fn() -> bool,
) -> io::Result<()> {
    let clock = Clock::start();
    let mut view = View::default();
    let mut seen_ns = 0;
    while goes_on() {
        let news = latest.borrow_and_update();
        if news.has_changed() || seen_ns == 0 {
            view.see(&news);
            seen_ns = clock.now_ns().max(1);
        }
        drop(news);
        view.age_s = (clock.now_ns().saturating_sub(seen_ns)) as f64 / 1e9;
        view.log = HeldLog::latest();
        terminal.draw(|frame| view.draw(frame.area(), frame.buffer_mut()))?;
        if event::poll(LOOK)?
            && let Event::Key(key) = event::read()?
            && let Some(wish) = wish(key)
        {
            obey(wish, feed, &mut view);
        }
    }
    Ok(())
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Pause,
    Step,
    Stop(&'static str),
    Turn(isize),
    Help,
}

fn wish(key: KeyEvent) -> Option<Wish> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    // In raw mode the terminal sends no signal.
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return (key.code == KeyCode::Char('c')).then_some(Wish::Stop("Ctrl-C"));
    }
    Some(match key.code {
        KeyCode::Char(' ' | 'p') => Wish::Pause,
        KeyCode::Char('s') => Wish::Step,
        KeyCode::Char('q') => Wish::Stop("q"),
        KeyCode::Left => Wish::Turn(-1),
        KeyCode::Right | KeyCode::Tab => Wish::Turn(1),
        KeyCode::Char('?' | 'h') => Wish::Help,
        _ => return None,
    })
}

fn obey(wish: Wish, feed: &Feed, view: &mut View) {
    match wish {
        Wish::Pause => feed.set_pace(|pace| match pace.state() {
            PaceState::Running => pace.pause(),
            PaceState::Paused => pace.go_on(),
            PaceState::Stopping => {}
        }),
        Wish::Step => feed.set_pace(Pace::step),
        Wish::Stop(by) => feed.set_pace(|pace| pace.stop(by)),
        Wish::Turn(by) => view.turn(by),
        Wish::Help => view.shows_help = !view.shows_help,
    }
}

/// Takes the terminal, so that a panic gives it back too.
fn take() -> io::Result<()> {
    static HOOK: Once = Once::new();
    enable_raw_mode()?;
    TAKEN.store(true, Ordering::SeqCst);
    HeldLog::hold();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |of| {
            give_back();
            before(of);
        }));
    });
    execute!(io::stderr(), EnterAlternateScreen).inspect_err(|_| give_back())
}

/// Gives the terminal back, once.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // It may have gone.
        let _ = execute!(io::stderr(), LeaveAlternateScreen, ratatui::crossterm::cursor::Show);
        let _ = disable_raw_mode();
        HeldLog::release();
    }
}

#[cfg(test)]
mod tests {
    use super::{Wish, wish};
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    #[test]
    fn keys_pause_step_stop_turn_and_explain() {
        for (code, expected) in [
            (KeyCode::Char(' '), Some(Wish::Pause)),
            (KeyCode::Char('s'), Some(Wish::Step)),
            (KeyCode::Char('q'), Some(Wish::Stop("q"))),
            (KeyCode::Char('?'), Some(Wish::Help)),
            (KeyCode::Left, Some(Wish::Turn(-1))),
            (KeyCode::Right, Some(Wish::Turn(1))),
            (KeyCode::Char('x'), None),
        ] {
            assert_eq!(wish(KeyEvent::new(code, KeyModifiers::NONE)), expected);
        }
        let control = |code| KeyEvent::new(KeyCode::Char(code), KeyModifiers::CONTROL);
        assert_eq!(wish(control('c')), Some(Wish::Stop("Ctrl-C")));
        assert_eq!(wish(control('s')), None, "a terminal's own key is no step");
    }
}

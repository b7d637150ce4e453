//! A run while it goes, for people: a dashboard in the terminal, lines, or a web page.
//!
//! All of it listens to the run's [`Feed`](crate::run::Feed) on threads of its own.

mod figures;
mod held_log;
mod history;
mod lines;
mod terminal;
mod view;
mod web;

pub use figures::line;
pub use held_log::HeldLog;
pub use history::{History, Point};
pub use lines::Lines;
pub use terminal::Dashboard;
pub use view::View;
pub use web::WebPage;

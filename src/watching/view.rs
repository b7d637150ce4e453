//! The dashboard as a picture: a function of what was seen of a run.

mod charts;
mod loads;
mod tables;

use super::figures;
use super::history::History;
use crate::results::{PaceState, Snapshot};
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Gauge, Paragraph, Widget};

/// Below this many columns or rows nothing can be read.
const SIZE_MIN: (u16, u16) = (60, 16);

/// What was seen of a run, and what of it is looked at.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The latest snapshot.
    pub latest: Snapshot,
    /// All of them, thinned out.
    pub history: History,
    /// The layer whose loads are drawn.
    pub layer: usize,
    /// Whether the keys are explained.
    pub shows_help: bool,
    /// Since the latest snapshot came, s.
    pub age_s: f64,
    /// The latest line of the log, where there is one.
    pub log: Option<String>,
}

impl View {
    /// Takes up a snapshot.
    pub fn see(&mut self, snapshot: &Snapshot) {
        self.history.add(snapshot);
        self.latest = snapshot.clone();
        self.layer = self.layer.min(self.latest.layers.len().saturating_sub(1));
        self.age_s = 0.0;
    }

    /// Looks at the layer so many further, around the end.
    pub fn turn(&mut self, by: isize) {
        let layers = self.latest.layers.len().max(1).cast_signed();
        self.layer = (self.layer.cast_signed() + by).rem_euclid(layers).cast_unsigned();
    }

    /// Draws it.
    pub fn draw(&self, area: Rect, buffer: &mut Buffer) {
        if area.width < SIZE_MIN.0 || area.height < SIZE_MIN.1 {
            let (width, height) = SIZE_MIN;
            let text =
                format!("{}\n(a dashboard takes {width} by {height})", figures::line(&self.latest));
            return Paragraph::new(text).render(area, buffer);
        }
        let rows = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Fill(1),
            Constraint::Length(tables::height(&self.latest, area.height)),
            Constraint::Length(1),
        ]);
        let [head, gauge, middle, low, foot] = rows.areas(area);
        self.head(head, buffer);
        self.gauge(gauge, buffer);
        let halves = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]);
        let [left, right] = halves.areas(middle);
        loads::draw(&self.latest, self.layer, left, buffer);
        charts::draw(&self.history, right, buffer);
        let [left, right] = halves.areas(low);
        tables::times(&self.latest, &self.history, left, buffer);
        tables::nodes(&self.latest, right, buffer);
        self.foot(foot, buffer);
        if self.shows_help {
            help(area, buffer);
        }
    }

    fn head(&self, area: Rect, buffer: &mut Buffer) {
        let Snapshot { scenario, seed, router, phase, pace, .. } = &self.latest;
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let (pace, colour) = match pace {
            PaceState::Running if self.latest.rounds > 0 && self.age_s > 3.0 => {
                (format!("no round for {:.0} s", self.age_s), Color::Yellow)
            }
            PaceState::Running => (String::new(), Color::Reset),
            PaceState::Paused => ("paused".to_owned(), Color::Yellow),
            PaceState::Stopping => ("stopping".to_owned(), Color::Red),
        };
        let line = Line::from(vec![
            Span::styled(scenario.clone(), bold),
            Span::raw(format!("  seed {seed}  router {router}  ")),
            Span::styled(phase.clone(), Style::new().fg(Color::Cyan)),
            Span::raw("  "),
            Span::styled(pace, bold.fg(colour)),
        ]);
        line.render(area, buffer);
    }

    fn gauge(&self, area: Rect, buffer: &mut Buffer) {
        let Snapshot { answered, requests, steps_done, steps, elapsed_ns, outcomes, .. } =
            &self.latest;
        let ended = outcomes.total();
        let share = if *requests > 0 { ended as f64 / *requests as f64 } else { 0.0 };
        let lost = ended - answered;
        let lost = if lost > 0 { format!(" ({lost} not answered)") } else { String::new() };
        let label = format!(
            "{answered} of {requests} requests{lost}, batch {steps_done} of {steps}, {}",
            figures::time(*elapsed_ns)
        );
        let style = Style::new().fg(Color::Blue);
        Gauge::default()
            .ratio(share.clamp(0.0, 1.0))
            .label(label)
            .gauge_style(style)
            .use_unicode(true)
            .render(area, buffer);
    }

    fn foot(&self, area: Rect, buffer: &mut Buffer) {
        const KEYS: &str = "space pause  s step  ←→ layer  q stop  ? help";
        let [keys, log] =
            Layout::horizontal([Constraint::Length(48), Constraint::Fill(1)]).areas(area);
        Line::styled(KEYS, Style::new().add_modifier(Modifier::DIM)).render(keys, buffer);
        let said = self.log.as_deref().unwrap_or_default();
        Line::styled(said, Style::new().fg(Color::Yellow)).render(log, buffer);
    }
}

/// A frame with a title.
fn frame(title: String) -> Block<'static> {
    Block::new().borders(Borders::ALL).title(title).border_style(Style::new().fg(Color::DarkGray))
}

fn help(area: Rect, buffer: &mut Buffer) {
    const TEXT: &str = "\
space  pause before the next batch, and go on: the run's clock stands still
s      play one batch, or step of decoding, and pause
← →    loads of another layer
q      stop early as Ctrl-C does: results are written, exit code 130
?      close this";
    let (width, height) = (80.min(area.width), 7.min(area.height));
    let at = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    Clear.render(at, buffer);
    Paragraph::new(TEXT).block(frame(" keys ".to_owned())).render(at, buffer);
}

#[cfg(test)]
mod tests {
    use super::View;
    use crate::measure::LatencyQuantiles;
    use crate::results::{
        FaultFigures, LayerSnapshot, NodeSnapshot, NodeState, Outcomes, PaceState, Snapshot,
    };
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn drawn(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("it is memory");
        terminal.draw(|frame| view.draw(frame.area(), frame.buffer_mut())).expect("it is memory");
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| row(y).trim_end().to_owned() + "\n").collect()
    }

    fn layer(layer: u32) -> LayerSnapshot {
        LayerSnapshot {
            layer,
            step: 20,
            tokens: 64,
            loads: (0..16).map(|expert| 16 + (expert + layer) % 3).collect(),
            loads_top_k: (0..16).map(|expert| 8 + 2 * expert).collect(),
            fair_share: 16.0,
            capacity: Some(20),
            max_over_mean: 1.125,
            max_over_mean_top_k: 2.375,
            epsilon_nash: Some(1e-7),
            relative_gap: Some(2.5e-9),
            ..LayerSnapshot::default()
        }
    }

    fn node(node: u32, state: NodeState) -> NodeSnapshot {
        NodeSnapshot {
            node,
            state,
            experts: 43,
            round_pairs: 171,
            answer_ns: (state == NodeState::Up).then_some(1_250_000),
            compute_ns: 830_000_000,
            ..NodeSnapshot::default()
        }
    }

    /// A run that has come closer to equilibrium in ten looks.
    fn seen() -> View {
        let mut view = View::default();
        for at in 1..=10_u64 {
            let epsilon_nash = Some(10_f64.powf(-0.7 * at as f64));
            view.see(&Snapshot {
                scenario: "quickstart".to_owned(),
                seed: 7,
                router: "equilibrium".to_owned(),
                phase: "serving".to_owned(),
                pace: PaceState::Paused,
                elapsed_ns: at * 500_000_000,
                steps_done: 2 * at,
                steps: 63,
                rounds: 4 * at,
                requests: 1000,
                answered: 31 * at,
                outcomes: Outcomes { ok: 31 * at, shed: at, ..Outcomes::default() },
                tokens_played: 2_000 * at - 150 * (at % 3),
                tokens_per_s: Some(3_968.0),
                epsilon_nash,
                relative_gap: epsilon_nash.map(|epsilon| epsilon / 40.0),
                layers: vec![layer(0), layer(1)],
                latency_ns: LatencyQuantiles {
                    count: 31 * at,
                    p50: Some(51_200_000),
                    p90: Some(98_000_000),
                    p99: Some(123_000_000),
                    p999: Some(1_234_000_000),
                    max: Some(1_234_000_000),
                    overflow: 0,
                },
                nodes: vec![
                    node(0, NodeState::Up),
                    node(1, NodeState::Aside),
                    node(2, NodeState::Lost),
                ],
                nodes_total: 3,
                nodes_up: 1,
                sent_bytes: 12_300_000,
                received_bytes: 4_560,
                faults: Some(FaultFigures { lost_nodes: 1, hedges: 4, ..FaultFigures::default() }),
                ..Snapshot::default()
            });
        }
        view
    }

    #[test]
    fn a_run_is_drawn_whole() {
        let drawn = drawn(&seen(), 110, 30);
        assert!(drawn == include_str!("view/dashboard.txt"), "drawn:\n{drawn}");
    }

    #[test]
    fn loads_are_those_of_the_layer_that_is_looked_at_and_turning_goes_round() {
        let mut view = seen();
        view.latest.layers[1].max_over_mean = 3.5;
        assert!(drawn(&view, 80, 24).contains("layer 0 of 2"));
        view.turn(1);
        let second = drawn(&view, 80, 24);
        assert!(
            second.contains("layer 1 of 2") && second.contains("max over mean 3.500"),
            "{second}"
        );
        view.turn(1);
        assert_eq!(view.layer, 0);
        view.turn(-1);
        assert_eq!(view.layer, 1);
    }

    #[test]
    fn what_cannot_be_said_yet_is_left_open_and_a_run_without_news_says_so() {
        let empty = drawn(&View::default(), 80, 24);
        assert!(empty.contains("0 of 0 requests") && empty.contains("0 of 0 nodes up"), "{empty}");
        let mut view = seen();
        view.latest.pace = PaceState::Running;
        view.age_s = 7.4;
        assert!(drawn(&view, 80, 24).contains("no round for 7 s"));
    }

    #[test]
    fn decoding_has_times_of_tokens_too() {
        let mut view = seen();
        assert!(!drawn(&view, 110, 30).contains("first token"));
        view.latest.ttft_ns = Some(view.latest.latency_ns.clone());
        view.latest.tpot_ns =
            Some(LatencyQuantiles { p50: Some(9_870_000), ..LatencyQuantiles::default() });
        let drawn = drawn(&view, 110, 30);
        assert!(drawn.contains("first token") && drawn.contains("9.87 ms"), "{drawn}");
    }

    #[test]
    fn keys_are_explained_on_demand_and_any_size_is_drawn() {
        let mut view = seen();
        view.shows_help = true;
        assert!(drawn(&view, 110, 30).contains("exit code 130"));
        assert!(drawn(&view, 40, 10).starts_with("serving: 310 of 1000 requests"));
        for (width, height) in [(1, 1), (0, 0), (60, 16), (61, 17), (300, 100), (80, 16)] {
            drawn(&view, width, height);
        }
    }
}

//! What a person sees while the demonstration runs: a live table on a terminal, plain lines elsewhere.

use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};

use super::DemoOptions;
use super::score::Scoreboard;
use crate::alarm::message::HealthState;
use crate::cli::output;
use crate::gateway::Gateway;

/// Lines of news kept under the table.
const NEWS_LINES: usize = 8;

/// Where to show it.
pub enum View {
    /// A table that is drawn again and again.
    Terminal {
        /// The screen.
        terminal: Box<DefaultTerminal>,
        /// The newest lines.
        news: Vec<String>,
        /// The heading.
        title: String,
    },
    /// A line for each thing that happens, on stdout.
    Lines,
    /// A line for each thing that happens, on stderr, because stdout carries JSON.
    ErrorLines,
}

impl View {
    /// Takes over the terminal.
    ///
    /// # Errors
    /// The terminal cannot be used.
    pub fn terminal() -> std::io::Result<View> {
        Ok(View::Terminal { terminal: Box::new(ratatui::try_init()?), news: Vec::new(), title: String::new() })
    }

    /// Says where to look.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn begin(&mut self, gateway: &Gateway, options: &DemoOptions, board: &Scoreboard) -> std::io::Result<()> {
        let line = format!(
            "dashboard on http://{}, MQTT on {}, {} machines, seed {}, one second is {:.0} s of machine time",
            gateway.http_addr(),
            gateway.mqtt_addr(),
            board.rows.len(),
            options.seed,
            options.pace.machine_s_per_s(),
        );
        if let View::Terminal { title, .. } = self {
            *title = line;
        } else {
            self.tell(&[format!("millwright demo: {line}")]);
        }
        Ok(())
    }

    /// Shows lines of news.
    pub fn tell(&mut self, lines: &[String]) {
        match self {
            View::Terminal { news, .. } => {
                news.extend(lines.iter().cloned());
                let surplus = news.len().saturating_sub(NEWS_LINES);
                news.drain(..surplus);
            }
            View::Lines => lines.iter().for_each(|line| output::print(&format!("{line}\n"))),
            View::ErrorLines => lines.iter().for_each(|line| eprintln!("{line}")),
        }
    }

    /// Draws the table; true when the user wants to stop.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn draw(&mut self, board: &Scoreboard, gateway: &Gateway, elapsed: Duration) -> std::io::Result<bool> {
        let View::Terminal { terminal, news, title } = self else { return Ok(false) };
        let queue = gateway.pipeline().borrow().queue;
        let figures = format!(
            "{:.0} s   λ {:.0} msg/s   backlog {}   (q or Ctrl-C ends the demo)",
            elapsed.as_secs_f64(),
            queue.arrivals_per_s,
            queue.backlog
        );
        terminal.draw(|frame| {
            let height = u16::try_from(board.rows.len()).unwrap_or(u16::MAX).saturating_add(3);
            let areas = Layout::vertical([Constraint::Length(2), Constraint::Length(height), Constraint::Min(3)]);
            let [top, middle, bottom] = areas.areas(frame.area());
            frame.render_widget(Paragraph::new(vec![Line::from(title.as_str()).bold(), Line::from(figures)]), top);
            frame.render_widget(machines(board), middle);
            let lines: Vec<Line> = news.iter().map(|line| Line::from(line.as_str())).collect();
            frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("news")), bottom);
        })?;
        wants_to_stop()
    }

    /// Gives the terminal back.
    pub fn close(&mut self) {
        if let View::Terminal { .. } = self {
            ratatui::restore();
            *self = View::Lines;
        }
    }
}

fn wants_to_stop() -> std::io::Result<bool> {
    while event::poll(Duration::ZERO)? {
        if let Event::Key(key) = event::read()? {
            let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn machines(board: &Scoreboard) -> Table<'_> {
    let rows = board.rows.iter().map(|row| {
        let health = row.health.as_ref();
        let state = health.map(|health| health.state);
        let number = |value: Option<f32>, digits: usize| value.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        let learned = health.and_then(|health| health.learning).map(|(have, need)| format!("learning {have}/{need}"));
        let state_text = learned.unwrap_or_else(|| match state {
            None => "-".to_owned(),
            Some(state) => format!("{state:?}").to_lowercase(),
        });
        Row::new([
            Cell::from(row.machine.asset.clone()),
            Cell::from(row.machine.kind.clone()),
            Cell::from(state_text).style(colour(state)),
            Cell::from(number(health.and_then(|health| health.health), 0)),
            Cell::from(number(health.and_then(|health| health.score), 2)),
            Cell::from(row.message.clone().unwrap_or_default()),
        ])
    });
    let widths = [
        Constraint::Length(14),
        Constraint::Length(11),
        Constraint::Length(17),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Min(20),
    ];
    let heading = Row::new(["machine", "kind", "state", "health", "score", "why"]).style(Modifier::BOLD);
    Table::new(rows, widths).header(heading).block(Block::bordered().title("machines"))
}

fn colour(state: Option<HealthState>) -> Style {
    match state {
        Some(HealthState::Ok) => Style::new().fg(Color::Green),
        Some(HealthState::Alarm) => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        Some(HealthState::Recovering | HealthState::Silent) => Style::new().fg(Color::Yellow),
        Some(HealthState::Learning) | None => Style::new().fg(Color::Cyan),
    }
}

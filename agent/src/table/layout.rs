//! What a CSV file looks like: its separator, its header and what each column is.
//!
//! Owns the guesses, all from the first [`HEAD_BYTES_MAX`] bytes. Never reads a file.

use super::line::split;
use crate::config::TimeUnit;
use crate::ids::ChannelName;
use crate::source::text::number;
use crate::source::time;

/// How much of a file is looked at; at 200 bytes a row these are 300 rows.
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Rows that are looked at to tell numbers from texts.
const ROWS_MAX: usize = 200;

/// What a column is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Column {
    Time,
    Channel,
    /// Whether the row belongs to an anomaly.
    Label,
    /// Whether the row is the first or the last of one.
    Changepoint,
    /// Text, or a label besides the one that is used.
    Ignored,
}

/// The layout of a file.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) separator: u8,
    pub(super) has_header: bool,
    /// The header's names, or `column_1` and so on.
    pub(super) names: Vec<String>,
    pub(super) columns: Vec<Column>,
}

impl Layout {
    /// The layout of a file that begins with `head`; `whole` if there is no more of it. `None` if there is no line.
    pub(super) fn guess(head: &str, whole: bool) -> Option<Layout> {
        let mut lines: Vec<&str> = head.lines().collect();
        if !whole && lines.len() > 1 {
            // The last line is probably cut off.
            lines.pop();
        }
        lines.retain(|line| !line.trim().is_empty());
        lines.truncate(ROWS_MAX);
        let first = *lines.first()?;
        let separator = separator(&lines);
        let cells = |line: &str| -> Vec<String> { split(line, separator).into_iter().map(str::to_owned).collect() };
        let names = cells(first);
        let texts = names.iter().filter(|cell| !cell.is_empty() && !is_value(cell)).count();
        let has_header = texts.saturating_mul(2) > names.len();
        let rows: Vec<Vec<String>> = lines.iter().skip(usize::from(has_header)).map(|line| cells(line)).collect();
        let names = match has_header {
            true => names,
            false => (1..=names.len()).map(|number| format!("column_{number}")).collect(),
        };
        let columns = columns(&names, has_header, &rows, separator);
        Some(Layout { separator, has_header, names, columns })
    }

    /// Whether a comma within a cell is a decimal comma.
    pub(super) fn decimal_comma(&self) -> bool {
        self.separator != b','
    }

    /// The names of the channels, made valid and unique.
    pub(super) fn channels(&self) -> Vec<ChannelName> {
        let mut channels: Vec<ChannelName> = Vec::new();
        for (index, (name, column)) in self.names.iter().zip(&self.columns).enumerate() {
            if *column != Column::Channel {
                continue;
            }
            let number = index.saturating_add(1);
            let plain = crate::source::channel_name(name).filter(|name| !channels.contains(name));
            let renamed = || ChannelName::parse(&format!("column_{number}")).ok();
            channels.extend(plain.or_else(renamed));
        }
        channels
    }
}

/// The candidate that splits the lines most evenly; `;` and tab before `,`, which may be a decimal comma.
fn separator(lines: &[&str]) -> u8 {
    const CANDIDATES: [u8; 3] = [b';', b'\t', b','];
    let count = |line: &str, separator: u8| line.bytes().filter(|byte| *byte == separator).count();
    let first = lines.first().copied().unwrap_or_default();
    let even = |separator: &&u8| {
        let expected = count(first, **separator);
        let same = lines.iter().filter(|line| count(line, **separator) == expected).count();
        // Nine of ten: quoted cells may hold separators, and damaged lines happen.
        expected > 0 && same.saturating_mul(10) >= lines.len().saturating_mul(9)
    };
    let most = CANDIDATES.iter().max_by_key(|separator| count(first, **separator));
    CANDIDATES.iter().find(even).or(most).copied().unwrap_or(b',')
}

fn columns(names: &[String], has_header: bool, rows: &[Vec<String>], separator: u8) -> Vec<Column> {
    let lower: Vec<String> = names.iter().map(|name| name.trim().to_ascii_lowercase()).collect();
    let named = |wanted: &[&str]| {
        wanted.iter().find_map(|wanted| lower.iter().position(|name| name == wanted)).filter(|_| has_header)
    };
    let dates = |index: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(index)).filter(|cell| !cell.is_empty()).peekable();
        cells.peek().is_some() && cells.all(|cell| number(cell, true).is_none() && is_value(cell))
    };
    let time = named(&["datetime", "date_time", "timestamp", "time", "ts", "date"])
        .or_else(|| (0..names.len()).find(|index| dates(*index)));
    let label = named(&["anomaly", "is_anomaly", "label"]);
    let changepoint = named(&["changepoint"]);
    let is_label = |name: &str| matches!(name, "anomaly" | "is_anomaly" | "label" | "changepoint");
    let kind = |(index, name): (usize, &String)| {
        if Some(index) == time {
            Column::Time
        } else if Some(index) == label {
            Column::Label
        } else if Some(index) == changepoint {
            Column::Changepoint
        } else if (has_header && is_label(name)) || is_text(rows, index, separator) {
            Column::Ignored
        } else {
            Column::Channel
        }
    };
    lower.iter().enumerate().map(kind).collect()
}

/// Whether a column has cells, and none of them is a number.
fn is_text(rows: &[Vec<String>], index: usize, separator: u8) -> bool {
    let mut cells = rows.iter().filter_map(|row| row.get(index)).filter(|cell| !cell.is_empty()).peekable();
    cells.peek().is_some() && cells.all(|cell| number(cell, separator != b',').is_none())
}

/// Whether a cell is a number or a date.
fn is_value(cell: &str) -> bool {
    number(cell, true).is_some() || time::from_text(cell, TimeUnit::Auto).is_some()
}

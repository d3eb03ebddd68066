//! Tables of recorded telemetry: CSV files for `replay` and `evaluate`.
//!
//! Owns the reading of rows: a time, the channels' values and, apart from these, the labels. Streams: one row is in
//! memory at a time, unless [`Table::read`] is asked for all. Never hands a label to anybody as a value. At most
//! [`CHANNELS_MAX`] channels a row and [`TABLE_VALUES_MAX`] values a table.

mod layout;
mod line;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use self::layout::{Column, HEAD_BYTES_MAX, Layout};
use self::line::{LINE_BYTES_MAX, LineRead, read_line, split};
use crate::config::TimeUnit;
use crate::ids::{ChannelName, shorten};
use crate::source::{CHANNELS_MAX, text, time};

/// The most values that [`Table::read`] holds: 256 MB of `f32`, or 8 million rows of 8 channels.
pub const TABLE_VALUES_MAX: usize = 64 * 1024 * 1024;

/// The step between the rows of a file without times, in microseconds.
const STEP_US: i64 = 1_000_000;

/// Why a file is not a table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file cannot be opened or read.
    #[error("{file}: cannot be read: {source}; check the path and its permissions")]
    Unreadable {
        /// The file as it was named.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is no line with values.
    #[error("{file}: has no rows; a table has a header and at least one row")]
    Empty {
        /// The file as it was named.
        file: String,
    },
    /// No column holds numbers.
    #[error(
        "{file}: no column holds numbers besides times and labels; check the separator, which seems to be `{separator}`"
    )]
    NoChannels {
        /// The file as it was named.
        file: String,
        /// The separator that was recognised.
        separator: char,
    },
    /// More channels than a reading may have.
    #[error("{file}: has {channels} channels, at most {CHANNELS_MAX} are allowed; split it by machine")]
    TooManyChannels {
        /// The file as it was named.
        file: String,
        /// Its channels.
        channels: usize,
    },
    /// More values than fit into memory.
    #[error("{file}:{line}: more than {TABLE_VALUES_MAX} values; split the file by time")]
    TooLarge {
        /// The file as it was named.
        file: String,
        /// The line, from 1.
        line: u64,
    },
    /// A line that is longer than any row.
    #[error("{file}:{line}: the line has more than {LINE_BYTES_MAX} bytes; check that the file is a table")]
    LineTooLong {
        /// The file as it was named.
        file: String,
        /// The line, from 1.
        line: u64,
    },
    /// A row has more or fewer cells than the header.
    #[error(
        "{file}:{line}: {found} cells, the header has {expected}; mend the line, or the separator, which seems to be `{separator}`"
    )]
    Cells {
        /// The file as it was named.
        file: String,
        /// The line, from 1.
        line: u64,
        /// The cells of the row.
        found: usize,
        /// The columns of the table.
        expected: usize,
        /// The separator that was recognised.
        separator: char,
    },
    /// A cell of the time column is no time.
    #[error(
        "{file}:{line}: `{column}` is \"{found}\", which is not a time; write `2020-03-09 10:14:33`, RFC 3339 or seconds since 1970"
    )]
    Time {
        /// The file as it was named.
        file: String,
        /// The line, from 1.
        line: u64,
        /// The column's name.
        column: String,
        /// The cell, shortened.
        found: String,
    },
    /// A cell of a label column is no label.
    #[error("{file}:{line}: `{column}` is \"{found}\", which is not a label; write 0 or 1")]
    Label {
        /// The file as it was named.
        file: String,
        /// The line, from 1.
        line: u64,
        /// The column's name.
        column: String,
        /// The cell, shortened.
        found: String,
    },
}

/// One row of a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// UTC microseconds; without a time column, seconds since the first row.
    pub time_us: i64,
    /// One value per channel; NaN is missing.
    pub values: Vec<f32>,
    /// Whether the row belongs to an anomaly, if the file says so.
    pub label: Option<bool>,
    /// Whether an anomaly begins or ends here, if the file says so.
    pub changepoint: Option<bool>,
}

/// Reads a table row by row.
pub struct TableReader {
    file: String,
    layout: Layout,
    channels: Vec<ChannelName>,
    input: Box<dyn BufRead + Send>,
    buffer: Vec<u8>,
    /// Lines read so far, which is the number of the newest.
    lines: u64,
    rows: u64,
    missing: u64,
    malformed: u64,
}

impl TableReader {
    /// Opens a file and recognises its layout.
    ///
    /// # Errors
    /// The file cannot be read, is empty, or has no or too many channels.
    pub fn open(path: &Path) -> Result<TableReader, TableError> {
        let file = path.display().to_string();
        match File::open(path) {
            Ok(opened) => TableReader::new(file, Box::new(opened)),
            Err(source) => Err(TableError::Unreadable { file, source }),
        }
    }

    /// Reads from `source`, which messages call `file`.
    ///
    /// # Errors
    /// As [`TableReader::open`].
    pub fn new(file: String, mut source: Box<dyn Read + Send>) -> Result<TableReader, TableError> {
        let mut head = Vec::new();
        let limit = HEAD_BYTES_MAX as u64;
        if let Err(error) = source.by_ref().take(limit).read_to_end(&mut head) {
            return Err(TableError::Unreadable { file, source: error });
        }
        if head.starts_with(b"\xEF\xBB\xBF") {
            // The byte order mark that spreadsheets write.
            head.drain(..3);
        }
        let whole = head.len() < HEAD_BYTES_MAX - 3;
        let Some(layout) = Layout::guess(&String::from_utf8_lossy(&head), whole) else {
            return Err(TableError::Empty { file });
        };
        let channels = layout.channels();
        if channels.is_empty() {
            return Err(TableError::NoChannels { file, separator: char::from(layout.separator) });
        }
        if channels.len() > CHANNELS_MAX {
            return Err(TableError::TooManyChannels { file, channels: channels.len() });
        }
        let has_header = layout.has_header;
        let input = Box::new(BufReader::new(Cursor::new(head).chain(source)));
        let mut reader = TableReader {
            file,
            layout,
            channels,
            input,
            buffer: Vec::new(),
            lines: 0,
            rows: 0,
            missing: 0,
            malformed: 0,
        };
        if has_header {
            reader.next_line()?;
        }
        Ok(reader)
    }

    /// The channels, in the order of a row.
    pub fn channels(&self) -> &[ChannelName] {
        &self.channels
    }

    /// Whether rows say if they belong to an anomaly.
    pub fn has_labels(&self) -> bool {
        self.layout.columns.contains(&Column::Label)
    }

    /// Whether rows carry their time.
    pub fn has_times(&self) -> bool {
        self.layout.columns.contains(&Column::Time)
    }

    /// The columns that hold no numbers and are not used.
    pub fn ignored_columns(&self) -> Vec<&str> {
        let columns = self.layout.names.iter().zip(&self.layout.columns);
        columns.filter(|(_, column)| **column == Column::Ignored).map(|(name, _)| name.as_str()).collect()
    }

    /// Values so far that are missing: empty cells, NaN, infinities and the malformed ones.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Cells so far that should be numbers and are not.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Reads the next row into `row`; false at the end.
    ///
    /// # Errors
    /// The file cannot be read on, or the line is malformed; the error names it.
    pub fn next_row(&mut self, row: &mut Row) -> Result<bool, TableError> {
        if !self.next_line()? {
            return Ok(false);
        }
        // What is not UTF-8 is not a number, time or label either: the replacement character says so.
        let line = String::from_utf8_lossy(&self.buffer);
        let cells = split(&line, self.layout.separator);
        let columns = &self.layout.columns;
        // Empty cells behind the last column are a spreadsheet's habit.
        if cells.len() < columns.len() || cells.iter().skip(columns.len()).any(|cell| !cell.is_empty()) {
            return Err(TableError::Cells {
                file: self.file.clone(),
                line: self.lines,
                found: cells.len(),
                expected: columns.len(),
                separator: char::from(self.layout.separator),
            });
        }
        row.values.clear();
        (row.label, row.changepoint) = (None, None);
        row.time_us = i64::try_from(self.rows).unwrap_or(i64::MAX).saturating_mul(STEP_US);
        for (index, (column, cell)) in columns.iter().zip(cells).enumerate() {
            match column {
                Column::Ignored => {}
                Column::Time => match time::from_text(cell, TimeUnit::Auto) {
                    Some(time_us) => row.time_us = time_us,
                    None => {
                        let (file, line, column, found) = self.culprit(index, cell);
                        return Err(TableError::Time { file, line, column, found });
                    }
                },
                Column::Label | Column::Changepoint => {
                    let Some(value) = label(cell) else {
                        let (file, line, column, found) = self.culprit(index, cell);
                        return Err(TableError::Label { file, line, column, found });
                    };
                    let place = if *column == Column::Label { &mut row.label } else { &mut row.changepoint };
                    *place = Some(value);
                }
                Column::Channel => {
                    let number = text::number(cell, self.layout.decimal_comma());
                    self.malformed += u64::from(number.is_none() && !cell.is_empty());
                    let value = number.map_or(f32::NAN, |number| number as f32);
                    let value = if value.is_finite() { value } else { f32::NAN };
                    self.missing += u64::from(value.is_nan());
                    row.values.push(value);
                }
            }
        }
        self.rows = self.rows.saturating_add(1);
        Ok(true)
    }

    /// Reads the next line that is not blank; false at the end.
    fn next_line(&mut self) -> Result<bool, TableError> {
        loop {
            let read = read_line(&mut *self.input, &mut self.buffer);
            self.lines = self.lines.saturating_add(1);
            match read {
                Err(source) => return Err(TableError::Unreadable { file: self.file.clone(), source }),
                Ok(LineRead::End) => return Ok(false),
                Ok(LineRead::TooLong) => {
                    return Err(TableError::LineTooLong { file: self.file.clone(), line: self.lines });
                }
                Ok(LineRead::Line) if self.buffer.iter().all(u8::is_ascii_whitespace) => {}
                Ok(LineRead::Line) => return Ok(true),
            }
        }
    }

    fn culprit(&self, column: usize, cell: &str) -> (String, u64, String, String) {
        let name = self.layout.names.get(column).map(|name| shorten(name)).unwrap_or_default();
        (self.file.clone(), self.lines, name, shorten(cell))
    }
}

/// A whole table in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The file it was read from.
    pub path: PathBuf,
    /// The channels, in the order of a row.
    pub channels: Vec<ChannelName>,
    /// The time of each row, UTC microseconds.
    pub times_us: Vec<i64>,
    /// Row-major `[rows][channels]`; NaN is missing.
    pub values: Vec<f32>,
    /// Whether each row belongs to an anomaly, if the file says so.
    pub labels: Option<Vec<bool>>,
    /// Whether an anomaly begins or ends at each row, if the file says so.
    pub changepoints: Option<Vec<bool>>,
    /// Values that are missing.
    pub missing: u64,
    /// Cells that should be numbers and are not.
    pub malformed: u64,
}

impl Table {
    /// Reads a whole file.
    ///
    /// # Errors
    /// The first fault of the file, with its line.
    pub fn read(path: &Path) -> Result<Table, TableError> {
        Table::collect(path, TableReader::open(path)?)
    }

    fn collect(path: &Path, mut reader: TableReader) -> Result<Table, TableError> {
        let mut table = Table {
            path: path.to_owned(),
            channels: reader.channels().to_vec(),
            times_us: Vec::new(),
            values: Vec::new(),
            labels: reader.has_labels().then(Vec::new),
            changepoints: reader.layout.columns.contains(&Column::Changepoint).then(Vec::new),
            missing: 0,
            malformed: 0,
        };
        let mut row = Row::default();
        while reader.next_row(&mut row)? {
            if table.values.len().saturating_add(row.values.len()) > TABLE_VALUES_MAX {
                return Err(TableError::TooLarge { file: reader.file.clone(), line: reader.lines });
            }
            table.times_us.push(row.time_us);
            table.values.extend_from_slice(&row.values);
            if let (Some(labels), Some(label)) = (&mut table.labels, row.label) {
                labels.push(label);
            }
            if let (Some(changepoints), Some(changepoint)) = (&mut table.changepoints, row.changepoint) {
                changepoints.push(changepoint);
            }
        }
        if table.times_us.is_empty() {
            return Err(TableError::Empty { file: reader.file });
        }
        (table.missing, table.malformed) = (reader.missing, reader.malformed);
        Ok(table)
    }

    /// The rows in order: time and values.
    pub fn rows(&self) -> impl Iterator<Item = (i64, &[f32])> {
        self.times_us.iter().copied().zip(self.values.chunks(self.channels.len().max(1)))
    }
}

/// A label: 0 or 1 in any spelling of a number, or a boolean word; an empty cell is no anomaly.
fn label(cell: &str) -> Option<bool> {
    match cell.to_ascii_lowercase().as_str() {
        "" | "false" | "no" => Some(false),
        "true" | "yes" => Some(true),
        cell => cell.parse::<f64>().ok().filter(|number| number.is_finite()).map(|number| number >= 0.5),
    }
}

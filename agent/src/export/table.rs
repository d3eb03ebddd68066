//! The table that every export is: named columns of one kind each, written row by row.
//!
//! Owns the shape that the file formats share. Never knows where rows come from.

use std::collections::HashSet;
use std::io::{self, Write};

use super::{ExportError, Format, csv};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A time, UTC microseconds since 1970.
    Time,
    /// Text.
    Text,
    /// A measured value.
    Float,
    /// A whole number.
    Number,
    /// Yes or no.
    Flag,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Whether each row has a value.
    pub(crate) required: bool,
}

impl Column {
    pub(crate) fn required(name: &str, kind: Kind) -> Column {
        Column { name: name.to_owned(), kind, required: true }
    }

    pub(crate) fn optional(name: impl Into<String>, kind: Kind) -> Column {
        Column { name: name.into(), kind, required: false }
    }
}

/// One value of a row; of the kind of its column, or nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cell<'c> {
    Empty,
    Time(i64),
    Text(&'c str),
    Float(f32),
    Number(i64),
    Flag(bool),
}

impl<'c> Cell<'c> {
    /// A value; what is no number is nothing.
    pub(crate) fn float(value: f32) -> Cell<'c> {
        if value.is_finite() { Cell::Float(value) } else { Cell::Empty }
    }

    pub(crate) fn time(time_us: Option<i64>) -> Cell<'c> {
        time_us.map_or(Cell::Empty, Cell::Time)
    }

    pub(crate) fn text(text: Option<&'c str>) -> Cell<'c> {
        text.map_or(Cell::Empty, Cell::Text)
    }
}

/// Writes a table in some format.
pub(crate) trait TableWriter {
    /// One row, a cell for each column.
    fn row(&mut self, cells: &[Cell<'_>]) -> io::Result<()>;
    /// What belongs behind the last row; nothing is written afterwards.
    fn finish(&mut self) -> io::Result<()>;
}

/// A writer of `format`, which writes what comes before the rows.
pub(crate) fn writer<'w>(
    format: Format,
    columns: &[Column],
    out: &'w mut (dyn Write + Send),
) -> Result<Box<dyn TableWriter + 'w>, ExportError> {
    match format {
        Format::Csv => Ok(Box::new(csv::CsvWriter::new(columns, out)?)),
        #[cfg(feature = "parquet")]
        Format::Parquet => Ok(Box::new(super::parquet::ParquetWriter::new(columns, out)?)),
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => Err(ExportError::NoParquet),
    }
}

/// Names of columns, each once: a name that another column has gets `channel.` before it.
#[derive(Debug)]
pub(crate) struct Names(HashSet<String>);

impl Names {
    /// With names that are taken, in lower case.
    pub(crate) fn new(taken: &[&str]) -> Names {
        Names(taken.iter().map(|name| (*name).to_owned()).collect())
    }

    /// The name of a channel's columns: `suffixes` are those of its further columns, which must be free too.
    pub(crate) fn take(&mut self, channel: &str, suffixes: &[&str]) -> String {
        let mut name = channel.to_owned();
        let all = |name: &str| {
            let name = name.to_lowercase();
            let more: Vec<String> = suffixes.iter().map(|suffix| format!("{name}{suffix}")).collect();
            std::iter::once(name).chain(more).collect::<Vec<String>>()
        };
        while all(&name).iter().any(|name| self.0.contains(name)) {
            name = format!("channel.{name}");
        }
        self.0.extend(all(&name));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A channel called like a column of the table, or like another channel's columns, gets another name and none is there twice.
    #[test]
    fn no_name_is_there_twice() {
        let mut names = Names::new(&["time", "asset", "score"]);
        let mut take = |name: &str| names.take(name, &[".min", ".max"]);
        assert_eq!(take("flow"), "flow");
        assert_eq!(take("Time"), "channel.Time");
        assert_eq!(take("score"), "channel.score");
        assert_eq!(take("flow.min"), "channel.flow.min");
        assert_eq!(take("FLOW"), "channel.channel.FLOW");
    }
}

//! Exports: what a gateway has recorded, as one table for other programs.
//!
//! Owns what can be asked for ([`Request`]), what it comes to ([`Plan`]: which columns, from where) and what is told afterwards. Raw readings
//! are decoded from the log (`rows`), downsampled ones come from the historian's buckets (`buckets`), alerts and verdicts from the casebook
//! (`cases`); all are a `table` that `csv` and `parquet` write. Reads beside a running gateway, or when there is none, and never
//! writes anything but the table. What the columns mean is in `docs/EXPORT.md`.
//!
//! Bounds, whatever the span: [`ASSETS_MAX`] assets and [`COLUMNS_MAX`] columns; `rows` holds [`rows::HELD_CELLS_MAX`] cells to put them in the
//! order of time, Parquet one row group. With what a reader of the log needs that is less than [`MEMORY_BYTES_MAX`].

mod buckets;
mod cases;
mod csv;
#[cfg(feature = "parquet")]
mod parquet;
mod rows;
mod table;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::Path;

use millwright_broker::log::ReadError;
use serde::Serialize;

use self::table::Column;
use crate::clock::{self, SECOND_US};
use crate::config::{SourceConfig, TimeUnit};
use crate::historian::stored::is_step;
use crate::historian::{HistoryError, StoreError};
use crate::ids::{AssetId, ChannelName, shorten};
use crate::source::time;
use crate::state::StateError;

/// Assets of an export: as many as the pipeline has.
pub const ASSETS_MAX: usize = 10_000;
/// Columns of an export: of a few hundred different machines at once there would be more, and they belong into several files.
pub const COLUMNS_MAX: usize = 2_048;
/// Names that an error lists.
const LISTED_MAX: usize = 20;
/// The longest step: a month.
const STEP_US_MAX: i64 = 31 * 86_400 * SECOND_US;
/// What an export takes at most, beside the program itself. Held for a log: 8 MB of cells and as much for their order, a batch of
/// messages and their readings, the decoder's memory. For Parquet a row group of 6 MB, twice while it is encoded.
pub const MEMORY_BYTES_MAX: u64 = 96 << 20;

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Measured values.
    Readings,
    /// Alerts, one row each.
    Alerts,
    /// What people said of alerts, one row for each verdict.
    Feedback,
}

/// The file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text with commas.
    Csv,
    /// Columns of types, compressed.
    Parquet,
}

impl Format {
    /// What a file's name ends with.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Csv => "csv",
            Format::Parquet => "parquet",
        }
    }
}

/// One row for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// For each sample.
    Raw,
    /// For each so many microseconds.
    Step(i64),
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// What.
    pub what: What,
    /// Of which machines; all if there are none.
    pub assets: Vec<AssetId>,
    /// Which channels, in this order; all if there are none.
    pub channels: Vec<ChannelName>,
    /// From when on, device time, UTC microseconds.
    pub from_us: Option<i64>,
    /// Until when; not part of it.
    pub to_us: Option<i64>,
    /// How fine.
    pub every: Every,
    /// The file's format.
    pub format: Format,
}

/// Where it is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'p> {
    /// `data_dir` of the gateway.
    pub data_dir: &'p Path,
    /// How its topics are read.
    pub sources: &'p [SourceConfig],
}

/// Told again and again how much is done, of 1; the export ends when it says `false`.
pub type Tell<'t> = &'t mut dyn FnMut(f64) -> bool;

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The program was built without Parquet.
    #[error("this program was built without Parquet: build it with the feature `parquet`, or export CSV")]
    NoParquet,
    /// Not one of the words.
    #[error("`{value}` is no {name}: {expected}")]
    Value {
        /// What was to be said.
        name: &'static str,
        /// What was said instead, shortened.
        value: String,
        /// What may be said.
        expected: &'static str,
    },
    /// The end is not after the beginning.
    #[error("the span is empty: its end must be after its beginning")]
    Span,
    /// Something that only readings have.
    #[error("{0} is about readings: alerts and feedback have no channels and no steps, leave it out")]
    OfReadings(&'static str),
    /// Nothing is known of it.
    #[error("there is nothing of asset `{asset}`{within}; there is {known}")]
    UnknownAsset {
        /// Which.
        asset: String,
        /// In which part.
        within: &'static str,
        /// What there is.
        known: String,
    },
    /// No asset has it.
    #[error("no exported asset has a channel `{channel}`; there is {known}")]
    UnknownChannel {
        /// Which.
        channel: String,
        /// What there is.
        known: String,
    },
    /// Too much for one table.
    #[error(
        "these assets have {columns} columns together, at most {COLUMNS_MAX} fit one file: name assets or channels"
    )]
    TooManyColumns {
        /// How many.
        columns: usize,
    },
    /// Too many machines.
    #[error("there are more than {ASSETS_MAX} assets: name those to export")]
    TooManyAssets,
    /// Nothing matches.
    #[error("there is nothing to export: {0}")]
    Nothing(String),
    /// Who asked does not want it any more.
    #[error("the export was ended before it was whole")]
    Ended,
    /// The log.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// The historian's file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The historian's files.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The casebook's file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The table cannot be written.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Whose mistake it is that there is no export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Who asked: the words are wrong.
    Words,
    /// Who asked: there is no such thing.
    Missing,
    /// What is read or written fails.
    Files,
}

impl ExportError {
    /// Whose mistake it is.
    pub fn fault(&self) -> Fault {
        match self {
            ExportError::NoParquet
            | ExportError::Value { .. }
            | ExportError::Span
            | ExportError::OfReadings(_)
            | ExportError::TooManyColumns { .. }
            | ExportError::TooManyAssets => Fault::Words,
            ExportError::UnknownAsset { .. } | ExportError::UnknownChannel { .. } | ExportError::Nothing(_) => {
                Fault::Missing
            }
            ExportError::Log(ReadError::Missing { .. }) => Fault::Missing,
            _ => Fault::Files,
        }
    }
}

/// What an export came to.
#[derive(Debug, Clone, Serialize)]
pub struct Told {
    /// What.
    pub what: What,
    /// The format.
    pub format: Format,
    /// Rows written.
    pub rows: u64,
    /// Assets that have rows in it.
    pub assets: u64,
    /// Columns.
    pub columns: u64,
    /// The time of the first row and of the last, by time, UTC microseconds.
    pub span_us: Option<(i64, i64)>,
    /// Messages of the log that were read.
    pub messages: u64,
    /// Of these, telemetry of the asked assets that could not be decoded.
    pub decode_errors: u64,
    /// The last of them.
    pub last_decode_error: Option<String>,
    /// Readings that a device sent again.
    pub repeated_readings: u64,
    /// Rows of a moment that had one already: their values are in it, the last of each channel.
    pub merged_rows: u64,
    /// Rows that came so late that they stand behind younger ones.
    pub late_rows: u64,
    /// Messages that retention dropped meanwhile, or that could not be read.
    pub lost_messages: u64,
    /// What else is to be known.
    pub notes: Vec<String>,
}

impl Told {
    fn new(request: &Request, columns: &[Column]) -> Told {
        Told {
            what: request.what,
            format: request.format,
            rows: 0,
            assets: 0,
            columns: columns.len() as u64,
            span_us: None,
            messages: 0,
            decode_errors: 0,
            last_decode_error: None,
            repeated_readings: 0,
            merged_rows: 0,
            late_rows: 0,
            lost_messages: 0,
            notes: Vec::new(),
        }
    }

    fn note_row(&mut self, time_us: i64) {
        self.rows += 1;
        let (first, last) = self.span_us.unwrap_or((time_us, time_us));
        self.span_us = Some((first.min(time_us), last.max(time_us)));
    }
}

/// An export that can be written: what is asked for is there.
pub struct Plan {
    request: Request,
    columns: Vec<Column>,
    job: Job,
}

/// Where its rows come from.
enum Job {
    Rows(Box<rows::Rows>),
    Buckets(buckets::Buckets),
    Cases(cases::Cases),
}

impl Plan {
    /// Finds out what an export comes to. Raw readings have the log read once for it, so that columns are known before the first row.
    ///
    /// # Errors
    /// It cannot be made, or there is nothing.
    pub fn make(place: Place<'_>, request: Request, tell: Tell<'_>) -> Result<Plan, ExportError> {
        request.check()?;
        let (columns, job) = match (request.what, request.every) {
            (What::Alerts | What::Feedback, _) => {
                cases::plan(place, &request).map(|(columns, job)| (columns, Job::Cases(job)))?
            }
            (What::Readings, Every::Raw) => {
                rows::plan(place, &request, tell).map(|(columns, job)| (columns, Job::Rows(Box::new(job))))?
            }
            (What::Readings, Every::Step(step_us)) => {
                buckets::plan(place, &request, step_us).map(|(columns, job)| (columns, Job::Buckets(job)))?
            }
        };
        Ok(Plan { request, columns, job })
    }

    /// Writes it.
    ///
    /// # Errors
    /// What is read or written fails; what was written is not whole then.
    pub fn write(self, out: &mut (dyn Write + Send), tell: Tell<'_>) -> Result<Told, ExportError> {
        let Plan { request, columns, job } = self;
        let mut told = Told::new(&request, &columns);
        let mut writer = table::writer(request.format, &columns, out)?;
        match job {
            Job::Rows(job) => job.write(&request, writer.as_mut(), &mut told, tell)?,
            Job::Buckets(job) => job.write(&request, writer.as_mut(), &mut told, tell)?,
            Job::Cases(job) => job.write(&request, writer.as_mut(), &mut told, tell)?,
        }
        writer.finish()?;
        Ok(told)
    }
}

impl Request {
    /// Everything raw, as CSV.
    pub fn new(what: What) -> Request {
        Request {
            what,
            assets: Vec::new(),
            channels: Vec::new(),
            from_us: None,
            to_us: None,
            every: Every::Raw,
            format: Format::Csv,
        }
    }

    fn check(&self) -> Result<(), ExportError> {
        if self.what != What::Readings && !self.channels.is_empty() {
            return Err(ExportError::OfReadings("`channel`"));
        }
        if self.what != What::Readings && self.every != Every::Raw {
            return Err(ExportError::OfReadings("`every`"));
        }
        if self.format == Format::Parquet && !cfg!(feature = "parquet") {
            return Err(ExportError::NoParquet);
        }
        let (from_us, to_us) = self.span_us();
        if to_us <= from_us { Err(ExportError::Span) } else { Ok(()) }
    }

    fn span_us(&self) -> (i64, i64) {
        (self.from_us.unwrap_or(i64::MIN), self.to_us.unwrap_or(i64::MAX))
    }

    fn wants(&self, asset: &AssetId) -> bool {
        self.assets.is_empty() || self.assets.contains(asset)
    }

    /// Whether the table says of each row which machine it is of: wherever there can be several.
    fn names_assets(&self) -> bool {
        self.assets.len() != 1
    }

    /// The span in words, for who found nothing in it.
    fn span_in_words(&self) -> String {
        match (self.from_us, self.to_us) {
            (None, None) => String::new(),
            (Some(from_us), None) => format!(" from {} on", clock::rfc3339(from_us)),
            (None, Some(to_us)) => format!(" before {}", clock::rfc3339(to_us)),
            (Some(from_us), Some(to_us)) => format!(" from {} to {}", clock::rfc3339(from_us), clock::rfc3339(to_us)),
        }
    }
}

/// A word of [`What`].
///
/// # Errors
/// It is none.
pub fn parse_what(text: &str) -> Result<What, ExportError> {
    match text {
        "readings" => Ok(What::Readings),
        "alerts" => Ok(What::Alerts),
        "feedback" => Ok(What::Feedback),
        _ => Err(value("`what`", text, "say readings, alerts or feedback")),
    }
}

/// A word of [`Format`].
///
/// # Errors
/// It is none.
pub fn parse_format(text: &str) -> Result<Format, ExportError> {
    match text {
        "csv" => Ok(Format::Csv),
        "parquet" => Ok(Format::Parquet),
        _ => Err(value("format", text, "say csv or parquet")),
    }
}

/// How fine: `raw`, or a whole number with `s`, `m`, `h` or `d` that is a multiple of ten seconds.
///
/// # Errors
/// It is none.
pub fn parse_every(text: &str) -> Result<Every, ExportError> {
    let refused = || value("step", text, "say raw, or a multiple of 10s up to 31d, as in 10s, 5m, 1h or 1d");
    if text == "raw" {
        return Ok(Every::Raw);
    }
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(refused)?;
    let unit_us = match unit {
        "s" => SECOND_US,
        "m" => 60 * SECOND_US,
        "h" => 3_600 * SECOND_US,
        "d" => 86_400 * SECOND_US,
        _ => return Err(refused()),
    };
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let number: i64 = number.parse().ok().filter(|_| digits).ok_or_else(refused)?;
    let step_us =
        number.checked_mul(unit_us).filter(|step_us| (1..=STEP_US_MAX).contains(step_us) && is_step(*step_us));
    step_us.map(Every::Step).ok_or_else(refused)
}

/// A time: a date, or a number since 1970.
///
/// # Errors
/// It is none.
pub fn parse_time(text: &str) -> Result<i64, ExportError> {
    let expected =
        "write it as 2026-03-02T06:00:00Z, or as a number since 1970 in seconds, milliseconds or microseconds";
    time::from_text(text, TimeUnit::Auto).ok_or_else(|| value("time", text, expected))
}

fn value(name: &'static str, said: &str, expected: &'static str) -> ExportError {
    ExportError::Value { name, value: shorten(said), expected }
}

/// Some names, as an error lists them.
fn listed<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    let count = names.len();
    let shown: Vec<String> = names.take(LISTED_MAX).map(|name| format!("`{name}`")).collect();
    match count {
        0 => "none".to_owned(),
        count if count > LISTED_MAX => format!("{} and {} more", shown.join(", "), count - LISTED_MAX),
        _ => shown.join(", "),
    }
}

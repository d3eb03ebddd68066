//! `state.db` as it is read by others: beside the gateway that writes it, or when there is none.
//!
//! Owns what an export takes from it: alerts with their models, what people judged, and buckets that the historian does not have yet.
//! Never writes and makes no table; each call is one short read. At most [`ROWS_MAX`] rows at a time.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

use super::cases::{self, SUMMARY};
use super::{BUSY, SCHEMA_VERSION, StateError};
use crate::alarm::message::ModelRef;
use crate::casebook::{AlertSummary, Verdict};
use crate::historian::recorder::Recorded;
use crate::ids::AssetId;

/// Rows of one read.
const ROWS_MAX: i64 = 500;
/// Before it there were no alerts and no buckets.
const SCHEMA_MIN: i64 = 3;

/// `state.db`, only read.
pub struct StoredState {
    connection: Connection,
}

/// An alert and what scored it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredAlert {
    /// In short.
    pub summary: AlertSummary,
    /// The model that raised it.
    pub model: Option<ModelRef>,
}

/// What somebody said about an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFeedback {
    /// Its place; reading goes on behind it.
    pub number: i64,
    /// Gateway time, UTC microseconds.
    pub at_us: i64,
    /// Who.
    pub by: String,
    /// What was said of the alert.
    pub verdict: Option<Verdict>,
    /// In words.
    pub text: Option<String>,
    /// The alert's number.
    pub alert: i64,
    /// Its machine.
    pub asset: String,
    /// When its episode began.
    pub onset_us: i64,
    /// When it was raised.
    pub raised_us: i64,
    /// When it was cleared.
    pub cleared_us: Option<i64>,
}

impl StoredState {
    /// Opens the file of the data directory `dir`; `None` if there is none.
    ///
    /// # Errors
    /// It is of another version, or what SQLite says.
    pub fn open(dir: &Path) -> Result<Option<StoredState>, StateError> {
        let path = dir.join("state.db");
        if !path.is_file() {
            return Ok(None);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags)?;
        connection.busy_timeout(BUSY)?;
        let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match found {
            found if found > SCHEMA_VERSION => Err(StateError::Newer { path, found }),
            found if found < SCHEMA_MIN => Err(StateError::Older { path, found }),
            _ => Ok(Some(StoredState { connection })),
        }
    }

    /// Alerts with numbers above `after` that were raised in `[from_us, to_us)`, in the order of their numbers.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn alerts(&self, after: i64, (from_us, to_us): (i64, i64)) -> Result<Vec<StoredAlert>, StateError> {
        let sql = format!(
            "SELECT {SUMMARY}, model FROM alert WHERE number > ?1 AND raised_us >= ?2 AND raised_us < ?3 ORDER BY number LIMIT ?4"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![after, from_us, to_us, ROWS_MAX], |row| {
            let model: String = row.get("model")?;
            Ok(StoredAlert { summary: cases::summary(row)?.0, model: serde_json::from_str(&model).ok() })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Verdicts with numbers above `after` about alerts that were raised in `[from_us, to_us)`, in the order in which they were given.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn feedback(&self, after: i64, (from_us, to_us): (i64, i64)) -> Result<Vec<StoredFeedback>, StateError> {
        let sql = "SELECT n.number, n.at_us, n.who, n.verdict, n.text, a.number, a.asset, a.onset_us, a.raised_us, a.cleared_us
             FROM alert_note AS n JOIN alert AS a ON a.number = n.alert
             WHERE n.kind = 'feedback' AND n.number > ?1 AND a.raised_us >= ?2 AND a.raised_us < ?3 ORDER BY n.number LIMIT ?4";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map(params![after, from_us, to_us, ROWS_MAX], |row| {
            Ok(StoredFeedback {
                number: row.get(0)?,
                at_us: row.get(1)?,
                by: row.get(2)?,
                verdict: row.get::<_, Option<String>>(3)?.and_then(|text| Verdict::parse(&text)),
                text: row.get(4)?,
                alert: row.get(5)?,
                asset: row.get(6)?,
                onset_us: row.get(7)?,
                raised_us: row.get(8)?,
                cleared_us: row.get(9)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Buckets of `wanted` assets that wait for the historian, in the order of the checkpoints; at most what
    /// [`super::JOURNAL_BYTES_MAX`] holds.
    ///
    /// # Errors
    /// SQLite fails. A row that cannot be decoded is left out.
    pub fn recorded(&self, wanted: &dyn Fn(&AssetId) -> bool) -> Result<Vec<Recorded>, StateError> {
        let mut statement = self.connection.prepare_cached("SELECT buckets FROM recorded ORDER BY number")?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let bytes = row.get_ref(0)?.as_blob().unwrap_or_default();
            let recorded: Vec<Recorded> = postcard::from_bytes(bytes).unwrap_or_default();
            found.extend(recorded.into_iter().filter(|recorded| wanted(&recorded.asset)));
        }
        Ok(found)
    }
}

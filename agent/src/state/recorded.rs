//! Buckets for charts of the past on their way to the historian.
//!
//! Owns the table `recorded`: one row for each checkpoint that closed buckets, written in its transaction, so that what is behind the cursor
//! is never missing and what is folded again is never there twice over. The historian takes the rows, stores them in its own
//! file, and then has them forgotten. While it cannot, the newest [`JOURNAL_BYTES_MAX`] are kept.

use rusqlite::{Connection, Transaction, params};

use super::{State, StateError};
use crate::historian::recorder::Recorded;

/// Bytes of buckets that may wait: an hour and a half of 200 assets with 8 channels at 2.5 KB/s, five minutes of 3,000.
pub const JOURNAL_BYTES_MAX: u64 = 16 << 20;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS recorded (number INTEGER PRIMARY KEY AUTOINCREMENT, buckets BLOB NOT NULL);
";

/// The buckets of one checkpoint.
#[derive(Debug)]
pub struct JournalRow {
    /// Its number.
    pub number: i64,
    /// The buckets.
    pub recorded: Vec<Recorded>,
}

/// What waits for the historian.
#[derive(Debug, Default)]
pub struct Journal {
    /// Oldest first.
    pub rows: Vec<JournalRow>,
}

pub(super) fn create(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.execute_batch(SCHEMA)
}

/// Stores what a checkpoint recorded; returns the number of the row.
pub(super) fn store(transaction: &Transaction<'_>, recorded: &[Recorded]) -> Result<Option<i64>, StateError> {
    if recorded.is_empty() {
        return Ok(None);
    }
    let encode = |error| StateError::Encode { what: "the recorded buckets", error };
    let buckets = postcard::to_stdvec(recorded).map_err(encode)?;
    transaction.prepare_cached("INSERT INTO recorded (buckets) VALUES (?1)")?.execute(params![buckets])?;
    Ok(Some(transaction.last_insert_rowid()))
}

impl State {
    /// Everything that waits.
    ///
    /// # Errors
    /// SQLite fails. A row that cannot be decoded is left out.
    pub fn journal(&self) -> Result<Journal, StateError> {
        let connection = self.lock();
        let mut statement = connection.prepare("SELECT number, buckets FROM recorded ORDER BY number")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        let mut journal = Journal::default();
        for row in rows {
            let (number, buckets) = row?;
            match postcard::from_bytes(&buckets) {
                Ok(recorded) => journal.rows.push(JournalRow { number, recorded }),
                Err(error) => tracing::error!(%error, "some recorded buckets cannot be read: charts have a gap"),
            }
        }
        Ok(journal)
    }

    /// Forgets what the historian has, up to a number.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn forget_journal(&self, up_to: i64) -> Result<(), StateError> {
        self.lock().prepare_cached("DELETE FROM recorded WHERE number <= ?1")?.execute([up_to])?;
        Ok(())
    }
}

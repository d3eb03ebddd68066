//! Messages that must be published once, until they are in the log.
//!
//! Owns the table `outbox`: what a checkpoint decided to tell, written in its transaction. Bounded by what alarms may say while the log
//! takes nothing; a reader gets [`OUTBOX_BATCH`] at once.

use rusqlite::{Connection, Transaction, params};

use super::{Checkpoint, State, StateError};

/// Rows of the outbox handed out at once.
const OUTBOX_BATCH: usize = 64;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL,
    payload BLOB NOT NULL, retain INTEGER NOT NULL, after_offset INTEGER NOT NULL);
";

/// A message that must be published once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its place in the order of publication.
    pub number: i64,
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// Whether it is retained.
    pub retain: bool,
    /// The log had grown to here when it was made: its copy in the log, if any, is not before.
    pub after_offset: u64,
}

pub(super) fn create(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.execute_batch(SCHEMA)
}

/// Stores what a checkpoint wants published.
pub(super) fn store(transaction: &Transaction<'_>, checkpoint: &Checkpoint) -> Result<(), rusqlite::Error> {
    for (topic, payload, retain) in &checkpoint.outbox {
        transaction
            .prepare_cached("INSERT INTO outbox (topic, payload, retain, after_offset) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![topic, payload, retain, checkpoint.cursor.cast_signed()])?;
    }
    Ok(())
}

impl State {
    /// The oldest messages not yet published.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn outbox(&self) -> Result<Vec<OutboxRow>, StateError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(
            "SELECT number, topic, payload, retain, after_offset FROM outbox ORDER BY number LIMIT ?1",
        )?;
        let rows = statement.query_map([OUTBOX_BATCH as i64], |row| {
            Ok(OutboxRow {
                number: row.get(0)?,
                topic: row.get(1)?,
                payload: row.get(2)?,
                retain: row.get(3)?,
                after_offset: row.get::<_, i64>(4)?.cast_unsigned(),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Forgets a message that is in the log now.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn published(&self, number: i64) -> Result<(), StateError> {
        self.lock().prepare_cached("DELETE FROM outbox WHERE number = ?1")?.execute([number])?;
        Ok(())
    }
}

//! A log that is only read: beside the gateway that writes it, or when there is none.
//!
//! Owns finding out what is there: the span of messages, and where the messages of a time begin. Takes no lock and never writes:
//! each call is one short read transaction, so the gateway's writer is not held back. Retention may drop what is about to be
//! read; that is a [`super::Gap`] like any other.

use std::path::Path;

use rusqlite::{OptionalExtension, Transaction};

use super::error::ReadError;
use super::reader::DiskReader;
use super::{FetchLimit, Fetched, Offset, schema};

/// Which messages are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredSpan {
    /// The oldest; the head if there is none.
    pub oldest: Offset,
    /// Behind the newest.
    pub head: Offset,
}

/// A reader of a log that another process may be writing.
#[derive(Debug)]
pub struct StoredLog {
    disk: DiskReader,
}

impl StoredLog {
    /// Opens the log of the data directory `dir`.
    ///
    /// # Errors
    /// There is none, it is another program's or a newer version's, or what SQLite says.
    pub fn open(dir: &Path) -> Result<StoredLog, ReadError> {
        let path = dir.join(schema::FILE_NAME);
        if !path.is_file() {
            return Err(ReadError::Missing { path });
        }
        let mut disk = DiskReader::open(&path)?;
        let number =
            |sql: &str, disk: &mut DiskReader| disk.connection().query_row(sql, [], |row| row.get::<_, i64>(0));
        let application = number("PRAGMA application_id", &mut disk)?;
        let version = number("PRAGMA user_version", &mut disk)?;
        if application != schema::APPLICATION_ID || version > schema::SCHEMA_VERSION {
            return Err(ReadError::NotALog { path });
        }
        Ok(StoredLog { disk })
    }

    /// What is on disk at this moment.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn span(&mut self) -> Result<StoredSpan, ReadError> {
        let transaction = self.disk.connection().transaction()?;
        let partitions = partitions(&transaction)?;
        let span = match (partitions.first(), partitions.last()) {
            (Some((_, oldest)), Some((number, first))) => {
                let sql = format!("SELECT max(offset) FROM {}", schema::partition_table(*number));
                let newest: Option<i64> = transaction.query_row(&sql, [], |row| row.get(0))?;
                let head = newest.map_or(*first, |newest| schema::unsigned(newest) + 1);
                StoredSpan { oldest: Offset(*oldest), head: Offset(head) }
            }
            _ => {
                let head = Offset(schema::meta_number(&transaction, "next_offset")?.max(1));
                StoredSpan { oldest: head, head }
            }
        };
        transaction.commit()?;
        Ok(span)
    }

    /// Where to begin to read so that no message received at or after `since_us` is missed: the first of the newest partition
    /// that began before. There may be older ones behind it, at most a partition of them while the clock ran forward.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn begin_since(&mut self, since_us: i64) -> Result<Offset, ReadError> {
        let transaction = self.disk.connection().transaction()?;
        let mut begin = None;
        for (number, first) in partitions(&transaction)?.into_iter().rev() {
            begin = Some(first);
            let table = schema::partition_table(number);
            let sql = format!("SELECT received_us FROM {table} ORDER BY offset LIMIT 1");
            let received_us: Option<i64> = transaction.query_row(&sql, [], |row| row.get(0)).optional()?;
            if received_us.is_some_and(|received_us| received_us < since_us) {
                break;
            }
        }
        transaction.commit()?;
        Ok(Offset(begin.unwrap_or(1)))
    }

    /// Messages from `from` on that come before `head`. If [`Fetched::lost`] is set, there are none, and reading goes on at
    /// [`Fetched::next`].
    ///
    /// # Errors
    /// What SQLite says.
    pub fn read(&mut self, from: Offset, head: Offset, limit: FetchLimit) -> Result<Fetched, ReadError> {
        self.disk.read(from.0, head.0, limit)
    }
}

/// Number and first offset of every partition, the oldest first.
fn partitions(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<(u32, u64)>> {
    let mut select = transaction.prepare("SELECT number, first_offset FROM partition ORDER BY first_offset")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, schema::unsigned(row.get(1)?))))?;
    rows.collect()
}

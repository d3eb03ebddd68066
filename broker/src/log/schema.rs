//! The tables of `log.db`, the settings of its connections, and how a message becomes a row.
//!
//! Owns every fixed SQL statement that defines or describes the file. Never holds a connection.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Row};

use super::limits::{Budget, PAGE_BYTES};
use crate::message::{Message, QoS};
use crate::topic::TopicName;

/// The version of the schema, kept in `user_version`.
pub(crate) const SCHEMA_VERSION: i64 = 2;

/// `MWLG`, kept in `application_id`, so that a log is told from another program's database.
pub(crate) const APPLICATION_ID: i64 = 0x4d57_4c47;

/// The database's file name in the data directory.
pub(crate) const FILE_NAME: &str = "log.db";

/// The file whose lock keeps a second gateway out.
pub(crate) const LOCK_NAME: &str = "log.lock";

/// How long a statement waits for a lock of another program before the writer reports it.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_millis(1_000);

/// Prepared statements that a connection keeps: three dozen of its own and a few partitions.
const STATEMENTS_MAX: usize = 64;

/// Bit of `flags` for a retained publish; below it the QoS, from [`FLAGS_ORIGIN_SHIFT`] on the session number.
const FLAG_RETAIN: i64 = 1 << 2;
const FLAGS_ORIGIN_SHIFT: u32 = 8;

/// Everything but the message partitions, which come and go.
const TABLES: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE topic(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE partition(first_offset INTEGER PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE retained(id INTEGER PRIMARY KEY, topic TEXT NOT NULL UNIQUE, stored_us INTEGER NOT NULL,
    offset INTEGER, flags INTEGER NOT NULL, properties BLOB, payload BLOB NOT NULL);
CREATE TABLE cursor(name TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE gap(id INTEGER PRIMARY KEY, from_offset INTEGER NOT NULL, to_offset INTEGER NOT NULL,
    rows INTEGER NOT NULL, bytes INTEGER NOT NULL, at_us INTEGER NOT NULL, cursors TEXT NOT NULL);
";

/// What version 2 added: stored sessions.
const SESSION_TABLES: &str = "
CREATE TABLE session(id INTEGER PRIMARY KEY, client_id TEXT NOT NULL UNIQUE, username TEXT,
    expiry_s INTEGER NOT NULL, ended_us INTEGER, read_from INTEGER NOT NULL, position INTEGER NOT NULL);
CREATE TABLE subscription(session INTEGER NOT NULL, filter TEXT NOT NULL, options INTEGER NOT NULL,
    identifier INTEGER, since INTEGER NOT NULL, PRIMARY KEY(session, filter)) WITHOUT ROWID;
CREATE TABLE outgoing(session INTEGER NOT NULL, packet_id INTEGER NOT NULL, sequence INTEGER NOT NULL,
    offset INTEGER NOT NULL, flags INTEGER NOT NULL, PRIMARY KEY(session, packet_id)) WITHOUT ROWID;
CREATE TABLE incoming(session INTEGER NOT NULL, packet_id INTEGER NOT NULL, PRIMARY KEY(session, packet_id)) WITHOUT ROWID;
CREATE TABLE will(session INTEGER PRIMARY KEY, delay_s INTEGER NOT NULL, due_us INTEGER, topic TEXT NOT NULL,
    flags INTEGER NOT NULL, properties BLOB, payload BLOB NOT NULL);
";

/// The table of a partition.
pub(crate) fn partition_table(number: u32) -> String {
    format!("message_{number:06}")
}

/// Creates a partition's table. No index besides the rowid: a second one costs two to three times the rate.
pub(crate) fn create_partition_sql(number: u32) -> String {
    format!(
        "CREATE TABLE {}(offset INTEGER PRIMARY KEY, received_us INTEGER NOT NULL, topic INTEGER NOT NULL, \
         flags INTEGER NOT NULL, properties BLOB, payload BLOB NOT NULL)",
        partition_table(number)
    )
}

/// Inserts a message into a partition.
pub(crate) fn insert_sql(number: u32) -> String {
    format!("INSERT INTO {} VALUES(?1,?2,?3,?4,?5,?6)", partition_table(number))
}

/// Opens the connection that writes. The page size must precede the journal mode, which writes the first page.
pub(crate) fn open_writer(path: &Path, budget: &Budget) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // The writer checkpoints when it is closed in order; when it is not, the write-ahead log is left as evidence.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "page_size", PAGE_BYTES as i64)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "secure_delete", "OFF")?;
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    connection.pragma_update(None, "cell_size_check", "ON")?;
    // The dirty pages of one group commit (at most 4 MiB of rows, see `Limits`) and the cursors' and topics' pages.
    connection.pragma_update(None, "cache_size", -6_144)?;
    // The writer checkpoints itself, after it has acknowledged; see `Store::checkpoint_if_due`.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", (budget.wal_bytes_max / 2) as i64)?;
    limit_pages(&connection, budget.pages_max)?;
    Ok(connection)
}

/// Bounds the database file. SQLite never shrinks below what is there already.
pub(crate) fn limit_pages(connection: &Connection, pages_max: u64) -> rusqlite::Result<()> {
    connection.query_row(&format!("PRAGMA max_page_count={pages_max}"), [], |_| Ok(()))
}

/// Opens a connection that only reads.
pub(crate) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    connection.pragma_update(None, "cell_size_check", "ON")?;
    connection.pragma_update(None, "cache_size", -1_024)?;
    Ok(connection)
}

/// Writes the schema into an empty database.
pub(crate) fn create(connection: &Connection, log_id: &[u8; 16]) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    connection.execute_batch(TABLES)?;
    connection.execute_batch(SESSION_TABLES)?;
    connection.execute("INSERT INTO meta VALUES('log_id', ?1)", [log_id.as_slice()])?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    connection.execute_batch("COMMIT")
}

/// Brings the schema of an older version up to date, in one transaction: forward only.
pub(crate) fn upgrade(connection: &Connection) -> rusqlite::Result<()> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version >= SCHEMA_VERSION {
        return Ok(());
    }
    connection.execute_batch("BEGIN IMMEDIATE")?;
    connection.execute_batch(SESSION_TABLES)?;
    connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    connection.execute_batch("COMMIT")
}

/// The tables of the file that are not partitions, and the schema itself.
pub(crate) fn small_tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut select =
        connection.prepare("SELECT name FROM sqlite_schema WHERE type='table' AND name NOT GLOB 'message_[0-9]*'")?;
    let names = select.query_map([], |row| row.get(0))?;
    std::iter::once(Ok("sqlite_schema".to_owned())).chain(names).collect()
}

/// A number kept in `meta`, 0 if absent.
pub(crate) fn meta_number(connection: &Connection, key: &str) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE key=?1")?;
    let mut rows = statement.query([key])?;
    match rows.next()? {
        None => Ok(0),
        Some(row) => Ok(unsigned(row.get(0)?)),
    }
}

/// Keeps a number in `meta`.
pub(crate) fn set_meta_number(connection: &Connection, key: &str, value: u64) -> rusqlite::Result<()> {
    connection.prepare_cached("INSERT OR REPLACE INTO meta VALUES(?1, ?2)")?.execute((key, signed(value)))?;
    Ok(())
}

/// Offsets and counts are unsigned here and signed in SQLite; 2^63 messages never come.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The reverse of [`signed`]; a negative number in the file is damage and reads as 0.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// QoS, retain bit and session number in one column.
pub(crate) fn flags_of(message: &Message) -> i64 {
    let retain = if message.retain { FLAG_RETAIN } else { 0 };
    i64::from(message.qos as u8) | retain | (i64::from(message.origin) << FLAGS_ORIGIN_SHIFT)
}

/// Rebuilds a message from its columns; `None` if the flags were never written by [`flags_of`].
pub(crate) fn message_of(topic: TopicName, flags: i64, properties: Bytes, payload: Bytes) -> Option<Message> {
    let qos = QoS::from_bits((flags & 3) as u8)?;
    let origin = u32::try_from(flags >> FLAGS_ORIGIN_SHIFT).ok()?;
    Some(Message { topic, payload, properties, qos, retain: flags & FLAG_RETAIN != 0, origin })
}

/// A BLOB column as bytes; NULL is empty.
pub(crate) fn blob(row: &Row<'_>, column: usize) -> rusqlite::Result<Bytes> {
    Ok(match row.get_ref(column)?.as_bytes_or_null().map_err(|error| conversion(column, error))? {
        None => Bytes::new(),
        Some(bytes) => Bytes::copy_from_slice(bytes),
    })
}

fn conversion(column: usize, error: rusqlite::types::FromSqlError) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Every QoS, retain bit and session number comes back from its flags; flags that no message has are refused.
    #[test]
    fn flags_come_back() {
        let topic = TopicName::parse("a").unwrap();
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            for retain in [false, true] {
                for origin in [0, 1, u32::MAX] {
                    let (properties, payload) = (Bytes::from_static(b"p"), Bytes::from_static(b"x"));
                    let message = Message {
                        topic: topic.clone(),
                        payload: payload.clone(),
                        properties: properties.clone(),
                        qos,
                        retain,
                        origin,
                    };
                    assert_eq!(message_of(topic.clone(), flags_of(&message), properties, payload), Some(message));
                }
            }
        }
        for flags in [3, -1, i64::MAX, 1 << 41] {
            assert_eq!(message_of(topic.clone(), flags, Bytes::new(), Bytes::new()), None, "{flags}");
        }
    }
}

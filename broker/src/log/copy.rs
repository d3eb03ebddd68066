//! A copy of the log, made beside the gateway that writes it, or when there is none; and what turns a copy into a log that goes on.
//!
//! A backup in SQLite's own ways would hold one read transaction for as long as it takes, and the write-ahead log could not start
//! over meanwhile (`VACUUM INTO`, a pinned backup), or begin again at every commit of the writer (a stepwise backup), and so never end.
//! Here everything but the messages (cursors, sessions, retained messages: at most some tens of MiB, see [`super::Limits`]) is copied in
//! one transaction, which also fixes the head. Messages below the head never change, so they are copied afterwards in transactions of
//! about [`CHUNK`] each. The newest partition comes first: what retention drops meanwhile is at the other end, and the copy has no hole.
//!
//! Never writes to the source. Holds one page cache ([`CACHE_KIB`]) and one row. The copy is not synced before [`LogCopy::finish`].

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::lineage::Lineage;
use super::reader::is_damage;
use super::{LogId, Offset, schema};

/// How long one read transaction shall take: the write-ahead log of 8 MiB or more takes what is committed meanwhile.
const CHUNK: Duration = Duration::from_millis(50);

/// Rows of the first transaction, and the most of any.
const CHUNK_ROWS: u64 = 256;
const CHUNK_ROWS_MAX: u64 = 16_384;

/// The page cache of the connection.
const CACHE_KIB: i64 = 4_096;

/// Why a log was not copied, or a copy not used.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// No log in the data directory.
    #[error("there is no log at {}: has the gateway run with this `gateway.data_dir`?", path.display())]
    Missing {
        /// The database that is not there.
        path: PathBuf,
    },
    /// Another program's database, or a newer version's.
    #[error("{} is no log that this version can read (schema {found}, this one knows {})", path.display(), schema::SCHEMA_VERSION)]
    NotALog {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// Pages of the source make no sense.
    #[error("{} is damaged: {source}; start the gateway, which sets a damaged log aside, and check the disk", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// What SQLite said.
    #[error("cannot copy {}: {source}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
    /// What the system said.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl CopyError {
    /// Whether the disk that was written to is full.
    pub fn is_full(&self) -> bool {
        match self {
            CopyError::Sqlite { source, .. } => source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            CopyError::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

/// A copy that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopiedLog {
    /// Which log it is of.
    pub id: LogId,
    /// The oldest message that it holds; the head if it holds none.
    pub oldest: Offset,
    /// The oldest that the log held when the copy was begun; retention has dropped those before [`CopiedLog::oldest`] since.
    pub oldest_at_begin: Offset,
    /// Behind the newest.
    pub head: Offset,
    /// Messages copied.
    pub rows: u64,
}

/// A partition to copy.
#[derive(Debug, Clone, Copy)]
struct Part {
    number: u32,
    first: u64,
    end: u64,
}

/// A copy that is being made.
#[derive(Debug)]
pub struct LogCopy {
    /// The copy is `main`, the log is attached as `source`.
    connection: Connection,
    path: PathBuf,
    target: PathBuf,
    id: LogId,
    head: u64,
    /// Oldest first; the last is copied next.
    waiting: Vec<Part>,
    /// The partition that is being copied, and where to go on.
    open: Option<(Part, u64)>,
    /// Where the oldest partition begins that is whole in the copy.
    oldest: u64,
    oldest_at_begin: u64,
    rows: u64,
    chunk_rows: u64,
}

impl LogCopy {
    /// Begins a copy of the log of the data directory `dir` in the file `target`, which must not be there. Everything that is
    /// acknowledged by now will be in it.
    ///
    /// # Errors
    /// There is no log that this version reads, or a file cannot be read or written.
    pub fn begin(dir: &Path, target: &Path) -> Result<LogCopy, CopyError> {
        let path = dir.join(schema::FILE_NAME);
        if !path.is_file() {
            return Err(CopyError::Missing { path });
        }
        let sort = |source| sort(&path, source);
        let connection = open_pair(&path, target).map_err(sort)?;
        let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(sort);
        let found = number("PRAGMA source.user_version")?;
        if number("PRAGMA source.application_id")? != schema::APPLICATION_ID || found > schema::SCHEMA_VERSION {
            return Err(CopyError::NotALog { path, found });
        }
        connection.execute_batch("BEGIN").map_err(sort)?;
        let begun = copy_small_tables(&connection).map_err(sort)?;
        connection.execute_batch("COMMIT").map_err(sort)?;
        let Some((lineage, parts, head)) = begun else { return Err(CopyError::NotALog { path, found }) };
        let oldest_at_begin = parts.first().map_or(head, |oldest| oldest.first);
        Ok(LogCopy {
            connection,
            path,
            target: target.to_owned(),
            id: lineage.current(),
            head,
            waiting: parts,
            open: None,
            oldest: head,
            oldest_at_begin,
            rows: 0,
            chunk_rows: CHUNK_ROWS,
        })
    }

    /// How much of it is done, from 0 to 1.
    pub fn done(&self) -> f64 {
        let all = self.head.saturating_sub(self.oldest_at_begin);
        if all == 0 { 1.0 } else { (self.rows as f64 / all as f64).min(1.0) }
    }

    /// Copies some more messages; false when there are none left.
    ///
    /// # Errors
    /// A file cannot be read or written, or the log is damaged.
    pub fn step(&mut self) -> Result<bool, CopyError> {
        let Some((part, at)) = self.open.take() else { return self.open_next() };
        let began = Instant::now();
        let table = schema::partition_table(part.number);
        let sql = format!(
            "INSERT INTO main.{table} SELECT offset, received_us, topic, flags, properties, payload FROM source.{table} \
             WHERE offset>=?1 AND offset<?2 ORDER BY offset LIMIT ?3"
        );
        let bounds = [at, part.end, self.chunk_rows].map(schema::signed);
        let copied = match self.connection.execute(&sql, bounds) {
            Ok(copied) => copied as u64,
            Err(error) if self.is_dropped(part)? => {
                tracing::debug!(%error, "retention dropped a partition while it was copied");
                self.forget_waiting(part)?;
                return Ok(false);
            }
            Err(error) => return Err(sort(&self.path, error)),
        };
        self.rows += copied;
        self.pace(began.elapsed());
        if copied == 0 {
            // Rows that damage has taken are a gap in the copy as they are in the log.
            self.oldest = part.first;
            return Ok(true);
        }
        let last: i64 = self
            .connection
            .query_row(&format!("SELECT max(offset) FROM main.{table}"), [], |row| row.get(0))
            .map_err(|error| sort(&self.path, error))?;
        self.open = Some((part, schema::unsigned(last).saturating_add(1)));
        Ok(true)
    }

    /// Takes up the newest partition that waits.
    fn open_next(&mut self) -> Result<bool, CopyError> {
        let Some(part) = self.waiting.pop() else { return Ok(false) };
        let sql = schema::create_partition_sql(part.number);
        let insert = "INSERT INTO main.partition(first_offset, number) VALUES(?1, ?2)";
        self.connection
            .execute_batch(&sql)
            .and_then(|()| self.connection.execute(insert, (schema::signed(part.first), part.number)))
            .map_err(|error| sort(&self.path, error))?;
        self.open = Some((part, part.first));
        Ok(true)
    }

    fn pace(&mut self, took: Duration) {
        if took > CHUNK {
            self.chunk_rows = (self.chunk_rows / 2).max(1);
        } else if took < CHUNK / 4 {
            self.chunk_rows = (self.chunk_rows * 2).min(CHUNK_ROWS_MAX);
        }
    }

    fn is_dropped(&self, part: Part) -> Result<bool, CopyError> {
        let sql = "SELECT count(*) FROM source.partition WHERE number=?1";
        let listed: i64 =
            self.connection.query_row(sql, [part.number], |row| row.get(0)).map_err(|error| sort(&self.path, error))?;
        Ok(listed == 0)
    }

    /// The log has dropped this partition, and so all before it.
    fn forget_waiting(&mut self, part: Part) -> Result<(), CopyError> {
        self.waiting.clear();
        let table = schema::partition_table(part.number);
        let sql = format!("DROP TABLE main.{table}; DELETE FROM main.partition WHERE number={}", part.number);
        self.connection.execute_batch(&sql).map_err(|error| sort(&self.path, error))
    }

    /// Completes the copy after the last [`LogCopy::step`], and makes it durable. What retention dropped meanwhile is told by
    /// [`CopiedLog::oldest`].
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn finish(self) -> Result<CopiedLog, CopyError> {
        // A cursor that has passed since what was dropped since has lost nothing.
        let sql = "UPDATE main.cursor SET position=?1 WHERE position<?1 AND EXISTS \
                   (SELECT 1 FROM source.cursor AS now WHERE now.name=main.cursor.name AND now.position>=?1)";
        self.connection
            .execute(sql, [schema::signed(self.oldest)])
            .and_then(|_| self.connection.execute_batch("DETACH source"))
            .map_err(|error| sort(&self.path, error))?;
        self.connection.close().map_err(|(_, error)| sort(&self.path, error))?;
        let sync = File::open(&self.target).and_then(|file| file.sync_all());
        sync.map_err(|source| CopyError::Io { path: self.target.clone(), source })?;
        Ok(CopiedLog {
            id: self.id,
            oldest: Offset(self.oldest),
            oldest_at_begin: Offset(self.oldest_at_begin),
            head: Offset(self.head),
            rows: self.rows,
        })
    }
}

/// The ids, the partitions (oldest first) and the head, as one transaction sees them; `None` if the log has no id.
fn copy_small_tables(connection: &Connection) -> rusqlite::Result<Option<(Lineage, Vec<Part>, u64)>> {
    let mut select = connection.prepare(
        "SELECT name FROM source.sqlite_schema WHERE type='table' AND name NOT GLOB 'message_[0-9]*' \
         AND name<>'partition' AND name IN (SELECT name FROM main.sqlite_schema)",
    )?;
    let names: Vec<String> = select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for name in names {
        connection
            .execute_batch(&format!("DELETE FROM main.{name}; INSERT INTO main.{name} SELECT * FROM source.{name}"))?;
    }
    let mut select = connection.prepare("SELECT number, first_offset FROM source.partition ORDER BY first_offset")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, schema::unsigned(row.get(1)?))))?;
    let firsts: Vec<(u32, u64)> = rows.collect::<Result<_, _>>()?;
    let mut head = schema::meta_number(connection, "next_offset")?.max(1);
    if let Some((number, first)) = firsts.last() {
        let sql = format!("SELECT max(offset) FROM source.{}", schema::partition_table(*number));
        let newest: Option<i64> = connection.query_row(&sql, [], |row| row.get(0))?;
        head = head.max(*first).max(newest.map_or(0, |newest| schema::unsigned(newest) + 1));
        // Numbers and offsets are not given again, whatever of the partitions comes along.
        let next = schema::meta_number(connection, "next_partition")?.max(u64::from(*number) + 1);
        schema::set_meta_number(connection, "next_partition", next)?;
    }
    schema::set_meta_number(connection, "next_offset", head)?;
    let ends = firsts.iter().skip(1).map(|(_, first)| *first).chain([head]);
    let parts = firsts.iter().zip(ends).map(|((number, first), end)| Part { number: *number, first: *first, end });
    let parts = parts.collect();
    Ok(Lineage::load(connection)?.map(|lineage| (lineage, parts, head)))
}

/// A new database with the log beside it, which cannot be written.
fn open_pair(path: &Path, target: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(target, flags)?;
    connection.busy_timeout(schema::BUSY_TIMEOUT)?;
    connection.pragma_update(None, "page_size", super::PAGE_BYTES as i64)?;
    // A copy that is broken off is thrown away: it needs no journal, and is synced once, at its end.
    connection.pragma_update(None, "journal_mode", "OFF")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    connection.pragma_update(None, "cell_size_check", "ON")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // Before the log is there: this locks every database of the connection for writing.
    schema::create(&connection, &[0; 16])?;
    connection.execute("ATTACH ?1 AS source", [read_only_uri(path)])?;
    Ok(connection)
}

fn read_only_uri(path: &Path) -> String {
    let encode = |byte: &u8| match byte {
        b'/' | b'-' | b'_' | b'.' => char::from(*byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    let encoded: String = path.as_os_str().as_bytes().iter().map(encode).collect();
    format!("file:{encoded}?mode=ro")
}

fn sort(path: &Path, source: rusqlite::Error) -> CopyError {
    let path = path.to_owned();
    if is_damage(&source) { CopyError::Damaged { path, source } } else { CopyError::Sqlite { path, source } }
}

/// Turns the copy in `dir` into a log that goes on: under an id of its own, as the log that was copied has given the offsets behind the
/// copy to other messages. Gives the id before and the new one; see [`Lineage`].
///
/// QoS 2 identifiers between PUBLISH and PUBREL are forgotten: their clients have moved on and use them for other messages, which would
/// be taken for repetitions, acknowledged and lost.
///
/// # Errors
/// It is no log of this version or an earlier one, or cannot be written.
pub fn continue_copy(dir: &Path) -> Result<(LogId, LogId), CopyError> {
    let path = dir.join(schema::FILE_NAME);
    let sort = |source| sort(&path, source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(&path, flags).map_err(sort)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(sort)?;
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| CopyError::Io { path: path.clone(), source: io::Error::other(error) })?;
    let transaction = connection.transaction().map_err(sort)?;
    let Some(lineage) = Lineage::load(&transaction).map_err(sort)? else {
        return Err(CopyError::NotALog { path, found: schema::SCHEMA_VERSION });
    };
    let before = lineage.current();
    let oldest = "SELECT coalesce(min(first_offset), 0) FROM partition";
    let oldest: i64 = transaction.query_row(oldest, [], |row| row.get(0)).map_err(sort)?;
    let head = schema::meta_number(&transaction, "next_offset").map_err(sort)?;
    let lineage = lineage.continued(LogId(id), Offset(schema::unsigned(oldest)), Offset(head));
    lineage.store(&transaction).map_err(sort)?;
    transaction.execute("DELETE FROM incoming", []).map_err(sort)?;
    transaction.commit().map_err(sort)?;
    connection.close().map_err(|(_, error)| sort(error))?;
    Ok((before, LogId(id)))
}

/// The schema's version of the log in `dir`, and the one that this program knows.
///
/// # Errors
/// It is no log, or cannot be read.
pub fn schema_of(dir: &Path) -> Result<(i64, i64), CopyError> {
    let path = dir.join(schema::FILE_NAME);
    let sort = |source| sort(&path, source);
    let connection = schema::open_reader(&path).map_err(sort)?;
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(sort);
    let found = number("PRAGMA user_version")?;
    if number("PRAGMA application_id")? != schema::APPLICATION_ID {
        return Err(CopyError::NotALog { path, found });
    }
    Ok((found, schema::SCHEMA_VERSION))
}

//! Reading the log from disk: short transactions on read-only connections.
//!
//! A read sees one consistent state of the file, takes at most [`FETCH_ROWS_MAX`] messages, passes at most [`PASSED_ROWS_MAX`] that
//! its consumer does not want, and ends, so that it never holds the write-ahead log back. What retention dropped and what cannot be read is reported as a [`Gap`], and
//! reading goes on behind it. Never writes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row};
use tokio::sync::Semaphore;

use super::error::ReadError;
use super::limits::{FETCH_ROWS_MAX, PASSED_ROWS_MAX, POOL_READERS_MAX};
use super::sessions::{self, SessionId, StoredSession};
use super::shared::Shared;
use super::tail::message_bytes;
use super::{FetchLimit, Fetched, Gap, GapKind, LogMessage, Offset, schema};
use crate::topic::TopicName;

/// Topic names that a connection remembers: 8,192 of about 60 bytes are 1 MiB with the table.
const TOPICS_CACHED_MAX: usize = 8_192;

/// A read-only connection with the topics it has met.
#[derive(Debug)]
pub(crate) struct DiskReader {
    connection: Connection,
    topics: HashMap<u32, TopicName>,
}

/// A partition as one read transaction sees it.
struct Span {
    number: u32,
    first: u64,
    end: u64,
}

/// Which topics a consumer wants, by number and name.
pub type Wanted<'a, 'b> = &'a mut (dyn FnMut(u32, &TopicName) -> bool + 'b);

/// What was read of a partition.
struct Rows {
    messages: Vec<Arc<LogMessage>>,
    /// Everything before it was read or passed.
    next: u64,
    stop: Stop,
}

/// A row.
enum Decoded {
    Message(LogMessage),
    /// Its topic is not wanted.
    Passed(Offset),
}

/// Why reading rows stopped.
enum Stop {
    /// The limit or the end of the partition.
    Done,
    /// A row is missing, damaged or on a damaged page.
    Damaged,
}

impl DiskReader {
    /// Opens a read-only connection.
    pub(crate) fn open(path: &Path) -> Result<DiskReader, ReadError> {
        Ok(DiskReader { connection: schema::open_reader(path)?, topics: HashMap::new() })
    }

    /// Messages from `from` on that come before `head`.
    pub(crate) fn read(&mut self, from: u64, head: u64, limit: FetchLimit) -> Result<Fetched, ReadError> {
        self.read_chosen(from, head, limit, None)
    }

    /// As [`DiskReader::read`], of the wanted topics only.
    pub(crate) fn read_chosen(
        &mut self,
        from: u64,
        head: u64,
        limit: FetchLimit,
        wanted: Option<Wanted<'_, '_>>,
    ) -> Result<Fetched, ReadError> {
        self.connection.prepare_cached("BEGIN")?.execute([])?;
        let result = self.read_in_transaction(from, head, limit, wanted);
        let ended = self.connection.prepare_cached("COMMIT").and_then(|mut end| end.execute([]));
        if ended.is_err() && !self.connection.is_autocommit() {
            // A transaction left open would hold the write-ahead log back.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        result
    }

    /// The connection, for questions besides messages.
    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// One stored session, as one state of the file has it.
    pub(crate) fn session(&mut self, id: SessionId) -> Result<Option<StoredSession>, ReadError> {
        let transaction = self.connection.transaction()?;
        let session = sessions::load(&transaction, id)?;
        transaction.commit()?;
        Ok(session)
    }

    fn read_in_transaction(
        &mut self,
        from: u64,
        head: u64,
        limit: FetchLimit,
        mut wanted: Option<Wanted<'_, '_>>,
    ) -> Result<Fetched, ReadError> {
        let mut at = from.max(1);
        while at < head {
            let Some(span) = self.span_at(at, head)? else {
                // Nothing is left on disk from here to the head.
                return Ok(skipped(at, head, GapKind::Dropped));
            };
            if at < span.first {
                return Ok(skipped(at, span.first, GapKind::Dropped));
            }
            if at >= span.end {
                break;
            }
            let rows = self.read_rows(&span, at, limit, wanted.as_deref_mut())?;
            match rows.stop {
                _ if rows.next > at => {
                    return Ok(Fetched { messages: rows.messages, next: Offset(rows.next), lost: None });
                }
                Stop::Damaged => {
                    let resume = self.readable_after(&span, at)?;
                    return Ok(skipped(at, resume, GapKind::Unreadable));
                }
                Stop::Done => at = span.end,
            }
        }
        Ok(Fetched { messages: Vec::new(), next: Offset(at), lost: None })
    }

    /// The partition that holds `at`, or the first one behind it.
    fn span_at(&self, at: u64, head: u64) -> Result<Option<Span>, ReadError> {
        let position = schema::signed(at);
        let mut holding = self.connection.prepare_cached(
            "SELECT number, first_offset FROM partition WHERE first_offset<=?1 ORDER BY first_offset DESC LIMIT 1",
        )?;
        let mut behind = self.connection.prepare_cached(
            "SELECT number, first_offset FROM partition WHERE first_offset>?1 ORDER BY first_offset LIMIT 1",
        )?;
        let columns = |row: &Row<'_>| Ok((row.get(0)?, schema::unsigned(row.get(1)?)));
        let mut found = holding.query_row([position], columns).optional()?;
        if found.is_none() {
            found = behind.query_row([position], columns).optional()?;
        }
        let Some((number, first)) = found else { return Ok(None) };
        let next: Option<(u32, u64)> = behind.query_row([schema::signed(first)], columns).optional()?;
        Ok(Some(Span { number, first, end: next.map_or(head, |(_, first)| first.min(head)) }))
    }

    fn read_rows(
        &mut self,
        span: &Span,
        from: u64,
        limit: FetchLimit,
        mut wanted: Option<Wanted<'_, '_>>,
    ) -> Result<Rows, ReadError> {
        let messages_max = limit.rows.clamp(1, FETCH_ROWS_MAX);
        let visited_max = if wanted.is_some() { PASSED_ROWS_MAX } else { messages_max };
        let DiskReader { connection, topics } = self;
        let mut found = Rows { messages: Vec::new(), next: from, stop: Stop::Damaged };
        let mut select = match connection.prepare_cached(&select_sql(span.number)) {
            Ok(select) => select,
            Err(error) if is_damage(&error) => return Ok(found),
            Err(error) => return Err(error.into()),
        };
        let last = from.saturating_add(visited_max as u64).min(span.end);
        let mut rows = select.query((schema::signed(from), schema::signed(last)))?;
        let mut bytes = 0;
        while found.next < last {
            // Offsets have no holes: fewer rows than there should be are lost ones.
            let row = match rows.next() {
                Ok(Some(row)) => decode(connection, topics, row, wanted.as_deref_mut()),
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            match row {
                Ok(Some(Decoded::Passed(offset))) if offset.0 == found.next => found.next += 1,
                Ok(Some(Decoded::Message(message))) if message.offset.0 == found.next => {
                    bytes += message_bytes(&message);
                    if bytes > limit.bytes && !found.messages.is_empty() {
                        break;
                    }
                    found.next += 1;
                    found.messages.push(Arc::new(message));
                    if found.messages.len() >= messages_max {
                        break;
                    }
                }
                Ok(_) => return Ok(found),
                Err(error) if is_damage(&error) => return Ok(found),
                Err(error) => return Err(error.into()),
            }
        }
        found.stop = Stop::Done;
        Ok(found)
    }

    /// The first readable offset behind damage that begins at `from`: doubling steps find a readable place, halving
    /// ones its beginning. The end of the partition if there is none.
    fn readable_after(&mut self, span: &Span, from: u64) -> Result<u64, ReadError> {
        let (mut bad, mut step) = (from, 1);
        let mut good = loop {
            let probe = bad.saturating_add(step).min(span.end);
            if probe >= span.end {
                // The last row decides whether anything behind the last bad place can be read.
                break span.end;
            }
            if self.is_readable(span, probe)? {
                break probe;
            }
            bad = probe;
            step *= 2;
        };
        while bad + 1 < good {
            let middle = bad + (good - bad) / 2;
            if self.is_readable(span, middle)? {
                good = middle;
            } else {
                bad = middle;
            }
        }
        Ok(good)
    }

    fn is_readable(&mut self, span: &Span, offset: u64) -> Result<bool, ReadError> {
        let rows = self.read_rows(span, offset, FetchLimit { rows: 1, bytes: usize::MAX }, None)?;
        Ok(!rows.messages.is_empty())
    }
}

fn skipped(from: u64, to: u64, kind: GapKind) -> Fetched {
    let lost = Gap { from: Offset(from), to: Offset(to), kind };
    Fetched { messages: Vec::new(), next: Offset(to), lost: Some(lost) }
}

fn select_sql(number: u32) -> String {
    format!(
        "SELECT offset, received_us, topic, flags, properties, payload FROM {} \
         WHERE offset>=?1 AND offset<?2 ORDER BY offset",
        schema::partition_table(number)
    )
}

/// A row as a message; `None` if its columns are not what the writer writes. What is not wanted is not copied.
fn decode(
    connection: &Connection,
    topics: &mut HashMap<u32, TopicName>,
    row: &Row<'_>,
    wanted: Option<Wanted<'_, '_>>,
) -> rusqlite::Result<Option<Decoded>> {
    let topic_id: u32 = row.get(2)?;
    let Some(topic) = topic_name(connection, topics, topic_id)? else { return Ok(None) };
    let offset = Offset(schema::unsigned(row.get(0)?));
    if wanted.is_some_and(|wanted| !wanted(topic_id, &topic)) {
        return Ok(Some(Decoded::Passed(offset)));
    }
    let (properties, payload) = (schema::blob(row, 4)?, schema::blob(row, 5)?);
    let Some(message) = schema::message_of(topic, row.get(3)?, properties, payload) else { return Ok(None) };
    Ok(Some(Decoded::Message(LogMessage { offset, received_us: row.get(1)?, topic_id, message })))
}

fn topic_name(
    connection: &Connection,
    topics: &mut HashMap<u32, TopicName>,
    id: u32,
) -> rusqlite::Result<Option<TopicName>> {
    if let Some(topic) = topics.get(&id) {
        return Ok(Some(topic.clone()));
    }
    let mut select = connection.prepare_cached("SELECT name FROM topic WHERE id=?1")?;
    let name: Option<String> = select.query_row([id], |row| row.get(0)).optional()?;
    let Some(topic) = name.and_then(|name| TopicName::parse(&name).ok()) else { return Ok(None) };
    if topics.len() >= TOPICS_CACHED_MAX {
        topics.clear();
    }
    topics.insert(id, topic.clone());
    Ok(Some(topic))
}

/// Whether an error means that the file's content is damaged, not that reading it failed.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error;
    match error {
        Error::FromSqlConversionFailure(..)
        | Error::IntegralValueOutOfRange(..)
        | Error::InvalidColumnType(..)
        | Error::Utf8Error(..) => true,
        // The statements are fixed: what they name is not there, such as the table of a listed partition.
        Error::SqlInputError { .. } => true,
        _ => matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
        ),
    }
}

/// The read connections of [`super::Log::fetch`], opened when needed.
#[derive(Debug)]
pub(crate) struct Pool {
    idle: Mutex<Vec<DiskReader>>,
    permits: Semaphore,
}

impl Default for Pool {
    fn default() -> Pool {
        Pool { idle: Mutex::default(), permits: Semaphore::new(POOL_READERS_MAX) }
    }
}

impl Pool {
    /// Reads with a connection of the pool, on a thread that may block.
    pub(crate) async fn read(
        &self,
        shared: &Arc<Shared>,
        from: Offset,
        limit: FetchLimit,
    ) -> Result<Fetched, ReadError> {
        let head = Arc::clone(shared);
        self.with(shared, move |reader| reader.read(from.0, head.head(), limit)).await
    }

    /// Works with a connection of the pool, on a thread that may block.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        shared: &Arc<Shared>,
        work: impl FnOnce(&mut DiskReader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let _permit = self.permits.acquire().await.map_err(|_| ReadError::Closed)?;
        let idle = self.lock().pop();
        let shared = Arc::clone(shared);
        let read = tokio::task::spawn_blocking(move || {
            let mut reader = match idle {
                Some(reader) => reader,
                None => DiskReader::open(&shared.path)?,
            };
            let result = work(&mut reader)?;
            Ok::<_, ReadError>((reader, result))
        });
        // A connection that failed is not used again.
        let (reader, result) = read.await.map_err(|_| ReadError::Closed)??;
        if !self.permits.is_closed() {
            self.lock().push(reader);
        }
        Ok(result)
    }

    /// Closes the connections; reads fail from here on.
    pub(crate) fn close(&self) {
        self.permits.close();
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<DiskReader>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log during [`super::Log::visit`].
#[derive(Debug)]
pub struct LogVisit<'a> {
    pub(super) shared: &'a Shared,
    pub(super) disk: &'a mut DiskReader,
}

impl LogVisit<'_> {
    /// The offset that the next message gets.
    pub fn head(&self) -> Offset {
        Offset(self.shared.head())
    }

    /// As [`LogReader::read`], but from disk come only messages of topics that are `wanted`, by number and name; the others are passed
    /// without being copied, at most [`PASSED_ROWS_MAX`] of them. So there may be none before the head: reading goes on at
    /// [`Fetched::next`]. From memory come all.
    ///
    /// # Errors
    /// As [`LogReader::read`].
    pub fn read(
        &mut self,
        from: Offset,
        limit: FetchLimit,
        wanted: Option<Wanted<'_, '_>>,
    ) -> Result<Fetched, ReadError> {
        if let Some(fetched) = from_memory(self.shared, from, limit)? {
            return Ok(fetched);
        }
        self.disk.read_chosen(from.0, self.shared.head(), limit, wanted)
    }
}

/// A consumer's own reader, for a thread that may block.
#[derive(Debug)]
pub struct LogReader {
    shared: Arc<Shared>,
    disk: DiskReader,
}

impl LogReader {
    pub(crate) fn new(shared: &Arc<Shared>) -> Result<LogReader, ReadError> {
        Ok(LogReader { shared: Arc::clone(shared), disk: DiskReader::open(&shared.path)? })
    }

    /// Messages from `from` on: from memory if they are new, else from disk. Empty at the head; at most
    /// [`FETCH_ROWS_MAX`] from disk however many are asked for. If [`Fetched::lost`] is set, there are none, and reading
    /// goes on at [`Fetched::next`].
    ///
    /// # Errors
    /// [`ReadError::Ahead`] if `from` is beyond the head; what SQLite says if the disk cannot be read.
    pub fn read(&mut self, from: Offset, limit: FetchLimit) -> Result<Fetched, ReadError> {
        if let Some(fetched) = from_memory(&self.shared, from, limit)? {
            return Ok(fetched);
        }
        self.disk.read(from.0, self.shared.head(), limit)
    }

    /// Blocks until there is a message at or behind `from`, the log is closed, or the time is up. Gives the head.
    pub fn wait(&self, from: Offset, timeout: Duration) -> Offset {
        Offset(self.shared.wait_for_head(from.0, timeout))
    }
}

/// The part of a read that needs no disk.
pub(crate) fn from_memory(shared: &Shared, from: Offset, limit: FetchLimit) -> Result<Option<Fetched>, ReadError> {
    let from = from.0.max(1);
    if let Some(fetched) = shared.tail.read(from, limit) {
        return Ok(Some(fetched));
    }
    let head = shared.head();
    if from > head {
        return Err(ReadError::Ahead { from: Offset(from), head: Offset(head) });
    }
    Ok(None)
}

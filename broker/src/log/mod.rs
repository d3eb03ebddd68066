//! The durable log: every acknowledged message, in order, on disk before it is acknowledged.
//!
//! # What it is
//!
//! An append-only sequence of messages in one SQLite database, `log.db`. Every consumer (inference, an upstream sink, an
//! MQTT session) is a cursor on it; there is no other queue. Messages have consecutive [`Offset`]s from 1 that are never
//! used twice. A log has a random [`LogId`]; a consumer that saved an offset saves the id with it, because a new log
//! (after a damaged one was set aside) begins at 1 again.
//!
//! # On disk
//!
//! | table | columns | |
//! |---|---|---|
//! | `message_NNNNNN` | `offset` (rowid), `received_us`, `topic`, `flags`, `properties`, `payload` | a partition: consecutive messages |
//! | `topic` | `id` (rowid), `name` | names of the numbers in `message_NNNNNN.topic`; a number is never used twice |
//! | `partition` | `first_offset` (rowid), `number` | the partition tables; one ends where the next begins |
//! | `retained` | `id`, `topic`, `stored_us`, `offset`, `flags`, `properties`, `payload` | the retained message of each topic |
//! | `cursor` | `name`, `position` | the first message each consumer needs; may be behind what it said, never ahead |
//! | `session` | `id`, `client_id`, `username`, `expiry_s`, `ended_us`, `read_from`, `position` | MQTT sessions that outlive their connections; `ended_us` is NULL while there is one |
//! | `subscription` | `session`, `filter`, `options`, `identifier`, `since` | their subscriptions; `options` as in SUBSCRIBE |
//! | `outgoing` | `session`, `packet_id`, `sequence`, `offset`, `flags` | messages sent and not finished; in `flags` what is waited for (0 PUBACK, 1 PUBREC, 2 PUBCOMP) and in bit 2 whether it was a retained one |
//! | `incoming` | `session`, `packet_id` | QoS 2 identifiers between PUBLISH and PUBREL |
//! | `will` | `session`, `delay_s`, `due_us`, `topic`, `flags`, `properties`, `payload` | their wills; `due_us` is NULL while the client is connected |
//! | `gap` | `id`, `from_offset`, `to_offset`, `rows`, `bytes`, `at_us`, `cursors` | what was dropped before the named cursors had passed it; `to_offset` is behind the last |
//! | `meta` | `key`, `value` | `log_id`; `log_ids_before`, see [`Lineage`]; `next_offset`, `next_partition`, `next_topic`: lower bounds that survive dropping |
//!
//! `flags` holds the QoS in bits 0–1, retain in bit 2 and the publishing session's number from bit 8 on. `properties` is
//! NULL when empty. Times are microseconds since 1970 UTC. `application_id` is `MWLG`, `user_version` the schema's
//! version. WAL, `synchronous=FULL`, 4 KiB pages, no `auto_vacuum`. Any SQLite may read it while the gateway runs.
//!
//! # How it works
//!
//! *Write.* One thread owns the only connection that writes. Publishers hand it batches through a bounded queue. It takes
//! what is there after `commit_delay`, or as soon as a group is full, commits it (one fsync), then makes it visible in
//! memory (tail, head, retained) and then answers the publishers: an answer means on disk. Then it checkpoints if the
//! write-ahead log has 4 MiB. A new partition is created in the commit that needs it.
//!
//! *Read.* The newest messages are in memory, shared; consumers that keep up never touch the disk. The others read with
//! short transactions on connections that cannot write.
//!
//! *Delete.* When the next commit might exceed the quota, the oldest partition table is dropped if every cursor has passed
//! it; else [`WhenFull`] decides. The database is limited by `max_page_count` below the quota, so that dropping always has
//! the pages it needs. A full disk, a failing disk, a reader of another program that blocks: appends wait, nothing queued
//! is lost, the reason is in [`LogStats::full`], and work resumes by itself.
//!
//! A consumer must not wait for an append of its own before it advances its cursor: when the log is full under
//! [`WhenFull::Refuse`], that append waits for the cursor.
//!
//! # What it asks of the disk
//!
//! That a sync that has returned is true, and that a write which a power cut interrupts leaves the bytes beside it alone (what
//! SQLite calls powersafe overwrite; frames of the write-ahead log share sectors). `tests/powercut` cuts the power at every
//! kind of moment, and shows what a disk without either loses.
//!
//! # Limits
//!
//! [`Limits`] lists them all, with the arithmetic.

mod admit;
mod copy;
mod cursor;
mod error;
mod limits;
mod lineage;
mod open;
mod partition;
mod reader;
mod retention;
mod schema;
mod session_book;
pub(crate) mod sessions;
mod shared;
mod stats;
mod store;
mod stored;
mod tail;
mod topics;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::message::Message;
use crate::pulse::Pulse;
use crate::retained::Retained;
use admit::{Entry, Job, SessionJob};
pub use copy::{CopiedLog, CopyError, LogCopy, continue_copy, schema_of};
pub use cursor::Cursor;
pub use error::{AppendError, CursorError, FullReason, NotQueued, OpenError, QueueFull, ReadError};
pub use limits::{
    BATCH_ROWS_MAX, CURSOR_NAME_BYTES_MAX, FETCH_ROWS_MAX, GAP_ROWS_MAX, Limits, MESSAGE_OVERHEAD_BYTES, PAGE_BYTES,
    PASSED_ROWS_MAX, POOL_READERS_MAX, QUOTA_BYTES_MIN,
};
pub use lineage::Lineage;
pub use open::DirLock;
pub use reader::{LogReader, LogVisit, Wanted};
pub(crate) use session_book::{Due, SessionBook, SessionCursor};
use sessions::{SessionId, SessionUpdate, StoredSession};
use shared::Shared;
pub use stats::{CursorStats, LogStats};
pub use stored::{StoredLog, StoredSpan};
pub use verify::{VerifyReport, verify};
use writer::{CONTROL_MAX, Control, Queues, SESSION_JOBS_MAX, Writer};

/// A position in the log. The first message has offset 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which log an offset belongs to: random, written when `log.db` is created.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogId(pub [u8; 16]);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogId({self})")
    }
}

/// What happens when the quota is used up and a cursor has not passed the oldest partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Appends wait until it has.
    Refuse,
    /// The partition is dropped, and what was lost is counted and written into the `gap` table.
    DropOldest,
}

/// How to open a log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// The data directory; made if missing.
    pub dir: PathBuf,
    /// Bytes that `log.db` and its write-ahead log may take together, at least [`QUOTA_BYTES_MIN`].
    pub quota_bytes: u64,
    /// When that is used up.
    pub when_full: WhenFull,
    /// How long the first append of a group waits for others. Zero: no longer than the commit before takes.
    pub commit_delay: Duration,
    /// Everything else that is bounded.
    pub limits: Limits,
}

impl LogConfig {
    /// A log in `dir` with the defaults of the configuration file.
    pub fn new(dir: impl Into<PathBuf>) -> LogConfig {
        LogConfig { dir: dir.into(), ..LogConfig::default() }
    }
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig {
            dir: PathBuf::from("data"),
            quota_bytes: 1_024 * 1_024 * 1_024,
            when_full: WhenFull::Refuse,
            commit_delay: Duration::from_millis(10),
            limits: Limits::default(),
        }
    }
}

/// A log that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The log.
    pub log: Log,
    /// Where a damaged database was put, if there was one; the log is new then.
    pub set_aside: Option<PathBuf>,
}

/// A message to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// The message. If it asks to be retained, its row in the retained store is written in the same commit; an empty
    /// payload deletes that row.
    pub message: Message,
    /// Whether it gets an offset. If not, only the retained store changes (QoS 0 retained).
    pub log: bool,
    /// When it was received, in microseconds since 1970 UTC.
    pub received_us: i64,
}

/// A message in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogMessage {
    /// Where.
    pub offset: Offset,
    /// When it was received, in microseconds since 1970 UTC.
    pub received_us: i64,
    /// The number of its topic: the same for every message of the topic while the log remembers it, never reused.
    pub topic_id: u32,
    /// The message.
    pub message: Message,
}

/// How much to read at once. At least one message is given if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimit {
    /// Messages; a read from disk gives at most [`FETCH_ROWS_MAX`].
    pub rows: usize,
    /// Payload and property bytes, with [`MESSAGE_OVERHEAD_BYTES`] for each message.
    pub bytes: usize,
}

impl Default for FetchLimit {
    fn default() -> FetchLimit {
        FetchLimit { rows: FETCH_ROWS_MAX, bytes: 1_024 * 1_024 }
    }
}

/// Messages read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fetched {
    /// In offset order, without holes.
    pub messages: Vec<Arc<LogMessage>>,
    /// Where to read next.
    pub next: Offset,
    /// What the reader can never have. `messages` is empty then, and `next` is behind the gap.
    pub lost: Option<Gap>,
}

impl Default for Offset {
    fn default() -> Offset {
        Offset(1)
    }
}

/// Messages that cannot be read any more: `from` to before `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The first.
    pub from: Offset,
    /// Behind the last.
    pub to: Offset,
    /// Why.
    pub kind: GapKind,
}

/// Why messages cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapKind {
    /// Retention dropped them.
    Dropped,
    /// The file is damaged there.
    Unreadable,
}

/// The log. A handle: clones share it. Close it when done; the last handle closes it otherwise.
#[derive(Debug, Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Job>,
    sessions: mpsc::Sender<SessionJob>,
    control: mpsc::Sender<Control>,
    pool: reader::Pool,
    /// The writer's thread and the lock on the directory, until the log is closed.
    owned: Mutex<Option<(JoinHandle<()>, File)>>,
}

impl Log {
    /// Opens the log in `config.dir`, or begins one. A damaged database is renamed to `log.db.corrupt-<UTC>`, with its
    /// `-wal` and `-shm`, and a new log begun. Blocks while it reads: up to 64 MiB, or the newest partition.
    ///
    /// # Errors
    /// An [`OpenError`] that says what to do.
    pub fn open(config: LogConfig) -> Result<Opened, OpenError> {
        let limits = &config.limits;
        let (queue, queued) = mpsc::channel(limits.queue_batches_max.max(1));
        let (sessions, session_jobs) = mpsc::channel(SESSION_JOBS_MAX);
        let (control, requests) = mpsc::channel(CONTROL_MAX);
        let queues = Queues { queue: queued, sessions: session_jobs, control: requests };
        let parts = open::open(config)?;
        let shared = Arc::clone(&parts.shared);
        let (store, admission) = (parts.store, parts.admission);
        let writer = thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || Writer::new(parts.shared, store, admission, queues).run())
            .map_err(OpenError::Spawn)?;
        // Nothing else sets it.
        let _ = shared.writer.set(writer.thread().clone());
        let owned = Mutex::new(Some((writer, parts.lock)));
        let inner = Inner { shared, queue, sessions, control, pool: reader::Pool::default(), owned };
        Ok(Opened { log: Log { inner: Arc::new(inner) }, set_aside: parts.set_aside })
    }

    /// Which log this is.
    pub fn id(&self) -> LogId {
        self.inner.shared.lineage.current()
    }

    /// Which log gave a message its offset: this one, or one that it continues since a copy of it was restored.
    pub fn lineage(&self) -> &Lineage {
        &self.inner.shared.lineage
    }

    /// Appends a batch in order, all of it or none; resolves after the commit that holds it, with the offset of its
    /// first logged message (the head if none is logged). While the log is full under [`WhenFull::Refuse`], or the disk
    /// fails, it waits. Dropping the future before the batch is queued appends nothing; after, the batch is appended.
    ///
    /// # Errors
    /// An [`AppendError`] that names the limit, or that the log was closed.
    pub async fn append(&self, batch: Vec<Append>) -> Result<Offset, AppendError> {
        self.append_with(batch, None).await
    }

    /// As [`Log::append`], with what a session has to store in the same commit.
    pub(crate) async fn append_with(
        &self,
        batch: Vec<Append>,
        session: Option<Box<SessionUpdate>>,
    ) -> Result<Offset, AppendError> {
        let shared = &self.inner.shared;
        if batch.is_empty() && session.is_none() {
            return Ok(self.head());
        }
        let bytes = self.check(&batch)?;
        // Checked against the queue's bound, which is far below 2^32.
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = shared.queue_bytes.acquire_many(permits).await.map_err(|_| AppendError::Closed)?;
        let slot = self.inner.queue.reserve().await.map_err(|_| AppendError::Closed)?;
        let (reply, answer) = oneshot::channel();
        room.forget();
        let rows = batch.len();
        slot.send(job(batch, bytes, session, Some(reply)));
        shared.queued(rows, bytes);
        answer.await.map_err(|_| AppendError::Closed)?
    }

    /// Queues a batch that nobody waits for (telemetry at QoS 0), or gives it back at once when the queue is full.
    ///
    /// # Errors
    /// [`QueueFull`] with the batch; counted in [`LogStats::not_queued`].
    pub fn try_append(&self, batch: Vec<Append>) -> Result<(), QueueFull> {
        if batch.is_empty() {
            return Ok(());
        }
        let shared = &self.inner.shared;
        let back = |batch, reason| {
            shared.counters.not_queued.fetch_add(1, Ordering::Relaxed);
            Err(QueueFull { batch, reason })
        };
        let bytes = match self.check(&batch) {
            Ok(bytes) => bytes,
            Err(error) => return back(batch, NotQueued::Refused(error)),
        };
        let room = shared.queue_bytes.try_acquire_many(u32::try_from(bytes).unwrap_or(u32::MAX));
        let slot = self.inner.queue.try_reserve();
        match (room, slot) {
            (Ok(room), Ok(slot)) => {
                room.forget();
                let rows = batch.len();
                slot.send(job(batch, bytes, None, None));
                shared.queued(rows, bytes);
                Ok(())
            }
            (_, Err(mpsc::error::TrySendError::Closed(()))) => back(batch, NotQueued::Refused(AppendError::Closed)),
            _ => back(batch, NotQueued::Busy),
        }
    }

    /// The bytes that a batch holds of the queue, or the limit it breaks.
    fn check(&self, batch: &[Append]) -> Result<usize, AppendError> {
        let shared = &self.inner.shared;
        let batch_bytes_max = shared.budget.batch_bytes_max;
        let bytes_max = shared.config.limits.message_bytes_max.min(batch_bytes_max - MESSAGE_OVERHEAD_BYTES);
        let mut total = 0_usize;
        for append in batch {
            let bytes = append.message.payload.len().saturating_add(append.message.properties.len());
            if bytes > bytes_max {
                return Err(AppendError::MessageTooLarge { bytes, bytes_max });
            }
            total = total.saturating_add(bytes + MESSAGE_OVERHEAD_BYTES);
        }
        if batch.len() > BATCH_ROWS_MAX || total > batch_bytes_max {
            let (rows, rows_max) = (batch.len(), BATCH_ROWS_MAX);
            return Err(AppendError::BatchTooLarge { rows, bytes: total, rows_max, bytes_max: batch_bytes_max });
        }
        Ok(total)
    }

    /// The offset that the next message will get: everything before it is on disk.
    pub fn head(&self) -> Offset {
        Offset(self.inner.shared.head())
    }

    /// The head, to wait for its moves.
    pub fn watch_head(&self) -> watch::Receiver<Offset> {
        self.inner.shared.head_watch.subscribe()
    }

    /// The oldest message that is on disk; the head if there is none.
    pub fn oldest(&self) -> Offset {
        Offset(self.inner.shared.oldest.load(Ordering::Acquire))
    }

    /// Messages from `from` on: from memory if they are new, else from disk, on a thread of the runtime that may block.
    /// Empty at the head. If [`Fetched::lost`] is set, there are none, and reading goes on at [`Fetched::next`].
    ///
    /// # Errors
    /// [`ReadError::Ahead`] if `from` is beyond the head; what SQLite says if the disk cannot be read.
    pub async fn fetch(&self, from: Offset, limit: FetchLimit) -> Result<Fetched, ReadError> {
        match reader::from_memory(&self.inner.shared, from, limit)? {
            Some(fetched) => Ok(fetched),
            None => self.inner.pool.read(&self.inner.shared, from, limit).await,
        }
    }

    /// Works through the log on a thread that may block: for a consumer that reads much at a time, in steps of a few milliseconds. It
    /// takes its turn with sessions that fell behind.
    ///
    /// # Errors
    /// What `work` gives, [`ReadError::Closed`], and what SQLite says if the file cannot be opened.
    pub async fn visit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut LogVisit<'_>) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let shared = Arc::clone(&self.inner.shared);
        self.inner.pool.with(&self.inner.shared, move |disk| work(&mut LogVisit { shared: &shared, disk })).await
    }

    /// A reader with its own connection, for a consumer's thread.
    ///
    /// # Errors
    /// What SQLite says if the file cannot be opened.
    pub fn reader(&self) -> Result<LogReader, ReadError> {
        LogReader::new(&self.inner.shared)
    }

    /// Registers a consumer: retention keeps everything from its position on. A name that is registered already, also
    /// before a restart, gives the same cursor; a new one stands at the oldest message. In the file with one of the next
    /// commits, after [`Log::flush`] for certain.
    ///
    /// # Errors
    /// A [`CursorError`] that names the limit.
    pub fn cursor(&self, name: &str) -> Result<Cursor, CursorError> {
        Cursor::register(&self.inner.shared, name)
    }

    /// Writes the cursors to disk now.
    ///
    /// # Errors
    /// [`AppendError::Closed`] if that was not possible.
    pub async fn flush(&self) -> Result<(), AppendError> {
        let (done, finished) = oneshot::channel();
        self.inner.control.send(Control::Flush(done)).await.map_err(|_| AppendError::Closed)?;
        finished.await.map_err(|_| AppendError::Closed)
    }

    /// Stores changes of a session; resolves when they are on disk. Does not wait for room for messages.
    ///
    /// # Errors
    /// [`AppendError::Closed`] if the log was closed before.
    pub(crate) async fn store_session(&self, update: SessionUpdate) -> Result<(), AppendError> {
        let slot = self.inner.sessions.reserve().await.map_err(|_| AppendError::Closed)?;
        let (reply, answer) = oneshot::channel();
        slot.send(SessionJob { update, reply, queued_at: Instant::now() });
        answer.await.map_err(|_| AppendError::Closed)?
    }

    /// Reads a stored session; `None` if it has ended.
    ///
    /// # Errors
    /// What SQLite says if the disk cannot be read.
    pub(crate) async fn load_session(&self, id: SessionId) -> Result<Option<StoredSession>, ReadError> {
        self.inner.pool.with(&self.inner.shared, move |reader| reader.session(id)).await
    }

    /// Which sessions are stored.
    pub(crate) fn sessions(&self) -> &SessionBook {
        &self.inner.shared.sessions
    }

    /// The retained messages.
    pub fn retained(&self) -> &Retained {
        &self.inner.shared.retained
    }

    /// Whether the writer works.
    pub fn pulse(&self) -> Pulse {
        self.inner.shared.pulse.clone()
    }

    /// The figures of this moment.
    pub fn stats(&self) -> LogStats {
        self.inner.shared.stats()
    }

    /// Commits what is queued, checkpoints and ends the writer; appends are refused from now on. Blocks for that time, at
    /// most about two seconds when the disk does not take it. May be called again.
    pub fn close(&self) {
        self.inner.close();
    }
}

impl Inner {
    fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake();
        self.pool.close();
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((writer, lock)) = owned.take() {
            // A writer that panicked has reported it and marked the log as closed.
            let _ = writer.join();
            drop(lock);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// A batch for the writer. The messages are allocated here, in the publisher's thread.
fn job(
    batch: Vec<Append>,
    bytes: usize,
    session: Option<Box<SessionUpdate>>,
    reply: Option<oneshot::Sender<Result<Offset, AppendError>>>,
) -> Job {
    let entries = batch
        .into_iter()
        .map(|Append { message, log, received_us }| Entry {
            message: Arc::new(LogMessage { offset: Offset(0), received_us, topic_id: 0, message }),
            log,
        })
        .collect();
    Job { entries, bytes, session, reply, queued_at: Instant::now() }
}

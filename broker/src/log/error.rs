//! What can go wrong at the log's boundary, in terms of who must act: the operator, the publisher, the disk.

use std::io;
use std::path::PathBuf;

use super::{Append, Offset};

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory does not exist and could not be made.
    #[error("cannot create the data directory {}: {source}; create it or set `gateway.data_dir`", path.display())]
    CreateDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The data directory exists but cannot be written.
    #[error(
        "cannot write to the data directory {}: {source}; give this user write access or set `gateway.data_dir`",
        path.display()
    )]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has the log open for writing.
    #[error(
        "another gateway is using {}; stop it, or give this one its own `gateway.data_dir`",
        path.display()
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// Some other program holds a lock on the database.
    #[error("{} is locked by another program; end it (a database shell?) and start again", path.display())]
    Locked {
        /// The database.
        path: PathBuf,
    },
    /// Written by a newer version; touching it could destroy what that version knows.
    #[error("{} has schema version {found}, this program knows {known}; install the newer version", path.display())]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// The version found.
        found: i64,
        /// The version that this program writes.
        known: i64,
    },
    /// A healthy SQLite database that is not a log.
    #[error("{} is a database of another program; move it away or set `gateway.data_dir`", path.display())]
    NotALog {
        /// The database.
        path: PathBuf,
    },
    /// The quota leaves no room to work.
    #[error("a log quota of {quota_bytes} bytes is too small; at least {quota_bytes_min} are needed (`log.quota_mb`)")]
    QuotaTooSmall {
        /// What was asked for.
        quota_bytes: u64,
        /// The smallest that works.
        quota_bytes_min: u64,
    },
    /// A corrupt database could not be renamed.
    #[error("{} is corrupt and could not be set aside: {source}; move it away by hand", path.display())]
    SetAside {
        /// The database.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The writer's thread could not be started.
    #[error("cannot start the log's writer: {0}")]
    Spawn(#[source] io::Error),
    /// Anything else that SQLite says.
    #[error("cannot open {}: {source}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

/// Why a batch was not appended; none of it is in the log then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The log was closed before the batch was committed.
    #[error("the log is closed")]
    Closed,
    /// One message is larger than the log takes.
    #[error("the message has {bytes} bytes, the log takes at most {bytes_max}")]
    MessageTooLarge {
        /// Payload and properties.
        bytes: usize,
        /// The limit, from the configuration or from the quota.
        bytes_max: usize,
    },
    /// The batch is larger than one commit takes; split it.
    #[error("the batch has {rows} messages of {bytes} bytes, the log takes at most {rows_max} of {bytes_max}")]
    BatchTooLarge {
        /// Messages.
        rows: usize,
        /// Payloads and properties with their overhead.
        bytes: usize,
        /// The limit of messages.
        rows_max: usize,
        /// The limit of bytes.
        bytes_max: usize,
    },
    /// The topic is new and the table of topics is full.
    #[error("the log knows {topics_max} topics or {bytes_max} bytes of topic names already, no new topic is accepted")]
    TopicLimit {
        /// The limit of topics.
        topics_max: usize,
        /// The limit of their names, in bytes.
        bytes_max: usize,
    },
    /// The message asks to be retained and the retained store is full.
    #[error("{count_max} messages or {bytes_max} bytes are retained already, no more are accepted")]
    RetainedLimit {
        /// The limit of messages.
        count_max: usize,
        /// The limit of bytes.
        bytes_max: usize,
    },
}

/// A batch given back by [`super::Log::try_append`].
#[derive(Debug, thiserror::Error)]
#[error("not queued: {reason}")]
pub struct QueueFull {
    /// The batch as it was handed in.
    pub batch: Vec<Append>,
    /// Why.
    pub reason: NotQueued,
}

/// Why a batch was not queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotQueued {
    /// The writer is behind, or the log is full and its policy is to wait.
    #[error("the writer's queue is full")]
    Busy,
    /// It would never be accepted.
    #[error(transparent)]
    Refused(AppendError),
}

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The reader asks for messages that the log has not written yet: its position is from another log.
    #[error("position {} is beyond the log's head {}; it belongs to another log", from.0, head.0)]
    Ahead {
        /// The position asked for.
        from: Offset,
        /// The offset that the next message will get.
        head: Offset,
    },
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// No log in the data directory.
    #[error("there is no log at {}: has the gateway run with this `gateway.data_dir`?", path.display())]
    Missing {
        /// The database that is not there.
        path: PathBuf,
    },
    /// Another program's database, or a newer version's.
    #[error("{} is no log that this version can read", path.display())]
    NotALog {
        /// The database.
        path: PathBuf,
    },
    /// What SQLite said.
    #[error("cannot read the log: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// Why a cursor was not registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// As many are registered as the log keeps.
    #[error("{cursors_max} cursors are registered already")]
    TooMany {
        /// The limit.
        cursors_max: usize,
    },
    /// The name is empty or too long.
    #[error("a cursor's name has 1 to {bytes_max} bytes, this one has {bytes}")]
    Name {
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}

/// What keeps the writer from committing; appends wait meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FullReason {
    /// The quota is used up and a consumer has not passed the oldest partition.
    #[error(
        "the log is full: {bytes} of {bytes_max} bytes, and cursor `{cursor}` at {} has not passed the oldest partition",
        position.0
    )]
    Cursor {
        /// The cursor that is furthest behind.
        cursor: String,
        /// Its position.
        position: Offset,
        /// Bytes in use.
        bytes: u64,
        /// Bytes that messages may use.
        bytes_max: u64,
    },
    /// The quota is used up and no partition is left to drop.
    #[error("the log is full: {bytes} of {bytes_max} bytes, and nothing is left to drop; raise `log.quota_mb`")]
    NothingToDrop {
        /// Bytes in use.
        bytes: u64,
        /// Bytes that messages may use.
        bytes_max: u64,
    },
    /// A reader outside the gateway keeps the write-ahead log from starting over.
    #[error(
        "the write-ahead log has {wal_bytes} of {wal_bytes_max} bytes and a reader holds it; end the long transaction of \
         the other program"
    )]
    WalHeld {
        /// Its size.
        wal_bytes: u64,
        /// The most it may have.
        wal_bytes_max: u64,
    },
    /// The file system is full.
    #[error("the disk is full; free some space: {error}")]
    DiskFull {
        /// What SQLite said.
        error: String,
    },
    /// The disk or the database failed.
    #[error("the log cannot be written: {error}")]
    Failed {
        /// What SQLite said.
        error: String,
    },
}

/// A failure inside the writer, sorted by what helps.
#[derive(Debug)]
pub(crate) enum StoreError {
    /// No page is left: by `max_page_count` or by the file system.
    Full(rusqlite::Error),
    /// Another process has the write lock.
    Busy(rusqlite::Error),
    /// A page makes no sense.
    Corrupt(rusqlite::Error),
    /// Input, output and everything else.
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        use rusqlite::ErrorCode;
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Full(error),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy(error),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(error),
            _ => StoreError::Failed(error),
        }
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoreError::Full(error)
            | StoreError::Busy(error)
            | StoreError::Corrupt(error)
            | StoreError::Failed(error) => error.fmt(f),
        }
    }
}

//! Opening: one gateway at a time, a damaged database set aside, a new one begun.
//!
//! Never deletes anything. What it cannot use but could hold data (damaged, or an orphaned write-ahead log) is renamed
//! to `log.db.corrupt-<UTC>` with its companions; another program's database or a newer version's is refused. The check
//! reads everything up to [`QUICK_CHECK_BYTES_MAX`], and beyond that the small tables and the newest partition.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use super::admit::{Admission, RetainedBook};
use super::cursor::Cursors;
use super::error::OpenError;
use super::limits::{Budget, QUICK_CHECK_BYTES_MAX};
use super::lineage::Lineage;
use super::reader::is_damage;
use super::session_book::SessionBook;
use super::shared::{Kept, Shared};
use super::store::Store;
use super::{LogConfig, Offset, schema, sessions};
use crate::clock;
use crate::retained::{Retained, RetainedMessage};
use crate::topic::TopicName;

/// Names tried for a database that is set aside: a second gateway start within the same second takes the next.
const SET_ASIDE_NAMES_MAX: u32 = 1_000;

/// The parts of an opened log.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Store,
    pub(crate) admission: Admission,
    pub(crate) lock: File,
    pub(crate) set_aside: Option<PathBuf>,
}

/// Why an attempt to use the database failed.
enum Attempt {
    Corrupt,
    Refused(OpenError),
}

/// Opens the log in `config.dir`, or begins one.
pub(crate) fn open(mut config: LogConfig) -> Result<Parts, OpenError> {
    config.limits = config.limits.workable();
    let budget = Budget::new(config.quota_bytes, &config.limits)?;
    let lock = lock_dir(&config.dir)?;
    let path = config.dir.join(schema::FILE_NAME);
    let mut set_aside = None;
    let loaded = match load(&path, &config, &budget) {
        Err(Attempt::Corrupt) => {
            set_aside = Some(put_aside(&path)?);
            load(&path, &config, &budget)
        }
        other => other,
    };
    let Loaded { store, lineage, head, oldest, cursors, retained, sessions, lost } =
        loaded.map_err(|attempt| match attempt {
            Attempt::Refused(error) => error,
            // A database that was just created cannot be read back: the disk itself is at fault.
            Attempt::Corrupt => {
                OpenError::NotWritable { path: path.clone(), source: io::Error::other("a new database is corrupt") }
            }
        })?;
    sync_dir(&config.dir);
    let limits = &config.limits;
    let mut book = RetainedBook::new(limits.retained_count_max, budget.retained_bytes_max);
    for message in &retained {
        book.set(&message.message.topic, Some(message.bytes()));
    }
    let admission =
        Admission { next: head, book, topics_max: limits.topics_max, topic_bytes_max: budget.topic_bytes_max };
    let retained = Retained::new(retained, limits.retained_count_max, limits.retained_bytes_max);
    let cursors = Cursors::new(cursors, head);
    let sessions = SessionBook::new(sessions, config.limits.sessions_max, budget.session_bytes_max);
    let shared = Shared::new(config, budget, lineage, path, (oldest, head), Kept { cursors, sessions, retained });
    shared.counters.lost_rows.store(lost.0, std::sync::atomic::Ordering::Relaxed);
    shared.counters.lost_bytes.store(lost.1, std::sync::atomic::Ordering::Relaxed);
    Ok(Parts { shared: Arc::new(shared), store, admission, lock, set_aside })
}

/// Keeps every gateway away from a data directory until it is dropped; [`super::Log::open`] takes it for itself.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock; the directory is made if it is missing.
    ///
    /// # Errors
    /// [`OpenError::InUse`] while a gateway runs on it; the directory cannot be made or written.
    pub fn take(dir: &Path) -> Result<DirLock, OpenError> {
        Ok(DirLock { _file: lock_dir(dir)? })
    }

    /// Whether a gateway runs on a data directory; `None` if that cannot be told. Makes nothing.
    pub fn is_held(dir: &Path) -> Option<bool> {
        match File::open(dir.join(schema::LOCK_NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
            Err(_) => None,
            // Others may look at the same time; only a gateway's lock keeps them out.
            Ok(file) => match file.try_lock_shared() {
                Ok(()) => Some(false),
                Err(TryLockError::WouldBlock) => Some(true),
                Err(TryLockError::Error(_)) => None,
            },
        }
    }
}

/// Makes the directory if need be and takes the lock that keeps a second gateway out until the file is closed.
fn lock_dir(dir: &Path) -> Result<File, OpenError> {
    if !dir.is_dir() {
        fs::create_dir_all(dir).map_err(|source| OpenError::CreateDir { path: dir.to_owned(), source })?;
        if let Some(parent) = dir.parent() {
            sync_dir(parent);
        }
    }
    let not_writable = |source| OpenError::NotWritable { path: dir.to_owned(), source };
    let path = dir.join(schema::LOCK_NAME);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(not_writable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(not_writable(source)),
    }
}

/// Makes new names durable. A file system that cannot do this on a directory keeps names in order by itself.
fn sync_dir(dir: &Path) {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
}

/// Makes durable what was found. A process that was killed between the write of a commit and its sync leaves a commit that is
/// whole but only in the system's cache; shown to consumers, who remember how far they came, it must outlast a power cut.
/// A checkpoint syncs the write-ahead log before it copies it. A reader of another program may keep it from doing so; then
/// the next commit does.
fn sync_found(connection: &Connection) -> rusqlite::Result<()> {
    match connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        // The database could not grow; the write-ahead log is synced by then, and the writer reports the full disk.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => Ok(()),
        other => other,
    }
}

struct Loaded {
    store: Store,
    lineage: Lineage,
    head: u64,
    oldest: u64,
    cursors: Vec<(String, u64)>,
    retained: Vec<Arc<RetainedMessage>>,
    sessions: sessions::Found,
    lost: (u64, u64),
}

fn load(path: &Path, config: &LogConfig, budget: &Budget) -> Result<Loaded, Attempt> {
    let refused = |source| sort(path, source);
    if !prepare(path)? {
        let connection = schema::open_writer(path, budget).map_err(refused)?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| {
            Attempt::Refused(OpenError::NotWritable { path: path.to_owned(), source: io::Error::other(error) })
        })?;
        schema::create(&connection, &id).map_err(refused)?;
    }
    let connection = schema::open_writer(path, budget).map_err(refused)?;
    if connection.is_readonly("main").map_err(refused)? {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        return Err(Attempt::Refused(OpenError::NotWritable { path: path.to_owned(), source }));
    }
    sync_found(&connection).map_err(refused)?;
    schema::upgrade(&connection).map_err(refused)?;
    sessions::end_connections(&connection, clock::now_us()).map_err(refused)?;
    let lineage = Lineage::load(&connection).map_err(refused)?.ok_or(Attempt::Corrupt)?;
    let sessions = sessions::list(&connection).map_err(refused)?;
    let cursors = load_cursors(&connection).map_err(refused)?;
    let retained = load_retained(&connection).map_err(refused)?;
    let lost = connection
        .query_row("SELECT coalesce(sum(rows),0), coalesce(sum(bytes),0) FROM gap", [], |row| {
            Ok((schema::unsigned(row.get(0)?), schema::unsigned(row.get(1)?)))
        })
        .map_err(refused)?;
    let loaded = Store::load(connection, path.to_owned(), budget.clone(), &config.limits);
    let (store, head) = loaded.map_err(refused)?;
    let oldest = store.partitions.oldest().map_or(head, |oldest| oldest.first);
    Ok(Loaded { store, lineage, head, oldest, cursors, retained, sessions, lost })
}

/// Looks at what is there without changing it. Gives whether it is a log; nothing, or an empty database, is not yet.
fn prepare(path: &Path) -> Result<bool, Attempt> {
    let bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
    if bytes == 0 {
        // SQLite would delete a write-ahead log without its database; it may hold acknowledged messages.
        let orphan = fs::metadata(companion(path, "-wal")).is_ok_and(|metadata| metadata.len() > 0);
        return if orphan { Err(Attempt::Corrupt) } else { Ok(false) };
    }
    let refused = |source| sort(path, source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(refused)?;
    // Closing must not copy the write-ahead log into a damaged database.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(refused)?;
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(refused);
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    let application = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    if tables == 0 && application == 0 {
        return Ok(false);
    }
    if application != schema::APPLICATION_ID {
        return Err(Attempt::Refused(OpenError::NotALog { path: path.to_owned() }));
    }
    if version > schema::SCHEMA_VERSION {
        let known = schema::SCHEMA_VERSION;
        return Err(Attempt::Refused(OpenError::NewerSchema { path: path.to_owned(), found: version, known }));
    }
    check(&connection, bytes).map_err(refused)?.then_some(true).ok_or(Attempt::Corrupt)
}

/// Whether the database is whole, as far as the check goes.
fn check(connection: &Connection, bytes: u64) -> rusqlite::Result<bool> {
    if bytes <= QUICK_CHECK_BYTES_MAX {
        return is_whole(connection, "PRAGMA quick_check(1)");
    }
    for table in schema::small_tables(connection)? {
        if !is_whole(connection, &format!("PRAGMA quick_check('{table}')"))? {
            return Ok(false);
        }
    }
    let newest: Option<u32> = connection
        .query_row("SELECT number FROM partition ORDER BY first_offset DESC LIMIT 1", [], |row| row.get(0))
        .optional()?;
    newest.map_or(Ok(true), |number| {
        is_whole(connection, &format!("PRAGMA quick_check('{}')", schema::partition_table(number)))
    })
}

pub(crate) fn is_whole(connection: &Connection, sql: &str) -> rusqlite::Result<bool> {
    connection.query_row(sql, [], |row| row.get::<_, String>(0)).map(|verdict| verdict == "ok")
}

/// Who must act on an error of SQLite.
fn sort(path: &Path, source: rusqlite::Error) -> Attempt {
    if is_damage(&source) {
        return Attempt::Corrupt;
    }
    let path = path.to_owned();
    Attempt::Refused(match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Locked { path },
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly | ErrorCode::DiskFull) => {
            OpenError::NotWritable { path, source: io::Error::other(source) }
        }
        _ => OpenError::Sqlite { path, source },
    })
}

fn load_cursors(connection: &Connection) -> rusqlite::Result<Vec<(String, u64)>> {
    let mut select = connection.prepare("SELECT name, position FROM cursor")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, schema::unsigned(row.get(1)?))))?;
    rows.collect()
}

fn load_retained(connection: &Connection) -> rusqlite::Result<Vec<Arc<RetainedMessage>>> {
    let mut select = connection.prepare("SELECT topic, stored_us, offset, flags, properties, payload FROM retained")?;
    let mut rows = select.query([])?;
    let mut retained = Vec::new();
    while let Some(row) = rows.next()? {
        let topic: String = row.get(0)?;
        let offset: Option<i64> = row.get(2)?;
        let (properties, payload) = (schema::blob(row, 4)?, schema::blob(row, 5)?);
        let flags = row.get(3)?;
        let message =
            TopicName::parse(&topic).ok().and_then(|topic| schema::message_of(topic, flags, properties, payload));
        // A row that the writer cannot have written is damage, like a page that makes no sense.
        let message = message.ok_or_else(|| rusqlite::Error::IntegralValueOutOfRange(3, flags))?;
        let offset = offset.map(|offset| Offset(schema::unsigned(offset)));
        retained.push(Arc::new(RetainedMessage { message, stored_us: row.get(1)?, offset, volatile: false }));
    }
    Ok(retained)
}

/// Renames a database and its companions; gives its new name.
fn put_aside(path: &Path) -> Result<PathBuf, OpenError> {
    let stamp = clock::compact_utc(clock::now_us());
    let failed = |source| OpenError::SetAside { path: path.to_owned(), source };
    let names = (0..SET_ASIDE_NAMES_MAX).map(|number| match number {
        0 => companion(path, &format!(".corrupt-{stamp}")),
        number => companion(path, &format!(".corrupt-{stamp}-{number}")),
    });
    let is_free = |name: &PathBuf| ["", "-wal", "-shm"].iter().all(|suffix| !companion(name, suffix).exists());
    let mut free = names.filter(is_free);
    let aside = free.next().ok_or_else(|| failed(io::Error::from(io::ErrorKind::AlreadyExists)))?;
    // The database first: if the process dies in between, its write-ahead log is an orphan and is set aside next time.
    for suffix in ["", "-wal", "-shm"] {
        match fs::rename(companion(path, suffix), companion(&aside, suffix)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    if let Some(dir) = path.parent() {
        sync_dir(dir);
    }
    Ok(aside)
}

/// `log.db` and `-wal` give `log.db-wal`.
fn companion(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

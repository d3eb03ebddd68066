//! A database of the gateway as it is copied by others: beside the gateway that writes it, or when there is none.
//!
//! Owns the pinned view of a file ([`Pinned`]), which is how `state.db` and `history.db` are copied, and what a restore does to a copied
//! `state.db`. A pinned view is a read transaction: the file's write-ahead log grows until it is dropped, by what is written meanwhile. That is
//! little for these files (a checkpoint of the state every 5 s, history every 5 minutes); the log has a way of its own. Never writes to
//! the file that it copies. Copies [`STEP_PAGES`] pages at a time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, Transaction};

use super::versions::RUNNING;
use super::{BUSY, SCHEMA_VERSION, StateError, WrittenOn, meta, set_meta, written};

/// Pages of one step: 1 MiB.
const STEP_PAGES: i32 = 256;

/// How long a step waits for the file's locks.
const LOCKED: Duration = Duration::from_millis(50);

/// Steps that may find the file locked, one after the other: 30 s.
const LOCKED_MAX: u32 = 600;

/// Numbers of events begin anew at a multiple of this, behind all that the copied gateway can have given in months.
const EVENTS: u64 = 1_000_000;

/// Why a file was not copied.
#[derive(Debug, thiserror::Error)]
#[error("cannot copy {} to {}: {source}", path.display(), target.display())]
pub struct PinError {
    path: PathBuf,
    target: PathBuf,
    source: rusqlite::Error,
}

/// A file as it was at one moment.
pub struct Pinned {
    path: PathBuf,
    reader: Connection,
    /// Sees what is committed later.
    watcher: Connection,
    version: i64,
}

impl Pinned {
    /// Pins a file; `None` if there is none.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn open(path: &Path) -> Result<Option<Pinned>, PinError> {
        if !path.is_file() {
            return Ok(None);
        }
        Pinned::pin(path).map(Some).map_err(|source| PinError {
            path: path.to_owned(),
            target: "a backup".into(),
            source,
        })
    }

    fn pin(path: &Path) -> Result<Pinned, rusqlite::Error> {
        let watcher = open_reader(path)?;
        let version = data_version(&watcher)?;
        let reader = open_reader(path)?;
        reader.execute_batch("BEGIN")?;
        // The transaction begins with the first read.
        reader.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(Pinned { path: path.to_owned(), reader, watcher, version })
    }

    /// Whether nothing has been committed since.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn is_current(&self) -> Result<bool, PinError> {
        let failed = |source| PinError { path: self.path.clone(), target: "a backup".into(), source };
        Ok(data_version(&self.watcher).map_err(failed)? == self.version)
    }

    /// Copies what is pinned to a file, which must not be there, and checks the copy. `tell` is told how much is done, from 0 to 1.
    ///
    /// # Errors
    /// What SQLite says; the copy is not whole.
    pub fn copy_to(&self, target: &Path, tell: &mut dyn FnMut(f64)) -> Result<(), PinError> {
        let failed = |source| PinError { path: self.path.clone(), target: target.to_owned(), source };
        self.copy(target, tell).map_err(failed)
    }

    fn copy(&self, target: &Path, tell: &mut dyn FnMut(f64)) -> Result<(), rusqlite::Error> {
        let mut copy = Connection::open(target)?;
        // One that is broken off is thrown away.
        copy.pragma_update(None, "synchronous", "OFF")?;
        {
            let backup = Backup::new(&self.reader, &mut copy)?;
            let mut locked = 0;
            loop {
                match backup.step(STEP_PAGES)? {
                    StepResult::Done => {
                        tell(1.0);
                        break;
                    }
                    StepResult::More => locked = 0,
                    _ if locked < LOCKED_MAX => {
                        locked += 1;
                        std::thread::sleep(LOCKED);
                    }
                    _ => return Err(failure(rusqlite::ffi::SQLITE_BUSY, "the file stays locked by another program")),
                }
                let progress = backup.progress();
                let all = f64::from(progress.pagecount.max(1));
                tell(1.0 - f64::from(progress.remaining) / all);
            }
        }
        // One file, without companions.
        copy.pragma_update(None, "journal_mode", "DELETE")?;
        let verdict: String = copy.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(failure(rusqlite::ffi::SQLITE_CORRUPT, &verdict));
        }
        copy.close().map_err(|(_, error)| error)
    }
}

fn failure(code: i32, words: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some(words.to_owned()))
}

fn open_reader(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

fn data_version(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.query_row("PRAGMA data_version", [], |row| row.get(0))
}

/// What a backup says about a `state.db`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFacts {
    /// The version of its tables.
    pub schema: i64,
    /// The log that its cursor belongs to.
    pub log_id: Option<[u8; 16]>,
    /// The offset of the next message to read.
    pub cursor: u64,
    /// The number of the next event.
    pub next_event: u64,
    /// SHA-256 of the models that it needs, lower-case hex.
    pub models: Vec<String>,
    /// How much the gateway wrote on the last day that it ran.
    pub written: Option<WrittenOn>,
}

/// The version of the tables that this program knows.
pub fn schema_known() -> i64 {
    SCHEMA_VERSION
}

/// Where `state.db` is in a data directory.
pub fn path_in(dir: &Path) -> PathBuf {
    dir.join("state.db")
}

/// Reads what a backup says about the `state.db` of `dir`, of whatever version.
///
/// # Errors
/// What SQLite says.
pub fn facts(dir: &Path) -> Result<StateFacts, StateError> {
    let connection = open_reader(&path_in(dir))?;
    let schema = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let log_id: Option<Vec<u8>> = meta(&connection, "log_id")?;
    let number = |key| meta::<i64>(&connection, key).map(|value| value.map_or(0, i64::cast_unsigned));
    let mut statement = connection.prepare("SELECT sha256 FROM model ORDER BY sha256")?;
    let models = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(StateFacts {
        schema,
        log_id: log_id.and_then(|id| id.try_into().ok()),
        cursor: number("cursor")?,
        next_event: number("next_event")?,
        models,
        written: written::of(&connection)?,
    })
}

/// Makes a copied `state.db` in `dir` go on with a log that goes on under another id. The gateway that was copied has given the next
/// numbers of events to other events, so they begin anew, see [`number_events_from`]. It was running and did not end badly: a model on
/// trial stays on trial.
///
/// # Errors
/// What SQLite says; nothing is changed then.
pub fn continue_copy(dir: &Path, (before, after): ([u8; 16], [u8; 16])) -> Result<(), StateError> {
    let mut connection = open_writer(dir)?;
    let transaction = connection.transaction()?;
    let log_id: Option<Vec<u8>> = meta(&transaction, "log_id")?;
    if log_id.as_deref() == Some(before.as_slice()) {
        set_meta(&transaction, "log_id", after.as_slice())?;
    }
    // Its own next number, too, has been given by now.
    let own: Option<i64> = meta(&transaction, "next_event")?;
    raise_next_event(&transaction, own.map_or(0, i64::cast_unsigned).saturating_add(1))?;
    set_meta(&transaction, RUNNING, 0_i64)?;
    transaction.commit()?;
    connection.close().map_err(|(_, error)| error.into())
}

/// Numbers events of a copied `state.db` in `dir` from a multiple of [`EVENTS`] on that is behind its own and `next_event`.
///
/// # Errors
/// What SQLite says; nothing is changed then.
pub fn number_events_from(dir: &Path, next_event: u64) -> Result<(), StateError> {
    let mut connection = open_writer(dir)?;
    let transaction = connection.transaction()?;
    raise_next_event(&transaction, next_event)?;
    transaction.commit()?;
    connection.close().map_err(|(_, error)| error.into())
}

fn raise_next_event(transaction: &Transaction<'_>, given: u64) -> Result<(), StateError> {
    let own: Option<i64> = meta(transaction, "next_event")?;
    let given = own.map_or(0, i64::cast_unsigned).max(given);
    let next = given.div_ceil(EVENTS).saturating_mul(EVENTS);
    Ok(set_meta(transaction, "next_event", next.cast_signed())?)
}

fn open_writer(dir: &Path) -> Result<Connection, StateError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path_in(dir), flags)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Checkpoint, State};

    fn checkpoint(cursor: u64) -> Checkpoint {
        Checkpoint { log_id: [7; 16], cursor, next_event: 12, ..Checkpoint::default() }
    }

    // A pinned file is copied as it was, while it is written; who holds it can tell that it has moved on.
    #[test]
    fn a_pinned_file_is_copied_as_it_was() {
        let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(Pinned::open(&path_in(dir.path())).unwrap().is_none());
        let state = State::open(dir.path()).unwrap().state;
        state.commit(&checkpoint(5)).unwrap();
        let pinned = Pinned::open(&path_in(dir.path())).unwrap().unwrap();
        assert!(pinned.is_current().unwrap());
        state.commit(&checkpoint(9)).unwrap();
        assert!(!pinned.is_current().unwrap());
        let mut told = 0.0;
        pinned.copy_to(&path_in(to.path()), &mut |done| told = done).unwrap();
        let (then, now) = (facts(to.path()).unwrap(), facts(dir.path()).unwrap());
        assert_eq!((then.cursor, now.cursor, told), (5, 9, 1.0));
        assert_eq!((then.log_id, then.next_event, then.schema), (Some([7; 16]), 12, SCHEMA_VERSION));
    }

    // A copy goes on with the log's new id, with numbers that no event has had; a model on trial stays.
    #[test]
    fn a_copy_goes_on_with_new_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap().state;
        state.commit(&checkpoint(5)).unwrap();
        state.begin_run().unwrap();
        drop(state);
        continue_copy(dir.path(), ([7; 16], [8; 16])).unwrap();
        let found = facts(dir.path()).unwrap();
        assert_eq!((found.log_id, found.cursor, found.next_event), (Some([8; 16]), 5, EVENTS));
        for (given, expected) in [(3, EVENTS), (EVENTS, EVENTS), (EVENTS + 1, 2 * EVENTS)] {
            number_events_from(dir.path(), given).unwrap();
            assert_eq!(facts(dir.path()).unwrap().next_event, expected, "{given}");
        }
        let state = State::open(dir.path()).unwrap().state;
        let running: Option<i64> = meta(&state.lock(), RUNNING).unwrap();
        assert_eq!(running, Some(0));
    }
}

//! What the gateway must not forget: `state.db`.
//!
//! Owns the inference cursor, every asset's saved state, the rows being learned from and the installed models, (`outbox`) messages not
//! yet published, ([`versions`]) what became of each pushed model, (`cases`) the casebook of alerts, (`recorded`) buckets for the charts
//! of the past until the historian has them, and (`written`) how much was written today; [`stored`] reads it for others, [`copy`] copies it.
//! A checkpoint is ONE
//! transaction: what was derived from the log and how far the log was read are never apart. Never holds telemetry
//! beyond the rows a commissioning still needs and the last minutes for the historian.

mod cases;
pub mod copy;
mod outbox;
mod recorded;
pub mod stored;
pub mod versions;
mod written;

pub use cases::{AlertRow, Deed, SilenceChange};
pub use outbox::OutboxRow;
pub use recorded::{JOURNAL_BYTES_MAX, Journal, JournalRow};
pub use written::WrittenOn;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::alarm::message::AlertEvent;
use crate::clock;
use crate::historian::recorder::Recorded;
use crate::pipeline::asset::{Changed, SavedAsset, SavedMore};
use crate::pipeline::fleet::{Installed, ModelKey, Origin};
use crate::pipeline::rows::Rows;
use versions::VersionRow;

/// Version of the tables; a newer one is refused, not touched.
const SCHEMA_VERSION: i64 = 3;
/// How long one connection waits for another.
const BUSY: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS asset (id TEXT PRIMARY KEY, saved BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS learning_rows (asset TEXT NOT NULL, first INTEGER NOT NULL, rows BLOB NOT NULL,
    PRIMARY KEY (asset, first)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS model (sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL,
    origin TEXT NOT NULL, assets TEXT NOT NULL, installed_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS predecessor (asset TEXT PRIMARY KEY, sha256 TEXT NOT NULL) WITHOUT ROWID;
";

/// Why `state.db` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder cannot be made or written.
    #[error("cannot use the data directory {}: {error}; make it writable for this user or set `data_dir` in [gateway]", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        error: std::io::Error,
    },
    /// A later version of the gateway wrote it.
    #[error("{} was written by a newer version (schema {found}, this one knows {SCHEMA_VERSION}): start the newer version, or another data_dir", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// An earlier version of the gateway wrote it, and this one has not run since.
    #[error("{} was written by an older version (schema {found}, this one reads {SCHEMA_VERSION}): start the gateway once, which brings it up to date", path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// SQLite failed.
    #[error("state.db: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A value cannot be encoded.
    #[error("state.db: cannot encode {what}: {error}")]
    Encode {
        /// Which.
        what: &'static str,
        /// Why.
        error: postcard::Error,
    },
}

/// The open state database.
pub struct State {
    connection: Mutex<Connection>,
    /// Read-only, so that who looks does not hold up who writes.
    reader: Mutex<Connection>,
}

/// The result of opening.
pub struct OpenedState {
    /// The database.
    pub state: State,
    /// Where a corrupt one was put.
    pub set_aside: Option<PathBuf>,
}

/// What was saved by the last checkpoint.
#[derive(Default)]
pub struct Saved {
    /// The log that the cursor belongs to.
    pub log_id: Option<[u8; 16]>,
    /// The offset of the next message to read.
    pub cursor: u64,
    /// The number of the next event.
    pub next_event: u64,
    /// What the payload decoder remembered.
    pub sources: Option<Vec<u8>>,
    /// All assets.
    pub assets: Vec<AssetRow>,
    /// All models.
    pub models: Vec<ModelRow>,
}

/// One saved asset.
pub struct AssetRow {
    /// Its id.
    pub id: String,
    /// Its state.
    pub saved: SavedAsset,
    /// What is saved besides; nothing in a file from before there was more.
    pub more: Option<SavedMore>,
    /// The model before the one in use.
    pub previous: Option<ModelKey>,
    /// Rows it is learning from.
    pub rows: Rows,
}

/// One installed model; its file is `models/<sha256>.onnx`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRow {
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// Where it came from.
    pub origin: Origin,
    /// The assets it is for.
    pub assets: Vec<String>,
}

impl ModelRow {
    /// The row of a model that is installed.
    pub fn of(model: &Installed) -> ModelRow {
        ModelRow {
            sha256: model.sha256.clone(),
            name: model.name.to_string(),
            version: model.version,
            origin: model.origin,
            assets: model.assets.clone(),
        }
    }
}

/// Everything that one commit changes.
#[derive(Default)]
pub struct Checkpoint {
    /// The log read.
    pub log_id: [u8; 16],
    /// The offset of the next message to read.
    pub cursor: u64,
    /// The number of the next event.
    pub next_event: u64,
    /// What the payload decoder remembers, if anything.
    pub sources: Option<Vec<u8>>,
    /// Assets that changed.
    pub assets: Vec<Changed>,
    /// Models installed.
    pub models: Vec<ModelRow>,
    /// Models taken away, by SHA-256.
    pub withdrawn: Vec<String>,
    /// What became of pushed models.
    pub versions: Vec<VersionRow>,
    /// Messages to publish: topic, payload, retain.
    pub outbox: Vec<(String, Vec<u8>, bool)>,
    /// What happened to alerts.
    pub events: Vec<AlertEvent>,
    /// What people did.
    pub deeds: Vec<Deed>,
    /// Buckets for charts of the past.
    pub recorded: Vec<Recorded>,
}

/// What a commit tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Committed {
    /// The number of the journal row that holds the recorded buckets.
    pub journal: Option<i64>,
}

#[cfg(test)]
impl State {
    /// Makes a file of the second schema of this one, with one asset.
    pub(crate) fn back_to_schema_2(&self) {
        use crate::pipeline::asset::Asset;
        use crate::pipeline::learning::LearningSettings;

        let learning = LearningSettings { rows: 100, extend: false, params: millwright_models::Params::default() };
        let id = crate::ids::AssetId::parse("pump-1").unwrap();
        let assets = Asset::new(id, learning).take_dirty().into_iter().collect();
        self.commit(&Checkpoint { assets, ..Checkpoint::default() }).unwrap();
        let tables = ["alert", "alert_event", "alert_note", "silence", "action", "recorded"];
        let drop: String = tables.map(|table| format!("DROP TABLE {table};")).concat();
        let connection = self.lock();
        connection.execute_batch(&format!("{drop} ALTER TABLE asset DROP COLUMN more;")).unwrap();
        connection.pragma_update(None, "user_version", 2).unwrap();
    }
}

impl State {
    /// Opens `state.db` in `dir`; a corrupt one is set aside, never deleted, and a new one begun.
    ///
    /// # Errors
    /// The folder is not writable, or the file is of a newer version.
    pub fn open(dir: &Path) -> Result<OpenedState, StateError> {
        std::fs::create_dir_all(dir).map_err(|error| StateError::Directory { path: dir.to_owned(), error })?;
        let path = dir.join("state.db");
        match open_checked(&path) {
            Ok(connection) => Ok(OpenedState { state: State::new(connection, &path)?, set_aside: None }),
            Err(StateError::Sqlite(error)) if is_corrupt(&error) => {
                let aside = set_aside(&path).map_err(|error| StateError::Directory { path: dir.to_owned(), error })?;
                let connection = open_checked(&path)?;
                Ok(OpenedState { state: State::new(connection, &path)?, set_aside: Some(aside) })
            }
            Err(StateError::Sqlite(error)) if is_denied(&error) => {
                let denied = std::io::Error::new(std::io::ErrorKind::PermissionDenied, error.to_string());
                Err(StateError::Directory { path: dir.to_owned(), error: denied })
            }
            Err(error) => Err(error),
        }
    }

    fn new(connection: Connection, path: &Path) -> Result<State, StateError> {
        let reader = Connection::open(path)?;
        reader.pragma_update(None, "query_only", true)?;
        reader.busy_timeout(BUSY)?;
        Ok(State { connection: Mutex::new(connection), reader: Mutex::new(reader) })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held has rolled its transaction back: the connection is sound.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads everything back.
    ///
    /// # Errors
    /// SQLite fails. An asset that cannot be decoded is left out: it learns anew.
    pub fn load(&self) -> Result<Saved, StateError> {
        let connection = self.lock();
        let log_id: Option<Vec<u8>> = meta(&connection, "log_id")?;
        let number = |key| -> Result<u64, StateError> {
            let value: Option<i64> = meta(&connection, key)?;
            Ok(value.map_or(0, i64::cast_unsigned))
        };
        Ok(Saved {
            log_id: log_id.and_then(|id| id.try_into().ok()),
            cursor: number("cursor")?,
            next_event: number("next_event")?,
            sources: meta(&connection, "sources")?,
            assets: load_assets(&connection)?,
            models: load_models(&connection)?,
        })
    }

    /// Writes a checkpoint in one transaction.
    ///
    /// # Errors
    /// SQLite fails; nothing of it is stored then.
    pub fn commit(&self, checkpoint: &Checkpoint) -> Result<Committed, StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        set_meta(&transaction, "log_id", checkpoint.log_id.as_slice())?;
        set_meta(&transaction, "cursor", checkpoint.cursor.cast_signed())?;
        set_meta(&transaction, "next_event", checkpoint.next_event.cast_signed())?;
        if let Some(sources) = &checkpoint.sources {
            set_meta(&transaction, "sources", sources)?;
        }
        for changed in &checkpoint.assets {
            store_asset(&transaction, changed)?;
        }
        for model in &checkpoint.models {
            store_model(&transaction, model)?;
        }
        for sha256 in &checkpoint.withdrawn {
            forget_model(&transaction, sha256)?;
        }
        for row in &checkpoint.versions {
            versions::store(&transaction, row)?;
        }
        outbox::store(&transaction, checkpoint)?;
        let now_us = clock::utc_us();
        for event in &checkpoint.events {
            cases::store_event(&transaction, event, now_us)?;
        }
        for deed in &checkpoint.deeds {
            cases::store_deed(&transaction, deed)?;
        }
        let journal = recorded::store(&transaction, &checkpoint.recorded)?;
        transaction.commit()?;
        Ok(Committed { journal })
    }

    /// Stores a pushed model and what became of its versions, before it is installed.
    ///
    /// # Errors
    /// SQLite fails; nothing of it is stored then.
    pub fn store_pushed(&self, model: &ModelRow, rows: &[VersionRow]) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        store_model(&transaction, model)?;
        for row in rows {
            versions::store(&transaction, row)?;
        }
        Ok(transaction.commit()?)
    }

    /// Forgets models.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn forget_models(&self, sha256: &[String]) -> Result<(), StateError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for sha256 in sha256 {
            forget_model(&transaction, sha256)?;
        }
        Ok(transaction.commit()?)
    }
}

fn open_checked(path: &Path) -> Result<Connection, StateError> {
    let connection = Connection::open(path)?;
    // Until it is known to be sound nothing is written: closing must not copy the write-ahead log into a damaged database.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.busy_timeout(BUSY)?;
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > SCHEMA_VERSION {
        return Err(StateError::Newer { path: path.to_owned(), found });
    }
    // The file is a few megabytes: checking it whole is quick and finds what a crash of the disk left behind.
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(StateError::Sqlite(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
            Some(verdict),
        )));
    }
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch(SCHEMA)?;
    outbox::create(&connection)?;
    versions::create(&connection, found)?;
    cases::create(&connection)?;
    recorded::create(&connection)?;
    if !has_column(&connection, "asset", "more")? {
        connection.execute_batch("ALTER TABLE asset ADD COLUMN more BLOB")?;
    }
    connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    Ok(connection)
}

fn has_column(connection: &Connection, table: &str, column: &str) -> Result<bool, rusqlite::Error> {
    let sql = "SELECT count(*) FROM pragma_table_info(?1) WHERE name = ?2";
    connection.query_row(sql, [table, column], |row| Ok(row.get::<_, i64>(0)? > 0))
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

fn is_denied(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, PermissionDenied, ReadOnly};
    matches!(error.sqlite_error_code(), Some(CannotOpen | PermissionDenied | ReadOnly))
}

/// Renames the database and what belongs to it; the gateway never deletes what it cannot read.
fn set_aside(path: &Path) -> std::io::Result<PathBuf> {
    let aside = path.with_file_name(format!("state.db.corrupt-{}", clock::utc_us()));
    for suffix in ["", "-wal", "-shm"] {
        let from = PathBuf::from(format!("{}{suffix}", path.display()));
        if from.exists() {
            std::fs::rename(&from, format!("{}{suffix}", aside.display()))?;
        }
    }
    Ok(aside)
}

fn meta<T: rusqlite::types::FromSql>(connection: &Connection, key: &str) -> Result<Option<T>, rusqlite::Error> {
    connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
}

fn set_meta(transaction: &Transaction<'_>, key: &str, value: impl rusqlite::ToSql) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached("INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2")?
        .execute(params![key, value])?;
    Ok(())
}

fn load_assets(connection: &Connection) -> Result<Vec<AssetRow>, StateError> {
    let mut statement = connection.prepare(
        "SELECT id, saved, predecessor.sha256, more FROM asset LEFT JOIN predecessor ON predecessor.asset = asset.id ORDER BY id",
    )?;
    let rows = statement.query_map([], |row| {
        let more = row.get::<_, Option<Vec<u8>>>(3)?;
        Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, Option<String>>(2)?, more))
    })?;
    let mut assets = Vec::new();
    for row in rows {
        let (id, saved, previous, more) = row?;
        // Without it the asset goes on; a chart has a gap of ten seconds.
        let more = more.and_then(|more| postcard::from_bytes(&more).ok());
        let previous = previous.map(|sha256| ModelKey { sha256 });
        match postcard::from_bytes(&saved) {
            Ok(saved) => {
                assets.push(AssetRow { rows: load_learning_rows(connection, &id)?, id, saved, more, previous });
            }
            Err(error) => tracing::error!(asset = id, %error, "its saved state cannot be read: it learns anew"),
        }
    }
    Ok(assets)
}

fn load_learning_rows(connection: &Connection, asset: &str) -> Result<Rows, StateError> {
    let mut statement = connection.prepare_cached("SELECT rows FROM learning_rows WHERE asset = ?1 ORDER BY first")?;
    let chunks = statement.query_map([asset], |row| row.get::<_, Vec<u8>>(0))?;
    let mut rows = Rows::default();
    for chunk in chunks {
        rows.append(&postcard::from_bytes(&chunk?).unwrap_or_default());
    }
    Ok(rows)
}

fn load_models(connection: &Connection) -> Result<Vec<ModelRow>, StateError> {
    let mut statement =
        connection.prepare("SELECT sha256, name, version, origin, assets FROM model ORDER BY installed_us")?;
    let rows = statement.query_map([], |row| {
        let origin: String = row.get(3)?;
        let assets: String = row.get(4)?;
        Ok(ModelRow {
            sha256: row.get(0)?,
            name: row.get(1)?,
            version: row.get::<_, i64>(2)?.cast_unsigned(),
            origin: if origin == "pushed" { Origin::Pushed } else { Origin::Commissioned },
            assets: assets.split('\n').map(str::to_owned).collect(),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn store_asset(transaction: &Transaction<'_>, changed: &Changed) -> Result<(), StateError> {
    let encode = |error| StateError::Encode { what: "an asset", error };
    let saved = postcard::to_stdvec(&changed.saved).map_err(encode)?;
    let more = postcard::to_stdvec(&changed.more).map_err(encode)?;
    let id = changed.id.as_str();
    transaction
        .prepare_cached(
            "INSERT INTO asset (id, saved, more) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET saved = ?2, more = ?3",
        )?
        .execute(params![id, saved, more])?;
    match &changed.previous {
        Some(key) => transaction
            .prepare_cached(
                "INSERT INTO predecessor (asset, sha256) VALUES (?1, ?2) ON CONFLICT (asset) DO UPDATE SET sha256 = ?2",
            )?
            .execute(params![id, key.sha256])?,
        None => transaction.prepare_cached("DELETE FROM predecessor WHERE asset = ?1")?.execute([id])?,
    };
    let (first, rows) = &changed.new_rows;
    if *first == 0 {
        // Learning is over, or began anew.
        transaction.prepare_cached("DELETE FROM learning_rows WHERE asset = ?1")?.execute([id])?;
    }
    if !rows.is_empty() {
        let rows = postcard::to_stdvec(rows).map_err(encode)?;
        transaction
            .prepare_cached("INSERT INTO learning_rows (asset, first, rows) VALUES (?1, ?2, ?3)")?
            .execute(params![id, *first as i64, rows])?;
    }
    Ok(())
}

fn forget_model(transaction: &Transaction<'_>, sha256: &str) -> Result<(), rusqlite::Error> {
    transaction.prepare_cached("DELETE FROM model WHERE sha256 = ?1")?.execute([sha256])?;
    Ok(())
}

fn store_model(transaction: &Transaction<'_>, model: &ModelRow) -> Result<(), StateError> {
    let origin = match model.origin {
        Origin::Commissioned => "commissioned",
        Origin::Pushed => "pushed",
    };
    transaction
        .prepare_cached(
            "INSERT INTO model (sha256, name, version, origin, assets, installed_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (sha256) DO UPDATE SET name = ?2, version = ?3, origin = ?4, assets = ?5, installed_us = ?6",
        )?
        .execute(params![
            model.sha256,
            model.name,
            model.version.cast_signed(),
            origin,
            model.assets.join("\n"),
            clock::utc_us()
        ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(cursor: u64, outbox: &[&str]) -> Checkpoint {
        let outbox = outbox.iter().map(|topic| ((*topic).to_owned(), b"x".to_vec(), true)).collect();
        Checkpoint { log_id: [7; 16], cursor, next_event: cursor * 2, outbox, ..Checkpoint::default() }
    }

    // What one checkpoint stored is there after reopening, and messages leave the outbox one by one in order.
    #[test]
    fn a_checkpoint_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        State::open(dir.path()).unwrap().state.commit(&checkpoint(5, &["a", "b"])).unwrap();
        let state = State::open(dir.path()).unwrap().state;
        let saved = state.load().unwrap();
        assert_eq!((saved.log_id, saved.cursor, saved.next_event), (Some([7; 16]), 5, 10));
        let outbox = state.outbox().unwrap();
        assert_eq!(outbox.iter().map(|row| row.topic.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        state.published(outbox[0].number).unwrap();
        assert_eq!(state.outbox().unwrap()[0].topic, "b");
    }

    // A corrupt file is set aside whole and a new one begun.
    #[test]
    fn a_corrupt_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let garbage = vec![0x5a; 100_000];
        std::fs::write(dir.path().join("state.db"), &garbage).unwrap();
        let opened = State::open(dir.path()).unwrap();
        assert_eq!(std::fs::read(opened.set_aside.unwrap()).unwrap(), garbage);
        assert_eq!(opened.state.load().unwrap().cursor, 0);
    }

    // A file of a newer version is left alone.
    #[test]
    fn a_newer_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let opened = State::open(dir.path()).unwrap();
        opened.state.lock().pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
        drop(opened);
        assert!(matches!(State::open(dir.path()), Err(StateError::Newer { .. })));
    }
}

//! `history.db`: the tables of the historian.
//!
//! Owns the SQL. `asset` and `channel` give names their numbers, `chunk` holds the [chunks](super::chunk) by a key of asset, tier and time, so
//! that one asset's history lies together on the disk. WAL, `synchronous=FULL`: a chunk that was committed stays. The file never grows
//! beyond the quota and a tenth, whatever happens.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

use super::chunk::{CHANNELS_MAX, Chunk, Tier};
use crate::clock;

/// Assets in the file; more are refused. The pipeline has fewer at a time; names may change over the years.
pub(super) const ASSETS_MAX: i64 = 20_000;
const SCHEMA_VERSION: i64 = 1;
const PAGE_BYTES: u64 = 4_096;
/// How long one connection waits for another.
const BUSY: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS asset (no INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS channel (asset INTEGER NOT NULL, place INTEGER NOT NULL, name TEXT NOT NULL,
    PRIMARY KEY (asset, place)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chunk (key INTEGER PRIMARY KEY, data BLOB NOT NULL);
";

/// Why `history.db` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite failed.
    #[error("history.db: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A later version of the gateway wrote it.
    #[error(
        "history.db was written by a newer version (schema {0}, this one knows {SCHEMA_VERSION}): start the newer version, or move it away"
    )]
    Newer(i64),
    /// More than [`ASSETS_MAX`] assets.
    #[error("history.db has {ASSETS_MAX} assets, and that is the limit")]
    TooManyAssets,
}

impl StoreError {
    pub(super) fn is_corrupt(&self) -> bool {
        let StoreError::Sqlite(error) = self else { return false };
        matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
    }

    pub(super) fn is_full(&self) -> bool {
        let StoreError::Sqlite(error) = self else { return false };
        matches!(error.sqlite_error_code(), Some(ErrorCode::DiskFull))
    }
}

/// The number of an asset, and its channels by place.
#[derive(Debug, Clone, Default)]
pub(super) struct Named {
    pub(super) number: i64,
    pub(super) channels: Vec<String>,
}

impl Named {
    pub(super) fn place(&self, channel: &str) -> Option<usize> {
        self.channels.iter().position(|name| name == channel)
    }
}

/// The file, open for writing.
pub(super) struct Store {
    connection: Connection,
    names: HashMap<String, Named>,
}

pub(super) fn path_in(dir: &Path) -> PathBuf {
    dir.join("history.db")
}

pub(super) fn schema_of(dir: &Path) -> Result<(i64, i64), StoreError> {
    let reader = StoreReader::open(dir)?;
    let found = reader.connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok((found, SCHEMA_VERSION))
}

impl Store {
    pub(super) fn open(dir: &Path, quota_bytes: u64) -> Result<Store, StoreError> {
        let connection = Connection::open(path_in(dir))?;
        connection.busy_timeout(BUSY)?;
        let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found > SCHEMA_VERSION {
            return Err(StoreError::Newer(found));
        }
        connection.pragma_update(None, "page_size", PAGE_BYTES as i64)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "journal_size_limit", 1 << 20)?;
        let pages_max = quota_bytes.saturating_add(quota_bytes / 10) / PAGE_BYTES;
        connection.pragma_update(None, "max_page_count", i64::try_from(pages_max).unwrap_or(i64::MAX))?;
        connection.execute_batch(SCHEMA)?;
        connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        Ok(Store { connection, names: HashMap::new() })
    }

    /// Bytes that hold something; a file does not shrink, what is dropped is used again.
    pub(super) fn bytes(&self) -> Result<u64, StoreError> {
        let count = |name| -> Result<u64, rusqlite::Error> {
            self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
        };
        Ok(count("page_count")?.saturating_sub(count("freelist_count")?).saturating_mul(PAGE_BYTES))
    }

    pub(super) fn begin(&self) -> Result<(), StoreError> {
        Ok(self.connection.execute_batch("BEGIN IMMEDIATE")?)
    }

    pub(super) fn commit(&self) -> Result<(), StoreError> {
        Ok(self.connection.execute_batch("COMMIT")?)
    }

    pub(super) fn roll_back(&mut self) {
        // Names that were given in the transaction are gone with it.
        self.names.clear();
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    /// The number of an asset and the places of its channels, given to those that have none.
    pub(super) fn name(&mut self, asset: &str, channels: &[impl AsRef<str>]) -> Result<&Named, StoreError> {
        if self.names.len() >= ASSETS_MAX as usize {
            self.names.clear();
        }
        let known = self.names.remove(asset);
        let mut named = match known {
            Some(named) => named,
            None => match find(&self.connection, asset)? {
                Some(named) => named,
                None => self.add(asset)?,
            },
        };
        for channel in channels.iter().map(AsRef::as_ref) {
            if named.place(channel).is_none() && named.channels.len() < CHANNELS_MAX {
                self.connection
                    .prepare_cached("INSERT INTO channel (asset, place, name) VALUES (?1, ?2, ?3)")?
                    .execute(params![named.number, named.channels.len() as i64, channel])?;
                named.channels.push(channel.to_owned());
            }
        }
        Ok(self.names.entry(asset.to_owned()).or_insert(named))
    }

    fn add(&self, asset: &str) -> Result<Named, StoreError> {
        let assets: i64 = self.connection.query_row("SELECT count(*) FROM asset", [], |row| row.get(0))?;
        if assets >= ASSETS_MAX {
            return Err(StoreError::TooManyAssets);
        }
        self.connection.prepare_cached("INSERT INTO asset (id) VALUES (?1)")?.execute([asset])?;
        Ok(Named { number: self.connection.last_insert_rowid(), channels: Vec::new() })
    }

    /// A chunk as it is stored, or an empty one.
    pub(super) fn chunk(&self, tier: Tier, asset: i64, time_us: i64) -> Result<Chunk, StoreError> {
        load(&self.connection, tier, asset, time_us)
    }

    pub(super) fn put(&self, asset: i64, chunk: &Chunk) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO chunk (key, data) VALUES (?1, ?2)")?
            .execute(params![chunk.tier.key(asset, chunk.start_us), chunk.encode()])?;
        Ok(())
    }

    /// The numbers of assets from one on, at most `limit`.
    pub(super) fn assets_from(&self, from: i64, limit: usize) -> Result<Vec<i64>, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT no FROM asset WHERE no >= ?1 ORDER BY no LIMIT ?2")?;
        let rows = statement.query_map(params![from, limit as i64], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Where the oldest chunk of a tier begins.
    pub(super) fn oldest_us(&self, tier: Tier, asset: i64) -> Result<Option<i64>, StoreError> {
        oldest(&self.connection, tier, asset)
    }

    /// Drops the chunks of an asset that end before `before_us`, at most `limit`; returns how many.
    pub(super) fn drop_before(
        &self,
        tier: Tier,
        asset: i64,
        before_us: i64,
        limit: usize,
    ) -> Result<usize, StoreError> {
        let sql =
            "DELETE FROM chunk WHERE key IN (SELECT key FROM chunk WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3)";
        let bounds = params![tier.key(asset, 0), tier.key(asset, before_us), limit as i64];
        Ok(self.connection.prepare_cached(sql)?.execute(bounds)?)
    }

    /// Forgets an asset of which nothing is left.
    pub(super) fn forget_if_empty(&mut self, asset: i64) -> Result<(), StoreError> {
        let nothing = oldest(&self.connection, Tier::Fine, asset)?.is_none()
            && oldest(&self.connection, Tier::Coarse, asset)?.is_none();
        if nothing {
            self.connection.prepare_cached("DELETE FROM channel WHERE asset = ?1")?.execute([asset])?;
            self.connection.prepare_cached("DELETE FROM asset WHERE no = ?1")?.execute([asset])?;
            self.names.retain(|_, named| named.number != asset);
        }
        Ok(())
    }
}

fn find(connection: &Connection, asset: &str) -> Result<Option<Named>, StoreError> {
    let number: Option<i64> = connection
        .prepare_cached("SELECT no FROM asset WHERE id = ?1")?
        .query_row([asset], |row| row.get(0))
        .optional()?;
    let Some(number) = number else { return Ok(None) };
    let mut statement = connection.prepare_cached("SELECT name FROM channel WHERE asset = ?1 ORDER BY place")?;
    let channels = statement.query_map([number], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(Some(Named { number, channels }))
}

fn load(connection: &Connection, tier: Tier, asset: i64, time_us: i64) -> Result<Chunk, StoreError> {
    let start_us = tier.chunk_start_us(time_us);
    let mut statement = connection.prepare_cached("SELECT data FROM chunk WHERE key = ?1")?;
    let found: Option<Vec<u8>> = statement.query_row([tier.key(asset, time_us)], |row| row.get(0)).optional()?;
    // One that cannot be read is written anew: it would never be shown either.
    let chunk = found.and_then(|data| Chunk::decode(tier, start_us, &data).ok());
    Ok(chunk.unwrap_or_else(|| Chunk::new(tier, start_us)))
}

fn oldest(connection: &Connection, tier: Tier, asset: i64) -> Result<Option<i64>, StoreError> {
    let sql = "SELECT key FROM chunk WHERE key >= ?1 AND key <= ?2 ORDER BY key LIMIT 1";
    let bounds = [tier.key(asset, 0), tier.key(asset, i64::MAX)];
    let key: Option<i64> = connection.prepare_cached(sql)?.query_row(bounds, |row| row.get(0)).optional()?;
    Ok(key.map(|key| tier.start_us(key)))
}

/// The file, open for reading.
pub(super) struct StoreReader {
    connection: Connection,
}

impl StoreReader {
    pub(super) fn open(dir: &Path) -> Result<StoreReader, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path_in(dir), flags)?;
        connection.busy_timeout(BUSY)?;
        Ok(StoreReader { connection })
    }

    /// The same for a file that another process may have written.
    pub(super) fn open_checked(dir: &Path) -> Result<StoreReader, StoreError> {
        let reader = StoreReader::open(dir)?;
        let found: i64 = reader.connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found > SCHEMA_VERSION { Err(StoreError::Newer(found)) } else { Ok(reader) }
    }

    /// The names of all assets.
    pub(super) fn assets(&self) -> Result<Vec<String>, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT id FROM asset ORDER BY id LIMIT ?1")?;
        let rows = statement.query_map([ASSETS_MAX], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub(super) fn find(&self, asset: &str) -> Result<Option<Named>, StoreError> {
        find(&self.connection, asset)
    }

    pub(super) fn oldest_us(&self, tier: Tier, asset: i64) -> Result<Option<i64>, StoreError> {
        oldest(&self.connection, tier, asset)
    }

    pub(super) fn chunk(&self, tier: Tier, asset: i64, time_us: i64) -> Result<Chunk, StoreError> {
        load(&self.connection, tier, asset, time_us)
    }

    /// Shows the chunks of an asset that hold something of `[from_us, to_us)`, oldest first, at most `limit`. Returns where to go on, if
    /// there may be more.
    pub(super) fn each_chunk(
        &self,
        tier: Tier,
        asset: i64,
        (from_us, to_us): (i64, i64),
        limit: usize,
        show: &mut dyn FnMut(Chunk),
    ) -> Result<Option<i64>, StoreError> {
        let sql = "SELECT key, data FROM chunk WHERE key >= ?1 AND key <= ?2 ORDER BY key LIMIT ?3";
        let mut statement = self.connection.prepare_cached(sql)?;
        let last_us = to_us.saturating_sub(1);
        let mut rows = statement.query(params![tier.key(asset, from_us), tier.key(asset, last_us), limit as i64])?;
        let (mut read, mut end_us) = (0, None);
        while let Some(row) = rows.next()? {
            let start_us = tier.start_us(row.get(0)?);
            (read, end_us) = (read + 1, Some(start_us.saturating_add(tier.chunk_us())));
            let data = row.get_ref(1)?.as_blob().unwrap_or_default();
            if let Ok(chunk) = Chunk::decode(tier, start_us, data) {
                show(chunk);
            }
        }
        Ok(end_us.filter(|_| read >= limit))
    }
}

/// Renames a file that cannot be read, and what belongs to it: it is never deleted.
pub(super) fn set_aside(dir: &Path) -> std::io::Result<PathBuf> {
    let path = path_in(dir);
    let aside = dir.join(format!("history.db.corrupt-{}", clock::utc_us()));
    for suffix in ["", "-wal", "-shm"] {
        let from = PathBuf::from(format!("{}{suffix}", path.display()));
        if from.exists() {
            std::fs::rename(&from, format!("{}{suffix}", aside.display()))?;
        }
    }
    Ok(aside)
}

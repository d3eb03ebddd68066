//! Checks a backup and lays it out beside the data, ready to be taken.
//!
//! Owns everything that may refuse a backup: all of it is read and compared before anything counts. What passes stands in
//! `restore/` of the data directory, where the gateway's user may write whatever the system around it is like: as `restore.part` until it is
//! whole and on disk. There, too, it is made to go on under an identity of its own: what the gateway did after the backup was made, it
//! told others, under numbers that must not be given again. Never touches the data.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use millwright_broker::log;

use super::archive::ArchiveReader;
use super::manifest::{CONFIG, MODELS, Manifest};
use super::swap::{STAGED, Staged};
use super::{BackupError, Progress, sync_dir};
use crate::clock;
use crate::conditions::measure;
use crate::config::Config;
use crate::historian::stored as history;
use crate::state::copy as state;

/// Where a backup is unpacked.
const PART: &str = "restore.part";

/// Bytes left free for what the gateway writes at its start.
const ROOM_BYTES: u64 = 64 * 1024 * 1024;

/// What was laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laid {
    /// What the backup says about itself.
    pub manifest: Manifest,
    /// Whether the configuration in it is another than the one that is used now.
    pub other_config: bool,
}

/// Checks the backup `from` and lays it out in the data directory of `config`, which was read from `config_path`; a backup of another gateway
/// only with `force`.
///
/// # Errors
/// Each says what to do; nothing was changed then.
pub fn lay_out(
    config: &Config,
    config_path: &Path,
    from: &Path,
    force: bool,
    tell: Progress<'_>,
) -> Result<Laid, BackupError> {
    let dir = &config.gateway.data_dir;
    let staged = dir.join(STAGED);
    if staged.exists() {
        return Err(BackupError::Waiting { path: staged });
    }
    let mut archive = ArchiveReader::open(from)?;
    let manifest = archive.manifest.clone();
    if manifest.gateway != config.gateway.id.as_str() && !force {
        let expected = config.gateway.id.to_string();
        return Err(BackupError::OtherGateway { found: manifest.gateway, expected });
    }
    make_dir(dir).map_err(|error| BackupError::write(dir, error))?;
    check_room(dir, &manifest)?;
    let part = dir.join(PART);
    let laid = unpack(&mut archive, &part, config_path, tell).and_then(|other_config| {
        check_schemas(&part)?;
        go_on(&part)?;
        complete(&part, &staged, &manifest)?;
        Ok(Laid { manifest, other_config })
    });
    if laid.is_err() {
        // It may never have been made.
        let _ = fs::remove_dir_all(&part);
    }
    laid
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn check_room(dir: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    let Some(disk) = measure::disk(dir) else { return Ok(()) };
    let (free, needed) = (disk.max.saturating_sub(disk.used), manifest.bytes().saturating_add(ROOM_BYTES));
    if free >= needed { Ok(()) } else { Err(BackupError::NoRoom { dir: dir.to_owned(), free, needed }) }
}

/// Unpacks all parts but the configuration, of which it tells whether it is another now.
fn unpack(
    archive: &mut ArchiveReader,
    part_dir: &Path,
    config_path: &Path,
    tell: Progress<'_>,
) -> Result<bool, BackupError> {
    match fs::remove_dir_all(part_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(BackupError::write(part_dir, error)),
        _ => {}
    }
    make_dir(&part_dir.join(MODELS)).map_err(|error| BackupError::write(part_dir, error))?;
    let (all, mut done) = (archive.manifest.bytes().max(1) as f64, 0.0);
    let mut told = |bytes: u64| {
        done += bytes as f64;
        tell(done / all);
    };
    let mut other_config = false;
    for part in archive.manifest.parts.clone() {
        if part.name == CONFIG {
            let mut text = Vec::new();
            archive.read_part(&part, &mut text, &mut told)?;
            other_config = fs::read(config_path).is_ok_and(|now| now != text);
            continue;
        }
        let path = part_dir.join(&part.name);
        let failed = |error| BackupError::write(&path, error);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        let mut out = BufWriter::new(file);
        archive.read_part(&part, &mut out, &mut told)?;
        out.flush().and_then(|()| out.get_ref().sync_all()).map_err(failed)?;
    }
    Ok(other_config)
}

/// Tables that only a later version can read are refused while nothing has happened.
fn check_schemas(dir: &Path) -> Result<(), BackupError> {
    let check = |what: &str, (found, known): (i64, i64)| match found > known {
        true => Err(BackupError::Newer { what: what.to_owned(), found, known }),
        false => Ok(()),
    };
    check("log.db", log::schema_of(dir)?)?;
    if state::path_in(dir).is_file() {
        check("state.db", (state::facts(dir)?.schema, state::schema_known()))?;
    }
    if history::path_in(dir).is_file() {
        check("history.db", history::schema_of(dir)?)?;
    }
    Ok(())
}

/// Gives the log an identity of its own, and tells it to the state.
fn go_on(dir: &Path) -> Result<(), BackupError> {
    let (before, after) = log::continue_copy(dir)?;
    if state::path_in(dir).is_file() {
        state::continue_copy(dir, (before.0, after.0))?;
    }
    Ok(())
}

/// Makes it durable, and lets it count.
fn complete(part: &Path, staged: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    let finish = || -> io::Result<()> {
        let dir = part.parent().unwrap_or(part);
        Staged { manifest: manifest.clone(), aside: aside_name(dir) }.write(part)?;
        own(part, dir)?;
        sync_dir(&part.join(MODELS))?;
        sync_dir(part)?;
        fs::rename(part, staged)?;
        sync_dir(staged.parent().unwrap_or(staged))
    };
    finish().map_err(|error| BackupError::write(staged, error))
}

/// `before-restore-20250131T235959Z`, which is not there yet: names in a folder sort by time.
fn aside_name(dir: &Path) -> String {
    let time = clock::rfc3339(clock::utc_us()).replace(['-', ':'], "");
    let mut name = format!("before-restore-{time}");
    while dir.join(&name).exists() {
        name.push('a');
    }
    name
}

/// The same for the lock, which the superuser may have been the first to make.
///
/// # Errors
/// What the system says.
pub fn own_lock(dir: &Path) -> Result<(), BackupError> {
    let path = dir.join("log.lock");
    own(&path, dir).map_err(|error| BackupError::write(&path, error))
}

/// Gives what the superuser has unpacked to the owner of the data directory, who runs the gateway.
fn own(path: &Path, as_in: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(as_in)?;
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            let entries: Vec<PathBuf> =
                fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
            waiting.extend(entries);
        }
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

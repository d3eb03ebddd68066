//! Puts a backup that was laid out in the place of the data.
//!
//! Owns the moves, each a rename within the data directory, and their order: an item of the data goes into the folder that is kept, then
//! the item of the backup takes its place. While `restore/restore.json` is there, no gateway starts before [`take`] has ended, and where it
//! stopped can be told from which items are left in `restore/`: a crash or a power cut at any moment leaves the data, or the whole backup after
//! the next start. Never deletes data.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use millwright_broker::log::DirLock;
use serde::{Deserialize, Serialize};

use super::manifest::{DATABASES, MANIFEST_BYTES_MAX, MODELS, Manifest};
use super::{BackupError, sync_dir};
use crate::state::copy as state;

/// The folder of a backup that waits to be taken.
pub const STAGED: &str = "restore";
/// What tells that it is whole.
const NOTE: &str = "restore.json";

/// What stands in [`NOTE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Staged {
    pub(super) manifest: Manifest,
    /// The folder for the data that were there before.
    pub(super) aside: String,
}

impl Staged {
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let mut file = File::create_new(dir.join(NOTE))?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()
    }

    fn read(dir: &Path) -> io::Result<Option<Staged>> {
        let path = dir.join(NOTE);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(found) if found.len() > 2 * MANIFEST_BYTES_MAX => return Err(io::ErrorKind::FileTooLarge.into()),
            Ok(_) => {}
        }
        Ok(Some(serde_json::from_slice(&fs::read(&path)?)?))
    }
}

/// What was put in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// What the backup says about itself.
    pub manifest: Manifest,
    /// Where the data are that were there before; `None` if there were none.
    pub aside: Option<PathBuf>,
}

/// Whether a backup waits in a data directory.
pub fn is_waiting(dir: &Path) -> bool {
    dir.join(STAGED).exists()
}

/// Takes the backup that waits in the data directory `dir`, which no gateway uses; `None` if none does.
///
/// # Errors
/// Something cannot be moved. Calling it again goes on where it stopped.
pub fn take(dir: &Path, lock: &DirLock) -> Result<Option<Taken>, BackupError> {
    take_stepwise(dir, lock, &mut || Ok(()))
}

/// The same, asking before each move whether to go on.
pub(super) fn take_stepwise(
    dir: &Path,
    _lock: &DirLock,
    step: &mut dyn FnMut() -> io::Result<()>,
) -> Result<Option<Taken>, BackupError> {
    let staged_dir = dir.join(STAGED);
    if !staged_dir.exists() {
        return Ok(None);
    }
    let failed = |error| BackupError::write(&staged_dir, error);
    let Some(staged) = Staged::read(&staged_dir).map_err(failed)? else {
        // All was taken but for the empty folder.
        fs::remove_dir(&staged_dir).map_err(failed)?;
        return Ok(None);
    };
    go_on_numbering(dir, &staged_dir)?;
    let moves = Moves { dir, staged_dir: &staged_dir, aside: dir.join(&staged.aside) };
    let aside = moves.run(&staged.manifest, step).map_err(failed)?;
    Ok(Some(Taken { manifest: staged.manifest, aside }))
}

/// The gateway may have gone on since the backup was laid out, and given numbers to events.
fn go_on_numbering(dir: &Path, staged_dir: &Path) -> Result<(), BackupError> {
    // Both are in their old places, or the state has been moved and this was done.
    if state::path_in(staged_dir).is_file() && state::path_in(dir).is_file() {
        match state::facts(dir) {
            Ok(facts) => state::number_events_from(staged_dir, facts.next_event)?,
            // Data that cannot be read any more are what backups are for.
            Err(error) => {
                tracing::warn!(%error, "the state before cannot be read: events are numbered from the backup's on")
            }
        }
    }
    Ok(())
}

struct Moves<'m> {
    dir: &'m Path,
    staged_dir: &'m Path,
    aside: PathBuf,
}

impl Moves<'_> {
    fn run(&self, manifest: &Manifest, step: &mut dyn FnMut() -> io::Result<()>) -> io::Result<Option<PathBuf>> {
        step()?;
        match DirBuilder::new().mode(0o700).create(&self.aside) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => self.like_dir()?,
        }
        sync_dir(self.dir)?;
        for name in DATABASES {
            // What SQLite keeps beside a database first: alone it would be taken for the new one's.
            let companions = ["-wal", "-shm", "-journal", ""].map(|suffix| format!("{name}{suffix}"));
            self.exchange(name, &companions, manifest.has(name), step)?;
        }
        self.exchange(MODELS, &[MODELS.to_owned()], true, step)?;
        step()?;
        // Nothing was there before: nothing is kept.
        let aside = if fs::remove_dir(&self.aside).is_ok() { None } else { Some(self.aside.clone()) };
        fs::remove_file(self.staged_dir.join(NOTE))?;
        step()?;
        fs::remove_dir(self.staged_dir)?;
        sync_dir(self.dir)?;
        Ok(aside)
    }

    /// Moves what is there of an item aside, and the item of the backup in its place, if it has one.
    fn exchange(
        &self,
        name: &str,
        companions: &[String],
        in_backup: bool,
        step: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let fresh = self.staged_dir.join(name);
        // What is in place is the backup's then.
        if in_backup && !fresh.exists() {
            return Ok(());
        }
        for companion in companions {
            let old = self.dir.join(companion);
            if old.exists() {
                step()?;
                fs::rename(&old, self.aside.join(companion))?;
            }
        }
        // A file system may make a later rename durable before an earlier one.
        sync_dir(&self.aside)?;
        sync_dir(self.dir)?;
        if in_backup {
            step()?;
            fs::rename(&fresh, self.dir.join(name))?;
            sync_dir(self.staged_dir)?;
            sync_dir(self.dir)?;
        }
        Ok(())
    }

    /// Whoever owns the data owns what is kept of them.
    fn like_dir(&self) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        if rustix::process::geteuid().is_root() {
            let owner = fs::metadata(self.dir)?;
            std::os::unix::fs::chown(&self.aside, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(())
    }
}

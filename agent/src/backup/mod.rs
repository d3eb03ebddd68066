//! Backups: a data directory in one file, made while the gateway runs, and put back.
//!
//! A backup is a tar archive: one file is what an operator copies and keeps, and every system can look into it. In it are the
//! configuration, the three databases, the models, and at the end a manifest with the SHA-256 of each. What the configuration refers to
//! (keys, certificates, password files) is not. Owns the order of copying ([`make`]), the check before anything is put back ([`stage`]), and
//! the swap that a crash cannot leave half done ([`swap`]). Never deletes data that it did not make.

mod archive;
pub mod make;
pub mod manifest;
pub mod stage;
pub mod swap;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use millwright_broker::log::{CopyError, OpenError, ReadError};

use crate::historian::StoreError;
use crate::state::StateError;
use crate::state::copy::PinError;

/// Told what is being done, and how much of all is done, from 0 to 1.
pub type Progress<'p> = &'p mut dyn FnMut(f64);

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {error}{}", path.display(), remedy(error))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A copy that was made does not pass its check.
    #[error("the copy of {what} is not sound: {finding}; check the disks, and the log of the gateway")]
    Unsound {
        /// Which.
        what: &'static str,
        /// What is wrong.
        finding: String,
    },
    /// The log dropped messages that the copied state had not folded.
    #[error(
        "the log dropped messages that were not folded yet while they were copied, {attempts} times: it is full and behind. \
         Raise `quota_mb` in [log], or run the backup when less comes in"
    )]
    Overtaken {
        /// How often it was tried.
        attempts: u32,
    },
    /// A model that the state needs is not there.
    #[error("the model {sha256} is missing in {}: the gateway's log says why", dir.display())]
    ModelMissing {
        /// Its digest.
        sha256: String,
        /// Where it should be.
        dir: PathBuf,
    },
    /// A backup that is not what was made.
    #[error("{} is no sound backup: {what}; nothing was changed. Take another copy of it", path.display())]
    Damaged {
        /// The backup.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Made by a later version of the program.
    #[error(
        "{what} was made by a newer version (schema {found}, this one knows {known}): install that version; nothing was changed"
    )]
    Newer {
        /// What.
        what: String,
        /// Its schema.
        found: i64,
        /// The one that this program knows.
        known: i64,
    },
    /// A backup of another gateway.
    #[error(
        "the backup is of gateway `{found}`, the configuration is of `{expected}`: give the right one, or --force to make this gateway go on as that one did"
    )]
    OtherGateway {
        /// Whose it is.
        found: String,
        /// Whose data directory it is.
        expected: String,
    },
    /// The disk is too small.
    #[error("{} has {free} bytes free and the backup needs {needed}: make room; nothing was changed", dir.display())]
    NoRoom {
        /// The data directory.
        dir: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are needed.
        needed: u64,
    },
    /// A restore waits for the gateway's start.
    #[error("a backup waits in {} for the gateway to take it: start the gateway (anew) first", path.display())]
    Waiting {
        /// Where.
        path: PathBuf,
    },
    /// The log.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// `state.db` or `history.db`, when it is copied.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The log, when it is checked.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// `state.db`.
    #[error(transparent)]
    State(#[from] StateError),
    /// `history.db`.
    #[error(transparent)]
    History(#[from] StoreError),
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] OpenError),
}

impl BackupError {
    fn read(path: &Path, error: io::Error) -> BackupError {
        BackupError::Read { path: path.to_owned(), error }
    }

    fn write(path: &Path, error: io::Error) -> BackupError {
        BackupError::Write { path: path.to_owned(), error }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": there is no room; make some, or write to another disk"
        }
        io::ErrorKind::NotFound => ": make its folder first",
        io::ErrorKind::PermissionDenied => ": this user may not; run it as the gateway's user, or as root",
        _ => "",
    }
}

/// Makes names in a folder durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

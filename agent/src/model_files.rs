//! Model files on disk: `models/<sha256>.onnx`.
//!
//! Owns the folder. A file is complete or not there: it is written beside its place, synced and renamed. Never loads
//! a model.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Stores a model's bytes durably.
///
/// # Errors
/// The folder cannot be written.
pub fn store(dir: &Path, sha256: &str, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let path = path_of(dir, sha256);
    let partial = path.with_extension("partial");
    let mut file = std::fs::File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&partial, &path)?;
    // The rename itself is durable once the folder is.
    std::fs::File::open(dir)?.sync_all()
}

/// Reads a model's bytes.
///
/// # Errors
/// The file is missing or cannot be read.
pub fn load(dir: &Path, sha256: &str) -> std::io::Result<Vec<u8>> {
    std::fs::read(path_of(dir, sha256))
}

fn path_of(dir: &Path, sha256: &str) -> PathBuf {
    dir.join(format!("{sha256}.onnx"))
}

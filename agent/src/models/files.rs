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

/// Removes a model's file; one that is not there is removed already.
///
/// # Errors
/// It cannot be removed.
pub fn remove(dir: &Path, sha256: &str) -> std::io::Result<()> {
    match std::fs::remove_file(path_of(dir, sha256)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes every file that is not one of `kept`: models nobody uses any more, and what a crash left half written.
///
/// # Errors
/// The folder cannot be read, or a file not removed.
pub fn remove_others(dir: &Path, kept: &[&str]) -> std::io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let is_ours = path.extension().is_some_and(|extension| extension == "onnx" || extension == "partial");
        if is_ours && !kept.iter().any(|sha256| path == path_of(dir, sha256)) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn path_of(dir: &Path, sha256: &str) -> PathBuf {
    dir.join(format!("{sha256}.onnx"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // What is not kept goes, with the leftovers of a crash; other people's files stay.
    #[test]
    fn only_kept_models_stay() {
        let dir = tempfile::tempdir().unwrap();
        for sha256 in ["aa", "bb"] {
            store(dir.path(), sha256, sha256.as_bytes()).unwrap();
        }
        std::fs::write(dir.path().join("cc.partial"), "half").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
        remove_others(dir.path(), &["bb"]).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["bb.onnx", "notes.txt"]);
        assert_eq!(load(dir.path(), "bb").unwrap(), b"bb");
    }
}

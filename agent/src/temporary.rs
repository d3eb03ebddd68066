//! A folder for gateways that are started for a purpose and leave nothing behind.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// A folder of this process that is removed with everything in it.
#[derive(Debug)]
pub struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    /// Makes the folder; `purpose` is part of its name.
    ///
    /// # Errors
    /// The system's folder for temporary files is not writable.
    pub fn create(purpose: &str) -> anyhow::Result<TemporaryFolder> {
        let path = std::env::temp_dir().join(format!("millwright-{purpose}-{}", std::process::id()));
        // What an earlier process of this number left behind is not ours to read.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(TemporaryFolder(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a temporary folder could not be removed");
        }
    }
}

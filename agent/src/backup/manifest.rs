//! What a backup says about itself: `manifest.json`.
//!
//! Owns the names of the parts, and what a manifest must be like. Never opens a file.

use millwright_models::Digest;
use serde::{Deserialize, Serialize};

/// Its name in the backup.
pub const MANIFEST: &str = "manifest.json";
/// The configuration, as it was.
pub const CONFIG: &str = "gateway.toml";
/// The databases, in the order in which they are put in place.
pub const DATABASES: [&str; 3] = ["log.db", "state.db", "history.db"];
/// The folder of the models.
pub const MODELS: &str = "models";

/// The version of the form; a newer one is refused.
pub const FORMAT: u32 = 1;
/// The most bytes of a manifest: 4,096 parts at 200 bytes.
pub const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;
/// The most parts: the databases, the configuration and models; assets have at most two models each, shared by many.
pub const PARTS_MAX: usize = 4_096;

/// One part of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name: a file, or one in `models/`.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256, lower-case hex.
    pub sha256: String,
}

/// Versions of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schemas {
    /// Of `log.db`.
    pub log: i64,
    /// Of `state.db`, if it is there.
    pub state: Option<i64>,
    /// Of `history.db`, if it is there.
    pub history: Option<i64>,
}

/// What a backup says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of the program that made it.
    pub version: String,
    /// The gateway.
    pub gateway: String,
    /// When it was begun, UTC microseconds.
    pub made_us: i64,
    /// Versions of the tables.
    pub schemas: Schemas,
    /// The oldest message of the log.
    pub oldest: u64,
    /// Behind the newest message of the log.
    pub head: u64,
    /// The next message to fold, if there is a state.
    pub cursor: Option<u64>,
    /// Everything else that is in it.
    pub parts: Vec<Part>,
}

impl Manifest {
    /// Whether there is a part of this name.
    pub fn has(&self, name: &str) -> bool {
        self.parts.iter().any(|part| part.name == name)
    }

    /// Whether there is anything in a folder.
    pub fn has_models(&self) -> bool {
        self.parts.iter().any(|part| model_of(&part.name).is_some())
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).fold(0, u64::saturating_add)
    }
}

/// Whether a part may have this name: a restore makes files of these names and no others.
pub fn is_part(name: &str) -> bool {
    name == CONFIG || DATABASES.contains(&name) || model_of(name).is_some()
}

/// The digest in the name of a model's file.
pub fn model_of(name: &str) -> Option<Digest> {
    let file = name.strip_prefix(MODELS)?.strip_prefix('/')?.strip_suffix(".onnx")?;
    let is_lower = file.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if is_lower { file.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A part is the configuration, a database or a model named by its digest; nothing that leads elsewhere is.
    #[test]
    fn parts_have_known_names() {
        let model = format!("models/{}.onnx", "ab".repeat(32));
        for name in ["gateway.toml", "log.db", "state.db", "history.db", &model] {
            assert!(is_part(name), "{name}");
        }
        let upper = model.to_uppercase();
        let long = format!("models/{}/../x.onnx", "ab".repeat(30));
        for name in ["", "log.db-wal", "../log.db", "/log.db", "models/", "models/a.onnx", &upper, &long, MANIFEST] {
            assert!(!is_part(name), "{name}");
        }
    }
}

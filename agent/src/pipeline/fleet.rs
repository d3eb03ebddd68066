//! The models that are installed and the assets they are for.
//!
//! Owns the assignment rule: a pushed model whose asset patterns match beats the one the gateway learned itself, a
//! later push beats an earlier one. Never loads a model and never steps an asset. Holds at most [`FLEET_MODELS_MAX`]
//! pushed models.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millwright_models::ModelName;
use millwright_models::runtime::Model;
use serde::{Deserialize, Serialize};

use crate::ids::AssetId;

/// Pushed models installed at once.
pub const FLEET_MODELS_MAX: usize = 256;

/// Where a model came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Learned by this gateway.
    Commissioned,
    /// Pushed as retained messages.
    Pushed,
}

/// What names a model in saved state: the hash alone identifies the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModelKey {
    /// SHA-256 of the ONNX file, lower-case hex.
    pub sha256: String,
}

/// A model ready to score.
pub struct Installed {
    /// The model's name.
    pub name: ModelName,
    /// Its version.
    pub version: u64,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// Where it came from.
    pub origin: Origin,
    /// Patterns of the assets it is for: `*` stands for any text.
    pub assets: Vec<String>,
    /// The runnable model.
    pub model: Model,
    /// What became of the windows it was given.
    pub tally: Tally,
}

/// Windows that a model was given since it was loaded; read by whoever judges it.
#[derive(Debug, Default)]
pub struct Tally {
    scored: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    /// Counts one window.
    pub fn count(&self, scored: bool) {
        let counter = if scored { &self.scored } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Windows scored.
    pub fn scored(&self) -> u64 {
        self.scored.load(Ordering::Relaxed)
    }

    /// Windows that it gave no finite score for.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Installed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} v{} ({:.12})", self.name, self.version, self.sha256)
    }
}

impl Installed {
    /// What names it in saved state.
    pub fn key(&self) -> ModelKey {
        ModelKey { sha256: self.sha256.clone() }
    }

    /// Whether it is meant for an asset.
    pub fn is_for(&self, asset: &AssetId) -> bool {
        matches_any(&self.assets, asset)
    }
}

/// The pushed models, the newest first.
#[derive(Debug, Default)]
pub struct Fleet {
    models: Vec<Arc<Installed>>,
}

impl Fleet {
    /// Adds a model or replaces the one of the same name; false when there are too many.
    pub fn install(&mut self, model: Arc<Installed>) -> bool {
        self.models.retain(|installed| installed.name != model.name);
        if self.models.len() >= FLEET_MODELS_MAX {
            return false;
        }
        self.models.insert(0, model);
        true
    }

    /// The model of this file.
    pub fn find(&self, sha256: &str) -> Option<&Arc<Installed>> {
        self.models.iter().find(|model| model.sha256 == sha256)
    }

    /// Removes the model of this name.
    pub fn remove(&mut self, name: &ModelName) {
        self.models.retain(|installed| installed.name != *name);
    }

    /// The model for an asset.
    pub fn model_for(&self, asset: &AssetId) -> Option<&Arc<Installed>> {
        self.models.iter().find(|model| model.is_for(asset))
    }
}

/// Whether one of the patterns matches an asset.
pub fn matches_any(patterns: &[String], asset: &AssetId) -> bool {
    patterns.iter().any(|pattern| pattern_matches(pattern, asset.as_str()))
}

/// `*` stands for any text, everything else for itself. Linear in the text for each star.
fn pattern_matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    // A pattern matches as a shell's `*` does, and nothing else is special.
    #[test]
    fn patterns_match_assets() {
        for (pattern, text, expected) in [
            ("pump-1", "pump-1", true),
            ("pump-1", "pump-10", false),
            ("pump-*", "pump-10", true),
            ("*", "anything", true),
            ("*-1", "pump-1", true),
            ("*-1", "pump-12", false),
            ("p*p-*", "pump-1", true),
            ("p*x*1", "pump-1", false),
            ("", "pump", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(pattern_matches(pattern, text), expected, "{pattern} on {text}");
        }
    }
}

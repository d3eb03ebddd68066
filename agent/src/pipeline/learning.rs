//! An asset's first hours: the rows its normal is learned from.
//!
//! Owns the collected rows until there are enough, then turns them into a model by [`millwright_models::commission`].
//! What was added since the last checkpoint is handed out once, so that each row is written to disk once. Holds at
//! most [`LEARNING_ROWS_MAX`] rows of [`super::history::CHANNELS_MAX`] channels: 25 MB for the largest asset.

use millwright_models::commission::{CommissionError, Commissioned, VALUES_MAX, commission};
use millwright_models::{ModelName, Params};
use serde::{Deserialize, Serialize};

use super::history::History;
use super::rows::Rows;

/// The most rows a commissioning may collect: a day at 1 Hz, rounded up.
pub const LEARNING_ROWS_MAX: usize = 100_000;
/// A channel that is unknown in more than this share of the rows is left out of the model.
const UNKNOWN_SHARE_MAX: f64 = 0.2;
/// When the learned normal is not yet stable, this much of the asked rows is added before the next try.
const EXTENSION_SHARE: f64 = 0.5;
/// How often the rows may be extended before the gateway settles for what it has: with 0.5 each, three times the rows asked for.
const EXTENSIONS_MAX: u32 = 4;

/// The rows collected so far, each as wide as the asset had channels when it came.
#[derive(Debug, Clone)]
pub struct Learning {
    settings: LearningSettings,
    needed: usize,
    extensions: u32,
    rows: Rows,
    saved: usize,
    /// Of the model to be made.
    version: u64,
}

/// How commissioning is done.
#[derive(Debug, Clone, Copy)]
pub struct LearningSettings {
    /// Rows to learn from; with 0 nothing is learned or kept, and an asset waits for a pushed model.
    pub rows: usize,
    /// Whether to go on collecting while the learned normal is not stable on held-back rows.
    pub extend: bool,
    /// Parameters of the detector.
    pub params: Params,
}

/// What is saved of a commissioning besides its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLearning {
    needed: u64,
    extensions: u32,
    rows: u64,
}

/// What came of a step.
#[derive(Debug)]
pub enum Learned {
    /// More rows are needed.
    NotYet,
    /// Enough rows, but the normal is not stable yet: more will be collected.
    Extended,
    /// A model.
    Model(Box<Commissioned>),
    /// The rows cannot make a model; collection starts anew.
    Failed(CommissionError),
}

impl Learning {
    /// Starts with no rows.
    pub fn new(settings: LearningSettings) -> Learning {
        Learning::anew(settings, 1)
    }

    /// Starts with no rows, for another version of a model that was learned before.
    pub fn anew(settings: LearningSettings, version: u64) -> Learning {
        let needed = settings.rows.clamp(1, LEARNING_ROWS_MAX);
        Learning { settings, needed, extensions: 0, rows: Rows::default(), saved: 0, version }
    }

    /// The version of the model to be made.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Goes on from what was saved; `rows` come from [`Learning::take_unsaved`], in order.
    pub fn restore(settings: LearningSettings, saved: SavedLearning, version: u64, rows: Rows) -> Learning {
        let needed = usize::try_from(saved.needed).unwrap_or(LEARNING_ROWS_MAX).clamp(1, LEARNING_ROWS_MAX);
        let saved_rows = rows.len();
        Learning { settings, needed, extensions: saved.extensions, rows, saved: saved_rows, version }
    }

    /// What to save next to the rows.
    pub fn save(&self) -> SavedLearning {
        SavedLearning { needed: self.needed as u64, extensions: self.extensions, rows: self.rows.len() as u64 }
    }

    /// The rows that no checkpoint holds yet, and the index of the first.
    pub fn take_unsaved(&mut self) -> (usize, Rows) {
        let first = self.saved;
        self.saved = self.rows.len();
        (first, self.rows.since(first))
    }

    /// Rows collected and rows needed.
    pub fn progress(&self) -> (usize, usize) {
        (self.rows.len(), self.needed)
    }

    /// Adds the newest row of `history`; makes the model of `asset` when there are enough.
    pub fn push(&mut self, asset: &str, history: &History) -> Learned {
        if self.settings.rows == 0 {
            return Learned::NotYet;
        }
        if let Some(row) = history.newest(1).next() {
            self.rows.push(&row.values);
        }
        let rows_max = VALUES_MAX / history.channels().len().max(1);
        if self.rows.len() < self.needed.min(rows_max) {
            return Learned::NotYet;
        }
        let (channels, samples) = self.matrix(history);
        match commission(&model_name(asset), self.version, &channels, &samples, &self.settings.params) {
            Ok(commissioned) if self.may_extend() && !commissioned.report.stability.stable => {
                self.extend();
                Learned::Extended
            }
            Ok(commissioned) => Learned::Model(Box::new(commissioned)),
            Err(error) if self.may_extend() => {
                self.extend();
                tracing::warn!(asset, %error, "commissioning needs more rows");
                Learned::Extended
            }
            Err(error) => {
                *self = Learning::anew(self.settings, self.version);
                Learned::Failed(error)
            }
        }
    }

    fn may_extend(&self) -> bool {
        self.settings.extend && self.extensions < EXTENSIONS_MAX && self.needed < LEARNING_ROWS_MAX
    }

    fn extend(&mut self) {
        self.extensions += 1;
        let step = (self.settings.rows as f64 * EXTENSION_SHARE).ceil() as usize;
        self.needed = self.needed.saturating_add(step).min(LEARNING_ROWS_MAX);
    }

    /// The channels that are known often enough, and their values row-major.
    fn matrix(&self, history: &History) -> (Vec<String>, Vec<f32>) {
        let known = |index: usize| self.rows.iter().filter(|row| row.get(index).is_some_and(|v| v.is_finite())).count();
        let least = (self.rows.len() as f64 * (1.0 - UNKNOWN_SHARE_MAX)) as usize;
        let kept: Vec<usize> = (0..history.channels().len()).filter(|index| known(*index) >= least).collect();
        let names =
            kept.iter().filter_map(|index| history.channels().get(*index)).map(|c| c.name.to_string()).collect();
        let value = |row: &[f32], index: usize| row.get(index).copied().unwrap_or(f32::NAN);
        let samples = self.rows.iter().flat_map(|row| kept.iter().map(|index| value(row, *index))).collect();
        (names, samples)
    }
}

/// The name of an asset's learned model: the asset's, with what a model name may not hold replaced.
fn model_name(asset: &str) -> String {
    if ModelName::parse(asset).is_ok() {
        return asset.to_owned();
    }
    let plain = asset.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' });
    // One byte for each character, so it is no longer than the asset's name; the first must be a letter or digit.
    let name: String = plain.collect();
    format!("a{}", name.get(1..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Every asset name gives a valid model name, and one that is valid already is kept.
    #[test]
    fn every_asset_has_a_model_name() {
        assert_eq!(model_name("pump-1"), "pump-1");
        for asset in ["Presse Süd 1", "…", "-x", &"ü".repeat(32), " "] {
            let name = model_name(asset);
            assert!(ModelName::parse(&name).is_ok(), "{asset} gives {name}");
        }
    }
}

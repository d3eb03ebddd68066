//! What a model promises: the `millwright.*` metadata of its ONNX file.
//!
//! Owns the keys, their limits and what an error about them says. Never looks at the graph: whether the graph keeps the
//! promise is checked by `runtime`. Channel order is the contract's everywhere: in windows, contributions and evidence.
//!
//! | key | value | |
//! |---|---|---|
//! | `millwright.contract` | `1` | required |
//! | `millwright.name` | a [`ModelName`] | required |
//! | `millwright.version` | a positive integer; a newer model has a larger one | required |
//! | `millwright.channels` | JSON: `[{"name": "flow", "unit": "l/min", "normal": 32.0, "spread": 0.4}, …]`, all but the name optional | required |
//! | `millwright.samples` | samples per window | required |
//! | `millwright.interval_ms` | milliseconds between samples, fractions allowed | for spectral features |
//! | `millwright.input` | `window` (default) or `features` | |
//! | `millwright.features` | JSON: `["mean", "rms", "band:10-100", …]` | with `features` |
//! | `millwright.output` | `score` (default), `reconstruction`, `forecast`, `probability` or `regression` | |
//! | `millwright.scale` | JSON: standard deviation of each channel's residual, in its unit, positive: `[0.8, 0.05]` | with `reconstruction`, `forecast` |
//! | `millwright.threshold` | the alarm threshold: scaled residual, positive; or probability, at most 1 | with `reconstruction`, `forecast`; for `probability` 0.5 by default |
//! | `millwright.horizon` | rows forecast, 1 by default | for `forecast` |
//! | `millwright.classes` | JSON: `["ok", "bearing", "cavitation"]`, as the graph's columns | with `probability` |
//! | `millwright.normal_class` | the class of a healthy machine | with `probability` |
//! | `millwright.healthy` | the value of a healthy machine | with `regression` |
//! | `millwright.alarm_below` or `millwright.alarm_above` | the value at which the alarm is raised, one of the two | with `regression` |
//! | `millwright.unit` | the value's unit | for `regression` |
//! | `millwright.created`, `millwright.trained_from` | free text | |
//! | `millwright.rows` | rows it was trained on | |
//! | `millwright.golden` | JSON: `[{"window": […] or "row": […], "score": 0.1, "contribution": […]}, …]` | |
//!
//! # From output to score
//!
//! Whatever a graph gives becomes a *score*, 1.0 being the alarm threshold, and *contributions*, one per channel and not negative.
//! With window `x`, scale `s`, threshold `T` and `C` channels:
//!
//! | output | the graph gives | score | contribution |
//! |---|---|---|---|
//! | `score` | `score: f32[batch]` | as given | |
//! | `reconstruction` | `reconstruction: f32[batch, samples, channels]` | `√Σ contribution` | `mean(r²)/(C·T²)` over the samples, `r = (x − reconstruction)/s` |
//! | `forecast` | `forecast: f32[batch, horizon, channels]`, or `f32[batch, channels]` for one row | `√Σ contribution` | `mean(r²)/(C·T²)` over the last `horizon` rows, `r = (x − forecast)/s` |
//! | `probability` | `probability: f32[batch, classes]` | `(1 − p(normal_class))/T` | |
//! | `regression` | `value: f32[batch]` | `max(0, (healthy − value)/(healthy − alarm))` | |
//!
//! Where no contribution is given here, the graph may give `contribution: f32[batch, channels]`; if not, channels that have a `normal`
//! are explained by occlusion. Residuals are clipped to ±10⁶, as the commissioned detector's are, and `Σ contribution = score²` as
//! there. For a forecast the graph's input is `window: f32[batch, samples − horizon, channels]`; `millwright.samples` counts both. A
//! residual compares with the window, so `reconstruction` and `forecast` do not go with `features`.
//!
//! The likeliest class besides the normal one, or the value with its unit, is told with an alert.
//!
//! A golden vector's `score` is that of the table, and its `contribution` is compared where the graph or the table gives one. Its
//! `window` is row-major `[samples][channels]`; `row` stands for a window whose rows are all the same. Keys that are not listed are
//! tolerated; what changes the meaning of a listed one raises `millwright.contract`.

use std::collections::HashSet;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize, Serializer};

use crate::features::Feature;
use crate::onnx::{self, OnnxError};

/// The contract version this build reads and writes.
pub const CONTRACT_VERSION: u64 = 1;
/// Most channels of a model; a machine with more is several assets. At 256 the commissioned matrix is 256 KiB.
pub const CHANNELS_MAX: usize = 256;
/// Most samples of a window: 6.5 s of vibration at 10 kHz, 18 h at 1 Hz.
pub const SAMPLES_MAX: usize = 65_536;
/// Most numbers in a window (samples × channels): 4 MiB as `f32`.
pub const WINDOW_VALUES_MAX: usize = 1 << 20;
/// Most features per channel.
pub const FEATURES_MAX: usize = 64;
/// Most classes of a probability model.
pub const CLASSES_MAX: usize = 256;
/// Most golden vectors; each costs a run at load.
pub const GOLDEN_MAX: usize = 16;
/// Longest model name, in bytes; it is a topic level and a file name.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest channel name or unit, in bytes.
pub const LABEL_BYTES_MAX: usize = 128;
/// Longest value of one metadata key; parsed JSON takes up to about 30 times its text, so at most 32 MiB.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

mod metadata;
mod output;

use metadata::{GoldenJson, Metadata};
pub use output::{AlarmValue, Classes, Forecast, OutputKind, Regression, Residual};

const PREFIX: &str = "millwright.";
const KEY_CONTRACT: &str = "millwright.contract";
const KEY_NAME: &str = "millwright.name";
const KEY_VERSION: &str = "millwright.version";
const KEY_CHANNELS: &str = "millwright.channels";
const KEY_SAMPLES: &str = "millwright.samples";
const KEY_INTERVAL_MS: &str = "millwright.interval_ms";
const KEY_INPUT: &str = "millwright.input";
const KEY_FEATURES: &str = "millwright.features";
const KEY_OUTPUT: &str = "millwright.output";
const KEY_SCALE: &str = "millwright.scale";
const KEY_THRESHOLD: &str = "millwright.threshold";
const KEY_HORIZON: &str = "millwright.horizon";
const KEY_CLASSES: &str = "millwright.classes";
const KEY_NORMAL_CLASS: &str = "millwright.normal_class";
const KEY_HEALTHY: &str = "millwright.healthy";
const KEY_ALARM_BELOW: &str = "millwright.alarm_below";
const KEY_ALARM_ABOVE: &str = "millwright.alarm_above";
const KEY_UNIT: &str = "millwright.unit";
const KEY_CREATED: &str = "millwright.created";
const KEY_TRAINED_FROM: &str = "millwright.trained_from";
const KEY_ROWS: &str = "millwright.rows";
const KEY_GOLDEN: &str = "millwright.golden";

/// What is wrong with a model's metadata. The one to act is always whoever exported the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    /// The file is not ONNX.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// No `millwright.*` key at all.
    #[error(
        "the ONNX file carries no millwright metadata, so its channels are unknown: set at least millwright.contract, millwright.name, \
         millwright.version, millwright.channels and millwright.samples in its metadata_props and export it again"
    )]
    Absent,
    /// A required key is missing.
    #[error("the model's metadata lacks `{key}` ({expected}): add it and export the model again")]
    Missing {
        /// The key.
        key: &'static str,
        /// What it holds.
        expected: &'static str,
    },
    /// A key appears twice, so that which value holds is undefined.
    #[error("the model's metadata has `{key}` twice: keep one")]
    Duplicate {
        /// The key.
        key: String,
    },
    /// A value does not parse or is out of its limits.
    #[error(
        "the model's metadata has `{key}` = `{found}`, but it must be {expected}: correct it and export the model again"
    )]
    Invalid {
        /// The key.
        key: &'static str,
        /// What was found, shortened.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// The contract is newer than this build.
    #[error(
        "the model is written to contract {found}, this gateway reads up to {CONTRACT_VERSION}: update the gateway or export to contract {CONTRACT_VERSION}"
    )]
    TooNew {
        /// Its version.
        found: u64,
    },
}

/// A model's name: 1 to 64 of `A–Z a–z 0–9 . _ -`, beginning with a letter or digit, so that it is one topic level and one
/// file name on every system. Only [`ModelName::parse`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(Box<str>);

/// A text that is no model name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is no model name: use 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ - and begin with a letter or digit")]
pub struct NameError {
    /// What was given, shortened.
    pub found: String,
}

impl ModelName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError`] with the rule.
    pub fn parse(name: &str) -> Result<ModelName, NameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let begins = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if begins && name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed) {
            Ok(ModelName(name.into()))
        } else {
            Err(NameError { found: shorten(name) })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for ModelName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ModelName {
    type Error = NameError;

    fn try_from(name: String) -> Result<ModelName, NameError> {
        ModelName::parse(&name)
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> String {
        name.0.into()
    }
}

/// One channel of the window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Channel {
    /// Its name, unique within the model.
    pub name: String,
    /// The engineering unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The value expected of a healthy machine, in that unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normal: Option<f32>,
    /// The standard deviation of its values on a healthy machine, in that unit: charts draw the band that is expected from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<f32>,
}

/// What the graph takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InputKind {
    /// `window: f32[batch, samples, channels]`, in engineering units; for a forecast without the rows to predict.
    Window,
    /// `features: f32[batch, channels × features]`, computed by the gateway: all features of the first channel first.
    Features(#[serde(serialize_with = "as_strings")] Vec<Feature>),
}

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Provenance {
    /// When it was made, ISO 8601 by convention.
    pub created: Option<String>,
    /// What it was trained on, in words.
    pub trained_from: Option<String>,
    /// Rows it was trained on.
    pub rows: Option<u64>,
}

/// An input whose output is known: a load that does not reproduce it is refused.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Golden {
    /// Row-major `[samples][channels]`.
    pub window: GoldenWindow,
    /// The score it must give.
    pub score: f32,
    /// The contributions it must give, one per channel, when known; not compared when they come from occlusion.
    pub contribution: Option<Vec<f32>>,
}

/// The input of a golden vector.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GoldenWindow {
    /// Every row of the window is this one.
    Row(Vec<f32>),
    /// All rows.
    Window(Vec<f32>),
}

/// A model's metadata, checked. [`Contract::from_metadata`] and `commission` make them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contract {
    /// The model's name.
    pub name: ModelName,
    /// Its version; a newer model has a larger one.
    pub version: u64,
    /// Its channels, in the order of the window's columns.
    pub channels: Vec<Channel>,
    /// Samples per window.
    pub samples: usize,
    /// Milliseconds between samples, where it matters.
    pub interval_ms: Option<f64>,
    /// What the graph takes.
    pub input: InputKind,
    /// What the graph gives.
    pub output: OutputKind,
    /// Where it comes from.
    pub provenance: Provenance,
    /// Inputs with known outputs.
    pub golden: Vec<Golden>,
}

impl Contract {
    /// Reads the contract of an ONNX file without looking at its graph.
    ///
    /// # Errors
    /// [`ContractError`] naming the key, what was found and what to do.
    pub fn read(onnx: &[u8]) -> Result<Contract, ContractError> {
        Contract::from_metadata(&onnx::metadata(onnx)?)
    }

    /// Parses metadata entries.
    ///
    /// # Errors
    /// [`ContractError`] naming the key, what was found and what to do.
    pub fn from_metadata(entries: &[(String, String)]) -> Result<Contract, ContractError> {
        let metadata = Metadata::new(entries)?;
        let found = metadata.required::<u64>(KEY_CONTRACT, "the contract version, 1")?;
        match found {
            0 => return Err(metadata.invalid(KEY_CONTRACT, "1")),
            CONTRACT_VERSION => {}
            found => return Err(ContractError::TooNew { found }),
        }
        let name = metadata.required_text(KEY_NAME, "the model's name")?;
        let name = ModelName::parse(name).map_err(|e| metadata.invalid(KEY_NAME, e))?;
        let version = metadata.required::<u64>(KEY_VERSION, "a positive integer")?;
        if version == 0 {
            return Err(metadata.invalid(KEY_VERSION, "a positive integer"));
        }
        let channels = metadata.channels()?;
        let samples = metadata.samples(channels.len())?;
        let interval_ms = metadata.interval_ms()?;
        let input = metadata.input(interval_ms)?;
        let output = OutputKind::read(&metadata, &input, samples, channels.len())?;
        let rows =
            metadata.text(KEY_ROWS).map(|_| metadata.required::<u64>(KEY_ROWS, "a number of rows")).transpose()?;
        let provenance = Provenance {
            created: metadata.text(KEY_CREATED).map(str::to_owned),
            trained_from: metadata.text(KEY_TRAINED_FROM).map(str::to_owned),
            rows,
        };
        let golden = metadata.golden(samples, channels.len())?;
        Ok(Contract { name, version, channels, samples, interval_ms, input, output, provenance, golden })
    }

    /// The metadata entries that [`Contract::from_metadata`] reads back as this contract.
    pub fn to_metadata(&self) -> Vec<(String, String)> {
        let mut entries = Vec::new();
        let mut set = |key: &str, value: String| entries.push((key.to_owned(), value));
        set(KEY_CONTRACT, CONTRACT_VERSION.to_string());
        set(KEY_NAME, self.name.to_string());
        set(KEY_VERSION, self.version.to_string());
        set(KEY_CHANNELS, json(&self.channels));
        set(KEY_SAMPLES, self.samples.to_string());
        if let Some(interval_ms) = self.interval_ms {
            set(KEY_INTERVAL_MS, interval_ms.to_string());
        }
        match &self.input {
            InputKind::Window => set(KEY_INPUT, "window".to_owned()),
            InputKind::Features(features) => {
                set(KEY_INPUT, "features".to_owned());
                set(KEY_FEATURES, json(&features.iter().map(Feature::to_string).collect::<Vec<_>>()));
            }
        }
        self.output.write(&mut set);
        if let Some(created) = &self.provenance.created {
            set(KEY_CREATED, created.clone());
        }
        if let Some(trained_from) = &self.provenance.trained_from {
            set(KEY_TRAINED_FROM, trained_from.clone());
        }
        if let Some(rows) = self.provenance.rows {
            set(KEY_ROWS, rows.to_string());
        }
        if !self.golden.is_empty() {
            set(KEY_GOLDEN, json(&self.golden.iter().map(GoldenJson::from).collect::<Vec<_>>()));
        }
        entries
    }

    /// Numbers in one window: samples × channels.
    pub fn window_len(&self) -> usize {
        self.samples * self.channels.len()
    }

    /// The column of a channel.
    pub fn channel_index(&self, name: &str) -> Option<usize> {
        self.channels.iter().position(|channel| channel.name == name)
    }
}

/// Checks a list of channel names: their number, length, printability and uniqueness.
///
/// # Errors
/// The rule that is broken, as text that completes "the channels must be …".
pub fn check_channel_names<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> Result<(), String> {
    if names.len() == 0 || names.len() > CHANNELS_MAX {
        return Err(format!("1 to {CHANNELS_MAX} channels, not {}", names.len()));
    }
    let mut seen = HashSet::new();
    for name in names {
        check_label(name).map_err(|rule| format!("named by {rule}, not `{}`", shorten(name)))?;
        if !seen.insert(name) {
            return Err(format!("channels with different names, but `{name}` is there twice"));
        }
    }
    Ok(())
}

fn check_label(text: &str) -> Result<(), String> {
    if text.trim().is_empty() || text.len() > LABEL_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!("1 to {LABEL_BYTES_MAX} bytes of printable text"));
    }
    Ok(())
}

impl Golden {
    /// The window, row-major `[samples][channels]`.
    pub fn values(&self, samples: usize) -> Vec<f32> {
        match &self.window {
            GoldenWindow::Row(row) => row.repeat(samples),
            GoldenWindow::Window(window) => window.clone(),
        }
    }
}

/// Structures of strings and finite numbers always serialise.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn as_strings<S: Serializer>(features: &[Feature], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(features.iter().map(Feature::to_string))
}

/// At most 60 characters, so that an error message stays readable whatever a file holds.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests;

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
//! | `millwright.channels` | JSON: `[{"name": "flow", "unit": "l/min", "normal": 32.0}, …]`, unit and normal optional | required |
//! | `millwright.samples` | samples per window | required |
//! | `millwright.interval_ms` | milliseconds between samples, fractions allowed | for spectral features |
//! | `millwright.input` | `window` (default) or `features` | |
//! | `millwright.features` | JSON: `["mean", "rms", "band:10-100", …]` | with `features` |
//! | `millwright.output` | `score` (default) | |
//! | `millwright.created`, `millwright.trained_from` | free text | |
//! | `millwright.rows` | rows it was trained on | |
//! | `millwright.golden` | JSON: `[{"window": […] or "row": […], "score": 0.1, "contribution": […]}, …]` | |
//!
//! A golden vector's `window` is row-major `[samples][channels]`; `row` stands for a window whose rows are all the same. Keys
//! that are not listed are tolerated; what changes the meaning of a listed one raises `millwright.contract`.

use std::collections::HashSet;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

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
/// Most golden vectors; each costs a run at load.
pub const GOLDEN_MAX: usize = 16;
/// Longest model name, in bytes; it is a topic level and a file name.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest channel name or unit, in bytes.
pub const LABEL_BYTES_MAX: usize = 128;
/// Longest value of one metadata key; parsed JSON takes up to about 30 times its text, so at most 32 MiB.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

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
}

/// What the graph takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InputKind {
    /// `window: f32[batch, samples, channels]`, in engineering units.
    Window,
    /// `features: f32[batch, channels × features]`, computed by the gateway: all features of the first channel first.
    Features(#[serde(serialize_with = "as_strings")] Vec<Feature>),
}

/// What the graph gives. More kinds (reconstruction, forecast, probability, regression) will join: match with a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OutputKind {
    /// `score: f32[batch]`, 1.0 being the alarm threshold, and optionally `contribution: f32[batch, channels]`.
    Score,
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
    /// The contributions it must give, one per channel, when known.
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
        let output = match metadata.text(KEY_OUTPUT) {
            None | Some("score") => OutputKind::Score,
            Some(_) => return Err(metadata.invalid(KEY_OUTPUT, "`score`, the only output kind this gateway knows")),
        };
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
        match self.output {
            OutputKind::Score => set(KEY_OUTPUT, "score".to_owned()),
        }
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

/// The `millwright.*` entries of a file.
struct Metadata<'a> {
    entries: &'a [(String, String)],
}

impl<'a> Metadata<'a> {
    fn new(entries: &'a [(String, String)]) -> Result<Metadata<'a>, ContractError> {
        let mut seen = HashSet::new();
        for (key, value) in entries.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
            if !seen.insert(key.as_str()) {
                return Err(ContractError::Duplicate { key: shorten(key) });
            }
            if value.len() > VALUE_BYTES_MAX {
                let found = format!("{} bytes", value.len());
                let expected = format!("at most {VALUE_BYTES_MAX} bytes long, like every metadata value");
                return Err(ContractError::Invalid { key: known_key(key), found, expected });
            }
        }
        if seen.is_empty() { Err(ContractError::Absent) } else { Ok(Metadata { entries }) }
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    fn invalid(&self, key: &'static str, expected: impl fmt::Display) -> ContractError {
        ContractError::Invalid {
            key,
            found: shorten(self.text(key).unwrap_or_default()),
            expected: expected.to_string(),
        }
    }

    fn required_text(&self, key: &'static str, expected: &'static str) -> Result<&'a str, ContractError> {
        self.text(key).ok_or(ContractError::Missing { key, expected })
    }

    fn required<T: FromStr>(&self, key: &'static str, expected: &'static str) -> Result<T, ContractError> {
        self.required_text(key, expected)?.trim().parse().map_err(|_| self.invalid(key, expected))
    }

    fn channels(&self) -> Result<Vec<Channel>, ContractError> {
        let expected = "a JSON list of channels, each with a `name`";
        let text = self.required_text(KEY_CHANNELS, expected)?;
        let channels: Vec<Channel> =
            serde_json::from_str(text).map_err(|e| self.invalid(KEY_CHANNELS, format_args!("{expected} ({e})")))?;
        check_channel_names(channels.iter().map(|c| c.name.as_str()))
            .map_err(|rule| self.invalid(KEY_CHANNELS, rule))?;
        for channel in &channels {
            if let Some(unit) = &channel.unit
                && (unit.len() > LABEL_BYTES_MAX || unit.chars().any(char::is_control))
            {
                return Err(self.invalid(
                    KEY_CHANNELS,
                    format_args!("channels whose units are at most {LABEL_BYTES_MAX} bytes of text"),
                ));
            }
            if channel.normal.is_some_and(|normal| !normal.is_finite()) {
                return Err(
                    self.invalid(KEY_CHANNELS, format_args!("channels with finite normals, unlike `{}`", channel.name))
                );
            }
        }
        Ok(channels)
    }

    fn samples(&self, channels: usize) -> Result<usize, ContractError> {
        let samples = self.required::<usize>(KEY_SAMPLES, "samples per window")?;
        let most = SAMPLES_MAX.min(WINDOW_VALUES_MAX / channels.max(1));
        if samples == 0 || samples > most {
            return Err(self.invalid(KEY_SAMPLES, format_args!("1 to {most} with {channels} channels")));
        }
        Ok(samples)
    }

    fn interval_ms(&self) -> Result<Option<f64>, ContractError> {
        if self.text(KEY_INTERVAL_MS).is_none() {
            return Ok(None);
        }
        let interval_ms = self.required::<f64>(KEY_INTERVAL_MS, "milliseconds between samples")?;
        // One nanosecond to about eleven days.
        if !(1e-6..=1e9).contains(&interval_ms) {
            return Err(self.invalid(KEY_INTERVAL_MS, "between 0.000001 and 1000000000 milliseconds"));
        }
        Ok(Some(interval_ms))
    }

    fn input(&self, interval_ms: Option<f64>) -> Result<InputKind, ContractError> {
        match self.text(KEY_INPUT) {
            None | Some("window") => return Ok(InputKind::Window),
            Some("features") => {}
            Some(_) => return Err(self.invalid(KEY_INPUT, "`window` or `features`")),
        }
        let expected = "a JSON list of feature names";
        let text = self.required_text(KEY_FEATURES, expected)?;
        let names: Vec<String> =
            serde_json::from_str(text).map_err(|e| self.invalid(KEY_FEATURES, format_args!("{expected} ({e})")))?;
        if names.is_empty() || names.len() > FEATURES_MAX {
            return Err(self.invalid(KEY_FEATURES, format_args!("1 to {FEATURES_MAX} features")));
        }
        let features: Vec<Feature> = names
            .iter()
            .map(|name| name.parse().map_err(|e| self.invalid(KEY_FEATURES, e)))
            .collect::<Result<_, ContractError>>()?;
        if interval_ms.is_none() && features.iter().any(Feature::is_spectral) {
            return Err(ContractError::Missing {
                key: KEY_INTERVAL_MS,
                expected: "frequencies need the sampling interval",
            });
        }
        Ok(InputKind::Features(features))
    }

    fn golden(&self, samples: usize, channels: usize) -> Result<Vec<Golden>, ContractError> {
        let Some(text) = self.text(KEY_GOLDEN) else { return Ok(Vec::new()) };
        let parsed: Vec<GoldenJson> = serde_json::from_str(text)
            .map_err(|e| self.invalid(KEY_GOLDEN, format_args!("a JSON list of golden vectors ({e})")))?;
        if parsed.len() > GOLDEN_MAX {
            return Err(self.invalid(KEY_GOLDEN, format_args!("at most {GOLDEN_MAX} vectors")));
        }
        let check = |vector: GoldenJson| {
            let window = match (vector.row, vector.window) {
                (Some(row), None) if row.len() == channels => GoldenWindow::Row(row),
                (None, Some(window)) if window.len() == samples * channels => GoldenWindow::Window(window),
                _ => return None,
            };
            let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
            let inputs = match &window {
                GoldenWindow::Row(values) | GoldenWindow::Window(values) => values,
            };
            let contribution_fits =
                vector.contribution.as_ref().is_none_or(|values| values.len() == channels && finite(values));
            (finite(inputs) && vector.score.is_finite() && contribution_fits).then_some(Golden {
                window,
                score: vector.score,
                contribution: vector.contribution,
            })
        };
        let rule = "vectors with either a `row` of one value per channel or a full `window`, a `score`, and if known one `contribution` per \
                    channel, all finite";
        parsed.into_iter().map(|vector| check(vector).ok_or_else(|| self.invalid(KEY_GOLDEN, rule))).collect()
    }
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

/// A golden vector as it is written.
#[derive(Serialize, Deserialize)]
struct GoldenJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    row: Option<Vec<f32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<Vec<f32>>,
    score: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    contribution: Option<Vec<f32>>,
}

impl From<&Golden> for GoldenJson {
    fn from(golden: &Golden) -> GoldenJson {
        let (row, window) = match &golden.window {
            GoldenWindow::Row(row) => (Some(row.clone()), None),
            GoldenWindow::Window(window) => (None, Some(window.clone())),
        };
        GoldenJson { row, window, score: golden.score, contribution: golden.contribution.clone() }
    }
}

/// Structures of strings and finite numbers always serialise.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn as_strings<S: Serializer>(features: &[Feature], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(features.iter().map(Feature::to_string))
}

fn known_key(key: &str) -> &'static str {
    let keys = [
        KEY_CONTRACT,
        KEY_NAME,
        KEY_VERSION,
        KEY_CHANNELS,
        KEY_SAMPLES,
        KEY_INTERVAL_MS,
        KEY_INPUT,
        KEY_FEATURES,
        KEY_OUTPUT,
        KEY_CREATED,
        KEY_TRAINED_FROM,
        KEY_ROWS,
        KEY_GOLDEN,
    ];
    keys.into_iter().find(|known| *known == key).unwrap_or("millwright.*")
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn good() -> Vec<(String, String)> {
        let pairs = [
            (KEY_CONTRACT, "1"),
            (KEY_NAME, "pump-a"),
            (KEY_VERSION, "7"),
            (KEY_CHANNELS, r#"[{"name": "flow", "unit": "l/min", "normal": 32.5}, {"name": "pressure"}]"#),
            (KEY_SAMPLES, "20"),
        ];
        pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn with(key: &str, value: &str) -> Vec<(String, String)> {
        let mut entries = good();
        entries.retain(|(k, _)| k != key);
        entries.push((key.to_owned(), value.to_owned()));
        entries
    }

    /// The key that an error about `key` = `value` names.
    fn refused(key: &str, value: &str) -> String {
        match Contract::from_metadata(&with(key, value)) {
            Err(ContractError::Invalid { key, .. } | ContractError::Missing { key, .. }) => key.to_owned(),
            other => panic!("{key} = {value}: {other:?}"),
        }
    }

    #[test]
    fn the_least_is_enough_and_reads_back() {
        // The five required keys make a contract with the defaults, and what it writes reads back as itself.
        let contract = Contract::from_metadata(&good()).unwrap();
        assert_eq!((contract.version, contract.samples, contract.window_len()), (7, 20, 40));
        assert_eq!(contract.input, InputKind::Window);
        assert_eq!(contract.channels[0].normal, Some(32.5));
        assert_eq!(contract.channel_index("pressure"), Some(1));
        assert_eq!(Contract::from_metadata(&contract.to_metadata()).unwrap(), contract);
    }

    #[test]
    fn every_key_reads_back() {
        // Features, interval, provenance and golden vectors survive being written.
        let mut entries = good();
        for (key, value) in [
            (KEY_INPUT, "features"),
            (KEY_FEATURES, r#"["mean", "band:10-50"]"#),
            (KEY_INTERVAL_MS, "0.125"),
            (KEY_CREATED, "2025-01-31"),
            (KEY_TRAINED_FROM, "line 3"),
            (KEY_ROWS, "400"),
            (KEY_GOLDEN, r#"[{"row": [1, 2], "score": 0.5, "contribution": [0.2, 0.05]}]"#),
        ] {
            entries.push((key.to_owned(), value.to_owned()));
        }
        let contract = Contract::from_metadata(&entries).unwrap();
        assert_eq!(contract.interval_ms, Some(0.125));
        assert_eq!(contract.golden[0].values(2), [1.0, 2.0, 1.0, 2.0]);
        assert_eq!(Contract::from_metadata(&contract.to_metadata()).unwrap(), contract);
    }

    #[test]
    fn a_foreign_model_is_told_what_it_needs() {
        // Metadata of others only: the error names the keys to add.
        let error = Contract::from_metadata(&[("author".to_owned(), "x".to_owned())]).unwrap_err();
        assert_eq!(error, ContractError::Absent);
        assert!(error.to_string().contains("millwright.channels"));
    }

    #[test]
    fn each_required_key_is_missed_by_name() {
        // Leaving out any of the five names it.
        for (key, _) in good() {
            let entries: Vec<_> = good().into_iter().filter(|(k, _)| *k != key).collect();
            let error = Contract::from_metadata(&entries).unwrap_err();
            assert!(matches!(&error, ContractError::Missing { key: missing, .. } if *missing == key), "{error}");
        }
    }

    #[test]
    fn wrong_values_are_refused_by_key() {
        // Each bad value is refused, and the error names its key and what was found.
        for (key, value) in [
            (KEY_CONTRACT, "0"),
            (KEY_CONTRACT, "one"),
            (KEY_NAME, ""),
            (KEY_NAME, "../etc"),
            (KEY_NAME, "a/b"),
            (KEY_VERSION, "0"),
            (KEY_VERSION, "-1"),
            (KEY_CHANNELS, "[]"),
            (KEY_CHANNELS, "flow"),
            (KEY_CHANNELS, r#"[{"name": "a"}, {"name": "a"}]"#),
            (KEY_CHANNELS, r#"[{"name": " "}]"#),
            (KEY_CHANNELS, r#"[{"name": "a", "normal": 1e39}]"#),
            (KEY_SAMPLES, "0"),
            (KEY_SAMPLES, "65537"),
            (KEY_SAMPLES, "1e3"),
            (KEY_INTERVAL_MS, "0"),
            (KEY_INTERVAL_MS, "NaN"),
            (KEY_INPUT, "image"),
            (KEY_OUTPUT, "probability"),
            (KEY_ROWS, "many"),
            (KEY_GOLDEN, r#"[{"row": [1], "score": 0.5}]"#),
            (KEY_GOLDEN, r#"[{"score": 0.5}]"#),
            (KEY_GOLDEN, r#"[{"row": [1, 2], "window": [], "score": 0.5}]"#),
        ] {
            assert_eq!(refused(key, value), key);
        }
        let error = Contract::from_metadata(&with(KEY_SAMPLES, "65537")).unwrap_err().to_string();
        assert!(error.contains("`65537`") && error.contains("1 to 65536"), "{error}");
        assert_eq!(Contract::from_metadata(&with(KEY_CONTRACT, "2")), Err(ContractError::TooNew { found: 2 }));
        assert!(Contract::from_metadata(&with(KEY_SAMPLES, "65536")).is_ok());
    }

    #[test]
    fn spectral_features_need_an_interval() {
        // A band in hertz without a sampling interval has no meaning.
        let mut entries = with(KEY_INPUT, "features");
        entries.push((KEY_FEATURES.to_owned(), r#"["centroid"]"#.to_owned()));
        let error = Contract::from_metadata(&entries).unwrap_err();
        assert!(matches!(error, ContractError::Missing { key: KEY_INTERVAL_MS, .. }));
    }

    #[test]
    fn a_key_twice_is_refused() {
        // Which of two values holds would be a guess.
        let mut entries = good();
        entries.push((KEY_NAME.to_owned(), "pump-b".to_owned()));
        assert_eq!(Contract::from_metadata(&entries), Err(ContractError::Duplicate { key: KEY_NAME.to_owned() }));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(values in proptest::collection::vec(".{0,40}", 5), key in 0_usize..13) {
            // Whatever text a key holds, the answer is a contract or an error.
            let keys = [KEY_CONTRACT, KEY_NAME, KEY_VERSION, KEY_CHANNELS, KEY_SAMPLES, KEY_INTERVAL_MS, KEY_INPUT, KEY_FEATURES,
                KEY_OUTPUT, KEY_CREATED, KEY_TRAINED_FROM, KEY_ROWS, KEY_GOLDEN];
            for value in values {
                let _ = Contract::from_metadata(&with(keys[key], &value));
            }
        }

        #[test]
        fn channel_json_never_panics(name in ".{0,10}", normal in any::<f64>(), extra in "[\\[\\]{}\",:0-9a-z]{0,30}") {
            // JSON around the right shape either parses to finite normals or is an error.
            let text = format!(r#"[{{"name": {}, "normal": {normal}}}{extra}]"#, serde_json::Value::from(name));
            if let Ok(contract) = Contract::from_metadata(&with(KEY_CHANNELS, &text)) {
                prop_assert!(contract.channels.iter().all(|c| c.normal.is_none_or(f32::is_finite)));
            }
        }

        #[test]
        fn names_are_safe_to_use(name in "\\PC{0,80}") {
            // What passes as a name is one topic level and one plain file name.
            if let Ok(name) = ModelName::parse(&name) {
                prop_assert!(!name.contains(['/', '\\', '+', '#', '\0']) && !name.starts_with('.') && name.len() <= NAME_BYTES_MAX);
            }
        }
    }
}

//! Parses the metadata entries of a file, key by key.
//!
//! Owns what each value may be; every error names its key. Never sees the file.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    Channel, ContractError, FEATURES_MAX, GOLDEN_MAX, Golden, GoldenWindow, InputKind, KEY_ALARM_ABOVE,
    KEY_ALARM_BELOW, KEY_CHANNELS, KEY_CLASSES, KEY_CONTRACT, KEY_CREATED, KEY_FEATURES, KEY_GOLDEN, KEY_HEALTHY,
    KEY_HORIZON, KEY_INPUT, KEY_INTERVAL_MS, KEY_NAME, KEY_NORMAL_CLASS, KEY_OUTPUT, KEY_ROWS, KEY_SAMPLES, KEY_SCALE,
    KEY_THRESHOLD, KEY_TRAINED_FROM, KEY_UNIT, KEY_VERSION, LABEL_BYTES_MAX, PREFIX, SAMPLES_MAX, VALUE_BYTES_MAX,
    WINDOW_VALUES_MAX, check_channel_names, shorten,
};
use crate::features::Feature;

/// The `millwright.*` entries of a file.
pub(super) struct Metadata<'a> {
    entries: &'a [(String, String)],
}

impl<'a> Metadata<'a> {
    pub(super) fn new(entries: &'a [(String, String)]) -> Result<Metadata<'a>, ContractError> {
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

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn invalid(&self, key: &'static str, expected: impl fmt::Display) -> ContractError {
        ContractError::Invalid {
            key,
            found: shorten(self.text(key).unwrap_or_default()),
            expected: expected.to_string(),
        }
    }

    pub(super) fn required_text(&self, key: &'static str, expected: &'static str) -> Result<&'a str, ContractError> {
        self.text(key).ok_or(ContractError::Missing { key, expected })
    }

    pub(super) fn required<T: FromStr>(&self, key: &'static str, expected: &'static str) -> Result<T, ContractError> {
        self.required_text(key, expected)?.trim().parse().map_err(|_| self.invalid(key, expected))
    }

    pub(super) fn finite(&self, key: &'static str, expected: &'static str) -> Result<f32, ContractError> {
        let value = self.required::<f32>(key, expected)?;
        if value.is_finite() { Ok(value) } else { Err(self.invalid(key, expected)) }
    }

    pub(super) fn channels(&self) -> Result<Vec<Channel>, ContractError> {
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
            if channel.spread.is_some_and(|spread| !spread.is_finite() || spread < 0.0) {
                return Err(self.invalid(
                    KEY_CHANNELS,
                    format_args!("channels with finite spreads that are not negative, unlike `{}`", channel.name),
                ));
            }
        }
        Ok(channels)
    }

    pub(super) fn samples(&self, channels: usize) -> Result<usize, ContractError> {
        let samples = self.required::<usize>(KEY_SAMPLES, "samples per window")?;
        let most = SAMPLES_MAX.min(WINDOW_VALUES_MAX / channels.max(1));
        if samples == 0 || samples > most {
            return Err(self.invalid(KEY_SAMPLES, format_args!("1 to {most} with {channels} channels")));
        }
        Ok(samples)
    }

    pub(super) fn interval_ms(&self) -> Result<Option<f64>, ContractError> {
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

    pub(super) fn input(&self, interval_ms: Option<f64>) -> Result<InputKind, ContractError> {
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

    pub(super) fn golden(&self, samples: usize, channels: usize) -> Result<Vec<Golden>, ContractError> {
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

/// A golden vector as it is written.
#[derive(Serialize, Deserialize)]
pub(super) struct GoldenJson {
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
        KEY_SCALE,
        KEY_THRESHOLD,
        KEY_HORIZON,
        KEY_CLASSES,
        KEY_NORMAL_CLASS,
        KEY_HEALTHY,
        KEY_ALARM_BELOW,
        KEY_ALARM_ABOVE,
        KEY_UNIT,
        KEY_CREATED,
        KEY_TRAINED_FROM,
        KEY_ROWS,
        KEY_GOLDEN,
    ];
    keys.into_iter().find(|known| *known == key).unwrap_or("millwright.*")
}

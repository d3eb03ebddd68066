//! What an alert shows: which sensors, how far from expected, the signal before and after.
//!
//! Owns the ranking of sensors and the wording. Never decides whether there is an alert. At most [`SENSORS_MAX`]
//! sensors and [`SIGNAL_SENSORS`] signals of [`SIGNAL_ROWS`] rows on each side, about 4 KB of JSON.

use millwright_models::Finding;
use millwright_models::contract::Contract;
use serde::{Deserialize, Serialize};

use super::deviation::{self, Deviation};
use super::message::EventKind;
use crate::ids::AssetId;
use crate::pipeline::history::History;

/// Sensors listed in an alert.
pub const SENSORS_MAX: usize = 5;
/// Sensors whose signal is shown.
pub const SIGNAL_SENSORS: usize = 3;
/// Rows of signal before the onset, and after it.
pub const SIGNAL_ROWS: usize = 60;

/// What the model saw when the row was scored.
pub struct Observation<'a> {
    /// The model's contract.
    pub contract: &'a Contract,
    /// The window, row-major [samples][channels].
    pub window: &'a [f32],
    /// What each channel added to the score.
    pub contribution: &'a [f32],
    /// What the model says besides.
    pub finding: Option<Finding>,
    /// The newest row's device time.
    pub time_us: i64,
}

/// The evidence of an alert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// What a model of classes or of a value says: `bearing (72 %)`, `37.5 h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finding: Option<String>,
    /// Sensors by contribution, the largest first.
    pub sensors: Vec<Sensor>,
    /// The signal of the first of them around the onset.
    pub signal: Vec<Signal>,
    /// Which of the sensors left its expected band first, and when; with the event that raises the alert.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_to_deviate: Vec<Deviation>,
}

/// One sensor's part in an alert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensor {
    /// The channel.
    pub channel: String,
    /// Its unit, where the model names one.
    pub unit: Option<String>,
    /// Its share of the score, 0 to 1.
    pub contribution: f32,
    /// Mean over the window.
    pub observed: f32,
    /// What the model learned as normal.
    pub expected: Option<f32>,
}

/// A sensor's values around the onset of the episode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Signal {
    /// The channel.
    pub channel: String,
    /// Device times of `before` and `after` together, UTC microseconds.
    pub times_us: Vec<i64>,
    /// Values up to the onset; null where unknown.
    pub before: Vec<Option<f32>>,
    /// Values from the onset to the scored row.
    pub after: Vec<Option<f32>>,
}

impl Evidence {
    /// Ranks the sensors and cuts out the signal around `onset_us`.
    pub fn gather(observation: &Observation<'_>, history: &History, onset_us: i64) -> Evidence {
        let channels = observation.contract.channels.len();
        let total: f32 = observation.contribution.iter().sum();
        let mut ranked: Vec<usize> = (0..channels).collect();
        let contribution = |index: usize| observation.contribution.get(index).copied().unwrap_or(0.0);
        ranked.sort_by(|a, b| contribution(*b).total_cmp(&contribution(*a)));
        let sensors: Vec<Sensor> = ranked
            .iter()
            .take(SENSORS_MAX)
            .filter_map(|index| {
                let channel = observation.contract.channels.get(*index)?;
                Some(Sensor {
                    channel: channel.name.clone(),
                    unit: channel.unit.clone(),
                    contribution: if total > 0.0 { contribution(*index) / total } else { 0.0 },
                    observed: column_mean(observation.window, channels, *index),
                    expected: channel.normal,
                })
            })
            .collect();
        let signal = sensors
            .iter()
            .take(SIGNAL_SENSORS)
            .filter_map(|sensor| Signal::cut(&sensor.channel, history, onset_us, observation.time_us))
            .collect();
        let finding = observation.finding.and_then(|finding| finding.describe(&observation.contract.output));
        Evidence { finding, sensors, signal, first_to_deviate: Vec::new() }
    }

    /// Finds out since when each of the sensors is outside its expected band, the first of them first.
    pub fn note_first_to_deviate(&mut self, observation: &Observation<'_>, history: &History) {
        let channels = self
            .sensors
            .iter()
            .filter_map(|sensor| observation.contract.channels.iter().find(|channel| channel.name == sensor.channel));
        self.first_to_deviate = deviation::first_to_deviate(channels, history, observation.time_us);
    }

    /// The alert in one sentence, for the crew.
    pub fn sentence(&self, asset: &AssetId, kind: EventKind) -> String {
        let verb = match kind {
            EventKind::Raise | EventKind::Update => "left its normal",
            EventKind::Clear => "is back to normal",
        };
        let sensors: Vec<String> = self.sensors.iter().take(2).map(Sensor::phrase).collect();
        let finding = self.finding.as_deref().map(|finding| format!(", {finding}")).unwrap_or_default();
        format!("{asset} {verb}{finding}: {}", sensors.join("; "))
    }
}

impl Sensor {
    fn phrase(&self) -> String {
        let unit = self.unit.as_deref().map(|unit| format!(" {unit}")).unwrap_or_default();
        let share = self.contribution * 100.0;
        match self.expected {
            Some(expected) => format!(
                "{} {}{unit}, expected {}{unit} ({share:.0} % of the score)",
                self.channel,
                short(self.observed),
                short(expected)
            ),
            None => format!("{} {}{unit} ({share:.0} % of the score)", self.channel, short(self.observed)),
        }
    }
}

/// Three significant digits, without an exponent for everyday values.
fn short(value: f32) -> String {
    let magnitude = value.abs();
    match magnitude {
        m if m >= 100.0 => format!("{value:.0}"),
        m if m >= 10.0 => format!("{value:.1}"),
        m if m >= 0.01 || m == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.2e}"),
    }
}

impl Signal {
    fn cut(channel: &str, history: &History, onset_us: i64, until_us: i64) -> Option<Signal> {
        let column = history.index_of(channel)?;
        let value = |row: &crate::pipeline::history::Row| row.values.get(column).copied().filter(|v| v.is_finite());
        let rows: Vec<_> = history.newest(usize::MAX).filter(|row| row.time_us <= until_us).collect();
        let split = rows.iter().position(|row| row.time_us >= onset_us).unwrap_or(rows.len());
        let before = rows.get(split.saturating_sub(SIGNAL_ROWS)..split).unwrap_or_default();
        let after = rows.get(split..rows.len().min(split + SIGNAL_ROWS)).unwrap_or_default();
        Some(Signal {
            channel: channel.to_owned(),
            times_us: before.iter().chain(after).map(|row| row.time_us).collect(),
            before: before.iter().map(|row| value(row)).collect(),
            after: after.iter().map(|row| value(row)).collect(),
        })
    }
}

fn column_mean(window: &[f32], channels: usize, column: usize) -> f32 {
    let values: Vec<f64> = window.iter().skip(column).step_by(channels.max(1)).map(|value| f64::from(*value)).collect();
    (values.iter().sum::<f64>() / values.len().max(1) as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    // Everyday values read without an exponent, with about three digits.
    #[test]
    fn values_are_short() {
        for (value, text) in
            [(0.0, "0.00"), (2.34567, "2.35"), (42.195, "42.2"), (-233.06, "-233"), (0.0012, "1.20e-3")]
        {
            assert_eq!(short(value), text);
        }
    }
}

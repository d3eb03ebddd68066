//! Alerts, events and health as they leave the gateway: JSON on MQTT and in the API.

use millwright_models::episode::State;
use serde::{Deserialize, Serialize};

use super::Severity;
use super::evidence::Evidence;

/// What an event tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A new alert.
    Raise,
    /// The alert's severity, state or evidence changed.
    Update,
    /// The alert is over.
    Clear,
}

/// The model behind a score.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// Whether the gateway learned it itself.
    pub commissioned: bool,
}

/// One event of an alert's life; `mw/v1/event/<asset>`. With `active`, the retained `mw/v1/alert/<asset>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlertEvent {
    /// Unique for this gateway: `<gateway>/<number>`.
    pub id: String,
    /// The id of the event that raised the alert.
    pub alert: String,
    /// What happened.
    pub event: EventKind,
    /// Which gateway saw it.
    pub gateway: String,
    /// Which machine.
    pub asset: String,
    /// How serious.
    pub severity: Severity,
    /// The episode state.
    pub state: State,
    /// Device time of the row that made the event, UTC microseconds.
    pub time_us: i64,
    /// Device time of the first row of the episode.
    pub onset_us: i64,
    /// Device time of the row that raised the alert.
    pub raised_us: i64,
    /// The score of the row.
    pub score: f32,
    /// The highest score of the alert.
    pub peak_score: f32,
    /// Always 1.0: scores are relative to it.
    pub threshold: f32,
    /// The model that scored it.
    pub model: ModelRef,
    /// One sentence for the crew.
    pub message: String,
    /// Whether an operator had silenced the machine when the event came: receivers are to stay quiet.
    #[serde(default)]
    pub silenced: bool,
    /// Sensors and signals.
    pub evidence: Evidence,
}

/// Somebody has seen an alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// Who.
    pub by: String,
    /// When, gateway time, UTC microseconds.
    pub at_us: i64,
}

/// The current alert of an asset, retained.
#[derive(Debug, Clone, Serialize)]
pub struct AlertState<'a> {
    /// False once it was cleared.
    pub active: bool,
    /// Who has seen it, if anybody has.
    pub acknowledged: Option<Acknowledged>,
    /// Until when the machine is silenced, gateway time, UTC microseconds.
    pub silenced_until_us: Option<i64>,
    /// The event that made it so.
    #[serde(flatten)]
    pub event: &'a AlertEvent,
}

/// An asset's health, retained; `mw/v1/health/<asset>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Which machine.
    pub asset: String,
    /// 100 is as learned, 50 is at the alarm threshold: 100 / (1 + score²). Null while learning.
    pub health: Option<f32>,
    /// What the gateway thinks of it.
    pub state: HealthState,
    /// The last score; 1.0 is the alarm threshold.
    pub score: Option<f32>,
    /// Always 1.0.
    pub threshold: f32,
    /// The model in use.
    pub model: Option<ModelRef>,
    /// Rows collected and rows needed, while learning.
    pub learning: Option<(usize, usize)>,
    /// Channels without a value now.
    pub missing_channels: Vec<String>,
    /// Device time of the last scored row, UTC microseconds.
    pub time_us: Option<i64>,
    /// Samples taken in and samples scored.
    pub samples: u64,
    /// Samples scored.
    pub scored: u64,
}

/// The state of an asset in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// Its normal is being learned.
    Learning,
    /// As learned.
    Ok,
    /// Its score is above the threshold.
    Alarm,
    /// It was in alarm and is coming back.
    Recovering,
    /// Nothing has come from it for a while.
    Silent,
}

/// Health index of a score: 100 at 0, 50 at the threshold, towards 0 far beyond.
pub fn health_index(score: f32) -> f32 {
    100.0 / (1.0 + score * score)
}

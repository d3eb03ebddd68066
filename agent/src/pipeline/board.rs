//! What the pipeline has in hand of the casebook: which alerts are up, who has seen them, and which machines are silenced.
//!
//! Owns no truth: it is read from the state file at a start, and follows what is stored there. At most one alert and one
//! silence for each asset. Alerts of the last day are counted again every [`COUNT_EVERY`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::alarm::Severity;
use crate::alarm::message::{Acknowledged, AlertEvent, EventKind};
use crate::casebook::{AlertSummary, Silence};
use crate::clock::SECOND_US;
use crate::ids::AssetId;
use crate::state::{State, StateError};

/// How often the alerts of the last day are counted.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// The last day.
const DAY_US: i64 = 24 * 3_600 * SECOND_US;

/// An alert that is up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpenAlert {
    /// The id of the event that raised it.
    pub id: String,
    /// The number in it.
    pub number: u64,
    /// How serious.
    pub severity: Severity,
    /// One sentence.
    pub message: String,
    /// When it was raised, device time, UTC microseconds.
    pub raised_us: i64,
    /// Who has seen it.
    pub acknowledged: Option<Acknowledged>,
    /// The channel that adds most to the score.
    pub top_channel: Option<String>,
}

/// Alerts that are up, and silences.
#[derive(Debug, Default)]
pub struct Board {
    alerts: HashMap<AssetId, Arc<OpenAlert>>,
    silences: HashMap<AssetId, Arc<Silence>>,
    raised: HashMap<String, u32>,
    counted: Option<Instant>,
}

impl Board {
    /// Reads what is up.
    ///
    /// # Errors
    /// The state file fails.
    pub fn load(state: &State, now_us: i64) -> Result<Board, StateError> {
        let mut board = Board::default();
        for alert in state.open_alerts()? {
            if let Ok(asset) = AssetId::parse(&alert.asset) {
                board.alerts.insert(asset, Arc::new(OpenAlert::of(alert)));
            }
        }
        for silence in state.silences(now_us)? {
            if let Ok(asset) = AssetId::parse(&silence.asset) {
                board.silences.insert(asset, Arc::new(silence));
            }
        }
        Ok(board)
    }

    /// The machines that are silenced, and until when.
    pub fn silenced(&self) -> impl Iterator<Item = (&AssetId, i64)> {
        self.silences.iter().map(|(asset, silence)| (asset, silence.until_us))
    }

    /// The alert of a machine that is up.
    pub fn alert(&self, asset: &AssetId) -> Option<&Arc<OpenAlert>> {
        self.alerts.get(asset)
    }

    /// The silence of a machine, unless it has ended.
    pub fn silence(&self, asset: &AssetId, now_us: i64) -> Option<&Arc<Silence>> {
        self.silences.get(asset).filter(|silence| silence.until_us > now_us)
    }

    /// Alerts of a machine in the last day.
    pub fn raised(&self, asset: &AssetId) -> u32 {
        self.raised.get(asset.as_str()).copied().unwrap_or(0)
    }

    /// Counts the alerts of the last day again, if it is time.
    pub fn count_if_due(&mut self, state: &State, now_us: i64) {
        if self.counted.is_some_and(|counted| counted.elapsed() < COUNT_EVERY) {
            return;
        }
        self.counted = Some(Instant::now());
        match state.raised_since(now_us.saturating_sub(DAY_US)) {
            Ok(raised) => self.raised = raised,
            Err(error) => tracing::warn!(%error, "the alerts of the last day cannot be counted"),
        }
    }

    /// Follows an event.
    pub fn note_event(&mut self, event: &AlertEvent) {
        let Ok(asset) = AssetId::parse(&event.asset) else { return };
        if event.event == EventKind::Clear {
            self.alerts.remove(&asset);
            return;
        }
        if event.event == EventKind::Raise {
            *self.raised.entry(event.asset.clone()).or_default() += 1;
        }
        let before = self.alerts.get(&asset).filter(|alert| alert.id == event.alert);
        let alert = OpenAlert {
            id: event.alert.clone(),
            number: number_of(&event.alert),
            severity: event.severity,
            message: event.message.clone(),
            raised_us: event.raised_us,
            acknowledged: before.and_then(|alert| alert.acknowledged.clone()),
            top_channel: event.evidence.sensors.first().map(|sensor| sensor.channel.clone()),
        };
        self.alerts.insert(asset, Arc::new(alert));
    }

    /// Somebody has seen the alert of a machine; the first who did stays.
    pub fn acknowledge(&mut self, asset: &AssetId, acknowledged: Acknowledged) {
        if let Some(alert) = self.alerts.get_mut(asset) {
            let alert = Arc::make_mut(alert);
            alert.acknowledged.get_or_insert(acknowledged);
        }
    }

    /// A machine is silenced, or no longer.
    pub fn set_silence(&mut self, asset: &AssetId, silence: Option<Silence>) {
        match silence {
            Some(silence) => self.silences.insert(asset.clone(), Arc::new(silence)),
            None => self.silences.remove(asset),
        };
    }
}

/// The number in an event's id.
fn number_of(id: &str) -> u64 {
    id.rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl OpenAlert {
    fn of(alert: AlertSummary) -> OpenAlert {
        OpenAlert {
            id: alert.id,
            number: alert.number,
            severity: alert.severity,
            message: alert.message,
            raised_us: alert.raised_us,
            acknowledged: alert.acknowledged,
            top_channel: alert.first_channel,
        }
    }
}

//! When an asset's health is worth a message.
//!
//! Owns what was last told of each asset. Health is told when it changes by a point or changes its state, at most
//! once a second for each asset, and at a configured slow beat. Never publishes itself.

use std::collections::HashMap;

use millwright_models::episode::State;

use super::asset::{Asset, Phase};
use crate::alarm::message::{Health, HealthState, health_index};
use crate::clock::SECOND_US;
use crate::ids::AssetId;

/// Shortest time between two messages about one asset.
const TOLD_US_MIN: i64 = SECOND_US;
/// Typical intervals without a row after which an asset is silent.
const SILENT_INTERVALS: i64 = 10;
/// Health points that are worth telling.
const CHANGE_POINTS: f32 = 1.0;

/// What was last told. Bounded by the number of assets.
#[derive(Debug)]
pub struct HealthReports {
    timing: HealthTiming,
    told: HashMap<AssetId, Told>,
}

/// How often health is told.
#[derive(Debug, Clone, Copy)]
pub struct HealthTiming {
    /// The slow beat: told at least this often, microseconds.
    pub beat_us: i64,
    /// An asset from which nothing came for this long is silent, microseconds.
    pub silent_after_us: i64,
}

#[derive(Debug)]
struct Told {
    at_us: i64,
    health: Option<f32>,
    state: HealthState,
    missing: usize,
}

impl HealthReports {
    /// Nothing told yet.
    pub fn new(timing: HealthTiming) -> HealthReports {
        HealthReports { timing, told: HashMap::new() }
    }

    /// The health of an asset now (gateway time).
    pub fn health_of(&self, asset: &Asset, now_us: i64) -> Health {
        health_of(asset, now_us, self.timing.silent_after_us)
    }

    /// The state of an asset now (gateway time), and since when.
    pub fn state_of(&self, asset: &Asset, now_us: i64) -> (HealthState, i64) {
        state_of(asset, now_us, self.timing.silent_after_us)
    }

    /// The assets whose health is due, of those in `assets`.
    pub fn due(&mut self, assets: &[Asset], now_us: i64) -> Vec<Health> {
        let due = assets.iter().filter_map(|asset| {
            let health = self.health_of(asset, now_us);
            self.is_due(&asset.id, &health, now_us).then_some(health)
        });
        due.collect()
    }

    fn is_due(&mut self, asset: &AssetId, health: &Health, now_us: i64) -> bool {
        let due = match self.told.get(asset) {
            None => true,
            Some(told) => {
                let age_us = now_us.saturating_sub(told.at_us);
                let moved = (health.health.unwrap_or(-1.0) - told.health.unwrap_or(-1.0)).abs() >= CHANGE_POINTS;
                let news = moved || health.state != told.state || health.missing_channels.len() != told.missing;
                // A clock that was set back must not silence a machine's health.
                age_us >= self.timing.beat_us || age_us < 0 || (news && age_us >= TOLD_US_MIN)
            }
        };
        if due {
            let missing = health.missing_channels.len();
            let told = Told { at_us: now_us, health: health.health, state: health.state, missing };
            self.told.insert(asset.clone(), told);
        }
        due
    }
}

/// An asset's state at `now_us` (gateway time), silent when nothing has come for `silent_after_us`; and since when.
fn state_of(asset: &Asset, now_us: i64, silent_after_us: i64) -> (HealthState, i64) {
    // A machine that reports every five minutes is not silent after one.
    let silent_after_us = silent_after_us.max(asset.interval_us().saturating_mul(SILENT_INTERVALS));
    if now_us.saturating_sub(asset.received_us) > silent_after_us {
        return (HealthState::Silent, asset.received_us);
    }
    let state = match (&asset.phase, asset.alarm.state()) {
        (Phase::Learning(_), _) => HealthState::Learning,
        (_, State::Ok) => HealthState::Ok,
        (_, State::Alarm) => HealthState::Alarm,
        (_, State::Recovering) => HealthState::Recovering,
    };
    (state, asset.since_us())
}

/// An asset's health at `now_us` (gateway time).
fn health_of(asset: &Asset, now_us: i64, silent_after_us: i64) -> Health {
    let learning = match &asset.phase {
        Phase::Learning(learning) => Some(learning.progress()),
        Phase::Monitoring(_) => None,
    };
    let (state, _) = state_of(asset, now_us, silent_after_us);
    let score = asset.last.as_ref().map(|last| last.score);
    Health {
        asset: asset.id.to_string(),
        health: score.map(health_index),
        state,
        score,
        threshold: 1.0,
        model: asset.model().map(|model| model.as_ref().into()),
        learning,
        missing_channels: asset.missing_channels().into_iter().map(str::to_owned).collect(),
        time_us: asset.last.as_ref().map(|last| last.time_us),
        samples: asset.counters.samples,
        scored: asset.counters.scored,
    }
}

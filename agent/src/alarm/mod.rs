//! An asset's alarm: from episodes of high score to alerts with a life cycle.
//!
//! Owns the decision when an episode becomes an alert (minimum duration), how severe it is, when it is updated and
//! when it is over (hysteresis in time). Never publishes, never reads a clock: time is the samples' own. One alert
//! per asset at a time.

pub mod deviation;
pub mod evidence;
pub mod message;

use millwright_models::episode::{Episode, State};
use serde::{Deserialize, Serialize};

/// Rows after the raise at which one update carries the signal after it.
const AFTER_ROWS: u32 = 60;
/// Fewest rows between two updates that only tell another state: a fault that comes and goes must not flood its crew.
const STATE_ROWS: u32 = 60;

/// How serious an alert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The machine left its normal: look at it at the next round.
    Warning,
    /// Far outside its normal: send somebody.
    Critical,
}

/// When episodes become alerts.
#[derive(Debug, Clone, Copy)]
pub struct AlarmSettings {
    /// Consecutive rows in alarm before an alert is raised.
    pub raise_rows: u32,
    /// Device time in alarm before an alert is raised, microseconds; both must hold.
    pub raise_after_us: i64,
    /// Consecutive rows in `Ok` before an alert is cleared.
    pub clear_rows: u32,
    /// The score from which an alert is critical; 1.0 is the alarm threshold.
    pub critical_score: f32,
}

impl Default for AlarmSettings {
    fn default() -> AlarmSettings {
        AlarmSettings { raise_rows: 5, raise_after_us: 0, clear_rows: 20, critical_score: 3.0 }
    }
}

/// What happened to the alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A new alert.
    Raise,
    /// Its severity, its state or its evidence changed.
    Update,
    /// It is over.
    Clear,
}

/// The alert that is up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActiveAlert {
    /// Set by the pipeline when the event gets its number.
    pub id: String,
    /// Its severity now; it only rises.
    pub severity: Severity,
    /// When the episode began (device time, UTC microseconds).
    pub onset_us: i64,
    /// When the alert was raised.
    pub raised_us: i64,
    /// The highest score so far.
    pub peak_score: f32,
    /// Rows since it was raised.
    rows: u32,
    /// The state that was last told, and rows since then.
    told: (State, u32),
}

/// The alarm state of one asset; saved with the cursor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    episode: Episode,
    /// Consecutive rows in alarm, or in `Ok`.
    run_rows: u32,
    /// When the present run of alarm began.
    onset_us: i64,
    active: Option<ActiveAlert>,
}

impl Alarm {
    /// The state after the last row.
    pub fn state(&self) -> State {
        self.episode.state()
    }

    /// The alert that is up, if any.
    pub fn active(&self) -> Option<&ActiveAlert> {
        self.active.as_ref()
    }

    /// Names the alert just raised.
    pub fn name_active(&mut self, id: String) {
        if let Some(active) = &mut self.active {
            active.id = id;
        }
    }

    /// Takes the score of the row at `time_us`. A cleared alert is returned with its change.
    pub fn step(&mut self, time_us: i64, score: f32, settings: &AlarmSettings) -> Option<(Change, ActiveAlert)> {
        let before = self.episode.state();
        let state = self.episode.step(score);
        let changed = state != before;
        self.run_rows = if changed { 1 } else { self.run_rows.saturating_add(1) };
        if changed && state == State::Alarm && self.active.is_none() {
            self.onset_us = time_us;
        }
        match &mut self.active {
            None => self.raise(time_us, score, settings),
            Some(active) => {
                let updated = active.update(score, state, settings);
                if state == State::Ok && self.run_rows >= settings.clear_rows {
                    return self.active.take().map(|alert| (Change::Clear, alert));
                }
                updated.then(|| (Change::Update, active.clone()))
            }
        }
    }

    fn raise(&mut self, time_us: i64, score: f32, settings: &AlarmSettings) -> Option<(Change, ActiveAlert)> {
        let lasted_us = time_us.saturating_sub(self.onset_us);
        let lasted = self.run_rows >= settings.raise_rows && lasted_us >= settings.raise_after_us;
        if self.state() != State::Alarm || !lasted {
            return None;
        }
        let alert = ActiveAlert {
            id: String::new(),
            severity: severity(score, settings),
            onset_us: self.onset_us,
            raised_us: time_us,
            peak_score: score,
            rows: 0,
            told: (State::Alarm, 0),
        };
        self.active = Some(alert.clone());
        Some((Change::Raise, alert))
    }
}

impl ActiveAlert {
    /// Whether the row is worth an update: the severity rose, the signal after the raise is complete, or the state is
    /// another than the one last told. A return to `Ok` is told by the clear.
    fn update(&mut self, score: f32, state: State, settings: &AlarmSettings) -> bool {
        self.rows = self.rows.saturating_add(1);
        let (told, since) = self.told;
        let since = since.saturating_add(1);
        self.peak_score = self.peak_score.max(score);
        let severity = self.severity.max(severity(score, settings));
        let rose = severity != self.severity;
        self.severity = severity;
        let moved = state != told && state != State::Ok && since >= STATE_ROWS;
        let worth = rose || moved || self.rows == AFTER_ROWS;
        self.told = if worth { (state, 0) } else { (told, since) };
        worth
    }
}

fn severity(score: f32, settings: &AlarmSettings) -> Severity {
    if score >= settings.critical_score { Severity::Critical } else { Severity::Warning }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(scores: &[f32], settings: &AlarmSettings) -> Vec<(usize, Change)> {
        let mut alarm = Alarm::default();
        let step = |(row, score): (usize, &f32)| {
            alarm.step(i64::try_from(row).unwrap(), *score, settings).map(|(change, _)| (row, change))
        };
        scores.iter().enumerate().filter_map(step).collect()
    }

    fn settings() -> AlarmSettings {
        AlarmSettings { raise_rows: 3, raise_after_us: 0, clear_rows: 4, critical_score: 3.0 }
    }

    // An episode one row shorter than the minimum raises nothing, one of exactly the minimum does.
    #[test]
    fn the_minimum_duration_is_exact() {
        assert_eq!(run(&[0.1, 2.0, 2.0, 0.1, 0.1], &settings()), []);
        assert_eq!(run(&[0.1, 2.0, 2.0, 2.0], &settings()), [(3, Change::Raise)]);
    }

    // A minimum duration in device time holds beside the rows: just before it nothing, exactly at it the alert.
    #[test]
    fn the_minimum_time_is_exact() {
        let settings = AlarmSettings { raise_after_us: 5, ..settings() };
        assert_eq!(run(&[2.0; 5], &settings), []);
        assert_eq!(run(&[2.0; 6], &settings), [(5, Change::Raise)]);
    }

    // An alert is cleared by exactly the given rows of calm, and a dip shorter than that changes nothing.
    #[test]
    fn an_alert_clears_after_calm() {
        let up = [2.0, 2.0, 2.0];
        let mut dip = up.to_vec();
        dip.extend([0.1, 0.1, 0.1, 2.0, 2.0]);
        assert_eq!(run(&dip, &settings()), [(2, Change::Raise)]);
        let mut calm = up.to_vec();
        calm.extend([0.1, 0.1, 0.1, 0.1]);
        assert_eq!(run(&calm, &settings()), [(2, Change::Raise), (6, Change::Clear)]);
    }

    // A score at the critical limit makes the alert critical, once.
    #[test]
    fn severity_only_rises() {
        let changes = run(&[2.0, 2.0, 2.0, 2.9, 3.0, 2.9, 3.5], &settings());
        assert_eq!(changes, [(2, Change::Raise), (4, Change::Update)]);
    }

    // A fault that comes and goes is told once in a while, with the state it has then, not at every turn.
    #[test]
    fn a_coming_and_going_fault_does_not_flood() {
        let mut scores = vec![2.0; 3];
        for _ in 0..40 {
            scores.extend([0.9, 0.9, 0.7, 2.0, 2.0]);
        }
        let changes = run(&scores, &settings());
        assert_eq!(changes.first(), Some(&(2, Change::Raise)));
        assert!((2..=4).contains(&changes.len()), "{changes:?}");
    }

    // The signal after the raise is carried by one update when it is complete.
    #[test]
    fn one_update_carries_the_signal_after() {
        let scores = vec![2.0; 200];
        let after = 2 + usize::try_from(AFTER_ROWS).unwrap();
        assert_eq!(run(&scores, &settings()), [(2, Change::Raise), (after, Change::Update)]);
    }
}

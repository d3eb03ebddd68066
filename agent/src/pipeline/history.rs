//! The newest rows of one asset, aligned to one set of channels.
//!
//! Owns the asset's channel list (in the order first seen), a ring of the newest rows, and the rule for holes: a
//! missing or non-finite value is held at its channel's recent level for [`HOLD_ROWS`] rows, then it is unknown (NaN).
//! The level is a mean, not the last value: one noisy value repeated would look like a fault to a model that averages.
//! Never knows a model. Holds at most [`HISTORY_ROWS`] rows (or what a model's window needs) of [`CHANNELS_MAX`] channels.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::ids::ChannelName;

/// Channels of one asset; more are refused and counted.
pub const CHANNELS_MAX: usize = 64;
/// Rows a missing value is held: about one window of the default detector.
pub const HOLD_ROWS: u32 = 20;
/// Weight of a new value in its channel's level: an exponential mean that is as smooth as that of 19 rows.
const LEVEL_WEIGHT: f32 = 0.1;
/// Rows kept for the evidence of an alert and for windows.
pub const HISTORY_ROWS: usize = 180;
/// Rows of the longest window a model may ask for.
pub const WINDOW_ROWS_MAX: usize = 4_096;

/// One channel of an asset.
#[derive(Debug, Clone)]
pub struct ChannelState {
    /// Its name, as the device sends it.
    pub name: ChannelName,
    /// Exponential mean of the finite values, NaN before the first.
    level: f32,
    /// Rows since then.
    pub missing_rows: u32,
}

impl ChannelState {
    fn note(&mut self, value: f32) {
        self.missing_rows = 0;
        let moved = self.level + LEVEL_WEIGHT * (value - self.level);
        // The first value is the level; so is one after which the sum would overflow.
        self.level = if moved.is_finite() { moved } else { value };
    }
}

/// The ring of rows. Row-major, one `f32` per channel; NaN where a value is unknown.
#[derive(Debug, Clone, Default)]
pub struct History {
    channels: Vec<ChannelState>,
    rows: VecDeque<Row>,
    capacity: usize,
    /// Rows ever pushed since the start: who follows the newest rows knows from it how many are new.
    pushed: u64,
}

/// One row, in the order of [`History::channels`]; shorter than that when channels appeared later.
#[derive(Debug, Clone)]
pub struct Row {
    /// Device time, UTC microseconds.
    pub time_us: i64,
    /// Values in engineering units.
    pub values: Box<[f32]>,
    /// Its score, NaN where there is none (yet). Not saved.
    pub score: f32,
}

/// What a row lacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowReport {
    /// Values that were missing or not finite.
    pub missing: u64,
    /// Values of channels beyond [`CHANNELS_MAX`].
    pub refused: u64,
    /// A channel was seen for the first time.
    pub new_channel: bool,
}

impl History {
    /// The channels in the order first seen.
    pub fn channels(&self) -> &[ChannelState] {
        &self.channels
    }

    /// Rows held now.
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// The newest rows, oldest first, at most `count`.
    pub fn newest(&self, count: usize) -> impl Iterator<Item = &Row> {
        self.rows.iter().skip(self.rows.len().saturating_sub(count))
    }

    /// Where a channel stands in a row.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.channels.iter().position(|channel| channel.name.as_str() == name)
    }

    /// Keeps at least `rows` rows from now on.
    pub fn reserve(&mut self, rows: usize) {
        self.capacity = self.capacity.max(rows.clamp(HISTORY_ROWS, WINDOW_ROWS_MAX));
    }

    /// Maps a reading's channels to positions in a row, adding those not seen before; `None` for those beyond the limit.
    pub fn positions(&mut self, names: &[ChannelName], report: &mut RowReport) -> Vec<Option<usize>> {
        names.iter().map(|name| self.position_or_add(name, report)).collect()
    }

    fn position_or_add(&mut self, name: &ChannelName, report: &mut RowReport) -> Option<usize> {
        if let Some(index) = self.index_of(name.as_str()) {
            return Some(index);
        }
        if self.channels.len() >= CHANNELS_MAX {
            report.refused += 1;
            return None;
        }
        report.new_channel = true;
        self.channels.push(ChannelState { name: name.clone(), level: f32::NAN, missing_rows: HOLD_ROWS });
        Some(self.channels.len() - 1)
    }

    /// Adds a row whose `values` belong to `positions`; holes are held or left unknown.
    pub fn push(&mut self, time_us: i64, positions: &[Option<usize>], values: &[f32], report: &mut RowReport) {
        let mut row = vec![f32::NAN; self.channels.len()];
        for (position, value) in positions.iter().zip(values) {
            if let Some(slot) = position.and_then(|index| row.get_mut(index)) {
                *slot = *value;
            }
        }
        for (channel, value) in self.channels.iter_mut().zip(&mut row) {
            if value.is_finite() {
                channel.note(*value);
            } else {
                report.missing += 1;
                channel.missing_rows = channel.missing_rows.saturating_add(1);
                *value = if channel.missing_rows <= HOLD_ROWS { channel.level } else { f32::NAN };
            }
        }
        self.reserve(HISTORY_ROWS);
        if self.rows.len() >= self.capacity {
            self.rows.pop_front();
        }
        self.rows.push_back(Row { time_us, values: row.into_boxed_slice(), score: f32::NAN });
        self.pushed += 1;
    }

    /// Rows pushed since the start.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Writes the score next to its row; rows are scored soon after they came, so it is looked for from the newest on.
    pub fn note_score(&mut self, time_us: i64, score: f32) {
        if let Some(row) = self.rows.iter_mut().rev().find(|row| row.time_us == time_us) {
            row.score = score;
        }
    }

    /// Forgets the rows, not the channels: what comes next is not adjacent to what came before.
    pub fn restart(&mut self) {
        self.rows.clear();
    }

    /// Puts rows in front of the present ones that are older than them: the signal before a restart, for evidence.
    pub fn prepend_older(&mut self, older: &History) {
        let before = self.rows.front().map_or(i64::MAX, |row| row.time_us);
        let room = HISTORY_ROWS.saturating_sub(self.rows.len());
        let candidates: Vec<&Row> = older.rows.iter().filter(|row| row.time_us < before).collect();
        for row in candidates.into_iter().rev().take(room) {
            let mut values = vec![f32::NAN; self.channels.len()];
            for (channel, value) in older.channels.iter().zip(&row.values) {
                if let Some(slot) = self.index_of(channel.name.as_str()).and_then(|index| values.get_mut(index)) {
                    *slot = *value;
                }
            }
            self.rows.push_front(Row { time_us: row.time_us, values: values.into_boxed_slice(), score: f32::NAN });
        }
    }

    /// What is saved: the channels and the newest `rows` rows.
    pub fn save(&self, rows: usize) -> SavedHistory {
        SavedHistory {
            channels: self.channels.iter().map(|c| (c.name.to_string(), c.level, c.missing_rows)).collect(),
            rows: self.newest(rows).map(|row| (row.time_us, row.values.to_vec())).collect(),
        }
    }

    /// The reverse of [`History::save`]; channels whose names are no longer valid are dropped.
    pub fn restore(saved: &SavedHistory) -> History {
        let channels = saved
            .channels
            .iter()
            .filter_map(|(name, level, missing_rows)| {
                let name = ChannelName::parse(name).ok()?;
                Some(ChannelState { name, level: *level, missing_rows: *missing_rows })
            })
            .collect();
        let rows = saved
            .rows
            .iter()
            .map(|(time_us, values)| Row {
                time_us: *time_us,
                values: values.clone().into_boxed_slice(),
                score: f32::NAN,
            })
            .collect();
        let mut history = History { channels, rows, capacity: HISTORY_ROWS, pushed: 0 };
        history.reserve(saved.rows.len());
        history
    }
}

/// [`History`] as it is written to disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedHistory {
    channels: Vec<(String, f32, u32)>,
    rows: Vec<(i64, Vec<f32>)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<ChannelName> {
        names.iter().map(|name| ChannelName::parse(name).unwrap()).collect()
    }

    fn push(history: &mut History, time_us: i64, channels: &[&str], values: &[f32]) -> RowReport {
        let mut report = RowReport::default();
        let positions = history.positions(&names(channels), &mut report);
        history.push(time_us, &positions, values, &mut report);
        report
    }

    fn last(history: &History) -> Vec<f32> {
        history.newest(1).next().unwrap().values.to_vec()
    }

    // A hole is filled with the channel's level for HOLD_ROWS rows and unknown from the next one on.
    #[test]
    fn holes_are_held_and_then_unknown() {
        let mut history = History::default();
        push(&mut history, 0, &["a", "b"], &[1.0, 2.0]);
        for row in 1..=HOLD_ROWS {
            assert_eq!(push(&mut history, i64::from(row), &["a", "b"], &[f32::NAN, 3.0]).missing, 1);
            assert_eq!(last(&history), [1.0, 3.0]);
        }
        push(&mut history, 100, &["a", "b"], &[f32::INFINITY, 3.0]);
        assert!(last(&history)[0].is_nan());
        push(&mut history, 101, &["b"], &[4.0]);
        assert_eq!(last(&history)[1], 4.0);
    }

    // A channel that appears later widens the rows that follow; channels beyond the limit are refused and counted.
    #[test]
    fn channels_may_appear_up_to_the_limit() {
        let mut history = History::default();
        push(&mut history, 0, &["a"], &[1.0]);
        assert!(push(&mut history, 1, &["a", "b"], &[1.0, 2.0]).new_channel);
        assert_eq!(last(&history), [1.0, 2.0]);
        let many: Vec<String> = (0..CHANNELS_MAX).map(|n| format!("c{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let report = push(&mut history, 2, &many, &vec![0.0; CHANNELS_MAX]);
        assert_eq!(report.refused, 2);
        assert_eq!(history.channels().len(), CHANNELS_MAX);
    }

    // What is saved and restored continues exactly as if nothing had happened.
    #[test]
    fn a_saved_history_continues() {
        let mut history = History::default();
        for row in 0..30_i16 {
            push(&mut history, i64::from(row), &["a", "b"], &[f32::from(row), 1.0]);
        }
        let mut restored = History::restore(&history.save(20));
        for history in [&mut history, &mut restored] {
            push(history, 30, &["a"], &[30.0]);
        }
        assert_eq!(history.save(20), restored.save(20));
    }
}

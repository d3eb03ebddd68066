//! Joins single values into rows.
//!
//! Owns, for one asset, the newest value of every channel. A row is complete when every channel that still speaks
//! has a new value, or when the row's first value has waited [`JoinSettings::join_us`]; a channel without a new value
//! is then held at its last one, for at most [`JoinSettings::hold_us`], and missing afterwards. Takes the time as an
//! argument and never reads a clock: given the log's times, the same messages give the same rows, in a live run and
//! after a restart. At most [`CHANNELS_MAX`] channels.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::CHANNELS_MAX;
use crate::ids::ChannelName;

/// How long a row waits, and how long a value stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinSettings {
    /// How long a row waits for the rest of its values, in microseconds.
    pub join_us: i64,
    /// How long a value stands in for one that did not come, in microseconds.
    pub hold_us: i64,
}

/// A row that is complete.
#[derive(Debug, Clone, PartialEq)]
pub struct JoinedRow {
    /// The channels, by name.
    pub channels: Arc<[ChannelName]>,
    /// When the row's newest value arrived; rows of one asset have rising times.
    pub time_us: i64,
    /// One value per channel; NaN is missing.
    pub values: Vec<f32>,
}

/// The newest values of one asset.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Join {
    settings: JoinSettings,
    /// By name, so that the order of a row does not depend on who spoke first.
    slots: Vec<Slot>,
    /// When the first value of the open row arrived.
    opened_us: Option<i64>,
    newest_us: i64,
    last_row_us: Option<i64>,
    /// Until the first row has waited its full time, it is not known which channels there are.
    settled: bool,
    #[serde(skip)]
    channels: Option<Arc<[ChannelName]>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Slot {
    channel: ChannelName,
    value: f32,
    at_us: i64,
    fresh: bool,
}

impl Join {
    /// Knows no channel yet.
    pub fn new(settings: JoinSettings) -> Join {
        Join {
            settings,
            slots: Vec::new(),
            opened_us: None,
            newest_us: i64::MIN,
            last_row_us: None,
            settled: false,
            channels: None,
        }
    }

    /// Takes a value that arrived at `at_us` and hands over the rows that it completes: the open row if its time is
    /// up, and the one that the value itself makes complete. False if there are too many channels already.
    pub fn push(&mut self, channel: &ChannelName, value: f32, at_us: i64, out: &mut Vec<JoinedRow>) -> bool {
        out.extend(self.handle_timeout(at_us));
        let index = match self.slots.binary_search_by(|slot| slot.channel.cmp(channel)) {
            Ok(index) => index,
            Err(_) if self.slots.len() >= CHANNELS_MAX => return false,
            Err(index) => {
                self.channels = None;
                self.slots.insert(index, Slot { channel: channel.clone(), value, at_us, fresh: false });
                index
            }
        };
        if let Some(slot) = self.slots.get_mut(index) {
            (slot.value, slot.at_us, slot.fresh) = (value, at_us, true);
        }
        self.newest_us = at_us;
        self.opened_us.get_or_insert(at_us);
        let speaks = |slot: &Slot| at_us.saturating_sub(slot.at_us) <= self.settings.hold_us;
        if self.settled && self.slots.iter().all(|slot| slot.fresh || !speaks(slot)) {
            out.push(self.close());
        }
        true
    }

    /// When the open row will have waited long enough, in UTC microseconds.
    pub fn poll_timeout(&self) -> Option<i64> {
        self.opened_us.map(|opened| opened.saturating_add(self.settings.join_us))
    }

    /// The open row, if it has waited long enough by `now_us`, or if the clock was set back by as much.
    pub fn handle_timeout(&mut self, now_us: i64) -> Option<JoinedRow> {
        let opened = self.opened_us?;
        if now_us.saturating_sub(opened).saturating_abs() < self.settings.join_us {
            return None;
        }
        self.settled = true;
        Some(self.close())
    }

    fn close(&mut self) -> JoinedRow {
        let newest_us = self.newest_us;
        let time_us = match self.last_row_us {
            // Values of one moment can complete two rows; a step back of the clock is passed on as it is.
            Some(last) if last == newest_us => newest_us.saturating_add(1),
            _ => newest_us,
        };
        self.last_row_us = Some(time_us);
        self.opened_us = None;
        let hold_us = self.settings.hold_us;
        let value = |slot: &mut Slot| {
            let held = newest_us.saturating_sub(slot.at_us).saturating_abs() <= hold_us;
            slot.fresh = false;
            if held { slot.value } else { f32::NAN }
        };
        let values = self.slots.iter_mut().map(value).collect();
        let slots = &self.slots;
        let channels = self.channels.get_or_insert_with(|| slots.iter().map(|slot| slot.channel.clone()).collect());
        JoinedRow { channels: Arc::clone(channels), time_us, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000;

    struct Rig {
        join: Join,
        rows: Vec<JoinedRow>,
    }

    impl Rig {
        fn new(join_ms: i64, hold_ms: i64) -> Rig {
            let settings = JoinSettings { join_us: join_ms * MS, hold_us: hold_ms * MS };
            Rig { join: Join::new(settings), rows: Vec::new() }
        }

        fn push(&mut self, at_ms: i64, channel: &str, value: f32) {
            assert!(self.join.push(&ChannelName::parse(channel).unwrap(), value, at_ms * MS, &mut self.rows));
        }

        fn rows(&mut self) -> Vec<String> {
            let text = |row: JoinedRow| {
                let cell = |(name, value): (&ChannelName, &f32)| format!("{name}={value}");
                let cells: Vec<String> = row.channels.iter().zip(&row.values).map(cell).collect();
                format!("{} {}", row.time_us / MS, cells.join(" "))
            };
            self.rows.drain(..).map(text).collect()
        }
    }

    // The first row waits its full time, since nobody knows yet which channels there are; the next is complete when
    // every channel has a new value.
    #[test]
    fn rows_close_when_complete() {
        let mut rig = Rig::new(1_000, 10_000);
        rig.push(0, "b", 1.0);
        rig.push(10, "a", 2.0);
        assert!(rig.rows().is_empty());
        rig.push(1_000, "b", 3.0);
        assert_eq!(rig.rows(), ["10 a=2 b=1"]);
        rig.push(1_005, "a", 4.0);
        assert_eq!(rig.rows(), ["1005 a=4 b=3"]);
    }

    // A row closes at exactly its deadline, not one microsecond before, with the silent channel held at its last value.
    #[test]
    fn rows_close_at_the_deadline() {
        let mut rig = Rig::new(100, 10_000);
        rig.push(0, "a", 1.0);
        rig.push(0, "b", 2.0);
        assert_eq!(rig.join.poll_timeout(), Some(100 * MS));
        assert_eq!(rig.join.handle_timeout(100 * MS - 1), None);
        assert!(rig.join.handle_timeout(100 * MS).is_some());
        rig.push(200, "a", 5.0);
        let row = rig.join.handle_timeout(300 * MS).unwrap();
        assert_eq!(row.values, [5.0, 2.0]);
        assert_eq!(row.time_us, 200 * MS);
        assert_eq!(rig.join.poll_timeout(), None);
    }

    // A channel that has been silent for longer than it is held is missing, and rows no longer wait for it.
    #[test]
    fn silent_channels_go_missing() {
        let mut rig = Rig::new(100, 1_000);
        rig.push(0, "a", 1.0);
        rig.push(0, "b", 2.0);
        rig.push(1_000, "a", 3.0);
        assert_eq!(rig.rows(), ["0 a=1 b=2"]);
        rig.push(1_001, "a", 4.0);
        assert_eq!(rig.rows(), ["1001 a=4 b=NaN"]);
        rig.push(1_500, "b", 5.0);
        rig.push(1_501, "a", 6.0);
        assert_eq!(rig.rows(), ["1501 a=6 b=5"]);
    }

    // A channel that speaks twice before the others gives the row its newest value.
    #[test]
    fn the_newest_value_counts() {
        let mut rig = Rig::new(100, 1_000);
        rig.push(0, "a", 1.0);
        rig.push(1, "a", 2.0);
        rig.push(2, "b", 3.0);
        rig.push(100, "a", 4.0);
        assert_eq!(rig.rows(), ["2 a=2 b=3"]);
    }

    // Rows have rising times even when all values arrive in one microsecond, and a clock set back stalls nothing.
    #[test]
    fn times_rise_and_clocks_may_step() {
        let mut rig = Rig::new(100, 1_000);
        rig.push(1_000, "a", 1.0);
        rig.push(1_100, "a", 2.0);
        rig.push(1_100, "a", 3.0);
        let times: Vec<i64> = rig.rows.iter().map(|row| row.time_us).collect();
        assert_eq!(times, [1_000 * MS, 1_100 * MS, 1_100 * MS + 1]);
        rig.rows.clear();
        rig.push(50, "a", 4.0);
        assert_eq!(rig.rows(), ["50 a=4"]);
    }

    // No more channels than a reading may have.
    #[test]
    fn channels_are_bounded() {
        let mut join = Join::new(JoinSettings { join_us: 1, hold_us: 1 });
        let name = |n: usize| ChannelName::parse(&format!("c{n}")).unwrap();
        let mut rows = Vec::new();
        for n in 0..CHANNELS_MAX {
            assert!(join.push(&name(n), 0.0, 0, &mut rows));
        }
        assert!(!join.push(&name(CHANNELS_MAX), 0.0, 0, &mut rows));
        assert!(join.push(&name(0), 0.0, 0, &mut rows));
    }
}

//! How much was written to the device since midnight UTC, over restarts.
//!
//! Owns the sum of the day, from a counter that only grows and begins anew with the process. Reads no clock or file. Says when the sum is
//! worth storing: each [`STORE_EVERY_US`] at most, once it has grown by [`STORE_BYTES_MIN`]. A kill loses that minute, or those bytes.

use crate::state::WrittenOn;

/// Time between two storings: 1,440 pages of 4 KiB, 6 MiB, a day at most.
const STORE_EVERY_US: i64 = 60_000_000;
/// Less than this is not worth the page that storing it writes; an idle gateway rests.
const STORE_BYTES_MIN: u64 = 64 << 10;
/// UTC days.
const DAY_US: i64 = 24 * 3_600 * 1_000_000;
/// No clock that is right shows a time before this program was written: 2025-01-01.
pub(super) const EARLIEST_US: i64 = 1_735_689_600_000_000;

/// The sum of the day.
#[derive(Debug)]
pub struct Wear {
    today: WrittenOn,
    stored: Option<WrittenOn>,
    stored_us: i64,
    /// The counter when it was last read.
    counter: u64,
}

impl Wear {
    /// Goes on from what was stored. All that this process has written counts.
    pub fn resume(stored: Option<WrittenOn>) -> Wear {
        Wear { today: stored.unwrap_or_default(), stored, stored_us: 0, counter: 0 }
    }

    /// Bytes written today, with the counter as it is now; without one it is as it was.
    pub fn count(&mut self, now_us: i64, counter: Option<u64>) -> u64 {
        let written = counter.map_or(0, |counter| counter.saturating_sub(self.counter));
        self.counter = counter.unwrap_or(self.counter);
        let day = now_us.div_euclid(DAY_US);
        // A clock that is not set yet has no midnight.
        let is_set = now_us >= EARLIEST_US || self.stored.is_none();
        if day != self.today.day && is_set {
            // What was written since the last look counts for the new day: a second, or what was written before the clock was set.
            self.today = WrittenOn { day, bytes: 0 };
        }
        self.today.bytes = self.today.bytes.saturating_add(written);
        self.today.bytes
    }

    /// What to store now, if it is time to.
    pub fn due(&mut self, now_us: i64) -> Option<WrittenOn> {
        let waited = now_us.saturating_sub(self.stored_us);
        let soon = (0..STORE_EVERY_US).contains(&waited);
        if soon || self.unstored_bytes() < STORE_BYTES_MIN {
            return None;
        }
        self.stored_us = now_us;
        Some(self.today)
    }

    /// What to store at the end, if anything.
    pub fn last(&self) -> Option<WrittenOn> {
        (self.stored != Some(self.today)).then_some(self.today)
    }

    /// It was stored.
    pub fn stored(&mut self, written: WrittenOn) {
        self.stored = Some(written);
    }

    fn unstored_bytes(&self) -> u64 {
        let stored = self.stored.filter(|stored| stored.day == self.today.day);
        self.today.bytes.saturating_sub(stored.map_or(0, |stored| stored.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600 * 1_000_000;
    const MIB: u64 = 1 << 20;
    const DAY: i64 = 20_500;
    const MIDNIGHT_US: i64 = DAY * DAY_US;

    // What is written counts from midnight UTC, and what the process wrote before the first look counts too.
    #[test]
    fn a_day_begins_at_midnight() {
        let mut wear = Wear::resume(None);
        assert_eq!(wear.count(MIDNIGHT_US - 2, Some(500)), 500);
        assert_eq!(wear.count(MIDNIGHT_US - 1, Some(800)), 800);
        assert_eq!(wear.count(MIDNIGHT_US, Some(800)), 0);
        assert_eq!(wear.count(MIDNIGHT_US + HOUR_US, Some(1_000)), 200);
        assert_eq!(wear.count(MIDNIGHT_US + HOUR_US, None), 200, "the counter cannot be read");
        assert_eq!(wear.count(MIDNIGHT_US + HOUR_US, Some(1_001)), 201);
    }

    // A restart on the same day goes on with its sum, one on another day begins with what the process wrote.
    #[test]
    fn a_restart_goes_on() {
        let stored = WrittenOn { day: DAY, bytes: 7 * MIB };
        assert_eq!(Wear::resume(Some(stored)).count(MIDNIGHT_US + HOUR_US, Some(MIB)), 8 * MIB);
        assert_eq!(Wear::resume(Some(stored)).count(MIDNIGHT_US + DAY_US, Some(MIB)), MIB);
        assert_eq!(Wear::resume(Some(stored)).count(MIDNIGHT_US - 1, Some(MIB)), MIB, "the clock was wrong");
    }

    // While the clock is not set, the last day goes on; when it is set, the day is what it says.
    #[test]
    fn an_unset_clock_keeps_the_day() {
        let stored = WrittenOn { day: DAY, bytes: 7 * MIB };
        let mut wear = Wear::resume(Some(stored));
        assert_eq!(wear.count(HOUR_US, Some(MIB)), 8 * MIB);
        assert_eq!(wear.count(MIDNIGHT_US + HOUR_US, Some(2 * MIB)), 9 * MIB);
        assert_eq!(wear.count(MIDNIGHT_US + DAY_US, Some(2 * MIB)), 0);
    }

    // It is stored once a minute and only if it has grown, at the end if it differs, and again if storing failed.
    #[test]
    fn storing_wears_little() {
        let mut wear = Wear::resume(None);
        wear.count(MIDNIGHT_US, Some(MIB));
        let first = wear.due(MIDNIGHT_US).unwrap();
        assert_eq!(first, WrittenOn { day: DAY, bytes: MIB });
        wear.stored(first);
        wear.count(MIDNIGHT_US + 1, Some(2 * MIB));
        assert_eq!(wear.due(MIDNIGHT_US + STORE_EVERY_US - 1), None);
        assert_eq!(
            wear.due(MIDNIGHT_US + STORE_EVERY_US),
            Some(WrittenOn { day: DAY, bytes: 2 * MIB }),
            "and it fails"
        );
        assert_eq!(wear.due(MIDNIGHT_US + STORE_EVERY_US + 1), None);
        let again = wear.due(MIDNIGHT_US + 2 * STORE_EVERY_US).unwrap();
        wear.stored(again);
        wear.count(MIDNIGHT_US + HOUR_US, Some(2 * MIB + STORE_BYTES_MIN - 1));
        assert_eq!(wear.due(MIDNIGHT_US + HOUR_US), None, "it has hardly grown");
        let last = wear.last().unwrap();
        wear.stored(last);
        assert_eq!((last.bytes, wear.last()), (2 * MIB + STORE_BYTES_MIN - 1, None));
    }
}

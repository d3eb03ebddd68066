//! How much of its disk the gateway uses, how much it writes, and when the room ends.
//!
//! Owns a record of the last hour, one sample each [`SAMPLE_US`] and [`SAMPLES_MAX`] at most (8 KiB), and the count of the day.
//! Reads no clock, file or socket. What is written counts the log alone, which is nearly all of it, and begins anew when the gateway starts.

use std::collections::VecDeque;

use millwright_broker::log::LogStats;
use serde::Serialize;

use super::Share;

/// Time between two samples.
const SAMPLE_US: i64 = 10_000_000;
/// An hour of samples, so that a partition that is dropped now and then is averaged.
const SAMPLES_MAX: usize = 360;
/// A growth over less than this says nothing about hours.
const SPAN_US_MIN: i64 = 60_000_000;
/// What takes longer than ten years is not told.
const HOURS_MAX: f64 = 10.0 * 365.0 * 24.0;
/// UTC days.
const DAY_US: i64 = 24 * 3_600 * 1_000_000;

/// The disk at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct DiskUse {
    /// Bytes of the log in use.
    pub log_bytes: u64,
    /// Bytes that messages may use before the oldest are dropped.
    pub log_bytes_max: u64,
    /// Free bytes of the file system of the data directory; null if it cannot be asked.
    pub free_bytes: Option<u64>,
    /// Hours until the log has reached its quota or the file system is full, as both went in the last hour. Null when neither grows.
    pub hours_to_full: Option<f64>,
    /// Bytes sent to the device for the log since midnight UTC, or since the start: the wear of the flash.
    pub written_today_bytes: u64,
}

/// Measures it.
#[derive(Debug, Default)]
pub struct DiskMeter {
    samples: VecDeque<Sample>,
    day: i64,
    /// What had been written when the day began.
    day_began_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at_us: i64,
    log_bytes: u64,
    free_bytes: Option<u64>,
}

impl DiskMeter {
    /// The figures now.
    pub fn measure(&mut self, now_us: i64, log: &LogStats, disk: Option<Share>) -> DiskUse {
        let free_bytes = disk.map(|disk| disk.max.saturating_sub(disk.used));
        self.note(Sample { at_us: now_us, log_bytes: log.bytes, free_bytes });
        let day = now_us.div_euclid(DAY_US);
        if self.day != day {
            // The first day of a run began with nothing written.
            self.day_began_bytes = if self.day == 0 { 0 } else { log.device_bytes };
            self.day = day;
        }
        DiskUse {
            log_bytes: log.bytes,
            log_bytes_max: log.bytes_max,
            free_bytes,
            hours_to_full: self.hours_to_full(now_us, log, free_bytes),
            written_today_bytes: log.device_bytes.saturating_sub(self.day_began_bytes),
        }
    }

    fn note(&mut self, sample: Sample) {
        // A clock that was set makes the record worthless.
        if self.samples.back().is_some_and(|last| sample.at_us < last.at_us) {
            self.samples.clear();
        }
        if self.samples.back().is_some_and(|last| sample.at_us.saturating_sub(last.at_us) < SAMPLE_US) {
            return;
        }
        if self.samples.len() >= SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    fn hours_to_full(&self, now_us: i64, log: &LogStats, free_bytes: Option<u64>) -> Option<f64> {
        let first = self.samples.front()?;
        let span_us = now_us.saturating_sub(first.at_us);
        if span_us < SPAN_US_MIN {
            return None;
        }
        let hours_for = |left: u64, grown: u64| {
            let span_h = span_us as f64 / 3.6e9;
            (grown > 0).then(|| left as f64 / (grown as f64 / span_h))
        };
        let quota = hours_for(log.bytes_max.saturating_sub(log.bytes), log.bytes.saturating_sub(first.log_bytes));
        let system =
            free_bytes.zip(first.free_bytes).and_then(|(free, before)| hours_for(free, before.saturating_sub(free)));
        let soonest = [quota, system].into_iter().flatten().min_by(f64::total_cmp)?;
        (soonest <= HOURS_MAX).then_some(soonest)
    }
}

#[cfg(test)]
mod tests {
    use millwright_broker::log::{Log, LogConfig};

    use super::*;

    const HOUR_US: i64 = 3_600 * 1_000_000;
    const MIB: u64 = 1 << 20;

    fn stats(bytes: u64, device_bytes: u64) -> LogStats {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(LogConfig::new(dir.path())).unwrap().log;
        let stats = log.stats();
        log.close();
        LogStats { bytes, bytes_max: 100 * MIB, device_bytes, ..stats }
    }

    // The room ends where the growth of the last hour leads: by the quota or by the file system, whichever is first; before a
    // minute has passed, and when nothing grows, nothing is told.
    #[test]
    fn the_end_of_the_room_follows_from_the_growth() {
        let mut meter = DiskMeter::default();
        let disk = |free: u64| Some(Share { used: 1_000 * MIB - free, max: 1_000 * MIB });
        let start_us = 1_000 * DAY_US;
        assert_eq!(meter.measure(start_us, &stats(10 * MIB, 0), disk(900 * MIB)).hours_to_full, None);
        let at = |minutes: i64| start_us + minutes * HOUR_US / 60;
        assert_eq!(meter.measure(at(1) - 1, &stats(20 * MIB, 0), disk(900 * MIB)).hours_to_full, None);
        assert_eq!(meter.measure(at(1), &stats(10 * MIB, 0), disk(900 * MIB)).hours_to_full, None);
        let log = meter.measure(at(30), &stats(20 * MIB, 0), disk(900 * MIB)).hours_to_full.unwrap();
        assert!((log - 4.0).abs() < 1e-6, "80 MiB at 20 MiB an hour: {log}");
        let disk = meter.measure(at(30), &stats(20 * MIB, 0), disk(100 * MIB)).hours_to_full.unwrap();
        assert!((disk - 0.0625).abs() < 1e-6, "100 MiB at 1,600 MiB an hour: {disk}");
    }

    // What is written counts from midnight UTC, and on the first day from the start.
    #[test]
    fn the_wear_of_a_day_begins_at_midnight() {
        let mut meter = DiskMeter::default();
        let day_us = 1_000 * DAY_US;
        let mut written = |at_us, device| meter.measure(at_us, &stats(0, device), None).written_today_bytes;
        assert_eq!(written(day_us - 2, 500), 500);
        assert_eq!(written(day_us - 1, 800), 800);
        assert_eq!(written(day_us, 800), 0);
        assert_eq!(written(day_us + HOUR_US, 1_000), 200);
    }
}

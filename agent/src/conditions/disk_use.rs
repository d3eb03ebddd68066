//! How much of its disk the gateway uses, and when the room ends.
//!
//! Owns a record of the last hour, one sample each [`SAMPLE_US`] and [`SAMPLES_MAX`] at most (8 KiB). Reads no clock, file or socket.

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
    /// Bytes that the gateway sent to the device since midnight UTC, restarts included: the wear of the flash. Where the system does not
    /// count them, those of the log.
    pub written_today_bytes: u64,
}

/// Measures it.
#[derive(Debug, Default)]
pub struct DiskMeter {
    samples: VecDeque<Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at_us: i64,
    log_bytes: u64,
    free_bytes: Option<u64>,
}

impl DiskMeter {
    /// The figures now, with what was written today.
    pub fn measure(&mut self, now_us: i64, log: &LogStats, disk: Option<Share>, written_today_bytes: u64) -> DiskUse {
        let free_bytes = disk.map(|disk| disk.max.saturating_sub(disk.used));
        self.note(Sample { at_us: now_us, log_bytes: log.bytes, free_bytes });
        DiskUse {
            log_bytes: log.bytes,
            log_bytes_max: log.bytes_max,
            free_bytes,
            hours_to_full: self.hours_to_full(now_us, log, free_bytes),
            written_today_bytes,
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

    fn stats(bytes: u64) -> LogStats {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(LogConfig::new(dir.path())).unwrap().log;
        let stats = log.stats();
        log.close();
        LogStats { bytes, bytes_max: 100 * MIB, ..stats }
    }

    // The room ends where the growth of the last hour leads: by the quota or by the file system, whichever is first; before a
    // minute has passed, and when nothing grows, nothing is told.
    #[test]
    fn the_end_of_the_room_follows_from_the_growth() {
        let mut meter = DiskMeter::default();
        let disk = |free: u64| Some(Share { used: 1_000 * MIB - free, max: 1_000 * MIB });
        let start_us = 24_000 * HOUR_US;
        assert_eq!(meter.measure(start_us, &stats(10 * MIB), disk(900 * MIB), 0).hours_to_full, None);
        let at = |minutes: i64| start_us + minutes * HOUR_US / 60;
        assert_eq!(meter.measure(at(1) - 1, &stats(20 * MIB), disk(900 * MIB), 0).hours_to_full, None);
        assert_eq!(meter.measure(at(1), &stats(10 * MIB), disk(900 * MIB), 0).hours_to_full, None);
        let log = meter.measure(at(30), &stats(20 * MIB), disk(900 * MIB), 0).hours_to_full.unwrap();
        assert!((log - 4.0).abs() < 1e-6, "80 MiB at 20 MiB an hour: {log}");
        let disk = meter.measure(at(30), &stats(20 * MIB), disk(100 * MIB), 0).hours_to_full.unwrap();
        assert!((disk - 0.0625).abs() < 1e-6, "100 MiB at 1,600 MiB an hour: {disk}");
    }
}

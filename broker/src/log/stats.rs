//! Figures about the log: what a dashboard needs for λ, μ, backlog and wear.
//!
//! The writer counts; anyone reads. Counters are since the log was opened unless they say otherwise.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::FullReason;
use super::{LogId, Offset};

/// Buckets of the latency histogram: four per power of two up to 2^39 µs, six days.
const BUCKETS: usize = 160;

/// Latencies after which all buckets are halved, so that the percentiles follow the last few minutes.
const DECAY_COUNT: u64 = 65_536;

/// A registered cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorStats {
    /// Its name.
    pub name: String,
    /// The first message it needs.
    pub position: Offset,
    /// Messages between its position and the head.
    pub backlog_rows: u64,
}

/// The state of the log at one moment.
#[derive(Debug, Clone)]
pub struct LogStats {
    /// Which log.
    pub id: LogId,
    /// The offset that the next message gets.
    pub head: Offset,
    /// The oldest message on disk; the head if there is none.
    pub oldest: Offset,
    /// Messages committed.
    pub rows: u64,
    /// Payload and property bytes committed.
    pub payload_bytes: u64,
    /// Group commits that held messages or retained changes.
    pub commits: u64,
    /// Batches acknowledged.
    pub batches: u64,
    /// Rows waiting for the writer.
    pub queue_rows: u64,
    /// Bytes waiting for the writer or being committed, with their overhead, and the bound.
    pub queue_bytes: u64,
    /// The bound of `queue_bytes`.
    pub queue_bytes_max: u64,
    /// Batches that [`super::Log::try_append`] gave back.
    pub not_queued: u64,
    /// Batches refused by a limit after they were queued.
    pub refused: u64,
    /// Median and 99th percentile from append to acknowledgement in microseconds, of the last 100,000 or so.
    pub ack_latency_p50_us: u64,
    /// See `ack_latency_p50_us`.
    pub ack_latency_p99_us: u64,
    /// Median and 99th percentile of the commit itself in microseconds.
    pub commit_latency_p50_us: u64,
    /// See `commit_latency_p50_us`.
    pub commit_latency_p99_us: u64,
    /// Bytes of the database in use.
    pub bytes: u64,
    /// Bytes of the database that messages may use before retention begins.
    pub bytes_max: u64,
    /// Bytes of the write-ahead log in use; its quota is apart from `bytes_max`.
    pub wal_bytes: u64,
    /// The configured quota.
    pub quota_bytes: u64,
    /// Bytes sent to the device, estimated.
    pub device_bytes: u64,
    /// Topics known.
    pub topics: u64,
    /// Partition tables.
    pub partitions: u64,
    /// Partitions that retention dropped.
    pub partitions_dropped: u64,
    /// Messages dropped before a cursor had passed them, ever; the sum of the gap ledger.
    pub lost_rows: u64,
    /// Their payload and property bytes.
    pub lost_bytes: u64,
    /// Messages held in memory.
    pub tail_rows: u64,
    /// What they cost, in bytes.
    pub tail_bytes: u64,
    /// Retained messages.
    pub retained: u64,
    /// Stored sessions.
    pub sessions: u64,
    /// Stored sessions without a connection.
    pub sessions_away: u64,
    /// Every registered cursor, by name.
    pub cursors: Vec<CursorStats>,
    /// Why appends are being held, if they are.
    pub full: Option<FullReason>,
    /// Whether the writer runs and can write. A log that waits for a consumer is healthy; `full` says that it waits.
    pub healthy: bool,
}

impl LogStats {
    /// Bytes sent to the device for each payload byte, since the log was opened; 0 before the first.
    pub fn write_amplification(&self) -> f64 {
        if self.payload_bytes == 0 { 0.0 } else { self.device_bytes as f64 / self.payload_bytes as f64 }
    }
}

/// A histogram of microseconds that one thread fills and anyone reads.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    count: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: std::array::from_fn(|_| AtomicU64::new(0)), count: AtomicU64::new(0) }
    }
}

fn bucket_of(us: u64) -> usize {
    if us < 4 {
        return us as usize;
    }
    let exponent = 63 - us.leading_zeros() as usize;
    let quarter = (us >> (exponent - 2)) as usize & 3;
    ((exponent - 1) * 4 + quarter).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn bucket_end(bucket: usize) -> u64 {
    if bucket < 4 {
        return bucket as u64;
    }
    let (exponent, quarter) = (bucket / 4 + 1, bucket as u64 % 4);
    ((5 + quarter) << (exponent - 2)) - 1
}

impl Histogram {
    /// Counts a value. Only the writer calls this.
    pub(crate) fn record(&self, us: u64) {
        if let Some(bucket) = self.buckets.get(bucket_of(us)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        if self.count.fetch_add(1, Ordering::Relaxed) >= DECAY_COUNT {
            self.count.store(DECAY_COUNT / 2, Ordering::Relaxed);
            for bucket in &self.buckets {
                bucket.store(bucket.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
            }
        }
    }

    /// The value that a share of the counted values does not exceed, to within a quarter; 0 if none was counted.
    pub(crate) fn percentile(&self, share: f64) -> u64 {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let wanted = (counts.iter().sum::<u64>() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && wanted > 0 {
                return bucket_end(bucket);
            }
        }
        0
    }
}

/// What the writer counts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) rows: AtomicU64,
    pub(crate) payload_bytes: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) not_queued: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) ack_latency: Histogram,
    pub(crate) commit_latency: Histogram,
    pub(crate) pages_used: AtomicU64,
    pub(crate) wal_frames: AtomicU64,
    pub(crate) device_bytes: AtomicU64,
    pub(crate) topics: AtomicU64,
    pub(crate) partitions: AtomicU64,
    pub(crate) partitions_dropped: AtomicU64,
    pub(crate) lost_rows: AtomicU64,
    pub(crate) lost_bytes: AtomicU64,
}

#[cfg(test)]
mod tests {
    use super::*;

    // Every value falls into a bucket whose end is at or above it, by less than a third.
    #[test]
    fn buckets_hold_their_values() {
        for us in (0..2_000).chain([4_095, 4_096, 1 << 20, (1 << 30) + 12_345]) {
            let end = bucket_end(bucket_of(us));
            assert!(end >= us && end <= us + us / 3, "{us} ends at {end}");
        }
        assert!(bucket_of(u64::MAX) < BUCKETS);
    }

    // Percentiles of 1..=100 are right to within a bucket, and old values fade.
    #[test]
    fn percentiles_follow_the_values() {
        let histogram = Histogram::default();
        assert_eq!(histogram.percentile(0.5), 0);
        (1..=100).for_each(|us| histogram.record(us));
        assert!((50..=63).contains(&histogram.percentile(0.5)));
        assert!((99..=127).contains(&histogram.percentile(0.99)));
        (0..4 * DECAY_COUNT).for_each(|_| histogram.record(1_000));
        assert!((1_000..1_300).contains(&histogram.percentile(0.01)));
    }
}

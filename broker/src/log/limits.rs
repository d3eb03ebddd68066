//! Every bound of the log, each with its arithmetic, and the split of the byte quota.
//!
//! Owns no state. Everything here is fixed when the log is opened.

use std::time::Duration;

use super::error::OpenError;

/// SQLite page, in bytes: the block of the file systems and flash translation layers below.
pub const PAGE_BYTES: u64 = 4_096;

/// The smallest quota: 8 MiB of write-ahead log (a checkpoint interval of 4 MiB plus a group commit of up to
/// 2 MiB, and room to start over) and as much again of data, which then is 28 partitions of 256 KiB.
pub const QUOTA_BYTES_MIN: u64 = 16 * MIB;

/// The most rows that one batch may hold: more than a session reads from its socket in one go, and one commit.
pub const BATCH_ROWS_MAX: usize = 10_000;

/// What a message costs in memory besides its bytes: the record, its reference counts, its slot in a chunk.
pub const MESSAGE_OVERHEAD_BYTES: usize = 160;

/// The most messages that one disk read returns; a read transaction is that short so that it never holds the
/// write-ahead log back.
pub const FETCH_ROWS_MAX: usize = 500;

/// The most messages that one disk read passes because nobody wants their topic: as short as reading [`FETCH_ROWS_MAX`], for a row
/// that is not copied costs an eighth.
pub const PASSED_ROWS_MAX: usize = 4_000;

/// Read connections of [`super::Log::fetch`] and [`super::Log::visit`]: sessions that fell behind the tail take turns. Each has a page cache
/// of 1 MiB.
pub const POOL_READERS_MAX: usize = 4;

/// The longest cursor name, in bytes: a client identifier of reasonable length and a prefix.
pub const CURSOR_NAME_BYTES_MAX: usize = 1_024;

/// Rows of the gap ledger; the two oldest are merged beyond, so that the sums stay right. 10,000 rows of at most
/// 1.3 KiB (the names of the losers are cut at 1 KiB) are 13 MiB, of typically 100 bytes 1 MiB.
pub const GAP_ROWS_MAX: u64 = 10_000;

/// Frames in the write-ahead log after which the writer checkpoints: 1,000 × 4 KiB = 4 MiB.
pub(crate) const CHECKPOINT_FRAMES: u64 = 1_000;

/// Frames at which a checkpoint waits for readers to leave the write-ahead log, so that it starts over.
pub(crate) const CHECKPOINT_RESTART_FRAMES: u64 = 2_000;

/// One frame of the write-ahead log: a page and its header of 24 bytes.
pub(crate) const FRAME_BYTES: u64 = PAGE_BYTES + 24;

/// Pages that only the log's own bookkeeping may use (dropping, cursors, the gap ledger, a new partition's root):
/// 256 × 4 KiB = 1 MiB.
pub(crate) const RESERVE_PAGES: u64 = 256;

/// Above this size, opening checks the schema and the newest partition only: 64 MiB read in about 0.1 s.
pub(crate) const QUICK_CHECK_BYTES_MAX: u64 = 64 * MIB;

const MIB: u64 = 1_024 * 1_024;

/// Bounds that a configuration may change; the defaults suit a gateway with 1 GiB of memory. What is too small to work
/// is raised to what does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Rows that start a commit before the delay is over.
    pub group_rows_max: usize,
    /// Bytes that start a commit before the delay is over.
    pub group_bytes_max: usize,
    /// Batches waiting for the writer: one from each of 8,192 sessions.
    pub queue_batches_max: usize,
    /// Bytes of messages waiting for the writer, with their overhead.
    pub queue_bytes_max: usize,
    /// Rows of a partition.
    pub partition_rows_max: u64,
    /// Bytes of a partition; 0 derives it from the quota.
    pub partition_bytes_max: u64,
    /// Committed messages kept in memory.
    pub tail_rows_max: usize,
    /// Bytes of the committed messages kept in memory, with their overhead.
    pub tail_bytes_max: usize,
    /// How long committed messages are kept in memory while others come.
    pub tail_age_max: Duration,
    /// The largest message, payload and properties, in bytes.
    pub message_bytes_max: usize,
    /// Topics that the log knows at one time.
    pub topics_max: usize,
    /// Registered cursors.
    pub cursors_max: usize,
    /// Stored sessions; about 300 bytes of memory each.
    pub sessions_max: usize,
    /// Retained messages, and again as many in memory only.
    pub retained_count_max: usize,
    /// Bytes of the retained messages, and again as many in memory only.
    pub retained_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            // Below, a loaded log commits more often than its disk likes; above, the rate no longer rises.
            group_rows_max: 4_096,
            group_bytes_max: 4 * 1_024 * 1_024,
            queue_batches_max: 8_192,
            queue_bytes_max: 32 * 1_024 * 1_024,
            partition_rows_max: 250_000,
            partition_bytes_max: 0,
            // A burst of a second; and of an even flow four, which is further than a consumer is behind that keeps up. Who falls behind
            // further reads from disk. Without an end to their age, messages of 16 s took 7 MB more of a plant of 2,000 a second.
            tail_rows_max: 32_768,
            tail_bytes_max: 8 * 1_024 * 1_024,
            tail_age_max: Duration::from_secs(4),
            message_bytes_max: 16 * 1_024 * 1_024,
            // 100,000 of a plant, and what the gateway publishes itself: as many as a table of 131,072 places holds.
            topics_max: 114_688,
            cursors_max: 10_000,
            sessions_max: 10_000,
            retained_count_max: 65_536,
            retained_bytes_max: 64 * 1_024 * 1_024,
        }
    }
}

impl Limits {
    /// Raises what is too small to work.
    pub(crate) fn workable(mut self) -> Limits {
        self.group_rows_max = self.group_rows_max.max(1);
        self.queue_batches_max = self.queue_batches_max.max(1);
        // A batch is at most as large as the queue, and one message has to fit.
        self.queue_bytes_max = self.queue_bytes_max.max(64 * 1_024).min(u32::MAX as usize);
        self.partition_rows_max = self.partition_rows_max.max(1);
        self.topics_max = self.topics_max.max(1);
        self
    }
}

/// How the byte quota is split, and the limits that follow from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Bytes that the write-ahead log may take before appends are held.
    pub(crate) wal_bytes_max: u64,
    /// `max_page_count` of the database.
    pub(crate) pages_max: u64,
    /// Pages that appends may fill; [`RESERVE_PAGES`] fewer.
    pub(crate) pages_usable: u64,
    /// Bytes after which a partition is closed.
    pub(crate) partition_bytes_max: u64,
    /// Bytes that start a commit.
    pub(crate) group_bytes_max: usize,
    /// The largest message, and the largest batch, in bytes.
    pub(crate) batch_bytes_max: usize,
    /// Bytes of retained messages.
    pub(crate) retained_bytes_max: usize,
    /// Bytes of the committed messages kept in memory: never as much as the disk keeps, so that what is dropped from
    /// disk is in nobody's memory either.
    pub(crate) tail_bytes_max: usize,
    /// Bytes of topic names.
    pub(crate) topic_bytes_max: usize,
    /// Bytes of the filters of all stored sessions.
    pub(crate) session_bytes_max: usize,
}

impl Budget {
    /// Splits the quota: a quarter, between 8 and 64 MiB, for the write-ahead log, the rest for data.
    pub(crate) fn new(quota_bytes: u64, limits: &Limits) -> Result<Budget, OpenError> {
        if quota_bytes < QUOTA_BYTES_MIN {
            return Err(OpenError::QuotaTooSmall { quota_bytes, quota_bytes_min: QUOTA_BYTES_MIN });
        }
        let wal_bytes_max = (quota_bytes / 4).clamp(8 * MIB, 64 * MIB);
        // SQLite numbers pages with 32 bits.
        let pages_max = ((quota_bytes - wal_bytes_max) / PAGE_BYTES).min(u64::from(u32::MAX) - 1);
        let pages_usable = pages_max - RESERVE_PAGES;
        let usable_bytes = pages_usable * PAGE_BYTES;
        // Dropping takes 1 ms per 2 MiB: partitions are small enough not to be noticed, and at most about a
        // thousand at 64 GiB, because readers parse the schema again whenever one is created.
        let partition_bytes_max = match limits.partition_bytes_max {
            0 => (usable_bytes / 64).clamp(256 * 1_024, 64 * MIB),
            // However small it is asked for, there are at most a few thousand.
            bytes => bytes.max(usable_bytes / 4_096),
        };
        // A group must fit into the write-ahead log several times over, and a batch into a group's partition budget.
        let group_bytes_max = limits.group_bytes_max.min(to_usize(wal_bytes_max / 4));
        let batch_bytes_max = to_usize(usable_bytes / 8)
            .min(to_usize(wal_bytes_max / 2))
            .min(limits.queue_bytes_max)
            .min(limits.message_bytes_max.saturating_add(1_024 * 1_024));
        Ok(Budget {
            wal_bytes_max,
            pages_max,
            pages_usable,
            partition_bytes_max,
            group_bytes_max,
            batch_bytes_max,
            retained_bytes_max: limits.retained_bytes_max.min(to_usize(usable_bytes / 4)),
            tail_bytes_max: limits.tail_bytes_max.min(to_usize(usable_bytes / 4)),
            topic_bytes_max: to_usize(16 * MIB).min(to_usize(usable_bytes / 8)),
            session_bytes_max: to_usize(16 * MIB).min(to_usize(usable_bytes / 16)),
        })
    }

    /// Bytes that appended data may fill.
    pub(crate) fn bytes_usable(&self) -> u64 {
        self.pages_usable * PAGE_BYTES
    }
}

/// Pages that a row of so many bytes takes at most, in 1/256 of a page so that small rows add up.
pub(crate) fn row_page_fraction(bytes: usize) -> u64 {
    // A cell has headers of at most 40 bytes; a leaf holds whole cells in 4,000 bytes. Larger rows continue in
    // overflow pages of 4,092 bytes and have a part of up to a page in the leaf.
    let bytes = bytes as u64 + 40;
    match 4_000 / bytes {
        0 => (bytes.div_ceil(4_000) + 1) * 256,
        rows_per_page => 256_u64.div_ceil(rows_per_page),
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // The quota is never exceeded by the sum of its parts, from the smallest to the largest.
    #[test]
    fn budget_stays_within_the_quota() {
        for quota in [QUOTA_BYTES_MIN, 64 * MIB, 1_024 * MIB, 65_536 * MIB] {
            let budget = Budget::new(quota, &Limits::default()).unwrap();
            assert!(budget.pages_max * PAGE_BYTES + budget.wal_bytes_max <= quota);
            assert!(budget.pages_usable < budget.pages_max);
            assert!(budget.partition_bytes_max * 16 <= budget.bytes_usable());
            assert!((budget.group_bytes_max as u64) < budget.wal_bytes_max / 2);
            let fixed = (budget.retained_bytes_max + budget.topic_bytes_max + budget.batch_bytes_max) as u64;
            assert!(fixed <= budget.bytes_usable() / 2, "no room would be left for messages");
        }
        assert!(matches!(
            Budget::new(QUOTA_BYTES_MIN - 1, &Limits::default()),
            Err(OpenError::QuotaTooSmall { quota_bytes_min: QUOTA_BYTES_MIN, .. })
        ));
    }

    // The estimate of a row's pages is never below the row's own bytes.
    #[test]
    fn page_estimate_covers_the_row() {
        for bytes in [0, 1, 100, 288, 984, 985, 2_000, 3_996, 4_096, 65_536, 1 << 20] {
            assert!(row_page_fraction(bytes) * PAGE_BYTES / 256 >= bytes as u64, "{bytes}");
        }
    }
}

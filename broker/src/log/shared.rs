//! What the writer, the handles and the readers of one log share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use super::cursor::Cursors;
use super::error::FullReason;
use super::limits::{Budget, FRAME_BYTES, PAGE_BYTES};
use super::lineage::Lineage;
use super::session_book::SessionBook;
use super::stats::{Counters, LogStats};
use super::tail::{Tail, TailLimits};
use super::{LogConfig, Offset};
use crate::pulse::Pulse;
use crate::retained::Retained;

/// The state of one log.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: LogConfig,
    pub(crate) budget: Budget,
    pub(crate) lineage: Lineage,
    pub(crate) path: PathBuf,
    /// The offset that the next message gets; stored under the tail's lock.
    head: AtomicU64,
    pub(crate) head_watch: watch::Sender<Offset>,
    /// For threads that wait for the head to move.
    moved: (Mutex<()>, Condvar),
    pub(crate) oldest: AtomicU64,
    pub(crate) tail: Tail,
    pub(crate) retained: Retained,
    pub(crate) cursors: Cursors,
    pub(crate) sessions: SessionBook,
    pub(crate) counters: Counters,
    full: Mutex<Option<FullReason>>,
    /// The writer waits for space: moving a cursor must wake it.
    held: AtomicBool,
    pub(crate) closing: AtomicBool,
    /// The writer has ended.
    pub(crate) closed: AtomicBool,
    pub(crate) writer: OnceLock<Thread>,
    /// The writer's.
    pub(crate) pulse: Pulse,
    /// Bytes that may still be queued.
    pub(crate) queue_bytes: Semaphore,
    /// Rows and bytes queued and not yet taken by the writer.
    waiting_rows: AtomicUsize,
    waiting_bytes: AtomicUsize,
}

/// What the file keeps besides messages.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) cursors: Cursors,
    pub(crate) sessions: SessionBook,
    pub(crate) retained: Retained,
}

impl Shared {
    pub(crate) fn new(
        config: LogConfig,
        budget: Budget,
        lineage: Lineage,
        path: PathBuf,
        (oldest, head): (u64, u64),
        Kept { cursors, sessions, retained }: Kept,
    ) -> Shared {
        let tail = Tail::new(
            head,
            TailLimits {
                rows: config.limits.tail_rows_max,
                bytes: budget.tail_bytes_max,
                age: config.limits.tail_age_max,
            },
        );
        let queue_bytes = Semaphore::new(config.limits.queue_bytes_max);
        Shared {
            budget,
            lineage,
            path,
            head: AtomicU64::new(head),
            head_watch: watch::Sender::new(Offset(head)),
            moved: (Mutex::new(()), Condvar::new()),
            oldest: AtomicU64::new(oldest),
            tail,
            retained,
            cursors,
            sessions,
            counters: Counters::default(),
            full: Mutex::new(None),
            held: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            writer: OnceLock::new(),
            pulse: Pulse::default(),
            queue_bytes,
            waiting_rows: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            config,
        }
    }

    /// The offset that the next message gets.
    pub(crate) fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Moves the head; called with the tail's lock held, so that whoever sees the new head finds the messages.
    pub(crate) fn set_head(&self, head: u64) {
        self.head.store(head, Ordering::Release);
    }

    /// Tells everyone who waits for messages.
    pub(crate) fn announce_head(&self) {
        self.head_watch.send_replace(Offset(self.head()));
        drop(self.moved.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.moved.1.notify_all();
    }

    /// Blocks until the head is beyond `from`, the log is closed or the time is up; gives the head.
    pub(crate) fn wait_for_head(&self, from: u64, timeout: Duration) -> u64 {
        let deadline = Instant::now() + timeout;
        let mut guard = self.moved.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.head() > from || left.is_zero() || self.closed.load(Ordering::Acquire) {
                return self.head();
            }
            guard = self.moved.1.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Counts a batch that is in the queue, and wakes the writer if it is waiting for enough of them. Only after it is
    /// there: a writer that is woken before would commit without it, and the batch would wait a whole delay for the next
    /// group. The writer may be faster and count it as taken first; the sums wrap for that moment, which at worst
    /// starts a commit early.
    pub(crate) fn queued(&self, rows: usize, bytes: usize) {
        let (rows_max, bytes_max) = (self.config.limits.group_rows_max, self.budget.group_bytes_max);
        let rows_before = self.waiting_rows.fetch_add(rows, Ordering::AcqRel);
        let bytes_before = self.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
        let enough_rows = rows_before < rows_max && rows_before + rows >= rows_max;
        if enough_rows || (bytes_before < bytes_max && bytes_before + bytes >= bytes_max) {
            self.wake();
        }
    }

    /// The writer took a batch.
    pub(crate) fn taken(&self, rows: usize, bytes: usize) {
        self.waiting_rows.fetch_sub(rows, Ordering::AcqRel);
        self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Whether as much is queued as one commit takes.
    pub(crate) fn group_is_waiting(&self) -> bool {
        self.waiting_rows.load(Ordering::Acquire) >= self.config.limits.group_rows_max
            || self.waiting_bytes.load(Ordering::Acquire) >= self.budget.group_bytes_max
    }

    /// Wakes the writer.
    pub(crate) fn wake(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    /// Wakes the writer if it waits for space.
    pub(crate) fn wake_if_held(&self) {
        if self.held.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Says why appends are held, or that they no longer are.
    pub(crate) fn set_full(&self, reason: Option<FullReason>) {
        // Before the reason is looked at again: a cursor that moves from here on wakes the writer.
        self.held.store(reason.is_some(), Ordering::SeqCst);
        *self.lock_full() = reason;
    }

    fn lock_full(&self) -> MutexGuard<'_, Option<FullReason>> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The figures of this moment.
    pub(crate) fn stats(&self) -> LogStats {
        let counters = &self.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let head = self.head();
        let full = self.lock_full().clone();
        let (tail_rows, tail_bytes) = self.tail.size();
        let (sessions, sessions_away) = self.sessions.counts();
        // Waiting for a consumer is what the policy asks for; everything else needs someone to act.
        let failing = !matches!(full, None | Some(FullReason::Cursor { .. }));
        let queue_bytes_max = self.config.limits.queue_bytes_max as u64;
        LogStats {
            id: self.lineage.current(),
            head: Offset(head),
            oldest: Offset(self.oldest.load(Ordering::Acquire)),
            rows: get(&counters.rows),
            payload_bytes: get(&counters.payload_bytes),
            commits: get(&counters.commits),
            batches: get(&counters.batches),
            queue_rows: (self.waiting_rows.load(Ordering::Relaxed) as isize).max(0) as u64,
            queue_bytes: queue_bytes_max.saturating_sub(self.queue_bytes.available_permits() as u64),
            queue_bytes_max,
            not_queued: get(&counters.not_queued),
            refused: get(&counters.refused),
            ack_latency_p50_us: counters.ack_latency.percentile(0.5),
            ack_latency_p99_us: counters.ack_latency.percentile(0.99),
            commit_latency_p50_us: counters.commit_latency.percentile(0.5),
            commit_latency_p99_us: counters.commit_latency.percentile(0.99),
            bytes: get(&counters.pages_used) * PAGE_BYTES,
            bytes_max: self.budget.bytes_usable(),
            wal_bytes: get(&counters.wal_frames) * FRAME_BYTES,
            quota_bytes: self.config.quota_bytes,
            device_bytes: get(&counters.device_bytes),
            topics: get(&counters.topics),
            partitions: get(&counters.partitions),
            partitions_dropped: get(&counters.partitions_dropped),
            lost_rows: get(&counters.lost_rows),
            lost_bytes: get(&counters.lost_bytes),
            tail_rows: tail_rows as u64,
            tail_bytes: tail_bytes as u64,
            retained: self.retained.len() as u64,
            sessions: sessions as u64,
            sessions_away: sessions_away as u64,
            cursors: self.cursors.stats(head),
            healthy: !failing && !self.closed.load(Ordering::Acquire),
            full,
        }
    }
}

//! The writer's thread: takes batches off the queue, commits them in groups, tells everyone.
//!
//! One group at a time: gather (up to the delay), admit, make room, commit, announce, checkpoint. The only place that
//! writes. A failed commit is repeated until it succeeds; nobody is told before. It ends when the log is closed, with
//! everything queued committed, or, when the disk does not work, refused after [`CLOSE_PATIENCE`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::admit::{Admission, Group, Job, SessionGroup, SessionJob};
use super::cursor::FLUSH_INTERVAL;
use super::error::{AppendError, FullReason, StoreError};
use super::retention::Obstacle;
use super::shared::Shared;
use super::store::Store;

/// How long closing waits for a disk that does not take what is queued.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// The first and the longest wait before a failed commit is repeated. Moving a cursor cuts it short.
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Failures in a row after which the connection is opened anew.
const REOPEN_AFTER: u32 = 3;

/// Pages asked for beyond the estimate when SQLite found too few: a group of 2 MiB again.
const EXTRA_PAGES_MAX: u64 = 512;

/// Requests besides appends. Few, so a queue of 64 never fills for long.
#[derive(Debug)]
pub(crate) enum Control {
    /// Persist the cursors now.
    Flush(oneshot::Sender<()>),
    /// Change `max_page_count`, as if the disk filled or emptied.
    #[cfg(test)]
    LimitPages(u64, oneshot::Sender<()>),
    /// Report commits that succeed as failed.
    #[cfg(test)]
    Misreport(u32, oneshot::Sender<()>),
}

/// Requests that may wait.
pub(crate) const CONTROL_MAX: usize = 64;

/// Changes of sessions in one group, and those that may wait: a session has one on its way at a time, so more wait only
/// while as many sessions change something.
pub(crate) const SESSION_JOBS_MAX: usize = 1_000;

/// Lets the queues wake this thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The writer.
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Store,
    admission: Admission,
    queue: mpsc::Receiver<Job>,
    sessions: mpsc::Receiver<SessionJob>,
    control: mpsc::Receiver<Control>,
    /// Taken off the queues, not yet in a group.
    inbox: VecDeque<Job>,
    session_inbox: VecDeque<SessionJob>,
    received: Vec<Job>,
    waker: Waker,
    flushed_at: Instant,
    closing_since: Option<Instant>,
}

/// What comes to the writer.
#[derive(Debug)]
pub(crate) struct Queues {
    pub(crate) queue: mpsc::Receiver<Job>,
    pub(crate) sessions: mpsc::Receiver<SessionJob>,
    pub(crate) control: mpsc::Receiver<Control>,
}

/// Marks the log as closed when the writer ends, however it ends.
struct EndOfWriter(Arc<Shared>);

impl Drop for EndOfWriter {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.queue_bytes.close();
        self.0.announce_head();
    }
}

impl Writer {
    /// Builds the writer in its thread.
    pub(crate) fn new(
        shared: Arc<Shared>,
        store: Store,
        admission: Admission,
        Queues { queue, sessions, control }: Queues,
    ) -> Writer {
        Writer {
            shared,
            store,
            admission,
            queue,
            sessions,
            control,
            inbox: VecDeque::new(),
            session_inbox: VecDeque::new(),
            received: Vec::new(),
            waker: Waker::from(Arc::new(Unpark(thread::current()))),
            flushed_at: Instant::now(),
            closing_since: None,
        }
    }

    /// Works until the log is closed.
    pub(crate) fn run(mut self) {
        let _end = EndOfWriter(Arc::clone(&self.shared));
        self.publish_usage();
        while self.gather() {
            let group = self.admit();
            if !self.commit(group) {
                self.refuse_all();
                break;
            }
        }
        let _ = self.flush_cursors();
        let _disk = self.shared.pulse.on_disk();
        // What is not copied now is copied when the log is opened again.
        let _ = self.store.checkpoint_all();
    }

    /// Waits until there is something to commit and its delay is over; `false` when the log is closed and drained.
    fn gather(&mut self) -> bool {
        loop {
            self.housekeep();
            self.receive_sessions();
            match self.receive() {
                _ if !self.inbox.is_empty() || !self.session_inbox.is_empty() => break,
                Received::Closed => return false,
                _ => self.park_until_due(),
            }
        }
        let first = self.inbox.front().map(|job| job.queued_at);
        let first = first.into_iter().chain(self.session_inbox.front().map(|job| job.queued_at)).min();
        let Some(first) = first else { return true };
        let deadline = first + self.shared.config.commit_delay;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let enough = self.inbox_is_full() || self.shared.group_is_waiting();
            if left.is_zero() || enough || self.shared.closing.load(Ordering::Acquire) {
                break;
            }
            thread::park_timeout(left);
        }
        self.receive();
        self.receive_sessions();
        true
    }

    /// Takes the changes of sessions that are queued, as far as one group needs them.
    fn receive_sessions(&mut self) {
        let waker = self.waker.clone();
        let mut context = Context::from_waker(&waker);
        while self.session_inbox.len() < SESSION_JOBS_MAX
            && let Poll::Ready(Some(job)) = self.sessions.poll_recv(&mut context)
        {
            self.session_inbox.push_back(job);
        }
    }

    /// Takes what is queued, as far as one group needs it.
    fn receive(&mut self) -> Received {
        if self.inbox_is_full() {
            return Received::Some;
        }
        let mut context = Context::from_waker(&self.waker);
        let limit = self.shared.config.limits.group_rows_max.max(1);
        match self.queue.poll_recv_many(&mut context, &mut self.received, limit) {
            Poll::Ready(0) => Received::Closed,
            Poll::Ready(_) => {
                self.inbox.extend(self.received.drain(..));
                Received::Some
            }
            Poll::Pending => Received::Nothing,
        }
    }

    fn inbox_is_full(&self) -> bool {
        self.inbox.len() >= self.shared.config.limits.group_rows_max
    }

    fn park_until_due(&self) {
        if self.shared.cursors.is_dirty() {
            thread::park_timeout(FLUSH_INTERVAL.saturating_sub(self.flushed_at.elapsed()));
        } else {
            // A cursor that moves while nothing is appended is persisted within two intervals.
            thread::park_timeout(FLUSH_INTERVAL);
        }
    }

    /// Requests, cursors that are due, and the wish to close.
    fn housekeep(&mut self) {
        self.shared.pulse.beat();
        if self.shared.closing.load(Ordering::Acquire) && self.closing_since.is_none() {
            self.closing_since = Some(Instant::now());
            self.queue.close();
            self.sessions.close();
        }
        if self.cursors_due() {
            let _ = self.flush_cursors();
        }
        let waker = self.waker.clone();
        let mut context = Context::from_waker(&waker);
        while let Poll::Ready(Some(request)) = self.control.poll_recv(&mut context) {
            self.serve(request);
        }
    }

    fn serve(&mut self, request: Control) {
        match request {
            Control::Flush(done) => {
                if self.flush_cursors().is_ok() {
                    let _ = done.send(());
                }
            }
            #[cfg(test)]
            Control::Misreport(count, done) => {
                self.store.misreports = count;
                let _ = done.send(());
            }
            #[cfg(test)]
            Control::LimitPages(pages_max, done) => {
                if super::schema::limit_pages(&self.store.connection, pages_max).is_ok() {
                    let _ = done.send(());
                }
            }
        }
    }

    fn cursors_due(&self) -> bool {
        self.shared.cursors.is_dirty() && self.flushed_at.elapsed() >= FLUSH_INTERVAL
    }

    /// Persists the cursors in a commit of their own.
    fn flush_cursors(&mut self) -> Result<(), StoreError> {
        self.flushed_at = Instant::now();
        let changes = self.shared.cursors.changes();
        if changes.is_empty() {
            return Ok(());
        }
        let _disk = self.shared.pulse.on_disk();
        match self.store.write_cursors(&changes) {
            Ok(()) => {
                self.shared.cursors.persisted(&changes);
                Ok(())
            }
            Err(error) => {
                self.shared.cursors.persist_failed(changes);
                Err(error)
            }
        }
    }

    /// Makes one group of what was taken off the queue; refuses batches that break a limit.
    fn admit(&mut self) -> Group {
        let (rows_max, bytes_max) = (self.shared.config.limits.group_rows_max, self.shared.budget.group_bytes_max);
        let mut group = Group::default();
        for job in self.session_inbox.drain(..) {
            group.add_session(job);
        }
        while let Some(job) = self.inbox.front() {
            let rows = group.batch.messages.len() + job.entries.len();
            let bytes = group.queue_bytes + job.bytes;
            if !group.acks.is_empty() && (rows > rows_max || bytes > bytes_max) {
                break;
            }
            let Some(job) = self.inbox.pop_front() else { break };
            self.shared.taken(job.entries.len(), job.bytes);
            if let Err((job, error)) = self.admission.admit(job, &mut self.store.topics, &mut group) {
                self.shared.counters.refused.fetch_add(1, Ordering::Relaxed);
                self.shared.queue_bytes.add_permits(job.bytes);
                reply(job.reply, Err(error));
            }
        }
        group
    }

    /// Commits the group, however long it takes; `false` if the log was closed before the disk took it.
    fn commit(&mut self, mut group: Group) -> bool {
        let (mut failures, mut extra_pages, mut held) = (0, 0, false);
        loop {
            self.shared.pulse.beat();
            let Err(obstacle) = self.try_commit(&mut group, extra_pages) else { break };
            if matches!(obstacle, Obstacle::Full(_)) {
                self.commit_sessions(&mut group.sessions);
            }
            if matches!(obstacle, Obstacle::Store(_)) {
                failures += 1;
                extra_pages = (extra_pages * 2).clamp(64, EXTRA_PAGES_MAX);
            }
            let (reason, retry_at_once) = self.overcome(obstacle, &mut group, failures);
            if !held {
                tracing::warn!(%reason, "appends wait");
            }
            self.shared.set_full(Some(reason));
            self.receive_sessions();
            for job in self.session_inbox.drain(..) {
                group.sessions.add(job);
            }
            // From here on a cursor that moves wakes this thread; one that moved just before must not be missed.
            let noticed = std::mem::replace(&mut held, true);
            if noticed && !retry_at_once && !self.wait_for_change(failures) {
                self.fail(group);
                return false;
            }
        }
        if held {
            tracing::info!("appends go on");
            self.shared.set_full(None);
        }
        self.announce(group);
        // A checkpoint that fails is repeated after the next commit; the write-ahead log keeps everything meanwhile,
        // within its share of the quota.
        let disk = self.shared.pulse.on_disk();
        let _ = self.store.checkpoint_if_due();
        drop(disk);
        self.publish_usage();
        true
    }

    fn try_commit(&mut self, group: &mut Group, extra_pages: u64) -> Result<(), Obstacle> {
        if group.is_empty() || group.is_stored {
            return Ok(());
        }
        let _disk = self.shared.pulse.on_disk();
        self.make_room(group.pages().saturating_add(extra_pages).min(self.store.budget.pages_usable / 2))?;
        let changes = if self.cursors_due() { self.shared.cursors.changes() } else { Vec::new() };
        let started = Instant::now();
        match self.store.write(&group.batch, &group.sessions.updates, &changes) {
            Ok(()) => {
                if !changes.is_empty() {
                    self.shared.cursors.persisted(&changes);
                    self.flushed_at = started;
                }
                self.shared.counters.commits.fetch_add(1, Ordering::Relaxed);
                self.shared.counters.commit_latency.record(elapsed_us(started));
                Ok(())
            }
            Err(error) => {
                self.shared.cursors.persist_failed(changes);
                Err(error.into())
            }
        }
    }

    /// Commits the changes of sessions alone: while there is no room for messages clients still connect, subscribe and
    /// acknowledge. They take the pages that are reserved for bookkeeping. What fails is tried again with the group.
    fn commit_sessions(&mut self, sessions: &mut SessionGroup) {
        let _disk = self.shared.pulse.on_disk();
        if sessions.updates.is_empty() || self.store.write_sessions(&sessions.updates).is_err() {
            return;
        }
        let done = std::mem::take(sessions);
        for update in &done.updates {
            self.shared.sessions.apply(update);
        }
        done.answer(&Ok(()));
    }

    /// Does what can be done about an obstacle. Gives what to report, and whether to try again at once.
    fn overcome(&mut self, obstacle: Obstacle, group: &mut Group, failures: u32) -> (FullReason, bool) {
        let error = match obstacle {
            Obstacle::Full(reason) => return (reason, false),
            Obstacle::Store(error) => error,
        };
        let text = error.to_string();
        let _disk = self.shared.pulse.on_disk();
        match error {
            StoreError::Full(_) => {
                let usage = self.store.usage;
                if usage.pages_used + 2 * group.pages() >= self.store.budget.pages_usable {
                    // The pages were underestimated: the next round asks for more.
                    return (FullReason::DiskFull { error: text }, failures <= 2);
                }
                // A complete checkpoint lets the write-ahead log start over in the space it has; a dropped partition
                // lets new rows take pages that the file has.
                let _ = self.store.checkpoint_all();
                let free = usage.pages.saturating_sub(usage.pages_used);
                let dropped = free < group.pages() && self.drop_oldest().is_ok();
                (FullReason::DiskFull { error: text }, dropped && failures <= 2)
            }
            StoreError::Corrupt(_) => {
                // The newest partition cannot be extended: leave it to its readers and begin another.
                self.store.partitions.roll();
                (FullReason::Failed { error: text }, failures == 1)
            }
            StoreError::Busy(_) => (FullReason::Failed { error: text }, false),
            StoreError::Failed(_) => {
                if failures >= REOPEN_AFTER {
                    self.reopen(group);
                }
                (FullReason::Failed { error: text }, false)
            }
        }
    }

    /// Opens the connection anew. A commit that was reported as failed may have reached the file after all: then the
    /// group is done.
    fn reopen(&mut self, group: &mut Group) {
        // Failing again is the next attempt's failure.
        if let Ok(head) = self.store.reopen() {
            group.is_stored = !group.batch.messages.is_empty() && head == self.admission.next;
        }
    }

    /// Waits for a cursor to move, for space, or for the disk; `false` when the log is being closed and has waited
    /// long enough.
    fn wait_for_change(&mut self, failures: u32) -> bool {
        let wait = RETRY_MIN.saturating_mul(1 << failures.min(8)).min(RETRY_MAX);
        thread::park_timeout(if failures == 0 { RETRY_MAX / 4 } else { wait });
        self.housekeep();
        self.closing_since.is_none_or(|since| since.elapsed() < CLOSE_PATIENCE)
    }

    /// Tells everyone about a committed group: the tail and the head, the retained store, then the publishers.
    fn announce(&mut self, group: Group) {
        let counters = &self.shared.counters;
        counters.rows.fetch_add(group.batch.messages.len() as u64, Ordering::Relaxed);
        counters.payload_bytes.fetch_add(group.payload_bytes, Ordering::Relaxed);
        counters.batches.fetch_add(group.acks.len() as u64, Ordering::Relaxed);
        let moved = !group.batch.messages.is_empty();
        self.shared.tail.push(group.batch.messages, |head| self.shared.set_head(head));
        self.shared.retained.apply(group.batch.retained);
        for update in group.batch.sessions.iter().chain(&group.sessions.updates) {
            self.shared.sessions.apply(update);
        }
        group.sessions.answer(&Ok(()));
        let now = Instant::now();
        for ack in group.acks {
            let latency = now.saturating_duration_since(ack.queued_at);
            counters.ack_latency.record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
            reply(ack.reply, Ok(ack.first));
        }
        if moved {
            self.shared.announce_head();
        }
        self.shared.queue_bytes.add_permits(group.queue_bytes);
    }

    /// Gives up on a group that the disk did not take before the log was closed.
    fn fail(&mut self, group: Group) {
        for ack in group.acks {
            reply(ack.reply, Err(AppendError::Closed));
        }
        group.sessions.answer(&Err(AppendError::Closed));
    }

    /// Refuses everything still queued.
    fn refuse_all(&mut self) {
        self.queue.close();
        // Whoever waits for one is told by its reply being dropped.
        self.sessions.close();
        self.session_inbox.clear();
        while self.receive_any() {
            for job in self.inbox.drain(..) {
                reply(job.reply, Err(AppendError::Closed));
            }
        }
    }

    fn receive_any(&mut self) -> bool {
        let got = matches!(self.receive(), Received::Some);
        got || !self.inbox.is_empty()
    }

    /// Copies the store's figures to where they can be read.
    pub(crate) fn publish_usage(&self) {
        let (counters, usage) = (&self.shared.counters, &self.store.usage);
        counters.pages_used.store(usage.pages_used, Ordering::Relaxed);
        counters.wal_frames.store(usage.wal_frames, Ordering::Relaxed);
        counters.device_bytes.store(usage.device_bytes, Ordering::Relaxed);
        counters.topics.store(self.store.topics.len() as u64, Ordering::Relaxed);
        counters.partitions.store(self.store.partitions.len() as u64, Ordering::Relaxed);
    }
}

enum Received {
    Some,
    Nothing,
    Closed,
}

/// Answers a publisher, who may have gone.
fn reply(to: Option<oneshot::Sender<Result<super::Offset, AppendError>>>, answer: Result<super::Offset, AppendError>) {
    if let Some(to) = to {
        let _ = to.send(answer);
    }
}

fn elapsed_us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

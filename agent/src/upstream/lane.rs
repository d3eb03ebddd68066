//! A lane: a cursor on the log, and what was read ahead of it.
//!
//! Owns the rule that the cursor passes a message when the peer has confirmed it and all before it, or nobody wants it. One read at a
//! time is under way, on another thread, while messages are delivered on this one. Urgent messages and telemetry have lanes
//! of their own, so that an alert overtakes what waits. Bounds: it reads on while less than [`AHEAD`] deliveries wait, one delivery at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millwright_broker::log::{Cursor, FetchLimit, Log, LogVisit, Offset, ReadError};
use millwright_broker::topic::TopicName;
use tokio::task::JoinHandle;

use super::condense::Condenser;
use super::record::{Origin, Record};
use super::selection::{self, Selection};
use crate::config::upstream::Batching;

/// Deliveries that wait before reading pauses.
const AHEAD: usize = 2;
/// Messages that one read passes or takes at most, so that a lane without a match tells how far it is: 25 short transactions, some
/// ten milliseconds.
const SCAN_ROWS_MAX: u64 = 100_000;

/// How messages of the log become records.
#[derive(Debug)]
pub(super) enum Make {
    /// As they are.
    Raw(Box<Selection>),
    /// Condensed.
    Condensed(Box<Condenser>),
}

/// A lane.
#[derive(Debug)]
pub(super) struct Lane {
    cursor: Cursor,
    origin: Origin,
    /// Held by the read that is under way, and by nobody for long besides.
    make: Arc<Mutex<Make>>,
    reading: Option<JoinHandle<Result<Stretch, ReadError>>>,
    /// Everything before it was read.
    position: Offset,
    /// Where what is not whole yet begins: condensed messages of a span that is open.
    open_from: Option<Offset>,
    waiting: VecDeque<Record>,
    bytes: usize,
    /// A delivery was taken and is not settled yet.
    is_out: bool,
    lost: u64,
}

/// What one read brings.
#[derive(Debug)]
struct Stretch {
    records: Vec<Record>,
    bytes: usize,
    next: Offset,
    open_from: Option<Offset>,
    lost: u64,
}

impl Lane {
    /// A lane that goes on where its cursor stands.
    pub(super) fn new(cursor: Cursor, origin: Origin, make: Make) -> Lane {
        let position = cursor.position();
        Lane {
            cursor,
            origin,
            make: Arc::new(Mutex::new(make)),
            reading: None,
            position,
            open_from: None,
            waiting: VecDeque::new(),
            bytes: 0,
            is_out: false,
            lost: 0,
        }
    }

    /// Where its cursor stands.
    pub(super) fn confirmed(&self) -> Offset {
        self.cursor.position()
    }

    /// How far the log was read.
    pub(super) fn read_to(&self) -> Offset {
        self.position
    }

    /// Leaves out the message of this identifier if it is the first that waits; returns whether it was.
    pub(super) fn pass(&mut self, id: &str) -> bool {
        if self.waiting.front().is_none_or(|record| record.id != id) {
            return false;
        }
        let passed: Vec<Record> = self.waiting.pop_front().into_iter().collect();
        self.bytes = self.bytes.saturating_sub(passed.iter().map(|record| record.payload.len()).sum());
        self.confirm(&passed, passed.len());
        self.settle();
        true
    }

    /// Messages that retention dropped before they were read.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Whether there is something to deliver.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether as much waits as one delivery takes.
    pub(super) fn is_full(&self, batch: Batching) -> bool {
        self.waiting.len() >= batch.messages || self.bytes >= batch.bytes
    }

    /// When the oldest that waits was received, UTC microseconds.
    pub(super) fn oldest_us(&self) -> Option<i64> {
        self.waiting.front().map(|record| record.received_us)
    }

    /// Whether a read is under way.
    pub(super) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Begins to read on if there is room, the log has more and no read is under way.
    pub(super) fn begin(&mut self, log: &Log, batch: Batching, now_us: i64) {
        if self.reading.is_some() {
            return;
        }
        if self.position >= log.head() {
            self.close_due(now_us);
            return;
        }
        if self.waiting.len() >= batch.messages * AHEAD || self.bytes >= batch.bytes * AHEAD {
            return;
        }
        let (log, from) = (log.clone(), self.position);
        let (make, origin) = (Arc::clone(&self.make), self.origin.clone());
        self.reading =
            Some(tokio::spawn(
                async move { log.visit(move |log| read(log, &mut lock(&make), from, batch, &origin)).await },
            ));
    }

    /// Waits for the read that is under way, for ever if there is none. May be dropped and called again.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) async fn arrived(&mut self) -> Result<(), ReadError> {
        let Some(reading) = &mut self.reading else { return std::future::pending().await };
        let result = reading.await;
        self.reading = None;
        let stretch = result.map_err(|_| ReadError::Closed)??;
        if stretch.lost > 0 {
            self.lost = self.lost.saturating_add(stretch.lost);
            tracing::error!(
                cursor = self.cursor.name(),
                lost = stretch.lost,
                "messages were dropped before they could be forwarded"
            );
        }
        self.position = stretch.next;
        self.open_from = stretch.open_from;
        self.bytes += stretch.bytes;
        self.waiting.extend(stretch.records);
        self.settle();
        Ok(())
    }

    /// Whether nothing new will come for a while in what is being condensed: then it is whole.
    fn close_due(&mut self, now_us: i64) {
        // No read is under way: nobody else holds it.
        if let Make::Condensed(condenser) = &mut *lock(&self.make) {
            condenser.close_due(now_us, self.position, &self.origin);
            self.open_from = condenser.begun_at();
            for record in condenser.finished() {
                self.bytes += record.payload.len();
                self.waiting.push_back(record);
            }
        }
        self.settle();
    }

    /// Takes the next delivery: `messages` at most, and as many bytes as `batch` allows.
    pub(super) fn take(&mut self, batch: Batching, messages: usize) -> Vec<Record> {
        let (mut taken, mut bytes) = (Vec::new(), 0_usize);
        while let Some(record) = self.waiting.front() {
            let more = bytes.saturating_add(record.payload.len());
            if taken.len() >= messages || (more > batch.bytes && !taken.is_empty()) {
                break;
            }
            bytes = more;
            taken.extend(self.waiting.pop_front());
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        self.is_out = !taken.is_empty();
        taken
    }

    /// The first `count` of a delivery that is still under way are confirmed.
    pub(super) fn confirm(&self, records: &[Record], count: usize) {
        let next = records.iter().take(count).rev().find_map(|record| record.next);
        if let Some(next) = next {
            self.cursor.advance(next);
        }
    }

    /// A delivery is over: its first `count` are confirmed, the others come first in the next one.
    pub(super) fn put_back(&mut self, mut records: Vec<Record>, count: usize) {
        self.confirm(&records, count);
        for record in records.drain(count.min(records.len())..).rev() {
            self.bytes += record.payload.len();
            self.waiting.push_front(record);
        }
        self.is_out = false;
        self.settle();
    }

    /// What nobody wants is passed when nothing before it waits.
    fn settle(&mut self) {
        if self.waiting.is_empty() && !self.is_out {
            self.cursor.advance(self.open_from.unwrap_or(self.position));
        }
    }
}

fn lock(make: &Mutex<Make>) -> MutexGuard<'_, Make> {
    make.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads on from `from` until a delivery is full, much was passed or the log has no more.
fn read(
    log: &mut LogVisit<'_>,
    make: &mut Make,
    from: Offset,
    batch: Batching,
    origin: &Origin,
) -> Result<Stretch, ReadError> {
    let mut stretch = Stretch { records: Vec::new(), bytes: 0, next: from, open_from: None, lost: 0 };
    while stretch.next < log.head() && stretch.next.0.saturating_sub(from.0) < SCAN_ROWS_MAX {
        let left = batch.messages.saturating_sub(stretch.records.len());
        if left == 0 || stretch.bytes >= batch.bytes {
            break;
        }
        let limit = FetchLimit { rows: left.min(FetchLimit::default().rows), ..FetchLimit::default() };
        let fetched = match make {
            Make::Raw(selection) => {
                let mut wanted = |number: u32, topic: &TopicName| selection.wants(number, topic);
                log.read(stretch.next, limit, Some(&mut wanted))
            }
            // A span ends with the first message behind it, whoever sent that.
            Make::Condensed(_) => log.read(stretch.next, limit, None),
        };
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(error) if stretch.next == from => return Err(error),
            // What was made already must not be made twice: the next read meets the error again.
            Err(_) => break,
        };
        if let Some(gap) = fetched.lost {
            stretch.lost = stretch.lost.saturating_add(gap.to.0.saturating_sub(gap.from.0));
        }
        match make {
            Make::Raw(selection) => {
                for message in &fetched.messages {
                    if let Some(choice) = selection.choose(message.topic_id, &message.message.topic) {
                        stretch.push(selection::record(message, choice, origin));
                    }
                }
            }
            Make::Condensed(condenser) => {
                fetched.messages.iter().for_each(|message| condenser.take(message, origin));
                condenser.finished().for_each(|record| stretch.push(record));
                stretch.open_from = condenser.begun_at();
            }
        }
        if fetched.next == stretch.next {
            break;
        }
        stretch.next = fetched.next;
    }
    Ok(stretch)
}

impl Stretch {
    fn push(&mut self, record: Record) {
        self.bytes += record.payload.len();
        self.records.push(record);
    }
}

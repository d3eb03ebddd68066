//! A lane: a cursor on the log, and what was read ahead of it.
//!
//! Owns the rule that the cursor passes a message when the peer has confirmed it and all before it, or nobody wants it. Reading ahead is
//! bounded by two deliveries. Urgent messages and telemetry have lanes of their own, so that an alert overtakes what waits.

use std::collections::VecDeque;

use millwright_broker::log::{Cursor, FetchLimit, Log, Offset, ReadError};

use super::condense::Condenser;
use super::record::{Origin, Record};
use super::selection::{self, Selection};
use crate::config::upstream::Batching;

/// Deliveries that are read ahead: the one that is under way and the next.
const AHEAD: usize = 2;
/// Messages read before a lane without a match tells how far it is, so that others have their turn: 20 reads from disk.
const SCAN_ROWS_MAX: usize = 10_000;

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
    make: Make,
    /// Everything before it was read.
    position: Offset,
    waiting: VecDeque<Record>,
    bytes: usize,
    /// A delivery was taken and is not settled yet.
    is_out: bool,
    lost: u64,
}

impl Lane {
    /// A lane that goes on where its cursor stands.
    pub(super) fn new(cursor: Cursor, origin: Origin, make: Make) -> Lane {
        let position = cursor.position();
        Lane { cursor, origin, make, position, waiting: VecDeque::new(), bytes: 0, is_out: false, lost: 0 }
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

    /// Reads ahead, until two deliveries wait or the log has no more; returns whether it would read on at once.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(super) async fn read_ahead(&mut self, log: &Log, batch: Batching, now_us: i64) -> Result<bool, ReadError> {
        let mut scanned = 0;
        while self.position < log.head() && scanned < SCAN_ROWS_MAX {
            if self.waiting.len() >= batch.messages * AHEAD || self.bytes >= batch.bytes * AHEAD {
                return Ok(false);
            }
            let fetched = log.fetch(self.position, FetchLimit::default()).await?;
            if let Some(gap) = fetched.lost {
                let lost = gap.to.0.saturating_sub(gap.from.0);
                self.lost = self.lost.saturating_add(lost);
                tracing::error!(
                    cursor = self.cursor.name(),
                    lost,
                    "messages were dropped before they could be forwarded"
                );
            }
            scanned += fetched.messages.len().max(1);
            for message in &fetched.messages {
                match &mut self.make {
                    Make::Raw(selection) => {
                        if let Some(choice) = selection.choose(message) {
                            let record = selection::record(message, choice, &self.origin);
                            self.bytes += record.payload.len();
                            self.waiting.push_back(record);
                        }
                    }
                    Make::Condensed(condenser) => condenser.take(message, &self.origin),
                }
            }
            self.position = fetched.next;
            self.take_condensed();
        }
        if let Make::Condensed(condenser) = &mut self.make
            && self.position >= log.head()
        {
            condenser.close_due(now_us, self.position, &self.origin);
            self.take_condensed();
        }
        self.settle();
        Ok(self.position < log.head())
    }

    fn take_condensed(&mut self) {
        if let Make::Condensed(condenser) = &mut self.make {
            for record in condenser.finished() {
                self.bytes += record.payload.len();
                self.waiting.push_back(record);
            }
        }
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
            let safe = match &self.make {
                Make::Raw(_) => self.position,
                Make::Condensed(condenser) => condenser.begun_at().unwrap_or(self.position),
            };
            self.cursor.advance(safe);
        }
    }
}

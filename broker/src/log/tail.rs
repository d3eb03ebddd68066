//! The newest committed messages, in memory, so that a consumer that keeps up never touches the disk.
//!
//! A chunk is one group commit. Whole chunks leave at the front when the bounds are exceeded
//! (`Limits::tail_rows_max`, `Limits::tail_bytes_max`), or when they have been there for `Limits::tail_age_max` as a new one
//! comes. Readers hold the lock only to clone references to chunks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::limits::MESSAGE_OVERHEAD_BYTES;
use super::{FetchLimit, Fetched, LogMessage, Offset};
use crate::topic::TopicName;

type Chunk = Arc<Vec<Arc<LogMessage>>>;

#[derive(Debug)]
struct Held {
    chunk: Chunk,
    first: u64,
    bytes: usize,
    since: Instant,
}

/// What the tail holds at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TailLimits {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
    pub(crate) age: Duration,
}

#[derive(Debug)]
struct State {
    chunks: VecDeque<Held>,
    rows: usize,
    bytes: usize,
    /// The offset behind the newest message.
    head: u64,
}

impl State {
    /// The oldest chunk, if there is more than there may be.
    fn pop_excess(&mut self, limits: &TailLimits, now: Instant) -> Option<Held> {
        let is_old = |held: &Held| now.saturating_duration_since(held.since) >= limits.age;
        let is_much = self.rows > limits.rows || self.bytes > limits.bytes || self.chunks.front().is_some_and(is_old);
        is_much.then(|| self.chunks.pop_front()).flatten()
    }
}

/// The tail.
#[derive(Debug)]
pub(crate) struct Tail {
    state: Mutex<State>,
    limits: TailLimits,
}

impl Tail {
    /// An empty tail of a log whose next offset is `head`.
    pub(crate) fn new(head: u64, limits: TailLimits) -> Tail {
        let state = State { chunks: VecDeque::new(), rows: 0, bytes: 0, head };
        Tail { state: Mutex::new(state), limits }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every statement leaves the tail readable, so a panic elsewhere while it was held changes nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the messages of a commit, in offset order and following the last; `announce` is called with the new head
    /// before any reader can see the messages.
    pub(crate) fn push(&self, messages: Vec<Arc<LogMessage>>, announce: impl FnOnce(u64)) {
        self.push_at(Instant::now(), messages, announce);
    }

    fn push_at(&self, now: Instant, messages: Vec<Arc<LogMessage>>, announce: impl FnOnce(u64)) {
        let (Some(first), Some(last)) = (messages.first(), messages.last()) else { return };
        let (first, head) = (first.offset.0, last.offset.0 + 1);
        let bytes = held_bytes(&messages);
        let mut gone = Vec::new();
        let mut state = self.lock();
        state.rows += messages.len();
        state.bytes += bytes;
        state.head = head;
        announce(head);
        state.chunks.push_back(Held { chunk: Arc::new(messages), first, bytes, since: now });
        while let Some(oldest) = state.pop_excess(&self.limits, now) {
            state.rows -= oldest.chunk.len();
            state.bytes -= oldest.bytes;
            gone.push(oldest);
        }
        drop(state);
        // Freeing thousands of messages takes a while; readers need not wait for it.
        drop(gone);
    }

    /// Messages from `from` on, or `None` if the tail does not reach back so far.
    pub(crate) fn read(&self, from: u64, limit: FetchLimit) -> Option<Fetched> {
        let mut chunks: Vec<Chunk> = Vec::new();
        let state = self.lock();
        let first = state.chunks.front().map_or(state.head, |oldest| oldest.first);
        if from < first || from > state.head {
            return None;
        }
        let start = state.chunks.partition_point(|held| held.first <= from).saturating_sub(1);
        let mut rows = 0;
        let mut skip = 0;
        for held in state.chunks.range(start..) {
            if chunks.is_empty() {
                skip = usize::try_from(from - held.first).unwrap_or(usize::MAX);
            }
            rows += held.chunk.len();
            chunks.push(Arc::clone(&held.chunk));
            if rows >= limit.rows.saturating_add(skip) {
                break;
            }
        }
        drop(state);
        let mut messages = Vec::with_capacity(rows.saturating_sub(skip).min(limit.rows));
        let mut bytes = 0;
        for message in chunks.iter().flat_map(|chunk| chunk.iter()).skip(skip).take(limit.rows.max(1)) {
            bytes += message_bytes(message);
            if bytes > limit.bytes && !messages.is_empty() {
                break;
            }
            messages.push(Arc::clone(message));
        }
        let next = messages.last().map_or(from, |last| last.offset.0 + 1);
        Some(Fetched { messages, next: Offset(next), lost: None })
    }

    /// Messages and bytes held.
    pub(crate) fn size(&self) -> (usize, usize) {
        let state = self.lock();
        (state.rows, state.bytes)
    }
}

/// What a chunk costs in memory. Messages of one publisher mostly share the topic's name with the message before; a name of its own
/// can be larger than all else of a message.
fn held_bytes(messages: &[Arc<LogMessage>]) -> usize {
    let mut shared = None;
    let names = messages.iter().map(|message| {
        let topic = &message.message.topic;
        let is_same = shared.replace(topic).is_some_and(|before: &TopicName| before.is_same(topic));
        if is_same { 0 } else { topic.as_str().len() }
    });
    names.sum::<usize>() + messages.iter().map(|message| message_bytes(message)).sum::<usize>()
}

/// What a message costs in memory, without the name of its topic.
pub(crate) fn message_bytes(message: &LogMessage) -> usize {
    message.message.payload.len() + message.message.properties.len() + MESSAGE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;
    use crate::message::{Message, QoS};

    fn chunk(offsets: std::ops::Range<u64>) -> Vec<Arc<LogMessage>> {
        let topic = TopicName::parse("plant/pump").unwrap();
        offsets
            .map(|offset| {
                let message = Message {
                    topic: topic.clone(),
                    payload: Bytes::from_static(&[0; 40]),
                    properties: Bytes::new(),
                    qos: QoS::AtLeastOnce,
                    retain: false,
                    origin: 0,
                };
                Arc::new(LogMessage { offset: Offset(offset), received_us: 0, topic_id: 1, message })
            })
            .collect()
    }

    fn bounded(head: u64, rows: usize, bytes: usize) -> Tail {
        Tail::new(head, TailLimits { rows, bytes, age: Duration::from_secs(3_600) })
    }

    fn push(tail: &Tail, messages: Vec<Arc<LogMessage>>) {
        let mut announced = 0;
        tail.push(messages, |head| announced = head);
        assert_eq!(announced, tail.lock().head);
    }

    fn offsets(tail: &Tail, from: u64, rows: usize, bytes: usize) -> Option<Vec<u64>> {
        let fetched = tail.read(from, FetchLimit { rows, bytes })?;
        assert_eq!(fetched.next.0, from + fetched.messages.len() as u64);
        Some(fetched.messages.iter().map(|message| message.offset.0).collect())
    }

    // Reads cross chunks, start inside one, end at the limit, and find nothing at the head.
    #[test]
    fn reads_cross_chunks() {
        let tail = bounded(5, 100, 1 << 20);
        assert_eq!(offsets(&tail, 5, 10, 1_000), Some(vec![]));
        assert_eq!(offsets(&tail, 4, 10, 1_000), None);
        push(&tail, chunk(5..8));
        push(&tail, chunk(8..9));
        push(&tail, chunk(9..12));
        assert_eq!(offsets(&tail, 5, 100, 10_000), Some(vec![5, 6, 7, 8, 9, 10, 11]));
        assert_eq!(offsets(&tail, 6, 3, 10_000), Some(vec![6, 7, 8]));
        assert_eq!(offsets(&tail, 8, 2, 10_000), Some(vec![8, 9]));
        assert_eq!(offsets(&tail, 11, 5, 10_000), Some(vec![11]));
        assert_eq!(offsets(&tail, 12, 5, 10_000), Some(vec![]));
        assert_eq!(offsets(&tail, 13, 5, 10_000), None);
        // Each message counts 200 bytes; one is given even if it is too large.
        assert_eq!(offsets(&tail, 5, 100, 400), Some(vec![5, 6]));
        assert_eq!(offsets(&tail, 5, 100, 399), Some(vec![5]));
        assert_eq!(offsets(&tail, 5, 100, 1), Some(vec![5]));
    }

    // A name that is the message's own counts for each message, a shared one once.
    #[test]
    fn names_count() {
        let tail = bounded(1, 4, 1 << 20);
        let own = chunk(1..4).into_iter().map(|message| {
            let mut message = (*message).clone();
            message.message.topic = TopicName::parse(message.message.topic.as_str()).unwrap();
            Arc::new(message)
        });
        push(&tail, own.collect());
        assert_eq!(tail.size(), (3, 630));
    }

    // The oldest chunks leave when rows or bytes exceed their bound, not when they reach it.
    #[test]
    fn the_tail_is_bounded() {
        let tail = bounded(1, 4, 1 << 20);
        push(&tail, chunk(1..3));
        push(&tail, chunk(3..5));
        assert_eq!((tail.size(), offsets(&tail, 1, 1, 1)), ((4, 820), Some(vec![1])));
        push(&tail, chunk(5..6));
        assert_eq!((tail.size(), offsets(&tail, 1, 1, 1), offsets(&tail, 3, 1, 1)), ((3, 620), None, Some(vec![3])));
        let tail = bounded(1, 100, 410);
        push(&tail, chunk(1..3));
        assert_eq!(tail.size(), (2, 410));
        push(&tail, chunk(3..6));
        assert_eq!((tail.size(), offsets(&tail, 6, 1, 1)), ((0, 0), Some(vec![])));
    }

    // A chunk leaves when it is old and another comes; the one that came last is there however long nothing comes.
    #[test]
    fn old_chunks_leave() {
        let tail = Tail::new(1, TailLimits { rows: 100, bytes: 1 << 20, age: Duration::from_secs(4) });
        let begun = Instant::now();
        let push_after = |seconds, offsets| tail.push_at(begun + Duration::from_secs(seconds), chunk(offsets), |_| ());
        push_after(0, 1..3);
        push_after(2, 3..4);
        push_after(3, 4..6);
        assert_eq!((tail.size().0, offsets(&tail, 1, 1, 1)), (5, Some(vec![1])));
        push_after(4, 6..7);
        assert_eq!((tail.size().0, offsets(&tail, 2, 1, 1), offsets(&tail, 3, 1, 1)), (4, None, Some(vec![3])));
        push_after(3_600, 7..9);
        assert_eq!((tail.size().0, offsets(&tail, 7, 9, 9_999)), (2, Some(vec![7, 8])));
    }
}

//! The newest live messages, in memory, until the tasks of their readers took them.
//!
//! A batch is what one publisher had at a time, with the slots that want it. It is pushed once, whoever reads it: every
//! reader has a position of its own, takes references to the batches whose slots it wants, and passes over the others. A
//! batch leaves when all that want it have taken it, so that usually the ring is empty and its memory warm. A push wakes
//! the readers that sleep and want the batch, and nobody else; a reader that is awake is not woken again.
//!
//! A batch may be for one reader alone ([`Ring::push_for`]); it stands in the same order.
//!
//! # Limits
//!
//! The ring holds [`MESSAGES_MAX`] messages and [`BYTES_MAX`] bytes. When a push exceeds them, the oldest batches leave
//! though somebody has not taken them, and that reader goes on with the oldest that is left. Each of its messages that
//! such a reader's slots wanted counts once for each such reader ([`Ring::dropped`]). Publishers are asked to wait from
//! [`HELD_BACK_MESSAGES`] or [`HELD_BACK_BYTES`] on: what is in the ring is what a reader's task has not come to yet.
//! Whether its client reads makes no difference, since a task takes its messages either way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::Notify;

use super::slots::{SlotSet, Space, meet};
use crate::message::Message;
use crate::topic::TopicFilter;

/// Messages in the ring. With [`MESSAGE_BYTES`] each they are 4 MiB, half of [`BYTES_MAX`], besides their payloads.
pub(super) const MESSAGES_MAX: usize = 32 * 1024;

/// Bytes in the ring, unless a single batch is larger: 2,048 batches of a small message each, or 8 messages of 1 MiB.
pub(super) const BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a message costs besides its payload and properties: 88 bytes of its own, 8 for its slots, and its share of the
/// topic.
pub(super) const MESSAGE_BYTES: usize = 128;

/// What a batch costs besides its messages: payloads are slices of the publisher's read buffer, which lives as long as
/// they do and has at least so many bytes.
pub(super) const BATCH_BYTES: usize = 4 * 1024;

/// From here on publishers are asked to wait, until half of it is left: a small part of the ring, which a processor's
/// cache holds.
pub(super) const HELD_BACK_MESSAGES: usize = MESSAGES_MAX / 16;
pub(super) const HELD_BACK_BYTES: usize = BYTES_MAX / 16;

/// A reader takes batches until it has so many bytes: what it writes to its socket at a time.
const TAKE_BYTES: usize = 64 * 1024;

/// Batches for one reader alone that it has not taken.
pub(super) const INBOX_MAX: u32 = 1_024;

/// Messages that were published together.
#[derive(Debug)]
pub(crate) struct Batch {
    messages: Vec<Message>,
    /// The slots of each message, in the space of its QoS.
    slots: Vec<u64>,
    /// Of all of them.
    all: SlotSet,
    /// For one reader alone: the subscription that it is for.
    filter: Option<TopicFilter>,
}

impl Batch {
    /// Messages and the slots that want each of them.
    pub(super) fn new(messages: Vec<Message>, slots: Vec<u64>, all: SlotSet) -> Batch {
        Batch { messages, slots, all, filter: None }
    }

    /// A message for one reader.
    pub(super) fn only(message: Message, filter: TopicFilter) -> Batch {
        Batch { messages: vec![message], slots: vec![0], all: [0; 2], filter: Some(filter) }
    }

    /// The messages that these slots want, in order; all if it is for one reader alone.
    pub(crate) fn wanted(&self, wants: SlotSet) -> impl Iterator<Item = &Message> {
        let everything = self.filter.is_some();
        let messages = self.messages.iter().zip(&self.slots);
        let wanted = messages.filter(move |(message, slots)| everything || **slots & slots_in(wants, message) != 0);
        wanted.map(|(message, _)| message)
    }

    /// The subscription that the batch is for, if it is for one reader alone.
    pub(crate) fn filter(&self) -> Option<&TopicFilter> {
        self.filter.as_ref()
    }

    fn bytes(&self) -> usize {
        let messages = self.messages.iter();
        BATCH_BYTES
            + messages.map(|message| message.payload.len() + message.properties.len() + MESSAGE_BYTES).sum::<usize>()
    }
}

fn slots_in(set: SlotSet, message: &Message) -> u64 {
    let [volatile, durable] = set;
    match Space::of(message.qos) {
        Space::Volatile => volatile,
        Space::Durable => durable,
    }
}

/// A batch in the ring.
#[derive(Debug)]
struct Held {
    batch: Arc<Batch>,
    slots: SlotSet,
    /// The reader that it is for alone.
    only: Option<u32>,
    /// Readers that have not taken it.
    unread: usize,
    bytes: usize,
}

impl Held {
    fn is_for(&self, index: u32, wants: SlotSet) -> bool {
        match self.only {
            Some(only) => only == index,
            None => meet(self.slots, wants),
        }
    }
}

/// Which reader; never another's, also when it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReaderKey {
    index: u32,
    generation: u32,
}

impl ReaderKey {
    fn place(self) -> usize {
        self.index as usize
    }
}

#[derive(Debug, Default)]
struct Reader {
    /// Counts the readers that had this place.
    generation: u32,
    /// The number of the batch to look at next; means nothing while it sleeps.
    next: u64,
    /// While it sleeps. It took everything then.
    waker: Option<Waker>,
    /// Batches for it alone that it has not taken.
    inbox: u32,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Held>,
    /// The number of the oldest batch.
    first: u64,
    messages: usize,
    bytes: usize,
    readers: Vec<Reader>,
    /// What each reader wants, apart from the rest, because every push looks at all of them.
    wants: Vec<SlotSet>,
    free: Vec<u32>,
    dropped: u64,
    /// Publishers wait for room.
    held_back: bool,
}

/// What left the ring; to be freed without the lock.
type Gone = Vec<Held>;

impl State {
    /// The number that the next batch will have.
    fn end(&self) -> u64 {
        self.first + self.batches.len() as u64
    }

    /// Where in `batches` a reader goes on whose next batch is `next`.
    fn position(&self, next: u64) -> usize {
        let passed = usize::try_from(next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        passed.min(self.batches.len())
    }

    fn wants_of(&self, key: ReaderKey) -> SlotSet {
        self.wants.get(key.place()).copied().unwrap_or_default()
    }

    fn reader(&mut self, key: ReaderKey) -> Option<&mut Reader> {
        self.readers.get_mut(key.place()).filter(|reader| reader.generation == key.generation)
    }

    /// Appends a batch that `unread` readers want.
    fn append(&mut self, batch: Batch, only: Option<u32>, unread: usize, gone: &mut Gone) {
        let (slots, bytes) = (batch.all, batch.bytes());
        self.messages += batch.messages.len();
        self.bytes += bytes;
        self.batches.push_back(Held { batch: Arc::new(batch), slots, only, unread, bytes });
        while (self.messages > MESSAGES_MAX || self.bytes > BYTES_MAX) && self.batches.len() > 1 {
            self.count_dropped();
            gone.extend(self.pop());
        }
    }

    fn pop(&mut self) -> Option<Held> {
        let held = self.batches.pop_front()?;
        self.first += 1;
        self.messages -= held.batch.messages.len();
        self.bytes -= held.bytes;
        Some(held)
    }

    /// The oldest batch is about to leave: counts what its readers lose.
    fn count_dropped(&mut self) {
        let Some(held) = self.batches.front().filter(|held| held.unread > 0) else { return };
        for (index, (reader, wants)) in (0..).zip(self.readers.iter_mut().zip(&self.wants)) {
            let behind = reader.waker.is_none() && reader.next <= self.first;
            if behind && held.is_for(index, *wants) {
                self.dropped += held.batch.wanted(*wants).count() as u64;
                reader.inbox -= u32::from(held.only.is_some());
            }
        }
    }

    /// Takes out the oldest batches that nobody waits for.
    fn release(&mut self, gone: &mut Gone) {
        while self.batches.front().is_some_and(|held| held.unread == 0) {
            gone.extend(self.pop());
        }
    }

    /// Whether more than this part of what publishers may be ahead is in the ring.
    fn is_behind(&self, part: usize) -> bool {
        self.messages > HELD_BACK_MESSAGES / part || self.bytes > HELD_BACK_BYTES / part
    }

    /// Changes what a reader wants. The batches that it has not come to are counted as what it wants from now on.
    fn set_wants(&mut self, key: ReaderKey, wants: SlotSet) {
        let before = self.wants_of(key);
        let Some(reader) = self.reader(key) else { return };
        // One that sleeps has come to all of them.
        let next = if reader.waker.is_none() { reader.next } else { u64::MAX };
        let position = self.position(next);
        for held in self.batches.range_mut(position..).filter(|held| held.only.is_none()) {
            held.unread += usize::from(meet(held.slots, wants));
            held.unread -= usize::from(meet(held.slots, before));
        }
        if let Some(entry) = self.wants.get_mut(key.place()) {
            *entry = wants;
        }
    }
}

/// The ring.
#[derive(Debug, Default)]
pub(super) struct Ring {
    state: Mutex<State>,
    /// Wakes publishers that wait for room.
    room: Notify,
}

impl Ring {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Only counts and queues are changed under it, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a change that may have left batches that nobody waits for.
    fn settle(&self, mut state: MutexGuard<'_, State>) {
        let mut gone = Gone::new();
        state.release(&mut gone);
        let room = state.held_back && !state.is_behind(2);
        if room {
            state.held_back = false;
        }
        drop(state);
        if room {
            self.room.notify_waiters();
        }
    }

    /// A new reader, which wants nothing yet.
    pub(super) fn join(&self) -> ReaderKey {
        let mut state = self.lock();
        let next = state.end();
        let index = match state.free.pop() {
            Some(index) => index,
            None => {
                state.readers.push(Reader::default());
                state.wants.push([0; 2]);
                // There are not as many connections as a `u32` counts.
                u32::try_from(state.readers.len() - 1).unwrap_or(u32::MAX)
            }
        };
        let generation = state.readers.get_mut(index as usize).map_or(0, |reader| {
            reader.next = next;
            reader.generation
        });
        ReaderKey { index, generation }
    }

    /// The reader is gone.
    pub(super) fn leave(&self, key: ReaderKey) {
        let mut state = self.lock();
        state.set_wants(key, [0; 2]);
        let Some(reader) = state.reader(key) else { return };
        *reader = Reader { generation: reader.generation.wrapping_add(1), ..Reader::default() };
        for held in state.batches.iter_mut().filter(|held| held.only == Some(key.index)) {
            held.unread = 0;
        }
        state.free.push(key.index);
        self.settle(state);
    }

    /// The slots of which the reader gets the batches that are pushed from now on.
    pub(super) fn set_wants(&self, key: ReaderKey, wants: SlotSet) {
        let mut state = self.lock();
        state.set_wants(key, wants);
        self.settle(state);
    }

    /// Adds a batch and wakes who sleeps and wants it. True if the publisher should wait for [`Ring::room`].
    pub(super) fn push(&self, batch: Batch) -> bool {
        let (mut gone, mut wakers) = (Gone::new(), Vec::new());
        let mut state = self.lock();
        let end = state.end();
        let State { readers, wants, .. } = &mut *state;
        let mut unread = 0;
        for (reader, _) in readers.iter_mut().zip(wants).filter(|(_, wants)| meet(batch.all, **wants)) {
            unread += 1;
            if let Some(waker) = reader.waker.take() {
                reader.next = end;
                wakers.push(waker);
            }
        }
        if unread == 0 {
            return false;
        }
        state.append(batch, None, unread, &mut gone);
        let behind = state.is_behind(1);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        behind
    }

    /// Adds a batch for one reader alone; false if it is gone or has [`INBOX_MAX`] of them.
    pub(super) fn push_for(&self, key: ReaderKey, batch: Batch) -> bool {
        let mut gone = Gone::new();
        let mut state = self.lock();
        let end = state.end();
        let Some(reader) = state.reader(key).filter(|reader| reader.inbox < INBOX_MAX) else { return false };
        reader.inbox += 1;
        let waker = reader.waker.take();
        if waker.is_some() {
            reader.next = end;
        }
        state.append(batch, Some(key.index), 1, &mut gone);
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        true
    }

    /// Gives the next batches that the reader wants, in order; pending if there are none, and then it sleeps until there
    /// are.
    pub(super) fn poll_take(&self, key: ReaderKey, cx: &Context<'_>) -> Poll<Vec<Arc<Batch>>> {
        let mut state = self.lock();
        let wants = state.wants_of(key);
        let Some(reader) = state.reader(key) else { return Poll::Pending };
        if let Some(waker) = &mut reader.waker {
            waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        let next = reader.next;
        let (mut taken, mut bytes, mut alone) = (Vec::new(), 0, 0);
        let mut position = state.position(next);
        for held in state.batches.range_mut(position..) {
            position += 1;
            if !held.is_for(key.index, wants) {
                continue;
            }
            held.unread -= 1;
            alone += u32::from(held.only.is_some());
            taken.push(Arc::clone(&held.batch));
            bytes += held.bytes;
            if bytes >= TAKE_BYTES {
                break;
            }
        }
        let next = state.first + position as u64;
        if let Some(reader) = state.reader(key) {
            reader.next = next;
            reader.inbox -= alone;
            if taken.is_empty() {
                reader.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        self.settle(state);
        Poll::Ready(taken)
    }

    /// Waits until the readers' tasks have caught up, or the deadline.
    pub(super) async fn room(&self, deadline: Instant) {
        let room = self.room.notified();
        {
            let mut state = self.lock();
            if !state.is_behind(1) {
                return;
            }
            state.held_back = true;
        }
        // The deadline is as good.
        let _ = tokio::time::timeout_at(deadline.into(), room).await;
    }

    /// Messages that left before a reader whose slots wanted them had taken them, once for each such reader.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Messages and bytes in the ring.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        let state = self.lock();
        (state.messages, state.bytes)
    }
}

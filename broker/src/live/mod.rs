//! Live fan-out of QoS 0 deliveries, in memory.
//!
//! A publisher's task pushes what it read as one batch into a [`ring`] that all connections share, and wakes the tasks
//! of the subscribers that want it; each takes it from there and writes it to its own socket. Messages are shared, never
//! copied. Who wants a batch is told by [`slots`]: every subscribed filter has one of 64 slots, and which slots want a
//! topic is decided once per topic. The subscriber's session matches each message itself.
//!
//! A filter counts from the moment that [`Reader::set`] returns: a SUBACK that is sent after it promises what is published
//! after it.
//!
//! # What may be lost
//!
//! Everything here is QoS 0. A message is lost when a subscriber's client does not take it, which its session counts, and
//! when a subscriber's task does not come to it before the ring is full ([`Live::dropped`]). Publishers are held back for
//! a moment before that happens ([`Live::publish`], [`Live::room`]).

mod ring;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::message::{Message, QoS};
use crate::topic::TopicFilter;

use ring::Ring;
pub(crate) use ring::{Batch, ReaderKey};
pub(crate) use slots::SlotSet;
use slots::{Slot, Slots, Space, wanted_by};

/// Live fan-out; a handle, clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Live {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    slots: Mutex<Slots>,
    /// Whether anybody wants messages, by space, so that publishing to nobody costs one load.
    wanted: [AtomicBool; 2],
    ring: Ring,
}

impl Live {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.shared.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody wants messages of this QoS live.
    pub(crate) fn wants(&self, qos: QoS) -> bool {
        self.shared.wanted.get(Space::of(qos).index()).is_some_and(|wanted| wanted.load(Ordering::Relaxed))
    }

    /// Publishes messages in order. True if the subscribers' tasks cannot keep up: a publisher should wait for
    /// [`Live::room`] then.
    pub(crate) fn publish(&self, mut messages: Vec<Message>) -> bool {
        if !messages.iter().any(|message| self.wants(message.qos)) {
            return false;
        }
        let (mut each, all) = self.slots().wanting_each(&messages);
        if all == [0; 2] {
            return false;
        }
        if each.contains(&0) {
            let mut wanted = each.iter().map(|slots| *slots != 0);
            messages.retain(|_| wanted.next().unwrap_or_default());
            each.retain(|slots| *slots != 0);
        }
        self.shared.ring.push(Batch::new(messages, each, all))
    }

    /// Publishes a message to one reader alone, for its subscription to `filter`; false if the reader does not take it,
    /// because it is gone or too far behind.
    pub(crate) fn publish_to(&self, reader: ReaderKey, filter: TopicFilter, message: Message) -> bool {
        self.shared.ring.push_for(reader, Batch::only(message, filter))
    }

    /// Waits until the subscribers' tasks have caught up, or the deadline.
    pub(crate) async fn room(&self, deadline: Instant) {
        self.shared.ring.room(deadline).await;
    }

    /// A reader of live messages, without filters yet.
    pub(crate) fn reader(&self) -> Reader {
        Reader { live: self.clone(), key: self.shared.ring.join(), filters: HashMap::new(), wants: [0; 2] }
    }

    /// Messages that a subscriber's task was too slow for, once for each subscriber whose filters wanted them; if more
    /// filters are subscribed than there are slots, or subscriptions of different QoS overlap, some more.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.ring.dropped()
    }

    /// The QoS with which somebody subscribes to `filter` changes; `None` is no subscription. Gives the slot of the
    /// filter if it has one afterwards.
    fn change(&self, filter: &TopicFilter, before: Option<QoS>, after: Option<QoS>) -> Option<Slot> {
        let mut slots = self.slots();
        let slot = slots.change(filter, before, after);
        for (wanted, any) in self.shared.wanted.iter().zip(slots.any()) {
            wanted.store(any, Ordering::Relaxed);
        }
        slot
    }
}

/// One connection's end of live fan-out; gives everything up when dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    live: Live,
    key: ReaderKey,
    filters: HashMap<TopicFilter, (QoS, Slot)>,
    wants: SlotSet,
}

impl Reader {
    /// Subscribes to `filter` at this QoS, or changes it; `None` unsubscribes. What is published from now on comes.
    pub(crate) fn set(&mut self, filter: &TopicFilter, qos: Option<QoS>) {
        let before = self.filters.get(filter).map(|(qos, _)| *qos);
        let slot = self.live.change(filter, before, qos);
        match (qos, slot) {
            (Some(qos), Some(slot)) => {
                self.filters.insert(filter.clone(), (qos, slot));
            }
            _ => {
                self.filters.remove(filter);
            }
        }
        let wanted = self.filters.values().map(|(qos, slot)| wanted_by(*qos, *slot));
        self.wants = wanted.fold([0; 2], |[volatile, durable], [v, d]| [volatile | v, durable | d]);
        self.live.shared.ring.set_wants(self.key, self.wants);
    }

    /// The slots that its filters have.
    pub(crate) fn wants(&self) -> SlotSet {
        self.wants
    }

    /// The name under which [`Live::publish_to`] finds it.
    pub(crate) fn key(&self) -> ReaderKey {
        self.key
    }

    /// The next batches. May be dropped and called again at any time.
    pub(crate) async fn next(&mut self) -> Vec<Arc<Batch>> {
        poll_fn(|cx| self.live.shared.ring.poll_take(self.key, cx)).await
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.live.shared.ring.leave(self.key);
        for (filter, (qos, _)) in self.filters.drain() {
            self.live.change(&filter, Some(qos), None);
        }
    }
}

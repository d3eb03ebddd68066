//! Retained messages: the last one of each topic that asked for it. [MQTT-3.3.1-5]
//!
//! Owns the map in memory. Stored messages are loaded when the log is opened and changed by its writer right after
//! the commit that holds the change; volatile ones are set by the gateway and never written. Never touches a file. Both
//! kinds are bounded in count and bytes, each by itself.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::watch;

use crate::log::Offset;
use crate::message::Message;
use crate::topic::{TopicFilter, TopicName};

/// What a retained message costs in memory besides its bytes.
pub(crate) const RETAINED_OVERHEAD_BYTES: usize = 200;

/// A retained message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetainedMessage {
    /// As it was published, with the retain bit.
    pub message: Message,
    /// When it was received, in microseconds since 1970 UTC; 0 for a volatile one.
    pub stored_us: i64,
    /// Where the log has it; `None` if it was not logged (QoS 0) or is volatile. A session that reads the log from
    /// here or before will meet it again.
    pub offset: Option<Offset>,
    /// In memory only.
    pub volatile: bool,
}

impl RetainedMessage {
    /// Copies the bytes, so that a small retained message does not keep a large read buffer alive.
    pub(crate) fn stored(message: &Message, stored_us: i64, offset: Option<Offset>) -> RetainedMessage {
        RetainedMessage { message: compact(message), stored_us, offset, volatile: false }
    }

    /// What it costs in memory.
    pub(crate) fn bytes(&self) -> usize {
        retained_bytes(&self.message)
    }
}

/// What a message costs when it is retained.
pub(crate) fn retained_bytes(message: &Message) -> usize {
    message.topic.as_str().len() + message.payload.len() + message.properties.len() + RETAINED_OVERHEAD_BYTES
}

fn compact(message: &Message) -> Message {
    Message {
        topic: message.topic.clone(),
        payload: Bytes::copy_from_slice(&message.payload),
        properties: Bytes::copy_from_slice(&message.properties),
        qos: message.qos,
        retain: true,
        origin: message.origin,
    }
}

/// More volatile messages than the store keeps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{count_max} messages or {bytes_max} bytes are retained in memory already, no more are accepted")]
pub struct VolatileLimit {
    /// The limit of messages.
    pub count_max: usize,
    /// The limit of bytes.
    pub bytes_max: usize,
}

/// A topic as a key that a range of strings can be looked up in.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key(TopicName);

impl Borrow<str> for Key {
    // `TopicName` compares as its text does.
    fn borrow(&self) -> &str {
        self.0.as_str()
    }
}

#[derive(Debug, Default)]
struct State {
    by_topic: BTreeMap<Key, Arc<RetainedMessage>>,
    volatile_count: usize,
    volatile_bytes: usize,
    stored_bytes: usize,
}

impl State {
    fn remove(&mut self, topic: &TopicName) -> Option<Arc<RetainedMessage>> {
        let gone = self.by_topic.remove(topic.as_str())?;
        self.count(&gone, usize::wrapping_sub, 1);
        Some(gone)
    }

    fn insert(&mut self, message: Arc<RetainedMessage>) {
        self.remove(&message.message.topic);
        self.count(&message, usize::wrapping_add, 1);
        self.by_topic.insert(Key(message.message.topic.clone()), message);
    }

    fn count(&mut self, message: &RetainedMessage, change: fn(usize, usize) -> usize, count: usize) {
        if message.volatile {
            self.volatile_count = change(self.volatile_count, count);
            self.volatile_bytes = change(self.volatile_bytes, message.bytes());
        } else {
            self.stored_bytes = change(self.stored_bytes, message.bytes());
        }
    }
}

/// The retained messages.
#[derive(Debug)]
pub struct Retained {
    state: RwLock<State>,
    changes: watch::Sender<u64>,
    count_max: usize,
    bytes_max: usize,
}

impl Retained {
    /// A store with the messages found in the file; the bounds are those of the volatile ones.
    pub(crate) fn new(found: Vec<Arc<RetainedMessage>>, count_max: usize, bytes_max: usize) -> Retained {
        let mut state = State::default();
        for message in found {
            state.insert(message);
        }
        Retained { state: RwLock::new(state), changes: watch::Sender::new(0), count_max, bytes_max }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The retained message of a topic.
    pub fn get(&self, topic: &TopicName) -> Option<Arc<RetainedMessage>> {
        self.read().by_topic.get(topic.as_str()).cloned()
    }

    /// The retained messages that a filter wants, in topic order. Only topics with the filter's literal beginning are
    /// looked at.
    pub fn matching(&self, filter: &TopicFilter) -> Vec<Arc<RetainedMessage>> {
        let text = filter.as_str();
        let state = self.read();
        let Some(wildcard) = text.find(['+', '#']) else {
            return state.by_topic.get(text).cloned().into_iter().collect();
        };
        let prefix = text.get(..wildcard).unwrap_or_default();
        let mut matching = Vec::new();
        // `a/#` matches `a`, which the range from `a/` on does not contain.
        if let Some(parent) = prefix.strip_suffix('/').filter(|_| text.get(wildcard..) == Some("#")) {
            matching.extend(state.by_topic.get(parent).cloned());
        }
        let from: (Bound<&str>, Bound<&str>) = (Bound::Included(prefix), Bound::Unbounded);
        let range = state.by_topic.range::<str, _>(from);
        let candidates = range.take_while(|(key, _)| key.0.as_str().starts_with(prefix));
        matching.extend(candidates.filter(|(key, _)| filter.matches(&key.0)).map(|(_, message)| Arc::clone(message)));
        matching
    }

    /// Retains a message in memory only; a later stored or volatile message of the topic replaces it, an empty payload
    /// deletes it. After a restart the topic has its last stored message again, if it had one.
    ///
    /// # Errors
    /// [`VolatileLimit`] if the topic is new and the bound is reached.
    pub fn set_volatile(&self, message: Message) -> Result<(), VolatileLimit> {
        let mut state = self.write();
        if message.payload.is_empty() {
            state.remove(&message.topic);
        } else {
            let replaced = state.by_topic.get(message.topic.as_str()).filter(|replaced| replaced.volatile);
            let (count, bytes) = replaced.map_or((0, 0), |replaced| (1, replaced.bytes()));
            let fits = state.volatile_count - count < self.count_max
                && state.volatile_bytes - bytes + retained_bytes(&message) <= self.bytes_max;
            if !fits {
                return Err(VolatileLimit { count_max: self.count_max, bytes_max: self.bytes_max });
            }
            let message = compact(&message);
            state.insert(Arc::new(RetainedMessage { message, stored_us: 0, offset: None, volatile: true }));
        }
        drop(state);
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
        Ok(())
    }

    /// Applies what a commit stored, in order.
    pub(crate) fn apply(&self, changes: Vec<(TopicName, Option<Arc<RetainedMessage>>)>) {
        if changes.is_empty() {
            return;
        }
        let mut state = self.write();
        for (topic, message) in changes {
            match message {
                Some(message) => state.insert(message),
                None => drop(state.remove(&topic)),
            }
        }
        drop(state);
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    /// A number that changes with every change.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Retained messages, volatile ones included.
    pub fn len(&self) -> usize {
        self.read().by_topic.len()
    }

    /// Whether nothing is retained.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What they cost in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let state = self.read();
        state.stored_bytes + state.volatile_bytes
    }
}

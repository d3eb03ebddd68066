//! The intern table: topic names to small numbers that are never used twice.
//!
//! Owned by the writer. Keeps no name, only a [`Fingerprint`] of each; the names are in the file. Bounded in count and in bytes of
//! names, and made for all of them at once: 131,072 places of 25 bytes, 3.2 MiB, which the system gives as they are used and which
//! are all in use after some thousand topics. Topics that no remaining partition mentions are pruned when a partition is dropped and
//! the table is over half of a bound.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::topic::TopicName;

/// Topics pruned with one dropped partition, at most: it bounds the length of that commit (about 10 ms).
const PRUNE_MAX: usize = 10_000;

/// What a topic counts besides its name: its place in the table, and its row in the file.
const TOPIC_OVERHEAD_BYTES: usize = 32;

/// 96 bits that stand for a name. They come of a hash with a key that is drawn when the table is made, so nobody can choose names
/// that share them; that two of 131,072 names do by chance has a probability of 1 in 10^19.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint([u32; 3]);

/// Packed, so that it fills up what the fingerprint leaves of 24 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(Rust, packed(4))]
struct Entry {
    id: u32,
    /// No message from here on mentions it.
    used_before: u64,
}

/// A topic that no message mentions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unused {
    fingerprint: Fingerprint,
    /// Its number.
    pub(crate) id: u32,
}

/// The intern table.
#[derive(Debug)]
pub(crate) struct Topics {
    entries: HashMap<Fingerprint, Entry>,
    key: RandomState,
    bytes: usize,
    next_id: u32,
    count_max: usize,
    bytes_max: usize,
}

impl Topics {
    /// An empty table with its bounds; `next_id` is above every number ever given.
    pub(crate) fn new(count_max: usize, bytes_max: usize, next_id: u32) -> Topics {
        // A name has at least one byte.
        let places = count_max.min(bytes_max / (TOPIC_OVERHEAD_BYTES + 1));
        let entries = HashMap::with_capacity(places);
        Topics { entries, key: RandomState::new(), bytes: 0, next_id: next_id.max(1), count_max, bytes_max }
    }

    /// Takes a topic found in the file. Every message before `head` may mention it.
    pub(crate) fn load(&mut self, id: u32, name: &TopicName, head: u64) {
        self.next_id = self.next_id.max(id.saturating_add(1));
        self.insert(name, Entry { id, used_before: head });
    }

    /// Keeps a number from being given again although its name is damaged.
    pub(crate) fn skip(&mut self, id: u32) {
        self.next_id = self.next_id.max(id.saturating_add(1));
    }

    /// The number of a known topic, which messages before `used_before` will mention.
    pub(crate) fn lookup(&mut self, name: &TopicName, used_before: u64) -> Option<u32> {
        let entry = self.entries.get_mut(&fingerprint(&self.key, name))?;
        entry.used_before = entry.used_before.max(used_before);
        Some(entry.id)
    }

    /// Whether so many new topics of so many bytes still fit.
    pub(crate) fn has_room(&self, count: usize, bytes: usize) -> bool {
        self.entries.len() + count <= self.count_max
            && self.bytes + bytes + count * TOPIC_OVERHEAD_BYTES <= self.bytes_max
            && (u32::MAX - self.next_id) as usize > count
    }

    /// Gives a new topic its number; the caller has asked [`Topics::has_room`].
    pub(crate) fn intern(&mut self, name: &TopicName, used_before: u64) -> u32 {
        let id = self.next_id;
        self.next_id = self.next_id.saturating_add(1);
        self.insert(name, Entry { id, used_before });
        id
    }

    fn insert(&mut self, name: &TopicName, entry: Entry) {
        self.bytes += name.as_str().len() + TOPIC_OVERHEAD_BYTES;
        self.entries.insert(fingerprint(&self.key, name), entry);
    }

    /// The number that the next new topic gets.
    pub(crate) fn next_id(&self) -> u32 {
        self.next_id
    }

    /// How many topics the table has.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Topics to prune once `oldest` is the oldest offset on disk; none while the table is less than half full.
    pub(crate) fn unused(&self, oldest: u64) -> Vec<Unused> {
        if self.entries.len() <= self.count_max / 2 && self.bytes <= self.bytes_max / 2 {
            return Vec::new();
        }
        let unused = self.entries.iter().filter(|(_, entry)| entry.used_before <= oldest);
        unused.map(|(fingerprint, entry)| Unused { fingerprint: *fingerprint, id: entry.id }).take(PRUNE_MAX).collect()
    }

    /// Forgets topics that were deleted from the file, where their names had so many bytes.
    pub(crate) fn forget(&mut self, pruned: &[Unused], name_bytes: usize) {
        for topic in pruned {
            self.entries.remove(&topic.fingerprint);
        }
        self.bytes = self.bytes.saturating_sub(name_bytes + pruned.len() * TOPIC_OVERHEAD_BYTES);
    }
}

/// Two hashes of 64 bits, cut to what fills an entry's place of 24 bytes. The number before the name makes them independent.
fn fingerprint(key: &RandomState, name: &TopicName) -> Fingerprint {
    let [first, second] = [0_u8, 1].map(|number| key.hash_one((number, name.as_str())));
    Fingerprint([first as u32, (first >> 32) as u32, second as u32])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn name(text: &str) -> TopicName {
        TopicName::parse(text).unwrap()
    }

    // Only topics that no message from the oldest offset on mentions are pruned, and only above half of the bound.
    #[test]
    fn unused_topics_are_pruned_above_half() {
        let mut topics = Topics::new(4, 10_000, 0);
        topics.intern(&name("a"), 10);
        topics.intern(&name("b"), 20);
        assert!(topics.unused(100).is_empty(), "half full");
        topics.intern(&name("c"), 30);
        assert_eq!(topics.unused(9), vec![]);
        let unused = topics.unused(10);
        assert_eq!(unused.iter().map(|topic| topic.id).collect::<Vec<_>>(), [1]);
        topics.forget(&unused, 1);
        assert_eq!((topics.len(), topics.lookup(&name("a"), 40)), (2, None));
        assert_eq!(topics.intern(&name("a"), 40), 4, "a number is never used twice");
    }

    // The table is full at exactly its bound.
    #[test]
    fn bounds_are_exact() {
        let mut topics = Topics::new(2, 2 * (TOPIC_OVERHEAD_BYTES + 1), 0);
        assert!(topics.has_room(2, 2));
        assert!(!topics.has_room(2, 3));
        assert!(!topics.has_room(3, 2));
        topics.intern(&name("a"), 1);
        assert!(topics.has_room(1, 1));
        assert!(!topics.has_room(1, 2));
    }

    // The bytes of pruned topics are free again, all of them.
    #[test]
    fn pruning_frees_the_bytes() {
        let mut topics = Topics::new(10, 4 * (TOPIC_OVERHEAD_BYTES + 5), 0);
        for number in 0..4 {
            topics.intern(&name(&format!("top/{number}")), 1);
        }
        assert!(!topics.has_room(1, 1));
        let unused = topics.unused(1);
        topics.forget(&unused, 4 * 5);
        assert!(topics.has_room(4, 4 * 5) && !topics.has_room(4, 4 * 5 + 1));
    }

    // The table is made once for as many topics as it may have: it never grows, and what it takes is what its documentation says.
    #[test]
    fn the_table_never_grows() {
        let limits = super::super::Limits::default();
        let mut topics = Topics::new(limits.topics_max, 16 * 1_024 * 1_024, 0);
        let places = topics.entries.capacity();
        for number in 0..limits.topics_max {
            assert!(topics.has_room(1, 20));
            let topic = name(&format!("plant/topic-{number}"));
            assert_eq!(topics.lookup(&topic, 1), None);
            topics.intern(&topic, 1);
        }
        assert!(!topics.has_room(1, 1));
        assert_eq!((topics.entries.capacity(), places), (limits.topics_max, limits.topics_max));
        assert_eq!(size_of::<(Fingerprint, Entry)>(), 24);
    }
}

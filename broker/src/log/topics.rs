//! The intern table: topic names to small numbers that are never used twice.
//!
//! Owned by the writer. Bounded in count and bytes; topics that no remaining partition mentions are pruned when a
//! partition is dropped and the table is over half of a bound.

use std::collections::HashMap;

use crate::topic::TopicName;

/// Topics pruned with one dropped partition, at most: it bounds the length of that commit (about 10 ms).
const PRUNE_MAX: usize = 10_000;

/// What a topic costs in the table besides its name.
const TOPIC_OVERHEAD_BYTES: usize = 32;

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: u32,
    /// No message from here on mentions it.
    used_before: u64,
}

/// The intern table.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    by_name: HashMap<TopicName, Entry>,
    bytes: usize,
    next_id: u32,
    count_max: usize,
    bytes_max: usize,
}

impl Topics {
    /// An empty table with its bounds; `next_id` is above every number ever given.
    pub(crate) fn new(count_max: usize, bytes_max: usize, next_id: u32) -> Topics {
        Topics { by_name: HashMap::new(), bytes: 0, next_id: next_id.max(1), count_max, bytes_max }
    }

    /// Takes a topic found in the file. Every message before `head` may mention it.
    pub(crate) fn load(&mut self, id: u32, name: TopicName, head: u64) {
        self.bytes += name.as_str().len() + TOPIC_OVERHEAD_BYTES;
        self.next_id = self.next_id.max(id.saturating_add(1));
        self.by_name.insert(name, Entry { id, used_before: head });
    }

    /// Keeps a number from being given again although its name is damaged.
    pub(crate) fn skip(&mut self, id: u32) {
        self.next_id = self.next_id.max(id.saturating_add(1));
    }

    /// The number of a known topic, which messages before `used_before` will mention.
    pub(crate) fn lookup(&mut self, name: &TopicName, used_before: u64) -> Option<u32> {
        let entry = self.by_name.get_mut(name)?;
        entry.used_before = entry.used_before.max(used_before);
        Some(entry.id)
    }

    /// Whether so many new topics of so many bytes still fit.
    pub(crate) fn has_room(&self, count: usize, bytes: usize) -> bool {
        self.by_name.len() + count <= self.count_max
            && self.bytes + bytes + count * TOPIC_OVERHEAD_BYTES <= self.bytes_max
            && (u32::MAX - self.next_id) as usize > count
    }

    /// Gives a new topic its number; the caller has asked [`Topics::has_room`].
    pub(crate) fn intern(&mut self, name: &TopicName, used_before: u64) -> u32 {
        let id = self.next_id;
        self.next_id = self.next_id.saturating_add(1);
        self.bytes += name.as_str().len() + TOPIC_OVERHEAD_BYTES;
        self.by_name.insert(name.clone(), Entry { id, used_before });
        id
    }

    /// The number that the next new topic gets.
    pub(crate) fn next_id(&self) -> u32 {
        self.next_id
    }

    /// How many topics the table has.
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Topics to prune once `oldest` is the oldest offset on disk; none while the table is less than half full.
    pub(crate) fn unused(&self, oldest: u64) -> Vec<(TopicName, u32)> {
        if self.by_name.len() <= self.count_max / 2 && self.bytes <= self.bytes_max / 2 {
            return Vec::new();
        }
        let unused = self.by_name.iter().filter(|(_, entry)| entry.used_before <= oldest);
        unused.map(|(name, entry)| (name.clone(), entry.id)).take(PRUNE_MAX).collect()
    }

    /// Forgets topics that were deleted from the file.
    pub(crate) fn forget(&mut self, pruned: &[(TopicName, u32)]) {
        for (name, _) in pruned {
            if self.by_name.remove(name).is_some() {
                self.bytes = self.bytes.saturating_sub(name.as_str().len() + TOPIC_OVERHEAD_BYTES);
            }
        }
    }
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
        assert_eq!(topics.unused(10), vec![(name("a"), 1)]);
        topics.forget(&[(name("a"), 1)]);
        assert_eq!(topics.lookup(&name("a"), 40), None);
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
}

//! Which slots want a topic.
//!
//! Filters of all sessions are counted here; the first [`SLOTS`] different ones have a slot of their own, more share. A
//! session matches every message itself, so a shared slot costs time, never a wrong delivery.

use std::collections::HashMap;

use crate::message::{Message, QoS};
use crate::topic::{TopicFilter, TopicName};

/// Slots; a bit each in a `u64`.
pub(super) const SLOTS: usize = 64;

/// The number of a slot.
pub(super) type Slot = u8;

/// Topics whose slots are remembered: 16,384 × about 150 bytes = 2.4 MiB for usual topics.
const TOPICS_MAX: usize = 16_384;

/// Which live messages; a subscription at QoS 1 wants those of one space only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    /// Published at QoS 0.
    Volatile,
    /// Published at QoS 1 or 2, for subscriptions at QoS 0.
    Durable,
}

impl Space {
    pub(super) fn of(published: QoS) -> Space {
        if published == QoS::AtMostOnce { Space::Volatile } else { Space::Durable }
    }

    pub(super) fn index(self) -> usize {
        match self {
            Space::Volatile => 0,
            Space::Durable => 1,
        }
    }
}

/// A set of slots: a bit for each, by [`Space`].
pub(crate) type SlotSet = [u64; 2];

/// Whether two sets have a slot in common.
pub(super) fn meet(one: SlotSet, other: SlotSet) -> bool {
    one[0] & other[0] | one[1] & other[1] != 0
}

/// The slot alone, in the spaces from which a subscription at this QoS is fed live.
pub(super) fn wanted_by(qos: QoS, slot: Slot) -> SlotSet {
    spaces(qos).iter().fold([0; 2], |mut set, space| {
        set[space.index()] = 1 << slot;
        set
    })
}

#[derive(Debug)]
struct Entry {
    slot: Slot,
    /// Sessions that want the filter's messages, by space.
    wanted: [usize; 2],
}

/// The table of filters.
#[derive(Debug)]
pub(super) struct Slots {
    filters: HashMap<TopicFilter, Entry>,
    /// How many filters each slot has.
    load: [usize; SLOTS],
    /// How many filters are wanted, by space.
    wanted: [usize; 2],
    /// Kept up to date when filters come and go.
    topics: HashMap<TopicName, SlotSet>,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { filters: HashMap::new(), load: [0; SLOTS], wanted: [0; 2], topics: HashMap::new() }
    }
}

/// The spaces from which a subscription at this QoS is fed live: at QoS 0 both; at QoS 1 and 2 durable messages come
/// from the log.
fn spaces(qos: QoS) -> &'static [Space] {
    match qos {
        QoS::AtMostOnce => &[Space::Volatile, Space::Durable],
        _ => &[Space::Volatile],
    }
}

impl Slots {
    /// Counts a subscription that changes; gives the slot of the filter if anybody still wants it.
    pub(super) fn change(&mut self, filter: &TopicFilter, before: Option<QoS>, after: Option<QoS>) -> Option<Slot> {
        if after.is_some() && !self.filters.contains_key(filter) {
            let slot = self.emptiest();
            self.filters.insert(filter.clone(), Entry { slot, wanted: [0; 2] });
            if let Some(load) = self.load.get_mut(usize::from(slot)) {
                *load += 1;
            }
        }
        let entry = self.filters.get_mut(filter)?;
        let (slot, was) = (entry.slot, entry.wanted);
        for space in after.map(spaces).unwrap_or_default() {
            entry.wanted[space.index()] += 1;
        }
        for space in before.map(spaces).unwrap_or_default() {
            entry.wanted[space.index()] = entry.wanted[space.index()].saturating_sub(1);
        }
        let is = entry.wanted;
        for space in [0, 1] {
            match (was[space], is[space]) {
                (0, 1..) => self.begin(filter, slot, space),
                (1.., 0) => self.end(filter, slot, space),
                _ => {}
            }
        }
        if is == [0; 2] {
            self.filters.remove(filter);
            if let Some(load) = self.load.get_mut(usize::from(slot)) {
                *load = load.saturating_sub(1);
            }
            return None;
        }
        Some(slot)
    }

    /// The slot is wanted for the topics of a filter from now on.
    fn begin(&mut self, filter: &TopicFilter, slot: Slot, space: usize) {
        self.wanted[space] += 1;
        for (topic, wanting) in &mut self.topics {
            if filter.matches(topic) {
                wanting[space] |= 1 << slot;
            }
        }
    }

    /// The slot is not wanted for this filter any more. Filters that share it may want it for the same topics: those are
    /// looked up again.
    fn end(&mut self, filter: &TopicFilter, slot: Slot, space: usize) {
        self.wanted[space] = self.wanted[space].saturating_sub(1);
        if self.load.get(usize::from(slot)).is_some_and(|load| *load > 1) {
            self.topics.retain(|topic, _| !filter.matches(topic));
        } else {
            self.topics.values_mut().for_each(|wanting| wanting[space] &= !(1 << slot));
        }
    }

    fn emptiest(&self) -> Slot {
        let emptiest = self.load.iter().enumerate().min_by_key(|(_, load)| **load).map_or(0, |(slot, _)| slot);
        // There are fewer slots than a `Slot` counts.
        Slot::try_from(emptiest).unwrap_or_default()
    }

    /// Whether anybody wants anything, by space.
    pub(super) fn any(&self) -> [bool; 2] {
        self.wanted.map(|filters| filters > 0)
    }

    /// The slots that want a topic.
    pub(super) fn wanting(&mut self, topic: &TopicName) -> SlotSet {
        if let Some(slots) = self.topics.get(topic) {
            return *slots;
        }
        let mut slots = [0; 2];
        for (filter, entry) in &self.filters {
            if filter.matches(topic) {
                for (bits, wanted) in slots.iter_mut().zip(entry.wanted) {
                    *bits |= u64::from(wanted > 0) << entry.slot;
                }
            }
        }
        if self.topics.len() >= TOPICS_MAX {
            self.topics.clear();
        }
        self.topics.insert(topic.clone(), slots);
        slots
    }

    /// The slots that want each message, in its space, and those of all together.
    pub(super) fn wanting_each(&mut self, messages: &[Message]) -> (Vec<u64>, SlotSet) {
        let mut all = [0; 2];
        let mut each = Vec::with_capacity(messages.len());
        let mut last: Option<(&TopicName, SlotSet)> = None;
        for message in messages {
            // A publisher mostly goes on with the same topic.
            let wanting = match last {
                Some((topic, wanting)) if topic.is_same(&message.topic) => wanting,
                _ => self.wanting(&message.topic),
            };
            last = Some((&message.topic, wanting));
            let space = Space::of(message.qos).index();
            each.push(wanting[space]);
            all[space] |= wanting[space];
        }
        (each, all)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::parse(text).unwrap()
    }

    // A filter keeps its slot while anybody wants it; a topic wants the slots of the filters that match it, by space.
    #[test]
    fn slots_are_counted_and_matched() {
        let mut slots = Slots::default();
        let topic = TopicName::parse("a/b").unwrap();
        let one = slots.change(&filter("a/+"), None, Some(QoS::AtLeastOnce)).unwrap();
        assert_eq!(slots.wanting(&topic), [1 << one, 0]);
        assert_eq!(slots.change(&filter("a/+"), None, Some(QoS::AtMostOnce)), Some(one));
        let other = slots.change(&filter("#"), None, Some(QoS::AtMostOnce)).unwrap();
        assert_ne!(one, other);
        assert_eq!(slots.wanting(&topic), [1 << one | 1 << other, 1 << one | 1 << other]);
        assert_eq!(slots.change(&filter("a/+"), Some(QoS::AtMostOnce), None), Some(one));
        assert_eq!(slots.wanting(&topic), [1 << one | 1 << other, 1 << other]);
        assert_eq!(slots.change(&filter("a/+"), Some(QoS::AtLeastOnce), None), None);
        assert_eq!(slots.change(&filter("#"), Some(QoS::AtMostOnce), None), None);
        assert_eq!((slots.wanting(&topic), slots.any()), ([0; 2], [false; 2]));
    }

    // What is remembered of topics stays true while filters, more than there are slots, come, change and go.
    #[test]
    fn remembered_topics_stay_true() {
        let qos = |number: usize| [None, Some(QoS::AtMostOnce), Some(QoS::AtLeastOnce)][number % 3];
        let filters: Vec<_> = (0..40)
            .flat_map(|number| [format!("t/{number}"), format!("t/{number}/#"), format!("+/{number}")])
            .map(|text| filter(&text))
            .collect();
        let topics: Vec<_> = (0..40).map(|number| TopicName::parse(&format!("t/{number}")).unwrap()).collect();
        let mut slots = Slots::default();
        let mut now = vec![None; filters.len()];
        for step in 0..2_000_usize {
            let index = step * 7_919 % filters.len();
            let after = qos(step.wrapping_mul(2_654_435_761) >> 7);
            slots.change(&filters[index], now[index], after);
            now[index] = after;
            let topic = &topics[step % topics.len()];
            let remembered = slots.wanting(topic);
            slots.topics.remove(topic);
            assert_eq!(slots.wanting(topic), remembered, "step {step}");
        }
    }

    // More filters than slots share slots, evenly.
    #[test]
    fn filters_share_slots_when_there_are_many() {
        let mut slots = Slots::default();
        for number in 0..3 * SLOTS {
            slots.change(&filter(&format!("t/{number}")), None, Some(QoS::AtMostOnce)).unwrap();
        }
        assert_eq!(slots.load, [3; SLOTS]);
        for number in 0..3 * SLOTS {
            let slots = slots.wanting(&TopicName::parse(&format!("t/{number}")).unwrap());
            assert_eq!(slots.map(u64::count_ones), [1, 1]);
        }
    }
}

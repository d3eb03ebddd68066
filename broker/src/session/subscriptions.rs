//! The subscriptions of one session, and which of them a message matches.
//!
//! A match is decided once per topic and remembered, at most [`DECISIONS_MAX`] topics, until a subscription changes. A
//! message that several subscriptions match is delivered once, at the highest QoS that they grant, with all their
//! identifiers. [MQTT-3.3.4-2], [MQTT-3.3.4-4]

use std::collections::HashMap;
use std::sync::Arc;

use crate::log::Offset;
use crate::log::sessions::StoredSubscription;
use crate::message::QoS;
use crate::topic::{TopicFilter, TopicName};

/// Topics whose matches are remembered: 4,096 × about 200 bytes = 800 KiB at worst.
const DECISIONS_MAX: usize = 4_096;

/// One subscription.
#[derive(Debug, Clone)]
pub(super) struct Subscription {
    pub(super) filter: TopicFilter,
    pub(super) qos: QoS,
    pub(super) no_local: bool,
    pub(super) retain_as_published: bool,
    pub(super) identifier: Option<u32>,
    /// Messages of the log before this one are not for it.
    pub(super) since: Offset,
}

impl Subscription {
    /// As the store has it.
    pub(super) fn to_store(&self) -> StoredSubscription {
        let Subscription { filter, qos, no_local, retain_as_published, identifier, since, .. } = self.clone();
        StoredSubscription { filter, qos, no_local, retain_as_published, identifier, since }
    }
}

/// What several matching subscriptions make of a message together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    /// The highest that was granted.
    pub(super) qos: QoS,
    pub(super) retain_as_published: bool,
    pub(super) identifiers: Box<[u32]>,
    /// Whether the message decides too: one of the subscriptions is no-local, or younger than the others.
    no_local: bool,
    since: Offset,
}

#[derive(Debug)]
struct Remembered {
    /// Identifiers of topics may be given to another topic one day.
    topic: TopicName,
    decision: Option<Arc<Decision>>,
}

/// The subscriptions.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    list: Vec<Subscription>,
    /// Those of them that are shared; empty for most clients.
    shared: Vec<TopicFilter>,
    shared_by_id: HashMap<u32, (TopicName, Arc<[TopicFilter]>)>,
    by_id: HashMap<u32, Remembered>,
    by_name: HashMap<TopicName, Option<Arc<Decision>>>,
    /// The last of `by_name` that was asked for: a publisher mostly goes on with the same topic.
    last: Option<(TopicName, Option<Arc<Decision>>)>,
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn get(&self, filter: &TopicFilter) -> Option<&Subscription> {
        self.list.iter().find(|subscription| subscription.filter == *filter)
    }

    /// Whether any subscription reads the log; a shared one does, since its messages are given out there.
    pub(super) fn read_log(&self) -> bool {
        !self.shared.is_empty() || self.list.iter().any(|subscription| subscription.qos > QoS::AtMostOnce)
    }

    /// The shared subscriptions that want a message of the log.
    pub(super) fn shared_wanting(&mut self, topic_id: u32, topic: &TopicName) -> Arc<[TopicFilter]> {
        if let Some((_, filters)) = self.shared_by_id.get(&topic_id).filter(|(same, _)| same == topic) {
            return Arc::clone(filters);
        }
        let filters: Arc<[TopicFilter]> = self.shared.iter().filter(|filter| filter.matches(topic)).cloned().collect();
        if self.shared_by_id.len() >= DECISIONS_MAX {
            self.shared_by_id.clear();
        }
        self.shared_by_id.insert(topic_id, (topic.clone(), Arc::clone(&filters)));
        filters
    }

    /// Whether any subscription is shared.
    pub(super) fn has_shared(&self) -> bool {
        !self.shared.is_empty()
    }

    /// Adds a subscription or replaces the one with the same filter, which is returned.
    pub(super) fn insert(&mut self, subscription: Subscription) -> Option<Subscription> {
        self.forget();
        match self.list.iter_mut().find(|known| known.filter == subscription.filter) {
            Some(known) => Some(std::mem::replace(known, subscription)),
            None => {
                if subscription.filter.share_group().is_some() {
                    self.shared.push(subscription.filter.clone());
                }
                self.list.push(subscription);
                None
            }
        }
    }

    pub(super) fn remove(&mut self, filter: &str) -> Option<Subscription> {
        let index = self.list.iter().position(|subscription| subscription.filter.as_written() == filter)?;
        self.forget();
        self.shared.retain(|shared| shared.as_written() != filter);
        Some(self.list.swap_remove(index))
    }

    fn forget(&mut self) {
        self.by_id.clear();
        self.by_name.clear();
        self.shared_by_id.clear();
        self.last = None;
    }

    /// For a message of the log.
    pub(super) fn decide_logged(
        &mut self,
        topic_id: u32,
        topic: &TopicName,
        from_me: bool,
        offset: Offset,
    ) -> Option<Arc<Decision>> {
        let known = self.by_id.get(&topic_id).filter(|remembered| remembered.topic == *topic);
        let decision = match known {
            Some(remembered) => remembered.decision.clone(),
            None => {
                let decision = self.decide(topic, |_| true);
                if self.by_id.len() >= DECISIONS_MAX {
                    self.by_id.clear();
                }
                let remembered = Remembered { topic: topic.clone(), decision: decision.clone() };
                self.by_id.insert(topic_id, remembered);
                decision
            }
        }?;
        if offset < decision.since || (from_me && decision.no_local) {
            return self
                .decide(topic, |subscription| offset >= subscription.since && !(from_me && subscription.no_local));
        }
        Some(decision)
    }

    /// For a live message.
    pub(super) fn decide_live(&mut self, topic: &TopicName, from_me: bool) -> Option<Arc<Decision>> {
        let decision = match &self.last {
            Some((last, decision)) if last.is_same(topic) => decision.clone(),
            _ => {
                let decision = self.remembered(topic);
                self.last = Some((topic.clone(), decision.clone()));
                decision
            }
        }?;
        if from_me && decision.no_local {
            return self.decide(topic, |subscription| !subscription.no_local);
        }
        Some(decision)
    }

    fn remembered(&mut self, topic: &TopicName) -> Option<Arc<Decision>> {
        if let Some(decision) = self.by_name.get(topic) {
            return decision.clone();
        }
        let decision = self.decide(topic, |_| true);
        if self.by_name.len() >= DECISIONS_MAX {
            self.by_name.clear();
        }
        self.by_name.insert(topic.clone(), decision.clone());
        decision
    }

    fn decide(&self, topic: &TopicName, counts: impl Fn(&Subscription) -> bool) -> Option<Arc<Decision>> {
        let own = self.list.iter().filter(|subscription| subscription.filter.share_group().is_none());
        let mut matching = own.filter(|subscription| counts(subscription) && subscription.filter.matches(topic));
        let first = matching.next()?;
        let mut identifiers: Vec<u32> = first.identifier.into_iter().collect();
        let mut decision = Decision {
            qos: first.qos,
            retain_as_published: first.retain_as_published,
            identifiers: Box::default(),
            no_local: first.no_local,
            since: first.since,
        };
        for subscription in matching {
            decision.qos = decision.qos.max(subscription.qos);
            decision.retain_as_published |= subscription.retain_as_published;
            decision.no_local |= subscription.no_local;
            decision.since = decision.since.max(subscription.since);
            identifiers.extend(subscription.identifier);
        }
        decision.identifiers = identifiers.into();
        Some(Arc::new(decision))
    }
}

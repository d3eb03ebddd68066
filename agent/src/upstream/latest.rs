//! Health, and the status and alert of the gateway itself: of each only the newest counts, so none has a cursor.
//!
//! Owns what was last confirmed of each topic. After an outage the peer gets what holds now, not what held in between. Bounded by what
//! the broker retains.

use std::collections::HashMap;

use bytes::Bytes;
use millwright_broker::log::Log;
use millwright_broker::topic::{TopicFilter, TopicName};

use super::record::{Content, Origin, Record};
use crate::config::upstream::Contents;

/// The newest messages, and which of them the peer has.
#[derive(Debug)]
pub(super) struct Latest {
    wanted: Vec<(TopicFilter, Content)>,
    origin: Origin,
    confirmed: HashMap<TopicName, Bytes>,
}

impl Latest {
    /// What `contents` asks for of health and status; `None` if neither.
    pub(super) fn new(contents: Contents, origin: Origin) -> Option<Latest> {
        let health = contents.health.then_some(("mw/v1/health/+", Content::Health));
        let status = contents.status.then_some(("mw/v1/gateway/+/status", Content::Status));
        // What the gateway itself is in trouble with.
        let alert = contents.status.then_some(("mw/v1/gateway/+/alert", Content::Status));
        let wanted: Vec<_> = [health, status, alert]
            .into_iter()
            .flatten()
            .filter_map(|(filter, content)| Some((TopicFilter::parse(filter).ok()?, content)))
            .collect();
        (!wanted.is_empty()).then(|| Latest { wanted, origin, confirmed: HashMap::new() })
    }

    /// What has changed since it was confirmed, `max` at most.
    pub(super) fn changed(&self, log: &Log, now_us: i64, max: usize) -> Vec<Record> {
        let mut changed = Vec::new();
        for (filter, content) in &self.wanted {
            for retained in log.retained().matching(filter) {
                let message = &retained.message;
                if self.confirmed.get(&message.topic) == Some(&message.payload) || changed.len() >= max {
                    continue;
                }
                let topic = message.topic.as_str();
                let about =
                    topic.trim_end_matches("/status").trim_end_matches("/alert").rsplit('/').next().unwrap_or(topic);
                changed.push(Record {
                    id: self.origin.newest(topic, now_us),
                    content: *content,
                    key: about.into(),
                    topic: message.topic.clone(),
                    payload: message.payload.clone(),
                    gzipped: false,
                    received_us: now_us,
                    retain: true,
                    next: None,
                });
            }
        }
        changed
    }

    /// The peer has these.
    pub(super) fn confirm(&mut self, records: &[Record], log: &Log) {
        for record in records {
            self.confirmed.insert(record.topic.clone(), record.payload.clone());
        }
        if self.confirmed.len() > log.retained().len() {
            self.confirmed.retain(|topic, _| log.retained().get(topic).is_some());
        }
    }
}

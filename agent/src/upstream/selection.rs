//! Which messages of the log an upstream gets, and what they are about.
//!
//! Owns the choice, remembered for each topic of the log. What came down from an upstream (manifests, chunks, commands) is never
//! chosen, so that nothing goes round. Bounds: [`CHOICES_MAX`] topics.

use std::collections::HashMap;
use std::sync::Arc;

use millwright_broker::log::LogMessage;
use millwright_broker::topic::{TopicFilter, TopicName};

use super::record::{Content, Origin, Record};
use crate::config::UpstreamConfig;
use crate::config::upstream::Contents;
use crate::source::SourceMap;

/// Topics whose choice is remembered; beyond, all are chosen anew: 65,536 × 64 bytes are 4 MiB.
const CHOICES_MAX: usize = 65_536;

/// What was chosen for a topic.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    /// What its messages are about.
    pub(super) content: Content,
    /// The asset, or the topic.
    pub(super) key: Arc<str>,
}

/// The choice of one lane.
#[derive(Debug)]
pub(super) struct Selection {
    contents: Contents,
    filters: Vec<TopicFilter>,
    except: Vec<TopicFilter>,
    sources: SourceMap,
    chosen: HashMap<u32, Option<Choice>>,
}

impl Selection {
    /// Chooses `contents`, and of telemetry what the filters of `config` allow.
    pub(super) fn new(config: &UpstreamConfig, contents: Contents, sources: SourceMap) -> Selection {
        Selection {
            contents,
            filters: config.filters.clone(),
            except: config.except.clone(),
            sources,
            chosen: HashMap::new(),
        }
    }

    /// Whether messages of a topic are wanted.
    pub(super) fn wants(&mut self, number: u32, topic: &TopicName) -> bool {
        self.choose(number, topic).is_some()
    }

    /// What messages of a topic are about, if they are wanted.
    pub(super) fn choose(&mut self, number: u32, topic: &TopicName) -> Option<&Choice> {
        if self.chosen.len() >= CHOICES_MAX {
            self.chosen.clear();
        }
        if !self.chosen.contains_key(&number) {
            let choice = self.choice(topic);
            self.chosen.insert(number, choice);
        }
        self.chosen.get(&number).and_then(Option::as_ref)
    }

    /// The sources, for who decodes what was chosen.
    pub(super) fn sources(&mut self) -> &mut SourceMap {
        &mut self.sources
    }

    fn choice(&mut self, topic: &TopicName) -> Option<Choice> {
        let (content, key) = self.classify(topic)?;
        let wanted = match content {
            Content::Telemetry => self.contents.telemetry && self.passes(topic),
            Content::Alert => self.contents.alerts,
            Content::Event => self.contents.events,
            Content::Model => self.contents.models,
            Content::Other => self.contents.other,
            // Never in the log: the newest counts.
            Content::Health | Content::Status => false,
        };
        wanted.then(|| Choice { content, key: key.into() })
    }

    fn passes(&self, topic: &TopicName) -> bool {
        let any = |filters: &[TopicFilter]| filters.iter().any(|filter| filter.matches(topic));
        (self.filters.is_empty() || any(&self.filters)) && !any(&self.except)
    }

    fn classify(&mut self, topic: &TopicName) -> Option<(Content, String)> {
        if let Some(route) = self.sources.resolve(topic) {
            return Some((Content::Telemetry, route.asset().as_str().to_owned()));
        }
        let levels: Vec<&str> = topic.as_str().split('/').collect();
        match levels.as_slice() {
            ["mw", "v1", "alert", asset] => Some((Content::Alert, (*asset).to_owned())),
            ["mw", "v1", "event", asset] => Some((Content::Event, (*asset).to_owned())),
            ["mw", "v1", "health", asset] => Some((Content::Health, (*asset).to_owned())),
            ["mw", "v1", "model", model, "state", _] => Some((Content::Model, (*model).to_owned())),
            ["mw", "v1", "gateway", gateway, "status"] => Some((Content::Status, (*gateway).to_owned())),
            ["mw", "v1", "model" | "gateway", ..] => None,
            _ => Some((Content::Other, topic.as_str().to_owned())),
        }
    }
}

/// The record of a message of the log, sent as it is.
pub(super) fn record(message: &LogMessage, choice: &Choice, origin: &Origin) -> Record {
    Record {
        id: origin.id(message.offset),
        content: choice.content,
        key: Arc::clone(&choice.key),
        topic: message.message.topic.clone(),
        payload: message.message.payload.clone(),
        gzipped: false,
        received_us: message.received_us,
        retain: message.message.retain,
        next: Some(millwright_broker::log::Offset(message.offset.0.saturating_add(1))),
    }
}

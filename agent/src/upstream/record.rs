//! What is sent upstream: one message, with what a consumer needs to place it and to tell it from a copy.
//!
//! Owns the identifiers. A message keeps its identifier however often it is sent, over restarts and other connections, and no other
//! message of this gateway ever gets it: a consumer that remembers identifiers sees everything once.

use std::sync::Arc;

use bytes::Bytes;
use millwright_broker::log::{Lineage, LogId, Offset};
use millwright_broker::topic::TopicName;

use crate::ids::GatewayId;

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// What a device sent, or many of its samples condensed.
    Telemetry,
    /// An asset's current alert.
    Alert,
    /// What happened to an alert.
    Event,
    /// An asset's health.
    Health,
    /// The state of a model on this gateway.
    Model,
    /// The gateway's status.
    Status,
    /// Any other message of the log.
    Other,
}

impl Content {
    /// All of them.
    pub const ALL: [Content; 7] = [
        Content::Telemetry,
        Content::Alert,
        Content::Event,
        Content::Health,
        Content::Model,
        Content::Status,
        Content::Other,
    ];

    /// As it is written in headers and names.
    pub fn word(self) -> &'static str {
        match self {
            Content::Telemetry => "telemetry",
            Content::Alert => "alert",
            Content::Event => "event",
            Content::Health => "health",
            Content::Model => "model",
            Content::Status => "status",
            Content::Other => "other",
        }
    }

    /// Whether it overtakes telemetry that waits.
    pub fn is_urgent(self) -> bool {
        matches!(self, Content::Alert | Content::Event | Content::Model)
    }
}

/// One message on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Tells it from all others of all gateways: `<gateway>/<log>/<offset>`, see [`Origin`].
    pub id: String,
    /// What it is about.
    pub content: Content,
    /// The asset, or the topic if it is about none: messages of one key keep their order on engines with partitions.
    pub key: Arc<str>,
    /// Where it was published on the gateway.
    pub topic: TopicName,
    /// The bytes, as they were published or condensed; compressed if [`Record::gzipped`].
    pub payload: Bytes,
    /// Whether the payload is packed with gzip.
    pub gzipped: bool,
    /// When the gateway received it, UTC microseconds.
    pub received_us: i64,
    /// Whether it is retained on the gateway.
    pub retain: bool,
    /// Where the cursor stands when this and all before it are confirmed; `None` if it is no matter of a cursor.
    pub next: Option<Offset>,
}

impl Record {
    /// Its topic in engines whose levels are separated by dots. Characters that mean something there become `_`.
    pub fn dotted_topic(&self) -> String {
        let dotted = |character| match character {
            '/' => '.',
            '.' | '*' | '>' | '#' | ' ' | '\t' | '\r' | '\n' => '_',
            other => other,
        };
        let text: String = self.topic.as_str().chars().map(dotted).collect();
        // An empty level is allowed in MQTT alone.
        text.split('.').map(|level| if level.is_empty() { "_" } else { level }).collect::<Vec<_>>().join(".")
    }

    /// The header that says how the payload is packed.
    pub fn encoding(&self) -> Option<&'static str> {
        self.gzipped.then_some("gzip")
    }
}

/// The names of the headers, the same in every engine.
pub mod header {
    /// [`super::Record::id`].
    pub const ID: &str = "millwright-id";
    /// [`super::Record::topic`].
    pub const TOPIC: &str = "millwright-topic";
    /// [`super::Content::word`].
    pub const CONTENT: &str = "millwright-content";
    /// [`super::Record::received_us`], as decimal digits.
    pub const RECEIVED_US: &str = "millwright-received-us";
    /// [`super::Record::encoding`], only if the payload is packed.
    pub const ENCODING: &str = "content-encoding";
}

/// Where identifiers begin: the gateway and its log. A log that was begun anew counts from 1 again, and one that was restored from a
/// backup counts on from there, so it is named too; messages from before the backup keep the name that they had.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// Of messages of the log as it is.
    current: Arc<str>,
    /// Of messages that it had before it was restored, each with the offset behind the last one, oldest first.
    earlier: Arc<[(Offset, String)]>,
}

impl Origin {
    /// Of a gateway and its log.
    pub(super) fn new(gateway: &GatewayId, lineage: &Lineage) -> Origin {
        // The first eight digits of a log's id do.
        let begins = |log: LogId| format!("{gateway}/{}", log.to_string().get(..8).unwrap_or_default());
        Origin {
            current: begins(lineage.current()).into(),
            earlier: lineage.earlier().map(|(log, end)| (end, begins(log))).collect(),
        }
    }

    /// The identifier of a message of the log.
    pub(super) fn id(&self, offset: Offset) -> String {
        let earlier = self.earlier.iter().find(|(end, _)| offset < *end);
        format!("{}/{offset}", earlier.map_or(&*self.current, |(_, begins)| begins))
    }

    /// The identifier of one of several messages made at an offset.
    pub(super) fn part(&self, offset: Offset, part: &str) -> String {
        format!("{}/{part}", self.id(offset))
    }

    /// The identifier of a message that is in no log: the newest of its topic, from a time.
    pub(super) fn newest(&self, topic: &str, time_us: i64) -> String {
        format!("{}/{topic}/{time_us}", self.current)
    }
}

#[cfg(test)]
mod tests {
    use millwright_broker::log::{Append, Log, LogConfig, LogCopy, continue_copy};
    use millwright_broker::message::{Message, QoS};

    use super::*;

    // Identifiers name the gateway, the log and the offset.
    #[test]
    fn identifiers_name_where_a_message_is_from() {
        let origin = Origin::new(&GatewayId::parse("gw-1").unwrap(), &Lineage::of(LogId([0xab; 16])));
        assert_eq!(origin.id(Offset(7)), "gw-1/abababab/7");
        assert_eq!(origin.part(Offset(7), "pump"), "gw-1/abababab/7/pump");
    }

    // After a backup was restored, a message from before it keeps its identifier, and none is given a second time.
    #[test]
    fn a_restored_log_gives_no_identifier_twice() {
        let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = |dir: &std::path::Path| Log::open(LogConfig::new(dir)).unwrap().log;
        let gateway = GatewayId::parse("gw-1").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let append = |log: &Log| {
            let topic = TopicName::parse("a").unwrap();
            let (payload, properties) = (Bytes::from_static(b"x"), Bytes::new());
            let message = Message { topic, payload, properties, qos: QoS::AtLeastOnce, retain: false, origin: 0 };
            runtime.block_on(log.append(vec![Append { message, log: true, received_us: 1 }])).unwrap()
        };
        let log = open(dir.path());
        let before = append(&log);
        let mut copy = LogCopy::begin(dir.path(), &to.path().join("log.db")).unwrap();
        while copy.step().unwrap() {}
        copy.finish().unwrap();
        continue_copy(to.path()).unwrap();
        let restored = open(to.path());
        let (after, after_restored) = (append(&log), append(&restored));
        assert_eq!(after, after_restored, "the same offset is given again");
        let (was, is) = (Origin::new(&gateway, log.lineage()), Origin::new(&gateway, restored.lineage()));
        assert_eq!(was.id(before), is.id(before));
        assert_ne!(was.id(after), is.id(after));
    }

    // A topic becomes levels between dots, whatever it contains.
    #[test]
    fn topics_become_subjects() {
        let record = |topic: &str| Record {
            id: String::new(),
            content: Content::Other,
            key: "".into(),
            topic: TopicName::parse(topic).unwrap(),
            payload: Bytes::new(),
            gzipped: false,
            received_us: 0,
            retain: false,
            next: None,
        };
        assert_eq!(record("mw/v1/alert/pump 7").dotted_topic(), "mw.v1.alert.pump_7");
        assert_eq!(record("/a.b//>").dotted_topic(), "_.a_b._._");
    }
}

//! Kafka, through librdkafka's idempotent producer: what the library sends again by itself, over broken connections too, is stored once
//! and in order.
//!
//! Owns one producer. A producer that gave up is not used again, and the next one is another to the broker: what it sends again
//! then comes twice, with the same identifier. librdkafka is built without OpenSSL, so there is neither TLS nor SCRAM. Bounds: one
//! delivery in the library's queue ([`QUEUE_MESSAGES_MAX`], [`QUEUE_KIB_MAX`]), one thread of this crate and a few of the library.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer};

use super::super::record::{Content, Record, header};
use super::super::sink::{Confirmed, Sink, SinkError, password};
use crate::config::UpstreamConfig;
use crate::config::upstream::{Compression, KafkaUpstream};

/// Messages in the library's queue: the largest delivery that can be configured.
const QUEUE_MESSAGES_MAX: usize = 10_000;
/// Their bytes, KiB: the largest delivery, 16 MiB, four times.
const QUEUE_KIB_MAX: usize = 65_536;
/// The largest message, bytes: one that is larger than a delivery is sent alone.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How long the library waits for more messages for a batch, milliseconds.
const LINGER_MS: usize = 5;
/// The longest wait for a list of topics, or for a topic to be made; shorter if `timeout_s` is, for the library's threads wait it out.
const ANSWER: Duration = Duration::from_secs(10);

const CREDENTIALS_REMEDY: &str = "check user, password_file, and what the user may do";

/// Keeps what the library says of its connections, which nothing else tells.
#[derive(Debug, Clone, Default)]
struct Heard(Arc<Mutex<Option<(RDKafkaErrorCode, String)>>>);

impl ClientContext for Heard {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // "All brokers are down" comes after what brought them down.
        if last.is_none() || code != RDKafkaErrorCode::AllBrokersDown {
            *last = Some((code, reason.to_owned()));
        }
    }
}

struct Idempotent {
    /// Empty only while it is dropped.
    producer: Option<FutureProducer<Heard>>,
    heard: Heard,
    client: ClientConfig,
    config: KafkaUpstream,
    answer: Duration,
    /// Topics that are there.
    known: HashSet<String>,
}

/// Makes a producer, and asks the brokers for their topics.
pub(in super::super) async fn connect(
    config: &UpstreamConfig,
    kafka: &KafkaUpstream,
) -> Result<Box<dyn Sink>, SinkError> {
    let client = client_config(config)?;
    let heard = Heard::default();
    let producer: FutureProducer<Heard> = client.create_with_context(heard.clone()).map_err(|error| {
        SinkError::setup(format!("librdkafka does not take this configuration: {error}"), "check address and user")
    })?;
    let mut sink = Idempotent {
        producer: Some(producer),
        heard,
        client,
        config: kafka.clone(),
        answer: ANSWER.min(config.timeout),
        known: HashSet::new(),
    };
    sink.look().await?;
    Ok(Box::new(sink))
}

fn client_config(config: &UpstreamConfig) -> Result<ClientConfig, SinkError> {
    if config.tls.is_some() {
        let remedy = "write idempotent = false, or let a tunnel on this machine speak TLS";
        return Err(SinkError::setup("librdkafka is built without TLS here", remedy));
    }
    let brokers: Vec<&str> =
        std::iter::once(&config.address).chain(&config.more_addresses).map(String::as_str).collect();
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", brokers.join(","))
        .set("client.id", "millwright")
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // Where Kafka's own producers put a key.
        .set("partitioner", "murmur2_random")
        .set("allow.auto.create.topics", "false")
        .set("linger.ms", LINGER_MS.to_string())
        .set("message.timeout.ms", config.timeout.as_millis().to_string())
        .set("message.max.bytes", MESSAGE_BYTES_MAX.to_string())
        .set("queue.buffering.max.messages", QUEUE_MESSAGES_MAX.to_string())
        .set("queue.buffering.max.kbytes", QUEUE_KIB_MAX.to_string());
    let packing = match config.compression {
        Compression::None => "none",
        Compression::Gzip => "gzip",
        Compression::Snappy => "snappy",
    };
    client.set("compression.codec", packing);
    if let Some((user, password)) = password(config)? {
        client
            .set("security.protocol", "sasl_plaintext")
            .set("sasl.mechanisms", "PLAIN")
            .set("sasl.username", user)
            .set("sasl.password", password);
    }
    Ok(client)
}

#[async_trait]
impl Sink for Idempotent {
    async fn deliver(&mut self, records: &[Record], confirmed: &Confirmed) -> Result<(), SinkError> {
        let mut under_way: Vec<DeliveryFuture> = Vec::with_capacity(records.len());
        for record in records {
            let topic = self.topic_of(record.content);
            self.make_sure_of(&topic).await?;
            under_way.push(self.send(record, &topic)?);
        }
        for (index, (record, delivery)) in records.iter().zip(under_way).enumerate() {
            match delivery.await {
                Ok(Ok(_)) => confirmed.set(index + 1),
                Ok(Err((error, _))) => return Err(self.failed(record, &error)),
                Err(_) => return Err(SinkError::Lost("the producer ended".to_owned())),
            }
        }
        Ok(())
    }
}

impl Idempotent {
    fn topic_of(&self, content: Content) -> String {
        self.config.topic.replace("{content}", content.word())
    }

    fn producer(&self) -> Result<&FutureProducer<Heard>, SinkError> {
        self.producer.as_ref().ok_or_else(|| SinkError::Lost("the producer ended".to_owned()))
    }

    /// Puts a message into the library's queue, which has room for a whole delivery.
    fn send(&self, record: &Record, topic: &str) -> Result<DeliveryFuture, SinkError> {
        let received_us = record.received_us.to_string();
        let headers = [
            (header::ID, record.id.as_str()),
            (header::TOPIC, record.topic.as_str()),
            (header::CONTENT, record.content.word()),
            (header::RECEIVED_US, &received_us),
        ];
        let headers = headers.into_iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |all, (key, value)| {
            all.insert(Header { key, value: Some(value) })
        });
        let message = FutureRecord::to(topic)
            .key(record.key.as_bytes())
            .payload(record.payload.as_ref())
            .headers(headers)
            .timestamp(record.received_us / 1_000);
        self.producer()?.send_result(message).map_err(|(error, _)| self.failed(record, &error))
    }

    fn failed(&self, record: &Record, error: &KafkaError) -> SinkError {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                SinkError::refused(record, format!("it is too large for the topic {}", self.topic_of(record.content)))
            }
            _ => self.told("writing", error),
        }
    }

    /// Makes a topic that is missing and should be made.
    async fn make_sure_of(&mut self, topic: &str) -> Result<(), SinkError> {
        if self.known.contains(topic) {
            return Ok(());
        }
        self.look().await?;
        if self.known.contains(topic) {
            return Ok(());
        }
        let KafkaUpstream { partitions, replicas, .. } = self.config;
        if partitions == 0 {
            let what = format!("there is no topic {topic}");
            return Err(SinkError::setup(what, "make it, or set `partitions` to have it made"));
        }
        let doing = format!("making the topic {topic}");
        let admin: AdminClient<DefaultClientContext> =
            self.client.create().map_err(|error| self.told(&doing, &error))?;
        let topics = [NewTopic::new(topic, i32::from(partitions), TopicReplication::Fixed(i32::from(replicas)))];
        let options = AdminOptions::new().operation_timeout(Some(self.answer)).request_timeout(Some(self.answer));
        let made = admin.create_topics(&topics, &options).await.map_err(|error| self.told(&doing, &error))?;
        for result in made {
            match result {
                // Another gateway was faster.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(self.told(&doing, &KafkaError::AdminOp(code))),
            }
        }
        self.known.insert(topic.to_owned());
        Ok(())
    }

    /// Learns which topics are there.
    async fn look(&mut self) -> Result<(), SinkError> {
        let (producer, answer) = (self.producer()?.clone(), self.answer);
        // The library blocks while it asks.
        let asked = tokio::task::spawn_blocking(move || {
            let metadata = producer.client().fetch_metadata(None, answer)?;
            Ok(metadata
                .topics()
                .iter()
                .filter(|topic| topic.error().is_none())
                .map(|topic| topic.name().to_owned())
                .collect())
        });
        let asked = asked.await.map_err(SinkError::lost)?;
        self.known = asked.map_err(|error: KafkaError| self.told("asking for topics", &error))?;
        Ok(())
    }

    fn told(&self, doing: &str, error: &KafkaError) -> SinkError {
        let heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((RDKafkaErrorCode::Authentication, reason)) = &heard {
            return SinkError::setup(format!("{doing}: {reason}"), CREDENTIALS_REMEDY);
        }
        let what = format!("{doing}: {error}");
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed) => {
                SinkError::setup(what, CREDENTIALS_REMEDY)
            }
            Some(RDKafkaErrorCode::InvalidReplicationFactor) => {
                SinkError::setup(what, "set `replicas` to what the cluster has brokers for")
            }
            Some(RDKafkaErrorCode::InvalidTopic) => {
                SinkError::setup(what, "Kafka allows letters, digits, dots, dashes and underscores in `topic`")
            }
            _ => match heard {
                Some((_, reason)) => SinkError::Lost(format!("{what} ({reason})")),
                None => SinkError::Lost(what),
            },
        }
    }
}

impl Drop for Idempotent {
    fn drop(&mut self) {
        // It waits for the library's threads to end, which must not hold up other upstreams.
        if let Some(producer) = self.producer.take() {
            tokio::task::spawn_blocking(move || drop(producer));
        }
    }
}

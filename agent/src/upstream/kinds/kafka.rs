//! Kafka, through a client in Rust: explicit batches that all replicas have acknowledged.
//!
//! Owns the partitions that were written to on this connection. A message goes to the partition of its key as Kafka's own producers
//! place it, so that an asset's messages keep their order and stand with those of others. One batch is on its way to each
//! partition; a batch that is sent again after an error is sent whole. Bounds: a topic for each content at most, a connection for
//! each of their partitions that has a key here, and batches of [`BATCH_BYTES_MAX`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use rskafka::BackoffConfig;
use rskafka::chrono::DateTime;
use rskafka::client::error::{Error, ProtocolError};
use rskafka::client::partition::{Compression as Packing, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder, Credentials, SaslConfig};
use rskafka::record::Record as KafkaRecord;

use super::super::record::{Content, Record, header};
use super::super::sink::{Confirmed, Sink, SinkError, password};
use super::super::tls;
use super::murmur2;
use super::progress::Progress;
use crate::config::UpstreamConfig;
use crate::config::upstream::{Compression, KafkaUpstream};

/// Bytes of one batch with what Kafka puts around each message; brokers take 1 MiB unless they are told otherwise.
const BATCH_BYTES_MAX: usize = 900 * 1024;
/// What a message costs in a batch besides its key, value and headers.
const RECORD_OVERHEAD_BYTES: usize = 64;
/// How long the client tries by itself before it tells: a leader that moves takes a moment.
const CLIENT_RETRY: Duration = Duration::from_secs(2);
/// How long a broker may take to make a topic, milliseconds.
const CREATE_MS: i32 = 10_000;

struct Kafka {
    client: Client,
    config: KafkaUpstream,
    packing: Packing,
    topics: Vec<Topic>,
    /// Where in `topics` messages of a content go: one topic may take several.
    slots: HashMap<Content, usize>,
}

/// A topic that was written to.
struct Topic {
    name: String,
    /// Of its partitions, in order.
    numbers: Vec<i32>,
    /// By place in `numbers`.
    clients: HashMap<usize, Arc<PartitionClient>>,
}

/// Connects. Topics are looked for, or made, when the first message goes to them.
pub(in super::super) async fn connect(
    config: &UpstreamConfig,
    kafka: &KafkaUpstream,
) -> Result<Box<dyn Sink>, SinkError> {
    let brokers: Vec<String> = std::iter::once(&config.address).chain(&config.more_addresses).cloned().collect();
    let backoff = BackoffConfig { deadline: Some(CLIENT_RETRY), max_backoff: CLIENT_RETRY, ..BackoffConfig::default() };
    let tls = config.tls.as_ref().map(tls::client).transpose()?;
    let builder = |sasl: Option<SaslConfig>| {
        let mut builder = ClientBuilder::new(brokers.clone()).client_id("millwright").backoff_config(backoff.clone());
        if let Some(tls) = &tls {
            builder = builder.tls_config(Arc::clone(tls));
        }
        match sasl {
            Some(sasl) => builder.sasl_config(sasl),
            None => builder,
        }
    };
    let client = match password(config)? {
        None => builder(None).build().await,
        Some((user, password)) => {
            let mut result = Err(Error::Timeout);
            for sasl in mechanisms(&Credentials::new(user, password), tls.is_some()) {
                result = builder(Some(sasl)).build().await;
                if !result.as_ref().is_err_and(is_other_mechanism) {
                    break;
                }
            }
            result
        }
    };
    let client = client.map_err(|error| told(&format!("connecting to {}", config.address), &error))?;
    let packing = match config.compression {
        Compression::None => Packing::NoCompression,
        Compression::Gzip => Packing::Gzip,
        Compression::Snappy => Packing::Snappy,
    };
    Ok(Box::new(Kafka { client, config: kafka.clone(), packing, topics: Vec::new(), slots: HashMap::new() }))
}

/// The ways to show a password, in the order in which they are tried. Clouds take it over TLS as it is; without TLS those come
/// first that do not show it.
fn mechanisms(credentials: &Credentials, is_encrypted: bool) -> [SaslConfig; 3] {
    let plain = SaslConfig::Plain(credentials.clone());
    let (long, short) = (SaslConfig::ScramSha512(credentials.clone()), SaslConfig::ScramSha256(credentials.clone()));
    if is_encrypted { [plain, long, short] } else { [long, short, plain] }
}

/// Whether the broker wants the password shown in another way. The client gives what several brokers said as text alone.
fn is_other_mechanism(error: &Error) -> bool {
    let text = error.to_string();
    text.contains("unsupported sasl mechanism") || text.contains("UnsupportedSaslMechanism")
}

#[async_trait]
impl Sink for Kafka {
    async fn deliver(&mut self, records: &[Record], confirmed: &Confirmed) -> Result<(), SinkError> {
        // By topic and partition, in order.
        let mut places: HashMap<(usize, usize), Vec<usize>> = HashMap::new();
        for (index, record) in records.iter().enumerate() {
            let slot = self.slot_of(record.content).await?;
            let partitions = self.topics.get(slot).map_or(0, |topic| topic.numbers.len());
            let partition = murmur2::partition(record.key.as_bytes(), partitions);
            places.entry((slot, partition)).or_default().push(index);
        }
        let progress = Progress::new(records.len());
        let mut deliveries = Vec::with_capacity(places.len());
        for ((slot, partition), indices) in &places {
            let client = self.client_of(*slot, *partition).await?;
            deliveries.push(produce(client, indices, records, self.packing, &progress, confirmed));
        }
        try_join_all(deliveries).await.map(|_| ())
    }
}

impl Kafka {
    /// Which of the topics messages of this content go to; it is looked for, and made if it is missing and should be.
    async fn slot_of(&mut self, content: Content) -> Result<usize, SinkError> {
        if let Some(slot) = self.slots.get(&content) {
            return Ok(*slot);
        }
        let name = self.config.topic.replace("{content}", content.word());
        let slot = match self.topics.iter().position(|topic| topic.name == name) {
            Some(slot) => slot,
            None => {
                let numbers = match self.find(&name).await? {
                    Some(numbers) => numbers,
                    None => self.create(&name).await?,
                };
                self.topics.push(Topic { name, numbers, clients: HashMap::new() });
                self.topics.len() - 1
            }
        };
        self.slots.insert(content, slot);
        Ok(slot)
    }

    /// The connection for a partition, made for the first message that goes there.
    async fn client_of(&mut self, slot: usize, partition: usize) -> Result<Arc<PartitionClient>, SinkError> {
        let gone = || SinkError::Lost("a partition is not there any more".to_owned());
        let topic = self.topics.get_mut(slot).ok_or_else(gone)?;
        if let Some(client) = topic.clients.get(&partition) {
            return Ok(Arc::clone(client));
        }
        let number = *topic.numbers.get(partition).ok_or_else(gone)?;
        let client = self.client.partition_client(&topic.name, number, UnknownTopicHandling::Error).await;
        let doing = || format!("looking for partition {number} of {}", topic.name);
        let client = Arc::new(client.map_err(|error| told(&doing(), &error))?);
        topic.clients.insert(partition, Arc::clone(&client));
        Ok(client)
    }

    async fn find(&self, topic: &str) -> Result<Option<Vec<i32>>, SinkError> {
        let topics = self.client.list_topics().await.map_err(|error| told("listing topics", &error))?;
        let found = topics.into_iter().find(|found| found.name == topic);
        Ok(found.map(|found| found.partitions.into_iter().collect::<Vec<_>>()).filter(|numbers| !numbers.is_empty()))
    }

    async fn create(&self, topic: &str) -> Result<Vec<i32>, SinkError> {
        let KafkaUpstream { partitions, replicas, .. } = self.config;
        if partitions == 0 {
            let what = format!("there is no topic {topic}");
            return Err(SinkError::setup(what, "make it, or set `partitions` to have it made"));
        }
        let doing = format!("making the topic {topic}");
        let controller = self.client.controller_client().map_err(|error| told(&doing, &error))?;
        let replicas = i16::try_from(replicas).unwrap_or(i16::MAX);
        let created = controller.create_topic(topic, i32::from(partitions), replicas, CREATE_MS).await;
        match created {
            // Another gateway was faster.
            Ok(()) | Err(Error::ServerError { protocol_error: ProtocolError::TopicAlreadyExists, .. }) => {}
            Err(error) => return Err(told(&doing, &error)),
        }
        let found = self.find(topic).await?;
        found.ok_or_else(|| SinkError::Lost(format!("the topic {topic} was made, and is not there yet")))
    }
}

/// Sends the messages of one partition, a batch after the other.
async fn produce(
    client: Arc<PartitionClient>,
    indices: &[usize],
    records: &[Record],
    packing: Packing,
    progress: &Progress,
    confirmed: &Confirmed,
) -> Result<(), SinkError> {
    let mut left = indices;
    while !left.is_empty() {
        let (mut count, mut bytes) = (0, 0_usize);
        for record in left.iter().filter_map(|index| records.get(*index)) {
            bytes = bytes.saturating_add(size(record));
            if bytes > BATCH_BYTES_MAX && count > 0 {
                break;
            }
            count += 1;
        }
        let (now, later) = left.split_at(count.min(left.len()));
        let batch: Vec<KafkaRecord> = now.iter().filter_map(|index| records.get(*index)).map(kafka_record).collect();
        let doing = format!("writing to partition {} of {}", client.partition(), client.topic());
        client.produce(batch, packing).await.map_err(|error| {
            let first = now.first().and_then(|index| records.get(*index));
            match (innermost(&error), first, now.len()) {
                (Error::ServerError { protocol_error, .. }, Some(record), 1) if is_too_large(*protocol_error) => {
                    SinkError::refused(record, format!("it is too large for the topic {}", client.topic()))
                }
                _ => told(&doing, &error),
            }
        })?;
        confirmed.set(progress.done(now.iter().copied()));
        left = later;
    }
    Ok(())
}

fn size(record: &Record) -> usize {
    record.payload.len()
        + record.key.len()
        + record.id.len()
        + record.topic.as_str().len()
        + 4 * header::RECEIVED_US.len()
        + RECORD_OVERHEAD_BYTES
}

fn is_too_large(error: ProtocolError) -> bool {
    matches!(error, ProtocolError::MessageTooLarge | ProtocolError::RecordListTooLarge)
}

fn kafka_record(record: &Record) -> KafkaRecord {
    let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    KafkaRecord {
        key: Some(record.key.as_bytes().to_vec()),
        value: Some(record.payload.to_vec()),
        headers: BTreeMap::from([
            header(header::ID, &record.id),
            header(header::TOPIC, record.topic.as_str()),
            header(header::CONTENT, record.content.word()),
            header(header::RECEIVED_US, &record.received_us.to_string()),
        ]),
        timestamp: DateTime::from_timestamp_micros(record.received_us).unwrap_or_default(),
    }
}

fn told(doing: &str, error: &Error) -> SinkError {
    if let Error::ServerError { protocol_error, .. } = innermost(error) {
        let remedy = match protocol_error {
            ProtocolError::TopicAuthorizationFailed
            | ProtocolError::ClusterAuthorizationFailed
            | ProtocolError::SaslAuthenticationFailed => CREDENTIALS_REMEDY,
            ProtocolError::InvalidReplicationFactor => "set `replicas` to what the cluster has brokers for",
            ProtocolError::InvalidTopicException => {
                "Kafka allows letters, digits, dots, dashes and underscores in `topic`"
            }
            ProtocolError::MessageTooLarge | ProtocolError::RecordListTooLarge => {
                "make batch_kb smaller, or let the topic take more (max.message.bytes)"
            }
            _ => return SinkError::while_(doing, error),
        };
        return SinkError::setup(format!("{doing}: {protocol_error}"), remedy);
    }
    // A handshake that fails is among what several brokers said, which the client gives as text alone.
    if error.to_string().contains("Sasl handshake failed") {
        return SinkError::setup(format!("{doing}: {error}"), CREDENTIALS_REMEDY);
    }
    SinkError::while_(doing, error)
}

const CREDENTIALS_REMEDY: &str = "check user, password_file, and what the user may do";

/// What the client tried again until it gave up stands inside what it says then.
fn innermost(error: &Error) -> &Error {
    let (mut found, mut inner) = (error, std::error::Error::source(error));
    while let Some(next) = inner {
        found = next.downcast_ref().unwrap_or(found);
        inner = next.source();
    }
    found
}

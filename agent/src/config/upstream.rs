//! `[[upstream]]`: where messages are forwarded to, which, and how.
//!
//! Owns what an upstream may be. Never opens a connection and never reads a secret: passwords stand in files of their own, read when
//! a connection is made.

use std::path::{Path, PathBuf};
use std::time::Duration;

use millwright_broker::topic::TopicFilter;

use super::broker::path;
use super::reader::{Section, Spot};
use crate::ids::{check_name, shorten};

/// Where an upstream is, what it gets, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Its name: the cursor in the log is called after it.
    pub name: String,
    /// Which protocol, and what is particular to it.
    pub kind: UpstreamKind,
    /// `host:port` of the peer; for ZeroMQ where consumers connect to.
    pub address: String,
    /// Further servers of the same cluster.
    pub more_addresses: Vec<String>,
    /// What is sent.
    pub content: Contents,
    /// Telemetry on these topics; all if there are none.
    pub filters: Vec<TopicFilter>,
    /// Telemetry that is not sent although a filter matches.
    pub except: Vec<TopicFilter>,
    /// Telemetry is condensed to one message an asset for each span of this length.
    pub downsample: Option<Duration>,
    /// Where a new upstream begins.
    pub begin: Begin,
    /// Messages of one delivery, and how long it waits for them.
    pub batch: Batching,
    /// How payloads are packed.
    pub compression: Compression,
    /// Messages a second of telemetry at most.
    pub rate_max: Option<u32>,
    /// Who the gateway is.
    pub credentials: Option<Credentials>,
    /// TLS.
    pub tls: Option<UpstreamTls>,
    /// The longest time without a confirmation.
    pub timeout: Duration,
    /// The longest pause between two attempts.
    pub retry_max: Duration,
}

/// Which kinds of messages are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contents {
    /// Messages that a source maps.
    pub telemetry: bool,
    /// `mw/v1/alert/…`
    pub alerts: bool,
    /// `mw/v1/event/…`
    pub events: bool,
    /// `mw/v1/health/…`, the newest of each asset.
    pub health: bool,
    /// `mw/v1/model/…/state/…`
    pub models: bool,
    /// `mw/v1/gateway/…/status` and `mw/v1/gateway/…/alert`, the newest.
    pub status: bool,
    /// All other messages of the log.
    pub other: bool,
}

/// Where a new upstream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With the oldest message that the log has.
    Oldest,
    /// With the next one.
    Newest,
}

/// Messages of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Messages at most.
    pub messages: usize,
    /// Payload bytes at most; one message is always sent.
    pub bytes: usize,
    /// How long an incomplete one waits for more.
    pub delay: Duration,
}

/// How payloads are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    None,
    /// gzip.
    Gzip,
    /// Snappy; Kafka alone.
    Snappy,
}

/// A name and where its password is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The file that holds the password, with or without a line end.
    pub password_file: PathBuf,
}

/// TLS towards an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamTls {
    /// Whom to trust, PEM; the system's certificates if it is not given.
    pub ca: Option<PathBuf>,
    /// Our own certificate and key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// The protocol, and what is particular to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamKind {
    /// MQTT.
    Mqtt(MqttUpstream),
    /// AMQP 0.9.1.
    Amqp(AmqpUpstream),
    /// Kafka.
    Kafka(KafkaUpstream),
    /// NATS JetStream.
    Nats(NatsUpstream),
    /// ZeroMQ.
    Zeromq {
        /// Where consumers send their acknowledgements.
        ack_address: String,
    },
}

impl UpstreamKind {
    /// The word in the configuration.
    pub fn word(&self) -> &'static str {
        match self {
            UpstreamKind::Mqtt(_) => "mqtt",
            UpstreamKind::Amqp(_) => "amqp",
            UpstreamKind::Kafka(_) => "kafka",
            UpstreamKind::Nats(_) => "nats",
            UpstreamKind::Zeromq { .. } => "zeromq",
        }
    }
}

/// What is particular to MQTT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttUpstream {
    /// MQTT 5 rather than 3.1.1.
    pub v5: bool,
    /// The client identifier; the gateway's id if it is not given.
    pub client_id: Option<String>,
    /// Put before each topic there.
    pub prefix: String,
    /// Takes manifests and chunks of models from there.
    pub models_down: bool,
    /// Takes commands for this gateway from there.
    pub commands_down: bool,
}

/// What is particular to AMQP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpUpstream {
    /// The virtual host.
    pub vhost: String,
    /// The exchange; routing keys are topics with `.` for `/`.
    pub exchange: String,
    /// A queue that is made, and bound to the exchange for everything.
    pub queue: Option<String>,
    /// Its type.
    pub queue_type: QueueType,
}

/// The type of a queue of RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueType {
    /// Replicated, on disk.
    Quorum,
    /// An append-only log.
    Stream,
    /// On one node.
    Classic,
}

/// What is particular to Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaUpstream {
    /// The topic; `{content}` stands for telemetry, alert, event, health, model, status or other.
    pub topic: String,
    /// Partitions of topics that are made; 0 makes none.
    pub partitions: u16,
    /// Their replicas.
    pub replicas: u16,
    /// Through librdkafka's idempotent producer.
    pub idempotent: bool,
}

/// What is particular to NATS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsUpstream {
    /// Put before each subject, which is a topic with `.` for `/`; ends with a dot.
    pub prefix: String,
    /// The stream, which is made if it is missing.
    pub stream: Option<String>,
}

/// The keys that mean something only with some kinds.
const KIND_KEYS: [(&str, &[&str]); 18] = [
    ("more_addresses", &["kafka", "nats"]),
    ("version", &["mqtt"]),
    ("client_id", &["mqtt"]),
    ("models_down", &["mqtt"]),
    ("commands_down", &["mqtt"]),
    ("prefix", &["mqtt", "nats"]),
    ("vhost", &["amqp"]),
    ("exchange", &["amqp"]),
    ("queue", &["amqp"]),
    ("queue_type", &["amqp"]),
    ("topic", &["kafka"]),
    ("partitions", &["kafka"]),
    ("replicas", &["kafka"]),
    ("idempotent", &["kafka"]),
    ("stream", &["nats"]),
    ("ack_address", &["zeromq"]),
    ("tls", &["mqtt", "amqp", "kafka", "nats"]),
    ("user", &["mqtt", "amqp", "kafka", "nats"]),
];

const KINDS: [(&str, &str); 5] =
    [("mqtt", "mqtt"), ("amqp", "amqp"), ("kafka", "kafka"), ("nats", "nats"), ("zeromq", "zeromq")];
const ADDRESS_REMEDY: &str = "write a host and a port, for example \"broker.plant.example:8883\"";
const SEND_EXAMPLE: &str = "[\"alerts\", \"events\", \"telemetry\"]";
/// What subjects begin with unless it is configured.
const NATS_PREFIX: &str = "millwright.";
/// Filters of one upstream: every telemetry topic is tried against them.
const FILTERS_MAX: usize = 64;

/// An upstream as it was read, with where its name stands.
pub(super) struct ReadUpstream {
    pub(super) config: UpstreamConfig,
    pub(super) name_spot: Spot,
}

/// Reads one `[[upstream]]`; `None` if a mistake leaves nothing to use.
pub(super) fn read(s: &mut Section<'_, '_>) -> Option<ReadUpstream> {
    let name = s.required("name", "name", "write for example name = \"plant\"", |name| {
        check_name(name).map(|()| name.to_owned()).map_err(|fault| format!("\"{}\" {fault}", shorten(name)))
    });
    let word = s.choice("kind", None, &KINDS);
    let address = s.required("address", "host:port", ADDRESS_REMEDY, host_and_port);
    let more_addresses = list(s, "more_addresses", "list of host:port", "[\"kafka-2:9092\"]", host_and_port);
    let content = contents(s);
    let filters = list(s, "filters", "list of topic filters", "[\"plant/+/json\"]", TopicFilter::parse);
    let except = list(s, "except", "list of topic filters", "[\"plant/test/#\"]", TopicFilter::parse);
    let downsample_s = s.integer("downsample_s", 0_u64, 0..=86_400);
    let begin = [("oldest", Begin::Oldest), ("newest", Begin::Newest)];
    let begin = s.choice("begin", Some(Begin::Oldest), &begin).unwrap_or(Begin::Oldest);
    let batch = Batching {
        messages: s.integer("batch_messages", 1_000, 1..=10_000),
        bytes: s.integer("batch_kb", 1_024_usize, 1..=16_384).saturating_mul(1_024),
        delay: Duration::from_millis(s.integer("batch_delay_ms", 0_u64, 0..=3_600_000)),
    };
    let compression = [("none", Compression::None), ("gzip", Compression::Gzip), ("snappy", Compression::Snappy)];
    let compression = s.choice("compression", Some(Compression::None), &compression).unwrap_or(Compression::None);
    let rate = s.integer("max_messages_per_s", 0_u32, 0..=1_000_000);
    let credentials = credentials(s);
    let tls = tls(s);
    let timeout = Duration::from_secs(s.integer("timeout_s", 30_u64, 1..=600));
    let retry_max = Duration::from_secs(s.integer("retry_max_s", 60_u64, 1..=3_600));
    let kinds = AllKinds::read(s);

    let word = word?;
    for (key, meant) in KIND_KEYS {
        if s.has(key) && !meant.contains(&word) {
            let what = format!("means nothing with kind = \"{word}\"");
            s.mistake(key, what, format!("remove it; it belongs to kind = \"{}\"", meant.join("\" or \"")));
        }
    }
    let kind = kinds.choose(s, word)?;
    check_compression(s, &kind, compression);
    if tls.is_none() && credentials.is_some() && !address.as_deref().is_some_and(is_own_machine) {
        let what = "the password goes over the network without encryption";
        s.warning("user", what, "write tls = true, and let the server speak TLS");
    }
    let config = UpstreamConfig {
        name: name?,
        kind,
        address: address?,
        more_addresses,
        content,
        filters,
        except,
        downsample: (downsample_s > 0).then(|| Duration::from_secs(downsample_s)),
        begin,
        batch,
        compression,
        rate_max: (rate > 0).then_some(rate),
        credentials,
        tls,
        timeout,
        retry_max,
    };
    Some(ReadUpstream { config, name_spot: s.spot("name") })
}

/// The keys of all kinds, read before it is known which one it is.
struct AllKinds {
    mqtt: MqttUpstream,
    amqp: AmqpUpstream,
    kafka: KafkaUpstream,
    stream: Option<String>,
    ack_address: Option<String>,
}

impl AllKinds {
    fn read(s: &mut Section<'_, '_>) -> AllKinds {
        let v5 = s.choice("version", Some(true), &[("5", true), ("3.1.1", false)]).unwrap_or(true);
        let client_id = s.optional("client_id", "text", "remove it for the gateway's id", not_empty);
        let prefix = s.optional("prefix", "text", "remove it or write for example \"site-7/\"", prefix);
        let (models_down, commands_down) = (s.boolean("models_down", false), s.boolean("commands_down", false));
        let queue_types =
            [("quorum", QueueType::Quorum), ("stream", QueueType::Stream), ("classic", QueueType::Classic)];
        AllKinds {
            mqtt: MqttUpstream { v5, client_id, prefix: prefix.unwrap_or_default(), models_down, commands_down },
            amqp: AmqpUpstream {
                vhost: s.text("vhost", "/", "name of a virtual host"),
                exchange: s.text("exchange", "amq.topic", "name of an exchange"),
                queue: s.optional("queue", "name of a queue", "remove it to make no queue", not_empty),
                queue_type: s.choice("queue_type", Some(QueueType::Quorum), &queue_types).unwrap_or(QueueType::Quorum),
            },
            kafka: KafkaUpstream {
                topic: s.text("topic", "millwright.{content}", "name of a topic"),
                partitions: s.integer("partitions", 1, 0..=1_000),
                replicas: s.integer("replicas", 1, 1..=9),
                idempotent: s.boolean("idempotent", false),
            },
            stream: s.optional("stream", "name of a stream", "remove it if the stream is made elsewhere", not_empty),
            ack_address: s.optional("ack_address", "host:port", ADDRESS_REMEDY, host_and_port),
        }
    }

    fn choose(self, s: &mut Section<'_, '_>, word: &str) -> Option<UpstreamKind> {
        let prefix = self.mqtt.prefix.clone();
        Some(match word {
            "mqtt" => UpstreamKind::Mqtt(self.mqtt),
            "amqp" => UpstreamKind::Amqp(self.amqp),
            "kafka" => UpstreamKind::Kafka(self.kafka),
            "nats" => UpstreamKind::Nats(NatsUpstream { prefix: subject_prefix(prefix), stream: self.stream }),
            _ => {
                if self.ack_address.is_none() && !s.has("ack_address") {
                    s.mistake("ack_address", "is missing", ADDRESS_REMEDY);
                }
                UpstreamKind::Zeromq { ack_address: self.ack_address? }
            }
        })
    }
}

fn contents(s: &mut Section<'_, '_>) -> Contents {
    let words = s.list("send", "alerts, events, health, models, other, status, telemetry", SEND_EXAMPLE);
    let Some(words) = words else {
        return Contents { telemetry: true, alerts: true, events: true, models: true, ..Contents::default() };
    };
    let mut contents = Contents::default();
    if words.is_empty() {
        s.mistake("send", "sends nothing", format!("write for example send = {SEND_EXAMPLE}"));
    }
    for word in words {
        match word.as_str() {
            "telemetry" => contents.telemetry = true,
            "alerts" => contents.alerts = true,
            "events" => contents.events = true,
            "health" => contents.health = true,
            "models" => contents.models = true,
            "status" => contents.status = true,
            "other" => contents.other = true,
            _ => {
                let what = format!("\"{}\" is not known", shorten(&word));
                s.mistake("send", what, "known are alerts, events, health, models, other, status and telemetry");
            }
        }
    }
    contents
}

fn list<T, E: std::fmt::Display>(
    s: &mut Section<'_, '_>,
    key: &'static str,
    allowed: &str,
    example: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Vec<T> {
    let texts = s.list(key, allowed, example).unwrap_or_default();
    if texts.len() > FILTERS_MAX {
        let what = format!("there are {} entries, at most {FILTERS_MAX} are allowed", texts.len());
        s.mistake(key, what, "remove some");
    }
    let mut values = Vec::new();
    for text in texts.iter().take(FILTERS_MAX) {
        match parse(text) {
            Ok(value) => values.push(value),
            Err(error) => s.mistake(key, error.to_string(), format!("write for example {key} = {example}")),
        }
    }
    values
}

fn credentials(s: &mut Section<'_, '_>) -> Option<Credentials> {
    let user = s.optional("user", "text", "write a name or remove it", not_empty);
    let password_file = path(s, "password_file");
    match (user, password_file) {
        (Some(user), Some(password_file)) => Some(Credentials { user, password_file }),
        (None, None) => None,
        (Some(_), None) if s.has("password_file") => None,
        (Some(_), None) => {
            s.mistake("password_file", "is missing", "name the file that holds the password of `user`");
            None
        }
        (None, Some(_)) if s.has("user") => None,
        (None, Some(_)) => {
            s.mistake("user", "is missing", "say whose password it is");
            None
        }
    }
}

fn tls(s: &mut Section<'_, '_>) -> Option<UpstreamTls> {
    let on = s.boolean("tls", false);
    let (ca, certificate, key) = (path(s, "tls_ca"), path(s, "tls_certificate"), path(s, "tls_key"));
    for name in ["tls_ca", "tls_certificate", "tls_key"] {
        if s.has(name) && !on {
            s.mistake(name, "means nothing without tls = true", "write tls = true, or remove it");
        }
    }
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (Some(_), None) if !s.has("tls_key") => {
            s.mistake("tls_key", "is missing", "name the file with the certificate's private key");
            None
        }
        (None, Some(_)) if !s.has("tls_certificate") => {
            s.mistake("tls_certificate", "is missing", "name the file with the key's certificate");
            None
        }
        _ => None,
    };
    on.then_some(UpstreamTls { ca, identity })
}

fn check_compression(s: &mut Section<'_, '_>, kind: &UpstreamKind, compression: Compression) {
    match (kind, compression) {
        (UpstreamKind::Mqtt(mqtt), Compression::Gzip) if !mqtt.v5 => {
            let what = "MQTT 3.1.1 cannot tell a consumer that a payload is compressed";
            s.mistake("compression", what, "write version = \"5\", or compression = \"none\"");
        }
        (UpstreamKind::Kafka(_), _) | (_, Compression::None | Compression::Gzip) => {}
        (_, Compression::Snappy) => {
            s.mistake("compression", "\"snappy\" is Kafka's alone", "write \"gzip\" or \"none\"");
        }
    }
}

/// Puts relative files into the configuration's folder.
pub(super) fn be_relative_to(upstream: &mut UpstreamConfig, folder: &Path) {
    let tls = upstream.tls.as_mut();
    let (ca, identity) = tls.map_or((None, None), |tls| (tls.ca.as_mut(), tls.identity.as_mut()));
    let (certificate, key) = identity.map_or((None, None), |(certificate, key)| (Some(certificate), Some(key)));
    let password = upstream.credentials.as_mut().map(|credentials| &mut credentials.password_file);
    for file in [ca, certificate, key, password].into_iter().flatten() {
        *file = folder.join(&file);
    }
}

fn not_empty(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("is empty") } else { Ok(text.to_owned()) }
}

fn prefix(text: &str) -> Result<String, &'static str> {
    match text {
        text if text.contains(['+', '#', '\0', ' ', '*', '>']) => Err("has a wildcard or a space"),
        text => Ok(text.to_owned()),
    }
}

/// Subjects below a level of their own, so that a stream can take them all.
fn subject_prefix(prefix: String) -> String {
    match prefix {
        prefix if prefix.is_empty() => NATS_PREFIX.to_owned(),
        prefix if prefix.ends_with('.') => prefix,
        prefix => format!("{prefix}."),
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    let wrong = || format!("\"{}\" is not a host with a port", shorten(text));
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match inner {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')),
    };
    match port.parse::<u16>() {
        Ok(_) if is_host => Ok(text.to_owned()),
        _ => Err(wrong()),
    }
}

fn is_own_machine(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host == "localhost" || host == "[::1]" || host.starts_with("127.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::config::Config;

    fn parse(upstream: &str) -> Result<UpstreamConfig, String> {
        let text = format!("[gateway]\nid = \"gw\"\n[[upstream]]\n{upstream}");
        match Config::parse(&text, "gateway.toml", Path::new("/etc/mw")) {
            Ok(loaded) => Ok(loaded.config.upstreams.into_iter().next().unwrap()),
            Err(mistakes) => Err(mistakes.to_string()),
        }
    }

    // Name, kind and address are enough; what is sent then is all that is logged, and nothing comes down.
    #[test]
    fn the_least_is_enough() {
        let upstream = parse("name = \"plant\"\nkind = \"mqtt\"\naddress = \"cloud.example:8883\"").unwrap();
        let Contents { telemetry, alerts, events, health, models, status, other } = upstream.content;
        assert_eq!([telemetry, alerts, events, models], [true; 4]);
        assert_eq!([health, status, other], [false; 3]);
        let UpstreamKind::Mqtt(mqtt) = upstream.kind else { panic!("{:?}", upstream.kind) };
        assert!(mqtt.v5 && !mqtt.models_down && !mqtt.commands_down);
        assert_eq!((upstream.begin, upstream.batch.messages), (Begin::Oldest, 1_000));
    }

    // Files are relative to the configuration's folder.
    #[test]
    fn files_stand_beside_the_configuration() {
        let upstream = parse(
            "name = \"a\"\nkind = \"amqp\"\naddress = \"[::1]:5671\"\ntls = true\ntls_ca = \"ca.pem\"\n\
             user = \"gw\"\npassword_file = \"secret\"\nqueue = \"all\"\nqueue_type = \"stream\"",
        )
        .unwrap();
        assert_eq!(upstream.tls.unwrap().ca.unwrap(), Path::new("/etc/mw/ca.pem"));
        assert_eq!(upstream.credentials.unwrap().password_file, Path::new("/etc/mw/secret"));
        assert!(matches!(upstream.kind, UpstreamKind::Amqp(AmqpUpstream { queue_type: QueueType::Stream, .. })));
    }

    // Each mistake is told with what to write.
    #[test]
    fn mistakes_are_told() {
        let base = "name = \"a\"\naddress = \"h:1\"\n";
        let cases = [
            ("kind = \"kafka\"\nname = \"\"\naddress = \"h:1\"", "name"),
            ("name = \"a\"\nkind = \"kafka\"\naddress = \"http://h\"", "is not a host with a port"),
            ("kind = \"kafka\"\nvhost = \"x\"", "belongs to kind = \"amqp\""),
            ("kind = \"zeromq\"", "ack_address"),
            ("kind = \"nats\"\ncompression = \"snappy\"", "Kafka's alone"),
            ("kind = \"mqtt\"\nversion = \"3.1.1\"\ncompression = \"gzip\"", "version = \"5\""),
            ("kind = \"mqtt\"\nuser = \"u\"", "password_file"),
            ("kind = \"mqtt\"\ntls_ca = \"ca.pem\"", "tls = true"),
            ("kind = \"mqtt\"\nsend = [\"alarms\"]", "known are alerts"),
            ("kind = \"mqtt\"\nsend = []", "sends nothing"),
            ("kind = \"mqtt\"\nfilters = [\"a/#/b\"]", "filters"),
            ("kind = \"mqtt\"\nprefix = \"a/+/\"", "wildcard"),
        ];
        for (text, told) in cases {
            let text = if text.contains("address") { text.to_owned() } else { format!("{base}{text}") };
            let error = parse(&text).unwrap_err();
            assert!(error.contains(told), "{text}\n{error}");
        }
        let twice = format!("{base}kind = \"nats\"\n[[upstream]]\n{base}kind = \"nats\"");
        assert!(parse(&twice).unwrap_err().contains("another upstream"), "names are kept apart");
    }
}

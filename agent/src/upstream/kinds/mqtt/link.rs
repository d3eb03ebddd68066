//! One MQTT connection, of either version.
//!
//! Owns what differs between MQTT 3.1.1 and 5 in the client library. The library would resend and reconnect by itself; a link is thrown
//! away after its first error, so it never does. Bounds: [`REQUESTS_MAX`] requests wait for the socket, packets have
//! [`PACKET_BYTES_MAX`] at most.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5 as packet5;
use rumqttc::{NetworkOptions, Outgoing, TlsConfiguration, Transport, v5};
use tokio_rustls::rustls::ClientConfig;

use super::super::super::record::{Record, header};
use super::super::super::sink::SinkError;

/// The largest packet, either way; as the gateway's own broker takes at most.
const PACKET_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Requests that wait for the socket; each is a message of a delivery, which is in memory anyway.
const REQUESTS_MAX: usize = 1_000;
/// Messages sent and not yet acknowledged, unless the server allows fewer.
const UNACKNOWLEDGED_MAX: u16 = 2_000;
/// Messages from above that are not acknowledged yet, as MQTT 5 lets us ask for.
const RECEIVE_MAX: u16 = 64;
/// How long a server keeps our session for what comes down, seconds: a month.
const SESSION_S: u32 = 30 * 24 * 3_600;
/// Silence after which the server is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How to connect.
pub(super) struct Options {
    /// MQTT 5.
    pub(super) v5: bool,
    /// The client identifier.
    pub(super) client_id: String,
    /// Where.
    pub(super) host: String,
    /// Where.
    pub(super) port: u16,
    /// Name and password.
    pub(super) login: Option<(String, String)>,
    /// TLS.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// Whether the server keeps what comes down while we are away.
    pub(super) keeps_session: bool,
    /// How long connecting, and writing what is to be written at once, may take: a thin line needs its time.
    pub(super) timeout: Duration,
}

/// The sending half.
#[derive(Clone)]
pub(super) enum Client {
    V4(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

/// The half that is polled.
pub(super) enum Events {
    V4(Box<rumqttc::EventLoop>),
    V5(Box<v5::EventLoop>),
}

/// What happened on the connection.
pub(super) enum Told {
    /// The server lets us in.
    Connected {
        /// The largest packet it takes, bytes.
        packet_bytes_max: u32,
        /// Whether it retains messages.
        retains: bool,
    },
    /// A publish went out under this number.
    Sent(u16),
    /// One was acknowledged.
    Acknowledged(u16, Verdict),
    /// The answer to subscribing.
    Subscribed(Result<(), String>),
    /// A message is too large for the server, which ends the connection.
    TooLarge,
    /// A message came down.
    Message(Box<Received>),
    /// Nothing that matters.
    Else,
}

/// What the server says of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has it.
    Taken,
    /// It has it, and nobody wants it.
    Unwanted,
    /// We may not.
    Denied,
    /// It does not take it for what it is.
    Refused(String),
    /// It does not take it now.
    NotNow(String),
}

/// A message from above.
pub(super) struct Received {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
    /// Whether the server keeps it until it is acknowledged.
    pub(super) is_kept: bool,
    packet: Packet,
}

/// The packet to acknowledge.
enum Packet {
    V4(rumqttc::Publish),
    V5(packet5::Publish),
}

/// Why a publish was not handed over.
pub(super) enum Full {
    /// The socket is behind: when something has happened, there may be room.
    Wait,
    /// The connection has ended.
    Ended,
}

/// A link that connects when it is polled.
pub(super) fn open(options: Options) -> (Client, Events) {
    if options.v5 { open_v5(options) } else { open_v4(options) }
}

fn transport(tls: Option<Arc<ClientConfig>>) -> Transport {
    tls.map_or_else(Transport::tcp, |config| Transport::tls_with_config(TlsConfiguration::Rustls(config)))
}

fn open_v4(options: Options) -> (Client, Events) {
    let mut mqtt = rumqttc::MqttOptions::new(options.client_id, options.host, options.port);
    let packet_max = PACKET_BYTES_MAX as usize;
    mqtt.set_keep_alive(KEEP_ALIVE)
        .set_clean_session(!options.keeps_session)
        .set_max_packet_size(packet_max, packet_max)
        .set_inflight(UNACKNOWLEDGED_MAX)
        .set_manual_acks(true)
        .set_transport(transport(options.tls));
    if let Some((user, password)) = options.login {
        mqtt.set_credentials(user, password);
    }
    let (client, mut events) = rumqttc::AsyncClient::new(mqtt, REQUESTS_MAX);
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(options.timeout.as_secs());
    network.set_tcp_nodelay(true);
    events.set_network_options(network);
    (Client::V4(client), Events::V4(Box::new(events)))
}

fn open_v5(options: Options) -> (Client, Events) {
    let mut mqtt = v5::MqttOptions::new(options.client_id, options.host, options.port);
    mqtt.set_keep_alive(KEEP_ALIVE)
        .set_clean_start(!options.keeps_session)
        .set_max_packet_size(Some(PACKET_BYTES_MAX))
        .set_receive_maximum(Some(RECEIVE_MAX))
        .set_outgoing_inflight_upper_limit(UNACKNOWLEDGED_MAX)
        .set_manual_acks(true)
        .set_transport(transport(options.tls));
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    mqtt.set_network_options(network).set_connection_timeout(options.timeout.as_secs());
    if options.keeps_session {
        mqtt.set_session_expiry_interval(Some(SESSION_S));
    }
    if let Some((user, password)) = options.login {
        mqtt.set_credentials(user, password);
    }
    let (client, events) = v5::AsyncClient::new(mqtt, REQUESTS_MAX);
    (Client::V5(client), Events::V5(Box::new(events)))
}

impl Client {
    /// Hands a message over, if the socket is not behind.
    pub(super) fn publish(&self, topic: String, record: &Record, retain: bool) -> Result<(), Full> {
        let payload = record.payload.clone();
        match self {
            Client::V4(client) => {
                let sent = client.try_publish(topic, rumqttc::QoS::AtLeastOnce, retain, payload);
                sent.map_err(|error| match error {
                    rumqttc::ClientError::TryRequest(_) => Full::Wait,
                    rumqttc::ClientError::Request(_) => Full::Ended,
                })
            }
            Client::V5(client) => {
                let qos = v5::mqttbytes::QoS::AtLeastOnce;
                let sent = client.try_publish_with_properties(topic, qos, retain, payload, properties(record));
                sent.map_err(|error| match error {
                    v5::ClientError::TryRequest(_) => Full::Wait,
                    v5::ClientError::Request(_) => Full::Ended,
                })
            }
        }
    }

    /// Asks for messages. What is retained comes once for a session with MQTT 5, each time without.
    pub(super) async fn subscribe(&self, filters: &[String]) -> Result<(), SinkError> {
        let failed = |_| SinkError::Lost("the connection ended".to_owned());
        match self {
            Client::V4(client) => {
                let filters = filters
                    .iter()
                    .map(|filter| rumqttc::SubscribeFilter::new(filter.clone(), rumqttc::QoS::AtLeastOnce));
                client.subscribe_many(filters).await.map_err(|error| failed(error.to_string()))
            }
            Client::V5(client) => {
                let filters = filters.iter().map(|filter| packet5::Filter {
                    preserve_retain: true,
                    retain_forward_rule: packet5::RetainForwardRule::OnNewSubscribe,
                    ..packet5::Filter::new(filter.clone(), v5::mqttbytes::QoS::AtLeastOnce)
                });
                client.subscribe_many(filters).await.map_err(|error| failed(error.to_string()))
            }
        }
    }

    /// Says that a message from above is on our disk.
    pub(super) async fn acknowledge(&self, received: &Received) {
        // Without a connection the server sends it again.
        match (self, &received.packet) {
            (Client::V4(client), Packet::V4(publish)) => drop(client.ack(publish).await),
            (Client::V5(client), Packet::V5(publish)) => drop(client.ack(publish).await),
            _ => {}
        }
    }

    /// Ends the connection as MQTT asks for.
    pub(super) async fn disconnect(&self) {
        // It ends either way.
        match self {
            Client::V4(client) => drop(client.disconnect().await),
            Client::V5(client) => drop(client.disconnect().await),
        }
    }
}

fn properties(record: &Record) -> packet5::PublishProperties {
    let property = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut user_properties = vec![
        property(header::ID, &record.id),
        property(header::TOPIC, record.topic.as_str()),
        property(header::CONTENT, record.content.word()),
        property(header::RECEIVED_US, &record.received_us.to_string()),
    ];
    user_properties.extend(record.encoding().map(|encoding| property(header::ENCODING, encoding)));
    packet5::PublishProperties { user_properties, ..packet5::PublishProperties::default() }
}

impl Events {
    /// What happens next. Never again after an error.
    pub(super) async fn next(&mut self) -> Result<Told, SinkError> {
        match self {
            Events::V4(events) => events.poll().await.map(told_v4).map_err(error_v4),
            Events::V5(events) => match events.poll().await {
                Err(error) if is_too_large(&error) => Ok(Told::TooLarge),
                told => told.map(told_v5).map_err(error_v5),
            },
        }
    }
}

fn told_v4(event: rumqttc::Event) -> Told {
    use rumqttc::{Event, Packet as Incoming, SubscribeReasonCode};
    match event {
        Event::Outgoing(Outgoing::Publish(number)) => Told::Sent(number),
        Event::Incoming(Incoming::ConnAck(_)) => Told::Connected { packet_bytes_max: PACKET_BYTES_MAX, retains: true },
        Event::Incoming(Incoming::PubAck(ack)) => Told::Acknowledged(ack.pkid, Verdict::Taken),
        Event::Incoming(Incoming::SubAck(ack)) => {
            let failed = ack.return_codes.contains(&SubscribeReasonCode::Failure);
            Told::Subscribed(if failed { Err("refused".to_owned()) } else { Ok(()) })
        }
        Event::Incoming(Incoming::Publish(publish)) => Told::Message(Box::new(Received {
            topic: publish.topic.clone(),
            payload: publish.payload.clone(),
            retain: publish.retain,
            is_kept: publish.qos != rumqttc::QoS::AtMostOnce,
            packet: Packet::V4(publish),
        })),
        _ => Told::Else,
    }
}

fn told_v5(event: v5::Event) -> Told {
    use packet5::{Packet as Incoming, SubscribeReasonCode};
    match event {
        v5::Event::Outgoing(Outgoing::Publish(number)) => Told::Sent(number),
        v5::Event::Incoming(Incoming::ConnAck(ack)) => {
            let properties = ack.properties.as_ref();
            Told::Connected {
                packet_bytes_max: properties.and_then(|given| given.max_packet_size).unwrap_or(PACKET_BYTES_MAX),
                retains: properties.and_then(|given| given.retain_available) != Some(0),
            }
        }
        v5::Event::Incoming(Incoming::PubAck(ack)) => Told::Acknowledged(ack.pkid, verdict(ack.reason)),
        v5::Event::Incoming(Incoming::SubAck(ack)) => {
            let failed = ack.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_)));
            Told::Subscribed(failed.map_or(Ok(()), |code| Err(format!("{code:?}"))))
        }
        v5::Event::Incoming(Incoming::Publish(publish)) => Told::Message(Box::new(Received {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload.clone(),
            retain: publish.retain,
            is_kept: publish.qos != v5::mqttbytes::QoS::AtMostOnce,
            packet: Packet::V5(publish),
        })),
        _ => Told::Else,
    }
}

fn verdict(reason: packet5::PubAckReason) -> Verdict {
    use packet5::PubAckReason as Reason;
    match reason {
        Reason::Success => Verdict::Taken,
        Reason::NoMatchingSubscribers => Verdict::Unwanted,
        Reason::NotAuthorized => Verdict::Denied,
        Reason::TopicNameInvalid | Reason::PayloadFormatInvalid => Verdict::Refused(format!("{reason:?}")),
        other => Verdict::NotNow(format!("{other:?}")),
    }
}

/// "Packet too large" of MQTT 5, which servers give as an acknowledgement too; the library does not know it there.
const PACKET_TOO_LARGE: u8 = 0x95;

fn is_too_large(error: &v5::ConnectionError) -> bool {
    use v5::{ConnectionError, StateError};
    match error {
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            *reason_code == packet5::DisconnectReasonCode::PacketTooLarge
        }
        ConnectionError::MqttState(StateError::Deserialization(error)) => {
            matches!(error, v5::mqttbytes::Error::InvalidConnectReturnCode(PACKET_TOO_LARGE))
        }
        _ => false,
    }
}

const LOGIN_REMEDY: &str = "check user, password_file, client_id, and what the user may do there";

fn error_v4(error: rumqttc::ConnectionError) -> SinkError {
    use rumqttc::{ConnectReturnCode as Code, ConnectionError};
    match error {
        ConnectionError::ConnectionRefused(
            code @ (Code::BadUserNamePassword | Code::NotAuthorized | Code::BadClientId),
        ) => SinkError::setup(format!("the server does not let the gateway in ({code:?})"), LOGIN_REMEDY),
        ConnectionError::ConnectionRefused(Code::RefusedProtocolVersion) => {
            SinkError::setup("the server does not speak MQTT 3.1.1", "write version = \"5\"")
        }
        error => SinkError::lost(error),
    }
}

fn error_v5(error: v5::ConnectionError) -> SinkError {
    use packet5::ConnectReturnCode as Code;
    use v5::{ConnectionError, StateError};
    let code = match &error {
        ConnectionError::ConnectionRefused(code) => Some(*code),
        ConnectionError::MqttState(StateError::ConnFail { reason }) => Some(*reason),
        _ => None,
    };
    match code {
        Some(
            code @ (Code::BadUserNamePassword
            | Code::NotAuthorized
            | Code::BadClientId
            | Code::ClientIdentifierNotValid
            | Code::Banned
            | Code::BadAuthenticationMethod),
        ) => SinkError::setup(format!("the server does not let the gateway in ({code:?})"), LOGIN_REMEDY),
        Some(Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion) => {
            SinkError::setup("the server does not speak MQTT 5", "write version = \"3.1.1\"")
        }
        _ => SinkError::lost(error),
    }
}

//! RabbitMQ over AMQP 0.9.1, with publisher confirms.
//!
//! Owns one connection with one channel. Every message is mandatory and persistent: one that no queue takes comes back and is an error,
//! one that the broker does not confirm is sent again. Bounds: [`UNCONFIRMED_MAX`] messages on their way.

use std::collections::VecDeque;
use std::net::SocketAddr;

use async_trait::async_trait;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::tcp::{AsyncTcpStream, RustlsConnector};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind, PublisherConfirm};

use super::super::record::{Record, header};
use super::super::sink::{Confirmed, Sink, SinkError, password};
use super::super::tls;
use super::socket::SocketEnd;
use crate::config::UpstreamConfig;
use crate::config::upstream::{AmqpUpstream, QueueType};

/// Messages sent and not yet confirmed. A quorum queue writes what has come meanwhile to disk together: the more, the fewer
/// writes for each.
const UNCONFIRMED_MAX: usize = 2_000;
/// Messages of this size and more go alone, bytes: a broker that refuses one closes the channel and does not say which it was.
const ALONE_BYTES: usize = 1 << 20;
/// Two heartbeats without an answer end the connection, seconds.
const HEARTBEAT_S: u16 = 20;
/// The longest routing key of the protocol, bytes.
const SHORT_BYTES_MAX: usize = 255;
/// AMQP's mark of a message that is to be on disk.
const PERSISTENT: u8 = 2;

struct Amqp {
    connection: Connection,
    channel: Channel,
    exchange: ShortString,
    /// Dropped last: the library takes its leave before.
    _end: SocketEnd,
}

/// Connects, and makes the queue if one is configured.
pub(in super::super) async fn connect(
    config: &UpstreamConfig,
    amqp: &AmqpUpstream,
) -> Result<Box<dyn Sink>, SinkError> {
    let (connection, end) = open(config, amqp).await?;
    let channel = connection.create_channel().await.map_err(|error| told("opening a channel", &error))?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .map_err(|error| told("asking for confirms", &error))?;
    if let Some(queue) = &amqp.queue {
        declare(&channel, amqp, queue).await?;
    }
    Ok(Box::new(Amqp { connection, channel, exchange: amqp.exchange.as_str().into(), _end: end }))
}

/// The library's thread has the socket; what ends it comes along.
async fn open(config: &UpstreamConfig, amqp: &AmqpUpstream) -> Result<(Connection, SocketEnd), SinkError> {
    let uri = uri(config, amqp)?;
    let properties = ConnectionProperties::default().with_connection_name(format!("millwright {}", config.name).into());
    let tls = config.tls.as_ref().map(tls::client).transpose()?.map(RustlsConnector::from);
    let runtime = lapin::runtime::default_runtime().map_err(|error| told("no runtime", &error))?;
    let (end, timeout) = (SocketEnd::default(), config.timeout);
    let handle = end.handle();
    let connecting = Connection::connector(
        uri,
        runtime,
        async move |uri, runtime| {
            let (host, port) = (uri.authority.host, uri.authority.port);
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), port)).await?.collect();
            let dialled = tokio::time::timeout(timeout, AsyncTcpStream::connect(&runtime, addresses)).await;
            let stream = dialled.map_err(std::io::Error::from)??;
            if let AsyncTcpStream::Plain(stream) = &stream {
                handle.set(stream.get_ref())?;
            }
            match &tls {
                Some(tls) => Ok(stream.into_rustls(tls, &host).await?),
                None => Ok(stream),
            }
        },
        properties,
    );
    let connection = connecting.await.map_err(|error| told(&format!("connecting to {}", config.address), &error))?;
    Ok((connection, end))
}

fn uri(config: &UpstreamConfig, amqp: &AmqpUpstream) -> Result<AMQPUri, SinkError> {
    let (host, port) = config.address.rsplit_once(':').unwrap_or((&config.address, ""));
    let userinfo = match password(config)? {
        Some((username, password)) => AMQPUserInfo { username, password },
        // What a broker lets in from its own machine.
        None => AMQPUserInfo { username: "guest".to_owned(), password: "guest".to_owned() },
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = port.parse().map_err(|_| SinkError::setup("the address has no port", "write host:port"))?;
    Ok(AMQPUri {
        scheme: if config.tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority { userinfo, host, port },
        vhost: amqp.vhost.clone(),
        query: AMQPQueryString { heartbeat: Some(HEARTBEAT_S), ..AMQPQueryString::default() },
    })
}

/// Makes the queue and binds it to the exchange for everything.
async fn declare(channel: &Channel, amqp: &AmqpUpstream, queue: &str) -> Result<(), SinkError> {
    let mut arguments = FieldTable::default();
    let kind = match amqp.queue_type {
        QueueType::Quorum => "quorum",
        QueueType::Stream => "stream",
        QueueType::Classic => "classic",
    };
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let doing = format!("making the {kind} queue {queue}");
    channel.queue_declare(queue.into(), options, arguments).await.map_err(|error| told(&doing, &error))?;
    if amqp.exchange.is_empty() {
        // The default exchange leads to each queue by its name alone.
        return Ok(());
    }
    let doing = format!("binding the queue {queue} to the exchange {}", amqp.exchange);
    let (exchange, all) = (amqp.exchange.as_str().into(), "#".into());
    let bound = channel.queue_bind(queue.into(), exchange, all, QueueBindOptions::default(), FieldTable::default());
    bound.await.map_err(|error| told(&doing, &error))
}

/// What went wrong, and whose it is to mend.
fn told(doing: &str, error: &lapin::Error) -> SinkError {
    if let ErrorKind::ProtocolError(protocol) = error.kind() {
        let what = format!("{doing}: the broker says {}", protocol.get_message());
        let remedy = match protocol.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => "check user, password_file, and what the user may do",
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => "make what is missing on the broker, or name another",
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => {
                "it exists with other properties: choose another name, or set queue_type to its type"
            }
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => "check vhost, and what the user may do",
            AMQPErrorKind::Soft(_) | AMQPErrorKind::Hard(_) => return SinkError::Lost(what),
        };
        return SinkError::setup(what, remedy);
    }
    SinkError::while_(doing, error)
}

/// A broker that does not take a message for its size says so about the channel.
fn too_large(record: &Record, error: SinkError) -> SinkError {
    match error {
        SinkError::Setup { what, .. } if what.contains("message size") => SinkError::refused(record, what),
        other => other,
    }
}

#[async_trait]
impl Sink for Amqp {
    async fn deliver(&mut self, records: &[Record], confirmed: &Confirmed) -> Result<(), SinkError> {
        let mut unconfirmed: VecDeque<PublisherConfirm> = VecDeque::new();
        let mut done = 0;
        for record in records {
            let is_large = record.payload.len() >= ALONE_BYTES;
            while unconfirmed.len() >= if is_large { 1 } else { UNCONFIRMED_MAX } {
                self.settle(&mut unconfirmed, records, &mut done, confirmed).await?;
            }
            unconfirmed.push_back(self.publish(record).await?);
            if is_large {
                let settled = self.settle(&mut unconfirmed, records, &mut done, confirmed).await;
                settled.map_err(|error| too_large(record, error))?;
            }
        }
        while !unconfirmed.is_empty() {
            self.settle(&mut unconfirmed, records, &mut done, confirmed).await?;
        }
        Ok(())
    }

    async fn ended(&mut self) -> SinkError {
        use futures_util::StreamExt as _;
        let mut events = Box::pin(self.connection.events_listener());
        while let Some(event) = events.next().await {
            if let lapin::Event::Error(error) = event {
                return told("the connection ended", &error);
            }
        }
        SinkError::Lost("the connection ended".to_owned())
    }

    async fn close(&mut self) {
        // It ends either way.
        let _ = self.connection.close(200, "the gateway stops".into()).await;
    }
}

impl Amqp {
    async fn publish(&self, record: &Record) -> Result<PublisherConfirm, SinkError> {
        let key = record.dotted_topic();
        if key.len() > SHORT_BYTES_MAX {
            let reason = format!("its topic has {} bytes, a routing key at most {SHORT_BYTES_MAX}", key.len());
            return Err(SinkError::refused(record, reason));
        }
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let published =
            self.channel.basic_publish(self.exchange.clone(), key.into(), options, &record.payload, properties(record));
        published.await.map_err(|error| told("publishing", &error))
    }

    /// Waits for the oldest confirmation.
    async fn settle(
        &self,
        unconfirmed: &mut VecDeque<PublisherConfirm>,
        records: &[Record],
        done: &mut usize,
        confirmed: &Confirmed,
    ) -> Result<(), SinkError> {
        let (Some(confirm), Some(record)) = (unconfirmed.pop_front(), records.get(*done)) else { return Ok(()) };
        match confirm.await.map_err(|error| told("waiting for a confirmation", &error))? {
            Confirmation::Ack(None) => {}
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                let (topic, why) = (record.topic.as_str(), &returned.reply_text);
                let what = format!("no queue takes messages on {topic} from the exchange {} ({why})", self.exchange);
                return Err(SinkError::setup(what, "bind a queue to it, or set `queue` to have one made"));
            }
            Confirmation::Nack(None) => {
                return Err(SinkError::Lost("the broker could not store a message: is a queue full?".to_owned()));
            }
            Confirmation::NotRequested => {
                return Err(SinkError::Lost("the broker does not confirm".to_owned()));
            }
        }
        *done += 1;
        confirmed.set(*done);
        Ok(())
    }
}

fn properties(record: &Record) -> BasicProperties {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    headers.insert(header::ID.into(), text(&record.id));
    headers.insert(header::TOPIC.into(), text(record.topic.as_str()));
    headers.insert(header::CONTENT.into(), text(record.content.word()));
    headers.insert(header::RECEIVED_US.into(), AMQPValue::LongLongInt(record.received_us));
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_app_id("millwright".into())
        .with_type(record.content.word().into())
        .with_timestamp(u64::try_from(record.received_us / 1_000_000).unwrap_or(0))
        .with_headers(headers);
    if record.id.len() <= SHORT_BYTES_MAX {
        properties = properties.with_message_id(record.id.as_str().into());
    }
    match record.encoding() {
        Some(encoding) => properties.with_content_encoding(encoding.into()),
        None => properties,
    }
}

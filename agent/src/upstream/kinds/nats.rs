//! NATS JetStream: every message has its identifier as `Nats-Msg-Id`, so that the server itself drops what is sent twice.
//!
//! Owns one connection. The client library would reconnect by itself and send what it still holds, behind what a new connection has
//! sent meanwhile; so it gets no name and password for a second connection, and gives up. Bounds: [`UNCONFIRMED_MAX`]
//! messages on their way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{
    ContextBuilder, CreateStreamErrorKind, PublishAckFuture, PublishError, PublishErrorKind,
};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config as StreamConfig, StorageType};
use async_nats::{Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, ServerError};
use async_trait::async_trait;
use tokio::sync::watch;

use super::super::record::{Record, header};
use super::super::sink::{Confirmed, Sink, SinkError, password};
use super::super::tls;
use crate::config::UpstreamConfig;
use crate::config::upstream::NatsUpstream;

/// Messages sent and not yet confirmed.
const UNCONFIRMED_MAX: usize = 2_000;

struct Nats {
    client: Client,
    context: Context,
    prefix: String,
    over: watch::Receiver<Option<Over>>,
}

/// Why the connection is not used any more.
#[derive(Debug, Clone)]
enum Over {
    Ended,
    /// What the server says that we may not do.
    Denied(String),
}

impl From<&Over> for SinkError {
    fn from(over: &Over) -> SinkError {
        match over {
            Over::Ended => SinkError::Lost("the connection ended".to_owned()),
            Over::Denied(what) => SinkError::setup(
                format!("the server says: {what}"),
                "let the user publish below the prefix, and subscribe to _INBOX.>",
            ),
        }
    }
}

/// Connects, and makes the stream if one is configured.
pub(in super::super) async fn connect(
    config: &UpstreamConfig,
    nats: &NatsUpstream,
) -> Result<Box<dyn Sink>, SinkError> {
    let (tell, over) = watch::channel(None);
    let (login, was_connected) = (password(config)?, Arc::new(AtomicBool::new(false)));
    let mut options = ConnectOptions::with_auth_callback(credentials(login, Arc::clone(&was_connected)))
        .name(format!("millwright {}", config.name))
        .connection_timeout(config.timeout)
        // Each server once.
        .max_reconnects(1 + config.more_addresses.len())
        .event_callback(move |event| {
            if let Some(over) = judge(event) {
                // What came first is the reason of what follows.
                tell.send_if_modified(|told| told.is_none() && told.replace(over).is_none());
            }
            std::future::ready(())
        });
    if let Some(tls) = &config.tls {
        options = options.require_tls(true).tls_client_config((*tls::client(tls)?).clone());
    }
    let scheme = if config.tls.is_some() { "tls" } else { "nats" };
    let servers: Vec<String> = std::iter::once(&config.address)
        .chain(&config.more_addresses)
        .map(|address| format!("{scheme}://{address}"))
        .collect();
    let client = options.connect(servers).await.map_err(|error| match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            SinkError::setup("the server does not let the gateway in", "check user and password_file")
        }
        _ => SinkError::while_(&format!("connecting to {}", config.address), error),
    })?;
    was_connected.store(true, Ordering::Release);
    let context = ContextBuilder::new()
        .timeout(config.timeout)
        .ack_timeout(config.timeout)
        .max_ack_inflight(UNCONFIRMED_MAX)
        .backpressure_on_inflight(true)
        .build(client.clone());
    if let Some(stream) = &nats.stream {
        make(&context, stream, &nats.prefix).await?;
    }
    Ok(Box::new(Nats { client, context, prefix: nats.prefix.clone(), over }))
}

/// The name and the password, for one connection.
fn credentials(
    login: Option<(String, String)>,
    was_connected: Arc<AtomicBool>,
) -> impl Fn(Vec<u8>) -> std::future::Ready<Result<Auth, AuthError>> + Send + Sync + 'static {
    move |_| {
        if was_connected.load(Ordering::Acquire) {
            return std::future::ready(Err(AuthError::new("one connection was made, and has ended")));
        }
        let mut auth = Auth::new();
        (auth.username, auth.password) = login.clone().unzip();
        std::future::ready(Ok(auth))
    }
}

/// What an event of the client means for the connection.
fn judge(event: Event) -> Option<Over> {
    match event {
        Event::Disconnected | Event::Closed => Some(Over::Ended),
        // It comes in place of an acknowledgement, without saying for which message.
        Event::ServerError(ServerError::Other(what)) if what.to_ascii_lowercase().contains("permissions violation") => {
            Some(Over::Denied(what))
        }
        _ => None,
    }
}

/// Makes the stream, on disk; one that exists is left as it is.
async fn make(context: &Context, stream: &str, prefix: &str) -> Result<(), SinkError> {
    let config = StreamConfig {
        name: stream.to_owned(),
        subjects: vec![format!("{prefix}>")],
        storage: StorageType::File,
        ..StreamConfig::default()
    };
    context.get_or_create_stream(config).await.map(|_| ()).map_err(|error| {
        let what = format!("the stream {stream} cannot be made: {error}");
        match error.kind() {
            CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::Response => SinkError::Lost(what),
            _ => SinkError::setup(what, "turn JetStream on in the server, and check what the user may do"),
        }
    })
}

#[async_trait]
impl Sink for Nats {
    async fn deliver(&mut self, records: &[Record], confirmed: &Confirmed) -> Result<(), SinkError> {
        let over = self.over.clone();
        tokio::select! {
            result = self.publish_all(records, confirmed) => result,
            error = end_of(over) => Err(error),
        }
    }

    async fn ended(&mut self) -> SinkError {
        end_of(self.over.clone()).await
    }

    async fn close(&mut self) {
        // It ends either way.
        let _ = self.client.drain().await;
    }
}

/// Resolves when the connection is not to be used any more.
async fn end_of(mut over: watch::Receiver<Option<Over>>) -> SinkError {
    match over.wait_for(Option::is_some).await {
        Ok(told) => told.as_ref().unwrap_or(&Over::Ended).into(),
        // The client is gone.
        Err(_) => (&Over::Ended).into(),
    }
}

impl Nats {
    async fn publish_all(&self, records: &[Record], confirmed: &Confirmed) -> Result<(), SinkError> {
        let mut unconfirmed: VecDeque<PublishAckFuture> = VecDeque::new();
        let mut done = 0;
        for record in records {
            if unconfirmed.len() >= UNCONFIRMED_MAX {
                self.settle(&mut unconfirmed, records, &mut done, confirmed).await?;
            }
            let message =
                // The identifier becomes one of the headers: it comes after them.
                PublishMessage::build().headers(headers(record)).message_id(&record.id).payload(record.payload.clone());
            let sent = self.context.send_publish(self.subject(record), message).await;
            unconfirmed.push_back(sent.map_err(|error| self.told(record, &error))?);
        }
        while !unconfirmed.is_empty() {
            self.settle(&mut unconfirmed, records, &mut done, confirmed).await?;
        }
        Ok(())
    }

    /// Waits for the oldest confirmation.
    async fn settle(
        &self,
        unconfirmed: &mut VecDeque<PublishAckFuture>,
        records: &[Record],
        done: &mut usize,
        confirmed: &Confirmed,
    ) -> Result<(), SinkError> {
        let (Some(acknowledgement), Some(record)) = (unconfirmed.pop_front(), records.get(*done)) else {
            return Ok(());
        };
        acknowledgement.await.map_err(|error| self.told(record, &error))?;
        *done += 1;
        confirmed.set(*done);
        Ok(())
    }

    fn subject(&self, record: &Record) -> String {
        format!("{}{}", self.prefix, record.dotted_topic())
    }

    fn told(&self, record: &Record, error: &PublishError) -> SinkError {
        match error.kind() {
            PublishErrorKind::StreamNotFound => {
                let what = format!("no stream takes the subject {}", self.subject(record));
                SinkError::setup(what, "make one for it, or set `stream` to have one made")
            }
            PublishErrorKind::MaxPayloadExceeded => SinkError::refused(record, error),
            _ => SinkError::while_("publishing", error),
        }
    }
}

fn headers(record: &Record) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ID, record.id.as_str());
    headers.insert(header::TOPIC, record.topic.as_str());
    headers.insert(header::CONTENT, record.content.word());
    headers.insert(header::RECEIVED_US, record.received_us.to_string().as_str());
    if let Some(encoding) = record.encoding() {
        headers.insert(header::ENCODING, encoding);
    }
    headers
}

//! What all kinds of upstreams have in common: take messages in order, say which are confirmed.
//!
//! Owns the contract between [`super::courier`] and the kinds. A kind knows its protocol and nothing else: not the log, not what is
//! sent again.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::Down;
use super::record::Record;
use crate::config::UpstreamConfig;
use crate::config::upstream::UpstreamKind;

/// Whether this program has librdkafka's producer, for `idempotent = true`.
pub const HAS_IDEMPOTENT_PRODUCER: bool = cfg!(feature = "upstream-kafka-idempotent");

/// The longest password file, bytes.
const PASSWORD_BYTES_MAX: u64 = 4_096;

/// Why messages did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// There is no connection, or it ended; the same may work later.
    #[error("{0}")]
    Lost(String),
    /// Somebody has to change the configuration, here or there.
    #[error("{what}; {remedy}")]
    Setup {
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The peer refuses one message for what it is, as when it is too large; those before it are confirmed.
    #[error("it refuses the message {id} on {topic}: {reason}")]
    Refused {
        /// Its identifier.
        id: String,
        /// Its topic.
        topic: String,
        /// What the peer says.
        reason: String,
    },
}

impl SinkError {
    /// A connection that is not there.
    pub fn lost(error: impl std::fmt::Display) -> SinkError {
        SinkError::Lost(error.to_string())
    }

    /// A connection that is not there, with what was being done.
    pub fn while_(doing: &str, error: impl std::fmt::Display) -> SinkError {
        SinkError::Lost(format!("{doing}: {error}"))
    }

    /// A mistake in a configuration.
    pub fn setup(what: impl Into<String>, remedy: impl Into<String>) -> SinkError {
        SinkError::Setup { what: what.into(), remedy: remedy.into() }
    }

    /// A message that is not taken.
    pub fn refused(record: &Record, reason: impl std::fmt::Display) -> SinkError {
        SinkError::Refused {
            id: record.id.clone(),
            topic: record.topic.as_str().to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// How many messages of a delivery are confirmed, counted from the first without a hole.
#[derive(Debug, Default)]
pub struct Confirmed(AtomicUsize);

impl Confirmed {
    /// Says that so many are.
    pub fn set(&self, count: usize) {
        self.0.fetch_max(count, Ordering::AcqRel);
    }

    /// How many are.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// A connection to an upstream.
#[async_trait]
pub trait Sink: Send {
    /// Delivers messages in this order, many at a time where the protocol allows it, and returns when the peer has confirmed all. What
    /// is confirmed on the way is told to `confirmed`, which the caller reads also when this fails or is dropped. After an error, or
    /// when it was dropped, the connection is not used again.
    ///
    /// # Errors
    /// See [`SinkError`].
    async fn deliver(&mut self, records: &[Record], confirmed: &Confirmed) -> Result<(), SinkError>;

    /// Resolves when the connection ends while nothing is delivered. May be dropped and called again.
    async fn ended(&mut self) -> SinkError {
        std::future::pending().await
    }

    /// Ends the connection as the protocol asks for.
    async fn close(&mut self) {}
}

/// Connects.
///
/// # Errors
/// The peer is not there or does not let us in, or the program was built without this kind.
pub async fn connect(config: &UpstreamConfig, down: &Down) -> Result<Box<dyn Sink>, SinkError> {
    match &config.kind {
        #[cfg(feature = "upstream-mqtt")]
        UpstreamKind::Mqtt(mqtt) => super::kinds::mqtt::connect(config, mqtt, down).await,
        #[cfg(feature = "upstream-amqp")]
        UpstreamKind::Amqp(amqp) => super::kinds::amqp::connect(config, amqp).await,
        #[cfg(feature = "upstream-kafka-idempotent")]
        UpstreamKind::Kafka(kafka) if kafka.idempotent => super::kinds::kafka_idempotent::connect(config, kafka).await,
        #[cfg(not(feature = "upstream-kafka-idempotent"))]
        UpstreamKind::Kafka(kafka) if kafka.idempotent => {
            Err(SinkError::setup("this program was built without the idempotent producer", IDEMPOTENT_REMEDY))
        }
        #[cfg(feature = "upstream-kafka")]
        UpstreamKind::Kafka(kafka) => super::kinds::kafka::connect(config, kafka).await,
        #[cfg(feature = "upstream-nats")]
        UpstreamKind::Nats(nats) => super::kinds::nats::connect(config, nats).await,
        #[cfg(feature = "upstream-zeromq")]
        UpstreamKind::Zeromq { ack_address } => super::kinds::zeromq::connect(config, ack_address).await,
        #[allow(unreachable_patterns, reason = "with all features there is no other kind")]
        other => {
            let _ = down;
            let what = format!("this program was built without kind = \"{}\"", other.word());
            Err(SinkError::setup(what, format!("build it with the feature upstream-{}", other.word())))
        }
    }
}

#[cfg(not(feature = "upstream-kafka-idempotent"))]
const IDEMPOTENT_REMEDY: &str = "build it with the feature upstream-kafka-idempotent, or write idempotent = false";

/// The password of `config`, read anew for each connection, so that it can be changed without a restart.
///
/// # Errors
/// The file cannot be read, or is too large to be a password.
pub fn password(config: &UpstreamConfig) -> Result<Option<(String, String)>, SinkError> {
    let Some(credentials) = &config.credentials else { return Ok(None) };
    let text = text_file(&credentials.password_file, PASSWORD_BYTES_MAX)?;
    Ok(Some((credentials.user.clone(), text.trim_end_matches(['\r', '\n']).to_owned())))
}

/// A small file of text.
pub(super) fn text_file(path: &Path, bytes_max: u64) -> Result<String, SinkError> {
    let unreadable = |error: std::io::Error| {
        SinkError::setup(format!("{} cannot be read: {error}", path.display()), "check its path and its permissions")
    };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > bytes_max {
        let what = format!("{} has {bytes} bytes, at most {bytes_max} are read", path.display());
        return Err(SinkError::setup(what, "name another file"));
    }
    std::fs::read_to_string(path).map_err(unreadable)
}
